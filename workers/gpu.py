"""The gpu worker: a packed batch in, its result out. One process per device, models loaded once.

What fails is taken apart rather than retried as it is: a batch that fails becomes two halves, and a
row is condemned only when it has failed three times alone, each time in a fresh process. Failures
are attributed to a batch when its computation raises, or when the process dies of SIGSEGV, SIGABRT
or SIGBUS while it is the batch in hand; a bare SIGKILL says nothing about the batch and never
counts. After any failure the process ends: a device that has failed once is not trusted again.

A GPU always has the next batch before it has finished one (IN_HAND), so that taking, decoding,
encoding and publishing cost it nothing. A failure with two in hand says nothing about either: both
come back as second deliveries, and those are computed with nothing else in hand.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import NamedTuple, NoReturn

import numpy as np

from broker.codec import encode
from broker.keys import BATCHES, RESULTS
from broker.lease import LeaseKeeper
from broker.queue import Broker, Entry
from ops.engine import Engine, EngineSpec, Launched
from ops.errors import UnavailableError
from ops.nouns import I64, Batch, BatchResult, Dtype, Status
from workers.deadline import Deadline
from workers.logs import get_log
from workers.loop import PREDECESSOR_SIGNAL, main, read_entry
from workers.settings import WorkerSettings

MAX_ATTEMPTS = 3
#: Batches that a GPU has at once: the one it computes, and the next.
IN_HAND = 2
BLOCK_MS = 500
#: Batches of such a worker are not begun any more once the machine may go.
LONG_BATCH_S = 10.0
EX_TEMPFAIL = 75


class InHand(NamedTuple):
    """A batch that was launched, and the entry that it came with."""

    entry: Entry
    launched: Launched


class GpuWorker:
    """Holds the models of one identity on one device, and computes batches of any job with it."""

    def __init__(self, settings: WorkerSettings, consumer: str) -> None:
        self.log = get_log("gpu")
        # Compiled kernels outlast the process; a node that gets this folder starts warm.
        os.environ.setdefault("TRITON_CACHE_DIR", str(Path(settings.state_dir) / "kernels"))
        self.engine = Engine(engine_spec(settings))
        self.log.info("model.loaded", message="models are loaded", **self.engine.facts)
        self.broker = Broker(settings.redis_url, settings.namespace, consumer, settings.lease_s)
        self.said = {"role": "gpu", **self.engine.facts}
        self.broker.register(self.said)
        # A batch may take its whole deadline, and then some time to be taken apart.
        limit_s = 2 * settings.batch_deadline_s
        self.lease = LeaseKeeper(self.broker, BATCHES, settings.lease_s, limit_s)
        self.deadline = Deadline(settings.batch_deadline_s)
        self.busy = BusyLog(settings.heartbeat_s, settings.esm_budget)
        self.depth = 1 if settings.device == "cpu" else IN_HAND
        self.in_hand: deque[InHand] = deque()
        self.longest_batch_s = 0.0
        self.is_hinted = False
        signal.signal(signal.SIGUSR1, self._take_hint)
        # A predecessor that died of its batch left it in our name: the first that we take is it,
        # unless it had another one in hand.
        self.blame = os.environ.get(PREDECESSOR_SIGNAL)

    def _take_hint(self, signum: int, frame: FrameType | None) -> None:
        """SIGUSR1: the machine may go soon."""
        self.is_hinted = True

    def step(self) -> None:
        """Takes one batch and launches it; finishes the oldest one in hand when there are enough,
        or nothing else to do."""
        if self.is_hinted and self.longest_batch_s > LONG_BATCH_S and not self.in_hand:
            time.sleep(BLOCK_MS / 1_000)  # what would hardly be finished is left to others
            return
        entries = self.broker.take(BATCHES, 1, 1 if self.in_hand else BLOCK_MS)
        for entry in entries:
            self.lease.hold(entry.id)
            try:
                self._take_on(entry)
            finally:
                if all(entry.id != other.entry.id for other in self.in_hand):
                    self.lease.release(entry.id)
        if entries:
            self.blame = None
        if len(self.in_hand) >= self.depth or not entries:
            self._finish_oldest()

    def _take_on(self, entry: Entry) -> None:
        batch = read_entry(self.broker, BATCHES, entry, Batch)
        if batch is None:
            return
        if self.broker.is_cancelled(batch.job):
            self.broker.acknowledge(BATCHES, [entry.id])
            return
        if self.blame and entry.deliveries > self.depth:
            self._hand_on_failure(entry, batch, f"the worker died of {self.blame}")
            return
        alone = entry.deliveries > 1
        while alone and self.in_hand:
            self._finish_oldest()
        try:
            with self.deadline:
                self.in_hand.append(InHand(entry, self.engine.launch(batch)))
        except Exception as error:
            self._fail(entry, batch, error)
        if alone:
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        if not self.in_hand:
            return
        entry, launched = self.in_hand[0]
        began = time.monotonic()
        try:
            try:
                with self.deadline:
                    result = self.engine.finish(launched)
            except Exception as error:
                self._fail(entry, launched.batch, error)
            self.longest_batch_s = max(self.longest_batch_s, time.monotonic() - began)
            self._tell(self.busy.add(launched, self.engine.memory_bytes))
            self._hand_on(entry, result, launched.batch)
        finally:
            self.in_hand.popleft()
            self.lease.release(entry.id)

    def _tell(self, figures: dict[str, float] | None) -> None:
        """In the log, and in Redis for `vnp top` and the metrics."""
        if figures is not None:
            message = f"{figures['frames_per_s']:,.0f} frames a second"
            self.log.info("gpu.busy", message=message, **figures)
            self.broker.register({**self.said, **figures})

    def _fail(self, entry: Entry, batch: Batch, error: Exception) -> NoReturn:
        """Hands the batch on when it was the only one in hand; ends the process."""
        self.log.error("batch.error", message=str(error), **{"job.id": batch.job})
        if all(entry.id == other.entry.id for other in self.in_hand):
            # Reasons stand in shards, whose bytes are promised: no addresses, sizes or numbers.
            self._hand_on_failure(entry, batch, f"the models failed with {type(error).__name__}")
        sys.exit(EX_TEMPFAIL)

    def _hand_on(self, entry: Entry, result: BatchResult, batch: Batch) -> None:
        done = {"rows_computed": len(batch.record), "tokens_computed": num_tokens(batch)}
        self.broker.hand_off(BATCHES, entry.id, [(RESULTS, encode(result))], done, batch.job)

    def _hand_on_failure(self, entry: Entry, batch: Batch, reason: str) -> None:
        self.log.error(
            "batch.failed",
            message=reason,
            rows=len(batch.record),
            attempts=batch.attempts,
            **{"job.id": batch.job},
        )
        if len(batch.record) == 1 and batch.attempts + 1 >= MAX_ATTEMPTS:
            self._hand_on(entry, condemned(batch, reason, self.engine.numerics), batch)
        else:
            again = [(BATCHES, encode(part)) for part in next_attempts(batch)]
            self.broker.hand_off(BATCHES, entry.id, again, None, batch.job)

    def close(self) -> None:
        with suppress(UnavailableError):
            while self.in_hand:
                self._finish_oldest()
        self.deadline.close()
        self.lease.close()
        self.broker.close()


class BusyLog:
    """Sums up, every few seconds while there is work, what the device did."""

    def __init__(self, every_s: float, budget: int) -> None:
        self._every_s, self._budget = every_s, budget
        self._rows_total = 0
        self._reset()

    def _reset(self) -> None:
        self._since = time.monotonic()
        self._busy_s = 0.0
        self._esm_tokens = self._dna_tokens = self._rows = self._batches = 0

    def add(self, launched: Launched, memory_bytes: int) -> dict[str, float] | None:
        """Takes a batch in; figures when it is time for them."""
        self._busy_s += launched.running.busy_s
        batch = launched.batch
        self._esm_tokens += len(batch.esm_tokens.data) if batch.esm_tokens is not None else 0
        self._dna_tokens += len(batch.dna_tokens.data) if batch.dna_tokens is not None else 0
        self._rows += len(batch.record)
        self._rows_total += len(batch.record)
        self._batches += 1
        elapsed_s = time.monotonic() - self._since
        if elapsed_s < self._every_s:
            return None
        figures = {
            "busy": round(self._busy_s / elapsed_s, 4),
            "seconds": round(elapsed_s, 3),
            "frames_per_s": round(self._rows / elapsed_s, 1),
            "rows": self._rows,
            "rows_total": self._rows_total,
            "esm_tokens": self._esm_tokens,
            "dna_tokens": self._dna_tokens,
            "batches": self._batches,
            "fill": round(self._esm_tokens / (self._batches * self._budget), 4),
            "memory_bytes": memory_bytes,
        }
        self._reset()
        return figures


def engine_spec(settings: WorkerSettings) -> EngineSpec:
    """The part of the settings that the models need."""

    def path(folder: str | None) -> Path | None:
        return Path(folder) if folder else None

    return EngineSpec(
        esm2=path(settings.esm2),
        dnabert=path(settings.dnabert),
        classifier=path(settings.classifier),
        device="cuda" if settings.device.startswith("cuda") else "cpu",
        dtype=settings.dtype,
        attention=settings.attention,
        compile=settings.compile,
        esm_budget=settings.esm_budget,
        dna_budget=settings.dna_budget,
        max_rows=settings.max_rows,
        threads=settings.threads,
    )


def num_tokens(batch: Batch) -> int:
    """ESM-2 and DNABERT-S tokens of a batch together."""
    return sum(len(t.data) for t in (batch.esm_tokens, batch.dna_tokens) if t is not None)


def next_attempts(batch: Batch) -> list[Batch]:
    """What follows a failure: two halves, which is free, or the lone row, one failure older."""
    if len(batch.record) == 1:
        return [replace(batch, attempts=batch.attempts + 1)]
    middle = len(batch.record) // 2
    rows = np.arange(len(batch.record))
    return [take_rows(batch, rows[:middle]), take_rows(batch, rows[middle:])]


def take_rows(batch: Batch, rows: I64) -> Batch:
    """The batch that holds only the given rows."""
    return replace(
        batch,
        record=batch.record[rows],
        chunk=batch.chunk[rows],
        frame=batch.frame[rows],
        digest=batch.digest[rows],
        esm_tokens=batch.esm_tokens.take(rows) if batch.esm_tokens is not None else None,
        dna_tokens=batch.dna_tokens.take(rows) if batch.dna_tokens is not None else None,
    )


def condemned(batch: Batch, reason: str, numerics: str) -> BatchResult:
    """The result of rows that cannot be computed: status failed, no numbers."""
    rows = len(batch.record)
    return BatchResult.of(
        batch,
        numerics,
        dtype=np.full(rows, Dtype.FP32, np.uint8),
        status=np.full(rows, Status.FAILED, np.uint8),
        reasons=(reason,) * rows,
    )


if __name__ == "__main__":
    main("gpu", GpuWorker)

"""The gpu worker: a packed batch in, its result out. One process per device, models loaded once.

What fails is taken apart rather than retried as it is: a batch that fails becomes two halves, and a
row is condemned only when it has failed three times alone, each time in a fresh process. Failures
are attributed to a batch when its computation raises, or when the process dies of SIGSEGV, SIGABRT
or SIGBUS while it is the batch in hand; a bare SIGKILL says nothing about the batch and never
counts. After any failure the process ends: a device that has failed once is not trusted again.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from broker.codec import encode
from broker.keys import BATCHES, RESULTS
from broker.lease import LeaseKeeper
from broker.queue import Broker, Entry
from ops.engine import Engine, EngineSpec
from ops.nouns import I64, Batch, BatchResult, Dtype, Status
from workers.deadline import Deadline
from workers.logs import get_log
from workers.loop import PREDECESSOR_SIGNAL, main, read_entry
from workers.settings import WorkerSettings

MAX_ATTEMPTS = 3
BLOCK_MS = 500
EX_TEMPFAIL = 75


class GpuWorker:
    """Holds the models of one identity on one device, and computes batches of any job with it."""

    def __init__(self, settings: WorkerSettings, consumer: str) -> None:
        self.log = get_log("gpu")
        self.engine = Engine(engine_spec(settings))
        self.log.info("model.loaded", message="models are loaded", **self.engine.facts)
        self.broker = Broker(settings.redis_url, settings.namespace, consumer, settings.lease_s)
        self.broker.register({"numerics": self.engine.numerics, **self.engine.facts})
        # A batch may take its whole deadline, and then some time to be taken apart.
        limit_s = 2 * settings.batch_deadline_s
        self.lease = LeaseKeeper(self.broker, BATCHES, settings.lease_s, limit_s)
        self.deadline = Deadline(settings.batch_deadline_s)
        # A predecessor that died of its batch left it in our name: the first that we take is it.
        self.blame = os.environ.get(PREDECESSOR_SIGNAL)

    def step(self) -> None:
        """Takes one batch, computes it, hands the result on."""
        for entry in self.broker.take(BATCHES, 1, BLOCK_MS):
            with self.lease.holding(entry.id):
                self._compute(entry)
        self.blame = None

    def _compute(self, entry: Entry) -> None:
        batch = read_entry(self.broker, BATCHES, entry, Batch)
        if batch is None:
            return
        if self.broker.is_cancelled(batch.job):
            self.broker.acknowledge(BATCHES, [entry.id])
            return
        if self.blame and entry.deliveries > 1:
            self._hand_on_failure(entry, batch, f"the worker died of {self.blame}")
            return
        try:
            with self.deadline:
                result = self.engine.compute(batch)
        except Exception as error:
            self.log.error("batch.error", message=str(error), **{"job.id": batch.job})
            # Reasons stand in shards, whose bytes are promised: no addresses, sizes or numbers.
            self._hand_on_failure(entry, batch, f"the models failed with {type(error).__name__}")
            sys.exit(EX_TEMPFAIL)
        self._hand_on(entry, result, batch)

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
        self.deadline.close()
        self.lease.close()
        self.broker.close()


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
    return BatchResult(
        job=batch.job,
        shard=batch.shard,
        number=batch.number,
        identity=batch.identity,
        numerics=numerics,
        record=batch.record,
        chunk=batch.chunk,
        frame=batch.frame,
        digest=batch.digest,
        dtype=np.full(rows, Dtype.FP32, np.uint8),
        status=np.full(rows, Status.FAILED, np.uint8),
        scores=None,
        esm2=None,
        dnabert_s=None,
        reasons=(reason,) * rows,
    )


if __name__ == "__main__":
    main("gpu", GpuWorker)

"""Rows with embeddings through Redis and writer: hand-offs to committed shards.

    python -m tests.bench.bench_writer [SHARDS]

A stand-in for the gpu worker hands off prepared results (ESM-2 3B and DNABERT-S widths, fp32) as
fast as it can; a real writer process gathers, commits with fsync, and acknowledges. Goal: 20,000
rows/s from the first hand-off to the last manifest line, on the disk of the temporary folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from broker.codec import encode
from broker.keys import BATCHES, FIELD, RESULTS
from broker.queue import Broker
from broker.server import PrivateServer
from daemon.supervisor import MALLOC
from ops.identity import Identity
from ops.jobs import JobSpec, JobStore, Plan
from ops.manifest import ManifestTail
from ops.nouns import Account, BatchResult, Ragged
from workers.settings import WorkerSettings

#: A shard of 2 ** 20 bases of viral genomes has about this many open frames.
ROWS = 1_400
BATCH_ROWS = 64
ESM2, DNABERT_S = 2_560, 768
IDENTITY = Identity(
    pipeline="virus",
    chunk_length=500,
    esm2="sha256:e",
    dnabert_s="sha256:d",
    classifier="sha256:c",
    esm2_name="esm2",
    dnabert_s_name="dnabert-s",
    classifier_name="classifier",
    trained=False,
)


def make_account(job: str, shard: int) -> Account:
    """One long record per shard, every chunk with one frame."""
    chunk = np.arange(ROWS, dtype=np.uint32)
    record = np.full(ROWS, shard, np.uint64)
    start = chunk.astype(np.uint64) * np.uint64(500) + np.uint64(1)

    def one(value: int, dtype: type) -> np.ndarray:  # type: ignore[type-arg]
        return np.array([value], dtype)

    return Account(
        job=job,
        shard=shard,
        identity=IDENTITY.digest,
        record=one(shard, np.uint64),
        name=Ragged.from_bytes([b"record"]),
        length=one(ROWS * 500, np.uint64),
        num_chunks=one(ROWS, np.uint32),
        first_chunk=one(0, np.uint32),
        stop_chunk=one(ROWS, np.uint32),
        record_status=one(0, np.uint8),
        num_ambiguous=one(0, np.uint64),
        num_uracil=one(0, np.uint64),
        chunk_record=record,
        chunk=chunk,
        start=start,
        end=start + np.uint64(499),
        chunk_status=np.zeros(ROWS, np.uint8),
        num_frames=np.ones(ROWS, np.uint8),
        row_record=record,
        row_chunk=chunk,
        row_frame=np.ones(ROWS, np.uint8),
        row_digest=chunk.astype(np.uint64),
    )


def make_results(account: Account) -> list[BatchResult]:
    """The account's rows in batches."""
    rng = np.random.default_rng(account.shard)
    results = []
    for first in range(0, ROWS, BATCH_ROWS):
        rows = slice(first, min(first + BATCH_ROWS, ROWS))
        count = rows.stop - rows.start
        results.append(
            BatchResult(
                job=account.job,
                shard=account.shard,
                number=first // BATCH_ROWS,
                identity=IDENTITY.digest,
                numerics="bench",
                record=account.row_record[rows],
                chunk=account.row_chunk[rows],
                frame=account.row_frame[rows],
                digest=account.row_digest[rows],
                dtype=np.zeros(count, np.uint8),
                status=np.zeros(count, np.uint8),
                scores=np.full((count, 2), 0.5, np.float32),
                esm2=rng.standard_normal((count, ESM2), np.float32),
                dnabert_s=rng.standard_normal((count, DNABERT_S), np.float32),
                reasons=(),
            )
        )
    return results


def create_job(state: Path, out: Path, shards: int) -> str:
    store = JobStore(state)
    spec = JobSpec(id="bench", inputs=(), out=str(out), identity=IDENTITY, embeddings=True)
    plan = Plan(
        records=shards,
        letters=shards * ROWS * 500,
        chunks=shards * ROWS,
        shards=shards + 1,  # one more than will come: the bench ends before the tables
        input_digest="sha256:0",
    )
    store.create(spec)
    store.set_plan(spec.id, plan)
    return spec.id


def start_writer(state: Path, url: str) -> subprocess.Popen[bytes]:
    settings = WorkerSettings(
        state_dir=str(state),
        shared_dir=str(state),
        redis_url=url,
        identity=IDENTITY.to_dict(),
        node="bench",
        log_level="error",
    )
    environment = {**os.environ, **settings.to_environment(), **MALLOC["writer"]}
    return subprocess.Popen([sys.executable, "-m", "workers.writer"], env=environment)


def feed(broker: Broker, job: str, shards: int, tail: ManifestTail) -> None:
    """Hands results off; never more than a window of shards ahead of the manifest.

    The messages of one shard serve for all, but for the numbers in them.
    """
    results, committed = make_results(make_account(job, 0)), 0
    for shard in range(shards):
        account = make_account(job, shard)
        outputs = [encode(account)]
        outputs += [
            encode(
                replace(result, shard=shard, record=np.full(len(result.record), shard, np.uint64))
            )
            for result in results
        ]
        for payload in outputs:
            publish(broker, payload, job)
        while shard - committed > 8:
            committed += len(tail.poll())
            time.sleep(0.001)


def publish(broker: Broker, payload: bytes, job: str) -> None:
    """A batch comes (an empty one), and its result takes its place, as with a real worker."""
    broker._commands.xadd(broker.keys.stream(BATCHES), {FIELD: b""})
    entry = broker.take(BATCHES, 1, 100)[0]
    assert broker.hand_off(BATCHES, entry.id, [(RESULTS, payload)], None, job)


def main() -> None:
    shards = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    with tempfile.TemporaryDirectory() as folder:
        state, out = Path(folder) / "state", Path(folder) / "out"
        server = PrivateServer(Path(folder) / "redis")
        server.start()
        broker = Broker(server.url, "vnp", "bench:gpu:0")
        broker.ensure_groups()
        job = create_job(state, out, shards)
        writer = start_writer(state, server.url)
        while JobStore(state).opened(job) is None:
            time.sleep(0.01)
        started = time.monotonic()
        tail = ManifestTail(out / "manifest.jsonl")
        feed(broker, job, shards, ManifestTail(out / "manifest.jsonl"))
        done = 0
        while done < shards:
            done += len(tail.poll())
            time.sleep(0.002)
        seconds = time.monotonic() - started
        writer.terminate()
        writer.wait()
        server.stop()
    rows, messages = shards * ROWS, shards * (-(-ROWS // BATCH_ROWS) + 1)
    print(f"writer: {rows / seconds:,.0f} rows/s ({ESM2 + DNABERT_S} float32 each, goal 20,000),")
    print(f"        {messages / seconds:,.0f} hand-offs/s, {shards / seconds:.1f} shards/s")


if __name__ == "__main__":
    main()

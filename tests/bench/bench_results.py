"""One writer process and one packer, by what a job is made of: shards a second, tables a second.

    python -m tests.bench.bench_results [SHARDS OF READS]

Real shards are made ready by the packer's code on one core, and results of random numbers are put
into Redis as fast as a writer takes them. Reads of 300 bp are the worst case: many records and rows
a shard. Embeddings as of ESM-2 3B and DNABERT-S. The tables are those of one job, in one thread.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil

from broker.codec import encode
from broker.keys import FIELD, RESULTS
from broker.queue import Broker
from broker.server import PrivateServer
from ops.cut import CutParams, cut_shards, plan_input
from ops.dna_tokens import DnaTokenizer
from ops.jobs import InputFile, JobSpec, JobStore, Plan
from ops.manifest import ManifestTail
from ops.nouns import Account, Batch, BatchResult, ShardTask
from ops.packing import Budgets
from ops.prepare import prepare
from tests.bench.bench_planner import write_genomes
from tests.bench.bench_writer import DNABERT_S, ESM2, IDENTITY, start_writer
from tests.cluster.load_jobs import write_reads

DATA = Path(__file__).parents[1] / "data"
#: Of a batch on a GPU.
BUDGETS = Budgets(32_768, 24_576, 1_024)
READS_A_SHARD, READ_BASES = 3_495, 300
WINDOW = 8
Prepared = list[tuple[list[Batch], Account]]


def plan_of(fasta: Path, cut: CutParams) -> Plan:
    scan = plan_input([fasta], cut)
    for _ in scan:
        pass
    return scan.result


def create(store: JobStore, fasta: Path, out: Path, embeddings: bool) -> list[ShardTask]:
    """A planned job, cut."""
    spec = JobSpec(id="bench", inputs=(), out=str(out), identity=IDENTITY, embeddings=embeddings)
    cut = CutParams.of(IDENTITY, job=spec.id, keep_embeddings=embeddings)
    plan = plan_of(fasta, cut)
    stat = fasta.stat()
    source = InputFile(str(fasta), stat.st_size, stat.st_mtime_ns)
    store.create(replace(spec, inputs=(source,)))
    store.set_plan(spec.id, plan)
    return list(cut_shards([fasta], cut, plan.huge_lengths))


def results_of(batches: list[Batch], embeddings: bool) -> Iterator[BatchResult]:
    random = np.random.default_rng(0)
    for batch in batches:
        rows = len(batch.record)
        yield BatchResult.of(
            batch,
            "bench",
            dtype=np.zeros(rows, np.uint8),
            status=np.zeros(rows, np.uint8),
            scores=random.random((rows, 2), np.float32),
            esm2=np.ones((rows, ESM2), np.float32) if embeddings else None,
            dnabert_s=np.ones((rows, DNABERT_S), np.float32) if embeddings else None,
        )


def pack(tasks: list[ShardTask]) -> tuple[Prepared, float]:
    """All shards made ready on one core, and the seconds that it took."""
    tokenizer = DnaTokenizer(DATA / "dnabert-s" / "tokenizer.json")
    began = time.perf_counter()
    prepared = [prepare(task, tokenizer, BUDGETS, 8_192) for task in tasks]
    return prepared, time.perf_counter() - began


def feed(broker: Broker, prepared: Prepared, embeddings: bool, tail: ManifestTail) -> int:
    """Never more than a window ahead of the commits; returns the bytes of all messages."""
    num_bytes = 0
    for number, (batches, account) in enumerate(prepared):
        for message in (account, *results_of(batches, embeddings)):
            payload = encode(message)
            broker._commands.xadd(broker.keys.stream(RESULTS), {FIELD: payload})
            num_bytes += len(payload)
        until(lambda number=number: number - committed(tail) < WINDOW)
    until(lambda: committed(tail) == len(prepared))
    return num_bytes


def committed(tail: ManifestTail) -> int:
    tail.poll()
    return len(tail.committed)


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.002)


def measure(folder: Path, fasta: Path, embeddings: bool) -> None:
    state, out = folder / "state", folder / "out"
    server = PrivateServer(folder / "redis")
    server.start()
    broker = Broker(server.url, "vnp", "bench:gpu:0")
    broker.ensure_groups()
    store = JobStore(state)
    tasks = create(store, fasta, out, embeddings)
    prepared, packing_s = pack(tasks)
    writer = start_writer(state, server.url)
    try:
        until(lambda: store.opened("bench") is not None)
        began, used = time.monotonic(), cpu_s(writer.pid)
        num_bytes = feed(broker, prepared, embeddings, ManifestTail(out / "manifest.jsonl"))
        seconds, used = time.monotonic() - began, cpu_s(writer.pid) - used
        tell(tasks, prepared, packing_s, seconds, used, num_bytes)
        until(lambda: store.outcome("bench") is not None)
        tables_s = time.monotonic() - began - seconds
        records = sum(len(task.record) for task in tasks)
        chunks = sum(int(task.num_chunks.sum()) for task in tasks)
        rates = f"{records / tables_s:>10,.0f} records/s, {chunks / tables_s:,.0f} chunks/s"
        print(f"  tables        {rates}, one thread")
    finally:
        writer.terminate()
        writer.wait()
        broker.close()
        server.stop()


def cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def tell(
    tasks: list[ShardTask],
    prepared: Prepared,
    packing_s: float,
    seconds: float,
    used: float,
    num_bytes: int,
) -> None:
    shards, records = len(tasks), sum(len(task.record) for task in tasks)
    rows = sum(len(account.row_record) for _, account in prepared)
    batches = sum(len(batches) for batches, _ in prepared)
    print(f"  {shards} shards, {records:,} records, {rows:,} rows, {batches} batches")
    print(f"  packer        {rows / packing_s:>10,.0f} frames/s a core")
    print(
        f"  writer        {rows / seconds:>10,.0f} rows/s, {records / seconds:,.0f} records/s, "
        f"{shards / seconds:.1f} shards/s, {num_bytes / seconds / 1e6:,.0f} MB/s; "
        f"{used / seconds:.2f} cores, {1e3 * used / shards:.0f} ms of CPU a shard",
        flush=True,
    )


def main() -> None:
    shards = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    for name, embeddings in (
        *(("reads of 300 bp", False), ("reads of 300 bp", True)),
        *(("genomes", False), ("genomes", True)),
    ):
        with tempfile.TemporaryDirectory(prefix="vnp-") as folder:
            fasta = Path(folder) / "input.fa"
            if name == "genomes":
                write_genomes(fasta)
            else:
                write_reads(fasta, shards * READS_A_SHARD, READ_BASES, seed=1)
            print(f"{name}, {'with' if embeddings else 'without'} embeddings")
            measure(Path(folder), fasta, embeddings)


if __name__ == "__main__":
    main()

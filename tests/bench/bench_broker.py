"""Hand-offs per second, and rows with embeddings per second through Redis.

    python -m tests.bench.bench_broker [SECONDS]

A row of the virus pipeline with ESM-2 3B and DNABERT-S has 2560 + 768 = 3328 float32 values, 13 kB.
One process hands results on (encode, Lua), another takes, decodes and acknowledges them as the
writer does, at the same time. Goal: 20,000 rows/s (the shard file is measured elsewhere).
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from broker.codec import decode, encode
from broker.keys import BATCHES, RESULTS, TASKS
from broker.queue import Broker
from broker.server import PrivateServer
from ops.nouns import BatchResult

ROWS = 64
ESM2_WIDTH, DNABERT_WIDTH = 2560, 768
#: Results that wait in Redis at most, as the planner's window bounds them.
MAX_WAITING = 64
LOOK_EVERY = 16


def make_result() -> BatchResult:
    random = np.random.default_rng(0)
    rows = np.arange(ROWS)
    return BatchResult(
        job="bench",
        shard=0,
        number=0,
        identity="0" * 16,
        numerics="0" * 16,
        record=rows.astype(np.uint64),
        chunk=rows.astype(np.uint32),
        frame=rows.astype(np.uint8),
        digest=rows.astype(np.uint64),
        dtype=np.zeros(ROWS, np.uint8),
        status=np.zeros(ROWS, np.uint8),
        scores=random.random((ROWS, 2), np.float32),
        esm2=random.random((ROWS, ESM2_WIDTH), np.float32),
        dnabert_s=random.random((ROWS, DNABERT_WIDTH), np.float32),
        reasons=(),
    )


def bench_hand_offs(url: str, seconds: float) -> float:
    """Tasks per second that one process takes and hands on, each as one small message."""
    broker = Broker(url, "hand-offs", "bench:packer:0")
    broker.ensure_groups()
    done, spent = 0, 0.0
    while spent < seconds:
        for shard in range(500):
            broker.issue(b"t" * 100, "bench", shard, 100)
        started = time.perf_counter()
        while entries := broker.take(TASKS, 8, 1):
            for entry in entries:
                broker.hand_off(TASKS, entry.id, [(RESULTS, b"r" * 100)], {"rows": 1}, "bench")
                done += 1
        spent += time.perf_counter() - started
    broker.close()
    return done / spent


def publish(url: str, num_results: int) -> None:
    """The gpu worker's side: every result is encoded anew and handed on."""
    broker = Broker(url, "rows", "bench:gpu:0")
    result = make_result()
    published = 0
    while published < num_results:
        for entry in broker.take(BATCHES, 8, 100):
            if published % LOOK_EVERY == 0:
                wait_for_room(broker)
            broker.hand_off(BATCHES, entry.id, [(RESULTS, encode(result))], None, "bench")
            published += 1
    broker.close()


def wait_for_room(broker: Broker) -> None:
    while broker.stats().streams[RESULTS].length >= MAX_WAITING:
        time.sleep(0.001)


def bench_rows(url: str, seconds: float) -> tuple[float, float]:
    """Rows and megabytes per second from encode to acknowledgement, two processes and Redis."""
    num_results = int(seconds * 20_000 / ROWS)
    writer = Broker(url, "rows", "bench:writer:0")
    writer.ensure_groups()
    feed(writer, num_results)
    gpu = multiprocessing.get_context("spawn").Process(target=publish, args=(url, num_results))
    gpu.start()
    received, num_bytes, started = 0, 0, 0.0
    while received < num_results:
        entries = writer.take(RESULTS, 8, 100)
        started = started or time.perf_counter()
        for entry in entries:
            message = decode(entry.payload)
            assert isinstance(message, BatchResult)
            num_bytes += len(entry.payload)
        received += writer.acknowledge(RESULTS, [entry.id for entry in entries])
    spent = time.perf_counter() - started
    gpu.join()
    writer.close()
    return received * ROWS / spent, num_bytes / spent / 1e6


def feed(broker: Broker, num_batches: int) -> None:
    """Small entries for the gpu worker to take."""
    broker.issue(b"task", "bench", 0, 1)
    [task] = broker.take(TASKS, 1, 100)
    broker.hand_off(TASKS, task.id, [(BATCHES, b"batch")] * num_batches, None, "bench")


def bench_codec() -> tuple[float, float]:
    """Rows per second that one core encodes and decodes."""
    result, rounds = make_result(), 200
    started = time.perf_counter()
    for _ in range(rounds):
        message = encode(result)
    middle = time.perf_counter()
    for _ in range(rounds):
        decode(message)
    ended = time.perf_counter()
    return ROWS * rounds / (middle - started), ROWS * rounds / (ended - middle)


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 3.0
    with tempfile.TemporaryDirectory(prefix="vnp-") as folder:
        server = PrivateServer(Path(folder) / "redis")
        server.start()
        version = Broker(server.url, "bench").stats().server_version
        print(f"redis {version}, unix socket, {os.cpu_count()} cores")
        print(f"hand-offs, one process        {bench_hand_offs(server.url, seconds):>12,.0f} /s")
        encoded, decoded = bench_codec()
        print(f"encode, one core              {encoded:>12,.0f} rows/s")
        print(f"decode, one core              {decoded:>12,.0f} rows/s")
        rows, megabytes = bench_rows(server.url, seconds)
        width = ESM2_WIDTH + DNABERT_WIDTH
        print(f"rows of {width} float32 via Redis {rows:>10,.0f} rows/s  {megabytes:,.0f} MB/s")
        print("goal                                20,000 rows/s")
        server.stop()


if __name__ == "__main__":
    main()

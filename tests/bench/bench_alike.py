"""What is saved by computing rows of one input once: reads of which 30 % are copies of others.

    python -m tests.bench.bench_alike [READS ...]

Two services with loaded models take turns at the same jobs, one of them with packers that pack
every row. The reads come from the test genomes in any order, 150 bases each. What counts is the
gpu worker's processor time: on a machine that is shared, the clock tells of the others, too.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.crash.campaign import HOOKS
from tests.crash.harness import Service

FIXTURES = Path(__file__).parents[1] / "data" / "fixtures"
READS = (2_000, 13_000)
LENGTH, COPIES = 150, 0.3
TURNS = 3
LIMIT_S = 600.0


def write_reads(path: Path, count: int) -> None:
    """The first (1 - COPIES) of them are cut from the genomes, the others copied from those."""
    chance = random.Random(count)
    genomes = ["".join(g.read_text().splitlines()[1:]) for g in sorted(FIXTURES.glob("*.fa"))]
    genomes = [genome for genome in genomes if ">" not in genome]
    reads = []
    for _ in range(round(count * (1 - COPIES))):
        genome = chance.choice(genomes)
        start = chance.randrange(len(genome) - LENGTH)
        reads.append(genome[start : start + LENGTH])
    reads += chance.choices(reads, k=count - len(reads))
    chance.shuffle(reads)
    path.write_text("".join(f">read_{at}\n{read}\n" for at, read in enumerate(reads)))


def seconds(service: Service, fasta: Path, out: Path) -> tuple[float, float]:
    """Processor time of the gpu worker for one job, and time from submission to tables."""
    [worker] = service.processes("gpu")
    began, before = time.monotonic(), worker.cpu_times()
    service.wait(service.submit(fasta, out), LIMIT_S)
    after = worker.cpu_times()
    busy = after.user + after.system - before.user - before.system
    return busy, time.monotonic() - began


def make_service(folder: Path, every_row: str) -> Service:
    folder.mkdir()
    # One thread: on a busy machine those of a pool wait for each other, and spin meanwhile.
    service = Service(folder, shard_bases=1 << 20, lease_s=30, threads=1)
    service.environment |= {"PYTHONPATH": str(HOOKS), "TEST_EVERY_ROW": every_row}
    service.start()
    return service


def compare(services: dict[str, Service], folder: Path, count: int) -> str:
    """Both services in turn, TURNS times; what came out in words."""
    fasta = folder / f"{count}.fa"
    write_reads(fasta, count)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in services}
    for turn in range(TURNS):
        for name, service in services.items():
            out = folder / f"{name}-{count}-{turn}"
            times[name].append(seconds(service, fasta, out))
    run = json.loads((out / "run.json").read_text())
    frames, computed = (run["counts"][name] for name in ("frames", "frames_computed"))
    ratios = [
        f"{once[0] / every[0]:.2f} ({once[0]:.1f} s against {every[0]:.1f} s; by the clock "
        f"{once[1]:.1f} s against {every[1]:.1f} s)"
        for once, every in zip(times["once"], times["every_row"], strict=True)
    ]
    return (
        f"{count:,} reads in {run['shards']} shards: {computed:,} of {frames:,} frames computed "
        f"({computed / frames:.2f}), gpu worker {', '.join(ratios)}"
    )


def main() -> None:
    counts = [int(word) for word in sys.argv[1:]] or list(READS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = {"once": "", "every_row": "1"}
        services = {name: make_service(folder / name, word) for name, word in settings.items()}
        print(f"{COPIES:.0%} of the reads are copies ({os.cpu_count()} cores)")
        for count in counts:
            print(compare(services, folder, count), flush=True)
        for service in services.values():
            service.end()


if __name__ == "__main__":
    main()

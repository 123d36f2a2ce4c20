"""A long life: a million frames in one job, and a thousand small jobs beside a large one.

    python -m tests.crash.endurance [--frames 1000000] [--jobs 1000] [--records 1000000]

A real service with tiny random models, so that minutes are enough for many frames. Memory, open
files and consumer names of every process are looked at each second; what a process holds in the
last quarter of a run may not be more than in the second one. Exits 1 when something grew, or when a
small job had to wait for the large one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import psutil
import torch

from broker.keys import GROUPS
from daemon.client import JobRequest, submit
from daemon.config import Config
from ops.attention import grouped
from ops.classifier import Classifier, ClassifierConfig
from ops.dnabert import Dnabert, DnabertConfig
from ops.modelstore import BUNDLED, DEFAULT_NAMES, TOKENIZER
from ops.weights import write_model
from tests.crash.harness import Service, shards_done
from tests.unit.model_fixtures import random_esm2, randomised

ROLES = ("planner", "packer", "gpu", "writer")
#: Of the larger of two medians over a quarter of a run: allocators round, and caches fill.
GROWTH_MIB = 8
READ_BASES = 90
SMALL_RECORDS = 10
MIB = 1 << 20


def write_tiny_models(folder: Path) -> dict[str, str]:
    """Random models of width 16 with one layer; the tokenizer is the bundled one."""
    tokenizer = (BUNDLED / DEFAULT_NAMES["dnabert"] / TOKENIZER).read_bytes()
    esm2 = random_esm2(2, 8, layers=1)
    config = DnabertConfig(16, 1, 2, 64, vocab=4096)
    dnabert = randomised(Dnabert(config, grouped))
    classifier = ClassifierConfig((16, 16), 8)
    parts: list[tuple[str, dict[str, Any], torch.nn.Module, dict[str, bytes]]] = [
        ("esm2", vars(esm2.config), esm2, {}),
        ("dnabert", vars(config), dnabert, {TOKENIZER: tokenizer}),
        (
            "classifier",
            {**vars(classifier), "chunk_length": 500},
            randomised(Classifier(classifier)),
            {},
        ),
    ]
    for kind, values, model, files in parts:
        settings = {"kind": kind, **values, "trained": False, "source": "random numbers"}
        write_model(folder / f"tiny-{kind}", settings, dict(model.state_dict()), files)
    return {kind: str(folder / f"tiny-{kind}") for kind, *_ in parts}


def write_reads(path: Path, count: int, seed: int) -> None:
    random = Random(seed)
    letters = "".join(random.choices("ACGT", k=1 << 20))
    with path.open("w") as fasta:
        for number in range(count):
            start = random.randrange(len(letters) - READ_BASES)
            fasta.write(f">r{number}\n{letters[start : start + READ_BASES]}\n")


@dataclass
class Watch:
    """What the processes of a service held, second by second."""

    service: Service
    memory: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    files: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    consumers: list[int] = field(default_factory=list)

    def look(self) -> None:
        for role in (*ROLES, "redis"):
            for slot, process in enumerate(self.service.processes(role)):
                self._note(f"{role}-{slot}", process)
        assert self.service.process is not None
        self._note("supervisor", psutil.Process(self.service.process.pid))
        with self.service.redis() as client:
            used: Any = client.info("memory")
            self.memory["redis used"].append(used["used_memory"] / MIB)
            groups = [client.xinfo_groups(f"{{vnp}}:{stream}")[0] for stream in GROUPS]
            self.consumers.append(sum(group["consumers"] for group in groups))

    def _note(self, name: str, process: psutil.Process) -> None:
        with suppress(psutil.Error):
            self.memory[name].append(process.memory_info().rss / MIB)
            self.files[name].append(process.num_fds())

    def problems(self) -> list[str]:
        found = []
        for what, values in (("MiB", self.memory), ("files", self.files)):
            for name, samples in values.items():
                early, late = quarters(samples)
                if late > early + GROWTH_MIB:
                    found.append(f"{name} grew from {early:.0f} to {late:.0f} {what}")
        early, late = quarters(self.consumers)
        if late > early:
            found.append(f"consumer names grew from {early} to {late}")
        return found

    def table(self) -> str:
        lines = [
            "| process | MiB, at each eighth of the time | most | files |",
            "|---|---|---|---|",
        ]
        for name, samples in self.memory.items():
            some = samples[:: max(1, len(samples) // 8)]
            course = " ".join(f"{mib:.0f}" for mib in some)
            files = max(self.files[name], default=0)
            lines.append(f"| {name} | {course} | {max(samples):.0f} | {files} |")
        return "\n".join(lines)


def quarters(samples: list[Any]) -> tuple[float, float]:
    """Medians of the second and of the last quarter."""
    n = len(samples)
    if n < 4:
        return 0.0, 0.0
    return statistics.median(samples[n // 4 : n // 2]), statistics.median(samples[-(n // 4) :])


def make_service(folder: Path) -> tuple[Service, Config]:
    folder.mkdir()
    models = write_tiny_models(folder)
    service = Service(folder, device="cpu", threads=1, packers=1, **models)
    service.environment["VNP_SHARD_BASES"] = str(1 << 20)
    service.environment["VNP_LEASE_S"] = "30"
    service.start()
    return service, Config(state_dir=service.state, **models)


def is_done(service: Service, job: str) -> bool:
    return (service.state / "jobs" / f"{job}.done.json").exists()


def million_frames(folder: Path, frames: int) -> list[str]:
    """One job with at least so many frames."""
    service, config = make_service(folder)
    try:
        fasta = folder / "reads.fa"
        write_reads(fasta, round(frames / 1.4), seed=1)  # 1.43 open frames of 90 random bases
        watch, tables, started = Watch(service), Watch(service), time.monotonic()
        out = folder / "out"
        job = submit(config, JobRequest(inputs=(str(fasta),), out=str(out)))
        while not is_done(service, job):
            time.sleep(1)
            # Tables are written at the end: a step of a few MB, which is no growth.
            if 0 < shards_done(out) < json.loads((out / "run.json").read_text())["shards"]:
                watch.look()
            elif shards_done(out):
                tables.look()
        seconds = time.monotonic() - started
        run = json.loads((out / "run.json").read_text())
        counts = run["counts"]
        print(
            f"{counts['frames']} frames of {counts['records']} records in {seconds:.0f} s, "
            f"{counts['frames'] / seconds:.0f} frames/s, {run['shards']} shards; "
            f"{max(watch.consumers)} consumer names\n{watch.table()}\n"
            f"while tables are written, MiB of the writer: {max(tables.memory['writer-0']):.0f}"
        )
        short = [] if counts["frames"] >= frames else [f"only {counts['frames']} frames"]
        return [*watch.problems(), *short]
    finally:
        service.end()


def many_jobs(folder: Path, jobs: int, records: int) -> list[str]:
    """A large job first, small ones after it: none of them waits until the large one has ended."""
    service, config = make_service(folder)
    try:
        large = folder / "large.fa"
        write_reads(large, records, seed=1)
        small = folder / "small.fa"
        write_reads(small, SMALL_RECORDS, seed=2)
        first = submit(config, JobRequest(inputs=(str(large),), out=str(folder / "large")))
        time.sleep(5)
        started = {}
        for number in range(jobs):
            request = JobRequest(inputs=(str(small),), out=str(folder / "small" / str(number)))
            started[submit(config, request)] = time.monotonic()
        print(f"{jobs} jobs submitted after {time.monotonic() - min(started.values()):.0f} s")
        watch = Watch(service)
        waited: dict[str, float] = {}
        while len(waited) < jobs:
            time.sleep(1)
            watch.look()
            now = time.monotonic()
            ended = [job for job in started if job not in waited and is_done(service, job)]
            waited |= {job: now - started[job] for job in ended}
        share = shards_done(folder / "large")
        alone = is_done(service, first)
        outcomes = {
            json.loads((service.state / "jobs" / f"{job}.done.json").read_text())["exit_code"]
            for job in started
        }
        times = sorted(waited.values())
        print(
            f"{jobs} jobs of {SMALL_RECORDS} records: median {statistics.median(times):.0f} s, "
            f"last {times[-1]:.0f} s after it was submitted; the job of {records} records had "
            f"{share} shards by then{', and had ended' if alone else ''}; exit codes {outcomes}\n"
            f"{watch.table()}"
        )
        found = [f"exit codes {outcomes}"] if outcomes != {0} else []
        if alone:
            found.append("the small jobs waited for the large one")
        if not share:
            found.append("the large job waited for the small ones")
        limits = {name: max(samples) for name, samples in watch.memory.items()}
        return found + [f"{name} took {mib:.0f} MiB" for name, mib in limits.items() if mib > 700]
    finally:
        service.end()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--jobs", type=int, default=1_000)
    parser.add_argument("--records", type=int, default=1_000_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vnp-endurance-") as folder:
        problems = million_frames(Path(folder) / "frames", arguments.frames)
        problems += many_jobs(Path(folder) / "jobs", arguments.jobs, arguments.records)
    print("\n".join(f"PROBLEM: {problem}" for problem in problems) or "nothing grew")
    raise SystemExit(1 if problems else 0)


if __name__ == "__main__":
    main()

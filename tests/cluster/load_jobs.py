"""Jobs of a load: submitted, waited for, cancelled in the end; and whether all of it is there."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from daemon.client import JobRequest, submit
from daemon.config import Config
from ops.fasta import read_inputs
from ops.jobs import FINISHED, JobStore

GENOMES = Path(__file__).parents[1] / "data" / "fixtures"
POLL_S = 0.1
#: Random letters that reads are taken from.
RANDOM_LETTERS = 4_000_000


def write_reads(
    path: Path, count: int, bases: int, seed: int, gc_content: float | None = None
) -> None:
    """Reads of real genomes, so that about as many frames are open as in real work; of random
    letters of that GC content, when it is given: of 0.3, one frame in 2,000 is open at 300 bp."""
    random = Random(seed)
    if gc_content is None:
        genomes = sorted(GENOMES.glob("*.fa"))
        letters = b"".join(piece.letters for piece in read_inputs(genomes, "nucleotide"))
    else:
        weights = [1 - gc_content, gc_content] * 2
        letters = bytes(random.choices(b"ACTG", weights, k=RANDOM_LETTERS))
    with path.open("wb") as fasta:
        for number in range(count):
            start = random.randrange(len(letters) - bases)
            fasta.write(b">read%d\n%s\n" % (number, letters[start : start + bases]))


@dataclass
class Job:
    """One that was submitted. Times are of the wall clock: files tell when a job ended."""

    id: str
    out: Path
    records: int
    priority: int
    submitted: float
    ended: float = 0.0

    @property
    def wait_s(self) -> float:
        return self.ended - self.submitted


@dataclass
class Load:
    """Jobs of one store. deadline: time.monotonic() after which nothing is submitted or awaited."""

    folder: Path
    config: Config
    deadline: float
    jobs: list[Job] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = JobStore(self.config.jobs_dir)

    @property
    def in_time(self) -> bool:
        return time.monotonic() < self.deadline

    def submit(self, fasta: Path, out: Path, records: int, priority: int = 0) -> Job:
        began = time.time()
        request = JobRequest(inputs=(str(fasta),), out=str(out), priority=priority)
        job = Job(submit(self.config, request), out, records, priority, began)
        self.jobs.append(job)
        return job

    def wait(self, enough: Callable[[], bool] = lambda: False) -> None:
        """Until all jobs have ended, or it is enough, or too late."""
        while self.note_ended() and self.in_time and not enough():
            time.sleep(POLL_S)

    def note_ended(self) -> int:
        """Takes down when jobs ended; returns how many have not."""
        running = [job for job in self.jobs if not job.ended]
        # Names alone, many times a second.
        names = set(os.listdir(self.store.folder)) if running else set()  # noqa: PTH208
        for job in running:
            if f"{job.id}.done.json" in names:
                job.ended = (self.store.folder / f"{job.id}.done.json").stat().st_mtime
        return sum(not job.ended for job in running)

    def cancel_rest(self) -> int:
        rest = [job for job in self.jobs if not job.ended]
        for job in rest:
            self.store.cancel(job.id)
        return len(rest)

    def planned_at(self, job: Job) -> float:
        """When the first reading had ended; 0: it has not."""
        try:
            return (self.store.folder / f"{job.id}.plan.json").stat().st_mtime
        except FileNotFoundError:
            return 0.0


def run_facts(job: Job) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((job.out / "run.json").read_text())
    return facts


def problem_of(load: Load, job: Job) -> str:
    """What is wrong with a job that has ended; empty: every record is accounted for."""
    outcome = load.store.outcome(job.id)
    if outcome is None or outcome.state != FINISHED or outcome.exit_code != 0:
        return f"job {job.id}: {outcome}"
    counted, rows = run_facts(job)["counts"]["records"], num_rows(job.out / "sequences.tsv")
    if counted != job.records or rows != job.records:
        return f"job {job.id}: {job.records} records, {counted} in run.json, {rows} in the table"
    return ""


def num_rows(table: Path) -> int:
    with table.open("rb") as stream:
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b"")) - 1

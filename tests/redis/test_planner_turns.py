"""Whose turn it is with the planner: many large inputs, and small ones that come later."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import workers.planner
from broker.keys import TASKS
from broker.server import PrivateServer
from daemon.client import JobRequest, submit
from daemon.config import Config
from ops.output import Output
from workers.job_plan import JobPlan
from workers.planner import MAX_READINGS, Planner

NUM_LARGE = MAX_READINGS + 2
LARGE_BYTES = 2 << 20


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(state_dir=tmp_path / "state")


@pytest.fixture
def planner(config: Config, namespace: str, redis_server: PrivateServer) -> Iterator[Planner]:
    config.state_dir.mkdir()
    settings = config.changed(namespace=namespace).worker_settings(redis_server.url)
    planner = Planner(settings, "node:planner:0")
    yield planner
    planner.close()


def submit_reads(config: Config, folder: Path, name: str, num_bytes: int, priority: int = 0) -> str:
    fasta = folder / f"{name}.fa"
    read = ">read\n" + "ACGT" * 75 + "\n"
    fasta.write_text(read * (num_bytes // len(read) + 1))
    request = JobRequest(inputs=(str(fasta),), out=str(folder / name), priority=priority)
    return submit(config, request)


def test_small_input_does_not_wait_for_many_large_ones(
    config: Config, planner: Planner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given more large inputs than are read at once, none of them read in a slice
    monkeypatch.setattr(workers.planner, "SLICE_S", 60.0)
    plain = JobPlan.validate
    monkeypatch.setattr(
        JobPlan, "validate", lambda job, slice_s: plain(job, slice_s if job.is_small else 0.0)
    )
    large = [submit_reads(config, tmp_path, f"large-{n}", LARGE_BYTES) for n in range(NUM_LARGE)]
    for _ in range(3):
        planner.step()
    # When a small one comes
    small = submit_reads(config, tmp_path, "small", 3_000)
    planner.step()
    # Then it is planned at once, and the large ones go on, a bounded number at a time
    assert planner.store.plan_or_none(small) is not None
    assert all(planner.store.plan_or_none(job) is None for job in large)
    for _ in range(2 * NUM_LARGE):
        planner.step()
        assert sum(job.is_being_read for job in planner.jobs.values()) <= MAX_READINGS
    # And all of them are planned in the end
    monkeypatch.setattr(JobPlan, "validate", plain)
    for _ in range(3 * NUM_LARGE):
        planner.step()
    assert all(planner.store.plan_or_none(job) is not None for job in large)


def open_folders(planner: Planner, jobs: list[str]) -> None:
    """What a writer does with jobs that are planned."""
    while any(planner.store.plan_or_none(job) is None for job in jobs):
        planner.step()
    for job in jobs:
        spec = planner.store.spec(job)
        Output.open(spec.out, spec, planner.store.plan(job)).close()
        planner.store.set_open(job, 1)


def test_a_step_fills_the_window(
    config: Config, planner: Planner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given jobs whose folders are open, and a large input that is being read
    jobs = [submit_reads(config, tmp_path, f"small-{n}", 3_000) for n in range(20)]
    open_folders(planner, jobs)
    monkeypatch.setattr(workers.planner, "SLICE_S", 60.0)  # that of a slow machine
    # When the planner makes a step; Then none of them has to wait for the next one
    planner.step()
    assert planner.broker.stats().streams[TASKS].length == len(jobs)


def test_more_equal_jobs_than_places_share_them(
    config: Config, namespace: str, redis_server: PrivateServer, tmp_path: Path
) -> None:
    # Given ten jobs of many shards each, and a window of eight
    config.state_dir.mkdir()
    changed = config.changed(namespace=namespace, shard_bases=3_000, window_shards=8)
    planner = Planner(changed.worker_settings(redis_server.url), "node:planner:0")
    jobs = [submit_reads(config, tmp_path, f"equal-{number}", 60_000) for number in range(10)]
    open_folders(planner, jobs)
    planner.step()
    planner.step()
    assert sum(len(job.open) for job in planner.jobs.values()) == 8
    # When the shard of the oldest job that has one is committed, again and again
    begun = {job.id for job in planner.jobs.values() if job.open}
    for _ in range(8):
        next(job for job in planner.jobs.values() if job.open).open.clear()
        planner.step()
        begun |= {job.id for job in planner.jobs.values() if job.open}
    # Then every job has got a place meanwhile
    assert len(begun) == 10
    planner.close()


def test_failed_input_is_not_tried_again(config: Config, planner: Planner, tmp_path: Path) -> None:
    # Given an input that changes after the first reading
    job = submit_reads(config, tmp_path, "changing", 3_000)
    open_folders(planner, [job])
    (tmp_path / "changing.fa").write_text(">other\nACGT\n")
    # When its turn comes; Then it fails, and once
    planner.step()
    outcome = planner.store.outcome(job)
    assert outcome is not None
    assert outcome.exit_code == 65
    planner.step()
    assert job not in planner.jobs

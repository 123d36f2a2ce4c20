"""One writer on a real Redis: what one job meets is not what the others meet."""

from __future__ import annotations

import errno
import os
import threading
import time

import pytest

from ops.jobs import FAILED, RUNNING
from ops.output import Output
from tests.redis.nodes import Writers, steps
from tests.unit.output_fixtures import JOB, gathered, make_account
from workers.writer import Writer


def opened(writers: Writers, job: str) -> Writer:
    """A writer that holds the folder of a job."""
    writers.plan(job)
    writer = writers.writer("a")
    steps(writer, lambda: job in writer.jobs and writer.jobs[job].output is not None)
    return writer


def no_space() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_nobody_thought_of_ends_its_job_alone(
    writers: Writers, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given two jobs, and an opening that fails as nobody has foreseen
    plain = Output.open

    def strange(out: str, *words: object, **options: object) -> Output:
        if "strange" in out:
            raise RuntimeError("what is this?")
        return plain(out, *words, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Output, "open", strange)
    writers.plan("strange")
    writers.plan("usual")
    # When they are taken up
    writer = writers.writer("a")
    steps(writer, lambda: writers.store.outcome("strange") is not None)
    steps(writer, lambda: writers.store.state("usual") == RUNNING)
    # Then the one has failed, with a word on why, and the other goes on
    outcome = writers.store.outcome("strange")
    assert outcome is not None
    assert (outcome.state, outcome.exit_code) == (FAILED, 70)
    assert "RuntimeError: what is this?" in outcome.message


def test_commit_that_failed_is_tried_again_soon_however_long_the_job_is_open(
    writers: Writers,
) -> None:
    # Given a job that was opened a while ago
    writer = opened(writers, "job1")
    time.sleep(3)
    # When the disk does not take a shard
    writer._wait_or_fail("job1", no_space())
    # Then it is tried again after the usual pause
    assert writer.jobs["job1"].retry_at - time.monotonic() < 2.5


def test_job_that_waits_tries_one_shard_at_a_time(
    writers: Writers, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a job that waits for its disk, with all of its shards complete
    writer = opened(writers, "job1")
    held = writer.jobs["job1"]
    for number, records in enumerate(JOB):
        held.shard(number).gather = gathered(make_account(number, records))
    held.waits_for = "its disk"
    at_once, most, one = 0, 0, threading.Lock()
    plain = Output.commit

    def counted(output: Output, gather: object) -> object:
        nonlocal at_once, most
        with one:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.1)
        with one:
            at_once -= 1
        return plain(output, gather)  # type: ignore[arg-type]

    monkeypatch.setattr(Output, "commit", counted)
    # When it goes on
    steps(writer, lambda: held.output is not None and len(held.output.committed) == len(JOB))
    # Then no two commits ran in its folder at once: they share a manifest
    assert most == 1

"""-v: what the log says while a command waits, as plain lines on standard error."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from daemon import show
from daemon.config import Config
from ops.errors import VnpError
from ops.jobs import CANCELLED, FAILED, FINISHED, JobStore

Ended = Callable[[], bool]

#: A job's end is in its files before it is in the log: how long to wait for the line. In vain where
#: the service logs warnings only.
LATE_S = 3.0
ENDS = {f"job.{state}" for state in (FINISHED, FAILED, CANCELLED)}


@contextmanager
def told(
    lines: Callable[[Ended], Iterable[str]], tell: Callable[[str], None]
) -> Iterator[threading.Thread]:
    """Tells the lines of a log in a thread of its own, to the last that was there at the end.

    lines(ended): those there are and those to come, until ended().
    """
    over = threading.Event()
    thread = threading.Thread(target=_tell_all, args=(lines, over.is_set, tell), daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        over.set()
        thread.join()


def _tell_all(
    lines: Callable[[Ended], Iterable[str]], ended: Ended, tell: Callable[[str], None]
) -> None:
    """A log that may not be read costs the lines and not the wait."""
    try:
        for line in lines(ended):
            tell(plain(line))
    except VnpError as error:
        tell(f"vnp: no events: {error}")


def plain(line: str) -> str:
    """A line of the log for people: level, event, and its message on one line."""
    try:
        event = json.loads(line)
        words = f"{event['log.level']}: {event['event.name']}: {event['message']}"
    except (ValueError, LookupError, TypeError):  # a line of somebody else, on the same stream
        words = line.rstrip("\n")
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in words)


@contextmanager
def told_of_jobs(
    config: Config, jobs: Sequence[str], tell: Callable[[str], None]
) -> Iterator[None]:
    """Tells the events of jobs of the service, from their beginning on, to the end of each."""
    store = JobStore(config.jobs_dir)
    missing = {job for job in jobs if store.outcome(job) is None}

    def lines(ended: Ended) -> Iterator[str]:
        for line in show.job_lines(config, jobs, True, ended):
            yield line
            missing.discard(ending(line))

    with told(lines, tell) as thread:
        yield
        until = time.monotonic() + LATE_S
        while missing and thread.is_alive() and time.monotonic() < until:
            time.sleep(show.FOLLOW_POLL_S)


def ending(line: str) -> str:
    """The job whose end a line of the log tells; empty when it tells something else."""
    try:
        event = json.loads(line)
        name, job = event["event.name"], str(event["job.id"])
    except (ValueError, LookupError, TypeError):
        return ""
    return job if name in ENDS else ""


@contextmanager
def told_of_run(log: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """Tells all events of a foreground run, whose log file is there already."""
    with told(lambda ended: show.file_lines(log, True, ended), tell):
        yield

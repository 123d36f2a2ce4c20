"""`vnp run`: the whole service in one foreground command, for one job, on a private Redis.

Its state folder lies in a runtime folder named after OUT, and nothing in it is needed to resume:
the manifest in OUT is the only truth, and the same command again goes on from it.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import nullcontext
from functools import partial

import click
from rich.console import Console

from daemon.client import JobRequest, submit
from daemon.config import Config
from daemon.events import told_of_run
from daemon.progress import Progress, print_result
from daemon.runtime import runtime_folder
from daemon.service import TICK_S, Service
from daemon.watch import JobWatch
from ops.durable import FileLock
from ops.errors import VnpError
from ops.jobs import FINISHED, JobStore, Outcome
from ops.place import place_of
from ops.runfile import exit_code, is_finished, read_run
from workers.logs import configure_logs
from workers.loop import StopFlag


class JobFailedError(VnpError):
    """The job ended without a result; carries its exit code."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.message)
        self.exit_code = outcome.exit_code


def run_foreground(
    config: Config,
    request: JobRequest,
    console: Console,
    results: Console,
    as_json: bool,
    verbose: bool = False,
) -> int:
    """Computes one job and prints its calls; returns the exit code of the job.

    console: for progress, on standard error; results: for the calls; verbose: events, too.

    130 or 143 when a signal ended it; what was committed by then stays, and the same command goes
    on from it.
    """
    folder = runtime_folder(request.out_name)
    busy = f"{request.out_name} is in use by another vnp run; wait for it or choose another --out"
    lock = FileLock(folder / "lock", busy)
    try:
        for left in folder.glob("state*"):  # of a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        state = folder / "state"
        private = config.changed(state_dir=state, shared_dir=None, redis_url=None)
        return _run(private, request, console, results, as_json, verbose)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def _run(
    config: Config,
    request: JobRequest,
    console: Console,
    results: Console,
    as_json: bool,
    verbose: bool,
) -> int:
    job = submit(config, request)
    # The terminal belongs to the progress bar, also where the journal would take lines.
    os.environ["VNP_LOG_FILE_ONLY"] = "1"
    os.environ.pop("JOURNAL_STREAM", None)
    configure_logs("supervisor", level=config.log_level, log_file=str(config.log_path))
    stop = StopFlag()
    spec = JobStore(config.jobs_dir).spec(job)
    outcome: Outcome | None
    if not request.force and is_finished(spec):
        counts = (read_run(place_of(request.out_name)) or {})["counts"]
        message = "finished already; --force computes it anew"
        outcome = Outcome(FINISHED, exit_code(counts), message)
        _tell(console, outcome.message)
    else:
        outcome = _compute(config, job, console, stop, verbose)
    if outcome is None:
        _tell(console, f"stopped; the same command goes on from {request.out_name}")
        return 128 + stop.signal
    if outcome.state != FINISHED:
        raise JobFailedError(outcome)
    if as_json:
        click.echo(json.dumps({"id": job, "state": outcome.state, "out": request.out_name}))
    else:
        caller = config.cards["classifier"]
        told = caller.note and spec.identity.classifier == caller.digest
        worth = f"calls by {caller.name}: {caller.note}" if told else ""
        print_result(request.out_name, results, spec.identity.trained, worth)
    return outcome.exit_code


def _tell(console: Console, message: str) -> None:
    _say(console, f"vnp: {message}")


def _say(console: Console, line: str) -> None:
    """A line as it is, above the bar if there is one."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _compute(
    config: Config, job: str, console: Console, stop: StopFlag, verbose: bool
) -> Outcome | None:
    """Runs the service until the job has ended; None when a signal came first."""
    store = JobStore(config.jobs_dir)
    log = config.log_path
    events = told_of_run(log, partial(_say, console)) if verbose and log else nullcontext()
    with Service(config) as service, Progress(console) as progress, events:
        watch = JobWatch(config, job, service.redis_url)
        while (outcome := store.outcome(job)) is None and not stop.raised:
            service.tick()
            progress.show(watch.view() if service.ready else None)
            time.sleep(TICK_S)
    return outcome

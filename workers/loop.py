"""The shell around every role: settings in, signals, readiness, and one step after another.

A worker is anything with `step()` and `close()`. Its process is started by the supervisor, told
what it needs through the environment, reports on a pipe that it is ready (or why it cannot be), and
then steps until a signal asks it to stop. A step that finds Redis gone is repeated, with a pause
that grows; every other exception ends the process, and the supervisor starts a fresh one.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn, Protocol, TypeVar

from broker.codec import MessageError, Noun, decode
from broker.queue import Broker, Entry
from ops.errors import HeldError, InternalError, UnavailableError, VnpError
from workers.logs import configure_logs, get_log
from workers.pulse import Pulse
from workers.settings import WorkerSettings

READY_FD = "VNP_READY_FD"
SLOT = "VNP_SLOT"
PREDECESSOR_SIGNAL = "VNP_PREDECESSOR_SIGNAL"
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0
#: What a progress bar that is not ended in order leaves undone.
SHOW_CURSOR = b"\x1b[?25h\n"


class Worker(Protocol):
    """One role's work, cut into steps of at most a few seconds."""

    def step(self) -> None: ...

    def close(self) -> None: ...


class StopFlag:
    """Raised by SIGTERM and SIGINT; a second one ends the process, and its children, at once.

    That is as safe as a kill: nothing that counts depends on an orderly end.
    """

    def __init__(self) -> None:
        self.raised = False
        self.signal = 0
        signal.signal(signal.SIGTERM, self._raise)
        signal.signal(signal.SIGINT, self._raise)

    def _raise(self, signum: int, frame: FrameType | None) -> None:
        if self.raised:
            if sys.stderr.isatty():
                os.write(2, SHOW_CURSOR)
            os._exit(128 + signum)
        self.raised = True
        self.signal = signum


def main(role: str, make_worker: Callable[[WorkerSettings, str], Worker]) -> None:
    """Runs one role until it is told to stop; exits with the code of the error that ended it.

    make_worker(settings, consumer) does the slow part of the start (models, recovery) and returns
    when the worker could take work.
    """
    settings = WorkerSettings.from_environment()
    slot = os.environ.get(SLOT, "0")
    configure_logs(
        role, worker=f"{role}-{slot}", level=settings.log_level, log_file=settings.log_file
    )
    consumer = f"{settings.node}:{role}:{slot}"
    try:
        worker = make_worker(settings, consumer)
    except VnpError as error:
        report: dict[str, object] = {"error": str(error)}
        # Without a code it is worth another try: a full disk, say. A lock is held for long.
        if isinstance(error, HeldError) or not error.may_pass:
            report["exit_code"] = error.exit_code
        _report(report)
        _leave(error.exit_code)
    except Exception as error:  # memory that is taken for the moment, say: worth another try
        _log_failure(role, error)
        _report({"error": f"{type(error).__name__}: {error}"})
        _leave(InternalError.exit_code)
    stop = StopFlag()  # a signal before this one ends the process: nothing needs an order yet
    pulse = Pulse.inherited()
    _report({"ready": True})
    try:
        _run_steps(role, worker, stop, pulse)
    except Exception as error:
        _log_failure(role, error)
        _leave(InternalError.exit_code)
    _leave(0)


def _leave(code: int) -> NoReturn:
    """Ends the process, also when a thread of it hangs, in a request to a store that does not
    answer, say: the interpreter would wait for it, and its folders and roles with it. Nothing that
    counts rests on an orderly end."""
    others = [t for t in threading.enumerate() if t is not threading.main_thread()]
    if any(not thread.daemon for thread in others):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _run_steps(role: str, worker: Worker, stop: StopFlag, pulse: Pulse) -> None:
    log = get_log(role)
    pause = 0.0
    while not stop.raised:
        pulse.beat()
        try:
            worker.step()
            pause = 0.0
        except UnavailableError as error:
            if not pause:
                log.warning("redis.unavailable", message=str(error))
            pause = min(max(2 * pause, FIRST_PAUSE_S), LONGEST_PAUSE_S)
            time.sleep(pause)
    worker.close()


def _log_failure(role: str, error: Exception) -> None:
    """The last line of a process that ends by an exception; the supervisor starts a fresh one."""
    fields = {"error.type": type(error).__name__, "error.message": str(error)}
    message = f"{role} ends: {type(error).__name__}: {error}"
    get_log(role).error("worker.failed", message=message, exc_info=error, **fields)


N = TypeVar("N", bound=Noun)


def read_entry(broker: Broker, stream: str, entry: Entry, *kinds: type[N]) -> N | None:
    """The noun of an entry. One that cannot be read (another version of vnp wrote it, say) is
    acknowledged and told of; what it stood for is missing in the manifest, and so issued again."""
    try:
        noun = decode(entry.payload)
        if isinstance(noun, kinds):
            return noun
        problem = f"a {type(noun).__name__} does not belong here"
    except MessageError as error:
        problem = str(error)
    get_log("loop").error("message.unreadable", message=f"{stream} {entry.id}: {problem}")
    broker.acknowledge(stream, [entry.id])
    return None


def _report(message: dict[str, object]) -> None:
    """Tells the supervisor, when there is one, how the start went."""
    descriptor = os.environ.pop(READY_FD, None)
    if descriptor is not None:
        with os.fdopen(int(descriptor), "w") as pipe:
            json.dump(message, pipe)


def die_with_parent(parent: int) -> None:
    """Asks the kernel to kill this process when `parent` dies (PR_SET_PDEATHSIG, Linux)."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the kernel was asked
        os._exit(1)

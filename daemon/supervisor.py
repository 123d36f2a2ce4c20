"""The supervisor: starts the private Redis and one process per role and slot, and keeps them alive.

A dead child is replaced after a pause that grows with repeated failures. Children die with the
supervisor (PR_SET_PDEATHSIG), so kill -9 of it leaves nothing behind. It knows nothing of jobs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import IO

from broker.server import PrivateServer
from ops.errors import ConfigError, VnpError
from workers.logs import get_log
from workers.loop import PREDECESSOR_SIGNAL, READY_FD, SLOT, die_with_parent
from workers.pulse import PULSE_FD, Pulse

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 30.0
EX_SOFTWARE, EX_TEMPFAIL = 70, 75
#: A child that lived this long has recovered: its next death is a first death again.
HEALTHY_AFTER_S = 30.0
#: Time that children have to end their step on SIGTERM, before SIGKILL.
STOP_LIMIT_S = 20.0
#: Deaths by these signals are the work's own doing; the successor is told, and attributes them.
ATTRIBUTED = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE)
#: Somebody else's doing, which says nothing about whether a child can start.
FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM)
#: A child that loads its models for longer than this is stuck, too.
START_LIMIT_S = 900.0
#: How long a killed process may take to be gone; longer than that, only a reboot helps.
DEATH_LIMIT_S = 30.0
#: A child that died this often in a row before it was ready will not start at all.
MAX_FAILED_STARTS = 3
#: Stopped first to last: no new work, then no new batches, then what is complete is committed.
STOP_ORDER = ("planner", "packer", "gpu", "writer")
#: The writer makes and drops a buffer of a shard's size several times a shard. glibc would map and
#: unmap each, and the kernel clear every page anew: a third of the writer's time (docs/log.md).
MALLOC = {
    "writer": {
        "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
        "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
    }
}


class ChildFailedError(VnpError):
    """A child cannot start, and a new one could not either; carries its exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass
class Child:
    """One role and slot, and the process that fills it now."""

    role: str
    slot: int
    environment: Mapping[str, str]
    stuck_s: float = START_LIMIT_S
    process: subprocess.Popen[bytes] | None = None
    ready: bool = False
    started_at: float = 0.0
    start_at: float = 0.0
    end_by: float | None = None  # it was asked to end for a successor's sake, by then
    pause_s: float = FIRST_PAUSE_S
    predecessor_signal: str = ""
    failed_starts: int = 0
    problem: str = ""  # what the last failed start said of itself
    pulse: Pulse = field(default_factory=Pulse.create, repr=False)
    told_stuck: bool = False
    _beat: tuple[int, float] = (0, 0.0)  # count, and when it was first seen
    _report: IO[bytes] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return f"{self.role}-{self.slot}"

    def start(self) -> None:
        """Starts a fresh process; its own group, so that Ctrl-C reaches the supervisor only."""
        read_end, write_end = os.pipe()
        environment = {
            **os.environ,
            **self.environment,
            SLOT: str(self.slot),
            READY_FD: str(write_end),
            PULSE_FD: str(self.pulse.descriptor),
            PREDECESSOR_SIGNAL: self.predecessor_signal,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"workers.{self.role}"],
            env=environment,
            pass_fds=[write_end, self.pulse.descriptor],
            stdin=subprocess.DEVNULL,
            preexec_fn=partial(die_with_parent, os.getpid()),
            process_group=0,
        )
        os.close(write_end)
        os.set_blocking(read_end, False)
        self._report = os.fdopen(read_end, "rb")
        self.ready = False
        self.started_at = time.monotonic()
        self._beat = (self.pulse.count, self.started_at)
        self.told_stuck = False

    def still_s(self) -> float:
        """Seconds since the process was last seen to make a step, or, before that, to start."""
        now = time.monotonic()
        if self.pulse.count != self._beat[0]:
            self._beat = (self.pulse.count, now)
        return now - self._beat[1]

    @property
    def is_stuck(self) -> bool:
        """True when it makes no step for too long: it hangs, or somebody has stopped it."""
        limit_s = self.stuck_s if self.ready else START_LIMIT_S
        return self.process is not None and self.still_s() > limit_s

    def read_report(self) -> None:
        """Notes that the child is ready, or why it is not.

        Raises ChildFailedError for a mistake that a fresh process would meet again.
        """
        if self._report is None:
            return
        line = self._report.read()
        if not line:
            return
        self.close_report()
        report = json.loads(line)
        if "exit_code" in report:
            raise ChildFailedError(report["error"], report["exit_code"])
        self.problem = report.get("error", "")
        self.ready = not self.problem
        self._beat = (self.pulse.count, time.monotonic())  # its start was no step, and may be long

    def close_report(self) -> None:
        """Listens no more to what the child has to say of its start."""
        if self._report is not None:
            self._report.close()
            self._report = None

    def ask_to_end(self) -> None:
        """So that a successor takes its place, with the settings of that time. A second SIGTERM
        would end it at once."""
        if self.process is not None and self.end_by is None:
            self.process.terminate()
            self.end_by = time.monotonic() + STOP_LIMIT_S

    def has_ended_as_asked(self, code: int) -> bool:
        """False when nobody asked, or it had a reason of its own. Asked once, answered once."""
        asked, self.end_by = self.end_by is not None, None
        return asked and code in (0, *FROM_OUTSIDE)

    def succeed(self) -> None:
        """Starts the successor of a process that has ended as it was asked to."""
        self.close_report()
        self.predecessor_signal = ""
        self.start()

    def note_death(self, code: int) -> None:
        """Plans the successor: after a pause, and told of the signal if the work was its cause.

        Raises ChildFailedError when there have been enough of them.
        """
        self.close_report()
        now = time.monotonic()
        if now - self.started_at > HEALTHY_AFTER_S:
            self.pause_s = FIRST_PAUSE_S
        attributed = -code in ATTRIBUTED
        # A batch that kills its worker gets smaller each time, and one that asks for a fresh
        # process has said why: neither goes on for ever.
        if code != EX_TEMPFAIL and not (attributed and self.ready):
            self.start_at = now + self.pause_s
            self.pause_s = min(2 * self.pause_s, LONGEST_PAUSE_S)
        self.predecessor_signal = signal.Signals(-code).name if attributed else ""
        self._count_failed_start(code)
        self.process = None
        self.ready = False

    def _count_failed_start(self, code: int) -> None:
        if self.ready:
            self.failed_starts = 0
        elif code not in FROM_OUTSIDE:
            self.failed_starts += 1
        if self.failed_starts == MAX_FAILED_STARTS:
            problem = self.problem or f"it ends with {describe_exit(code)}, and has said no reason"
            raise ChildFailedError(f"{self.name} cannot start: {problem}", EX_SOFTWARE)


class Supervisor:
    """All children of one service; `tick()` is called every tenth of a second or so."""

    def __init__(self, children: list[Child], server: PrivateServer | None) -> None:
        self.log = get_log("supervisor")
        self.children = children
        self.server = server
        self.restarts = dict.fromkeys((child.role for child in children), 0)

    @property
    def ready(self) -> bool:
        """True when every role holds what it needs (models loaded) and could take work."""
        return all(child.ready for child in self.children)

    @property
    def moves(self) -> bool:
        """False when a child is stuck and could not be got rid of: only a restart may help."""
        return all(
            child.process is None or child.still_s() < child.stuck_s + DEATH_LIMIT_S
            for child in self.children
            if child.ready
        )

    def tick(self) -> None:
        """Replaces what has died; raises ChildFailedError when a child cannot start at all."""
        if self.server is not None and not self.server.reachable:
            gone = "its socket is gone" if self.server.alive else "it died"
            self.log.error("redis.died", message=f"the private Redis: {gone}; a fresh one follows")
            self.server.stop()
            self.server.start()
        for child in self.children:
            self._tend(child)

    def _tend(self, child: Child) -> None:
        if child.process is None:
            if time.monotonic() >= child.start_at:
                child.start()
            return
        child.read_report()
        code = child.process.poll()
        if code is None:
            self._end_late(child, child.process)
        elif child.has_ended_as_asked(code):
            child.succeed()
        else:
            self._note_death(child, code)

    def _note_death(self, child: Child, code: int) -> None:
        child.read_report()
        child.note_death(code)
        self.restarts[child.role] += 1
        self.log.error(
            "worker.died",
            message=f"{child.name} ended with {describe_exit(code)}; a fresh one follows",
            worker=child.name,
            exit_code=code,
        )

    def _end_late(self, child: Child, process: subprocess.Popen[bytes]) -> None:
        if child.is_stuck:
            self._end_stuck(child, process)
        elif child.end_by is not None and time.monotonic() > child.end_by:
            process.kill()

    def _end_stuck(self, child: Child, process: subprocess.Popen[bytes]) -> None:
        """SIGKILL says nothing about the batch in hand: that it hangs, its own deadline tells."""
        if not child.told_stuck:
            child.told_stuck = True
            self.log.error(
                "worker.stuck",
                message=f"{child.name} made no step for {child.still_s():.0f} s and is replaced",
                worker=child.name,
            )
        process.kill()

    def signal_role(self, role: str, signum: int) -> None:
        """To every ready process of a role."""
        for child in self.children:
            if child.role == role and child.ready and child.process is not None:
                child.process.send_signal(signum)

    def renew(self, environment: Mapping[str, str], roles: Iterable[str]) -> None:
        """Gives all children new settings. Those of the roles are asked to end, and `tick` replaces
        them as they do: whoever waited here would leave systemd's watchdog unfed. The others take
        the settings up when they are replaced for another reason."""
        for child in self.children:
            child.environment = {**child.environment, **environment}
            if child.role in roles:
                child.ask_to_end()

    def stop(self, limit_s: float = STOP_LIMIT_S) -> None:
        """Ends all children in STOP_ORDER, each with what is left of limit_s, then Redis."""
        deadline = time.monotonic() + limit_s
        for role in STOP_ORDER:
            group = [c.process for c in self.children if c.role == role and c.process is not None]
            for process in group:
                process.terminate()
            for process in group:
                end_process(process, deadline)
        for child in self.children:
            child.close_report()
        if self.server is not None:
            self.server.stop()


def end_process(process: subprocess.Popen[bytes], deadline: float) -> None:
    """Waits for a terminated process until the deadline (monotonic seconds), then kills it."""
    try:
        process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def describe_exit(code: int) -> str:
    """An exit status in words: "signal SIGKILL", "exit code 1"."""
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def visible_device(device: str, shown: str | None) -> str:
    """CUDA_VISIBLE_DEVICES of a gpu worker. shown: our own value of it, None when it is not set.

    A scheduler that has given us some of a node's GPUs says so there, as numbers or names, and
    cuda:0 is the first of those. Raises ConfigError for a device that is not among them.
    """
    if device == "cpu":
        return ""
    index = device.partition(":")[2] or "0"
    if shown is None:
        return index
    names = [name.strip() for name in shown.split(",") if name.strip()]
    if int(index) >= len(names):
        raise ConfigError(
            f"{device} was asked for, but CUDA_VISIBLE_DEVICES={shown!r} has {len(names)} in all"
        )
    return names[int(index)]


def make_children(
    roles: Mapping[str, int],
    environment: Mapping[str, str],
    devices: list[str],
    stuck_s: Mapping[str, float] | None = None,
) -> list[Child]:
    """One Child per role and slot; roles maps a role to its number of processes, and stuck_s to the
    seconds without a step after which one of them counts as stuck.

    Gpu workers take one device each ("cpu" or "cuda:N"); CUDA is hidden from everybody else, and a
    gpu worker sees only its own device. Raises ConfigError for one that is hidden from us.
    """
    children = []
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    for role, count in roles.items():
        for slot in range(count):
            device = devices[slot] if role == "gpu" else "cpu"
            visible = visible_device(device, shown)
            own = {**environment, **MALLOC.get(role, {}), "CUDA_VISIBLE_DEVICES": visible}
            children.append(Child(role, slot, own, (stuck_s or {}).get(role, START_LIMIT_S)))
    return children

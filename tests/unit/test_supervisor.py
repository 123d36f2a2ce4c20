"""The supervisor and its children: real processes, which are killed, replaced and ended."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from broker.server import PrivateServer
from daemon import supervisor as supervisor_module
from daemon.config_load import load
from daemon.supervisor import (
    LONGEST_PAUSE_S,
    MAX_FAILED_STARTS,
    Child,
    ChildFailedError,
    Supervisor,
    describe_exit,
    make_children,
)
from ops.durable import FileLock
from ops.errors import ConfigError
from tests.crash.harness import until
from workers.settings import WorkerSettings


@pytest.fixture
def settings(tmp_path: Path) -> WorkerSettings:
    """Of light workers: packers and planners start without asking Redis, and wait for it."""
    (tmp_path / "state").mkdir()
    config = load({"state_dir": tmp_path / "state"})
    return config.worker_settings(f"unix://{tmp_path}/none.sock")


@pytest.fixture
def supervise(settings: WorkerSettings) -> Iterator[Callable[..., Supervisor]]:
    """supervise(role=count, ...) with settings, all of whose processes end with the test."""
    made: list[Supervisor] = []

    def make(given: WorkerSettings = settings, **roles: int) -> Supervisor:
        children = make_children(roles, given.to_environment(), ["cpu"])
        made.append(Supervisor(children, None))
        return made[-1]

    yield make
    for supervisor in made:
        supervisor.stop()


def tick_until(supervisor: Supervisor, condition: Callable[[], bool], what: str) -> None:
    def ticked() -> bool:
        supervisor.tick()
        return condition()

    until(ticked, what, 60)


def pid_of(child: Child) -> int:
    assert child.process is not None
    return child.process.pid


def kill_and_replace(supervisor: Supervisor, child: Child, sig: int) -> int:
    """Kills a child that is ready; returns the pid of its ready successor."""
    before = pid_of(child)
    os.kill(before, sig)
    until(lambda: child.process is not None and child.process.poll() is not None, "its death")
    supervisor.tick()
    assert not supervisor.ready
    tick_until(supervisor, lambda: child.ready, "a successor")
    assert pid_of(child) != before
    return pid_of(child)


# -- a dead child is replaced ----------------------------------------------------------------------


def test_ready_when_every_child_is(supervise: Callable[..., Supervisor]) -> None:
    # Given two packers and a planner that were not started yet
    supervisor = supervise(packer=2, planner=1)
    assert not supervisor.ready
    # When they have started; Then they are three processes
    tick_until(supervisor, lambda: supervisor.ready, "three children")
    assert len({pid_of(child) for child in supervisor.children}) == 3
    assert [child.name for child in supervisor.children] == ["packer-0", "packer-1", "planner-0"]


def test_dead_child_is_replaced_after_a_growing_pause(supervise: Callable[..., Supervisor]) -> None:
    # Given two packers
    supervisor = supervise(packer=2)
    tick_until(supervisor, lambda: supervisor.ready, "two packers")
    victim, other = supervisor.children
    untouched = pid_of(other)
    # When one is killed twice
    pauses = [victim.pause_s]
    for _ in range(2):
        kill_and_replace(supervisor, victim, signal.SIGKILL)
        pauses.append(victim.pause_s)
    # Then each pause is twice the one before, and nobody else noticed
    assert pauses == [pauses[0], 2 * pauses[0], 4 * pauses[0]]
    assert pid_of(other) == untouched


def test_pause_is_bounded(supervise: Callable[..., Supervisor]) -> None:
    # Given a child that has died very often
    (child,) = supervise(packer=1).children
    for _ in range(20):
        child.started_at = time.monotonic()
        child.note_death(-signal.SIGKILL)
    # When / Then its pause does not grow for ever
    assert child.pause_s == LONGEST_PAUSE_S


def test_death_by_a_batch_costs_no_pause(supervise: Callable[..., Supervisor]) -> None:
    # Given a ready child: the batch that killed it will be halved, so this does not go on for ever
    child = supervise(packer=1).children[0]
    child.ready = True
    # When it dies of its batch again and again
    for _ in range(8):
        child.note_death(-signal.SIGSEGV)
        child.ready = True
    # Then its successors start at once
    assert child.start_at <= time.monotonic()


@pytest.mark.parametrize(
    ("sig", "told"), [(signal.SIGSEGV, "SIGSEGV"), (signal.SIGABRT, "SIGABRT"), (9, ""), (15, "")]
)
def test_successor_is_told_of_a_death_by_its_work_only(
    supervise: Callable[..., Supervisor], sig: int, told: str
) -> None:
    # Given a packer
    supervisor = supervise(packer=1)
    tick_until(supervisor, lambda: supervisor.ready, "a packer")
    # When a signal ends it
    successor = kill_and_replace(supervisor, supervisor.children[0], sig)
    # Then its successor knows of it when the work may have been the cause
    assert psutil.Process(successor).environ()["VNP_PREDECESSOR_SIGNAL"] == told


def test_private_redis_is_replaced(fresh_server: PrivateServer) -> None:
    # Given a supervisor of a Redis
    supervisor = Supervisor([], fresh_server)
    before = fresh_server.pid
    assert before is not None
    # When it is killed
    os.kill(before, signal.SIGKILL)
    until(lambda: not fresh_server.alive, "its death")
    supervisor.tick()
    # Then there is a fresh one at the same address
    assert fresh_server.alive
    assert fresh_server.pid != before


# -- a child that cannot start ---------------------------------------------------------------------


def failure(supervisor: Supervisor) -> ChildFailedError:
    with pytest.raises(ChildFailedError) as caught:
        tick_until(supervisor, lambda: False, "a failure")
    assert "\n" not in str(caught.value)
    return caught.value


def test_child_that_must_not_start_is_told_with_its_exit_code(
    supervise: Callable[..., Supervisor], settings: WorkerSettings
) -> None:
    # Given a state folder that another planner holds
    with FileLock(Path(settings.state_dir) / "planner.lock"):
        # When a second one is started
        error = failure(supervise(planner=1))
    # Then the supervisor ends with the planner's words and its exit code
    assert error.exit_code == 73
    assert "planner.lock is held by another process; stop that one first" in str(error)


def test_child_with_broken_models_is_told_with_its_exit_code(
    supervise: Callable[..., Supervisor], settings: WorkerSettings, tmp_path: Path
) -> None:
    # Given a model folder whose tokenizer is gone
    (tmp_path / "broken").mkdir()
    # When a packer is to start with it
    error = failure(supervise(replace(settings, dnabert=str(tmp_path / "broken")), packer=1))
    # Then
    assert error.exit_code == 78
    assert "tokenizer" in str(error)


def test_child_that_dies_at_every_start_is_given_up(
    supervise: Callable[..., Supervisor], settings: WorkerSettings
) -> None:
    # Given a packer whose process breaks before it can say anything
    supervisor = supervise(packer=1)
    (child,) = supervisor.children
    child.environment = {**settings.to_environment(), "VNP_WORKER_SETTINGS": "no json"}
    # When it has died often enough; Then the supervisor ends too, as with a bug
    error = failure(supervisor)
    assert error.exit_code == 70
    assert str(error).startswith("packer-0 cannot start: it ends with exit code 1")
    assert child.failed_starts == MAX_FAILED_STARTS


def test_unexpected_error_at_the_start_is_tried_again_and_then_told(
    supervise: Callable[..., Supervisor], settings: WorkerSettings
) -> None:
    # Given a planner that fails at its start with an error that nobody foresaw
    given = replace(settings, state_dir="\0")
    # When it has died often enough; Then the reason is told
    supervisor = supervise(given, planner=1)
    error = failure(supervisor)
    assert error.exit_code == 70
    assert "planner-0 cannot start: ValueError: embedded null byte" in str(error)
    assert supervisor.children[0].failed_starts == MAX_FAILED_STARTS


def test_kill_at_the_start_counts_for_nothing(supervise: Callable[..., Supervisor]) -> None:
    # Given a packer that is killed before it is ready, more often than it may fail
    supervisor = supervise(packer=1)
    (child,) = supervisor.children
    for _ in range(MAX_FAILED_STARTS + 1):
        child.start_at = 0.0
        supervisor.tick()
        os.kill(pid_of(child), signal.SIGKILL)
        assert child.process is not None
        child.process.wait()
        supervisor.tick()
    # When it is left alone; Then it starts
    child.start_at = 0.0
    tick_until(supervisor, lambda: supervisor.ready, "a packer")


def test_long_start_is_no_stillness(supervise: Callable[..., Supervisor]) -> None:
    # Given a packer whose start took longer than a step may
    supervisor = supervise(packer=1)
    (child,) = supervisor.children
    supervisor.tick()
    until_readable(child)
    process = psutil.Process(pid_of(child))
    process.suspend()
    until(lambda: process.status() == psutil.STATUS_STOPPED, "the packer to stand still")
    child.stuck_s = 60.0
    child._beat = (child.pulse.count, time.monotonic() - 100.0)
    # When it says that it is ready, before it has made a step
    child.read_report()
    # Then it has made none for a moment only
    assert child.ready
    assert not child.is_stuck
    process.resume()


def until_readable(child: Child) -> None:
    """Until it has said how its start went."""
    assert child._report is not None
    assert select.select([child._report], [], [], 60.0)[0]


# -- the end ---------------------------------------------------------------------------------------


def test_stop_ends_all(supervise: Callable[..., Supervisor]) -> None:
    # Given children of which one is stopped and will not hear SIGTERM
    supervisor = supervise(packer=2, planner=1)
    tick_until(supervisor, lambda: supervisor.ready, "three children")
    pids = [pid_of(child) for child in supervisor.children]
    os.kill(pids[0], signal.SIGSTOP)
    # When the supervisor stops with a short limit
    supervisor.stop(limit_s=6.0)  # a packer without Redis pauses for 2 s
    # Then none is left; those that heard it ended in order
    codes = [child.process.returncode for child in supervisor.children if child.process]
    assert codes == [-signal.SIGKILL, 0, 0]
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_no_child_outlives_a_killed_supervisor(tmp_path: Path, settings: WorkerSettings) -> None:
    # Given a supervisor in a process of its own, with a Redis and two packers
    script = """
import json, sys, time
from pathlib import Path
from broker.server import PrivateServer
from daemon.supervisor import Supervisor, make_children
server = PrivateServer(Path(sys.argv[1]) / "redis")
server.start()
supervisor = Supervisor(make_children({"packer": 2}, json.loads(sys.argv[2]), ["cpu"]), server)
while not supervisor.ready:
    supervisor.tick()
    time.sleep(0.02)
print("ready", flush=True)
time.sleep(60)
"""
    command = [sys.executable, "-c", script, str(tmp_path), json.dumps(settings.to_environment())]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == 3
    # When it is killed
    process.kill()
    process.wait()
    process.stdout.close()
    # Then nothing of it is left
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []


# -- what children are given -----------------------------------------------------------------------


def test_cuda_is_hidden_from_all_but_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given two devices; When the children are made
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    children = make_children({"packer": 1, "gpu": 2, "writer": 1}, {}, ["cuda:3", "cuda:5"])
    # Then each gpu worker sees its own device, and nobody else any
    visible = {child.name: child.environment["CUDA_VISIBLE_DEVICES"] for child in children}
    assert visible == {"packer-0": "", "gpu-0": "3", "gpu-1": "5", "writer-0": ""}


def test_cuda_without_an_index_is_the_first_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    [gpu] = make_children({"gpu": 1}, {}, ["cuda"])
    assert gpu.environment["CUDA_VISIBLE_DEVICES"] == "0"


@pytest.mark.parametrize("shown", ["2,5,7", " 2, 5 ,7", "2,5,7,"])
def test_devices_are_counted_among_those_that_we_were_given(
    monkeypatch: pytest.MonkeyPatch, shown: str
) -> None:
    # Given a scheduler that has given us three GPUs of a node
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    # When two workers are made; Then they have the first and the last of these
    children = make_children({"gpu": 2, "writer": 1}, {}, ["cuda:0", "cuda:2"])
    assert [child.environment["CUDA_VISIBLE_DEVICES"] for child in children] == ["2", "7", ""]


def test_devices_given_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8a1,MIG-3f0")
    [_, second] = make_children({"gpu": 2}, {}, ["cuda:0", "cuda:1"])
    assert second.environment["CUDA_VISIBLE_DEVICES"] == "MIG-3f0"


@pytest.mark.parametrize(("shown", "told"), [("3", "'3' has 1"), ("", "'' has 0")])
def test_device_that_is_hidden_from_us(
    monkeypatch: pytest.MonkeyPatch, shown: str, told: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    with pytest.raises(ConfigError, match=f"^cuda:1 was asked for, but .*={told} in all$"):
        make_children({"gpu": 1}, {}, ["cuda:1"])


def test_exit_codes_in_words() -> None:
    assert describe_exit(-9) == "signal SIGKILL"
    assert describe_exit(1) == "exit code 1"


# -- new settings ----------------------------------------------------------------------------------


def test_renewed_roles_are_replaced_while_the_supervisor_goes_on(
    supervise: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given packers, half of which do not end when they are told to, and a planner
    monkeypatch.setattr(supervisor_module, "STOP_LIMIT_S", 2.0)
    supervisor = supervise(packer=4, planner=1)
    tick_until(supervisor, lambda: supervisor.ready, "five children")
    *packers, planner = supervisor.children
    before = {child.name: pid_of(child) for child in supervisor.children}
    for child in packers[:2]:
        os.kill(pid_of(child), signal.SIGSTOP)
    packers[0].predecessor_signal = "SIGSEGV"  # of the one that is replaced, long ago
    # When packers get other settings
    ticks = []
    supervisor.renew({"TEST_RENEWED": "yes"}, ["packer"])
    # Then the supervisor moves, and feeds its watchdog, while they are waited for
    tick_until(
        supervisor,
        lambda: not ticks.append(1) and supervisor.ready and not any(c.end_by for c in packers),  # type: ignore[func-returns-value]
        "four other packers",
    )
    assert len(ticks) > 10
    # And all of them have been replaced, by order and not for a fault
    for child in packers:
        assert pid_of(child) != before[child.name]
        environment = psutil.Process(pid_of(child)).environ()
        assert environment["TEST_RENEWED"] == "yes"
        assert environment["VNP_PREDECESSOR_SIGNAL"] == ""
    assert supervisor.restarts == {"packer": 0, "planner": 0}
    # And nobody else, who takes the settings up later
    assert pid_of(planner) == before["planner-0"]
    assert planner.environment["TEST_RENEWED"] == "yes"

"""What an administrator relies on: notices, reload, stuck processes, health; with a real vnpd."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.crash.campaign import write_input
from tests.crash.harness import Service, digests, shards_done, until
from tests.preemption.metadata import Metadata
from tests.service.shell import Shell

#: From a notice to the end of vnpd; the shortest notice of a cloud is 30 s.
NOTICE_LIMIT_S = 25.0


@pytest.fixture(scope="module")
def reads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("input") / "mixed.fa"
    write_input(path, 10_000, seed=7)
    return path


@pytest.fixture(scope="module")
def fewer_reads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For what is computed more than once."""
    path = tmp_path_factory.mktemp("input") / "fewer.fa"
    write_input(path, 4_000, seed=7)
    return path


@pytest.fixture
def make_service(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    made = []

    def make(**settings: object) -> Service:
        made.append(Service(tmp_path, **settings))
        return made[-1]

    yield make
    for service in made:
        service.end()


def events(service: Service, name: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (service.state / "vnp.log").read_text().splitlines())
    return [line for line in lines if line["event.name"] == name]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_preempted_and_resumed(make_service: Callable[..., Service], fewer_reads: Path) -> None:
    with Metadata("gcp") as cloud:
        # Given the bytes of an undisturbed run, and the same job at work on a spot machine
        service = make_service(preemption="gcp", preemption_url=cloud.url)
        service.start()
        plain, out = service.folder / "plain", service.folder / "out"
        service.wait(service.submit(fewer_reads, plain, "--embeddings"))
        job = service.submit(fewer_reads, out, "--embeddings")
        until(lambda: shards_done(out) >= 1, "a shard")
        # When the machine is about to go
        assert service.process is not None
        began = time.monotonic()
        cloud.notice = "TRUE"
        # Then vnpd ends with 0 in time, and says of the job that it stops here
        assert service.process.wait(60) == 0
        assert time.monotonic() - began < NOTICE_LIMIT_S
        assert [line["job.id"] for line in events(service, "job.preempted")] == [job]
        assert events(service, "preemption.notice")[-1]["source"] == "gcp"
        # And the next machine goes on, to the same bytes, and says that it did
        cloud.notice = None
        service.start()
        service.wait(job)
        assert digests(out) == digests(plain)
        assert [line["job.id"] for line in events(service, "job.resumed")] == [job]
        run = json.loads((out / "run.json").read_text())
        assert (run["preemptions_survived"], run["interruptions_survived"]) == (1, 1)
        # And of the job that nothing disturbed, too
        assert json.loads((plain / "run.json").read_text())["preemptions_survived"] == 0


def test_notice_after_sigterm(make_service: Callable[..., Service], reads: Path) -> None:
    with Metadata("gcp") as cloud:
        # Given a service that is told to stop
        service = make_service(preemption="gcp", preemption_url=cloud.url)
        service.start()
        service.submit(reads, service.folder / "out")
        assert service.process is not None
        service.process.terminate()
        # When notice comes as well; Then it ends as it would have
        cloud.notice = "TRUE"
        assert service.process.wait(NOTICE_LIMIT_S) == 0


def test_file_hook(make_service: Callable[..., Service], tmp_path: Path) -> None:
    # Given a service that watches for a file; When it is made
    sign = tmp_path / "leave"
    service = make_service(preemption_file=sign)
    service.start()
    sign.touch()
    # Then the service ends
    assert service.process is not None
    assert service.process.wait(NOTICE_LIMIT_S) == 0


@pytest.mark.parametrize("role", ["planner", "packer", "gpu", "writer"])
def test_stuck_process_is_replaced(make_service: Callable[..., Service], role: str) -> None:
    # Given limits of seconds, and a process of this role that hangs
    service = make_service(stuck_s=15, batch_deadline_s=1)
    service.start()
    (victim,) = service.processes(role)[:1]
    victim.send_signal(signal.SIGSTOP)
    # When the limit has passed; Then it is replaced, and only it
    until(lambda: not victim.is_running(), "the end of the stuck process")
    until(lambda: bool(service.facts.get("ready")), "its successor")
    assert {line["worker"].partition("-")[0] for line in events(service, "worker.stuck")} == {role}


def test_idle_is_not_stuck(make_service: Callable[..., Service]) -> None:
    # Given limits of seconds; When there is nothing to do for longer
    service = make_service(stuck_s=15, batch_deadline_s=1)
    service.start()
    before = {child.pid for child in service.children()}
    time.sleep(25)
    # Then nobody is replaced
    assert {child.pid for child in service.children()} == before


def pids(service: Service, *roles: str) -> set[int]:
    return {process.pid for role in roles for process in service.processes(role)}


def test_reload(make_service: Callable[..., Service], fewer_reads: Path, tmp_path: Path) -> None:
    # Given a service with a configuration file, and a job at work
    config = tmp_path / "vnp.toml"
    config.write_text("heartbeat_s = 5\n")
    service = make_service(config=config)
    service.start()
    assert service.process is not None
    job = service.submit(fewer_reads, service.folder / "out")
    gpu = service.processes("gpu")[0].pid
    others = pids(service, "planner", "packer", "writer")
    # When a live setting changes; Then it is taken up, and the models stay
    config.write_text("heartbeat_s = 0.2\n")
    service.process.send_signal(signal.SIGHUP)
    until(lambda: bool(events(service, "config.reloaded")), "the reload")
    until(lambda: not others & pids(service, "planner", "packer", "writer"), "their successors")
    assert events(service, "worker.died") == []
    # And one that is not live, or no setting at all, is refused with what to do
    for text, words in (("namespace = 'b'\n", "restart vnpd"), ("device = 'x'\n", "cpu, cuda")):
        count = len(events(service, "config.refused"))
        config.write_text(text)
        service.process.send_signal(signal.SIGHUP)
        until(lambda n=count: len(events(service, "config.refused")) > n, "the refusal")
        assert words in events(service, "config.refused")[-1]["message"]
    # And the job goes on to its end
    config.write_text("")
    service.wait(job)
    assert service.processes("gpu")[0].pid == gpu


def test_health(make_service: Callable[..., Service], fewer_reads: Path) -> None:
    # Given a service with a health address
    port = free_port()
    service = make_service(listen=f"127.0.0.1:{port}", stuck_s=600)
    service.start()
    # Then it lives and is ready
    assert get(port, "/healthz")[0] == 200
    assert get(port, "/readyz")[0] == 200
    assert get(port, "/nothing")[0] == 404
    # And a job shows in the gauges, by state and not by name
    job = service.submit(fewer_reads, service.folder / "out")
    until(lambda: 'vnp_jobs{state="running"} 1.0' in get(port, "/metrics")[1], "the job")
    assert job not in get(port, "/metrics")[1]
    # And with a worker gone it is alive, but not ready
    service.kill_role("gpu")
    until(lambda: get(port, "/readyz")[0] == 503, "unreadiness")
    assert "gpu-0" in get(port, "/readyz")[1]
    assert get(port, "/healthz")[0] == 200
    until(lambda: get(port, "/readyz")[0] == 200, "readiness")
    service.wait(job)
    assert 'vnp_worker_restarts_total{role="gpu"} 1.0' in get(port, "/metrics")[1]


def test_address_in_use(shell: Shell) -> None:
    # Given an address that somebody else has; When a service wants it
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        listen = f"127.0.0.1:{other.getsockname()[1]}"
        done = shell("vnpd", VNP_LISTEN=listen)
    # Then it says so and ends
    assert done.returncode == os.EX_CONFIG
    assert f"health address {listen} cannot be used" in done.stderr


def test_top_and_watch(make_service: Callable[..., Service], fewer_reads: Path) -> None:
    # Given a job at work
    service = make_service()
    service.start()
    job = service.submit(fewer_reads, service.folder / "out")
    until(lambda: shards_done(service.folder / "out") >= 1, "a shard")
    # Then `vnp top` knows it from Redis alone
    url = str(service.facts["redis_url"])
    done = service.vnp("top", "--once", "--redis-url", url, environment={"VNP_STATE_DIR": "/nope"})
    assert done.returncode == 0, done.stderr
    assert job in done.stdout
    # And the plain form ends with the job
    done = service.vnp("status", job, "--watch")
    assert done.returncode == 0, done.stderr
    assert "finished" in done.stdout

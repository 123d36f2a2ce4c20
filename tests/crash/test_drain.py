"""SIGTERM: what is complete is committed, soon; a second one ends everything at once."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.crash.campaign import HOOKS, write_input
from tests.crash.harness import Service, shards_done, until

#: From SIGTERM to the end of the process: shards of normal size, and the slowest disk there is.
DRAIN_LIMIT_S = 10.0
WORST_LIMIT_S = 25.0


@pytest.fixture(scope="module")
def fasta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("input") / "mixed.fa"
    write_input(path, 30_000, seed=5)
    return path


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path, shard_bases=1 << 20, shard_records=2_000, device="cpu,cpu")
    yield service
    service.end()


def test_drain_with_shards_of_normal_size(service: Service, fasta: Path) -> None:
    # Given a job in progress
    out = service.folder / "out"
    service.start()
    job = service.submit(fasta, out, "--embeddings")
    until(lambda: shards_done(out) >= 1, "a shard")
    # When the service is told to stop
    started = time.monotonic()
    assert service.stop() == 0
    # Then it ends in time, in order, and leaves nothing half done
    assert time.monotonic() - started < DRAIN_LIMIT_S
    assert [path for path in out.rglob("*") if ".tmp-" in path.name] == []
    assert (service.state / "jobs" / f"{job}.open.json").exists()


def test_drain_onto_a_very_slow_disk(service: Service, fasta: Path) -> None:
    # Given a disk on which an fsync takes three seconds
    out = service.folder / "out"
    control = service.folder / "disk"
    service.environment |= {
        "PYTHONPATH": str(HOOKS),
        "TEST_DISK_FAULT": str(control),
        "TEST_DISK_ROOT": str(out),
        "VNP_SHARD_RECORDS": "200",
    }
    service.start()
    service.submit(fasta, out, "--embeddings")
    until(lambda: shards_done(out) >= 1, "a shard")
    control.write_text("slow 3")
    time.sleep(4)
    # When the service is told to stop with commits under way
    started = time.monotonic()
    service.stop()
    # Then it ends in time all the same
    assert time.monotonic() - started < WORST_LIMIT_S


def test_second_signal_quits_at_once(service: Service, fasta: Path) -> None:
    # Given a job in progress, and a service that is draining
    out = service.folder / "out"
    service.start()
    service.submit(fasta, out)
    until(lambda: shards_done(out) >= 1, "a shard")
    children = service.children()
    assert service.process is not None
    service.kill_role("gpu", signal.SIGSTOP)  # so that there is something to wait for
    service.process.terminate()
    log = service.state / "vnp.log"
    until(lambda: "service.stopping" in log.read_text(), "the service to hear it")
    assert service.process.poll() is None
    # When a second SIGTERM comes
    started = time.monotonic()
    service.process.terminate()
    # Then it is over, for all processes
    assert service.process.wait(5) == 128 + signal.SIGTERM
    _, alive = psutil.wait_procs(children, timeout=5)
    assert alive == []
    assert time.monotonic() - started < 5
    # And the next service goes on
    before = shards_done(out)
    service.start()
    until(lambda: shards_done(out) > before, "another shard")

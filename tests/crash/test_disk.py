"""One disk for everything, job files and results: it fills or goes read-only, and comes back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.campaign import HOOKS, write_input
from tests.crash.harness import Service, digests, shards_done, undisturbed_run, until

READS = 2_000


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path, shared_dir=tmp_path / "disk" / "shared")
    service.environment |= {
        "PYTHONPATH": str(HOOKS),
        "TEST_DISK_FAULT": str(tmp_path / "control"),
        "TEST_DISK_ROOT": str(tmp_path / "disk"),
    }
    yield service
    service.end()


def log_of(service: Service) -> str:
    return (service.state / "vnp.log").read_text()


def test_job_waits_for_the_disk_that_its_own_files_are_on(
    service: Service, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # Given a job in progress
    folder = tmp_path_factory.mktemp("plain")
    fasta, out = folder / "reads.fa", service.folder / "disk" / "out"
    write_input(fasta, READS, seed=3)
    service.start()
    job = service.submit(fasta, out)
    until(lambda: shards_done(out) >= 1, "a shard")
    writers = service.processes("writer")
    # When nothing can be written for some tries
    control = service.folder / "control"
    control.write_text("readonly")
    until(lambda: "job.waiting" in log_of(service), "the job to wait")
    time.sleep(5)
    control.unlink()
    # Then it goes on by itself, in the same writer, to the same bytes
    service.wait(job)
    assert service.processes("writer") == writers
    assert digests(out) == digests(undisturbed_run(folder, fasta))


def test_end_of_a_job_is_said_as_soon_as_the_disk_takes_it(service: Service) -> None:
    # Given a disk that takes nothing
    fasta = service.folder / "broken.fa"
    write_input(fasta, 100, seed=3)
    service.start()
    writers = service.processes("writer")
    (service.folder / "control").write_text("readonly")
    # When a job cannot be opened there, which ends it
    job = service.submit(fasta, service.folder / "disk" / "out")
    until(lambda: "its end cannot be written" in log_of(service), "the end that is not written")
    # Then that is said when it can be
    (service.folder / "control").unlink()
    done = service.vnp("wait", job)
    assert done.returncode == 77, done.stderr
    assert "cannot be written" in done.stderr
    assert service.processes("writer") == writers

"""kill -9 of any process at any moment changes no byte of tables and shards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.crash.harness import Service, digests, shards_done, until

FIXTURES = Path(__file__).parents[1] / "data" / "fixtures"
GENOMES = ["virus_lambda.fa", "virus_SARS-CoV-2.fa", "virus_influenzaA_PR8.fa", "virus_HIV-1.fa"]
NUM_SHARDS = 8


@pytest.fixture(scope="module")
def fasta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real genomes, a duplicate, an empty record, a short one and one of N only."""
    path = tmp_path_factory.mktemp("input") / "mixed.fa"
    genomes = "".join((FIXTURES / name).read_text() for name in GENOMES)
    odd = ">twice\nACGTACGTAC\n>empty\n>twice\nAC\n>unknown\n" + "N" * 700 + "\n"
    path.write_text(odd + genomes)
    return path


@pytest.fixture(scope="module")
def undisturbed(fasta: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a run that nobody disturbs gives."""
    folder = tmp_path_factory.mktemp("undisturbed")
    service = Service(folder)
    service.start()
    service.wait(service.submit(fasta, folder / "out", "--embeddings"))
    assert service.stop() == 0
    assert shards_done(folder / "out") >= NUM_SHARDS
    return digests(folder / "out")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path)
    service.start()
    yield service
    if service.process is not None and service.process.poll() is None:
        service.stop()


@pytest.mark.parametrize("role", ["planner", "packer", "gpu", "writer", "redis"])
def test_killed_role_changes_no_byte(
    service: Service, fasta: Path, undisturbed: dict[str, str], role: str
) -> None:
    # Given a job of which some shards are committed and some are not
    out = service.folder / "out"
    job = service.submit(fasta, out, "--embeddings")
    until(lambda: shards_done(out) >= 2, "two shards")
    # When a role is killed, twice
    service.kill_role(role)
    until(lambda: shards_done(out) >= 4, "four shards")
    service.kill_role(role)
    # Then the job ends as if nothing had happened
    service.wait(job)
    assert digests(out) == undisturbed
    # And nothing of it is left in Redis
    with service.redis() as client:
        until(lambda: left_in(client) == {}, "empty streams", 20)


def left_in(client: object) -> dict[str, int]:
    """Streams that still hold entries."""
    lengths = {
        key.decode(): client.xlen(key)  # type: ignore[attr-defined]
        for key in client.keys("*")  # type: ignore[attr-defined]
        if client.type(key) == b"stream"  # type: ignore[attr-defined]
    }
    return {key: length for key, length in lengths.items() if length}


def test_flushall_in_mid_job(service: Service, fasta: Path, undisturbed: dict[str, str]) -> None:
    # Given a job in progress
    out = service.folder / "out"
    job = service.submit(fasta, out, "--embeddings")
    until(lambda: shards_done(out) >= 2, "two shards")
    # When Redis forgets everything
    with service.redis() as client:
        client.flushall()
    # Then the job ends with the same bytes
    service.wait(job)
    assert digests(out) == undisturbed


def test_flushall_right_after_submit(
    service: Service, fasta: Path, undisturbed: dict[str, str]
) -> None:
    # When Redis forgets everything just after the id was printed
    out = service.folder / "out"
    job = service.submit(fasta, out, "--embeddings")
    with service.redis() as client:
        client.flushall()
    # Then the job is done all the same
    service.wait(job)
    assert digests(out) == undisturbed


def test_killed_supervisor_leaves_no_process_and_the_next_one_resumes(
    service: Service, fasta: Path, undisturbed: dict[str, str]
) -> None:
    # Given a job in progress
    out = service.folder / "out"
    job = service.submit(fasta, out, "--embeddings")
    until(lambda: shards_done(out) >= 2, "two shards")
    children = service.children()
    assert len(children) >= 6  # planner, 2 packers, gpu, writer, redis
    # When the supervisor alone is killed
    service.kill()
    # Then no process of it is left
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    # And the next service goes on where it stopped
    before = shards_done(out)
    service.start()
    service.wait(job)
    assert before < shards_done(out)
    assert digests(out) == undisturbed


def test_sigterm_then_start_again(
    service: Service, fasta: Path, undisturbed: dict[str, str]
) -> None:
    # Given a job in progress
    out = service.folder / "out"
    job = service.submit(fasta, out, "--embeddings")
    until(lambda: shards_done(out) >= 2, "two shards")
    # When the service is stopped in order, and started again
    assert service.stop() == 0
    service.start()
    # Then the job ends with the same bytes
    service.wait(job)
    assert digests(out) == undisturbed


def test_private_redis_whose_socket_is_gone(
    service: Service, fasta: Path, undisturbed: dict[str, str]
) -> None:
    # Given a job in progress
    out = service.folder / "out"
    job = service.submit(fasta, out, "--embeddings")
    until(lambda: shards_done(out) >= 2, "two shards")
    # When a cleaner removes the socket of the private Redis
    next(service.state.glob("redis/*.sock")).unlink()
    # Then the job ends as if nothing had happened
    service.wait(job)
    assert digests(out) == undisturbed


def test_foreground_run_resumes_after_kill(
    fasta: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    # Given `vnp run` in progress
    shell = Service(tmp_path)
    out = tmp_path / "out"
    run = start_run(shell, fasta, out)
    until(lambda: shards_done(out) >= 2, "two shards")
    children = psutil.Process(run.pid).children(recursive=True)
    # When it is killed
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    before = shards_done(out)
    # Then the same command again ends with the same bytes
    done = shell.vnp("run", fasta, "--out", out, "--embeddings")
    assert done.returncode == 0, done.stderr
    assert before < shards_done(out)
    assert digests(out) == undisturbed


def start_run(shell: Service, fasta: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "daemon.cli", "run", str(fasta), "--out", str(out)]
    with (shell.folder / "run.log").open("ab") as log:
        return subprocess.Popen(
            [*command, "--embeddings"], env=shell.environment, stdout=log, stderr=log
        )


def test_stopped_gpu_worker_that_wakes_after_its_lease(
    service: Service, fasta: Path, undisturbed: dict[str, str]
) -> None:
    # Given a gpu worker that stands still for longer than its lease, with a batch in hand
    out = service.folder / "out"
    job = service.submit(fasta, out, "--embeddings")
    until(lambda: shards_done(out) >= 2, "two shards")
    service.kill_role("gpu", signal.SIGSTOP)
    time.sleep(5)
    # When it wakes
    service.kill_role("gpu", signal.SIGCONT)
    # Then nothing is doubled and nothing is lost
    service.wait(job)
    assert digests(out) == undisturbed

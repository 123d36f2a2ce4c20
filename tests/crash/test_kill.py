"""What the campaign does not reach: the private Redis, `vnp run`, and the moment of submission."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.crash.campaign import left_in
from tests.crash.harness import Service, digests, shards_done, undisturbed_run, until

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
    out = undisturbed_run(tmp_path_factory.mktemp("undisturbed"), fasta, "--embeddings")
    assert shards_done(out) >= NUM_SHARDS
    return digests(out)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path, window_shards=1)  # so that not all is computed before a kill
    service.start()
    yield service
    if service.process is not None and service.process.poll() is None:
        service.stop()


def test_killed_private_redis_changes_no_byte(
    service: Service, fasta: Path, undisturbed: dict[str, str]
) -> None:
    # Given a job of which some shards are committed and some are not
    out = service.folder / "out"
    job = service.submit(fasta, out, "--embeddings")
    until(lambda: shards_done(out) >= 2, "two shards")
    # When the private Redis is killed, twice
    service.kill_role("redis")
    until(lambda: shards_done(out) >= 4, "four shards")
    service.kill_role("redis")
    # Then the job ends as if nothing had happened
    service.wait(job)
    assert digests(out) == undisturbed
    # And nothing of it is left in Redis
    with service.redis() as client:
        until(lambda: left_in(client) == {}, "empty streams", 20)


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


def test_job_whose_folder_is_away_holds_nobody_up(
    service: Service, fasta: Path, undisturbed: dict[str, str]
) -> None:
    # Given a job in progress whose folder goes away
    out, away = service.folder / "out", service.folder / "away"
    job = service.submit(fasta, out, "--embeddings")
    until(lambda: shards_done(out) >= 1, "a shard")
    out.rename(away)
    # When another job comes
    other = service.submit(fasta, service.folder / "other", "--embeddings")
    # Then that one ends, while the first says what it waits for
    service.wait(other)
    assert digests(service.folder / "other") == undisturbed
    said = service.vnp("status", job).stdout
    assert "waits: " in said
    assert str(out) in said
    # And the first goes on by itself when its folder is back
    away.rename(out)
    service.wait(job)
    assert digests(out) == undisturbed


def test_foreground_run_resumes_after_kill(
    fasta: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    # Given `vnp run` in progress
    shell = Service(tmp_path, window_shards=1)
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

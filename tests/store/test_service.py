"""A whole service whose results go to a store: submitted, killed, resumed, looked at, exported."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ops import bucket
from ops.place import place_of
from tests.crash.harness import Service, undisturbed_run, until
from tests.store.s3 import LOST, PASSED, UNCONDITIONAL, Proxy, promised

FIXTURES = Path(__file__).parents[1] / "data" / "fixtures"
GENOMES = ["virus_lambda.fa", "virus_SARS-CoV-2.fa", "virus_influenzaA_PR8.fa"]
EX_CANTCREAT = 73
EX_NOINPUT = 66
EX_USAGE = 64


@pytest.fixture(scope="module")
def fasta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("input") / "genomes.fa"
    path.write_text(">empty\n" + "".join((FIXTURES / name).read_text() for name in GENOMES))
    return path


@pytest.fixture
def service(store: Proxy, tmp_path: Path) -> Iterator[Service]:
    """Started after `store`, whose address it finds in the environment."""
    service = Service(tmp_path)
    service.start()
    yield service
    service.end()


@pytest.fixture(scope="module")
def in_a_folder(fasta: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the same job gives in a folder."""
    return promised(undisturbed_run(tmp_path_factory.mktemp("plain"), fasta, "--embeddings"))


def shards_done(out: str) -> int:
    try:
        return len(place_of(out).manifest().shards)
    except FileNotFoundError:
        return 0


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_killed_writer_and_a_store_that_is_away(
    service: Service, store: Proxy, fasta: Path, out: str, in_a_folder: dict[str, str]
) -> None:
    # Given a job of which some shards are committed in the store
    job = service.submit(fasta, out, "--embeddings")
    until(lambda: shards_done(out) >= 2, "two shards")
    # When the writer is killed, and the store is away for a while
    service.kill_role("writer")
    store.fate = lambda method, path: LOST
    until(lambda: "job.waiting" in (service.state / "vnp.log").read_text(), "the job to wait")
    waits = service.vnp("status", job).stdout
    assert out in waits
    store.fate = lambda method, path: PASSED
    # Then it goes on by itself, to the bytes that a folder would have
    service.wait(job)
    assert promised(out) == in_a_folder
    assert place_of(out).manifest().epoch == 2
    # And everything that reads a folder reads a store
    assert service.vnp("verify", out).stdout.rstrip().endswith("all as committed")
    assert service.vnp("verify", job).returncode == 0
    table = service.vnp("results", out).stdout
    assert hashlib.sha256(table.encode()).hexdigest() == in_a_folder["sequences.tsv"]
    exported = service.vnp("export", out, "--to", "npy", "--into", service.folder / "npy")
    assert exported.returncode == 0, exported.stderr
    assert (service.folder / "npy" / "esm2.npy").stat().st_size > 128
    reported = service.vnp("report", out)
    assert reported.stdout.split() == [f"{out}/report.html", f"{out}/vnp_mqc.tsv"]
    assert place_of(out).read("report.html").startswith(b"<!")
    # And a list of jobs asks the store nothing of one that has ended
    asked: list[str] = []
    store.fate = lambda method, path: asked.append(path) or PASSED
    assert f"{job}  finished  100%" in service.vnp("list").stdout
    assert asked == []
    # And nothing is left of what was on its way
    assert files_in(service.state / "scratch") == []


def test_store_that_hangs_holds_nobody_else_up(
    service: Service, store: Proxy, fasta: Path, out: str
) -> None:
    # Given jobs in progress, whose store keeps every request without a reply
    jobs = [service.submit(fasta, f"{out}-{number}") for number in range(6)]
    until(lambda: all(shards_done(f"{out}-{number}") for number in range(6)), "shards of all")
    answers = threading.Event()

    def keep(method: str, path: str) -> str:
        answers.wait(240)
        return PASSED

    store.fate = keep
    time.sleep(3)
    # When one is cancelled, and another job goes to a folder
    assert service.vnp("cancel", jobs[0]).returncode == 0
    local = service.submit(fasta, service.folder / "here")
    service.wait(local, limit_s=60)
    # Then neither has waited for the store, and the writer has kept its role
    assert "writer.stands_by" not in (service.state / "vnp.log").read_text()
    answers.set()
    for job in jobs[1:]:
        service.wait(job)


def test_writer_removes_what_a_killed_one_has_left_and_nothing_else(tmp_path: Path) -> None:
    # Given a scratch folder with tables of a writer that was killed, and files of somebody else
    service = Service(tmp_path, node="here")
    scratch = service.state / "scratch"
    for path in ("writer-vnp-here/vnp-left", "writer-vnp-there/vnp-theirs", "vnp-yours"):
        (scratch / path).mkdir(parents=True)
        (scratch / path / f"{Path(path).name}.tsv").touch()
    # When a writer starts, then the former are gone
    service.start()
    service.end()
    assert files_in(scratch) == ["vnp-theirs.tsv", "vnp-yours.tsv"]


def test_same_job_again_is_the_old_one(service: Service, fasta: Path, out: str) -> None:
    job = service.submit(fasta, out)
    service.wait(job)
    assert service.submit(fasta, out) == job
    assert service.submit(fasta, f"{out}/") == job
    again = service.submit(fasta, out, "--force")
    assert again != job
    service.wait(again)
    assert place_of(out).manifest().epoch == 2


def test_store_that_ignores_the_condition_ends_the_job(
    service: Service, store: Proxy, fasta: Path, out: str
) -> None:
    store.fate = lambda method, path: UNCONDITIONAL
    done = service.vnp("submit", fasta, "--out", out, "--wait")
    assert done.returncode == EX_CANTCREAT
    assert "ignores the condition If-None-Match" in done.stderr
    assert bucket.Bucket(out).listing() == {}


@pytest.mark.parametrize("command", ["verify", "results", "report"])
def test_prefix_that_holds_nothing(store: Proxy, tmp_path: Path, out: str, command: str) -> None:
    done = Service(tmp_path).vnp(command, out)
    assert done.returncode == EX_NOINPUT
    [line] = done.stderr.splitlines()
    assert out in line


def test_export_wants_a_folder(store: Proxy, tmp_path: Path, out: str) -> None:
    done = Service(tmp_path).vnp("export", out, "--to", "npy")
    assert done.returncode == EX_USAGE
    assert "--into" in done.stderr


def test_foreground_run_resumes_in_a_store(
    store: Proxy, tmp_path: Path, fasta: Path, out: str, in_a_folder: dict[str, str]
) -> None:
    # Given `vnp run` that is stopped in the middle
    run = Service(tmp_path, window_shards=1)
    words = [sys.executable, "-m", "daemon.cli", "run", str(fasta), "--out", out, "--embeddings"]
    begun = subprocess.Popen(words, env=run.environment, stderr=subprocess.DEVNULL)
    until(lambda: shards_done(out) >= 1, "the first shard")
    begun.send_signal(signal.SIGTERM)
    assert begun.wait(60) == 128 + signal.SIGTERM
    assert shards_done(out) < sum(name.startswith("shard") for name in in_a_folder)
    # When the same command runs again, then it goes on, and tells where the results are
    done = run.vnp("run", fasta, "--out", out, "--embeddings")
    assert done.returncode == 0, done.stderr
    assert f"in {out}:" in done.stdout
    assert promised(out) == in_a_folder
    # And once more, it has nothing to do
    again = run.vnp("run", fasta, "--out", out, "--embeddings")
    assert "finished already" in again.stderr

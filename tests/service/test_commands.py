"""What the commands print about jobs and the service, and `vnp run` beside a service."""

from __future__ import annotations

import gzip
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from ops.manifest import read_manifest
from tests.crash.harness import Service, digests, shards_done, until
from tests.service.conftest import FIXTURES
from tests.unit.test_config import HEAVY

Finished = tuple[str, Path]
STATED = {"@timestamp", "log.level", "event.name", "message", "process.pid", "service.name"}


def told(done: subprocess.CompletedProcess[str]) -> str:
    """Standard output of a command that ended well and had nothing else to say."""
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# -- looking at jobs and the service ---------------------------------------------------------------


def test_status_of_the_service(service: Service, finished: Finished) -> None:
    # Given a service with nothing to do; When / Then
    assert told(service.vnp("status")) == "service: ready, 0 unfinished jobs\n"


def test_status_of_a_job_in_words(service: Service, finished: Finished) -> None:
    # Given a finished job; When it is asked for in words and in figures
    job, out = finished
    text = told(service.vnp("status", job))
    view = json.loads(told(service.vnp("status", job, "--json")))
    # Then both say the same
    shown = dict(line.split(None, 1) for line in text.splitlines())
    assert shown["job"] == view["id"] == job
    assert shown["state"] == view["state"] == "finished"
    assert shown["message"] == view["message"]
    assert shown["message"].startswith("10 records, ")
    assert shown["out"] == view["out"] == str(out)
    assert "models" not in shown
    assert (view["records"], view["shards"], view["shards_done"]) == (10, 1, 1)


def test_list_stands_in_columns(service: Service, finished: Finished) -> None:
    # Given a finished job among others; When the jobs are listed
    job, out = finished
    header, *rows = told(service.vnp("list")).splitlines()
    views = json.loads(told(service.vnp("list", "--json")))
    # Then they come oldest first, each cell under its heading
    assert header.split() == ["id", "state", "done", "submitted", "out"]
    assert [row.split()[0] for row in rows] == [view["id"] for view in views]
    assert [view["created"] for view in views] == sorted(view["created"] for view in views)
    (row,) = [row for row in rows if row.startswith(job)]
    assert row.split()[1:3] == ["finished", "100%"]
    assert row[header.index("out") :] == str(out)


def test_wait_for_several(service: Service, finished: Finished) -> None:
    assert told(service.vnp("wait", finished[0], finished[0])) == ""


def test_logs_tell_the_life_of_a_job(service: Service, finished: Finished) -> None:
    # Given a finished job; When its log is printed, and followed to its end
    job, _ = finished
    text = told(service.vnp("logs", job))
    # Then both are the same lines, in the order of its life
    assert told(service.vnp("logs", "--follow", job)) == text
    names = [json.loads(line)["event.name"] for line in text.splitlines()]
    assert [name for name in names if name != "job.progress"] == [
        *("job.planned", "job.started", "job.checkpointed", "job.finishing", "job.finished"),
    ]


def test_log_of_the_service(service: Service, finished: Finished) -> None:
    # Given the log file that all processes share; When it is read
    text = (service.state / "vnp.log").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    # Then every line has the stated fields, and every process wrote its own
    assert all(STATED | {"service.version", "vnp.role"} <= line.keys() for line in lines)
    assert {line["vnp.role"] for line in lines} == {
        *("supervisor", "planner", "packer", "gpu", "writer"),
    }
    # And the models are on record
    loaded = [line for line in lines if line["event.name"] == "model.loaded"]
    assert {(line["device"], line["dtype"]) for line in loaded} == {("cpu", "fp32")}
    # And standard error has the same lines
    printed = (service.folder / "service.log").read_text().splitlines()
    assert set(text.splitlines()) <= set(printed)


def test_progress_and_cancel_of_a_running_job(service: Service, tmp_path: Path) -> None:
    # Given a job that has begun and cannot go on, since the gpu worker stands still
    fasta, out = FIXTURES / "virus_SAOMS1.fa", tmp_path / "out"
    inputs = (fasta, out, fasta, fasta, fasta)  # more shards than the window has
    job = service.submit(*inputs)
    until(lambda: shards_done(out) >= 1, "a shard")
    service.kill_role("gpu", signal.SIGSTOP)
    try:
        # When the service is asked
        first, _, row = told(service.vnp("status")).splitlines()
        # Then the job is there; its log shows life
        assert first == "service: ready, 1 unfinished job"
        assert row.split()[:2] == [job, "running"]
        until(lambda: "job.progress" in told(service.vnp("logs", job)), "a line of progress")
        # And when it is cancelled, who waits is told
        assert told(service.vnp("cancel", job)) == ""
        done = service.vnp("wait", job)
    finally:
        service.kill_role("gpu", signal.SIGCONT)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == f"vnp: {job} cancelled: cancelled on request\n"
    kept = shards_done(out)
    assert kept >= 1
    assert list(out.glob("*.tsv")) == []
    # And the same submit is a new job that goes on from what was kept
    resumed = service.submit(*inputs)
    assert resumed != job
    service.wait(resumed)
    (started,) = [
        line
        for line in map(json.loads, told(service.vnp("logs", resumed)).splitlines())
        if line["event.name"] == "job.resumed"
    ]
    # (a commit that was under way when the job was cancelled may have come after that look)
    lines = read_manifest(out / "manifest.jsonl").shards.values()
    assert kept <= started["shards_done"] == sum(line.epoch == 1 for line in lines)
    assert started["shards_done"] < started["shards_total"]
    assert told(service.vnp("verify", out)).endswith(": all as committed\n")


def test_models_verify(service: Service) -> None:
    rows = told(service.vnp("models", "verify")).splitlines()
    assert [row.split("\t")[1:] for row in rows] == [["digest", "ok"]] * 3


def test_commands_stay_light_beside_a_service(
    service: Service, fasta: Path, finished: Finished
) -> None:
    # Given a service and a finished job; When each everyday command has done its work
    job, out = finished
    script = (
        "import sys\nfrom daemon.cli import vnp, run_command\n"
        "code = run_command(vnp, sys.argv[1:])\n"
        f"print('', code, sorted(set({HEAVY!r}) & set(sys.modules)), sep='\\n')\n"
    )
    for words in (["submit", fasta, "--out", out], ["status", job], ["wait", job], ["list"]):
        command = [sys.executable, "-c", script, *map(str, words)]
        done = subprocess.run(command, env=service.environment, capture_output=True, text=True)
        # Then it loaded neither tensors nor Redis
        assert done.stdout.splitlines()[-2:] == ["0", "[]"], words


# -- vnp run ---------------------------------------------------------------------------------------


def test_run_makes_again_what_is_missing(
    service: Service, fasta: Path, finished: Finished, tmp_path: Path
) -> None:
    # Given a copy of a finished folder that has lost a table
    out = tmp_path / "out"
    shutil.copytree(finished[1], out)
    (out / "chunks.tsv").unlink()
    # When the same is run in the foreground
    done = service.vnp("run", fasta, "--out", out)
    # Then all is as it was, and names are shown as they are
    assert done.returncode == 0, done.stderr
    assert digests(out) == digests(finished[1])
    assert "[bold]" in done.stdout
    assert "10 records: " in done.stdout


def test_run_knows_a_result_of_the_service(
    service: Service, fasta: Path, finished: Finished
) -> None:
    # Given a finished job of the service; When the same is run in the foreground
    before = (finished[1] / "manifest.jsonl").read_bytes()
    done = service.vnp("run", fasta, "--out", finished[1], "--json")
    # Then there is nothing to do
    assert done.stderr == "vnp: finished already; --force computes it anew\n"
    assert json.loads(done.stdout)["out"] == str(finished[1])
    assert (finished[1] / "manifest.jsonl").read_bytes() == before


def test_run_embeds_standard_input(service: Service, fasta: Path, tmp_path: Path) -> None:
    # Given a compressed FASTA on standard input; When another pipeline is run on it
    out = tmp_path / "out"
    arguments = ["run", "-", "--pipeline", "dna", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "daemon.cli", *arguments],
        env=service.environment,
        input=gzip.compress(fasta.read_bytes()),
        capture_output=True,
    )
    # Then every record is there, and nothing is said of calls
    assert done.returncode == 0, done.stderr
    assert b"10 records: 8 embedded, 2 not" in done.stdout
    assert b"virus" not in done.stdout
    assert [path.name for path in out.glob("*.tsv")] == ["sequences.tsv"]
    assert len((out / "sequences.tsv").read_text().splitlines()) == 1 + 10

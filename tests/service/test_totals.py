"""What a job says of itself at its end, and what becomes of one whose totals do not add up."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from tests.crash.harness import Service, until
from tests.service.conftest import FIXTURES
from tests.service.shell import Shell

GENOME = FIXTURES / "virus_phiX174.fa"
READ = "ATGGCTAAAGGCTCTAAAGATCGTAAC"
SHORT = (
    "3 of 4 scored records are shorter than 300 bases: published classifiers are near chance there"
)


def frames_of(out: Path) -> tuple[int, int]:
    counts = json.loads((out / "run.json").read_text())["counts"]
    return counts["frames"], counts["frames_computed"]


def test_short_and_identical_records_are_remarked_on(shell: Shell, tmp_path: Path) -> None:
    # Given a genome, and a read that comes three times
    fasta, out = tmp_path / "x.fa", tmp_path / "out"
    reads = "".join(f">read{number}\n{READ}\n" for number in range(3))
    fasta.write_text(reads + GENOME.read_text())
    # When it is run; Then the summary says what calls of reads are worth, and what was saved
    done = shell("vnp", "run", fasta, "--out", out)
    assert done.returncode == 0, done.stderr
    frames, computed = frames_of(out)
    assert frames - computed >= 2
    saved = (
        f"{frames - computed} of {frames} frames were identical to an earlier one of their shard"
    )
    assert SHORT in done.stdout.splitlines()
    assert f"{saved} and computed once" in done.stdout.splitlines()
    # And so do run.json, the same command again, `vnp results` beside the table, and the report
    notes = json.loads((out / "run.json").read_text())["notes"]
    assert notes == [SHORT, f"{saved} and computed once"]
    assert shell("vnp", "run", fasta, "--out", out).stdout == done.stdout
    results = shell("vnp", "results", out)
    assert results.stdout == (out / "sequences.tsv").read_text()
    assert results.stderr.splitlines() == [f"vnp: {note}" for note in notes]
    assert shell("vnp", "report", out).returncode == 0
    page = (out / "report.html").read_text()
    assert all(note in page for note in notes)


def test_nothing_is_remarked_where_there_is_nothing(shell: Shell, tmp_path: Path) -> None:
    done = shell("vnp", "run", GENOME, "--out", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "run.json").read_text())["notes"] == []
    assert "near chance" not in done.stdout
    assert "identical" not in done.stdout


def test_job_whose_totals_do_not_add_up_fails(service: Service, tmp_path: Path) -> None:
    # Given a job of which the first reading, as the writer knows it, has counted one base more
    service.kill_role("writer", signal.SIGSTOP)
    try:
        job = service.submit(GENOME, tmp_path / "out")
        path = service.state / "jobs" / f"{job}.plan.json"
        until(path.exists, "the plan")
        plan = json.loads(path.read_text())
        path.write_text(json.dumps({**plan, "letters": plan["letters"] + 1}))
    finally:
        service.kill_role("writer", signal.SIGCONT)
    # When it ends; Then it has failed, with one line that names both sums
    done = service.vnp("wait", job)
    assert done.returncode == 70
    assert done.stderr.startswith(f"vnp: {job} failed: the totals do not add up")
    assert "letters of the input and of the tables: 5,387 and 5,386" in done.stderr
    assert done.stderr.count("\n") == 1
    # And nobody takes its folder for finished
    assert json.loads((tmp_path / "out" / "run.json").read_text())["state"] == "running"

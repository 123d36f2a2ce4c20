"""Jobs whose files are damaged, not there yet, or another job's by now: never shown as results, and
no hindrance to looking at the others. Without a service."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ops.jobs import JobStore, Outcome
from ops.output import Output
from tests.service.shell import Shell, refused
from tests.unit.output_fixtures import (
    IDENTITY,
    JOB,
    PLAN,
    commit,
    gathered,
    make_account,
    make_plan,
    make_spec,
    open_job,
    read_records,
    run_job,
)


@pytest.fixture
def store(shell: Shell) -> JobStore:
    return JobStore(shell.folder / "state")


def submitted(store: JobStore, job: str, out: Path, *, state: str = "", **options: object) -> str:
    """A job file; state: with a plan, opened, and ended so."""
    store.create(make_spec(out, id=job, **options))
    if state:
        store.set_plan(job, PLAN)
        store.set_open(job, 1)
        store.set_outcome(job, Outcome(state, 0, ""))
    return job


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


# -- vnp export ------------------------------------------------------------------------------------


def test_export_between_last_commit_and_tables(shell: Shell) -> None:
    # Given a job with all shards committed, whose tables are not written yet
    output = open_job(shell.folder / "out")
    commit(output, *range(len(JOB)))
    output.close()
    # When it is exported; Then it is not finished, and that is said
    done = shell("vnp", "export", "out", "--to", "parquet")
    refused(done, 66, "out is not finished", "--partial")
    assert not (shell.folder / "out" / "export").exists()


@pytest.mark.parametrize("name", ["sequences.tsv", "chunks.tsv"])
def test_export_without_a_table(shell: Shell, name: str) -> None:
    # Given a finished job that has lost a table
    run_job(shell.folder / "out", JOB)
    (shell.folder / "out" / name).unlink()
    # When it is exported; Then the table is named, with what brings it back
    done = shell("vnp", "export", "out", "--to", "parquet")
    refused(done, 74, f"{name} is missing", "vnp verify --repair out")


# -- vnp list, vnp status --------------------------------------------------------------------------


def test_one_bad_job_hides_no_other(shell: Shell, store: JobStore) -> None:
    # Given a sound job, one with a damaged manifest, one of another version, one that is no JSON
    for job in ("a1", "b2"):
        run_job(shell.folder / job, JOB, id=job)
        submitted(store, job, shell.folder / job, state="finished")
    flip(shell.folder / "b2" / "manifest.jsonl")
    (store.folder / "c3.json").write_text('{"inputs": [], "identity": {"quantum": 1}}')
    (store.folder / "d4.json").write_text('{"inputs": [], "identity": "')
    # When jobs are listed; Then all are there, and the bad ones say why
    done = shell("vnp", "list", "--json")
    assert done.returncode == 0, done.stderr
    views = {view["id"]: view for view in json.loads(done.stdout)}
    assert list(views) == ["a1", "b2", "c3", "d4"]
    assert (views["a1"]["state"], views["a1"]["message"]) == ("finished", "")
    assert views["b2"]["state"] == "finished"
    assert "manifest.jsonl is damaged at byte" in views["b2"]["message"]
    assert "another version of vnp (" in views["c3"]["message"]
    assert "d4.json is damaged" in views["d4"]["message"]
    # And so in words, with the reasons apart from the list
    done = shell("vnp", "list")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["id", *views]
    assert [line.split()[:2] for line in done.stderr.splitlines()] == [
        ["vnp:", f"{job}:"] for job in ("b2", "c3", "d4")
    ]
    # And in the service's status, and one by one; and a filter passes over what it cannot read
    done = shell("vnp", "status", "--json")
    assert done.returncode == 0, done.stderr
    assert [view["id"] for view in json.loads(done.stdout)["jobs"]] == ["c3", "d4"]
    assert "is damaged at byte" in shell("vnp", "status", "b2").stdout
    done = shell("vnp", "list", "--json", "--state", "finished")
    assert [view["id"] for view in json.loads(done.stdout)] == ["a1", "b2"]


# -- vnp results ID --------------------------------------------------------------------------------


def test_results_of_a_forced_job_that_waits(shell: Shell, store: JobStore) -> None:
    # Given a finished job, and the same submitted again with --force
    out = shell.folder / "out"
    run_job(out, JOB)
    submitted(store, "job1", out, state="finished")
    submitted(store, "job2", out, force=True)
    # Then the first has results, and the second has none yet, whole or partial, planned or not
    table = (out / "sequences.tsv").read_text()
    assert shell("vnp", "results", "job1").stdout == table
    for _ in range(2):
        refused(shell("vnp", "results", "job2"), 66, "job2 has not finished", "--partial job2")
        refused(shell("vnp", "results", "--partial", "job2"), 66, "job2 has not begun")
        store.set_plan("job2", PLAN)
    # And the folder itself is what it is
    assert shell("vnp", "results", "out").stdout == table


@pytest.mark.parametrize("what", ["models", "input"])
def test_results_that_another_job_has_replaced(shell: Shell, store: JobStore, what: str) -> None:
    # Given a finished job whose folder a later one has taken, with other models or another input
    out = shell.folder / "out"
    submitted(store, "job1", out, state="finished")
    models = replace(IDENTITY, esm2="sha256:" + "f" * 64) if what == "models" else IDENTITY
    plan = make_plan(JOB, digest="sha256:9999") if what == "input" else PLAN
    output = Output.open(out, make_spec(out, id="job2", identity=models), plan)
    for shard, records in enumerate(JOB):
        output.commit(gathered(make_account(shard, records, models)))
    output.finish(lambda: read_records(JOB))
    output.close()
    # Then its id leads to nothing, in any form; and the folder to the later one's results
    for command in ("results", "results --partial", "report", "export --to parquet"):
        done = shell("vnp", *command.split(), "job1")
        refused(done, 66, "out holds results of job2 by now", "submit job1's inputs again")
    assert shell("vnp", "results", "out").returncode == 0


def test_results_of_the_same_job_again(shell: Shell, store: JobStore) -> None:
    # Given a cancelled job, which was submitted again and has finished; Then both have results
    out = shell.folder / "out"
    run_job(out, JOB, id="job2")
    submitted(store, "job1", out, state="cancelled")
    submitted(store, "job2", out, state="finished")
    table = (out / "sequences.tsv").read_text()
    assert [shell("vnp", "results", job).stdout for job in ("job1", "job2")] == [table, table]


def test_partial_results_by_id(shell: Shell, store: JobStore) -> None:
    # Given a job with its first shard committed; Then its first records are there
    output = open_job(shell.folder / "out")
    commit(output, 0)
    output.close()
    store.create(make_spec(shell.folder / "out"))
    store.set_plan("job1", PLAN)
    store.set_open("job1", 1)
    done = shell("vnp", "results", "--partial", "job1")
    assert (done.returncode, done.stderr) == (0, "vnp: 3 of 8 records\n")
    refused(shell("vnp", "results", "job1"), 66, "job1 has not finished")


def test_results_that_are_gone(shell: Shell, store: JobStore) -> None:
    submitted(store, "job1", shell.folder / "out", state="finished")
    refused(shell("vnp", "results", "job1"), 66, "of job1 are gone from", "submit it again")

"""Job files: accepted durably, ended once, found again; the only memory of the service."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from ops.errors import CorruptionError, OutputError, UsageError
from ops.jobs import InputFile, JobSpec, JobStore, Look, Outcome, Plan, new_job_id
from ops.output import Output
from ops.runfile import find_same
from tests.unit.output_fixtures import (
    IDENTITY,
    JOB,
    make_plan,
    make_spec,
    read_records,
    run_job,
)


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path / "state")


def spec_of(job: str, out: str = "/out", **options: object) -> JobSpec:
    return replace(make_spec(Path(out)), id=job, **options)  # type: ignore[arg-type]


def test_ids_are_short_sort_by_time_and_differ() -> None:
    ids = [new_job_id(1_700_000_000_000 + ms) for ms in (0, 1, 31, 32, 86_400_000, 10**11)]
    assert ids == sorted(ids)
    assert all(re.fullmatch("[0-9a-z]{12}", job) for job in ids)
    # 32,768 ids a millisecond: 20 drawn at once collide in fewer than 1 of 100 cases
    assert len({new_job_id(1) for _ in range(20)}) >= 19


def test_life_of_a_job(store: JobStore) -> None:
    # Given a job that was submitted
    job = store.create(spec_of("a1", force=True, priority=3))
    assert store.spec(job) == spec_of("a1", force=True, priority=3, created=store.spec(job).created)
    assert (store.state(job), store.unfinished(), store.running()) == ("queued", ["a1"], [])
    assert store.plan_or_none(job) is None
    # When it is planned
    plan = replace(make_plan(JOB), huge_lengths={3: 2**33, 7: 5})
    store.set_plan(job, plan)
    assert store.plan(job) == plan
    assert (store.state(job), store.running()) == ("planning", ["a1"])
    # And a writer adopts it
    assert store.opened(job) is None
    store.set_open(job, 2)
    assert (store.state(job), store.opened(job)) == ("running", 2)
    # And it ends
    assert store.set_outcome(job, Outcome("finished", 0, "8 records"))
    assert (store.state(job), store.unfinished(), store.running()) == ("finished", [], [])
    # Then the first outcome stands
    assert not store.set_outcome(job, Outcome("cancelled", 130, "too late"))
    outcome = store.outcome(job)
    assert outcome is not None
    assert (outcome.state, outcome.exit_code, outcome.message) == ("finished", 0, "8 records")
    assert store.list() == ["a1"]


def test_everything_survives_the_process(store: JobStore) -> None:
    store.create(spec_of("a1"))
    store.set_plan("a1", make_plan(JOB))
    store.cancel("a1")
    again = JobStore(store.folder.parent)
    assert again.spec("a1") == store.spec("a1")
    assert again.plan("a1") == make_plan(JOB)
    assert again.is_cancelled("a1")


def test_cancel(store: JobStore) -> None:
    store.create(spec_of("a1"))
    assert not store.is_cancelled("a1")
    store.cancel("a1")
    assert store.is_cancelled("a1")
    assert store.state("a1") == "cancelled"
    # The planner still has to end it
    assert store.unfinished() == ["a1"]
    # A job that has ended is left alone
    store.create(spec_of("a2"))
    store.set_outcome("a2", Outcome("failed", 65, "no FASTA"))
    store.cancel("a2")
    assert not store.is_cancelled("a2")


def test_one_look_shows_all(store: JobStore) -> None:
    # Given no folder; Then there is nothing to see, which is not the same as no jobs
    assert store.look() is None
    # Given jobs in all states; Then a look shows what the files say one by one
    for job in ("d4", "c3", "b2", "a1"):
        store.create(spec_of(job))
    store.set_plan("b2", make_plan(JOB))
    store.set_open("b2", 1)
    store.cancel("c3")
    store.set_outcome("d4", Outcome("finished", 0, ""))
    look = store.look()
    assert look == Look(["a1", "b2", "c3"], frozenset({"c3"}), frozenset({"b2"}))
    assert look.unfinished == store.unfinished()


@pytest.mark.parametrize("job", ["nope", "", "../../etc/passwd", "a/b", "a.plan"])
def test_unknown_jobs(store: JobStore, job: str) -> None:
    for ask in (store.spec, store.state, store.cancel):
        with pytest.raises(UsageError, match="`vnp list`"):
            ask(job)


def test_jobs_are_listed_oldest_first_and_nothing_else_is(store: JobStore) -> None:
    assert store.list() == []
    for job in ("b2", "a1", "c3"):
        store.create(spec_of(job))
        store.set_plan(job, make_plan(JOB))
    (store.folder / ".d4.json.tmp-7").write_bytes(b"{")
    assert store.list() == ["a1", "b2", "c3"]
    assert store.unfinished() == ["a1", "b2", "c3"]


def test_id_is_taken_once(store: JobStore) -> None:
    store.create(spec_of("a1"))
    with pytest.raises(UsageError, match="exists already"):
        store.create(spec_of("a1"))


def test_state_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot be written"):
        JobStore(tmp_path / "file").create(spec_of("a1"))


def test_damaged_file_is_named(store: JobStore) -> None:
    store.create(spec_of("a1"))
    (store.folder / "a1.plan.json").write_bytes(b'{"records": 1}')
    with pytest.raises(CorruptionError, match=r"a1\.plan\.json is damaged"):
        store.plan_or_none("a1")
    (store.folder / "a1.json").write_bytes(b"{")
    with pytest.raises(CorruptionError, match=r"a1\.json is damaged"):
        store.spec("a1")


SAME = [
    {"priority": 5},
    {"force": True},
    {"user": "somebody"},
    {"created": "2030-01-01T00:00:00.000Z"},
    {"identity": replace(IDENTITY, esm2_name="renamed")},
]
DIFFERENT = [
    {"inputs": (InputFile("/data/in.fa", 10, 21),)},
    {"inputs": (InputFile("/data/in.fa", 11, 20),)},
    {"inputs": (InputFile("/data/other.fa", 10, 20),)},
    {"inputs": ()},
    {"identity": replace(IDENTITY, chunk_length=500)},
    {"embeddings": True},
    {"compat": True},
    {"out": "/elsewhere"},
]


@pytest.mark.parametrize("change", SAME)
def test_same_question_finds_the_old_job(store: JobStore, change: dict[str, object]) -> None:
    store.create(spec_of("a1"))
    assert find_same(store, replace(spec_of("b2"), **change)) == "a1"  # type: ignore[arg-type]


@pytest.mark.parametrize("change", DIFFERENT)
def test_other_question_is_another_job(store: JobStore, change: dict[str, object]) -> None:
    store.create(spec_of("a1"))
    assert find_same(store, replace(spec_of("b2"), **change)) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("state", "found"), [("finished", "a1"), ("failed", None), ("cancelled", None)]
)
def test_job_that_came_to_nothing_is_done_again(
    store: JobStore, tmp_path: Path, state: str, found: str | None
) -> None:
    run_job(tmp_path / "out", JOB, id="a1")
    store.create(spec_of("a1", str(tmp_path / "out")))
    store.set_outcome("a1", Outcome(state, 0, ""))
    assert find_same(store, spec_of("b2", str(tmp_path / "out"))) == found
    # And so is one whose files are gone
    (tmp_path / "out" / "run.json").unlink()
    assert find_same(store, spec_of("b2", str(tmp_path / "out"))) is None


@pytest.mark.parametrize(
    "change", [{"identity": replace(IDENTITY, chunk_length=500)}, {"compat": True}]
)
def test_job_whose_files_were_replaced_is_done_again(
    store: JobStore, tmp_path: Path, change: dict[str, object]
) -> None:
    # Given a finished job, whose folder another has replaced without a word here
    out = tmp_path / "out"
    store.create(spec_of("a1", str(out)))
    store.set_outcome("a1", Outcome("finished", 0, ""))
    output = Output.open(out, make_spec(out, id="b2", **change), make_plan([]))
    # Then the first is to be done again, while the other is at work and when it has finished
    assert find_same(store, spec_of("c3", str(out))) is None
    output.finish(lambda: read_records([]))
    output.close()
    assert find_same(store, spec_of("c3", str(out))) is None


def test_later_job_for_the_same_folder_hides_the_earlier_one(store: JobStore) -> None:
    store.create(spec_of("a1"))
    store.create(spec_of("b2", embeddings=True))
    assert find_same(store, spec_of("c3")) is None
    assert find_same(store, spec_of("c3", embeddings=True)) == "b2"


def test_job_of_another_version_hinders_nobody(store: JobStore) -> None:
    store.create(spec_of("a1"))
    (store.folder / "b2.json").write_text('{"inputs": [], "identity": {"quantum": 1}}')
    (store.folder / "c3.json").write_text("{}")
    assert find_same(store, spec_of("d4")) == "a1"


def test_plan_round_trip() -> None:
    plan = Plan(records=1, letters=2, chunks=3, shards=4, input_digest="d", huge_lengths={5: 6})
    assert Plan.from_dict(plan.to_dict()) == plan


def test_embeddings_belong_to_protein_and_dna_jobs() -> None:
    assert not spec_of("a1").keeps_embeddings
    assert spec_of("a1", embeddings=True).keeps_embeddings
    assert spec_of("a1", identity=replace(IDENTITY, pipeline="dna")).keeps_embeddings

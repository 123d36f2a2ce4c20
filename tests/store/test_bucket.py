"""The output in a store: a numbered line put on a condition is the commit, and the fence."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from obstore.store import LocalStore

from ops import bucket as bucket_module
from ops import output as output_module
from ops.bucket import Bucket, record
from ops.bucket_tail import BucketTail
from ops.errors import (
    ConfigError,
    CorruptionError,
    FencedError,
    IdentityError,
    OutputError,
    StoreError,
)
from ops.export import export
from ops.files import DERIVED
from ops.manifest import ShardLine, encode_line
from ops.output import Output
from ops.partial import write_partial
from ops.place import absolute, is_remote, place_of
from ops.report import gather_report
from ops.runfile import is_finished, read_run
from ops.verify import verify_output
from tests.store.s3 import (
    BUCKET,
    BUSY,
    CONFLICT,
    LOST,
    PASSED,
    REPLY_LOST,
    UNCONDITIONAL,
    Proxy,
    nth,
    promised,
)
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
)

WIDTH = 3


def make_line(shard: int, epoch: int) -> ShardLine:
    """That a shard of no rows is committed."""
    file = f"shards/shard-{shard:06d}-{epoch:05d}.h5"
    nothing = {"rows": 0, "records": 0, "chunks": 0, "bytes": 0, "numerics": ()}
    return ShardLine(shard=shard, file=file, sha256="", epoch=epoch, **nothing)


def run_job(out: Any, width: int = 0, check: Any = lambda: None, **options: Any) -> None:
    """Commits what is missing of JOB, and finishes it."""
    output = Output.open(out, make_spec(out, **options), PLAN, check=check)
    for shard, records in enumerate(JOB):
        if shard not in output.committed:
            output.commit(gathered(make_account(shard, records), width))
    output.finish(lambda: read_records(JOB))
    output.close()


@pytest.fixture
def in_a_folder(tmp_path: Path) -> dict[str, str]:
    run_job(tmp_path / "folder", compat=True)
    return promised(tmp_path / "folder")


@pytest.fixture
def without_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a request which is lost is an error at once."""
    monkeypatch.setattr(bucket_module, "RETRIES", 0)


def test_same_bytes_as_in_a_folder(store: Proxy, out: str, in_a_folder: dict[str, str]) -> None:
    run_job(out, compat=True)
    assert promised(out) == in_a_folder
    report = verify_output(out)
    assert (report.problems, report.shards, report.finished) == ([], len(JOB), True)
    run = read_run(place_of(out))
    assert run is not None
    assert (run["state"], run["records"]) == ("finished", PLAN.records)
    assert is_finished(make_spec(out, compat=True))
    assert not is_finished(make_spec(out, identity=replace(IDENTITY, chunk_length=500)))


def test_names_of_outputs() -> None:
    assert [is_remote(name) for name in ("s3://b/p", "gs://b", "az://c/p/q")] == [True] * 3
    assert [is_remote(name) for name in ("s3:/b/p", "http://b/p", "/s3://b", "s3://")] == [
        False
    ] * 4
    assert absolute("s3://b/p//") == "s3://b/p"


def test_interrupted_job_goes_on(store: Proxy, out: str, in_a_folder: dict[str, str]) -> None:
    # Given a job of which two shards are committed, and a third is put but not committed
    first = open_job(out, compat=True)
    commit(first, 0, 2)
    stray = Bucket(out)
    stray.write("shards/shard-000001-00001.h5", b"half a shard")
    # When it is opened again, without a word of the first writer
    second = open_job(out, compat=True)
    assert second.committed == {0, 2}
    commit(second, 1, 3)
    second.finish(lambda: read_records(JOB))
    # Then the same bytes come out, and what no line names is gone
    assert promised(out) == in_a_folder
    files = {line.file for line in place_of(out).manifest().shards.values()}
    assert set(stray.listing("shards")) == files
    assert place_of(out).manifest().epoch == 2


def test_partial_results_of_a_running_job(store: Proxy, out: str, tmp_path: Path) -> None:
    output = open_job(out)
    commit(output, 0, 2)
    with (tmp_path / "rows").open("wb") as rows:
        assert write_partial(place_of(out), rows) == (3, PLAN.records)


def test_newer_writer_fences_the_older_off(store: Proxy, out: str) -> None:
    zombie = open_job(out)
    commit(zombie, 0)
    successor = open_job(out)
    # When the older one wakes, then it cannot commit, and knows
    with pytest.raises(FencedError, match="newer writer"):
        commit(zombie, 1)
    assert 1 not in zombie.committed
    # And what it has put is in nobody's way
    commit(successor, 1, 2, 3)
    successor.finish(lambda: read_records(JOB))
    assert verify_output(out).ok


def test_writer_of_another_job_ends_this_one(store: Proxy, out: str) -> None:
    first = open_job(out)
    other = open_job(out, id="job2")
    with pytest.raises(OutputError, match="taken over by job job2") as caught:
        commit(first, 0)
    assert not caught.value.may_pass
    commit(other, 0)


def test_two_writers_that_begin_at_the_same_moment(store: Proxy, out: str) -> None:
    # Given a writer that begins while another one is between its reading and its first line
    rivals: list[Output] = []

    def rival(method: str, path: str) -> str:
        if method == "PUT" and path.endswith(record(0)) and not rivals:
            store.fate = lambda method, path: PASSED
            rivals.append(open_job(out))
            commit(rivals[0], 0)
        return PASSED

    store.fate = rival
    output = open_job(out)
    # Then the second takes over what the first has begun, in an epoch of its own
    assert output.committed == {0}
    assert [epoch.epoch for epoch in place_of(out).manifest().epochs] == [1, 2]
    with pytest.raises(FencedError):
        commit(rivals[0], 1)


def during(store: Proxy, method: str, name: str, act: Callable[[], object]) -> None:
    """Does something at the moment when the first request of a name arrives, before it is let
    through: what happens to a writer whose request was under way for long."""
    done: list[bool] = []

    def fate(asked: str, path: str) -> str:
        if asked == method and name in path and not done:
            done.append(True)
            act()
        return PASSED

    store.fate = fate


def test_job_is_not_mixed_with_one_that_begins_anew_at_the_same_moment(
    store: Proxy, out: str
) -> None:
    # Given a job that has found its own header, and at that moment one of another input is forced
    plan = make_plan(JOB, digest="sha256:other")
    other: list[Output] = []

    def begin_other() -> None:
        other.append(Output.open(out, make_spec(out, id="job2"), plan, force=True))
        commit(other[0], 0)

    during(store, "PUT", record(1), begin_other)
    # Then the first one takes nothing over that is not its own, and the other one goes on
    with pytest.raises(OutputError, match="begun anew"):
        open_job(out)
    commit(other[0], 1, 2, 3)
    assert {epoch.job for epoch in place_of(out).manifest().epochs} == {"job2"}


@pytest.mark.parametrize(
    ("method", "name"), [("GET", "list-type=2"), ("GET", record(0)), ("PUT", record(0))]
)
def test_writer_that_was_to_begin_anew_and_wakes_late(
    store: Proxy, out: str, in_a_folder: dict[str, str], method: str, name: str
) -> None:
    # Given the writer of a forced job that stood still until its successor had done all of it
    def overtake() -> None:
        output = Output.open(out, make_spec(out, compat=True), PLAN, force=True)
        commit(output, 0, 1, 2, 3)
        output.finish(lambda: read_records(JOB))

    during(store, method, name, overtake)
    # Then it finds its own job's results, and leaves them
    late = Output.open(out, make_spec(out, compat=True), PLAN, force=True)
    assert late.committed == {0, 1, 2, 3}
    assert promised(out) == in_a_folder


def test_writer_that_wakes_late_does_not_write_over_a_finished_run(store: Proxy, out: str) -> None:
    # Given a writer that checks the shards, and a successor that finishes the job meanwhile
    commit(open_job(out), 0)
    asked: list[bool] = []

    def overtake() -> None:
        if not asked:
            asked.append(True)
            run_job(out)

    # Then it is told that it is late, and what the run says of itself stays
    with pytest.raises(FencedError):
        Output.open(out, make_spec(out), PLAN, check=overtake)
    run = read_run(place_of(out))
    assert run is not None
    assert run["state"] == "finished"


@pytest.mark.parametrize("fate", [LOST, REPLY_LOST, BUSY])
def test_requests_that_fail_are_sent_again(
    store: Proxy, out: str, in_a_folder: dict[str, str], fate: str
) -> None:
    # Given a network that spoils every third request
    count = [0]

    def spoil(method: str, path: str) -> str:
        count[0] += 1
        return fate if count[0] % 3 == 0 else PASSED

    store.fate = spoil
    run_job(out, compat=True)
    store.fate = lambda method, path: PASSED
    # Then nothing is committed twice, and nothing lost
    assert promised(out) == in_a_folder
    state = place_of(out).manifest()
    assert len(state.epochs) == 1
    assert len(Bucket(out).listing("manifest")) == 1 + 1 + len(JOB)


def cut_short(place: str) -> bool:
    """True when a run ended by an error of the store, which may pass."""
    try:
        run_job(place, compat=True)
    except StoreError as error:
        return error.may_pass
    return False


@pytest.mark.parametrize("fate", [LOST, REPLY_LOST])
def test_job_that_is_cut_at_every_request(
    store: Proxy,
    out: str,
    in_a_folder: dict[str, str],
    without_retries: None,
    fate: str,
) -> None:
    """At each request that changes something the writer ends, and another one goes on."""
    for number in range(10_000):
        place = f"{out}-{number}"
        store.fate = nth(number, fate)
        if not cut_short(place):
            break  # it has had fewer requests than that
        store.fate = lambda method, path: PASSED
        run_job(place, compat=True)
        assert promised(place) == in_a_folder, number
        assert verify_output(place).ok, number
    assert number >= 2 * len(JOB) + len(DERIVED) + len(("header", "epoch", "run.json", "run.json"))


def test_commit_whose_reply_was_lost_is_repeated_as_one(
    store: Proxy, out: str, without_retries: None
) -> None:
    # Given a line that the store has, though its writer does not know
    output = open_job(out)
    store.fate = nth(1, REPLY_LOST)  # the shard, then its line
    with pytest.raises(StoreError):
        commit(output, 0)
    assert 0 not in output.committed
    # When the writer tries again, then it finds its own line
    store.fate = lambda method, path: PASSED
    commit(output, 0)
    assert output.committed == {0}
    assert len(Bucket(out).listing("manifest")) == 3


def test_store_that_ignores_the_condition_is_refused(store: Proxy, out: str) -> None:
    store.fate = lambda method, path: UNCONDITIONAL
    with pytest.raises(OutputError, match="ignores the condition If-None-Match") as caught:
        open_job(out)
    assert not caught.value.may_pass
    # And nothing is left of the try
    assert Bucket(out).listing() == {}


def test_another_job_is_refused_and_force_begins_anew(store: Proxy, out: str) -> None:
    run_job(out, compat=True)
    before = place_of(out).manifest()
    other = replace(IDENTITY, chunk_length=500)
    with pytest.raises(IdentityError, match=r"chunk.length 300, not 500"):
        Output.open(out, make_spec(out, identity=other), PLAN)
    assert promised(out)  # untouched
    # When it is forced, then results of before are gone, and the line of numbers goes on
    output = Output.open(out, make_spec(out, id="job2"), PLAN, force=True)
    assert output.committed == set()
    assert output.epoch == before.epoch + 1
    assert place_of(out).sizes(["sequences.tsv"]) == {"sequences.tsv": -1}
    commit(output, 0, 1, 2, 3)
    output.finish(lambda: read_records(JOB))
    assert verify_output(out).ok
    assert len(Bucket(out).listing("shards")) == len(JOB)


def test_prefix_with_files_of_somebody_else(store: Proxy, out: str) -> None:
    Bucket(out).write("run.json", b"mine")
    with pytest.raises(OutputError, match="so it is no output of vnp"):
        open_job(out)
    assert Bucket(out).read("run.json") == b"mine"


def test_files_of_others_among_ours(store: Proxy, out: str) -> None:
    """Folder markers of a console, a nested output, what a tool has left."""
    strangers = ["shards", "shards/notes.txt", "shards/shards/shard-000000-00001.h5", "manifest/x"]
    for name in strangers:
        Bucket(out).write(name, b"not ours")
    run_job(out)
    assert verify_output(out).ok
    assert Bucket(out).listing().keys() >= set(strangers)


@pytest.mark.parametrize("tail", ["a#1", "a?b", "a%20b", "a/../b", "a/./b", "a//b"])
def test_prefix_that_urls_read_as_another_one(store: Proxy, tail: str) -> None:
    with pytest.raises(ConfigError, match="cannot be used"):
        Bucket(f"s3://bucket/{tail}")


@pytest.mark.parametrize("name", ["", "/", "/a b", "/a+b&c=d", "/\u00fc/x"])
def test_prefix_of_any_other_letters(store: Proxy, name: str) -> None:
    place = Bucket(f"s3://{BUCKET}{name}")
    place.write("odd.txt", b"x")
    assert "odd.txt" in place.listing()
    assert place.read("odd.txt") == b"x"
    place.delete(["odd.txt"])


def test_deleting_twice_on_a_store_that_minds(
    store: Proxy, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a request that is sent again after its reply was lost, on Google's and Azure's stores."""
    place = Bucket(out)
    monkeypatch.setattr(place, "_store", LocalStore(tmp_path))
    # Given more objects than are removed at once, and one before them that is gone already
    names = [f"there-{number:02d}" for number in range(40)]
    for name in names:
        place.write(name, b"x")
    # When all are removed; Then none is left
    place.delete(["gone", *names])
    assert place.listing() == {}


def test_two_requests_at_once_for_a_line_are_tried_again(store: Proxy, out: str) -> None:
    # Given a store that answers 409 while another request for the same name is under way
    output = open_job(out)
    store.fate = nth(1, CONFLICT)  # the shard, then its line
    with pytest.raises(StoreError, match="at the same time") as caught:
        commit(output, 0)
    assert caught.value.may_pass
    commit(output, 0)
    assert place_of(out).manifest().shards.keys() == {0}


@pytest.mark.parametrize("damage", ["gone", "cut", "flipped"])
def test_damaged_shard_is_found(store: Proxy, out: str, damage: str) -> None:
    run_job(out)
    place = Bucket(out)
    [line] = [line for line in place.manifest().shards.values() if line.shard == 2]
    data = bytearray(place.read(line.file))
    if damage == "gone":
        place.delete([line.file])
    elif damage == "cut":
        place.write(line.file, bytes(data[:-1]))
    else:
        data[len(data) // 2] ^= 1
        place.write(line.file, bytes(data))
    # When it is verified, then the shard is named
    report = verify_output(out)
    assert report.bad_shards == [2]
    assert place.path(line.file) in report.problems[0]
    # And what its size tells, an opening tells too
    if damage != "flipped":
        with pytest.raises(CorruptionError, match="missing or damaged"):
            open_job(out)


@pytest.mark.parametrize("damage", ["gone", "flipped"])
def test_damaged_line_is_found(store: Proxy, out: str, damage: str) -> None:
    commit(open_job(out), 0, 1)
    place = Bucket(out)
    data = bytearray(place.read(record(2)))
    data[10] ^= 1
    place.delete([record(2)])
    if damage == "flipped":
        place.write(record(2), bytes(data))
    with pytest.raises(CorruptionError, match=record(2)):
        place.manifest()


def test_opened_job_whose_prefix_is_gone_waits(store: Proxy, out: str) -> None:
    with pytest.raises(OutputError, match="is gone") as caught:
        Output.open(out, make_spec(out), PLAN, again=True)
    assert caught.value.may_pass
    assert Bucket(out).listing() == {}


def test_tail_sees_what_counts(store: Proxy, out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BucketTail, "EVERY_S", 0.0)
    monkeypatch.setattr(BucketTail, "AWAY_S", 0.0)
    tail = place_of(out).tail()
    assert tail.poll() == []  # nothing there yet
    first = open_job(out)
    commit(first, 0)
    assert [line.shard for line in tail.poll()] == [0]
    successor = open_job(out)
    with pytest.raises(FencedError):
        commit(first, 1)
    commit(successor, 3)
    assert [line.shard for line in tail.poll()] == [3]
    assert tail.committed == {0, 3}
    # When the store is away, then nothing is new; and a forced job begins anew
    store.fate = lambda method, path: LOST
    assert tail.poll() == []
    store.fate = lambda method, path: PASSED
    Output.open(out, make_spec(out, id="job2"), PLAN, force=True)
    assert tail.poll() == []
    assert tail.committed == set()
    # And who looks only now counts nothing of before either
    assert place_of(out).tail().poll() == []


def test_tail_says_up_to_when_it_knows(store: Proxy, out: str) -> None:
    tail = place_of(out).tail()
    commit(open_job(out), 0)
    # Given a store that is away, then what is not seen may be there all the same
    store.fate = lambda method, path: LOST
    asked = time.monotonic()
    assert tail.poll() == []
    assert tail.known_until < asked
    # And nobody else asks it for a while, however many jobs there are
    store.fate = lambda method, path: PASSED
    assert place_of(out).tail().poll(at_once=True) == []


def test_tail_is_asked_at_once(store: Proxy, out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BucketTail, "EVERY_S", 600.0)
    output = open_job(out)
    tail = place_of(out).tail()
    assert tail.poll() == []
    commit(output, 0)
    asked = time.monotonic()
    assert tail.poll() == []  # it has just looked
    assert tail.known_until < asked
    assert [line.shard for line in tail.poll(at_once=True)] == [0]
    assert tail.known_until >= asked


def test_long_manifest_is_followed_in_slices(store: Proxy, out: str) -> None:
    # Given a manifest of many lines, and a store that takes its time
    output = open_job(out)
    number = 2
    for shard in range(60):
        line = make_line(shard, output.epoch)
        Bucket(out).write(record(number + shard), encode_line(line))
    store.fate = lambda method, path: time.sleep(0.2) or PASSED
    tail = place_of(out).tail(slice_s=0.4)
    began = time.monotonic()
    seen = tail.poll()
    # Then one look is short, and says that it has not seen the end
    assert time.monotonic() - began < 3
    assert 0 < len(seen) < 60
    assert tail.known_until == 0
    # And further ones see all of it, many lines at a time
    looks = 0
    while not tail.known_until:
        seen += tail.poll()
        looks += 1
    assert [line.shard for line in seen] == list(range(60))
    assert looks < 20


def test_exports_and_report_are_those_of_a_folder(store: Proxy, out: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for place in (out, folder):
        run_job(place, WIDTH, embeddings=True)
    for form in ("npy", "parquet", "h5-per-id"):
        ours = export(out, form, tmp_path / f"ours-{form}")
        theirs = export(folder, form, tmp_path / f"theirs-{form}")
        assert [a.name for a in ours] == [b.name for b in theirs]
        if form == "npy":
            assert [a.read_bytes() for a in ours] == [b.read_bytes() for b in theirs]
    ours_report, theirs_report = gather_report(out), gather_report(folder)
    assert (ours_report.records, ours_report.tracks) == (
        theirs_report.records,
        theirs_report.tracks,
    )
    assert ours_report.progress[-1][1] == theirs_report.progress[-1][1]


def test_scratch_holds_one_shard_and_is_empty_afterwards(
    store: Proxy, out: str, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    run_job(out)
    place = Bucket(out, scratch)
    largest = 0
    for line in place.manifest().shards.values():
        with place.local(line.file) as path:
            assert path.stat().st_size == line.bytes
            largest = max(largest, sum(1 for file in scratch.rglob("*") if file.is_file()))
    assert largest == 1
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("ahead", range(1, PLAN.shards))
def test_tables_written_ahead_are_the_same(
    store: Proxy,
    out: str,
    tmp_path: Path,
    in_a_folder: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    ahead: int,
) -> None:
    # Given a job of which some shards are in its tables
    monkeypatch.setattr(output_module, "AHEAD_FROM", 2)
    scratch = tmp_path / "scratch"
    output = Output.open(out, make_spec(out, compat=True), PLAN, scratch=scratch)
    commit(output, *range(ahead))
    output.write_ahead(lambda: read_records(JOB))
    assert output.shards_ahead == ahead
    # Then nothing of them is in the store
    assert set(promised(out)) == {f"shard {number}" for number in range(ahead)}
    # And when it is finished, the same bytes are, each other shard is fetched, and none left here
    commit(output, *range(ahead, PLAN.shards))
    fetched: set[str] = set()

    def watch(method: str, path: str) -> str:
        if method == "GET" and ".h5" in path:
            fetched.add(path)
        return PASSED

    store.fate = watch
    output.finish(lambda: read_records(JOB))
    output.close()
    assert len(fetched) == PLAN.shards - ahead
    assert promised(out) == in_a_folder
    assert list(scratch.iterdir()) == []


def test_bucket_that_does_not_exist(store: Proxy) -> None:
    with pytest.raises(OutputError, match=r"s3://nobody/here.*NoSuchBucket|s3://nobody/here"):
        open_job("s3://nobody/here")  # type: ignore[arg-type]


def test_store_that_does_not_answer(
    store: Proxy, without_retries: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(StoreError, match="s3://bucket/here") as caught:
        open_job("s3://bucket/here")  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_credentials_that_are_missing_are_named(
    store: Proxy, without_retries: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(StoreError, match="no credentials: set AWS_ACCESS_KEY_ID"):
        open_job("s3://bucket/here")  # type: ignore[arg-type]


def test_library_that_is_missing_is_named() -> None:
    code = (
        "import sys; sys.modules['obstore'] = None\n"
        "from ops.errors import ConfigError\nfrom ops.place import place_of\n"
        "try: place_of('s3://bucket/here')\nexcept ConfigError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'vnp[object-store]'" in done.stdout, done.stderr


def test_commits_side_by_side(store: Proxy, out: str, in_a_folder: dict[str, str]) -> None:
    # Given a store that takes its time, and threads that commit all shards at once
    def slowly(method: str, path: str) -> str:
        time.sleep(0.05)
        return PASSED

    output = open_job(out, compat=True)
    store.fate = slowly
    with ThreadPoolExecutor(len(JOB)) as pool:
        list(pool.map(lambda shard: commit(output, shard), range(len(JOB))))
    store.fate = lambda method, path: PASSED
    # Then each has a line, and the bytes are those of one after the other
    output.finish(lambda: read_records(JOB))
    assert len(Bucket(out).listing("manifest")) == 2 + len(JOB)
    assert promised(out) == in_a_folder

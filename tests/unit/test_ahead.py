"""Tables written ahead: the same bytes, whenever it began, ended or failed."""

from __future__ import annotations

import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ops import output as output_module
from ops.errors import CorruptionError, DataError, OutputError, VnpError
from ops.output import Output
from ops.verify import verify_output
from tests.unit.output_fixtures import (
    JOB,
    PLAN,
    Piece,
    Record,
    commit,
    gathered,
    kill_once_it_says,
    make_account,
    make_plan,
    make_spec,
    open_job,
    read_records,
    run_job,
)
from tests.unit.test_output import files_of


def read() -> Iterator[Piece]:
    return read_records(JOB)


@pytest.fixture(autouse=True)
def ahead_from_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of so few shards count as large."""
    monkeypatch.setattr(output_module, "AHEAD_FROM", 2)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a job gives whose tables are all written at the end."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run_job(out, JOB, compat=True)
    return files_of(out)


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def temporary(out: Path) -> list[str]:
    return sorted(path.name.rpartition(".tmp-")[0] for path in out.glob("**/.*tmp*"))


@pytest.mark.parametrize("written_after", range(1, PLAN.shards))
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (1, 0, 3, 2), (3, 1, 0, 2), (3, 2, 1, 0)])
def test_same_bytes_whenever_it_begins(
    tmp_path: Path, undisturbed: dict[str, bytes], order: tuple[int, ...], written_after: int
) -> None:
    # Given a job whose shards are committed in some order
    output = open_job(tmp_path, compat=True)
    for count, shard in enumerate(order, 1):
        commit(output, shard)
        # When tables are written ahead whenever they can be, after some commit
        if count >= written_after and output.can_write_ahead:
            output.write_ahead(read)
            # Then they have caught up, and nothing of them is to be seen
            assert not output.can_write_ahead
            assert output.shards_ahead not in output.committed
            shards = {f"shards/shard-{number:06d}.h5" for number in output.committed}
            assert {name for name in files_of(tmp_path) if ".tmp-" not in name} == shards
    # And the end gives the bytes that it always gives, and nothing else is left
    output.finish(read)
    output.close()
    assert files_of(tmp_path) == undisturbed
    assert temporary(tmp_path) == []
    assert verify_output(tmp_path).ok


def test_small_jobs_are_written_at_their_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_module, "AHEAD_FROM", PLAN.shards + 1)
    output = open_job(tmp_path)
    commit(output, 0)
    assert not output.can_write_ahead
    output.close()


def test_nothing_is_ahead_of_a_gap_or_of_the_end(tmp_path: Path) -> None:
    output = open_job(tmp_path)
    assert not output.can_write_ahead
    commit(output, 1, 2)
    assert not output.can_write_ahead
    commit(output, 0)
    assert output.can_write_ahead
    commit(output, 3)
    assert not output.can_write_ahead
    output.close()


def test_output_that_is_closed_has_no_temporary_files(tmp_path: Path) -> None:
    output = open_job(tmp_path, compat=True)
    commit(output, 0, 1)
    output.write_ahead(read)
    assert len(temporary(tmp_path)) == 5
    output.close()
    assert temporary(tmp_path) == []


def test_sorted_runs_that_have_spilled(
    tmp_path: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a sorter that spills after every item
    monkeypatch.setattr("ops.compat.Sorter.__init__.__defaults__", (1, 2))
    output = open_job(tmp_path / "out", compat=True)
    commit(output, 0, 1, 3)
    output.write_ahead(read)
    commit(output, 2)
    # Then the same bytes come out; and of one that is given up no file stays open
    output.finish(read)
    output.close()
    assert files_of(tmp_path / "out") == undisturbed
    before = open_files()
    output = open_job(tmp_path / "other", compat=True)
    commit(output, 0)
    output.write_ahead(read)
    assert open_files() > before + 7
    output.close()
    assert open_files() == before


WRITER = """
import sys; from pathlib import Path
from ops import output as output_module
from tests.unit.output_fixtures import *
out = Path(sys.argv[1])
output = open_job(out, compat=True)
output_module.AHEAD_FROM = 2
for shard in range(3):
    if shard not in output.committed:
        commit(output, shard)
    if output.can_write_ahead:
        output.write_ahead(lambda: read_records(JOB))
    print("ahead", output.shards_ahead, flush=True)
sys.stdin.read()
"""


def test_killed_writer_leaves_only_what_the_next_one_removes(
    tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    # Given writers that are killed with 1, 2 and 3 shards in their tables
    for number in (1, 2, 3):
        kill_once_it_says(f"ahead {number}", WRITER, tmp_path)
        assert len(temporary(tmp_path)) >= 5
    # When the next one opens the folder, then their files are gone, and it begins again
    output = open_job(tmp_path, compat=True)
    assert temporary(tmp_path) == []
    assert output.shards_ahead == 0
    output.close()
    run_job(tmp_path, JOB, compat=True)
    assert files_of(tmp_path) == undisturbed


# -- what goes wrong -------------------------------------------------------------------------------


def long_job() -> list[list[Record]]:
    """Tables of 100 kB a shard, more than what a stream holds back."""
    chunks = [[1, 2], [3]] * 500
    return [[Record(number, f"r{number}", chunks)] for number in range(3)]


@pytest.mark.parametrize("at", ["ahead", "end"])
def test_full_disk_is_the_end_of_writing_ahead_and_of_nothing_else(tmp_path: Path, at: str) -> None:
    # Given a job with one shard in its tables
    job = long_job()
    run_job(tmp_path / "undisturbed", job, compat=True)
    out = tmp_path / "out"
    output = Output.open(out, make_spec(out, compat=True), make_plan(job))
    for shard, records in enumerate(job[: 2 if at == "ahead" else 3]):
        output.commit(gathered(make_account(shard, records)))
        if shard == 0:
            output.write_ahead(lambda: read_records(job))
    # When the disk takes no more of it
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        work = output.write_ahead if at == "ahead" else output.finish
        with pytest.raises((OSError, VnpError)) as caught:
            work(lambda: read_records(job))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    # Then it may pass, the room is free again, and nothing more is written ahead
    assert isinstance(caught.value, OSError) or caught.value.may_pass
    assert temporary(out) == []
    assert not output.can_write_ahead
    # And the end gives the bytes that it always gives
    for shard, records in enumerate(job):
        if shard not in output.committed:
            output.commit(gathered(make_account(shard, records)))
    output.finish(lambda: read_records(job))
    output.close()
    assert output.shards_ahead == 0
    assert files_of(out) == files_of(tmp_path / "undisturbed")


def test_folder_that_was_away(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    # Given a job with a shard in its tables, whose folder is moved away
    out, away = tmp_path / "out", tmp_path / "away"
    output = open_job(out, compat=True)
    commit(output, 0)
    output.write_ahead(read)
    commit(output, 1)
    out.rename(away)
    # When the next one shall be added, then it cannot be
    with pytest.raises((OSError, CorruptionError)):
        output.write_ahead(read)
    # And the job ends when its folder is back, with nothing left behind
    away.rename(out)
    commit(output, 2, 3)
    output.finish(read)
    output.close()
    assert files_of(out) == undisturbed
    assert temporary(out) == []


def copied(out: Path) -> None:
    """Another folder of that name, with the halves of the tables in it."""
    subprocess.run(["cp", "-a", out, out.with_name("copy")], check=True)
    out.rename(out.with_name("away"))
    out.with_name("copy").rename(out)


def without_temporary(out: Path) -> None:
    for path in out.glob("**/.*tmp*"):
        path.unlink()


@pytest.mark.parametrize("harm", [copied, without_temporary])
def test_files_that_are_not_ours_any_more_do_not_become_tables(
    tmp_path: Path, undisturbed: dict[str, bytes], harm: Callable[[Path], None]
) -> None:
    # Given a complete job of which two shards are in its tables
    out = tmp_path / "out"
    output = open_job(out, compat=True)
    commit(output, 0, 1, 3)
    output.write_ahead(read)
    commit(output, 2)
    # When the folder is another one, or the files are gone
    harm(out)
    # Then they do not appear, and what the end does once more writes them all
    with pytest.raises(OutputError) as caught:
        output.finish(read)
    assert caught.value.may_pass
    output.finish(read)
    output.close()
    assert files_of(out) == undisturbed


def test_input_that_has_changed_is_told_at_the_end(tmp_path: Path) -> None:
    def changed() -> list[Piece]:
        pieces = list(read())
        return [replace(pieces[0], name="other"), *pieces[1:]]

    # Given an input that is another one by now
    output = open_job(tmp_path)
    commit(output, 0, 1)
    with pytest.raises(DataError, match="submit it again"):
        output.write_ahead(changed)
    # Then the job goes on, and its end says the same and leaves no half result
    commit(output, 2, 3)
    with pytest.raises(DataError, match="submit it again"):
        output.finish(changed)
    output.close()
    names = {name for name in files_of(tmp_path) if not name.startswith("shards")}
    assert names == set()


def test_work_that_is_not_wanted_any_more_ends_at_once(tmp_path: Path) -> None:
    class GivenUpError(Exception):
        pass

    def check() -> None:
        raise GivenUpError

    # Given a complete job with a shard in its tables, which is given up while it is finished
    output = open_job(tmp_path)
    commit(output, 0, 1, 2)
    output.write_ahead(read)
    commit(output, 3)
    with pytest.raises(GivenUpError):
        output.finish(read, check=check)
    # Then it has not begun anew, and nothing is left
    assert temporary(tmp_path) == []
    assert not (tmp_path / "sequences.tsv").exists()
    output.close()


def test_end_that_fails_after_writing_ahead_can_be_repeated(
    tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    # Given tables that were begun; When the end of the job fails after them
    output = open_job(tmp_path, compat=True)
    commit(output, 0, 1, 2)
    output.write_ahead(read)
    commit(output, 3)

    def fail() -> None:
        raise OutputError("not now")

    with pytest.raises(OutputError, match="not now"):
        output.finish(read, check=fail)
    # Then it is done whole the next time
    output.finish(read)
    output.close()
    assert files_of(tmp_path) == undisturbed

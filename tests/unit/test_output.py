"""The output folder: the manifest line is the commit; cut anywhere, the same bytes come out."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ops import folder as folder_module
from ops.errors import CorruptionError, FencedError, IdentityError, InternalError, OutputError
from ops.folder import require_free_disk
from ops.gather import ShardGather
from ops.manifest import ShardLine, decode_line, read_manifest
from ops.output import Output, estimate_bytes
from ops.verify import verify_output
from tests.unit.output_fixtures import (
    IDENTITY,
    JOB,
    PLAN,
    PROTEIN,
    commit,
    gathered,
    kill_once_it_says,
    make_account,
    make_result,
    make_spec,
    open_job,
    read_records,
    run_job,
)

PROMISED = ("shards", "sequences.tsv", "chunks.tsv", "virus.fasta.gz", "compat")


def files_of(out: Path) -> dict[str, bytes]:
    """All files whose bytes are promised."""
    paths = [path for path in out.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in paths
        if path.relative_to(out).parts[0] in PROMISED
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run_job(out, JOB, compat=True, identity=IDENTITY)
    return files_of(out)


def finish(out: Path) -> dict[str, bytes]:
    run_job(out, JOB, compat=True)
    return files_of(out)


def test_files_of_a_finished_job(undisturbed: dict[str, bytes]) -> None:
    assert sorted(undisturbed) == [
        "chunks.tsv",
        "compat/prediction_results.txt",
        "compat/prediction_results_highestscore.csv",
        "sequences.tsv",
        "shards/shard-000000.h5",
        "shards/shard-000001.h5",
        "shards/shard-000002.h5",
        "shards/shard-000003.h5",
        "virus.fasta.gz",
    ]


def test_order_of_commits_job_id_and_batches_change_no_byte(
    tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    output = Output.open(out, make_spec(out, id="other", compat=True), PLAN)
    for shard in (3, 0, 2, 1):
        output.commit(gathered(make_account(shard, JOB[shard], job="other"), batch=2))
    assert output.is_complete
    output.finish(lambda: read_records(JOB, piece=1000))
    output.close()
    assert files_of(out) == undisturbed


def test_manifest_cut_at_every_byte_then_resumed(
    tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    # Given a job with three of four shards committed by two writers
    whole = tmp_path / "whole"
    output = open_job(whole, compat=True)
    commit(output, 0, 2)
    output.close()
    output = open_job(whole, compat=True)
    commit(output, 1)
    output.close()
    data = (whole / "manifest.jsonl").read_bytes()
    lines = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
    around = {end + step for end in lines for step in (-2, -1, 0, 1, 2)}
    sizes = sorted(size for size in around | set(range(0, len(data), 37)) if size <= len(data))
    for size in sizes:
        # When the manifest is cut at any byte, and leftovers of a killed writer lie about
        out = tmp_path / "cut"
        shutil.copytree(whole, out)
        os.truncate(out / "manifest.jsonl", size)
        (out / "shards" / ".shard-000003.h5.tmp-999").write_bytes(b"half")
        (out / ".sequences.tsv.tmp-999").write_bytes(b"half")
        # Then the next writer holds exactly what whole lines name, and doing it twice is the same
        expected = committed_before(data[:size])
        for _ in range(2):
            output = open_job(out, compat=True)
            assert output.committed == expected
            output.close()
            names = {path.name for path in (out / "shards").iterdir()}
            assert names >= {f"shard-{shard:06d}.h5" for shard in expected}
            assert list(out.glob("**/.*tmp*")) == []
        # And the job ends with the same bytes (checked at every 20th cut: the state is the same)
        if sizes.index(size) % 20 == 0:
            assert finish(out) == undisturbed
        shutil.rmtree(out)


def committed_before(data: bytes) -> set[int]:
    """Shards of the whole lines; one that lacks its newline only is whole."""
    lines = map(decode_line, data.split(b"\n"))
    return {line.shard for line in lines if isinstance(line, ShardLine)}


WRITER = """
import sys; from pathlib import Path
from tests.unit.output_fixtures import *
out = Path(sys.argv[1])
output = Output.open(out, make_spec(out, compat=True), make_plan(JOB))
print("open", flush=True)
for shard in range(4):
    if shard not in output.committed:
        output.commit(gathered(make_account(shard, JOB[shard])))
        print("committed", shard, flush=True)
output.finish(lambda: read_records(JOB))
print("finished", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("kills", [["open"], ["committed"] * 3, ["committed", "finished"]])
def test_killed_writer_is_replaced(
    tmp_path: Path, undisturbed: dict[str, bytes], kills: list[str]
) -> None:
    # Given writers that are killed one after the other, just after they have said something
    out = tmp_path / "out"
    for word in kills:
        kill_once_it_says(word, WRITER, out)
    # When another one ends the job
    result = finish(out)
    # Then nothing of it can be seen, but in run.json
    assert result == undisturbed
    run = json.loads((out / "run.json").read_text())
    assert run["interruptions_survived"] == len(kills)


def test_file_without_its_line_is_not_committed(
    tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    # Given a writer killed between the shard file and its manifest line
    out = tmp_path / "out"
    output = open_job(out, compat=True)
    commit(output, 0)
    output.close()
    stray = out / "shards" / "shard-000001.h5"
    stray.write_bytes(undisturbed["shards/shard-000001.h5"])
    # When the next one opens the folder, then the file does not count, and is made again
    output = open_job(out, compat=True)
    assert output.committed == {0}
    output.close()
    assert finish(out) == undisturbed


def test_finishing_twice_changes_nothing(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    out = tmp_path / "out"
    finish(out)
    assert finish(out) == undisturbed


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "out"
    output = open_job(out)
    with pytest.raises(OutputError, match=r"in use by another run; choose another --out .*pid \d+"):
        open_job(out, id="job2")
    # Of its own job somebody else only has to wait for the other writer, which will let go
    with pytest.raises(FencedError, match=r"another writer of this job .*pid \d+"):
        open_job(out)
    output.close()
    output.close()
    open_job(out).close()


@pytest.mark.parametrize(
    ("options", "plan", "message"),
    [
        ({"identity": replace(IDENTITY, dtype="bf16")}, {}, "dtype fp32, not bf16"),
        ({"identity": replace(IDENTITY, chunk_length=500)}, {}, "chunk_length 300, not 500"),
        ({}, {"input_digest": "sha256:other"}, "input digest sha256:1234, not sha256:other"),
        ({}, {"shards": 5}, "num shards 4, not 5"),
        ({}, {"shard_bases": 20_000}, "shard bases 1048576, not 20000"),
        ({"embeddings": True}, {}, "embeddings false, not true"),
    ],
)
def test_results_of_another_job_are_left_alone(
    tmp_path: Path, options: dict[str, object], plan: dict[str, object], message: str
) -> None:
    # Given a folder with results, a torn line and a stray file
    out = tmp_path / "out"
    output = open_job(out)
    commit(output, 0)
    output.close()
    with (out / "manifest.jsonl").open("ab") as stream:
        stream.write(b'{"kind":')
    (out / "shards" / "shard-000001.h5").write_bytes(b"stray")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    # When another job wants it
    other = replace(PLAN, **plan)  # type: ignore[arg-type]
    with pytest.raises(IdentityError, match="--force") as caught:
        Output.open(out, make_spec(out, **options), other)
    # Then the message names both sides, and nothing is touched
    assert message in str(caught.value)
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert {p: b for p, b in after.items() if p.name != ".lock"} == {
        p: b for p, b in before.items() if p.name != ".lock"
    }
    # And with force it gets the folder
    forced = Output.open(out, make_spec(out, **options), other, force=True)
    assert forced.committed == set()
    assert forced.epoch == 1
    forced.close()


def test_force_removes_the_files_of_a_job_and_nothing_else(
    tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    finish(out)
    (out / "notes.txt").write_text("mine")
    (out / "shards" / "notes.h5").write_text("mine")
    output = Output.open(out, make_spec(out), PLAN, force=True)
    output.close()
    left = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert left == [".lock", "manifest.jsonl", "notes.txt", "run.json", "shards/notes.h5"]


def test_other_name_for_the_same_weights_changes_no_byte(
    tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    # Given a job that was begun under one name of a model
    out = tmp_path / "out"
    output = open_job(out, compat=True)
    commit(output, 0)
    output.close()
    # When it goes on under another, then the shards do not tell
    run_job(out, JOB, compat=True, identity=replace(IDENTITY, esm2_name="renamed"))
    assert files_of(out) == undisturbed


def test_folder_with_files_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "sequences.tsv").write_text("mine")
    with pytest.raises(OutputError, match=r"holds sequences\.tsv but no manifest"):
        open_job(tmp_path)
    assert (tmp_path / "sequences.tsv").read_text() == "mine"
    assert not (tmp_path / "shards").exists()


@pytest.mark.parametrize("harm", ["remove", "cut", "flip"])
def test_committed_shard_that_is_gone(tmp_path: Path, harm: str) -> None:
    output = open_job(tmp_path)
    commit(output, 0)
    output.close()
    path = tmp_path / "shards" / "shard-000000.h5"
    if harm == "remove":
        path.unlink()
    elif harm == "cut":
        os.truncate(path, 100)
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    with pytest.raises(CorruptionError, match=r"shard-000000\.h5 is missing or damaged.*--repair"):
        open_job(tmp_path)


def test_out_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="cannot be written"):
        open_job(tmp_path / "file")


def test_too_little_disk(tmp_path: Path) -> None:
    require_free_disk(tmp_path / "not" / "there", 1)
    with pytest.raises(OutputError, match=r"needs about \d+\.\d TB and has \d+\.\d [kMGT]B free"):
        require_free_disk(tmp_path / "not" / "there", 10**18)
    # Given embeddings for more records than any disk holds
    plan = replace(PLAN, chunks=10**15)
    with pytest.raises(OutputError, match="needs about"):
        Output.open(tmp_path, make_spec(tmp_path), plan)
    # Then nobody holds the folder, and a job that fits gets it
    open_job(tmp_path / "small").close()
    with pytest.raises(OutputError, match="needs about"):
        Output.open(tmp_path, make_spec(tmp_path), plan)


def test_estimate_covers_what_a_job_takes(tmp_path: Path) -> None:
    run_job(tmp_path / "out", JOB, width=8, embeddings=True, compat=True)
    taken = sum(p.stat().st_size for p in (tmp_path / "out").rglob("*") if p.is_file())
    spec = make_spec(tmp_path, embeddings=True, embedding_width=16)
    assert taken < estimate_bytes(spec, PLAN) < 20 * taken


def test_full_disk_at_commit_loses_nothing(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    # Given a writer whose files may not grow beyond what the first shard takes
    code = """
import resource, signal, sys; from pathlib import Path
from tests.unit.output_fixtures import *
out = Path(sys.argv[1])
output = Output.open(out, make_spec(out, compat=True), make_plan(JOB))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
for limit in (10_000, (out / "manifest.jsonl").stat().st_size + 100):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        output.commit(gathered(make_account(0, [Record(9, "r")] if limit < 5000 else JOB[0])))
    except OSError as error:
        print(error.errno, set(output.committed))
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
output.commit(gathered(make_account(0, JOB[0])))
print(set(output.committed))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    # Then the commit fails with nothing committed, and works when there is room again
    assert done.stdout.splitlines() == [f"{errno.EFBIG} set()"] * 2 + ["{0}"], done.stderr
    assert finish(tmp_path / "out") == undisturbed


def test_rows_of_another_identity_are_refused(tmp_path: Path) -> None:
    output = open_job(tmp_path)
    with pytest.raises(InternalError, match="another identity"):
        output.commit(gathered(make_account(0, JOB[0], PROTEIN)))
    output.close()


def test_shard_that_the_job_does_not_have_is_a_bug(tmp_path: Path) -> None:
    output = open_job(tmp_path)
    with pytest.raises(AssertionError, match="no shard 4"):
        output.commit(gathered(make_account(4, JOB[0])))
    commit(output, 0)
    with pytest.raises(AssertionError, match="committed already"):
        commit(output, 0)
    output.close()


def test_numerics_are_recorded_and_crossing_them_can_be_refused(tmp_path: Path) -> None:
    def other(shard: int) -> ShardGather:
        account = make_account(shard, JOB[shard])
        result = make_result(account, range(len(account.row_record)))
        gather = ShardGather("job1", shard)
        gather.add(account)
        gather.add(replace(result, numerics="f" * 16))
        return gather

    # Given a job with rows of one kind of device
    for name, options in (("free", {}), ("strict", {"same_numerics": True})):
        output = open_job(tmp_path / name, **options)
        commit(output, 0)
        # When rows of another kind come, then they are recorded, or refused if so asked
        if not options:
            line = output.commit(other(1))
            assert line.numerics == ("f" * 16,)
            assert output.numerics == {"f" * 16, "0123456789abcdef"}
        else:
            with pytest.raises(IdentityError, match="0123456789abcdef, ffffffffffffffff"):
                output.commit(other(1))
        output.close()
        state = read_manifest(tmp_path / name / "manifest.jsonl")
        assert set(state.numerics) == output.numerics


def test_writer_that_wakes_after_its_successor_counts_for_nothing(tmp_path: Path) -> None:
    # Given a writer whose lock was taken from it, as a network file system does after a silence
    zombie = open_job(tmp_path)
    commit(zombie, 0)
    (tmp_path / ".lock").unlink()
    successor = open_job(tmp_path)
    commit(successor, 1)
    before = (tmp_path / "manifest.jsonl").read_bytes()
    # When it wakes and commits, also what its successor has committed
    for shard in (1, 2):
        with pytest.raises(FencedError, match="newer writer"):
            commit(zombie, shard)
    # Then nothing has changed, and the successor goes on
    assert (tmp_path / "manifest.jsonl").read_bytes() == before
    assert not (tmp_path / "shards" / "shard-000002.h5").exists()
    commit(successor, 2)
    zombie.close()
    successor.close()


def test_shard_file_that_a_zombie_left_is_replaced(tmp_path: Path) -> None:
    # Given a file of a shard that no line names, written after the folder was opened
    output = open_job(tmp_path)
    stray = tmp_path / "shards" / "shard-000000.h5"
    stray.write_bytes(b"of other numerics")
    # When the shard is committed
    commit(output, 0)
    # Then the file is the committed one
    output.close()
    assert verify_output(tmp_path).ok


def test_folder_that_is_away_is_not_made_again(tmp_path: Path) -> None:
    # Given a job that has held its folder, which is away now
    out = tmp_path / "out"
    open_job(out).close()
    out.rename(tmp_path / "away")
    # When a writer opens it again
    with pytest.raises(OutputError, match="is gone, or away") as caught:
        Output.open(out, make_spec(out), PLAN, again=True)
    # Then it waits for it, and makes no new one
    assert caught.value.may_pass
    assert not out.exists()
    (tmp_path / "away").rename(out)
    Output.open(out, make_spec(out), PLAN, again=True).close()


@pytest.mark.parametrize("back", [False, True])
def test_folder_that_goes_away_while_tables_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, back: bool
) -> None:
    # Given a complete job whose folder is moved away between two shards of the last step
    out, away = tmp_path / "out", tmp_path / "away"
    output = open_job(out)
    for shard in range(PLAN.shards):
        commit(output, shard)
    calls = []

    def move() -> None:
        calls.append(1)
        if len(calls) == 2:
            out.rename(away)

    require = folder_module._require_there

    def late(folder: Path) -> None:
        away.rename(out)
        require(folder)

    if back:  # it is there again when somebody looks
        monkeypatch.setattr(folder_module, "_require_there", late)
    # When the job is finished, then the folder is away, which may pass, and not damaged
    with pytest.raises(OutputError, match=r"was away|is gone, or away") as caught:
        output.finish(lambda: read_records(JOB), check=move)
    assert caught.value.may_pass
    # And it is finished when it is back
    if not back:
        away.rename(out)
    output.finish(lambda: read_records(JOB))
    output.close()
    assert verify_output(out).ok


def test_writer_that_wakes_in_the_middle_of_an_opening(tmp_path: Path) -> None:
    # Given a folder with one shard, and a torn line
    first = open_job(tmp_path)
    commit(first, 0)
    first.close()
    with (tmp_path / "manifest.jsonl").open("ab") as manifest:
        manifest.write(b'{"kind":"shard","sh')
    successors: list[Output] = []

    def succeed() -> None:
        """The lock is taken from whoever opens the folder, and another one works in it."""
        (tmp_path / ".lock").unlink()
        successors.append(open_job(tmp_path))
        commit(successors[0], 1)

    # When a writer stops while it opens the folder, and wakes when another has committed
    zombie = Output.open(tmp_path, make_spec(tmp_path), PLAN, check=succeed)
    # Then what was committed stands, the other goes on, and it does not
    with pytest.raises(FencedError):
        commit(zombie, 2)
    commit(successors[0], 2)
    successors[0].close()
    zombie.close()
    assert sorted(read_manifest(tmp_path / "manifest.jsonl").shards) == [0, 1, 2]
    assert verify_output(tmp_path).ok


def test_writer_that_wakes_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a writer that stops between its reading of the manifest and its epoch
    open_job(tmp_path).close()
    begin = folder_module.start_epoch

    def late(*words: Any) -> Any:
        monkeypatch.setattr(folder_module, "start_epoch", begin)
        (tmp_path / ".lock").unlink()
        successor = open_job(tmp_path)
        commit(successor, 1)
        successor.close()
        return begin(*words)

    monkeypatch.setattr(folder_module, "start_epoch", late)
    # When it wakes, then it sees that another one was there, and may try again
    with pytest.raises(FencedError):
        open_job(tmp_path)
    output = open_job(tmp_path)
    assert output.committed == {1}
    output.close()


def test_two_writers_that_both_find_no_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a writer that stops when it has seen that there is no manifest yet
    refuse = folder_module._refuse_foreign_files

    def late(out: Path) -> None:
        monkeypatch.setattr(folder_module, "_refuse_foreign_files", refuse)
        refuse(out)
        (tmp_path / ".lock").unlink()
        successor = open_job(tmp_path)
        commit(successor, 1)
        successor.close()

    monkeypatch.setattr(folder_module, "_refuse_foreign_files", late)
    # When it wakes behind another one that has made it, and committed
    output = open_job(tmp_path)
    # Then it goes on with what is there
    assert output.committed == {1}
    output.close()
    assert verify_output(tmp_path).ok

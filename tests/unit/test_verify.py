"""`vnp verify` finds whatever is not as it was written, and names the file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ops.errors import NoInputError
from ops.manifest import encode_line, read_manifest
from ops.output import Output
from ops.shardfile import build_shard
from ops.verify import verify_output
from tests.unit.output_fixtures import (
    IDENTITY,
    JOB,
    gathered,
    make_account,
    make_plan,
    make_spec,
    run_job,
)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    run_job(tmp_path / "out", JOB, width=3, embeddings=True, compat=True)
    return tmp_path / "out"


def test_finished_job_is_sound(out: Path) -> None:
    report = verify_output(out)
    assert report.problems == []
    assert report.ok
    assert report.finished
    assert (report.shards, report.num_shards, report.rows, report.files) == (4, 4, 18, 5)


def test_job_in_progress_is_sound(tmp_path: Path) -> None:
    output = Output.open(tmp_path, make_spec(tmp_path), make_plan(JOB))
    output.commit(gathered(make_account(2, JOB[2])))
    report = verify_output(tmp_path)
    output.close()
    assert report.ok
    assert (report.finished, report.shards, report.num_shards) == (False, 1, 4)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


FILES = [
    "shards/shard-000000.h5",
    "shards/shard-000003.h5",
    "sequences.tsv",
    "chunks.tsv",
    "virus.fasta.gz",
    "compat/prediction_results.txt",
    "compat/prediction_results_highestscore.csv",
]
HARM: dict[str, Callable[[Path], None]] = {
    "flipped": lambda path: flip(path, path.stat().st_size // 2),
    "flipped at the end": lambda path: flip(path, -1),
    "cut": lambda path: os.truncate(path, path.stat().st_size - 1),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\n"),
    "emptied": lambda path: path.write_bytes(b""),
    "removed": lambda path: path.unlink(),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", HARM)
def test_damaged_file_is_named(out: Path, name: str, harm: str) -> None:
    # Given a finished job, one file of which is damaged
    HARM[harm](out / name)
    # When it is verified
    report = verify_output(out)
    # Then the report names that file, and no other
    assert not report.ok
    assert all(name in problem for problem in report.problems), report.problems


def test_damaged_manifest(out: Path) -> None:
    path = out / "manifest.jsonl"
    flip(path, 300)
    [problem] = verify_output(out).problems
    assert "manifest.jsonl is damaged" in problem
    flip(path, 300)
    assert verify_output(out).ok
    # A lost last line
    os.truncate(path, path.stat().st_size - 1)
    problems = verify_output(out).problems
    assert any("bytes at its end" in problem for problem in problems)
    assert any("names 3 of 4 shards" in problem for problem in problems)
    path.write_bytes(b"")
    assert "no header" in verify_output(out).problems[0]


def replace_shard(out: Path, image: bytes) -> None:
    """Puts another shard 0 into a folder, with a manifest line that agrees with its bytes."""
    state = read_manifest(out / "manifest.jsonl")
    assert state.header is not None
    (out / "shards" / "shard-000000.h5").write_bytes(image)
    digest = hashlib.sha256(image).hexdigest()
    shards = {**state.shards, 0: replace(state.shards[0], bytes=len(image), sha256=digest)}
    lines = [state.header, *state.epochs, *shards.values()]
    (out / "manifest.jsonl").write_bytes(b"".join(map(encode_line, lines)))


def test_contents_are_checked_beyond_their_digest(out: Path) -> None:
    gather = gathered(make_account(0, JOB[0]), width=3)
    account, rows = gather.account, gather.rows()
    # Rows in another order than their keys
    turned = replace(rows, frame=rows.frame[::-1])
    replace_shard(out, build_shard(account, turned, IDENTITY))
    problems = " ".join(verify_output(out).problems)
    assert "shard-000000.h5 is not what was committed: wrong order of rows" in problems
    assert "wrong keys or digests" in problems
    # Rows of another input
    replace_shard(out, build_shard(account, replace(rows, digest=rows.digest + 1), IDENTITY))
    assert "wrong keys or digests" in verify_output(out).problems[0]
    # Another shard, another model
    replace_shard(
        out, build_shard(replace(account, shard=5), rows, replace(IDENTITY, dtype="bf16"))
    )
    problems = " ".join(verify_output(out).problems)
    assert "wrong shard number" in problems
    assert "wrong identity" in problems
    # And the right one
    replace_shard(out, build_shard(account, rows, IDENTITY))
    assert verify_output(out).ok


def test_missing_record_is_noticed(out: Path) -> None:
    # Given a shard 0 without its last record, with a manifest line that agrees
    gather = gathered(make_account(0, JOB[0][:2]), width=3)
    replace_shard(out, build_shard(gather.account, gather.rows(), IDENTITY))
    state = read_manifest(out / "manifest.jsonl")
    assert state.header is not None
    shards = {**state.shards, 0: replace(state.shards[0], records=2)}
    lines = [state.header, *state.epochs, *shards.values()]
    (out / "manifest.jsonl").write_bytes(b"".join(map(encode_line, lines)))
    assert any("of record 3, not at chunk" in problem for problem in verify_output(out).problems)


def test_run_json_of_another_job_or_damaged(out: Path) -> None:
    run = json.loads((out / "run.json").read_text())
    wrong = {**run, "identity": {**run["identity"], "digest": "0" * 16}}
    (out / "run.json").write_text(json.dumps(wrong))
    assert "run.json is of another job" in verify_output(out).problems[0]
    wrong = {**run, "counts": {**run["counts"], "records": 7}}
    (out / "run.json").write_text(json.dumps(wrong))
    assert "its counts are not those of the shards" in verify_output(out).problems[0]
    del wrong["counts"]
    (out / "run.json").write_text(json.dumps(wrong))
    assert "its counts are not those of the shards" in verify_output(out).problems[0]
    # A run.json of an earlier version, which counted less, is as good as any
    for name in ("frames_computed", "chunk_statuses", "scored_below_300"):
        del run["counts"][name]
    (out / "run.json").write_text(json.dumps(run))
    assert verify_output(out).ok
    (out / "run.json").write_text("{")
    assert "run.json is damaged" in verify_output(out).problems[0]


def test_folder_that_is_no_output(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path, tmp_path / "none", tmp_path / "file"):
        with pytest.raises(NoInputError, match=r"holds no manifest\.jsonl"):
            verify_output(path)

"""What a finished job holds beside its tables: the sequences called virus, and run.json."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from ops.errors import DataError
from ops.gather import ShardGather
from ops.output import Output
from tests.unit.output_fixtures import (
    IDENTITY,
    JOB,
    PLAN,
    PROTEIN,
    Piece,
    Record,
    commit,
    letters_of,
    make_account,
    make_plan,
    make_result,
    make_spec,
    open_job,
    read_records,
    run_job,
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run_job(out, JOB)
    return {name: (out / name).read_bytes() for name in ("sequences.tsv", "virus.fasta.gz")}


def test_records_called_virus_are_written_in_full(undisturbed: dict[str, bytes]) -> None:
    table = undisturbed["sequences.tsv"].decode().splitlines()[1:]
    called = [at for at, line in enumerate(table) if line.split("\t")[2] == "virus"]
    assert called == [4]
    text = gzip.decompress(undisturbed["virus.fasta.gz"]).decode()
    header, *lines = text.splitlines()
    assert header == ">twice"
    assert "".join(lines).encode() == letters_of(JOB[3][0])
    assert {len(line) for line in lines[:-1]} == {60}
    # gzip header: no time, no file name
    assert undisturbed["virus.fasta.gz"][3:8] == bytes(5)


@pytest.mark.parametrize("piece", [1, 59, 60, 61, 300, 10_000])
def test_pieces_of_the_input_do_not_matter(
    tmp_path: Path, undisturbed: dict[str, bytes], piece: int
) -> None:
    output = open_job(tmp_path)
    commit(output, 0, 1, 2, 3)
    output.finish(lambda: read_records(JOB, piece))
    output.close()
    assert (tmp_path / "virus.fasta.gz").read_bytes() == undisturbed["virus.fasta.gz"]


def test_description_of_the_header_is_kept(tmp_path: Path) -> None:
    output = open_job(tmp_path)
    commit(output, 0, 1, 2, 3)
    output.finish(lambda: (replace(p, description="a phage, µ") for p in read_records(JOB)))
    output.close()
    text = gzip.decompress((tmp_path / "virus.fasta.gz").read_bytes()).decode()
    assert text.startswith(">twice a phage, µ\n")


@pytest.mark.parametrize("change", ["name", "length", "fewer", "more"])
def test_input_that_has_changed_is_refused(tmp_path: Path, change: str) -> None:
    def changed() -> list[Piece]:
        pieces = list(read_records(JOB))
        if change == "name":
            pieces[0] = replace(pieces[0], name="other")
        elif change == "length":
            pieces[0] = replace(pieces[0], letters=b"")
        elif change == "fewer":
            pieces = [piece for piece in pieces if piece.ordinal != 7]
        else:
            pieces.append(Piece(8, "new", b"A", True))
        return pieces

    output = open_job(tmp_path)
    commit(output, 0, 1, 2, 3)
    with pytest.raises(DataError, match="submit it again"):
        output.finish(changed)
    output.close()
    # No half result
    assert not (tmp_path / "virus.fasta.gz").exists()
    assert json.loads((tmp_path / "run.json").read_text())["state"] == "running"


def test_run_json_tells_the_story(tmp_path: Path) -> None:
    open_job(tmp_path).close()
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["state"] == "running"
    output = Output.open(tmp_path, make_spec(tmp_path), PLAN, node="node1")
    assert output.epoch == 2
    commit(output, 0, 1, 2, 3)
    counts = output.finish(lambda: read_records(JOB), {"gpus": ["cpu"]})
    output.close()
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["state"] == "finished"
    assert run["identity"]["digest"] == IDENTITY.digest
    assert run["trained"] is False
    assert run["input_digest"] == "sha256:1234"
    assert run["inputs"] == [{"path": "/data/in.fa", "size": 10, "mtime_ns": 20}]
    assert run["parameters"]["chunk_length"] == 300
    assert run["counts"] == vars(counts)
    assert (counts.records, counts.viruses) == (8, 1)
    assert run["interruptions_survived"] == 1
    assert run["numerics"] == ["0123456789abcdef"]
    assert run["gpus"] == ["cpu"]
    assert set(run["files"]) == {"sequences.tsv", "chunks.tsv", "virus.fasta.gz"}
    assert run["versions"]["vnp"]


def test_empty_input(tmp_path: Path) -> None:
    output = run_job(tmp_path / "none", [])
    assert output.is_complete
    run_job(tmp_path / "one", [[]])
    for name in ("none", "one"):
        assert (tmp_path / name / "sequences.tsv").read_text().count("\n") == 1
        assert gzip.decompress((tmp_path / name / "virus.fasta.gz").read_bytes()) == b""


def test_protein_job_has_no_calls(tmp_path: Path) -> None:
    job = [[Record(0, "p", [[0]], length=50), Record(1, "e", status=1, length=0)]]  # type: ignore[arg-type]
    out = tmp_path / "out"
    spec = make_spec(out, PROTEIN, compat=True)
    output = Output.open(out, spec, make_plan(job))
    account = make_account(0, job[0], PROTEIN)
    result = replace(make_result(account, [0], width=4), scores=None, dnabert_s=None)
    gather = ShardGather("job1", 0)
    gather.add(account)
    gather.add(result)
    output.commit(gather)
    output.finish(lambda: read_records(job))
    output.close()
    names = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    assert names == [
        ".lock",
        "manifest.jsonl",
        "run.json",
        "sequences.tsv",
        "shards/shard-000000.h5",
    ]

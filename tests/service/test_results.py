"""What users do with results and before: export, partial results, retry, list, estimates."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet
import pytest

from ops import esm_tokens
from ops.engine import Engine, EngineSpec
from ops.export import RowNamer
from ops.modelstore import BUNDLED
from ops.nouns import Ragged
from ops.shardfile import read_shard
from tests.crash.harness import Service, shards_done, until
from tests.service.conftest import FIXTURES
from tests.service.shell import Shell
from tests.unit.model_fixtures import make_batch

GENOME = FIXTURES / "virus_phiX174.fa"
LARGER = FIXTURES / "virus_SAOMS1.fa"
Finished = tuple[str, Path]


@pytest.fixture(scope="module")
def embedded(service: Service, fasta: Path) -> Path:
    """The output folder of a finished job that kept its embeddings."""
    out = service.folder / "embedded"
    service.wait(service.submit(fasta, out, fasta, "--embeddings"))  # every name comes twice
    return out


def written(done: subprocess.CompletedProcess[str]) -> list[Path]:
    assert (done.returncode, done.stderr) == (0, "")
    return [Path(line) for line in done.stdout.splitlines()]


def shard_rows(out: Path) -> dict[tuple[int, int, str], np.ndarray]:
    """ESM-2 embedding of every row by record (from 1), chunk (from 1) and frame."""
    names = ("", "F1", "F2", "F3", "R1", "R2", "R3")
    found = {}
    for path in sorted((out / "shards").glob("*.h5")):
        rows = read_shard(path).rows
        assert rows.esm2 is not None
        keys = zip(rows.record.tolist(), rows.chunk.tolist(), rows.frame.tolist(), strict=True)
        for (record, chunk, frame), vector in zip(keys, rows.esm2, strict=True):
            found[record + 1, chunk + 1, names[frame]] = vector
    return found


def test_npy(service: Service, embedded: Path, tmp_path: Path) -> None:
    # When embeddings are exported as matrices
    table, esm2, dnabert = written(
        service.vnp("export", embedded, "--to", "npy", "--into", tmp_path / "x")
    )
    matrix = np.load(esm2, mmap_mode="r")
    rows = list(csv.DictReader(table.read_text().splitlines(), delimiter="\t"))
    # Then line n of the table tells which row of which record row n of the matrix is
    expected = shard_rows(embedded)
    assert len(rows) == len(matrix) == len(np.load(dnabert)) == len(expected)
    for row, vector in zip(rows, matrix, strict=True):
        key = (int(row["record"]), int(row["chunk"]), row["frame"])
        np.testing.assert_array_equal(vector, expected[key])
    # And ids are unique, though every name comes twice
    assert len({row["id"] for row in rows}) == len(rows)
    starts = {row["id"].partition("_chunk_")[0] for row in rows}
    assert starts >= {"NC_001422.1", "NC_001422.1#2"}


def test_h5_per_id(service: Service, embedded: Path, tmp_path: Path) -> None:
    files = written(service.vnp("export", embedded, "--to", "h5-per-id", "--into", tmp_path))
    assert [path.name for path in files] == ["esm2.h5", "dnabert_s.h5"]
    with h5py.File(files[0]) as file:
        assert file.attrs["model_name"] == "vnp-small-esm2"
        assert len(file) == len(shard_rows(embedded))
        row = next(iter(file))
        assert file[row].dtype == np.float32
        assert file[row].ndim == 1
        assert any(name.startswith("NC_001422.1#2_chunk_") for name in file)


def test_proteins_are_embedded_by_esm2(service: Service, tmp_path: Path) -> None:
    # Given proteins whose names are odd, two of them alike, in a service that has all models
    proteins = {"sp|P1|A/B": "MKLVEFLGGH", "x%y": "MKKLLAV", "..": "MKTA", "NA": "MAAAAGGGTT"}
    fasta, out = tmp_path / "p.fa", tmp_path / "out"
    fasta.write_text("".join(f">{name}\n{letters}\n" for name, letters in proteins.items()))
    service.wait(service.submit(fasta, out, fasta, "--pipeline", "protein"))
    # When they are exported for programs that look for one dataset per protein
    (path,) = written(service.vnp("export", out, "--to", "h5-per-id", "--into", tmp_path))
    # Then each is there under a name that is no path, with what ESM-2 alone gives
    assert path.name == "esm2.h5"
    names = ["sp|P1|A%2FB", "x%25y", "%2E%2E", "NA"]
    engine = Engine(EngineSpec(esm2=BUNDLED / "vnp-small-esm2"))
    tokens = esm_tokens.encode(Ragged.from_bytes(p.encode() for p in proteins.values()))
    expected = engine.embed(make_batch("protein", tokens, None))[0]
    with h5py.File(path) as file:
        assert sorted(file) == sorted(
            [*names, *("..#2", *(f"{n}#2" for n in names if n[0] != "%"))]
        )
        for name, vector in zip(names, expected, strict=True):
            np.testing.assert_allclose(file[name][:], vector, rtol=1e-5)


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["a", "a", "a"], ["a", "a#2", "a#3"]),
        (["a", "a", "a#2", "a#2"], ["a", "a#2", "a#2#2", "a#2#3"]),
        (["a#2", "a", "a", "a"], ["a#2", "a", "a#3", "a#4"]),
    ],
)
def test_ids_are_unique_whatever_the_names(names: list[str], ids: list[str]) -> None:
    namer = RowNamer(scored=False)
    assert [namer.name(record, name, 0, 0) for record, name in enumerate(names)] == ids


def test_parquet(service: Service, embedded: Path, tmp_path: Path) -> None:
    # When a job is exported as Parquet
    files = written(service.vnp("export", embedded, "--to", "parquet", "--into", tmp_path))
    assert [path.name for path in files] == [
        *("sequences.parquet", "chunks.parquet", "embeddings.parquet"),
    ]
    # Then the tables hold what the text tables hold, with null for NA and numbers as numbers
    for path in files[:2]:
        table = pyarrow.parquet.read_table(path)
        with (embedded / f"{path.stem}.tsv").open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
        assert table.num_rows == len(rows)
        for name in table.column_names:
            values = ["NA" if v is None else str(v) for v in table[name].to_pylist()]
            assert values == [row[name] for row in rows], name
    # And the embeddings are those of the shards, in order
    table = pyarrow.parquet.read_table(files[2])
    matrix = np.stack(table["esm2"].to_numpy())
    np.testing.assert_array_equal(matrix, np.stack(list(shard_rows(embedded).values())))


def test_export_that_cannot_be(service: Service, finished: Finished, tmp_path: Path) -> None:
    job, _ = finished
    done = service.vnp("export", job, "--to", "npy")
    assert (done.returncode, done.stdout) == (64, "")
    assert "made without --embeddings" in done.stderr
    done = service.vnp("export", "nosuchjob", "--to", "npy")
    assert done.returncode == 66


def test_partial_results_cancel_and_retry(service: Service, tmp_path: Path) -> None:
    # Given a job that is cancelled when a part of it is committed
    inputs, out = [GENOME] * 3 + [LARGER] * 4, tmp_path / "out"
    job = service.submit(inputs[0], out, *inputs[1:])
    until(lambda: shards_done(out) >= 2, "two shards")
    service.kill_role("writer", signal.SIGSTOP)
    try:
        service.vnp("cancel", job)
        assert service.vnp("wait", job).returncode == 130
    finally:
        service.kill_role("writer", signal.SIGCONT)
    # When its results are asked for; Then they say what is there, and partial ones are a beginning
    whole = service.vnp("results", job)
    assert whole.returncode == 66
    assert "--partial" in whole.stderr
    partial = service.vnp("results", job, "--partial")
    assert partial.returncode == 0
    assert "of 7 records" in partial.stderr
    committed = {path.name: path.stat().st_mtime_ns for path in out.glob("shards/*")}
    # And when it is retried, the new job goes on from there, and its table starts as it did
    again = service.vnp("retry", job).stdout.strip()
    assert again != job
    service.wait(again)
    table = (out / "sequences.tsv").read_text()
    assert table.startswith(partial.stdout)
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("shards/*")}.items() >= (
        committed.items()
    )
    # And is not retried once more
    refused = service.vnp("retry", again)
    assert refused.returncode == 64
    assert "finished; only failed and cancelled jobs" in refused.stderr

    # And lists show each job where it belongs
    def listed(*options: str) -> list[str]:
        return [one["id"] for one in json.loads(service.vnp("list", "--json", *options).stdout)]

    assert job in listed("--state", "cancelled")
    assert job not in listed("--state", "finished", "--state", "failed")
    assert listed("--last", "1") == listed()[-1:]
    assert listed("--user", "nobody-of-this-name") == []


def test_retry_of_standard_input(service: Service, tmp_path: Path) -> None:
    # Given a job that read standard input, and failed
    shell = Shell(tmp_path, service.environment)
    done = shell("vnp-submit", "-", "--out", tmp_path / "o", "--wait", "--json", given=b">a\n*\n")
    assert done.returncode == 65
    job = json.loads(done.stdout)["id"]
    # When it is retried; Then its copy is gone, and that is said
    again = service.vnp("retry", job)
    assert again.returncode == 66
    assert "submit it again" in again.stderr


def test_dry_run(service: Service, finished: Finished, fasta: Path, tmp_path: Path) -> None:
    # Given a job that has finished; When the same is asked as an estimate
    _, out = finished
    told = service.vnp("submit", fasta, "--out", tmp_path / "x", "--dry-run", "--json")
    assert told.returncode == 0, told.stderr
    facts = json.loads(told.stdout)
    counts = json.loads((out / "run.json").read_text())["counts"]
    # Then it counts what the job had, and nothing was made
    assert facts["exact"] is True
    assert {n: facts[n] for n in ("records", "letters", "chunks", "frames")} == {
        n: counts[n] for n in ("records", "letters", "chunks", "frames")
    }
    assert facts["seconds"] > 0
    assert not (tmp_path / "x").exists()
    # And in words, and refuses what a job would refuse
    words = service.vnp("run", fasta, "-n").stdout
    assert f"{counts['frames']:,}" in words
    assert service.vnp("run", "-", "--dry-run").returncode == 64
    bad = tmp_path / "bad.fa"
    bad.write_text(">a\nAC*\n")
    assert service.vnp("submit", bad, "--dry-run").returncode == 65


def test_estimate_of_many_shards(service: Service, tmp_path: Path) -> None:
    # Given an input of more shards than are looked into
    facts = json.loads(service.vnp("run", LARGER, LARGER, "-n", "--json").stdout)
    assert facts["shards"] > 8
    assert facts["exact"] is False
    # Then the estimate is near the truth: the genome is much alike from end to end
    out = tmp_path / "out"
    service.wait(service.submit(LARGER, out, LARGER))
    frames = json.loads((out / "run.json").read_text())["counts"]["frames"]
    assert abs(facts["frames"] - frames) < 0.25 * frames


def test_cite_and_completion(shell: Shell) -> None:
    assert "10.1093/bib/bbaf224" in shell("vnp", "cite").stdout
    assert "VirNucPro" not in shell("vnp", "cite", "--pipeline", "dna").stdout
    for name in ("bash", "zsh", "fish"):
        script = shell("vnp", "completion", name).stdout
        assert "_VNP_COMPLETE" in script
    # And the shell gets its answers
    words = {"COMP_WORDS": "vnp re", "COMP_CWORD": 1}
    found = shell("vnp", _VNP_COMPLETE="bash_complete", **words).stdout
    assert {"plain,results", "plain,retry"} <= set(found.split())


def test_quiet(shell: Shell, tmp_path: Path) -> None:
    # Given a small input; When it is run quietly; Then there is a result and not a word
    (tmp_path / "x.fa").write_text(">a\nACGTACGTACGT\n")
    done = shell("vnp", "run", "x.fa", "--out", "out", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "out" / "sequences.tsv").exists()
    # And what is wrong is said
    done = shell("vnp", "run", "none.fa", "-q")
    assert done.returncode == 66
    assert "none.fa" in done.stderr

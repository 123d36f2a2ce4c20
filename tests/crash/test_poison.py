"""A sequence that crashes, hangs, starves or confuses its worker fails alone, in a real service."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.crash.campaign import HOOKS
from tests.crash.harness import Service

#: No protein of the reads has these letters in a row; the poisoned read has.
POISON = "WMWHWMW"
CODONS = {"W": "TGG", "M": "ATG", "H": "CAT"}
READS = 6
EX_SOME_FAILED = 1


@pytest.fixture(scope="module")
def fasta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reads with an open frame each, one of them poisoned and there twice."""
    path = tmp_path_factory.mktemp("input") / "reads.fa"
    with path.open("w") as stream:
        for number in range(READS):
            stream.write(f">read{number}\n{'ATGGCTAAA' * (12 + number)}\n")
        dna = "".join(CODONS[letter] for letter in POISON)
        for name in ("poisoned", "poisoned_too"):
            stream.write(f">{name}\n{'ATGGCTAAA' * 9 + dna}\n")
    return path


@pytest.fixture(scope="module")
def undisturbed(fasta: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Rows of chunks.tsv when nothing is poisoned."""
    shell = Service(tmp_path_factory.mktemp("undisturbed"))
    done = shell.vnp("run", fasta, "--out", shell.folder / "out", environment={"VNP_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return (shell.folder / "out" / "chunks.tsv").read_text().splitlines()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("crash", "the worker died of SIGSEGV"),
        ("hang", "the worker died of SIGABRT"),
        ("memory", "the models failed with RuntimeError"),
        ("nan", "non-finite values in the ESM-2 embedding"),
    ],
)
def test_poisoned_sequence_fails_alone(
    tmp_path: Path, fasta: Path, undisturbed: list[str], kind: str, reason: str
) -> None:
    # Given a worker that does not survive one of the sequences
    shell = Service(tmp_path)
    poison = {
        "PYTHONPATH": str(HOOKS),
        "TEST_POISON": f"{kind} {POISON}",
        "VNP_BATCH_DEADLINE_S": "2" if kind == "hang" else "600",
        "VNP_THREADS": "1",
        "VNP_LOG_FILE": str(tmp_path / "log"),
    }
    # When a job with it is run
    done = shell.vnp("run", fasta, "--out", tmp_path / "out", environment=poison)
    # Then the job is whole, and its exit code tells
    assert done.returncode == EX_SOME_FAILED, done.stderr
    rows = [
        line.split("\t") for line in (tmp_path / "out" / "sequences.tsv").read_text().splitlines()
    ]
    status, note = rows[0].index("status"), rows[0].index("note")
    failed = [row for row in rows[1:] if row[status] == "failed"]
    assert [row[0] for row in failed] == ["poisoned", "poisoned_too"]
    assert reason in failed[0][note]
    # And its copy, which is not computed, has failed for the same reason
    assert failed[1][1:] == failed[0][1:]
    # And so does the same command again, which finds it finished
    done = shell.vnp("run", fasta, "--out", tmp_path / "out")
    assert (done.returncode, "finished already" in done.stderr) == (EX_SOME_FAILED, True)
    # And its neighbours have the same values as ever
    chunks = (tmp_path / "out" / "chunks.tsv").read_text().splitlines()
    keep = [line for line in chunks if not line.startswith("poisoned")]
    assert keep == [line for line in undisturbed if not line.startswith("poisoned")]
    # And it took few batches: some halvings, and three failures alone, of each poisoned frame
    log = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    failures = [line for line in log if line["event.name"] == "batch.failed"]
    assert len(failures) <= (0 if kind == "nan" else 2 * 4 + 3)

"""Bad input and output folders: a clear error, the right exit code, and nothing lost or begun."""

from __future__ import annotations

import bz2
import gzip
from pathlib import Path

import pytest

from ops.durable import FileLock
from ops.unpack import zstd
from tests.crash.harness import Service, digests
from tests.service.shell import names

FIXTURES = Path(__file__).parents[1] / "data" / "fixtures"
GENOME = FIXTURES / "virus_phiX174.fa"
#: One letter of each kind that a nucleotide record may not have, with the words of the refusal.
BAD_RECORDS = {
    "digits": (b">one\nACGT\n>two\nACGTACGT\nAC1GT\n", ("line 5", "two", "'1'")),
    "stop": (b">one\nACGT*ACGT\n", ("line 2", "one", "'*'")),
    "gap": (b">one\nACGT-ACGT\n", ("line 2", "one", "'-'")),
    "protein": (b">sp|P1\nMKVLEFQPIL\n", ("line 2", "sp|P1", "protein")),
    "html": (b"<!DOCTYPE html>\n<html></html>\n", ("line 1", "FASTA")),
    "text": (b"these are not sequences\n", ("line 1", "FASTA")),
    "truncated": (
        gzip.compress(b">one\n" + b"ACGT" * 1_000)[:-10],
        ("cut off after 3879 bytes of text", "fetch the file again"),
    ),
}


# -- what is wrong inside the input, and with the output -------------------------------------------


@pytest.mark.parametrize("kind", BAD_RECORDS)
def test_bad_input_fails_with_its_place(service: Service, tmp_path: Path, kind: str) -> None:
    # Given a bad file, behind a good one
    content, words = BAD_RECORDS[kind]
    path = tmp_path / "bad.fa"
    path.write_bytes(content)
    # When the job is submitted and waited for
    done = service.vnp("submit", GENOME, path, "--out", tmp_path / "out", "--wait")
    # Then its exit code is EX_DATAERR, the file and the place are named, and no result was begun
    assert done.returncode == 65
    assert done.stderr.count("\n") == 1
    for word in (str(path), *words):
        assert word in done.stderr
    assert not (tmp_path / "out").exists()


def test_folder_of_another_job_is_left_alone(service: Service, tmp_path: Path) -> None:
    # Given the results of a job
    out = tmp_path / "out"
    service.wait(service.submit(GENOME, out))
    before = digests(out)
    # When other input, and then other parameters, shall go there
    other = service.vnp("submit", FIXTURES / "virus_HCV.fa", "--out", out, "--wait")
    kept = service.vnp("submit", GENOME, "--pipeline", "dna", "--out", out, "--wait")
    # Then both are refused with the way out named, and not a byte has changed
    for done in (other, kept):
        assert done.returncode == 73
        assert "another job" in done.stderr
        assert "--force" in done.stderr
    assert digests(out) == before
    # And with --force the folder is the new job's
    service.wait(service.submit(FIXTURES / "virus_HCV.fa", out, "--force"))
    assert "NC_004102.1" in (out / "sequences.tsv").read_text()


def test_folder_of_something_else_is_left_alone(service: Service, tmp_path: Path) -> None:
    # Given a folder with a table that is not ours
    out = tmp_path / "out"
    out.mkdir()
    (out / "sequences.tsv").write_text("mine\n")
    # When a job shall go there
    done = service.vnp("submit", GENOME, "--out", out, "--wait")
    # Then
    assert done.returncode == 73
    assert "no folder of vnp" in done.stderr
    assert (out / "sequences.tsv").read_text() == "mine\n"


def test_folder_in_use(service: Service, tmp_path: Path) -> None:
    # Given an output folder that another process writes
    out = tmp_path / "out"
    out.mkdir()
    lock = FileLock(out / ".lock")
    try:
        # When a job shall go there
        done = service.vnp("submit", GENOME, "--out", out, "--wait")
    finally:
        lock.release()
    # Then
    assert done.returncode == 73
    assert f"{out} is in use by another run; choose another --out" in done.stderr
    assert names(out) == [".lock"]


def test_odd_records_are_valid(service: Service, tmp_path: Path) -> None:
    # Given an empty record, a short one, one of N only, names that come twice, and lower-case RNA
    path = tmp_path / "odd.fa"
    path.write_text(f">a\n>b\nAC\n>c\n{'N' * 500}\n>a\n{'ACGT' * 125}\n>d\n{'acguuc' * 90}\n")
    # When it is computed
    service.wait(service.submit(path, tmp_path / "out"))
    # Then each has its row, in order, with its status
    rows = (tmp_path / "out" / "sequences.tsv").read_text().splitlines()[1:]
    cells = [row.split("\t") for row in rows]
    assert [(row[0], row[1]) for row in cells] == [
        ("a", "0"),
        ("b", "2"),
        ("c", "500"),
        ("a", "500"),
        ("d", "540"),
    ]
    assert [row[10] for row in cells] == ["empty", "too_short", "ambiguous", "ok", "ok"]


def test_empty_file_is_valid(service: Service, tmp_path: Path) -> None:
    # Given a file without a byte; When it is computed; Then there are tables without a row
    path = tmp_path / "empty.fa"
    path.touch()
    out = tmp_path / "out"
    service.wait(service.submit(path, out))
    assert len((out / "sequences.tsv").read_text().splitlines()) == 1
    assert len((out / "chunks.tsv").read_text().splitlines()) == 1
    assert gzip.decompress((out / "virus.fasta.gz").read_bytes()) == b""
    assert service.vnp("verify", out).returncode == 0


def test_list_of_files_in_every_format(service: Service, tmp_path: Path) -> None:
    # Given the records of a genome file in four formats, named in a list
    read = b"ACGT" * 90 + b"\n+\n" + b"I" * 360 + b"\n"
    reads = b"@r1\n" + read + b"@r2\n" + read
    contents = {"a": zstd.compress(GENOME.read_bytes()), "b.fa": bz2.compress(reads), "c": reads}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    names = tmp_path / "names.txt"
    names.write_text("".join(f"{tmp_path / name}\n" for name in contents) + "\n")
    # When the list is submitted, filtered by length
    out = tmp_path / "out"
    service.wait(service.submit(GENOME, out, "--files-from", names, "--min-length", 400))
    # Then its records follow the named file's, and the shorter ones say why they have no call
    rows = [line.split("\t") for line in (out / "sequences.tsv").read_text().splitlines()[1:]]
    virus = "NC_001422.1"
    assert [row[0] for row in rows] == [virus, virus, "r1", "r2", "r1", "r2"]
    assert [row[10] for row in rows] == ["ok", "ok", *["filtered"] * 4]
    assert service.vnp("verify", out).returncode == 0
    # And strict refuses such a job
    strict = service.vnp("submit", GENOME, GENOME, "--strict", "--wait", "--out", tmp_path / "s")
    assert strict.returncode == 65
    assert "records 1 and 2 of the input have the same name" in strict.stderr


def test_no_input_at_all(service: Service, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.touch()
    for arguments in ((), ("--files-from", empty)):
        done = service.vnp("submit", *arguments)
        assert done.returncode == 64
        assert done.stderr.startswith("vnp: name FASTA files, or - for standard input")

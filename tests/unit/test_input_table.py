"""The table of docs/results.md, "every case has one outcome", row by row: none without a test."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest

from ops.errors import DataError, NoInputError
from ops.fasta import Alphabet, read_inputs
from ops.unpack import zstd

RESULTS = Path(__file__).parents[2] / "docs" / "results.md"
Records = list[tuple[str, bytes]]
ONE: Records = [("a", b"ACGT")]
LONG: Records = [("n" * 4_096, b"ACGT")]
TEXT = b">a\nACGT\n"
BOM = b"\xef\xbb\xbf"
ZSTD_OF_TWO = zstd.compress(b">a\nAC") + zstd.compress(b"GT\n")

#: Case -> contents of a file that are read, and what is found in them.
READ: dict[str, list[tuple[bytes, Records]]] = {
    "byte-order mark": [
        (BOM + TEXT, ONE),
        (BOM + b"\r\n" + TEXT, ONE),
        (BOM + b"@a\nACGT\n+\nIIII\n", ONE),
        (gzip.compress(BOM + TEXT), ONE),
        (BOM, []),
    ],
    "CRLF, CR": [
        (b">a\r\nAC\r\nGT\r\n", ONE),
        (b">a\rAC\rGT\r", ONE),
        (b">a\rAC\rGT", ONE),
        (b">a\r\nAC\nGT\r", ONE),
        (b">a\r\r\nAC\r\r\nGT\r\r\n", ONE),
    ],
    "blank lines first, inside, last": [(b"\n \t\n>a\n\nAC\n\n\nGT\n\n\n", ONE)],
    "no final newline": [(TEXT[:-1], ONE), (b">a", [("a", b"")])],
    "spaces and tabs in sequence lines": [(b">a\n AC GT\t\n", ONE), (b">a\nA C\nG\tT\n", ONE)],
    "lower case": [(b">a\nacgT\n", ONE)],
    "N and the other IUPAC letters": [(b">a\nNRYSWKMBDHVn\n", [("a", b"NRYSWKMBDHVN")])],
    "U": [(b">a\nACGu\n", [("a", b"ACGU")])],
    "empty record, also the last": [
        (b">a\n>b\nAC\n>c\n", [("a", b""), ("b", b"AC"), ("c", b"")]),
        (b">a\nACGT\n>b", [*ONE, ("b", b"")]),
        (b">a\n\n\n>b\n \n", [("a", b""), ("b", b"")]),
    ],
    "empty file, or only blank lines": [(b"", []), (b"\n\r\n \t\n", []), (gzip.compress(b""), [])],
    "header without a name": [(b">\nACGT\n", [("", b"ACGT")]), (TEXT + b"> \n", [*ONE, ("", b"")])],
    "header that is not ASCII": [
        (">é ü\nACGT\n".encode(), [("é", b"ACGT")]),
        (">é ü\nACGT\n".encode("latin-1"), [("é", b"ACGT")]),
    ],
    "a header of up to 1 MiB": [(b">" + b"n" * 4_096 + b" " + b"x" * 900_000 + b"\nACGT\n", LONG)],
    "two records of one name": [(TEXT + TEXT, ONE * 2)],
    "FASTQ of four lines a record": [(b"@a x\nACGT\n+\n@>;I\n", ONE)],
    "gzip, bgzip, zstd, bzip2, xz": [
        *((pack(TEXT), ONE) for pack in (gzip.compress, zstd.compress, bz2.compress)),
        (lzma.compress(TEXT), ONE),
        (gzip.compress(b">a\nAC") + gzip.compress(b"GT\n") + bytes(512), ONE),
        (ZSTD_OF_TWO, ONE),
    ],
    "plain text called .gz, gzip called .fa": [(TEXT, ONE), (gzip.compress(TEXT), ONE)],
}
#: Case -> contents that are refused, and words of the message.
REFUSED: dict[str, list[tuple[bytes, str]]] = {
    "digits in sequence lines": [
        (b">a\nAC1GT\n", "line 2, record 'a': '1'"),
        (b">a\n        1 acgt\n", "line 2, record 'a': '1'"),
    ],
    "gaps: `-` and `.`": [(b">a\nAC-GT\n", "gaps of an alignment"), (b">a\nA..T\n", "gaps of an")],
    "`*`": [(b">a\nACG*\n", "a stop codon; is this protein?")],
    "protein in a virus or dna job": [(b">a\nMKLVE\n", "use --pipeline protein")],
    "letters that are not ASCII": [(b">a\nAC\xc3\xa9GT\n", "line 2"), (b">a\nAC\xff\n", "line 2")],
    "NUL": [(b">a\nAC\0GT\n", "line 2, record 'a': '\\x00'"), (bytes(64), "not FASTA")],
    "HTML or XML page": [
        (b"<!DOCTYPE html>\n", "an HTML or XML page"),
        (b"\n\n<html>\n", "an HTML or XML page"),
        (BOM + b"<?xml version='1.0'?>", "an HTML or XML page"),
    ],
    "other text": [
        (b"hello\n", "line 1: not FASTA"),
        (b"a\tb\n1\t2\n", "line 1: not FASTA"),
        (TEXT.decode().encode("utf-16"), "not FASTA"),
    ],
    "a header of over 1 MiB": [(b">" + b"x" * (3 << 20), "a header of over 1 MiB")],
    "a name (the header's first word) of over 4 KiB": [
        (TEXT + b">" + b"x" * 4_097 + b" text\nACGT\n", "line 3: a name of 4097 bytes"),
        (b">" + "é".encode("latin-1") * 2_049 + b"\nACGT\n", "line 1: a name of 4098 bytes"),
        (b"@" + b"x" * 4_097 + b"\nACGT\n+\nIIII\n", "line 1: a name of 4097 bytes"),
        (TEXT + b"\n>b\nAC\n>" + b"x" * (1 << 20) + b"\nACGT\n", "line 6: a name of 1048576"),
    ],
    "FASTQ of more lines, cut off, or of other lengths than its marks": [
        (b"@a\nAC\nGT\n+\nII\nII\n", "not a FASTQ record of four lines"),
        (b"@a\nACGT\n+\n", "cut off"),
        (b"@a\nACGT\n+\nIII\n", "4 letters, but 3 quality marks"),
    ],
    "compressed and cut off, damaged, or with something after it": [
        *((pack(TEXT)[:-3], "damaged or cut off") for pack in (gzip.compress, bz2.compress)),
        (zstd.compress(TEXT)[:-3], "damaged or cut off"),
        (lzma.compress(TEXT)[:-3], "damaged or cut off"),
        (gzip.compress(TEXT) + TEXT, "damaged or cut off"),
    ],
    "unfolds to over 100 times its size, from 256 MiB on": [
        (gzip.compress(b">a\n" + b"A" * (300 << 20), 1), "times"),
    ],
}
#: In protein jobs, what is refused elsewhere.
PROTEIN = {"gaps: `-` and `.`": b"M-K.", "`*`": b"MK*", "protein in a virus or dna job": b"MKLVE"}
NO_INPUT = "a folder, a pipe, a device, a missing file"


def read(path: Path, content: bytes, alphabet: Alphabet = "nucleotide") -> Records:
    path.write_bytes(content)
    own = groupby(read_inputs([path], alphabet), key=lambda piece: (piece.ordinal, piece.name))
    return [(name, b"".join(piece.letters for piece in pieces)) for (_, name), pieces in own]


def documented() -> Iterator[tuple[str, str]]:
    """(case, outcome) of every row of the table."""
    part = RESULTS.read_text().partition("## Input: every case")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.*?) \| (.*) \|$", part, re.MULTILINE)
    yield from (row for row in rows if row[0] not in ("case", "---"))


def test_every_case_of_the_table_is_tested_and_every_case_tested_stands_there() -> None:
    told = dict(documented())
    assert set(told) == {*READ, *REFUSED, NO_INPUT}
    # And says so: a case that is refused, and only such a one
    for case, outcome in told.items():
        assert outcome.startswith("refused") is (case in REFUSED), case


@pytest.mark.parametrize("case", READ)
@pytest.mark.parametrize("name", ["x.fa", "x.fa.gz"])
def test_read(case: str, name: str, tmp_path: Path) -> None:
    for content, records in READ[case]:
        assert read(tmp_path / name, content) == records, content[:80]


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, tmp_path: Path) -> None:
    for content, words in REFUSED[case]:
        with pytest.raises(DataError) as caught:
            read(tmp_path / "x.fa", content)
        message = str(caught.value)
        assert message.startswith(str(tmp_path / "x.fa"))
        assert words in message, content[:80]
        assert message.isprintable()
        assert caught.value.exit_code == 65


@pytest.mark.parametrize("case", PROTEIN)
def test_letters_of_a_protein(case: str, tmp_path: Path) -> None:
    letters = PROTEIN[case]
    assert read(tmp_path / "x.fa", b">a\n" + letters + b"\n", "protein") == [("a", letters)]


def test_what_is_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/null"), tmp_path / "none.fa"):
        with pytest.raises(NoInputError) as caught:
            list(read_inputs([path], "nucleotide"))
        assert caught.value.exit_code == 66

"""The FASTA reader: every case of its table has one outcome, whatever the size of its pieces."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ops import fasta, source
from ops.errors import DataError, NoInputError, PermissionDeniedError
from ops.fasta import Alphabet, input_digest, read_inputs
from ops.unpack import zstd


def read(path: Path, content: bytes, alphabet: Alphabet = "nucleotide") -> list[tuple[str, bytes]]:
    """(name, letters) of every record of a file with that content."""
    path.write_bytes(content)
    pieces = read_inputs([path], alphabet)
    return [
        (own[0].name, b"".join(piece.letters for piece in own))
        for own in (list(group) for _, group in groupby(pieces, key=lambda piece: piece.ordinal))
    ]


@pytest.fixture(params=[(1 << 20, 1 << 20), (7, 50), (1, 1)])
def any_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same text arrives in large blocks, in small ones, and byte by byte."""
    monkeypatch.setattr(source, "BLOCK_BYTES", request.param[0])
    monkeypatch.setattr(fasta, "PIECE_LETTERS", request.param[1])


ACCEPTED = {
    "plain": (b">a\nACGT\n>b\nAC\nGT\n", [("a", b"ACGT"), ("b", b"ACGT")]),
    "byte-order mark": (b"\xef\xbb\xbf>a\nACGT\n", [("a", b"ACGT")]),
    "CRLF": (b">a x\r\nAC\r\nGT\r\n>b\r\nA\r\n", [("a", b"ACGT"), ("b", b"A")]),
    "CR": (b">a x\rAC\rGT\r>b\rA\r", [("a", b"ACGT"), ("b", b"A")]),
    "blank lines first": (b"\n \n\n>a\nACGT\n", [("a", b"ACGT")]),
    "blank lines inside": (b">a\nAC\n\nGT\n\n>b\nA", [("a", b"ACGT"), ("b", b"A")]),
    "no final newline": (b">a\nACGT", [("a", b"ACGT")]),
    "spaces and tabs": (b">a\nAC GT\tAC\n", [("a", b"ACGTAC")]),
    "lower case": (b">a\nacgtn\n", [("a", b"ACGTN")]),
    "IUPAC and U": (b">a\nACGTURYSWKMBDHVN\n", [("a", b"ACGTURYSWKMBDHVN")]),
    "empty file": (b"", []),
    "blank file": (b"\n \n", []),
    "empty record": (b">a\n>b\nAC\n", [("a", b""), ("b", b"AC")]),
    "empty last record": (b">a\nAC\n>b", [("a", b"AC"), ("b", b"")]),
    "duplicates": (b">a\nAC\n>a\nGT\n", [("a", b"AC"), ("a", b"GT")]),
    "no name": (b">\nAC\n", [("", b"AC")]),
    "UTF-8 header": (">vírus x\nAC\n".encode(), [("vírus", b"AC")]),
    "Latin-1 header": (">vírus x\nAC\n".encode("latin-1"), [("vírus", b"AC")]),
    "greater-than in header": (b">a>b c\nAC\n", [("a>b", b"AC")]),
    "FASTQ": (b"\n@r1 x\nACGT\n+\nII@I\n@r2\nGG\n+r2\n@I\n", [("r1", b"ACGT"), ("r2", b"GG")]),
    "FASTQ, CRLF, blank end": (b"@r\r\nAC\r\n+\r\nII\r\n\r\n\r\n", [("r", b"AC")]),
    "FASTQ, no final newline": (b"@r\nacgt\n+\n>>>>", [("r", b"ACGT")]),
    "FASTQ, no letters": (b"@r\n\n+\n\n@s\n\n+\n\n", [("r", b""), ("s", b"")]),
    "FASTQ, no letters, no newline": (b"@s\n\n+\n", [("s", b"")]),
}


@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted(case: str, tmp_path: Path) -> None:
    content, expected = ACCEPTED[case]
    assert read(tmp_path / "x.fa", content) == expected
    # And compressed, under a name that does not say so
    for compress in (gzip.compress, bz2.compress, lzma.compress, zstd.compress):
        assert read(tmp_path / "x.fa", compress(content)) == expected


REFUSED = {
    "digit": (b">a\nACGT\n>b x\nAC\nG7T\n", "line 5, record 'b': '7'"),
    "stop": (b">a\nACG*\n", "line 2, record 'a': '*'"),
    "gap": (b">a\nAC-G\n", "'-' is not a letter of a nucleotide sequence (gaps"),
    "protein": (b">p\nMKLVE\n", "use --pipeline protein"),
    "NUL": (b">a\nAC\0GT\n", "line 2, record 'a'"),
    "inner greater-than": (b">a\nAC>GT\n", "line 2, record 'a': '>'"),
    "HTML": (b"<!DOCTYPE html><html>\n", "line 1: not FASTA, there is no >"),
    "FASTQ with a bad letter": (b"@a\nAC\n+\nII\n@b\nAXC\n+\nIII\n", "line 6, record 'b': 'X'"),
    "FASTQ, wrapped": (b"@a\nAC\nGT\n+\nII\nII\n", "line 1: not a FASTQ record of four lines"),
    "FASTQ, cut off": (b"@a\nAC\n+\nII\n@b\nAC\n+", "line 5: the last record is cut off"),
    "FASTQ, lengths": (b"@a\nACG\n+\nII\n", "line 2: 3 letters, but 2 quality marks"),
    "FASTQ, a header inside": (b"@a\n>b\n+\nII\n", "line 1: not a FASTQ record"),
    "text": (b"hello\n>a\nAC\n", "line 1: not FASTA"),
}


@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_file_line_and_record(case: str, tmp_path: Path) -> None:
    content, message = REFUSED[case]
    with pytest.raises(DataError) as caught:
        read(tmp_path / "x.fa", content)
    assert str(tmp_path / "x.fa") in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_html_and_endless_headers_are_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="this is an HTML or XML page"):
        read(tmp_path / "x.fa", b"<!DOCTYPE html><html>\n")
    with pytest.raises(DataError, match="a header of over 1 MiB"):
        read(tmp_path / "x.fa", b">" + b"x" * (3 << 20))


def test_protein_alphabet(tmp_path: Path) -> None:
    assert read(tmp_path / "x.fa", b">a\nmkl*X-.JZ\n", "protein") == [("a", b"MKL*X-.JZ")]
    with pytest.raises(DataError, match="not a letter of a protein"):
        read(tmp_path / "x.fa", b">a\nMK1\n", "protein")


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": partial(gzip.compress, mtime=0),
    "zstd": zstd.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}


@pytest.mark.parametrize("compress", COMPRESSORS.values(), ids=COMPRESSORS)
def test_truncated_is_refused(compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    letters = bytes(random.Random(1).choices(b"ACGT", k=9_999))
    content = compress(b">a\n" + letters + b"\n")
    for cut in (12, 40, -9, -8, -1):
        with pytest.raises(DataError, match="damaged or cut off"):
            read(tmp_path / "x.fa", content[:cut])


@pytest.mark.parametrize("compress", COMPRESSORS.values(), ids=COMPRESSORS)
def test_damaged_is_refused(compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    content = bytearray(compress(b">a\n" + bytes(b"ACGT"[i * i % 4] for i in range(9999))))
    content[len(content) // 2] ^= 0xFF
    with pytest.raises(DataError, match=r"damaged or cut off|not a letter|not FASTA"):
        read(tmp_path / "x.fa", bytes(content))


@pytest.mark.parametrize("compress", COMPRESSORS.values(), ids=COMPRESSORS)
def test_several_streams_are_one_text(compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    # Given a file made by joining compressed files, as bgzip and pzstd do
    content = compress(b">a\nAC") + compress(b"GT\n>b\nA\n") + compress(b"")
    # Then it is one text, also with zeros at its end
    for padding in (b"", bytes(512)):
        assert read(tmp_path / "x.fa", content + padding) == [("a", b"ACGT"), ("b", b"A")]
    # And what follows, and is none of it, is refused
    with pytest.raises(DataError, match="damaged or cut off"):
        read(tmp_path / "x.fa", content + b"garbage that is no stream")


def test_zstd_frames_that_are_to_be_skipped(tmp_path: Path) -> None:
    # Given frames of user data before and between the frames of text
    skipped = (0x184D2A53).to_bytes(4, "little") + (5).to_bytes(4, "little") + b"hello"
    content = skipped + zstd.compress(b">a\nAC") + skipped + zstd.compress(b"GT\n") + skipped
    # Then the text is whole
    assert read(tmp_path / "x.fa", content) == [("a", b"ACGT")]


def test_xz_that_wants_too_much_memory_is_refused(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 512 << 20}]
    content = lzma.compress(b">a\nAC\n", filters=filters)
    with pytest.raises(DataError, match=r"[Mm]emory usage limit"):
        read(tmp_path / "x.fa", content)


def test_missing_folder_and_special_files(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "none.fa", "cannot be read"),
        (tmp_path, "is a folder"),
        (Path("/dev/null"), "not a regular file"),
    ):
        with pytest.raises(NoInputError, match=message):
            list(read_inputs([path], "nucleotide"))


def test_a_plain_file_that_fails_to_read_is_not_called_damaged_gzip() -> None:
    # Given a regular file whose first page gives EIO: nothing is mapped at address 0
    with pytest.raises(NoInputError, match=r"cannot be read: Input/output error"):
        list(read_inputs([Path("/proc/self/mem")], "nucleotide"))


def test_ordinals_and_digest_go_on_over_files(tmp_path: Path) -> None:
    # Given two files, one of them gzipped
    first, second = tmp_path / "1.fa", tmp_path / "2.fa"
    first.write_bytes(b">a\nAC\n>b\nGT\n")
    second.write_bytes(gzip.compress(b">a\nTT\n"))
    # When they are read as one input
    digest = input_digest()
    pieces = list(read_inputs([first, second], "nucleotide", digest))
    # Then records are counted through, and the digest is of the decompressed bytes
    assert [(p.ordinal, p.name, p.letters) for p in pieces] == [
        (0, "a", b"AC"),
        (1, "b", b"GT"),
        (2, "a", b"TT"),
    ]
    assert digest.digest() == hashlib.sha256(b">a\nAC\n>b\nGT\n>a\nTT\n").digest()


@settings(
    max_examples=200,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    records=st.lists(st.text("ACGTNacgtu \t\n", max_size=60), max_size=6),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
    block=st.integers(1, 40),
    piece=st.integers(1, 60),
)
def test_pieces_of_any_size_say_the_same(
    records: list[str], newline: str, block: int, piece: int, tmp_path: Path
) -> None:
    text = "".join(f">r{i} d\n{body}\n" for i, body in enumerate(records)).replace("\n", newline)
    expected = [(f"r{i}", "".join(body.split()).upper().encode()) for i, body in enumerate(records)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "BLOCK_BYTES", block)
        patch.setattr(fasta, "PIECE_LETTERS", piece)
        assert read(tmp_path / "x.fa", text.encode()) == expected


MEASURE = """
import resource, sys
from pathlib import Path
from ops.fasta import read_inputs
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
letters = sum(len(piece.letters) for piece in read_inputs([Path(sys.argv[1])], "nucleotide"))
print(letters, peak() - before)
"""


@pytest.mark.parametrize("width", [80, 0])
def test_memory_is_bounded_on_one_long_record(width: int, tmp_path: Path) -> None:
    # Given one record of 120 Mb, in lines or in a single one
    path = tmp_path / "long.fa"
    line = b"ACGTTGCA" * 10 + (b"\n" if width else b"")
    with path.open("wb") as stream:
        stream.write(b">long\n")
        for _ in range(150):
            stream.write(line * 10_000)
    # When it is read in a process of its own
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True
    )
    letters, kilobytes = map(int, done.stdout.split())
    # Then all of it arrived, in a few times the size of a piece (1 MiB)
    assert letters == 120_000_000
    assert kilobytes < 32_000


def outcome(path: Path, content: bytes) -> list[tuple[str, bytes]] | str:
    try:
        return read(path, content)
    except DataError as error:
        return str(error)


def test_a_gzip_cut_anywhere_is_refused_or_ends_with_a_member(tmp_path: Path) -> None:
    # Given a gzip file of two members
    letters = [bytes(b"ACGT"[(i * i + i // 7 + k) % 4] for i in range(300)) for k in (0, 1)]
    members = [gzip.compress(b">r\n" + own + b"\n", mtime=0) for own in letters]
    whole, end = members[0] + members[1], len(members[0])
    records = [("r", own) for own in letters]
    # When it is cut after every single byte
    found = {cut: outcome(tmp_path / "x.fa.gz", whole[:cut]) for cut in range(1, len(whole) + 1)}
    # Then only the ends of members are ends; nothing in it tells that a second one should follow
    accepted = {cut: got for cut, got in found.items() if not isinstance(got, str)}
    assert accepted == {end: records[:1], len(whole): records}
    # And one byte is not even gzip
    assert "not FASTA" in str(found.pop(1))
    refused = [got for cut, got in found.items() if cut not in accepted]
    assert all("x.fa.gz: the compressed data is damaged or cut off" in got for got in refused)


def test_what_follows_a_gzip_is_padding_or_damage(tmp_path: Path) -> None:
    content = gzip.compress(b">a\nACGT\n", mtime=0)
    # Zeros follow on tapes and in block devices; gzip itself ignores them
    assert outcome(tmp_path / "x.fa.gz", content + bytes(512)) == [("a", b"ACGT")]
    assert "damaged or cut off" in outcome(tmp_path / "x.fa.gz", content + b">b\nAC\n")


def test_plain_text_under_the_name_of_a_gzip_is_read(tmp_path: Path) -> None:
    assert read(tmp_path / "x.fa.gz", b">a\nACGT\n") == [("a", b"ACGT")]


def test_letters_that_are_not_ascii_are_refused(tmp_path: Path) -> None:
    message = outcome(tmp_path / "x.fa", b">a\nAC\n>b\nA\xe9C\n")
    assert "x.fa, line 4, record 'b'" in message


@pytest.mark.usefixtures("any_size")
def test_the_line_is_right_far_into_a_long_record(tmp_path: Path) -> None:
    # Given a fault in line 203 of a record of many pieces, in either line ending
    for newline in (b"\n", b"\r\n"):
        text = b">a\nACGT\n>b some words\n" + b"ACGTACGT\n" * 199 + b"ACG7\n" + b"ACGT\n" * 9
        with pytest.raises(DataError, match=r"x\.fa, line 203, record 'b': '7' is not a letter"):
            read(tmp_path / "x.fa", text.replace(b"\n", newline))


def test_inputs_lie_below_the_roots(tmp_path: Path) -> None:
    # Given a file in an allowed folder, one elsewhere, and links from here to there
    allowed, elsewhere = tmp_path / "allowed", tmp_path / "elsewhere"
    allowed.mkdir()
    elsewhere.mkdir()
    for folder in (allowed, elsewhere):
        (folder / "a.fa").write_text(">a\nACGT\n")
    (allowed / "link.fa").symlink_to(elsewhere / "a.fa")
    (allowed / "folder").symlink_to(elsewhere)
    (elsewhere / "back.fa").symlink_to(allowed / "a.fa")
    roots = (str(allowed),)
    # Then what is really below the root can be read, by whatever path
    for path in (allowed / "a.fa", elsewhere / "back.fa", allowed / ".." / "allowed" / "a.fa"):
        assert len(list(read_inputs([path], "nucleotide", roots=roots))) == 1
    # And nothing else
    outside = (allowed / "link.fa", allowed / "folder" / "a.fa", allowed / ".." / "elsewhere/a.fa")
    for path in (elsewhere / "a.fa", *outside):
        with pytest.raises(PermissionDeniedError, match="none of the folders of input_roots"):
            list(read_inputs([path], "nucleotide", roots=roots))


def test_a_pipe_that_nobody_writes_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NoInputError, match="not a regular file"):
        list(read_inputs([tmp_path / "pipe"], "nucleotide"))


def test_compression_bomb_is_refused_before_it_unfolds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a file that decompresses to a thousand times its size, and one that is just compressible
    monkeypatch.setattr(source, "RATIO_COUNTS_FROM", 1 << 22)
    bomb, honest = tmp_path / "bomb.fa.gz", tmp_path / "honest.fa.gz"
    bomb.write_bytes(gzip.compress(b">n\n" + b"N" * (64 << 20)))
    letters = "".join(random.Random(1).choices("ACGT", k=3 << 20))
    honest.write_bytes(gzip.compress(f">a\n{letters}\n>n\n{'N' * (3 << 20)}\n".encode(), 1))
    # Then the first is refused when it has shown itself
    pieces = []
    with pytest.raises(DataError, match="more than 100 times its size"):
        pieces.extend(read_inputs([bomb], "nucleotide"))
    assert sum(len(piece.letters) for piece in pieces) < 8 << 20
    # And the other is read
    assert sum(len(p.letters) for p in read_inputs([honest], "nucleotide")) == 6 << 20


ODD_PARTS = [
    *(b">", b"\n", b"\r", b"ACGT", b"acgtn", b"U", b" ", b"\x00", b"\xff", b"@", b"*", b">a\n"),
    *(b"\xef\xbb\xbf", b"\x1f\x8b", b"<html>", b"\t", b"N" * 50),
]


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from(ODD_PARTS) | st.binary(max_size=8), max_size=30),
    st.sampled_from(["plain", "gzip", "cut gzip"]),
)
def test_any_bytes_are_read_or_refused_in_one_line(parts: list[bytes], form: str) -> None:
    # Given anything at all
    data = b"".join(parts)
    written = data if form == "plain" else gzip.compress(data)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        path.write_bytes(written[:-1] if form == "cut gzip" else written)
        # When it is read
        pieces, refusal = [], ""
        try:
            pieces = list(read_inputs([path], "nucleotide"))
        except (DataError, NoInputError) as error:
            refusal = str(error)
        # Then it is records, or an error of ours in one line
        assert refusal.startswith(str(path)) or not refusal
        assert "\n" not in refusal
        assert form != "cut gzip" or refusal
        assert sum(len(piece.letters) for piece in pieces) <= len(data)
        assert sum(piece.last for piece in pieces) <= data.count(b">")

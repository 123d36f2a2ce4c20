"""A strict, streaming reader of FASTA (and FASTQ) over the bytes of `ops.source`.

What it accepts and what it refuses, each case with one outcome:

| case | outcome |
|---|---|
| UTF-8 byte-order mark; LF, CRLF or CR; blank lines anywhere; no final newline | read |
| spaces and tabs inside sequence lines | removed |
| lower case | upper-cased |
| empty file; a record without letters, also the last | no records; a record of length 0 |
| the same name twice | read; records are told apart by their ordinal |
| a header that is not UTF-8 | read as Latin-1 |
| a name (the header's first word) of over 4 KiB, a header of over 1 MiB | refused |
| letters that the alphabet lacks (digits, `*`, `-`, NUL; protein read as nucleotide) | refused |
| FASTQ, four lines a record | read; the qualities are dropped |
| text before the first `>` (HTML, a table) | refused |
| gzip, bgzip, zstd, bzip2, xz, whatever the name says | read |
| truncated or damaged compressed data | refused |
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from ops.errors import DataError
from ops.fastq import fastq_as_fasta
from ops.source import read_blocks

Alphabet = Literal["nucleotide", "protein"]

#: A record longer than this arrives in several pieces.
PIECE_LETTERS = 1 << 20
MAX_HEADER_BYTES = 1 << 20
#: In UTF-8. Names travel with every shard, and thousands of them have to fit in a message.
MAX_NAME_BYTES = 4 << 10
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

LETTERS: dict[str, bytes] = {
    "nucleotide": b"ACGTUNRYSWKMBDHV",
    "protein": b"ABCDEFGHIJKLMNOPQRSTUVWXYZ*-.",
}
_BLANK = b"\n \t\v\f"
_UPPER = bytes(range(256)).upper()


class Digest(Protocol):
    """What `hashlib` gives: fed with the input's decompressed bytes as they are read."""

    def update(self, data: bytes, /) -> None: ...


class Piece(NamedTuple):
    """A record, or a part of a long one. Pieces of a record follow each other, in order."""

    ordinal: int  # of the record in the whole input, from 0
    name: str  # the header's first word
    description: str  # the rest of the header
    start: int  # 0-based position in the record of the first letter
    letters: bytes  # upper-case
    last: bool  # the record ends here


def read_inputs(
    paths: Sequence[Path],
    alphabet: Alphabet,
    digest: Digest | None = None,
    roots: Sequence[str] = (),
) -> Iterator[Piece]:
    """All records of several files, one after another, in pieces of bounded size.

    Raises what `ops.source` raises, and DataError for the content, which names file, line and
    record.
    """
    ordinal = 0
    for path in paths:
        reader = _Reader(path, alphabet, ordinal)
        yield from reader.pieces(read_blocks(path, roots), digest)
        ordinal = reader.next_ordinal


def name_bytes(name: str) -> int:
    """Bytes of a name in UTF-8."""
    return len(name) if name.isascii() else len(name.encode())


def input_digest() -> hashlib._Hash:
    """sha256 over the decompressed bytes of all inputs: a gzipped copy is the same input."""
    return hashlib.sha256()


class _Reader:
    """The pieces of one file. `_line` counts finished lines, for messages only."""

    def __init__(self, path: Path, alphabet: Alphabet, first_ordinal: int) -> None:
        self.path = path
        self.alphabet = alphabet
        self.next_ordinal = first_ordinal
        self._allowed = LETTERS[alphabet]
        self._line = 1
        self._open: tuple[str, str, int] | None = None  # name, description, letters so far

    def pieces(self, blocks: Iterator[bytes], digest: Digest | None) -> Iterator[Piece]:
        """Cuts the text before its last header; what follows waits for more, or becomes a piece."""
        pending = b""
        started = False
        texts = self._as_fasta(_unix_lines(blocks, digest))
        for text in texts:
            pending += text
            if not started:
                self._require_header(pending)
                started = True
            cut = pending.rfind(b"\n>")
            if cut >= 0:
                yield from self._records(pending[:cut], complete=True)
                self._line += 1
                pending = pending[cut + 1 :]
            if len(pending) > PIECE_LETTERS and self._has_header(pending):
                # The last byte stays: what follows then starts inside a line, or with a newline,
                # and so a > at its start is never taken for a header.
                yield from self._records(pending[:-1], complete=False)
                pending = pending[-1:]
        if started:
            yield from self._records(pending, complete=True)

    def _has_header(self, pending: bytes) -> bool:
        """True when the header of the record in `pending` is whole. Raises DataError: no end."""
        if self._open is not None or b"\n" in pending[:-1]:
            return True
        if len(pending) > MAX_HEADER_BYTES:
            raise DataError(
                f"{self.path}, line {self._line}: a header of over 1 MiB; is this FASTA?"
            )
        return False

    def _as_fasta(self, texts: Iterator[bytes]) -> Iterator[bytes]:
        """The texts from the first that is not blank on; FASTQ becomes FASTA."""
        for text in texts:
            kept = text.lstrip(_BLANK)
            self._line += text[: len(text) - len(kept)].count(b"\n")
            if kept:
                rest = chain([kept], texts)
                yield from fastq_as_fasta(rest, self.path, self._line) if kept[:1] == b"@" else rest
                return

    def _require_header(self, text: bytes) -> None:
        """Raises DataError for a text that does not start as FASTA does, and guesses what it is."""
        if text[:1] == b">":
            return
        guess = "is this plain text?"
        if text[:64].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
            guess = "this is an HTML or XML page, perhaps of a failed download"
        raise DataError(f"{self.path}, line {self._line}: not FASTA, there is no > ({guess})")

    def _records(self, text: bytes, *, complete: bool) -> Iterator[Piece]:
        """The records in a text that starts with a header, or goes on with the open record.

        complete: the last record ends with the text.
        """
        bodies = text.split(b"\n>")
        offset = 0
        for number, body in enumerate(bodies):
            last = complete or number + 1 < len(bodies)
            at = offset
            if self._open is None:
                header, _, body = body[number == 0 :].partition(b"\n")
                self._begin(header, text, at)
                at += len(header) + 1 + (number == 0)
            yield self._piece(body, text, at, last)
            offset += len(bodies[number]) + 2
        self._line += text.count(b"\n")

    def _begin(self, header: bytes, text: bytes, at: int) -> None:
        """The header stands in `text` from offset `at` on: for messages only."""
        try:
            words = header.decode("utf-8").split(None, 1)
        except UnicodeDecodeError:
            words = header.decode("latin-1").split(None, 1)
        name, description = (*words, "", "")[:2]
        if len(header) > MAX_NAME_BYTES // 2 and name_bytes(name) > MAX_NAME_BYTES:
            line = self._line + text[:at].count(b"\n")
            raise DataError(
                f"{self.path}, line {line}: a name of "
                f"{name_bytes(name)} bytes, {name[:40]!r}...; the limit is {MAX_NAME_BYTES}: "
                "put a space after the first word of the header, or shorten it"
            )
        self._open = (name, description.rstrip(), 0)

    def _piece(self, body: bytes, text: bytes, at: int, last: bool) -> Piece:
        """`body` stands in `text` at offset `at`: for messages only."""
        assert self._open is not None
        name, description, start = self._open
        letters = body.translate(_UPPER, _BLANK)
        if bad := letters.translate(None, self._allowed):
            where = at + next(i for i, byte in enumerate(body) if _UPPER[byte] == bad[0])
            self._refuse(name, self._line + text[:where].count(b"\n"), bad[0])
        piece = Piece(self.next_ordinal, name, description, start, letters, last)
        self._open = None if last else (name, description, start + len(letters))
        self.next_ordinal += last
        return piece

    def _refuse(self, name: str, line: int, byte: int) -> None:
        letter = chr(byte)
        advice = "remove it, or fetch the file again"
        if self.alphabet == "nucleotide" and letter in "EFIJLOPQXZ":
            advice = "is this protein? then use --pipeline protein"
        elif self.alphabet == "nucleotide" and letter in "-.":
            advice = "gaps of an alignment; remove them"
        elif self.alphabet == "nucleotide" and letter == "*":
            advice = "a stop codon; is this protein? then use --pipeline protein"
        raise DataError(
            f"{self.path}, line {line}, record {name!r}: {letter!r} is not a letter of a "
            f"{self.alphabet} sequence ({advice})"
        )


def _unix_lines(blocks: Iterator[bytes], digest: Digest | None) -> Iterator[bytes]:
    """The text with LF line ends and without byte-order mark; the digest sees it as it was."""
    held = b""
    first = True
    for block in blocks:
        if digest is not None:
            digest.update(block)
        text = held + block
        if first and len(text) < len(BYTE_ORDER_MARK):
            held = text
            continue
        text = text.removeprefix(BYTE_ORDER_MARK) if first else text
        first = False
        held = b"\r" if text.endswith(b"\r") else b""  # the other half of CRLF may follow
        text = text[: len(text) - len(held)]
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        yield text
    if held:
        yield held.replace(b"\r", b"\n")

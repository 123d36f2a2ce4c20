"""virus.fasta.gz: the records called virus, taken from the input once more, in input order."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from ops.errors import DataError
from ops.tables import escape

LINE = 60
#: Fixed, so that the same records give the same bytes. Level 6 takes seven times as long, almost
#: half of the time of all tables, for 6 % less (docs/log.md).
LEVEL = 4


class RecordPiece(Protocol):
    """What the FASTA reader delivers (`ops.fasta.Piece`): a record in one or more pieces."""

    @property
    def ordinal(self) -> int: ...

    @property
    def name(self) -> str: ...

    @property
    def letters(self) -> bytes | NDArray[np.uint8]: ...

    @property
    def last(self) -> bool: ...


def write_virus_fasta(target: BinaryIO, pieces: Iterable[RecordPiece], sequences: BinaryIO) -> None:
    """Writes the records that `sequences` (sequences.tsv) calls virus, 60 letters a line.

    Raises DataError when the input is not the one that the table was made of.
    """
    calls = read_calls(sequences)
    with gzip.GzipFile(filename="", mode="wb", fileobj=target, compresslevel=LEVEL, mtime=0) as out:
        writer = _Writer(out)
        for piece in pieces:
            writer.add(piece, calls)
    if next(calls, None) is not None:
        raise DataError("an input has lost records since it was submitted; submit it again")


def read_calls(sequences: BinaryIO) -> Iterator[tuple[str, int, bool]]:
    """(name, length, called virus) of every record of a sequences.tsv, in order."""
    next(sequences)
    for line in sequences:
        name, length, prediction, _ = line.decode().split("\t", 3)
        yield name, int(length), prediction == "virus"


class _Writer:
    """Follows the pieces of one record after the other."""

    def __init__(self, out: gzip.GzipFile) -> None:
        self._out = out
        self._ordinal = -1
        self._call = ("", 0, False)
        self._length = 0
        self._rest = b""

    def add(self, piece: RecordPiece, calls: Iterator[tuple[str, int, bool]]) -> None:
        if piece.ordinal != self._ordinal:
            self._begin(piece, calls)
        letters = bytes(piece.letters)
        self._length += len(letters)
        if self._call[2]:
            self._write(letters, piece.last)
        if piece.last and self._length != self._call[1]:
            raise _changed(piece)

    def _begin(self, piece: RecordPiece, calls: Iterator[tuple[str, int, bool]]) -> None:
        self._ordinal, self._length, self._rest = piece.ordinal, 0, b""
        self._call = next(calls, ("", -1, False))
        if self._call[1] < 0 or self._call[0] != escape(piece.name):
            raise _changed(piece)
        if self._call[2]:
            description = getattr(piece, "description", "")
            header = f">{piece.name} {description}" if description else f">{piece.name}"
            self._out.write(header.encode("utf-8", "surrogateescape") + b"\n")

    def _write(self, letters: bytes, last: bool) -> None:
        letters = self._rest + letters
        whole = len(letters) if last else len(letters) // LINE * LINE
        self._rest = letters[whole:]
        self._out.write(wrap(letters[:whole]))


def wrap(letters: bytes) -> bytes:
    """Lines of 60 letters, the last one shorter; no letters, no line."""
    full = len(letters) // LINE * LINE
    lines = np.full((full // LINE, LINE + 1), ord("\n"), np.uint8)
    lines[:, :LINE] = np.frombuffer(letters, np.uint8, full).reshape(-1, LINE)
    tail = letters[full:]
    return lines.tobytes() + (tail + b"\n" if tail else b"")


def _changed(piece: RecordPiece) -> DataError:
    return DataError(
        f"record {piece.ordinal + 1} ({escape(piece.name)}) of the input has changed since it was "
        "submitted; submit it again"
    )

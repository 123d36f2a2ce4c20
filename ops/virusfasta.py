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


class VirusFasta:
    """Takes the lines of all records of sequences.tsv, in order; writes those called virus, 60
    letters a line. It reads the input as far as the lines go.

    Raises DataError when the input is not the one that the lines were made of. The end of the block
    closes the gzip stream, and the target stays open.
    """

    def __init__(self, target: BinaryIO, pieces: Iterable[RecordPiece]) -> None:
        self._out = gzip.GzipFile(
            filename="", mode="wb", fileobj=target, compresslevel=LEVEL, mtime=0
        )
        self._pieces = iter(pieces)
        self._rest = b""

    def __enter__(self) -> VirusFasta:
        return self

    def __exit__(self, *exception: object) -> None:
        self._out.close()

    def add(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            name, length, prediction, _ = line.decode().split("\t", 3)
            self._follow(name, int(length), prediction == "virus")

    def require_end(self) -> None:
        """The input has no records more than there were lines."""
        if (piece := next(self._pieces, None)) is not None:
            raise _changed(piece)

    def _follow(self, name: str, length: int, is_virus: bool) -> None:
        """Reads the next record, and writes it when it is called virus."""
        first = next(self._pieces, None)
        if first is None:
            raise DataError("an input has lost records since it was submitted; submit it again")
        if escape(first.name) != name:
            raise _changed(first)
        if is_virus:
            self._begin(first)
        seen = 0
        for piece in _record(first, self._pieces):
            letters = bytes(piece.letters)
            seen += len(letters)
            if is_virus:
                self._write(letters, piece.last)
        if seen != length:
            raise _changed(first)

    def _begin(self, piece: RecordPiece) -> None:
        self._rest = b""
        description = getattr(piece, "description", "")
        header = f">{piece.name} {description}" if description else f">{piece.name}"
        self._out.write(header.encode("utf-8", "surrogateescape") + b"\n")

    def _write(self, letters: bytes, last: bool) -> None:
        letters = self._rest + letters
        whole = len(letters) if last else len(letters) // LINE * LINE
        self._rest = letters[whole:]
        self._out.write(wrap(letters[:whole]))


def _record(piece: RecordPiece, pieces: Iterator[RecordPiece]) -> Iterator[RecordPiece]:
    """The pieces of one record, from its first one on."""
    yield piece
    while not piece.last:
        piece = next(pieces)
        yield piece


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

"""The bytes of an input file: a regular file in a place that is allowed, decompressed, and bounded.

What is checked is the file that is open, not the path that was asked for: a link that is exchanged
between a check and the opening changes nothing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from ops.errors import DataError, NoInputError, PermissionDeniedError
from ops.unpack import LONGEST_MAGIC, UNPACK_ERRORS, unpack, unpacker

BLOCK_BYTES = 1 << 20
#: Sequences compress 3- to 5-fold, runs of N a thousandfold. More than this of a file of some size
#: is no genome: gzip can blow 10 MB up to 10 GB.
MAX_RATIO = 100
RATIO_COUNTS_FROM = 256 << 20


def open_source(path: Path, roots: Sequence[str] = ()) -> IO[bytes]:
    """The open file. roots: folders that inputs may lie in, links followed; none: anywhere.

    Raises NoInputError (missing, unreadable, a folder, a device), PermissionDeniedError (not below
    one of the roots).
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise NoInputError(f"{path} cannot be read: {error.strerror}") from error
    try:
        _check(path, descriptor, roots)
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def _check(path: Path, descriptor: int, roots: Sequence[str]) -> None:
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISDIR(mode):
        raise NoInputError(f"{path} is a folder; name the FASTA files in it")
    if not stat.S_ISREG(mode):
        raise NoInputError(f"{path} is not a regular file; use - to read from standard input")
    if not roots:
        return
    real = Path(f"/proc/self/fd/{descriptor}").readlink()
    if not any(real.is_relative_to(Path(root).resolve()) for root in roots):
        raise PermissionDeniedError(
            f"{path} lies in none of the folders of input_roots; copy it there, or pass it on "
            "standard input"
        )


def check_readable(path: Path, roots: Sequence[str] = ()) -> None:
    """Raises what `open_source` raises."""
    open_source(path, roots).close()


def read_blocks(path: Path, roots: Sequence[str] = ()) -> Iterator[bytes]:
    """The decompressed bytes, by what the file is and not by its name, in blocks of BLOCK_BYTES.

    Raises what `open_source` raises, and DataError for compressed data that is damaged or cut off,
    or larger than MAX_RATIO times the file.
    """
    with open_source(path, roots) as raw:
        total = 0
        try:
            make = unpacker(raw.read(LONGEST_MAGIC))
            raw.seek(0)
            plain = iter(lambda: raw.read(BLOCK_BYTES), b"")
            for block in unpack(raw, make, BLOCK_BYTES) if make else plain:
                total += len(block)
                if make and total > RATIO_COUNTS_FROM:
                    _check_ratio(path, total, raw.tell())
                yield block
        except UNPACK_ERRORS as error:
            if isinstance(error, OSError) and error.errno is not None:  # not the data's own
                raise NoInputError(f"{path} cannot be read: {error.strerror}") from error
            raise DataError(
                f"{path}: the compressed data is damaged or cut off after {total} bytes of text "
                f"({error}); fetch the file again"
            ) from error


def _check_ratio(path: Path, total: int, compressed: int) -> None:
    if total > MAX_RATIO * compressed:
        raise DataError(
            f"{path} decompresses to more than {MAX_RATIO} times its size; if that is meant, "
            "decompress it first"
        )

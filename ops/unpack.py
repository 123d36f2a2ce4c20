"""Compressed bytes to text, whatever the file is called: gzip, bgzip, zstd, bzip2 and xz, told by
their magic bytes, of one stream or of many that follow each other.

Every format comes as an object of the same shape (`bz2.BZ2Decompressor`), which gives at most as
much text as it is asked for; so one loop reads them all, in bounded memory.
"""

from __future__ import annotations

import bz2
import lzma
import sys
from collections.abc import Callable, Iterator
from typing import IO, Protocol

from isal import igzip_lib

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

READ_BYTES = 128 << 10
#: `xz -9` needs 65 MiB; a file may ask for 4 GiB.
XZ_MEMORY_BYTES = 128 << 20
LONGEST_MAGIC = 6


class Decompressor(Protocol):
    """One stream. `decompress` gives at most max_length bytes, and takes b"" for "go on"."""

    def decompress(self, data: bytes, max_length: int) -> bytes: ...

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...


def _gzip() -> Decompressor:
    stream: Decompressor = igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_GZIP)
    return stream


def _xz() -> Decompressor:
    return lzma.LZMADecompressor(memlimit=XZ_MEMORY_BYTES)


#: (first bytes, a fresh stream). zstd: a frame, or one that is to be skipped (0 to 15).
_FORMATS: tuple[tuple[bytes, Callable[[], Decompressor]], ...] = (
    (b"\x1f\x8b", _gzip),
    (b"\x28\xb5\x2f\xfd", zstd.ZstdDecompressor),
    *((bytes([0x50 + n, 0x2A, 0x4D, 0x18]), zstd.ZstdDecompressor) for n in range(16)),
    (b"BZh", bz2.BZ2Decompressor),
    (b"\xfd7zXZ\x00", _xz),
)
#: What damaged data raises, OSErrors without a number among it. (isal's stubs call its error an
#: instance.)
UNPACK_ERRORS: tuple[type[Exception], ...] = (
    EOFError,
    OSError,
    vars(igzip_lib)["error"],
    zstd.ZstdError,
    lzma.LZMAError,
    ValueError,
)


def unpacker(head: bytes) -> Callable[[], Decompressor] | None:
    """What reads a file that starts with these LONGEST_MAGIC bytes; None: it is not compressed."""
    return next((make for magic, make in _FORMATS if head.startswith(magic)), None)


def unpack(raw: IO[bytes], make: Callable[[], Decompressor], block_bytes: int) -> Iterator[bytes]:
    """The text of all streams, in blocks of at most block_bytes.

    Zeros between and after streams (padding of tapes, and of xz) are skipped. Raises EOFError for
    a stream that is cut off, others of UNPACK_ERRORS for one that is damaged.
    """
    left = raw.read(READ_BYTES)
    while left:
        stream = make()
        while not stream.eof:
            data = b""
            if stream.needs_input:
                data, left = left or raw.read(READ_BYTES), b""
                if not data:
                    raise EOFError("it ends within a compressed stream")
            if text := stream.decompress(data, block_bytes):
                yield text
        left = _without_padding(stream.unused_data, raw)


def _without_padding(left: bytes, raw: IO[bytes]) -> bytes:
    """The bytes that follow, from the first that is not zero on; empty at the end of the file."""
    left = left.lstrip(b"\0")
    while not left and (more := raw.read(READ_BYTES)):
        left = more.lstrip(b"\0")
    return left

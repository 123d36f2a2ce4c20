"""OUT/manifest.jsonl, the commit journal: a header, then one line per writer and committed shard.

Each line is JSON whose last key is the CRC-32 of the line's bytes before it. A line counts when it
is whole. A shard is committed when, and only when, its line stands here.

The file only grows: nothing that a process does which has lost the folder, and wakes late, can take
away what its successor wrote. What a crash or a full disk has torn off stays as it is, and the next
line is an epoch's: damage before an epoch line, or at the end, never happened; any other is an
error. Lines of an older epoch that follow a newer epoch's line count for nothing.
"""

from __future__ import annotations

import errno
import json
import os
import re
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from ops.errors import CorruptionError, FencedError, IdentityError
from ops.identity import Identity

FORMAT = 1
MANIFEST = "manifest.jsonl"


@dataclass(frozen=True, kw_only=True)
class HeaderLine:
    """Whose results these are: the first line. All of it must agree for a run to go on here."""

    format: int = FORMAT
    identity: Identity
    input_digest: str
    num_shards: int
    num_records: int
    embeddings: bool
    shard_bases: int
    shard_records: int

    def to_dict(self) -> dict[str, Any]:
        own = {**asdict(self), "identity": self.identity.to_dict()}
        return {"kind": "header", **own, "identity_digest": self.identity.digest}


@dataclass(frozen=True, kw_only=True)
class EpochLine:
    """A writer took over. Epochs count from 1."""

    epoch: int
    node: str
    host: str
    pid: int
    time: str  # RFC 3339, UTC
    job: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "epoch", **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class ShardLine:
    """A shard is committed: file (in OUT), what it holds, and the numerics hashes of its rows."""

    shard: int
    file: str
    rows: int
    records: int  # records, or parts of one, in the shard
    chunks: int
    bytes: int
    sha256: str  # hex, of the file
    numerics: tuple[str, ...]
    epoch: int

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "shard", **asdict(self)}


Line = HeaderLine | EpochLine | ShardLine
L = TypeVar("L", HeaderLine, EpochLine, ShardLine)
_TYPES: dict[str, type] = {"int": int, "str": str, "bool": bool}
#: In an object store the epoch belongs to the name (`ops.bucket`).
_FILE = re.compile(r"shards/shard-[0-9]{6,}(-[0-9]{5,})?\.h5")


@dataclass
class ManifestState:
    """All that a manifest says. good_bytes: up to here it is whole; torn_bytes: what follows."""

    header: HeaderLine | None = None
    epochs: list[EpochLine] = field(default_factory=list)
    shards: dict[int, ShardLine] = field(default_factory=dict)
    good_bytes: int = 0
    torn_bytes: int = 0

    @property
    def epoch(self) -> int:
        return self.epochs[-1].epoch if self.epochs else 0

    @property
    def numerics(self) -> tuple[str, ...]:
        return tuple(sorted({name for line in self.shards.values() for name in line.numerics}))

    def apply(self, line: Line) -> ShardLine | None:
        """Takes one line in; returns it when it commits a shard that was not committed before."""
        if isinstance(line, HeaderLine):
            self.header = line
            self.shards.clear()  # a later one (`ops.bucket`) begins anew
        elif isinstance(line, EpochLine):
            if line.epoch > self.epoch:
                self.epochs.append(line)
        elif line.epoch == self.epoch and line.shard not in self.shards:
            self.shards[line.shard] = line
            return line
        return None


def encode_line(line: Line) -> bytes:
    """A line as it stands in the file, CRC and newline included."""
    body = json.dumps(line.to_dict(), separators=(",", ":")).encode()[:-1]
    return body + b',"crc":"%08x"}\n' % zlib.crc32(body)


def decode_line(raw: bytes) -> Line | None:
    """A line without its newline; None when its CRC says that it is not whole."""
    body, mark, crc = raw[:-18], raw[-18:-10], raw[-10:]
    if mark != b',"crc":"' or crc != b'%08x"}' % zlib.crc32(body):
        return None
    try:
        return _make_line(json.loads(body + b"}"))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CorruptionError(
            f"a manifest line of another program or version: {error!r}"
        ) from error


def _make_line(values: dict[str, Any]) -> Line:
    kind = values.pop("kind")
    if kind == "header":
        if values["format"] != FORMAT:
            raise IdentityError(
                f"results in format {values['format']}, not {FORMAT}; choose another --out"
            )
        values.pop("identity_digest")
        values["identity"] = Identity.from_dict(values["identity"])
        return _typed(HeaderLine, values)
    if kind == "epoch":
        return _typed(EpochLine, values)
    if kind == "shard":
        line = _typed(ShardLine, {**values, "numerics": tuple(values["numerics"])})
        if not _FILE.fullmatch(line.file):  # a line must not lead anywhere else
            raise ValueError(line.file)
        return line
    raise ValueError(f"kind {kind!r}")


def _typed(cls: type[L], values: dict[str, Any]) -> L:
    """The line, when every value has the type that its field says."""
    line = cls(**values)
    for field_ in fields(cls):
        value = getattr(line, field_.name)
        wanted = _TYPES.get(str(field_.type))
        if wanted is not None and type(value) is not wanted:
            raise TypeError(f"{field_.name} is {value!r}")
    return line


def scan(stream: BinaryIO, path: Path) -> Iterator[tuple[Line, int]]:
    """Whole lines from the stream's position on, each with the offset of its end.

    Ends at a torn or damaged tail. Raises CorruptionError for a damaged line that is followed by
    another one than an epoch's: no crash makes one.
    """
    offset = end = stream.tell()
    for raw in stream:
        line = decode_line(raw[:-1]) if raw.endswith(b"\n") else None
        end += len(raw)
        if line is None:
            continue
        damaged = end - len(raw) > offset
        # The header is never torn: it comes with the file.
        if damaged and (offset == 0 or not isinstance(line, EpochLine)):
            raise CorruptionError(
                f"{path} is damaged at byte {offset}; `vnp verify --repair {path.parent}` computes "
                "anew what it has lost"
            )
        offset = end
        yield line, offset


def read_manifest(path: Path) -> ManifestState:
    """Reads a manifest from its start. Raises CorruptionError; FileNotFoundError when none is."""
    state = ManifestState()
    with path.open("rb") as stream:
        for line, state.good_bytes in scan(stream, path):
            state.apply(line)
        state.torn_bytes = stream.seek(0, os.SEEK_END) - state.good_bytes
    return state


class ManifestTail:
    """Follows a manifest that a writer appends to, from another process.

    Every look opens the file: an NFS client asks its server then (close-to-open), while what it
    tells of a path may be seconds old.
    """

    is_away = False  # a folder answers, or keeps its caller waiting

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known_until = 0.0
        self._start_over(0)

    def _start_over(self, inode: int) -> None:
        self._inode = inode
        self._offset = 0
        self._epoch = 0
        self.committed: set[int] = set()

    def poll(self, *, at_once: bool = False) -> list[ShardLine]:
        """Shards committed since the last call; `committed` has all of them.

        A manifest that was replaced is read anew. One that is away for the moment has nothing new.
        """
        asked = time.monotonic()
        try:
            new = self._read_on()
        except OSError:
            return []
        self.known_until = asked
        return new

    def _read_on(self) -> list[ShardLine]:
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return self._read_on_in(descriptor)
        finally:
            os.close(descriptor)

    def _read_on_in(self, descriptor: int) -> list[ShardLine]:
        stat = os.fstat(descriptor)
        if stat.st_ino != self._inode or stat.st_size < self._offset:
            self._start_over(stat.st_ino)
        if stat.st_size == self._offset:
            return []
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            stream.seek(self._offset)
            return [shard for shard in map(self._take, scan(stream, self.path)) if shard]

    def _take(self, found: tuple[Line, int]) -> ShardLine | None:
        """The same rule as ManifestState.apply, for a reader that keeps numbers only."""
        line, self._offset = found
        if isinstance(line, EpochLine):
            self._epoch = max(self._epoch, line.epoch)
        if not isinstance(line, ShardLine) or line.epoch != self._epoch:
            return None
        if line.shard in self.committed:
            return None
        self.committed.add(line.shard)
        return line


class ManifestWriter:
    """Appends to a manifest, as one epoch; whoever holds OUT's lock, and nobody else.

    state: what the manifest says now.
    """

    def __init__(self, path: Path, state: ManifestState) -> None:
        self.path = path
        self._epoch = EpochLine(epoch=state.epoch, node="", host="", pid=0, time="")
        self._size = state.good_bytes + state.torn_bytes
        self._torn = state.torn_bytes > 0
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)

    def start(self, epoch: EpochLine) -> None:
        """Begins an epoch: from here on, lines of older ones count for nothing."""
        self.require_ours()
        self._epoch = epoch
        self._write(b"\n" * self._torn + encode_line(epoch))

    def append(self, line: ShardLine) -> None:
        """Makes a line durable. Raises OSError: try again; FencedError: the folder is lost."""
        self.require_ours()
        again = b"\n" + encode_line(self._epoch) if self._torn else b""
        self._write(again + encode_line(line))

    def _write(self, data: bytes) -> None:
        written = os.write(self._descriptor, data)
        if written != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(self._descriptor)
        self._size += written
        self._torn = False

    def require_ours(self) -> None:
        """Raises FencedError when there is a newer epoch or OUT is another folder, OSError when
        OUT is away."""
        held, found = os.fstat(self._descriptor), self.path.stat()
        if (held.st_dev, held.st_ino) != (found.st_dev, found.st_ino):
            raise FencedError(f"{self.path} was replaced; another run has taken its folder over")
        if held.st_size < self._size:
            raise FencedError(f"{self.path} was cut by another process; stop that one first")
        if held.st_size > self._size:
            self._read_on(os.pread(self._descriptor, held.st_size - self._size, self._size))

    def _read_on(self, data: bytes) -> None:
        """What was written since: a line of ours that failed, or somebody else's."""
        for raw in data.splitlines(keepends=True):
            line = decode_line(raw[:-1]) if raw.endswith(b"\n") else None
            if isinstance(line, EpochLine) and line.epoch > self._epoch.epoch:
                raise FencedError(
                    f"{self.path} has a newer writer; nothing of this one counts any more"
                )
            self._torn = line is None
        self._size += len(data)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

"""Where a job's results lie: a folder (`ops.folder`), or a prefix of a store (`ops.bucket`).

    NAME/manifest...     the truth (`ops.manifest`); what it does not name does not exist
    NAME/shards/*.h5     `ops.shardfile`
    everything else      made from the shards at the end (`ops.finish`)

A `Place` is for readers; the one writer of a place has it as a `Hold` (`ops.output`).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from ops.manifest import EpochLine, HeaderLine, ManifestState, ShardLine

_REMOTE = re.compile(r"(s3|gs|az)://[^/]+(/.*)?")


class Tail(Protocol):
    """Follows a manifest that a writer appends to, from another process.

    known_until: by time.monotonic(); what was committed before that is known. 0: there is more to
    read. is_away: the place did not answer when it was last asked.
    """

    committed: set[int]
    known_until: float

    @property
    def is_away(self) -> bool: ...

    def poll(self, *, at_once: bool = False) -> list[ShardLine]:
        """Shards committed since the last call; `committed` has all of them. at_once: also when
        the last look was only a moment ago."""


class Place(Protocol):
    """Results to read. str(place) is what users call it."""

    def path(self, name: str) -> str:
        """A file of it, for messages."""

    def manifest(self) -> ManifestState:
        """Raises FileNotFoundError when there is none, CorruptionError."""

    def tail(self, slice_s: float = math.inf) -> Tail:
        """slice_s: about how long a `poll` may read; the next one reads on."""

    def read(self, name: str) -> bytes:
        """A small file. Raises FileNotFoundError."""

    def local(self, name: str) -> AbstractContextManager[Path]:
        """A file of it on a local disk, inside the block. Raises FileNotFoundError, at the latest
        when it is opened."""

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        """Bytes of each file; -1 for one that is not there."""

    def times(self, names: Iterable[str]) -> dict[str, float]:
        """When each file was written, in seconds since 1970; only of those that are there."""

    def write(self, name: str, data: bytes) -> None:
        """Replaces a file, whole or not at all."""

    def hold(self, job: str, *, again: bool) -> Hold:
        """Takes it for a job's writing. again: the job has held it before, so it must be there.

        Raises OutputError: in use, not writable, away.
        """


class Hold(Protocol):
    """A place in the hands of its one writer."""

    def clear(self) -> None:
        """Removes an earlier job's files; interrupted anywhere, what is left is consistent. Those
        of the very job stay where another writer of it may have begun anew before."""

    def begin(self, ours: HeaderLine, *, anew: bool) -> ManifestState:
        """What the manifest says; a new one when there is none, or when it is to begin anew."""

    def require_room(self, need_bytes: int) -> None:
        """Raises OutputError when there is less than that left."""

    def start_epoch(
        self, state: ManifestState, describe: Callable[[int], EpochLine]
    ) -> ManifestState:
        """Begins a new epoch, which fences all writers before; returns what the manifest says then.

        describe(number) is the line of the epoch of that number.
        """

    def require_shards(self, state: ManifestState, check: Callable[[], None]) -> None:
        """Every committed shard is there as it was committed. Raises CorruptionError; what check
        raises, called between two files."""

    def publish(self, shard: int, image: bytes) -> str:
        """Makes a shard's file durable; returns its name. Nothing is committed by that."""

    def append(self, line: ShardLine) -> None:
        """Makes a line durable: that is the commit. Raises FencedError: the place is lost; what
        else it raises leaves the shard uncommitted, try again."""

    def results(self) -> AbstractContextManager[Path]:
        """A local folder in which `ops.finish` writes; its files belong to the place when the block
        has ended well. Shards may be published and appended meanwhile, by another thread."""

    def write(self, name: str, data: bytes) -> None:
        """Replaces a file, whole or not at all."""

    def sweep(self, named: Iterable[str]) -> None:
        """Removes what earlier writers have left; named: the shard files of the manifest."""

    def release(self) -> None:
        """Gives it back; a second call does nothing."""


def is_remote(out: str | os.PathLike[str]) -> bool:
    """True for the URL of an object store: s3://, gs:// (Google), az:// (Azure)."""
    return isinstance(out, str) and _REMOTE.fullmatch(out) is not None


def absolute(out: str) -> str:
    """An output as job files name it: an absolute path, or a URL without a slash at its end."""
    return out.rstrip("/") if is_remote(out) else str(Path(out).absolute())


def place_of(out: str | os.PathLike[str], scratch: Path | None = None) -> Place:
    """The place of that name. scratch: a local folder for what is on its way to or from an object
    store; by default the system's. Raises ConfigError: no library for it, or a URL it refuses."""
    if is_remote(out):
        from ops.bucket import Bucket

        return Bucket(str(out), scratch)
    from ops.folder import Folder

    return Folder(Path(out))

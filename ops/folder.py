"""Results in a folder: locked by flock, its journal one file that only grows.

    OUT/.lock            flock of the writer
    OUT/manifest.jsonl   `ops.manifest`

A shard is committed by the order of four steps: its file is written and fsynced under a temporary
name, renamed, the folder is fsynced, and then its manifest line is appended and fsynced.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ops.durable import (
    FileLock,
    free_bytes,
    fsync_dir,
    make_dir,
    make_subfolder,
    remove_durably,
    remove_temporary,
    size_in_words,
    write_atomic,
    write_new,
)
from ops.errors import CorruptionError, FencedError, HeldError, OutputError
from ops.files import COMPAT, DERIVED, RUN, is_sound, shard_file
from ops.manifest import (
    MANIFEST,
    EpochLine,
    HeaderLine,
    ManifestState,
    ManifestTail,
    ManifestWriter,
    ShardLine,
    encode_line,
    read_manifest,
)

LOCK = ".lock"


class Folder:
    """A folder to read, or to hold (`FolderHold`)."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def __str__(self) -> str:
        return str(self.out)

    def path(self, name: str) -> str:
        return str(self.out / name)

    def manifest(self) -> ManifestState:
        return read_manifest(self.out / MANIFEST)

    def tail(self, slice_s: float = math.inf) -> ManifestTail:
        """Reads megabytes in no time."""
        return ManifestTail(self.out / MANIFEST)

    def read(self, name: str) -> bytes:
        return (self.out / name).read_bytes()

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        yield self.out / name

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        paths = {name: self.out / name for name in names}
        return {name: path.stat().st_size if path.is_file() else -1 for name, path in paths.items()}

    def times(self, names: Iterable[str]) -> dict[str, float]:
        times = {}
        for name in names:
            with suppress(FileNotFoundError):
                times[name] = (self.out / name).stat().st_mtime
        return times

    def write(self, name: str, data: bytes) -> None:
        write_atomic(self.out / name, data)

    def hold(self, job: str, *, again: bool) -> FolderHold:
        if again:
            _require_there(self.out)
        else:
            make_dir(self.out)
        busy = f"{self.out} is in use by another run; choose another --out"
        purpose = f"for job {job}"
        try:
            return FolderHold(self.out, FileLock(self.out / LOCK, busy, purpose))
        except HeldError as error:
            if not error.holder.endswith(purpose):
                raise
            # One that has lost its role on another node, say; it lets go when it notices.
            raise FencedError(
                f"{self.out} is in the hands of another writer of this job ({error.holder})"
            ) from error


class FolderHold:
    """OUT under its lock. Used from one thread; the block of `results` may be another's."""

    def __init__(self, out: Path, lock: FileLock) -> None:
        self.out = out
        self._lock = lock
        self._manifest: ManifestWriter | None = None

    def clear(self) -> None:
        clear(self.out)

    def begin(self, ours: HeaderLine, *, anew: bool) -> ManifestState:
        """A manifest that is cleared away before is a new one; anew adds nothing to that."""
        return read_or_begin(self.out, ours)

    def require_room(self, need_bytes: int) -> None:
        make_subfolder(self.out / "shards")
        require_free_disk(self.out, need_bytes)

    def start_epoch(
        self, state: ManifestState, describe: Callable[[int], EpochLine]
    ) -> ManifestState:
        self._manifest, state = start_epoch(self.out, state, describe)
        return state

    def require_shards(self, state: ManifestState, check: Callable[[], None]) -> None:
        """Reads all of them: the price of an opening."""
        with _unless_away(self.out):
            require_shards(self.out, state, check)
        self._remove_temporary()

    def _remove_temporary(self) -> None:
        for folder in (self.out, self.out / "shards", self.out / COMPAT):
            remove_temporary(folder)

    @property
    def _journal(self) -> ManifestWriter:
        assert self._manifest is not None, "no epoch was started"
        return self._manifest

    def publish(self, shard: int, image: bytes) -> str:
        """A file that is there already was left by a writer that has lost OUT; a writer that wakes
        late, in its turn, must not replace what its successor has committed."""
        name = shard_file(shard)
        self._journal.require_ours()
        if not write_new(self.out / name, image):
            self._journal.require_ours()
            write_atomic(self.out / name, image)
        return name

    def append(self, line: ShardLine) -> None:
        self._journal.append(line)

    @contextmanager
    def results(self) -> Iterator[Path]:
        """OUT itself: each file replaces its predecessor when it is whole."""
        with _unless_away(self.out):
            yield self.out

    def write(self, name: str, data: bytes) -> None:
        write_atomic(self.out / name, data)

    def sweep(self, named: Iterable[str]) -> None:
        """Temporary files of writers that woke after OUT was opened; shards have one name each."""
        self._remove_temporary()

    def release(self) -> None:
        if self._manifest is not None:
            self._manifest.close()
        self._lock.release()


def _require_there(out: Path) -> None:
    if not (out / MANIFEST).exists():
        error = OutputError(f"{out} is gone, or away; put it back, or cancel and submit anew")
        error.may_pass = True
        raise error


@contextmanager
def _unless_away(out: Path) -> Iterator[None]:
    """Around reading shards: one that is missing because OUT is away for a while is no damage."""
    try:
        yield
    except CorruptionError:
        _require_there(out)
        lines = read_manifest(out / MANIFEST).shards.values()
        if not all(is_sound(out / line.file, line) for line in lines):
            raise
        error = OutputError(f"{out} was away for a moment; it is read again")
        error.may_pass = True
        raise error from None


def clear(out: Path) -> None:
    """Removes a job's files and nothing else; interrupted anywhere, what is left is consistent.

    Derived files first, then the manifest: shards that no manifest names do not exist.
    """
    for name in (*DERIVED, RUN):
        (out / name).unlink(missing_ok=True)
    fsync_dir(out)
    remove_durably(out / MANIFEST)
    for path in (out / "shards").glob("shard-*.h5"):
        path.unlink()


def read_or_begin(out: Path, ours: HeaderLine) -> ManifestState:
    """What the manifest of OUT says; a new one when there is none."""
    path = out / MANIFEST
    try:
        state = read_manifest(path)
    except FileNotFoundError:
        _refuse_foreign_files(out)
        write_new(path, encode_line(ours))  # unless somebody else just did, who may have gone on
        state = read_manifest(path)
    if state.header is None:  # not even a header: nothing was ever committed
        write_atomic(path, encode_line(ours))
        state = read_manifest(path)
    return state


def start_epoch(
    out: Path, state: ManifestState, describe: Callable[[int], EpochLine]
) -> tuple[ManifestWriter, ManifestState]:
    """Begins a new epoch, which fences all writers before; returns what the manifest says then.

    Read again, because a torn line may be whole but for its newline, which the epoch's line adds.
    Nothing but temporary files (which are written again) is removed in a folder that is opened: a
    process that stops in the middle, loses its lock and wakes late must not take away what its
    successor has written. Shard files that no line names stay until they are committed over.
    """
    while True:
        manifest = ManifestWriter(out / MANIFEST, state)
        ours = describe(state.epoch + 1)
        try:
            manifest.start(ours)
            state = read_manifest(out / MANIFEST)
        except BaseException:
            manifest.close()
            raise
        if state.epochs[-1] == ours:
            return manifest, state
        manifest.close()  # somebody else was faster, with the same number


def _refuse_foreign_files(out: Path) -> None:
    """A folder without a manifest is new; files of our names in it would be somebody else's."""
    found = [name for name in (*DERIVED, RUN) if (out / name).exists()]
    if found:
        raise OutputError(
            f"{out} holds {found[0]} but no {MANIFEST}, so it is no folder of vnp; choose another "
            "--out, or replace it with --force"
        )


def require_shards(out: Path, state: ManifestState, check: Callable[[], None]) -> None:
    """Every committed shard has the bytes that were committed; reading them all is the price."""
    for line in state.shards.values():
        check()
        path = out / line.file
        if not is_sound(path, line):
            raise CorruptionError(
                f"{path} is missing or damaged, though it was committed; restore it, or "
                f"`vnp verify --repair {out}` computes it anew"
            )


def require_free_disk(out: Path, need_bytes: int) -> None:
    """Raises OutputError when the file system of `out` has less than need_bytes left."""
    free = free_bytes(out)
    if free < need_bytes:
        error = OutputError(
            f"{out} needs about {size_in_words(need_bytes)} and has {size_in_words(free)} free; "
            "free some, or choose another --out"
        )
        error.may_pass = True
        raise error

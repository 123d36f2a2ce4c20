"""A prefix of an object store in the hands of its one writer (`ops.bucket` has the protocol)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ops.bucket import MANIFEST_FOLDER, SHARDS_FOLDER, Bucket, record
from ops.errors import CorruptionError, FencedError, OutputError, StoreError
from ops.files import DERIVED, RUN
from ops.manifest import EpochLine, HeaderLine, Line, ManifestState, ShardLine, encode_line

#: Shards as we name them; whatever else lies there is somebody else's.
_SHARD = re.compile(r"shards/shard-[0-9]{6,}-([0-9]{5,})\.h5")


class BucketHold:
    """A prefix in the hands of a writer: nobody else's lines follow its own, or it is fenced.

    What is not put on a condition (tables, run.json, removals) is preceded by a look whether the
    prefix is still ours: a writer that stood still must not undo what its successor has done.
    """

    def __init__(self, bucket: Bucket, job: str) -> None:
        self._bucket = bucket
        self._job = job
        self._next = self._epoch = 0

    def clear(self) -> None:
        """The lines stay, since their numbers are the fence; a new header begins anew."""
        sizes = self._bucket.sizes((RUN, *DERIVED))
        if not self._has_begun(self._read_journal()):
            self._bucket.delete([name for name, size in sizes.items() if size >= 0])

    def _read_journal(self) -> ManifestState:
        try:
            state, self._next = self._bucket.journal()
        except FileNotFoundError:
            state, self._next = ManifestState(), 0
        return state

    def _has_begun(self, state: ManifestState) -> bool:
        """True when a writer of this job was here before."""
        return any(epoch.job == self._job for epoch in state.epochs)

    def begin(self, ours: HeaderLine, *, anew: bool) -> ManifestState:
        while True:
            state = self._read_journal()
            if state.header is not None and (not anew or self._has_begun(state)):
                return state
            if state.header is None:
                self._refuse_foreign_files()
            if self._bucket.create(record(self._next), encode_line(ours)):
                self._next += 1
                state.apply(ours)
                return state

    def _refuse_foreign_files(self) -> None:
        sizes = self._bucket.sizes((RUN, *DERIVED))
        found = [name for name, size in sizes.items() if size >= 0]
        if found:
            raise OutputError(
                f"{self._bucket} holds {found[0]} but no {MANIFEST_FOLDER}, so it is no output of "
                "vnp; choose another --out, or replace it with --force"
            )

    def require_room(self, need_bytes: int) -> None:
        """A store has room."""

    def start_epoch(
        self, state: ManifestState, describe: Callable[[int], EpochLine]
    ) -> ManifestState:
        header = state.header
        while True:
            ours = describe(state.epoch + 1)
            if self._put_line(ours):
                self._epoch = ours.epoch
                state.apply(ours)
                return state
            state, self._next = self._bucket.journal()
            if state.header != header:  # nobody has compared this one with the job
                raise OutputError(
                    f"{self._bucket} was begun anew by another job just now; choose another --out"
                )

    def require_shards(self, state: ManifestState, check: Callable[[], None]) -> None:
        """By their sizes: the store keeps their bytes, and `vnp verify` reads them."""
        check()
        sizes = self._bucket.sizes(line.file for line in state.shards.values())
        for line in state.shards.values():
            if sizes[line.file] != line.bytes:
                raise CorruptionError(
                    f"{self._bucket.path(line.file)} is missing or damaged, though it was "
                    "committed; restore it, or compute all anew with --force"
                )

    def publish(self, shard: int, image: bytes) -> str:
        name = f"{SHARDS_FOLDER}/shard-{shard:06d}-{self._epoch:05d}.h5"
        self._bucket.write(name, image)
        return name

    def append(self, line: ShardLine) -> None:
        while not self._put_line(line):
            self._require_not_fenced(self._bucket.line(self._next))
            self._next += 1  # of a writer that we have fenced off: it counts for nothing

    def _require_ours(self) -> None:
        """Raises as `append` does."""
        while (theirs := self._bucket.line(self._next)) is not None:
            self._require_not_fenced(theirs)
            self._next += 1

    def _require_not_fenced(self, theirs: Line | None) -> None:
        newer = isinstance(theirs, EpochLine) and theirs.epoch > self._epoch
        if isinstance(theirs, EpochLine) and newer and theirs.job != self._job:
            raise OutputError(
                f"{self._bucket} was taken over by job {theirs.job} on {theirs.node or theirs.host}"
                "; choose another --out"
            )
        if newer or isinstance(theirs, HeaderLine):
            raise FencedError(
                f"{self._bucket} has a newer writer; nothing of this one counts any more"
            )

    def _put_line(self, line: EpochLine | ShardLine) -> bool:
        """Puts it under the next number; False when somebody else's stands there."""
        name, data = record(self._next), encode_line(line)
        if not self._bucket.create(name, data):
            try:
                found = self._bucket.read(name)
            except FileNotFoundError as error:  # refused for the moment: 409
                raise StoreError(
                    f"{self._bucket.path(name)} is asked for by others at the same time"
                ) from error
            # Ours may be there already: a reply was lost, and the request was sent again.
            if found != data:
                return False
        self._next += 1
        return True

    @contextmanager
    def results(self) -> Iterator[Path]:
        with self._bucket.scratch() as folder:
            yield folder
            for name in DERIVED:
                if (folder / name).exists():
                    self._require_ours()
                    self._bucket.upload(name, folder / name)

    def write(self, name: str, data: bytes) -> None:
        self._require_ours()
        self._bucket.write(name, data)

    def sweep(self, named: Iterable[str]) -> None:
        """Of past epochs only: what a later one has put, its own lines will name."""
        stray = self._bucket.listing(SHARDS_FOLDER).keys() - set(named)
        self._bucket.delete(sorted(name for name in stray if self._is_past(name)))

    def _is_past(self, name: str) -> bool:
        """True for a shard's file of this writer, or of one before it."""
        shard = _SHARD.fullmatch(name)
        return shard is not None and int(shard[1]) <= self._epoch

    def release(self) -> None:
        """Nothing is held: who comes next begins a new epoch."""

"""Results below a prefix of an object store: S3, Google Cloud Storage, Azure Blob Storage.

    PREFIX/manifest/0000000000.json   one line of `ops.manifest` each, numbered without a gap
    PREFIX/shards/shard-000000-00001.h5   the number of a shard, and the epoch of its writer
    everything else as in a folder

Nothing here is locked, and nothing renamed. A line is put under the next number on the condition
that the number is free, so that of two writers one gets it and the other one sees who did: that is
the commit, and the fence. A shard's name has its writer's epoch, so that no two writers put the
same one; files that no line names do not exist, and those of past epochs are swept away at the end
of a job. A store that ignores the condition is found out before the first line, and refused.

Credentials are the store's usual ones: variables (AWS_*, GOOGLE_*, AZURE_*), or the machine's role.
"""

from __future__ import annotations

import math
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import from_url

from ops import errors
from ops.durable import describe_os_error, make_dir
from ops.errors import CorruptionError, FencedError, OutputError, StoreError
from ops.files import DERIVED, RUN
from ops.manifest import (
    EpochLine,
    HeaderLine,
    Line,
    ManifestState,
    ShardLine,
    decode_line,
    encode_line,
)

MANIFEST_FOLDER, SHARDS_FOLDER = "manifest", "shards"
#: Names that we give; whatever else lies there is somebody else's.
_RECORD = re.compile(r"manifest/[0-9]{10}\.json")
_SHARD = re.compile(r"shards/shard-[0-9]{6,}-([0-9]{5,})\.h5")
#: Of one request, and of all its tries together.
REQUEST_LIMIT_S, RETRIES, RETRY_LIMIT_S = 60, 8, 120
HASTE_LIMIT_S = 5
READ_BYTES = 8 << 20
#: Addresses of stores that are not the clouds' own.
_ENDPOINTS = (
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"),
    *("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT", "GOOGLE_BASE_URL"),
)
#: Manifest lines that are fetched at once.
READERS = 16
#: Stores that were seen to keep the condition, by scheme and bucket.
_TRIED: set[str] = set()
#: Stores that did not answer, by scheme and bucket, and until when nobody asks again (monotonic).
_AWAY: dict[str, float] = {}


def open_store(url: str, *, in_haste: bool = False) -> Any:
    """A client; asks nobody yet. in_haste: one try of a few seconds, for whoever asks again soon.

    Raises ConfigError for a URL or settings that it refuses.
    """
    named = [os.environ.get(variable, "") for variable in _ENDPOINTS]
    options: dict[str, Any] = {
        "timeout": timedelta(seconds=HASTE_LIMIT_S if in_haste else REQUEST_LIMIT_S),
        # Only somebody who names such an address means it.
        "allow_http": any(endpoint.startswith("http://") for endpoint in named),
    }
    retries = {
        "max_retries": 0 if in_haste else RETRIES,
        "retry_timeout": timedelta(seconds=RETRY_LIMIT_S),
    }
    try:
        store = from_url(url, client_options=options, retry_config=retries)  # type: ignore[call-overload]
    except (BaseError, ValueError) as error:
        raise errors.ConfigError(f"{url} cannot be used: {_first_line(error)}") from error
    if (store.prefix or "") != "/".join(url.split("/")[3:]):
        # As a URL it means another place, perhaps that of another job.
        raise errors.ConfigError(f"{url} cannot be used: leave out ? # % and folders named . or ..")
    return store


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0][:300]


class Bucket:
    """A prefix of a store, to read, or to hold (`BucketHold`)."""

    def __init__(self, url: str, scratch: Path | None = None, *, in_haste: bool = False) -> None:
        self.url = url.rstrip("/")
        self._scratch = scratch
        self._store = open_store(self.url, in_haste=in_haste)

    def __str__(self) -> str:
        return self.url

    def path(self, name: str) -> str:
        return f"{self.url}/{name}"

    @property
    def store(self) -> str:
        """Scheme and bucket."""
        return "/".join(self.url.split("/")[:3])

    # -- reading -----------------------------------------------------------------------------------

    def manifest(self) -> ManifestState:
        state, _ = self.journal()
        return state

    def journal(self) -> tuple[ManifestState, int]:
        """What the manifest says, and the number of its next line."""
        listed = sum(_RECORD.fullmatch(name) is not None for name in self.listing(MANIFEST_FOLDER))
        with ThreadPoolExecutor(READERS) as pool:
            lines = list(pool.map(self.line, range(listed)))
        for number in count(listed):  # what a slow listing does not know yet
            line = self.line(number)
            if line is None:
                break
            lines.append(line)
        state = ManifestState()
        for number, line in enumerate(lines):
            if line is None:
                raise CorruptionError(f"{self.path(record(number))} is gone; restore it")
            state.apply(line)
        if not lines:
            raise FileNotFoundError(self.path(MANIFEST_FOLDER))
        return state, len(lines)

    def line(self, number: int) -> Line | None:
        """One line of the manifest; None when there is none of that number yet."""
        try:
            raw = self.read(record(number))
        except FileNotFoundError:
            return None
        line = decode_line(raw[:-1])
        if line is None:
            raise CorruptionError(f"{self.path(record(number))} is damaged; restore it")
        return line

    def tail(self, slice_s: float = math.inf) -> BucketTail:
        return BucketTail(Bucket(self.url, in_haste=True), slice_s)

    def read(self, name: str) -> bytes:
        with self.translated(name):
            return bytes(obstore.get(self._store, name).bytes())

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        with self.scratch() as folder:
            path = folder / Path(name).name
            with self.translated(name), path.open("wb") as stream:
                for block in obstore.get(self._store, name).stream(min_chunk_size=READ_BYTES):
                    stream.write(block)
            yield path

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        found = {name: int(facts["size"]) for name, facts in self.listing().items()}
        return {name: found.get(name, -1) for name in names}

    def times(self, names: Iterable[str]) -> dict[str, float]:
        found = self.listing()
        return {name: found[name]["last_modified"].timestamp() for name in names if name in found}

    def listing(self, folder: str | None = None) -> dict[str, Any]:
        with self.translated(folder or ""):
            pages = obstore.list(self._store, folder)
            return {facts["path"]: facts for page in pages for facts in page}

    # -- writing -----------------------------------------------------------------------------------

    def write(self, name: str, data: bytes) -> None:
        with self.translated(name):
            obstore.put(self._store, name, data)

    def upload(self, name: str, path: Path) -> None:
        """A file of any size, in parts."""
        with self.translated(name):
            obstore.put(self._store, name, path)

    def create(self, name: str, data: bytes) -> bool:
        """Puts an object on the condition that there is none of that name; False: there is."""
        with self.translated(name):
            try:
                obstore.put(self._store, name, data, mode="create", use_multipart=False)
            except AlreadyExistsError:
                return False
        return True

    def delete(self, names: list[str]) -> None:
        """Removes objects; some stores (not S3) say so of one that is gone already."""
        with self.translated(""), suppress(FileNotFoundError):
            obstore.delete(self._store, names)

    def hold(self, job: str, *, again: bool) -> BucketHold:
        self._require_condition()
        if again and self.line(0) is None:
            error = OutputError(f"{self} is gone; put it back, or cancel and submit anew")
            error.may_pass = True
            raise error
        return BucketHold(self, job)

    def _require_condition(self) -> None:
        """Tries the store with a key of its own. Raises OutputError when it lets a second writer
        replace what a first one has put."""
        store = self.store
        if store in _TRIED:
            return
        name = f".vnp-condition-{secrets.token_hex(8)}"
        kept = self.create(name, b"first") and not self.create(name, b"second")
        self.delete([name])
        if not kept:
            raise OutputError(
                f"{store} ignores the condition If-None-Match, so that two writers could replace "
                "each other's results; use a store that keeps it, or a folder"
            )
        _TRIED.add(store)

    # -- what all share ----------------------------------------------------------------------------

    @contextmanager
    def translated(self, name: str) -> Iterator[None]:
        """The border: the library's errors leave as ours; FileNotFoundError stays one."""
        try:
            yield
        except (PermissionDeniedError, UnauthenticatedError) as error:
            refused = errors.PermissionDeniedError(
                f"{self.path(name)} is refused ({_first_line(error)}); check the credentials"
            )
            refused.may_pass = True
            raise refused from error
        except BaseError as error:
            raise StoreError(f"{self.path(name)}: {_first_line(error)}") from error

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A local folder for a moment."""
        try:
            if self._scratch is not None:
                make_dir(self._scratch)
            folder = Path(tempfile.mkdtemp(prefix="vnp-", dir=self._scratch))
        except OSError as error:
            raise describe_os_error(error, self._scratch or Path(tempfile.gettempdir())) from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def record(number: int) -> str:
    """The name of a line of the manifest."""
    return f"{MANIFEST_FOLDER}/{number:010d}.json"


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

    @property
    def ahead(self) -> None:
        return None

    @contextmanager
    def results(self, *, begun: bool = False) -> Iterator[Path]:
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


class BucketTail:
    """Follows the manifest; at most one request a second when there is nothing new.

    A store that does not answer has nothing new, and is not asked for a while, by no tail of this
    process: each try takes its time, and there may be many jobs.
    """

    EVERY_S, AWAY_S = 1.0, 10.0

    def __init__(self, bucket: Bucket, slice_s: float) -> None:
        self._bucket = bucket
        self._slice_s = slice_s
        self._next = self._epoch = 0
        self._width = 1  # lines that are asked for at once
        self._poll_at = 0.0
        self.known_until = 0.0
        self.committed: set[int] = set()

    def poll(self, *, at_once: bool = False) -> list[ShardLine]:
        """As a `place.Tail` does. Raises CorruptionError."""
        new: list[ShardLine] = []
        now = time.monotonic()
        if now < _AWAY.get(self._bucket.store, 0.0) or (now < self._poll_at and not at_once):
            return new
        try:
            if self._read_on(new, now + self._slice_s):
                self._poll_at = time.monotonic() + self.EVERY_S
        except (StoreError, errors.PermissionDeniedError):
            _AWAY[self._bucket.store] = time.monotonic() + self.AWAY_S
        return new

    def _read_on(self, new: list[ShardLine], until: float) -> bool:
        """Appends to what is new; True when all was read before the time was over."""
        while time.monotonic() < until:
            asked = time.monotonic()
            for line in self._ask_for_more():
                if line is None:
                    self._width, self.known_until = 1, asked
                    return True
                self._next += 1
                self._take(line, new)
            self._width = min(2 * self._width, READERS)
        return False

    def _ask_for_more(self) -> list[Line | None]:
        """The next lines, the more at once the more there were; None where there is none yet."""
        if self._width == 1:
            return [self._bucket.line(self._next)]
        with ThreadPoolExecutor(self._width) as pool:
            numbers = range(self._next, self._next + self._width)
            return list(pool.map(self._bucket.line, numbers))

    def _counts(self, line: ShardLine) -> bool:
        return line.epoch == self._epoch and line.shard not in self.committed

    def _take(self, line: Line, new: list[ShardLine]) -> None:
        """The same rule as ManifestState.apply, for a reader that keeps numbers only."""
        if isinstance(line, HeaderLine):
            self.committed.clear()
            new.clear()
        elif isinstance(line, EpochLine):
            self._epoch = max(self._epoch, line.epoch)
        elif self._counts(line):
            self.committed.add(line.shard)
            new.append(line)

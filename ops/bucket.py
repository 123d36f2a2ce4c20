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
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ops import errors
from ops.durable import describe_os_error, make_dir
from ops.errors import ConfigError, CorruptionError, OutputError, StoreError
from ops.manifest import Line, ManifestState, decode_line

try:
    import obstore
    from obstore.exceptions import (
        AlreadyExistsError,
        BaseError,
        PermissionDeniedError,
        UnauthenticatedError,
    )
    from obstore.store import from_url
except ImportError as error:  # an extra
    raise ConfigError(
        "object stores need obstore; pip install 'vnp[object-store]', on the nodes too"
    ) from error

if TYPE_CHECKING:
    from ops.bucket_hold import BucketHold
    from ops.bucket_tail import BucketTail

MANIFEST_FOLDER, SHARDS_FOLDER = "manifest", "shards"
#: Lines as we name them; whatever else lies there is somebody else's.
_RECORD = re.compile(r"manifest/[0-9]{10}\.json")
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
    line = str(error).split("\n", 1)[0][:300]
    # Where it has no others, the library asks the machine for its role's.
    if "/latest/api/token" not in line:
        return line
    keys = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    return f"no credentials: set {keys}, or give this machine a role ({line})"


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
        from ops.bucket_tail import BucketTail

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
        """Removes objects. Some stores (not S3) mind one that is gone already, and what comes with
        it in a request may then stay."""
        with self.translated(""):
            try:
                obstore.delete(self._store, names)
            except FileNotFoundError:
                for name in names:
                    with suppress(FileNotFoundError):
                        obstore.delete(self._store, name)

    def hold(self, job: str, *, again: bool) -> BucketHold:
        from ops.bucket_hold import BucketHold

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

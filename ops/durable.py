"""Files that survive a crash at any moment: atomic replacement, locks, clean-up of what was begun.

A file is complete or absent: it is written under a temporary name in its own folder, fsynced,
renamed, and the folder is fsynced, because a rename is only durable when its folder is.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ops.errors import HeldError, OutputError, PermissionDeniedError, VnpError

#: What a lock that is held, or a file system without locks, answers.
_BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
#: What a file system without hard links answers.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def fsync_dir(path: Path) -> None:
    """Makes renames, creations and removals in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_dir(path: Path, mode: int = 0o777) -> None:
    """Creates a folder and its missing parents durably; one that exists is left as it is."""
    missing = []
    folder = path
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for folder in reversed(missing):
        folder.mkdir(mode=mode, exist_ok=True)
        fsync_dir(folder.parent)


def make_subfolder(path: Path) -> None:
    """Creates a folder durably, but never its parent: a folder that is away must not come back
    empty."""
    path.mkdir(exist_ok=True)
    fsync_dir(path.parent)


def temporary_path(path: Path) -> Path:
    """A name under which `path` is written; `remove_temporary` knows it again. No two are alike:
    on a shared file system processes of two nodes may have the same number."""
    return path.with_name(f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary stream whose bytes become `path`, whole and durable, when the block ends well.

    Raises OSError when the temporary file is another one by then: in a folder that was replaced by
    a copy of itself, say, it is a copy of a half.
    """
    temporary = temporary_path(path)
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            if not os.path.samestat(os.fstat(stream.fileno()), temporary.stat()):
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(temporary))
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """Replaces `path` by `data`; after a crash it holds all of the old or all of the new."""
    with atomic_file(path) as stream:
        stream.write(data)


def create_exclusive(path: Path, data: bytes) -> bool:
    """Like write_atomic, but only when `path` does not exist; False when it does."""
    temporary = temporary_path(path)
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    fsync_dir(path.parent)
    return True


def write_new(path: Path, data: bytes) -> bool:
    """Like create_exclusive; where the file system has no links, like write_atomic."""
    try:
        return create_exclusive(path, data)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    write_atomic(path, data)
    return True


def remove_durably(path: Path) -> None:
    """Removes a file if it is there, durably."""
    path.unlink(missing_ok=True)
    fsync_dir(path.parent)


def remove_temporary(folder: Path) -> int:
    """Removes what killed processes left half-written in a folder; returns how many files."""
    stray = [p for p in folder.glob(".*.tmp-*") if p.is_file()] if folder.is_dir() else []
    for path in stray:
        path.unlink(missing_ok=True)
    return len(stray)


def describe_os_error(error: OSError, path: str | os.PathLike[str]) -> VnpError:
    """An OSError of writing at `path` as the line that a user reads; it may pass."""
    described = _describe(error, path)
    described.may_pass = True
    return described


def _describe(error: OSError, path: str | os.PathLike[str]) -> VnpError:
    reason = (error.strerror or str(error)).lower()
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PermissionDeniedError(f"{path} cannot be written ({reason}); choose another folder")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"no space left for {path} ({reason}); free some, then run it again")
    return OutputError(f"{path} cannot be written ({reason}); choose another folder")


def free_bytes(path: Path) -> int:
    """Bytes that a user may still write on the file system of `path` (or its nearest parent)."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def size_in_words(num_bytes: float) -> str:
    """0.1 MB, 2.5 GB."""
    for unit in ("kB", "MB", "GB"):
        num_bytes /= 1_000
        if num_bytes < 1_000:
            return f"{num_bytes:.1f} {unit}"
    return f"{num_bytes / 1_000:.1f} TB"


class FileLock:
    """An exclusive flock, taken at once or not at all; it dies with its process.

    The file stays when the lock is released: removing it would let two processes hold "the" lock.
    Its folder must be there.
    `busy` is the message for a lock that somebody else holds; the holder is added to it, with what
    it has said of its purpose.
    Raises HeldError, OutputError (a file system without locks), PermissionDeniedError.
    """

    def __init__(self, path: Path, busy: str | None = None, purpose: str = "") -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise describe_os_error(error, path) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._descriptor, 256, 0).decode(errors="replace").strip()
            os.close(self._descriptor)
            if error.errno not in _BUSY:
                raise OutputError(f"{path} cannot be locked ({error}); use a local disk") from error
            message = busy or f"{path} is held by another process; stop that one first"
            raise HeldError(message, holder) from error
        ours = " ".join(["pid", str(os.getpid()), "on", socket.gethostname(), *purpose.split()])
        try:
            # In this order a full disk has room for it, where the file was there before.
            written = os.pwrite(self._descriptor, f"{ours}\n".encode(), 0)
            os.ftruncate(self._descriptor, written)
        except OSError as error:  # a lock that is held without its holder's name would be for ever
            self.release()
            raise describe_os_error(error, path) from error

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def release(self) -> None:
        """Gives the lock back; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

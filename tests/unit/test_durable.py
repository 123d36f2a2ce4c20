"""Files that survive a crash: replaced whole, locked once, never followed by a torn line."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ops.durable import (
    FileLock,
    atomic_file,
    create_exclusive,
    make_dir,
    remove_temporary,
    write_atomic,
)
from ops.errors import OutputError, PermissionDeniedError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_atomic_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    # Given a file
    path = tmp_path / "file"
    write_atomic(path, b"old")
    # When it is replaced
    write_atomic(path, b"new and longer")
    # Then it is whole, and alone
    assert path.read_bytes() == b"new and longer"
    assert names(tmp_path) == ["file"]


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    # Given a file that is being replaced
    path = tmp_path / "file"
    write_atomic(path, b"old")
    # When the writing fails half-way
    with pytest.raises(TypeError), atomic_file(path) as stream:
        stream.writelines([b"half", "no bytes"])  # type: ignore[list-item]
    # Then nothing has happened
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_killed_writer_leaves_the_old_file_and_a_temporary_one_that_is_known(
    tmp_path: Path,
) -> None:
    # Given a process that replaces a file
    path = tmp_path / "file"
    write_atomic(path, b"old")
    code = (
        "import os, sys, signal; from pathlib import Path; from ops.durable import atomic_file\n"
        "with atomic_file(Path(sys.argv[1])) as stream:\n"
        "    stream.write(b'half'); stream.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    # When it is killed in the middle
    done = subprocess.run([sys.executable, "-c", code, str(path)])
    # Then the old file stands, and what was begun is found and removed
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    assert len(names(tmp_path)) == 2
    assert remove_temporary(tmp_path) == 1
    assert names(tmp_path) == ["file"]


def test_create_exclusive_lets_the_first_one_win(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert create_exclusive(path, b"first")
    assert not create_exclusive(path, b"second")
    assert path.read_bytes() == b"first"
    assert names(tmp_path) == ["file"]


def test_make_dir_makes_parents_and_refuses_a_file(tmp_path: Path) -> None:
    make_dir(tmp_path / "a" / "b" / "c")
    make_dir(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="exists"):
        make_dir(tmp_path / "file")


def test_lock_is_held_once_and_names_its_holder(tmp_path: Path) -> None:
    # Given a lock that is held
    lock = FileLock(tmp_path / "lock")
    # When somebody else wants it, then it is refused at once
    with pytest.raises(OutputError, match=f"OUT is in use .*pid {os.getpid()} on "):
        FileLock(tmp_path / "lock", busy="OUT is in use")
    # And free again once it is released
    lock.release()
    lock.release()
    with FileLock(tmp_path / "lock") as again:
        assert again.path.exists()
    FileLock(tmp_path / "lock").release()


def test_lock_that_cannot_name_its_holder_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a disk that takes no bytes
    def refuse(*words: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", refuse)
        # When a lock is wanted there, then it is refused
        with pytest.raises(PermissionDeniedError, match="read-only") as caught:
            FileLock(tmp_path / "lock")
        assert caught.value.may_pass
    # And free, also for the same process, as soon as the disk takes bytes again
    FileLock(tmp_path / "lock").release()


def test_lock_dies_with_its_process(tmp_path: Path) -> None:
    # Given a process that holds a lock
    code = (
        "import sys, time; from pathlib import Path; from ops.durable import FileLock\n"
        "lock = FileLock(Path(sys.argv[1])); print('held', flush=True); time.sleep(100)"
    )
    path = tmp_path / "lock"
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(OutputError, match=f"pid {holder.pid}"):
            FileLock(path)
        # When it is killed
        holder.kill()
    # Then the lock is free
    FileLock(path).release()


def test_lock_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot be written"):
        FileLock(tmp_path / "file" / "lock")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_lock_in_a_folder_that_is_not_ours(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionDeniedError, match="choose another folder"):
        FileLock(tmp_path / "lock")


def test_two_that_write_one_file_at_once(tmp_path: Path) -> None:
    """Processes of several nodes may have the same number; each writes a file of its own."""
    path = tmp_path / "job.done.json"
    with atomic_file(path) as first:
        first.write(b"first ")
        first.flush()
        write_atomic(path, b"the second one, which is longer")
        first.write(b"one")
    assert path.read_bytes() == b"first one"
    assert remove_temporary(tmp_path) == 0

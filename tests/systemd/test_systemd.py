"""The units: what systemd says of them, and all of `inside.py` under a systemd of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
UNITS = HERE.parents[1] / "systemd"
#: Exposure as `systemd-analyze security` counts it, times ten; lower is better.
GPU_LIMIT, CPU_LIMIT = 20, 10

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="needs systemd (systemd-analyze)"
)


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units as `make install` writes them, but for a program that exists everywhere."""
    for unit in UNITS.glob("*.service"):
        text = unit.read_text().replace("@PREFIX@", "/opt/vnp")
        (tmp_path / unit.name).write_text(text)
    return tmp_path


@needs_systemd
@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("vnp", GPU_LIMIT),
        ("vnp@", GPU_LIMIT),
        ("vnp-gpu", GPU_LIMIT),
        ("vnp-cpu", CPU_LIMIT),
        ("vnp-redis", CPU_LIMIT),
    ],
)
def test_exposure(units: Path, name: str, limit: int) -> None:
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={limit}"]
    done = subprocess.run(
        [*command, str(units / f"{name}.service")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-400:] + done.stderr


#: What `inside.py` calls; the interpreter of the installation must be one that all users may run.
PROGRAMS = ("/usr/bin/python3.11", "/lib/systemd/systemd", "unshare", "runuser", "useradd", "pgrep")
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]


@needs_systemd
@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to boot a systemd")
@pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")
@pytest.mark.timeout(900)
def test_under_systemd() -> None:
    command = [str(HERE / "with-systemd"), "--", sys.executable, "-m", "pytest", "-x", "-q"]
    options = ["-p", "no:cacheprovider", "--timeout=300", str(HERE / "inside.py")]
    done = subprocess.run(
        [*command, *options],
        capture_output=True,
        text=True,
        cwd=HERE.parents[1],
        env={**os.environ, "WITH_SYSTEMD_TIMEOUT": "840"},
    )
    if done.returncode == 125:
        pytest.skip(f"no systemd can be booted here: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stdout[-8_000:] + done.stderr[-2_000:]

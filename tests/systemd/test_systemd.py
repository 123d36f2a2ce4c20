"""The units: what systemd says of them, and all of `inside.py` under a systemd of their own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.config_load import load

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


@pytest.mark.parametrize("unit", sorted(UNITS.glob("*.service")), ids=lambda unit: unit.stem)
def test_configuration_file_has_the_last_word(
    unit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a user's file that differs from all that the units say
    file = tmp_path / "vnp.toml"
    ours = {"preemption": "off", "listen": "127.0.0.1:1", "redis_url": "redis://elsewhere"}
    file.write_text("".join(f'{name} = "{value}"\n' for name, value in ours.items()))
    # When a service of the unit reads its configuration
    text = unit.read_text()
    for setting in re.findall(r"^Environment=(.*)", text, re.MULTILINE):
        for variable in setting.split():
            monkeypatch.setenv(*variable.split("=", 1))
    config = load({}, file, re.findall(r"--default (\S+)", text))
    # Then the file holds
    assert {name: getattr(config, name) for name in ours} == ours


#: What `inside.py` calls; the interpreter of the installation must be one that all users may run.
PROGRAMS = ("/usr/bin/python3.11", "/lib/systemd/systemd", "unshare", "runuser", "useradd", "pgrep")
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]


@needs_systemd
@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to boot a systemd")
@pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")
@pytest.mark.timeout(2_500)
def test_under_systemd() -> None:
    command = [str(HERE / "with-systemd"), "--", sys.executable, "-m", "pytest", "-x", "-q"]
    options = ["-p", "no:cacheprovider", "--timeout=900", str(HERE / "inside.py")]
    done = subprocess.run(
        [*command, *options],
        capture_output=True,
        text=True,
        cwd=HERE.parents[1],
        env={**os.environ, "WITH_SYSTEMD_TIMEOUT": "2400"},
    )
    if done.returncode == 125:
        pytest.skip(f"no systemd can be booted here: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stdout[-8_000:] + done.stderr[-2_000:]

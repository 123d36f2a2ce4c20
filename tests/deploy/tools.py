"""What tests of deploy/ share: programs as a node has them, and programs that check scripts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.config import Config
from daemon.config_load import load
from tests.service.shell import PROGRAMS, plain_environment

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
FIXTURES = ROOT / "tests" / "data" / "fixtures"


def on_path(program: str) -> str:
    """The program, beside this interpreter or on PATH; skips when there is none."""
    beside = Path(sys.executable).parent / program
    found = str(beside) if beside.exists() else shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed")
    return found


def shellcheck(script: Path | str, *options: str) -> None:
    """The script, a file or its text, passes shellcheck."""
    given = ["-"] if isinstance(script, str) else [str(script)]
    done = subprocess.run(
        [on_path("shellcheck"), *options, *given],
        input=script if isinstance(script, str) else None,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def fake(path: Path, body: str) -> None:
    """A program of these lines of shell."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def with_programs(folder: Path) -> dict[str, str]:
    """An environment without settings of the caller, with our programs on PATH, in folder/bin."""
    for name, script in PROGRAMS.items():
        start = f"import sys; sys.argv[0] = {name!r}; {script}"
        fake(folder / "bin" / name, f'exec "{sys.executable}" -c "{start}" "$@"')
    environment = plain_environment(folder)
    del environment["VNP_STATE_DIR"]
    return {**environment, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}


def accepted(toml: Path | str, folder: Path) -> Config:
    """The configuration of a file, or of its text."""
    path = folder / "accepted.toml"
    path.write_text(toml if isinstance(toml, str) else toml.read_text())
    return load({}, path)

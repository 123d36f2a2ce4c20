"""Runs the programs as a user does, in a folder of their own and away from the user's settings."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

#: The programs by their names, as the installed scripts start them.
PROGRAMS = {
    "vnp": "from daemon.cli import main; main()",
    "vnp-submit": "from daemon.cli import submit_main; submit_main()",
    "vnpd": "from daemon.vnpd import main; main()",
}


def command(program: str, *arguments: object) -> list[str]:
    """How to start a program, whether or not it is installed."""
    script = f"import sys; sys.argv[0] = {program!r}; {PROGRAMS[program]}"
    return [sys.executable, "-c", script, *map(str, arguments)]


@dataclass(frozen=True)
class Shell:
    """Runs the programs in a folder of their own, with no configuration but the given."""

    folder: Path
    environment: dict[str, str]

    def __call__(
        self, program: str, *arguments: object, given: bytes = b"", **variables: object
    ) -> subprocess.CompletedProcess[str]:
        environment = {**self.environment, **{k: str(v) for k, v in variables.items()}}
        done = subprocess.run(
            command(program, *arguments),
            cwd=self.folder,
            env=environment,
            input=given,
            capture_output=True,
            timeout=300,
        )
        out, error = done.stdout.decode(), done.stderr.decode()
        return subprocess.CompletedProcess(done.args, done.returncode, out, error)


def plain_environment(folder: Path) -> dict[str, str]:
    """No setting of the caller's; state, models and runtime folders inside `folder`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VNP_")}
    names = {"XDG_DATA_HOME": "data", "XDG_STATE_HOME": "xdg-state", "TMPDIR": "tmp"}
    (folder / "tmp").mkdir(exist_ok=True)
    return {
        **kept,
        **{variable: str(folder / name) for variable, name in names.items()},
        "VNP_STATE_DIR": str(folder / "state"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "COLUMNS": "80",
    }


def names(folder: Path) -> list[str]:
    """What a folder holds."""
    return sorted(path.name for path in folder.iterdir())


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """It printed no data and one line that has these words, and ended with this code."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("vnp: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr

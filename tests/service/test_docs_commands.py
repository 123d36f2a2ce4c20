"""Every command that README.md and docs/ show is run, against a real service and a finished job; or
stands in a table here, with the reason why not."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.harness import Service
from tests.service.conftest import FIXTURES
from tests.service.shell import PROGRAMS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: What a line of commands begins with; a block without such a line is none (a drawing, a file).
HEADS = (*PROGRAMS, "make", "sudo", "systemctl", "python", "export", "eval", ".venv/bin/pytest")
DRAWN = re.compile("[\u2500-\u257f]")
#: Words of a command in running text that say that it could be typed as it stands.
GIVEN = re.compile(r"\b(genomes\.fa|ID|OUT|results|500_model\.pth)\b")

#: What a document names -> what it is called here. Words, from left to right.
WORDS = {
    "virnucpro-500": "vnp-small-classifier",
    "mine": "vnp-small-classifier",
    "esm2-3b": "vnp-small-esm2",
    "dnabert-s": "vnp-small-dnabert",
    "cuda": "cpu",
    "OUT": "results",
    "/etc/redis/users.acl": "users.acl",
}
#: The same, where one command needs something else. FAILED: a job that failed.
WHOLE = {
    "vnp retry ID": "vnp retry FAILED",
    "vnp run genomes.fa --classifier virnucpro-500 --compat": (
        "vnp run genomes.fa --classifier virnucpro-500 --compat --out compat"
    ),
}
#: Exit codes other than 0; SIGINT after some seconds ends what would never end.
ENDLESS = {"vnp status --watch": 130}

#: Beginning of a command -> why it is not run here.
NOT_HERE = {
    "sudo": "changes the machine: tests/systemd installs, under a systemd of its own",
    "systemctl": "needs the installed service: tests/systemd",
    "make": "sets up and tests all of it: what .ci/run and developers call",
    "vnpd": "the service that these tests ask is one",
    "vnp models download": "needs the hub: tests/service/test_download.py has one of its own",
    "vnp models import": "needs published weights: tests/unit/test_weights.py makes such files",
    "vnp train classifier": "takes minutes: tests/service/test_train.py trains a small one",
    "vnp bench gpu": "needs a GPU, for 20 minutes",
    "vnp verify results --recompute": "takes as long as the job: tests/service/test_repair.py",
    "vnp-submit genomes.fa.gz --out s3:": "needs an object store: tests/store has one",
    "vnp verify s3:": "needs an object store: tests/store has one",
    "python -m tests.": "takes minutes: benchmarks and loads",
    "python -m tools.": "takes hours, or a GPU: how models were made and measured",
    "python -m ops.known_answer": "writes into the package",
    "python prediction.py": "is the original program's",
}


def shown() -> Iterator[tuple[str, str]]:
    """(page, command) of everything that is shown; a command comes once."""
    seen = set()
    for page in PAGES:
        for command in (*in_blocks(page.read_text()), *in_text(page.read_text())):
            if command not in seen:
                seen.add(command)
                yield page.name, command


def in_blocks(text: str) -> Iterator[str]:
    """Lines of plain blocks that hold commands; comments and second columns apart."""
    for block in re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        lines = re.sub(r"\s*\\\n\s*", " ", block).splitlines()
        if DRAWN.search(block) or not any(head_of(line) for line in lines):
            continue
        for line in filter(str.strip, lines):
            parts = re.split(r"\s{3,}|\s+#\s", line)
            for part in parts[: 1 + sum(bool(head_of(part)) for part in parts[1:])]:
                yield from part.strip().removesuffix("&").strip().split(" && ")


def in_text(text: str) -> Iterator[str]:
    """Commands of ours in running text that are whole."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for span in re.findall(r"`([^`\n]+)`", text):
        if head_of(span) and GIVEN.search(span):
            yield span


def head_of(line: str) -> str:
    words = line.split()
    return words[0] if words and words[0] in HEADS else ""


def here(command: str) -> str:
    """The command with the names that things have in these tests."""
    command = WHOLE.get(command, command)
    for word, ours in WORDS.items():
        command = re.sub(rf"(?<![\w/.-]){re.escape(word)}(?![\w/.-])", ours, command)
    return command


def reason(command: str) -> str | None:
    """Why a command is not run here; None: it is."""
    return next((why for head, why in NOT_HERE.items() if here(command).startswith(head)), None)


RUN = [pair for pair in shown() if reason(pair[1]) is None]


@pytest.fixture(scope="module")
def desk(
    service: Service, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, str], dict[str, str]]:
    """A folder with what the documents name, the environment of a user, and the ids of jobs."""
    folder = tmp_path_factory.mktemp("desk")
    genome = (FIXTURES / "virus_phiX174.fa").read_bytes()
    (folder / "genomes.fa").write_bytes(genome)
    (folder / "genomes.fa.gz").write_bytes(gzip.compress(genome, mtime=0))
    (folder / "more.fa").write_bytes(b">more\nACGTACGT\n")
    (folder / "bad.fa").write_bytes(b">bad\n7\n")
    job = service.submit(folder / "genomes.fa.gz", folder / "results")
    failed = service.submit(folder / "bad.fa", folder / "bad")
    service.wait(job)
    assert service.vnp("wait", failed).returncode == 65
    programs = folder / "bin"
    programs.mkdir()
    for name, script in PROGRAMS.items():
        start = f"import sys; sys.argv[0] = '{name}'; {script}"
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} -c "{start}" "$@"\n')
        (programs / name).chmod(0o755)
    (programs / "python").symlink_to(sys.executable)
    path = f"{programs}:{os.environ['PATH']}"
    environment = {**service.environment, "PATH": path, "PYTHONPATH": str(ROOT)}
    return folder, environment, {"ID": job, "FAILED": failed}


@pytest.mark.parametrize(("page", "command"), RUN, ids=[command for _, command in RUN])
def test_command_runs(
    desk: tuple[Path, dict[str, str], dict[str, str]], page: str, command: str
) -> None:
    folder, environment, jobs = desk
    line = re.sub(r"\b(ID|FAILED)\b", lambda match: jobs[match[0]], here(command))
    if command in ENDLESS:
        line = f"timeout --preserve-status -s INT 10 {line}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == ENDLESS.get(command, 0), f"{page}: {line}\n{done.stderr}"
    assert "Traceback" not in done.stderr


def test_what_is_run_and_what_is_not() -> None:
    # Every reason is one for a command that is shown, and most commands are run
    commands = [command for _, command in shown()]
    for head in NOT_HERE:
        assert any(here(command).startswith(head) for command in commands), head
    assert len(RUN) >= 25
    # And what is run begins with something that can be run here: nothing is taken for a command
    # that is none
    for page, command in RUN:
        known = (*PROGRAMS, "eval", "export", "python")
        assert head_of(command) in known, f"{page}: {command}: run it, or tell why not in NOT_HERE"


def test_a_block_of_commands_is_told_apart() -> None:
    text = """
```
vnp list     vnp cancel ID    # words
vnpd &                        # more   words
vnp run x \\
    --out y
unheard-of --option
```
```
a ---> drawing
```
```toml
vnp = 1
```
"""
    assert list(in_blocks(text)) == [
        *("vnp list", "vnp cancel ID", "vnpd", "vnp run x --out y", "unheard-of --option"),
    ]
    assert list(in_text("`vnp export` of `vnp run genomes.fa`, `genomes.fa`")) == [
        "vnp run genomes.fa"
    ]

"""The Nextflow process: its script and its stub, run by bash as Nextflow would run them."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
from pathlib import Path

import pytest

from ops import __version__
from ops.tables import CHUNK_COLUMNS, SEQUENCE_COLUMNS
from tests.deploy.tools import DEPLOY, FIXTURES, shellcheck, with_programs

TEXT = (DEPLOY / "nextflow" / "vnp.nf").read_text()
CONFIG = (DEPLOY / "nextflow" / "nextflow.config").read_text()
#: What Nextflow would put in: the process' own definitions, worked out for one CPU task.
VALUES = {
    "prefix": "phage",
    "args": "--compat",
    "device": "cpu",
    "packers": "1",
    "threads": "1",
    "models_dir": "",
}


def section(name: str) -> tuple[str, str]:
    """Definitions and command of `script:` or `stub:`."""
    found = re.search(rf'^    {name}:\n(.*?)"""\n(.*?)^    """', TEXT, re.DOTALL | re.MULTILINE)
    assert found is not None, name
    return found[1], found[2]


def rendered(command: str) -> str:
    """As Groovy makes it of a string in double quotes; KeyError for a name it would not know."""
    filled = re.sub(r"(?<!\\)\$\{(\w+)\}", lambda match: VALUES[match[1]], command)
    assert not re.search(r"(?<!\\)\$", filled), filled
    return filled.replace(r"\$", "$").replace(r"\\", "\\")


def outputs() -> list[str]:
    """Paths that the process declares."""
    declared = TEXT.partition("output:")[2].partition("when:")[0]
    paths = re.findall(r'path\("([^"]+)"\)', declared)
    assert len(paths) == 5
    return [rendered(path) for path in paths]


def run(name: str, folder: Path) -> None:
    """In a task's folder, with the input staged, as Nextflow starts it."""
    (folder / "input").mkdir()
    (folder / "input" / "a b.fa").symlink_to(FIXTURES / "virus_phiX174.fa")
    command = ["bash", "-ue", "-c", rendered(section(name)[1])]
    done = subprocess.run(
        command, cwd=folder, env=with_programs(folder), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    missing = [path for path in outputs() if not (folder / path).exists()]
    assert missing == []


def columns(path: Path) -> list[str]:
    return path.read_text().splitlines()[0].split("\t")


def test_the_script(tmp_path: Path) -> None:
    run("script", tmp_path)
    out = tmp_path / "phage.vnp"
    assert "\tvirus\t" in (out / "sequences.tsv").read_text()
    assert (out / "compat").exists()  # task.ext.args


def test_the_stub_writes_valid_and_empty_outputs(tmp_path: Path) -> None:
    run("stub", tmp_path)
    out = tmp_path / "phage.vnp"
    assert columns(out / "sequences.tsv") == list(SEQUENCE_COLUMNS)
    assert columns(out / "chunks.tsv") == list(CHUNK_COLUMNS)
    assert gzip.decompress((out / "virus.fasta.gz").read_bytes()) == b""
    assert json.loads((out / "run.json").read_text())["records"] == 0


@pytest.mark.parametrize("name", ["script", "stub"])
def test_every_name_of_a_command_is_defined(name: str) -> None:
    definitions, command = section(name)
    defined = set(re.findall(r"^    (?:def )?(\w+) = ", definitions, re.MULTILINE))
    assert set(re.findall(r"(?<!\\)\$\{(\w+)\}", command)) <= defined
    shellcheck("#!/bin/bash -ue\n" + rendered(command))


def test_the_version_is_a_bare_number(tmp_path: Path) -> None:
    found = re.search(r'eval\("(.+?)"\), topic: versions', TEXT)
    assert found is not None
    done = subprocess.run(
        ["bash", "-c", found[1]], env=with_programs(tmp_path), capture_output=True, text=True
    )
    assert done.stdout == f"{__version__}\n"


def test_what_is_retried_is_what_ends_by_a_signal() -> None:
    # vnp run ends with 130 or 143 when a signal stops it, and what it refuses is below 80
    assert "(130..145) + [104, 175]" in CONFIG
    assert "label 'process_gpu'" in TEXT
    assert "withLabel: process_gpu" in CONFIG

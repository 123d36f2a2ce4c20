"""What the documents say is what the program has: settings, columns, statuses, codes, commands."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest

from daemon.cli import submit, vnp
from daemon.config_load import load
from daemon.config_reference import reference
from daemon.vnpd import vnpd
from ops import errors
from ops.nouns import Status
from ops.tables import CHUNK_COLUMNS, SEQUENCE_COLUMNS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS: dict[str, click.Command] = {"vnp": vnp, "vnp-submit": submit, "vnpd": vnpd}


def shown_commands() -> list[tuple[str, str]]:
    """(page, command) of everything that starts with one of our programs in a block of code."""
    found = []
    for page in PAGES:
        for block in re.findall(r"^```\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            text = re.sub(r"\\\n\s*", " ", block)
            for line in text.splitlines():
                for part in re.split(r"\s{3,}|\s#\s", line):
                    words = part.strip().removesuffix("&").removeprefix("sudo ")
                    if words.partition(" ")[0] in PROGRAMS:
                        found.append((page.name, words.strip()))
    return found


def test_settings() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text() == reference()
    assert "|  |" not in reference()  # every setting says what it is


def test_columns_statuses_and_codes() -> None:
    text = (ROOT / "docs" / "results.md").read_text()
    sequences, _, rest = text.partition("## chunks.tsv")
    chunks = rest.partition("## Statuses")[0]
    assert re.findall(r"^\| `(\w+)` \|", sequences, re.MULTILINE) == list(SEQUENCE_COLUMNS)
    assert re.findall(r"^\| `(\w+)` \|", chunks, re.MULTILINE) == list(CHUNK_COLUMNS)
    statuses = rest.partition("## Statuses")[2].partition("##")[0]
    told = set(re.findall(r"^\| `(\w+)` \|", statuses, re.MULTILINE))
    assert told == {status.label for status in Status}
    codes = {int(code) for code in re.findall(r"^\| (\d+)", text, re.MULTILINE)}
    ours = {kind.exit_code for kind in vars(errors).values() if hasattr(kind, "exit_code")}
    assert ours <= codes


def test_configuration_shown_is_read(tmp_path: Path) -> None:
    # Given the blocks of configuration in the documents; When they are read as a file
    blocks = [
        block
        for page in PAGES
        for block in re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    ]
    assert blocks
    for block in blocks:
        (tmp_path / "vnp.toml").write_text(block)
        config = load({}, tmp_path / "vnp.toml")
        # Then every setting is one, and is taken
        assert config.model_fields_set >= set(tomllib.loads(block))


def test_events_named_are_logged() -> None:
    # Given the events that documents name; Then the code has them, by name or as a job's state
    named = re.compile(
        r"`((?:batch|config|gpu|job|model|preemption|redis|service|worker)\.[a-z_]+)`"
    )
    found = {event for page in PAGES for event in named.findall(page.read_text())}
    source = "".join(
        path.read_text() for room in ("daemon", "workers") for path in (ROOT / room).glob("*.py")
    )
    assert len(found) > 5
    assert {event for event in found if f'"{event}"' not in source} == set()


def test_there_are_commands_to_check() -> None:
    assert len(shown_commands()) > 20


@pytest.mark.parametrize(("page", "command"), shown_commands())
def test_a_command_shown_is_one_that_exists(page: str, command: str) -> None:
    # Given a command of a document; Then the program has it, and every option of it
    program, *words = shlex.split(command)
    found = PROGRAMS[program]
    while isinstance(found, click.Group):
        assert words, f"{page}: {command}"
        found = found.commands[words.pop(0)]
    known = {
        name for parameter in found.params for name in (*parameter.opts, *parameter.secondary_opts)
    }
    known |= {"-h", "--help"}
    assert {word for word in words if re.match("--?[a-z]", word)} <= known, f"{page}: {command}"

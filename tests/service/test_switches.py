"""The switches that turn things back in an emergency: in effect, on record, and without harm."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.crash.harness import Service, digests

SWITCHES: dict[str, dict[str, object]] = {
    "one sequence a batch": {"packing": "false"},
    "other budgets": {"esm_budget": 9_000, "dna_budget": 8_192, "max_rows": 3, "packers": 1},
    "emergency": {"attention": "plain", "compile": "false", "dtype": "bf16"},
}
Log = list[dict[str, Any]]


def run(fasta: Path, folder: Path, **settings: object) -> Path:
    """`vnp run` with these settings, its log in folder/log; returns its output folder."""
    shell, out = Service(folder, log_file=folder / "log", **settings), folder / "out"
    done = shell.vnp("run", fasta, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def runs(fasta: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Log]]:
    """The same input under each set of switches, at the same time: output folder and log."""
    folders = {name: tmp_path_factory.mktemp("switched") for name in SWITCHES}
    with ThreadPoolExecutor() as pool:
        begun = {n: pool.submit(run, fasta, f, **SWITCHES[n]) for n, f in folders.items()}
    return {name: (begun[name].result(), read_log(folders[name] / "log")) for name in SWITCHES}


def read_log(path: Path) -> Log:
    return [json.loads(line) for line in path.read_text().splitlines()]


def events(log: Log, name: str) -> Log:
    return [line for line in log if line["event.name"] == name]


@pytest.mark.parametrize("name", ["one sequence a batch", "other budgets"])
def test_packing_changes_no_byte(
    runs: dict[str, tuple[Path, Log]], finished: tuple[str, Path], name: str
) -> None:
    # Given the input of a finished job, packed in another way
    out, log = runs[name]
    # Then the switch was in effect
    packers = events(log, "packer.ready")
    assert packers != []
    for line in packers:
        assert line["packing"] is (name != "one sequence a batch")
        assert line["esm_budget"] == SWITCHES[name].get("esm_budget", 10_752)
        assert line["max_rows"] == SWITCHES[name].get("max_rows", 1_024)
    # And tables and shards are the same to the byte
    assert digests(out) == digests(finished[1])


def test_emergency_switches_are_on_record(runs: dict[str, tuple[Path, Log]]) -> None:
    # Given a run with everything turned back
    out, log = runs["emergency"]
    # Then log and run.json say what was used
    (loaded,) = events(log, "model.loaded")
    assert (loaded["attention_esm2"], loaded["attention_dnabert"]) == ("plain", "plain")
    assert loaded["compile"] is False
    assert loaded["dtype"] == "bf16"
    record = json.loads((out / "run.json").read_text())
    assert record["identity"]["dtype"] == "bf16"
    assert record["numerics"] == [loaded["numerics"]]


def test_another_dtype_never_mixes_with_a_result(
    runs: dict[str, tuple[Path, Log]], fasta: Path, tmp_path: Path
) -> None:
    # Given the result of a bf16 run
    out, _ = runs["emergency"]
    before = digests(out)
    # When the same input is to be computed there in fp32
    done = Service(tmp_path).vnp("run", fasta, "--out", out)
    # Then it is refused with both named, and nothing is touched
    assert done.returncode == 73
    assert "holds results of another job (dtype bf16, not fp32)" in done.stderr
    assert digests(out) == before

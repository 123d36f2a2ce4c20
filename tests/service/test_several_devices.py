"""Any number of gpu workers: each takes work when it is free, and no byte depends on how many."""

from __future__ import annotations

import pytest

from daemon.bench_service import Figures, measure_service
from tests.crash.campaign import write_input

READS = 2_000
#: Bits are promised within one numerics hash, and the number of threads is part of it.
SETTINGS = {
    "THREADS": 1,
    "PACKERS": 1,
    "SHARD_RECORDS": 500,
    "ESM_BUDGET": 1_024,
    "DNA_BUDGET": 1_024,
    "MAX_TOKENS": 1_024,
    "HEARTBEAT_S": 0.05,
}
NUMBERS = (1, 2, 3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Figures]:
    """The same job with as many workers as in NUMBERS."""
    folder = tmp_path_factory.mktemp("devices")
    fasta = folder / "mixed.fa"
    write_input(fasta, READS, seed=7)
    return {
        number: measure_service(folder, SETTINGS, ["cpu"] * number, fasta) for number in NUMBERS
    }


def test_tables_and_shards_are_the_same_bytes(runs: dict[int, Figures]) -> None:
    assert {number: run["bytes"] for number, run in runs.items()} == dict.fromkeys(
        NUMBERS, runs[1]["bytes"]
    )


def test_every_worker_gets_its_share(runs: dict[int, Figures]) -> None:
    # Given work that is taken when a worker is free; Then none of them gets all, and none nothing
    for number, run in runs.items():
        frames = [device["frames"] for device in run["by_device"]]
        assert len(frames) == number
        assert min(frames) > max(frames) / 5, frames
        assert sum(frames) <= run["counts"]["frames"]


def test_figures_of_several(runs: dict[int, Figures]) -> None:
    # Given three workers; Then the rates are of each of them, and what waited was seen
    # in a window of four shards for each
    run = runs[3]
    assert [device["worker"] for device in run["by_device"]] == ["gpu-0", "gpu-1", "gpu-2"]
    assert all(device["frames_per_s"] > 0 for device in run["by_device"])
    assert run["steady_s"] > 0
    assert run["shards_open"].endswith(" of 12")

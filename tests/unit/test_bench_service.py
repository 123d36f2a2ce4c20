"""The service arm of `vnp bench gpu`: what is made of the lines that gpu workers say."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from daemon.bench_service import (
    Look,
    Window,
    busy_windows,
    compare,
    figures,
    in_line,
    read_log,
    stages,
    steady_state,
)
from daemon.cli import vnp


def window(begin: float, end: float, *, rate: float = 100.0, busy: float = 1.0) -> Window:
    """Of a device that makes `rate` frames a second."""
    seconds, rows = end - begin, rate * (end - begin)
    said = {"seconds": seconds, "busy": busy, "rows": rows, "rows_total": rows, "fill": 0.5}
    return Window(begin, end, {**said, "esm_tokens": 168 * rows, "batches": 10})


def windows(start: float, count: int, length: float = 5.0, rate: float = 100.0) -> list[Window]:
    """One after another without a gap."""
    begins = [start + number * length for number in range(count)]
    return [window(begin, begin + length, rate=rate) for begin in begins]


def seen(at: float, waiting: int, shards_open: int = 7) -> Look:
    return Look(at, {"tasks": 1, "batches": waiting, "results": 3}, shards_open, 8, 5_000_000)


def test_steady_state_is_where_every_device_has_work() -> None:
    # Given two devices, one of which began later and ended earlier
    own = {"gpu-0": windows(0, 10), "gpu-1": windows(7, 7)}
    # Then it lies between the end of the latest first window and the start of the earliest last one
    assert steady_state(own) == (12, 37)


@pytest.mark.parametrize("few", [{}, {"gpu-0": windows(0, 9), "gpu-1": windows(0, 2)}])
def test_no_steady_state(few: dict[str, list[Window]]) -> None:
    begin, end = steady_state(few)
    assert begin == end


def test_rates_are_of_the_steady_state_and_the_rest_is_told() -> None:
    # Given a job from 100 to 160, and two devices of different speed in it
    own = {"gpu-0": windows(103, 10), "gpu-1": windows(104, 10, rate=90)}
    looks = [seen(101, 0), seen(120, 9), seen(130, 5), seen(140, 30), seen(159, 0)]
    # When the figures are made
    found = figures(own, ["cuda:0", "cuda:1"], looks, (100, 160))
    # Then the total is the sum of the rates, and start and end are told beside it
    assert found["frames_per_s"] == pytest.approx(190)
    assert found["tokens_per_s"] == pytest.approx(190 * 168)
    assert (found["start_s"], found["steady_s"], found["end_s"]) == (9, 39, 12)
    assert found["wall_s"] == 60
    assert [device["frames_per_s"] for device in found["by_device"]] == [100, 90]
    # And the queue is judged by what was seen in the steady state alone
    assert found["batches_waiting"] == "5..30, median 9"
    assert found["shards_open"] == "7 of 8"


def test_device_that_pauses_is_seen_to() -> None:
    # Given a device that had nothing to do for one window in the middle
    idle = [*windows(0, 3), window(15, 20, rate=0, busy=0), *windows(20, 3)]
    # Then its rate and its busy share have that pause inside
    found = figures({"gpu-0": idle}, ["cuda:0"], [], (0, 40))
    assert found["busy"] == pytest.approx(4 / 5)
    assert found["frames_per_s"] == pytest.approx(80)


def test_device_that_never_said_anything_leaves_no_steady_state() -> None:
    # Given two devices of which one got no work; Then no rate is claimed
    found = figures({"gpu-0": windows(0, 9)}, ["cuda:0", "cuda:1"], [], (0, 45))
    assert found["frames_per_s"] == 0
    assert found["busy"] == 0
    assert [device["frames"] for device in found["by_device"]] == [500, 0]
    assert "gpu-1 (cuda:1): busy 0.0000" in in_line(found["by_device"][1])


def test_windows_are_told_apart_by_worker(tmp_path: Path) -> None:
    # Given a log of two gpu workers and a planner
    def line(event: str, worker: str, at: float) -> str:
        stamp = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
        return json.dumps(
            {"event.name": event, "worker": worker, "@timestamp": stamp, "seconds": 5.0}
        )

    lines = [
        line("gpu.busy", "gpu-0", 1_005),
        line("job.progress", "planner-0", 1_006),
        line("gpu.busy", "gpu-1", 1_007.25),
        line("gpu.busy", "gpu-0", 1_010),
    ]
    (tmp_path / "vnp.log").write_text("\n".join(lines) + "\n")
    # When it is read
    found = busy_windows(read_log(tmp_path / "vnp.log"))
    # Then each worker has its own windows, in their order
    assert {w: [(x.begin, x.end) for x in own] for w, own in found.items()} == {
        "gpu-0": [(1_000, 1_005), (1_005, 1_010)],
        "gpu-1": [(1_002.25, 1_007.25)],
    }


def test_stages_of_a_job() -> None:
    # Given a job with two commits; Then the tables are what follows the last of them
    events = ["job.started", "job.checkpointed", "job.checkpointed", "job.finished"]
    lines = [
        {"event.name": event, "@timestamp": f"2026-11-26T10:00:{second:02}.500Z"}
        for event, second in zip(events, (3, 8, 20, 24), strict=True)
    ]
    assert stages(lines) == {"shards_s": 17.0, "tables_s": 4.0}


def test_ratios_are_to_the_first_run() -> None:
    first = {"frames_per_s": 500.0, "shards_s": 100.0, "wall_s": 120.0, "bytes": "a"}
    own = {"frames_per_s": 990.0, "shards_s": 50.0, "wall_s": 62.0, "bytes": "a"}
    assert compare(own, first) == {
        "ratio": 1.98,
        "shards_ratio": 2.0,
        "wall_ratio": 1.9355,
        "same_bytes": True,
    }
    assert compare({**own, "bytes": "b"}, first)["same_bytes"] is False


@pytest.mark.parametrize("devices", ["0", "1,", "one", "1;2", "-1"])
def test_devices_that_are_no_numbers(devices: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(vnp, ["bench", "gpu", "g.fa", "--devices", devices])
    assert done.exit_code == 2
    assert "give numbers from 1, with commas" in done.output

"""The service arm of `vnp bench gpu`: one job from FASTA to tables, on one device or several.

What a device did is read from its gpu.busy lines, each of which sums up a window of some seconds;
a worker's windows follow each other without a gap, so that a pause of it shows in one of them. The
*steady state* is the time for which every device has been seen at work: it begins when the last
device ends its first window, and ends when the first device begins its last one. What lies before
(start_s) and behind (end_s) is left out of the rates, and is told; wall_s has everything, shards_s
what lies between the job's start and its last commit, tables_s what is left after that.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from broker.state import SharedState
from daemon.observer import look
from ops.errors import UnavailableError

LOOK_EVERY_S = 0.5
#: A line is written, and its time taken, a moment after its window has ended.
SLACK_S = 0.05
PYTHON = [sys.executable, "-m"]
Figures = dict[str, Any]


@dataclass(frozen=True)
class Window:
    """What a gpu worker did between two moments (seconds since 1970)."""

    begin: float
    end: float
    said: Figures


@dataclass(frozen=True)
class Look:
    """How the queue stood at a moment: entries of each stream that nobody works on yet."""

    at: float
    waiting: Mapping[str, int]
    shards_open: int
    window_shards: int
    redis_bytes: int


def measure_service(
    folder: Path, settings: Mapping[str, object], devices: Sequence[str], fasta: Path
) -> Figures:
    """Runs `vnpd` on the devices and one job through it; settings are names without VNP_.

    FOLDER/service-N, of N devices, keeps the log, the job and its output.
    """
    own_folder = folder / f"service-{len(devices)}"
    shutil.rmtree(own_folder, ignore_errors=True)
    state, out = own_folder / "state", own_folder / "out"
    own = {**settings, "STATE_DIR": state, "DEVICE": ",".join(devices)}
    environment = {**os.environ, **{f"VNP_{name}": str(value) for name, value in own.items()}}
    began = time.time()
    with _running_service(state, environment), _Watch(state) as watch:
        submitted = time.time()
        submit = [*PYTHON, "daemon.cli", "submit", str(fasta), "--out", str(out), "--wait"]
        subprocess.run(submit, env=environment, check=True, capture_output=True)
        done = time.time()
    counts = json.loads((out / "run.json").read_text())["counts"]
    lines = read_log(state / "vnp.log")
    return {
        **figures(busy_windows(lines), devices, watch.looks, (submitted, done)),
        **stages(lines),
        "ready_s": round(submitted - began, 1),
        "job_frames_per_s": round(counts["frames"] / (done - submitted), 1),
        "counts": counts,
        "bytes": digest(out),
    }


@contextmanager
def _running_service(state: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """A `vnpd` whose models are loaded."""
    with subprocess.Popen(
        [*PYTHON, "daemon.vnpd"], env=environment, stderr=subprocess.DEVNULL
    ) as vnpd:
        try:
            while not _facts(state).get("ready"):
                if vnpd.poll() is not None:
                    raise UnavailableError(f"vnpd does not start; see {state / 'vnp.log'}")
                time.sleep(0.2)
            yield
        finally:
            vnpd.terminate()


def _facts(state: Path) -> Figures:
    try:
        facts: Figures = json.loads((state / "service.json").read_text())
    except FileNotFoundError:
        return {}
    return facts


class _Watch:
    """Looks at the queue twice a second while a job runs."""

    def __init__(self, state: Path) -> None:
        self.looks: list[Look] = []
        self._shared = SharedState(_facts(state)["redis_url"], "vnp", "bench")
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()
        self._shared.close()

    def _watch(self) -> None:
        while not self._closed.wait(LOOK_EVERY_S):
            said = look(self._shared).planner
            if said:
                self.looks.append(_as_look(said))


def _as_look(said: Figures) -> Look:
    streams = said["streams"].items()
    return Look(
        time.time(),
        {name: stream["length"] - stream["pending"] for name, stream in streams},
        said["shards_open"],
        said["window_shards"],
        said["redis_memory_bytes"],
    )


# -- what is made of it ----------------------------------------------------------------------------


def read_log(log: Path) -> list[Figures]:
    """The lines of a log."""
    return [json.loads(text) for text in log.read_text().splitlines()]


def busy_windows(lines: Sequence[Figures]) -> dict[str, list[Window]]:
    """What the gpu.busy lines say, by worker."""
    windows = defaultdict(list)
    for line in lines:
        if line["event.name"] == "gpu.busy":
            end = _moment(line)
            windows[line["worker"]].append(Window(end - line["seconds"], end, line))
    return dict(windows)


def stages(lines: Sequence[Figures]) -> Figures:
    """Seconds of the log's one job until its last shard was committed, and of its tables."""
    moments = {line["event.name"]: _moment(line) for line in lines}  # the last of each kind
    committed = moments["job.checkpointed"]
    return {
        "shards_s": round(committed - moments["job.started"], 2),
        "tables_s": round(moments["job.finished"] - committed, 2),
    }


def _moment(line: Figures) -> float:
    return datetime.fromisoformat(line["@timestamp"]).timestamp()


def steady_state(windows: Mapping[str, Sequence[Window]]) -> tuple[float, float]:
    """Its beginning and end; without any length where a device has fewer than three windows."""
    if min(map(len, windows.values()), default=0) < 3:
        return 0.0, 0.0
    begin = max(own[0].end for own in windows.values())
    return begin, max(begin, min(own[-1].begin for own in windows.values()))


def figures(
    windows: Mapping[str, Sequence[Window]],
    devices: Sequence[str],
    looks: Sequence[Look],
    job: tuple[float, float],
) -> Figures:
    """Rates in the steady state, of each device and all together, and what was left out of it."""
    workers = {f"gpu-{slot}": device for slot, device in enumerate(devices)}
    of_all = {worker: windows.get(worker, ()) for worker in workers}
    (submitted, done), (begin, end) = job, steady_state(of_all)
    by_device = [
        device_figures(worker, device, of_all[worker], begin, end)
        for worker, device in workers.items()
    ]
    return {
        "tokens_per_s": sum(device["tokens_per_s"] for device in by_device),
        "frames_per_s": round(sum(device["frames_per_s"] for device in by_device), 1),
        "busy": min(device["busy"] for device in by_device),
        "gpu_s": round(sum(device["gpu_s"] for device in by_device), 1),
        "steady_s": round(end - begin, 1),
        "start_s": round(max(0.0, begin - submitted), 1),
        "end_s": round(done - max(end, submitted), 1),
        "wall_s": round(done - submitted, 1),
        **queue_figures([seen for seen in looks if begin <= seen.at <= end]),
        "by_device": by_device,
    }


def device_figures(
    worker: str, device: str, windows: Sequence[Window], begin: float, end: float
) -> Figures:
    """Of one device, from its windows that lie within the steady state."""
    steady = [
        window.said
        for window in windows
        if begin - SLACK_S <= window.begin and window.end <= end + SLACK_S
    ]
    seconds = sum(said["seconds"] for said in steady)
    batches = sum(said["batches"] for said in steady)

    def rate(name: str) -> float:
        return sum(said[name] for said in steady) / seconds if steady else 0.0

    return {
        "worker": worker,
        "device": device,
        "busy": round(sum(w["busy"] * w["seconds"] for w in steady) / seconds if steady else 0, 4),
        "frames_per_s": round(rate("rows"), 1),
        "tokens_per_s": round(rate("esm_tokens")),
        "fill": round(sum(w["fill"] * w["batches"] for w in steady) / batches if steady else 0, 4),
        "seconds": round(seconds, 1),
        "gpu_s": round(sum(w.said["busy"] * w.said["seconds"] for w in windows), 1),
        "frames": windows[-1].said["rows_total"] if windows else 0,
    }


def queue_figures(looks: Sequence[Look]) -> Figures:
    """What waited for packers, GPUs and writer; a GPU starves when no batch waits for it."""
    if not looks:
        return {}
    batches = [seen.waiting["batches"] for seen in looks]
    return {
        "batches_waiting": f"{min(batches)}..{max(batches)}, median {statistics.median(batches):g}",
        "tasks_waiting": max(seen.waiting["tasks"] for seen in looks),
        "results_waiting": max(seen.waiting["results"] for seen in looks),
        "shards_open": f"{statistics.median(s.shards_open for s in looks):g} of "
        f"{looks[-1].window_shards}",
        "redis_mb": round(max(seen.redis_bytes for seen in looks) / 1e6),
    }


def compare(own: Figures, first: Figures) -> Figures:
    """Ratios to the first run, of the rates and of the wall-clock times, and whether the tables and
    shards are the same to the byte."""

    def ratio(value: float, to: float) -> float | None:
        return round(value / to, 4) if to else None

    return {
        "ratio": ratio(own["frames_per_s"], first["frames_per_s"]),
        "shards_ratio": ratio(first["shards_s"], own["shards_s"]),
        "wall_ratio": ratio(first["wall_s"], own["wall_s"]),
        "same_bytes": own["bytes"] == first["bytes"],
    }


def in_line(device: Figures) -> str:
    """A device's figures for people."""
    return (
        f"{device['worker']} ({device['device']}): busy {device['busy']:.4f}, "
        f"{device['frames_per_s']:,.1f} frames/s, fill {device['fill']:.4f}, "
        f"in {device['seconds']} s; {device['frames']:,} frames in all"
    )


def digest(out: Path) -> str:
    """sha256 over the bytes that are promised: tables and shards."""
    total = hashlib.sha256()
    for path in [*sorted(out.glob("shards/*")), *sorted(out.glob("*.tsv"))]:
        total.update(path.name.encode() + b"\0")
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()

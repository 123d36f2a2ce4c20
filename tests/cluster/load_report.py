"""Figures of a load, and the short table that is printed of them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from tests.cluster.load_jobs import Job, Load, run_facts
from tests.cluster.load_watch import Watch

#: Folder of the outputs of small jobs that were submitted without a pause.
AT_ONCE = "at-once"


def waits(jobs: Iterable[Job]) -> dict[str, float]:
    """Seconds from submit to end: median, 95 %, longest; of those that have ended."""
    times = sorted(job.wait_s for job in jobs if job.ended)
    if not times:
        return {"jobs": 0}
    return {
        "jobs": len(times),
        "median_s": round(statistics.median(times), 2),
        "p95_s": round(times[min(len(times) - 1, int(0.95 * len(times)))], 2),
        "max_s": round(times[-1], 2),
    }


def is_at_once(job: Job) -> bool:
    return job.out.parent.name == AT_ONCE


def waits_by_priority(jobs: Iterable[Job]) -> dict[str, dict[str, float]]:
    ended = list(jobs)
    return {
        "with priority": waits(job for job in ended if job.priority),
        "without": waits(job for job in ended if not job.priority),
    }


def by_stage(
    load: Load, watch: Watch, large: Sequence[Job], small: Sequence[Job]
) -> dict[str, Any]:
    """How long small jobs took, by what the large ones did when they were submitted."""
    read = max((load.planned_at(job) for job in large), default=0.0)
    totals = shard_totals(load, large)
    computed = next(
        (look.at for look in watch.moments if sum(look.shards) >= sum(totals) > 0), float("inf")
    )
    stages: dict[str, list[Job]] = {"inputs read": [], "shards computed": [], "tables written": []}
    for job in small:
        early = not read or job.submitted < read
        name = "inputs read" if early else "shards computed"
        stages[name if job.submitted < computed else "tables written"].append(job)
    return {name: waits(jobs) for name, jobs in stages.items()}


def shard_totals(load: Load, large: Sequence[Job]) -> list[int]:
    plans = [load.store.plan_or_none(job.id) for job in large]
    return [plan.shards if plan is not None else 0 for plan in plans]


def totals(jobs: Sequence[Job]) -> dict[str, float]:
    """Records and frames of finished jobs, and a second of the time that they took together."""
    done = [
        run_facts(job)["counts"] for job in jobs if job.ended and (job.out / "run.json").exists()
    ]
    seconds = max(job.ended for job in jobs) - min(job.submitted for job in jobs)
    records, frames = (
        sum(counts.get(name, 0) for counts in done) for name in ("records", "frames")
    )
    return {
        "seconds": round(seconds, 1),
        "records": records,
        "frames": frames,
        "records_per_s": round(records / seconds, 1),
        "frames_per_s": round(frames / seconds, 1),
    }


def gpu_figures(watch: Watch) -> dict[str, float]:
    """From the lines gpu.busy of all nodes: what the devices did while they had work."""
    lines = []
    for node in watch.nodes.all:
        text = (node.state / "vnp.log").read_text().splitlines()
        lines += [json.loads(line) for line in text if '"gpu.busy"' in line]
    seconds = sum(line["seconds"] for line in lines)
    if not seconds:
        return {}
    return {
        "frames_per_s_of_one": round(sum(line["rows"] for line in lines) / seconds, 1),
        "batches_per_s_of_one": round(sum(line["batches"] for line in lines) / seconds, 1),
        "busy": round(sum(line["busy"] * line["seconds"] for line in lines) / seconds, 3),
        "batches": sum(line["batches"] for line in lines),
    }


def fairness(watch: Watch, load: Load, large: Sequence[Job]) -> dict[str, Any]:
    """How evenly the large jobs got on, in shards; and their ends, in seconds from the first."""
    spreads = watch.spreads(shard_totals(load, large))
    ends = sorted(job.ended for job in large if job.ended)
    return {
        "shards_of_each": shard_totals(load, large),
        "spread_median": statistics.median(spreads) if spreads else 0,
        "spread_max": max(spreads, default=0),
        "looks": len(spreads),
        "ends_s": [round(end - ends[0], 1) for end in ends],
    }


def memory(watch: Watch) -> dict[str, dict[str, float]]:
    course = watch.late_and_early_mb()
    return {
        role: {
            "processes": watch.processes.get(role, 0),
            "peak_mb": round(peak, 1),
            "second_quarter_mb": round(course[role][0], 1),
            "last_quarter_mb": round(course[role][1], 1),
        }
        for role, peak in sorted(watch.peak_mb.items())
    }


def figures(
    load: Load, watch: Watch, alone: Sequence[Job], large: Sequence[Job], small: Sequence[Job]
) -> dict[str, Any]:
    rate, seconds = watch.shard_rate()
    return {
        "alone": waits(alone),
        "over_time": waits_by_priority(job for job in small if not is_at_once(job)),
        "at_once": waits_by_priority(job for job in small if is_at_once(job)),
        "by_stage": by_stage(load, watch, large, [job for job in small if not is_at_once(job)]),
        "large": waits(large),
        "fairness": fairness(watch, load, large),
        "memory": memory(watch),
        "cores": {role: round(used, 2) for role, used in sorted(watch.cores().items())},
        "redis": {name: round(value, 1) for name, value in watch.redis_rates().items()},
        "waiting_max": longest_queues(watch),
        "shards_per_s": round(rate, 2),
        "shards_for_s": round(seconds, 1),
        "totals": totals([*large, *small]) if large or small else {},
        "gpu": gpu_figures(watch),
        "holders": {role: dict(names) for role, names in watch.holders.items()},
        "watch_errors": watch.errors[:5],
    }


def longest_queues(watch: Watch) -> dict[str, int]:
    names = watch.moments[0].waiting if watch.moments else {}
    return {name: max(moment.waiting[name] for moment in watch.moments) for name in names}


def table(found: dict[str, Any]) -> str:
    lines = ["| jobs | number | median s | 95 % | longest |", "|---|---|---|---|---|"]
    rows = [
        ("small, alone", found["alone"]),
        *((f"small, over time, {name}", of) for name, of in found["over_time"].items()),
        *((f"of all these, while {name}", of) for name, of in found["by_stage"].items()),
        *((f"small, at once, {name}", of) for name, of in found["at_once"].items()),
        ("large", found["large"]),
    ]
    for name, of in rows:
        if of["jobs"]:
            words = (name, of["jobs"], of["median_s"], of["p95_s"], of["max_s"])
            lines.append(f"| {' | '.join(map(str, words))} |")
    lines += [
        "",
        "| role | processes | peak MB | 2nd quarter | last | cores |",
        "|---|---|---|---|---|---|",
    ]
    for role, of in found["memory"].items():
        words = (role, *of.values(), found["cores"].get(role, 0))
        lines.append(f"| {' | '.join(map(str, words))} |")
    told = ("fairness", "redis", "waiting_max", "totals", "gpu", "holders", "watch_errors")
    lines += ["", *(f"{name}: {found[name]}" for name in told if found[name])]
    lines.append(f"shards: {found['shards_per_s']}/s over {found['shards_for_s']} s")
    return "\n".join(lines)

"""Many small jobs beside some large ones, on several nodes: who waits for whom, who holds how much.

    python -m tests.cluster.load --small 1000 --large 10 --records 1000000

Nodes are processes of this machine around one Redis. First some small jobs alone; then the large
ones are submitted at once, and the small ones over time beside them, a few with priority. Prints a
table; all figures go to a JSON file. Exits 1 when a record is not accounted for, or a job failed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.cluster.load_jobs import Job, Load, problem_of, write_reads
from tests.cluster.load_nodes import Nodes
from tests.cluster.load_report import AT_ONCE, figures, table
from tests.cluster.load_watch import Watch
from tests.crash.endurance import write_tiny_models

SMALL_RECORDS = 10
#: Between the large jobs and the first small one.
HEAD_START_S = 2.0
AT_ONCE_RATE = 1e6
#: What cancelled jobs get to end in.
CANCEL_LIMIT_S = 20.0


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", type=int, default=1_000, help="jobs of ten records")
    parser.add_argument("--large", type=int, default=10)
    parser.add_argument("--records", type=int, default=1_000_000, help="of a large job")
    parser.add_argument("--bases", type=int, default=300, help="of a record")
    parser.add_argument(
        "--gc-content",
        type=float,
        help="of random reads, in place of those of genomes: at 0.3 the devices have little to do",
    )
    parser.add_argument("--alone", type=int, default=100, help="small jobs that run first")
    parser.add_argument("--rate", type=float, default=10.0, help="small jobs a second")
    parser.add_argument("--at-once", type=int, default=100, help="of the small jobs, the last")
    parser.add_argument("--priority-every", type=int, default=20, help="0: none has priority")
    parser.add_argument(
        "--devices", nargs="+", default=["cpu"] * 3, help="one for each node: cpu, cuda:N, none"
    )
    parser.add_argument("--packers", type=int, default=1, help="of each node")
    parser.add_argument("--models", choices=["tiny", "bundled"], default="tiny")
    parser.add_argument("--limit-s", type=float, default=7_200, help="then it cancels and reports")
    parser.add_argument("--json", type=Path, default=Path("load.json"))
    return parser.parse_args()


def beside(load: Load, asked: argparse.Namespace, outs: list[Path]) -> tuple[list[Job], list[Job]]:
    """The large jobs, and the small ones in between."""
    large = [load.submit(load.folder / "large.fa", out, asked.records) for out in outs]
    time.sleep(HEAD_START_S)
    at_once = min(asked.small, asked.at_once)
    small = small_ones(load, asked, asked.small - at_once, asked.rate, "over-time")
    tell(load, f"{len(small)} small jobs submitted over time")
    small += small_ones(load, asked, at_once, AT_ONCE_RATE, AT_ONCE)
    tell(load, f"{at_once} more at once")
    load.wait()
    return large, small


def small_ones(
    load: Load, asked: argparse.Namespace, count: int, rate: float, name: str
) -> list[Job]:
    """`rate` jobs a second, below a folder of that name; one in some has priority."""
    folder, every, began = load.folder, asked.priority_every, time.monotonic()
    jobs: list[Job] = []
    for number in range(count):
        time.sleep(max(0.0, began + number / rate - time.monotonic()))
        if not load.in_time:
            break
        priority = int(bool(every) and number % every == every - 1)
        out = folder / name / str(number)
        jobs.append(load.submit(folder / "small.fa", out, SMALL_RECORDS, priority))
    return jobs


def tell(load: Load, what: str) -> None:
    left = load.deadline - time.monotonic()
    print(f"{what}; {load.note_ended()} jobs are not done, {left:.0f} s left", flush=True)


def run(asked: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], list[str]]:
    deadline = time.monotonic() + asked.limit_s
    write_reads(folder / "large.fa", asked.records, asked.bases, 1, asked.gc_content)
    write_reads(folder / "small.fa", SMALL_RECORDS, asked.bases, 2, asked.gc_content)
    models = write_tiny_models(folder) if asked.models == "tiny" else {}
    nodes = Nodes(folder, asked.devices, asked.packers, models)
    try:
        nodes.start()
        load = Load(folder, nodes.config, deadline)
        tell(load, f"{len(nodes.all)} nodes are ready")
        alone = small_ones(load, asked, asked.alone, asked.rate, "alone")
        load.wait()
        tell(load, f"{len(alone)} small jobs alone")
        outs = [folder / "large" / str(number) for number in range(asked.large)]
        with Watch(nodes, outs) as watch:
            large, small = beside(load, asked, outs)
        found = figures(load, watch, alone, large, small)
        found["course"] = [vars(moment) for moment in watch.moments]
        found["jobs"] = [vars(job) for job in [*large, *small]]
        return found, problems(load, found)
    finally:
        nodes.end()


def problems(load: Load, found: dict[str, Any]) -> list[str]:
    ended = [job for job in load.jobs if job.ended]
    wrong = [text for text in (problem_of(load, job) for job in ended) if text]
    found["accounted"] = {
        "jobs": len(ended) - len(wrong),
        "records": sum(job.records for job in ended) - sum_wrong(wrong, ended),
    }
    cancelled = load.cancel_rest()
    load.deadline = time.monotonic() + CANCEL_LIMIT_S
    load.wait()
    return wrong + ([f"{cancelled} jobs were cancelled for want of time"] if cancelled else [])


def sum_wrong(wrong: Iterable[str], ended: list[Job]) -> int:
    named = {text.split()[1].rstrip(":") for text in wrong}
    return sum(job.records for job in ended if job.id in named)


def main() -> None:
    asked = options()
    with tempfile.TemporaryDirectory(prefix="vnp-load-") as folder:
        found, wrong = run(asked, Path(folder))
    found["problems"] = wrong
    asked.json.write_text(json.dumps({"asked": vars(asked), **found}, default=str))
    print(table(found))
    print(f"accounted for: {found['accounted']}")
    print("\n".join(f"PROBLEM: {text}" for text in wrong[:20]) or "no problem")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()

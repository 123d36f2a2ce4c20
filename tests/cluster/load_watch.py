"""What every process of some nodes holds and uses, and how far the jobs are, second by second."""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from broker.keys import GROUPS, Keys
from ops.manifest import ManifestTail
from tests.bench.bench_memory import memory_mb, role_of
from tests.cluster.load_nodes import NAMESPACE, Nodes
from tests.crash.harness import command_line
from tests.looking import Looking

EVERY_S = 1.0


@dataclass
class Moment:
    """One look. shards: committed so far, of each watched output; cpu_s and rss_mb by role."""

    at: float
    shards: list[int]
    cpu_s: dict[str, float]
    rss_mb: dict[str, float]
    redis: dict[str, int]
    waiting: dict[str, int]


@dataclass
class Watch(Looking):
    """Looks once a second."""

    nodes: Nodes
    outs: list[Path] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    peak_mb: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    processes: dict[str, int] = field(default_factory=dict)
    holders: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._tails = [ManifestTail(out / "manifest.jsonl") for out in self.outs]
        super().__init__(EVERY_S)

    def look(self) -> None:
        try:
            self._look()
        except Exception as error:  # a look that fails is told, and costs no figure but its own
            self.errors.append(f"{type(error).__name__}: {error}")

    def _look(self) -> None:
        cpu_s: dict[str, float] = defaultdict(float)
        rss_mb: dict[str, float] = defaultdict(float)
        found: Counter[str] = Counter()
        for role, process in self._processes():
            with suppress(psutil.Error, OSError, KeyError):  # it has just ended
                times = process.cpu_times()
                cpu_s[role] += times.user + times.system
                rss_mb[role] = max(rss_mb[role], memory_mb(process.pid, "VmRSS"))
                peak = memory_mb(process.pid, "VmHWM")
                self.peak_mb[role] = max(self.peak_mb[role], peak)
                found[role] += 1
        self.processes = dict(found)
        for role in ("planner", "writer"):
            self.holders[role][self.nodes.holder(role)] += 1
        for tail in self._tails:
            tail.poll()
        shards = [len(tail.committed) for tail in self._tails]
        now = time.time()
        self.moments.append(Moment(now, shards, cpu_s, rss_mb, self._redis(), self._waiting()))

    def _processes(self) -> list[tuple[str, psutil.Process]]:
        """By role; of planner and writer, the one that works apart from those that stand by."""
        found = []
        for node in self.nodes.all:
            assert node.process is not None
            found.append(("supervisor", psutil.Process(node.process.pid)))
            found += [(role_of(command_line(child)), child) for child in node.children()]
        if self.nodes.server.pid is not None:
            found.append(("redis", psutil.Process(self.nodes.server.pid)))
        return found

    def _redis(self) -> dict[str, int]:
        names = (
            *("used_memory", "used_memory_peak", "total_commands_processed"),
            *("total_net_input_bytes", "total_net_output_bytes"),
        )
        with self.nodes.all[0].redis() as client:
            info: Any = client.info()
        return {name: info[name] for name in names}

    def _waiting(self) -> dict[str, int]:
        with self.nodes.all[0].redis() as client:
            return {name: int(client.xlen(Keys(NAMESPACE).stream(name))) for name in GROUPS}

    # -- figures -----------------------------------------------------------------------------------

    def cores(self) -> dict[str, float]:
        """Cores in use, of all processes of a role together, from the first look to the last."""
        first, last = self.moments[0], self.moments[-1]
        seconds = last.at - first.at
        return {
            role: (used - first.cpu_s.get(role, 0)) / seconds for role, used in last.cpu_s.items()
        }

    def redis_rates(self) -> dict[str, float]:
        first, last = self.moments[0], self.moments[-1]
        seconds = last.at - first.at
        moved = {name: (last.redis[name] - first.redis[name]) / seconds for name in last.redis}
        return {
            "commands_per_s": moved["total_commands_processed"],
            "in_mb_per_s": moved["total_net_input_bytes"] / 1e6,
            "out_mb_per_s": moved["total_net_output_bytes"] / 1e6,
            "peak_used_mb": last.redis["used_memory_peak"] / 1e6,
        }

    def late_and_early_mb(self) -> dict[str, tuple[float, float]]:
        """Of the largest process of a role: medians of the second and of the last quarter."""
        quarter = max(1, len(self.moments) // 4)
        early, late = self.moments[quarter : 2 * quarter], self.moments[-quarter:]

        def median(moments: list[Moment], role: str) -> float:
            values = [moment.rss_mb[role] for moment in moments if role in moment.rss_mb]
            return statistics.median(values) if values else 0.0

        return {role: (median(early, role), median(late, role)) for role in self.peak_mb}

    def spreads(self, totals: list[int]) -> list[int]:
        """Committed shards of the foremost job less those of the hindmost, while no job has all."""
        looks = [
            moment.shards
            for moment in self.moments
            if max(moment.shards, default=0) > 0
            and all(done < total for done, total in zip(moment.shards, totals, strict=True))
        ]
        return [max(shards) - min(shards) for shards in looks]

    def shard_rate(self) -> tuple[float, float]:
        """Shards a second, and over how many seconds, from the first commit to the last."""
        sums = [(moment.at, sum(moment.shards)) for moment in self.moments]
        moved = [sums[i] for i in range(1, len(sums)) if sums[i][1] > sums[i - 1][1]]
        if len(moved) < 2:
            return 0.0, 0.0
        seconds = moved[-1][0] - moved[0][0]
        return (moved[-1][1] - moved[0][1]) / seconds, seconds

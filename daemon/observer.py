"""How everything stands, from what the workers say of themselves in Redis.

One thread looks every two seconds; `systemctl status`, health and metrics show what it saw last.
`vnp top` looks by itself. Nothing here decides anything.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from broker.state import SharedState
from daemon.show import plural
from ops.errors import UnavailableError

LOOK_EVERY_S = 2.0
#: What has not been said again for this long does not hold any more.
STALE_S = 15.0
Said = dict[str, Any]


@dataclass(frozen=True)
class Snapshot:
    """planner: its overview; empty when it is silent. gpus: by consumer. error: of Redis."""

    planner: Said = field(default_factory=dict)
    gpus: dict[str, Said] = field(default_factory=dict)
    error: str = ""

    @property
    def jobs(self) -> list[Said]:
        jobs: list[Said] = self.planner.get("jobs", [])
        return jobs

    @property
    def frames_per_s(self) -> float:
        """Of all gpu workers that have said something in the last seconds."""
        return sum(
            float(gpu.get("frames_per_s", 0.0))
            for gpu in self.gpus.values()
            if gpu["seen_s"] < STALE_S
        )

    @property
    def in_words(self) -> str:
        """One line for people."""
        if self.error:
            return f"Redis does not answer: {self.error}"
        waiting = sum(job["state"] == "waiting" for job in self.jobs)
        words = [plural(self.planner.get("jobs_total", 0), "unfinished job")]
        if self.jobs:
            done = sum(job["shards_done"] for job in self.jobs)
            words.append(f"shard {done} of {sum(job['shards_total'] for job in self.jobs)}")
            words.append(f"{self.frames_per_s:,.0f} frames/s")
        if waiting:
            words.append(f"{waiting} waiting for their disk")
        return ", ".join(words)


def look(state: SharedState) -> Snapshot:
    """One look."""
    try:
        said = state.workers()
    except UnavailableError as error:
        return Snapshot(error=str(error))
    planner = [words for words in said.values() if words.get("role") == "planner"]
    fresh = [words for words in planner if words["seen_s"] < STALE_S]
    gpus = {name: words for name, words in said.items() if words.get("role") == "gpu"}
    return Snapshot(fresh[0] if fresh else {}, gpus)


class Observer:
    """Keeps the last look; `latest` never blocks."""

    def __init__(self, redis_url: str, namespace: str) -> None:
        self.latest = Snapshot()
        self._state = SharedState(redis_url, namespace, "observer")
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="observer", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._closed.wait(LOOK_EVERY_S):
            self.latest = look(self._state)

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
        self._state.close()

"""Workers of several nodes in one process, on one Redis and one shared folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ops.jobs import JobStore
from tests.unit.output_fixtures import IDENTITY, PLAN, make_spec
from workers.loop import Worker
from workers.settings import WorkerSettings
from workers.writer import Writer

W = TypeVar("W", bound=Worker)


class Nodes:
    """A shared folder, and the workers that were begun on it."""

    def __init__(self, folder: Path, url: str, namespace: str) -> None:
        self.folder, self._url, self._namespace = folder, url, namespace
        self.store = JobStore(folder / "shared")
        self._workers: list[Worker] = []

    def begin(
        self, role: str, make: Callable[[WorkerSettings, str], W], node: str, **settings: Any
    ) -> W:
        """A worker of a node, with a state folder of its own."""
        state = self.folder / f"{node}-{len(self._workers)}"
        state.mkdir()
        common = {"shared_dir": str(self.folder / "shared"), "identity": IDENTITY.to_dict()}
        worker = make(
            WorkerSettings(
                state_dir=str(state),
                redis_url=self._url,
                namespace=self._namespace,
                node=node,
                **{**common, **settings},
            ),
            f"{node}:{role}:0",
        )
        self._workers.append(worker)
        return worker

    def close(self) -> None:
        for worker in self._workers:
            worker.close()


class Writers(Nodes):
    """Writers of several nodes, and jobs for them."""

    LEASE_S = 3.0

    def writer(self, node: str) -> Writer:
        return self.begin("writer", Writer, node, lease_s=self.LEASE_S)

    def plan(self, job: str) -> None:
        self.store.create(make_spec(self.folder / f"{job}.out", id=job))
        self.store.set_plan(job, PLAN)


def steps(worker: Worker, done: Callable[[], bool], limit: int = 200) -> None:
    """Steps until something is done."""
    for _ in range(limit):
        if done():
            return
        worker.step()
    raise AssertionError(f"not done after {limit} steps")

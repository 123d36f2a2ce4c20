"""One job as it stands now. Works on the state folder's files; Redis is asked for progress only,
and a Redis that does not answer costs the progress and nothing else."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from daemon.config import Config
from ops.errors import UnavailableError, VnpError
from ops.jobs import FINISHED, RUNNING, JobStore, Outcome, Plan
from ops.place import Tail, is_remote, place_of

#: State of a job whose files do not tell it.
UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class JobView:
    """A job as it stands now. eta_s: None until there is a rate. is_damaged: some of its files
    cannot be read, and message says which and why."""

    id: str
    state: str
    out: str
    pipeline: str
    created: str
    trained: bool
    message: str = ""
    exit_code: int | None = None
    records: int = 0
    letters: int = 0
    chunks: int = 0
    shards: int = 0
    shards_done: int = 0
    rows_packed: int = 0
    rows_computed: int = 0
    share: float = 0.0
    eta_s: float | None = None
    is_damaged: bool = False


def view_of(config: Config, job: str, redis_url: str | None) -> JobView:
    """A job as it stands now, also one that cannot be read: it must not hide the others."""
    try:
        return JobWatch(config, job, redis_url).view()
    except VnpError as error:
        return JobView(
            id=job,
            state=UNKNOWN,
            out="",
            pipeline="",
            created="",
            trained=True,
            message=str(error),
            is_damaged=True,
        )


class JobWatch:
    """Follows one job; `view()` is cheap enough for ten calls a second."""

    def __init__(self, config: Config, job: str, redis_url: str | None) -> None:
        self.store = JobStore(config.jobs_dir)
        self.job = job
        self.spec = self.store.spec(job)
        self._tail: Tail | None = None
        self._shards: set[int] = set()
        self._chunks_done = 0
        self._namespace, self._redis_url = config.namespace, redis_url
        self._broker: Any = None
        self._first: tuple[float, float] | None = None

    def view(self) -> JobView:
        outcome = self.store.outcome(self.job)
        plan = self.store.plan_or_none(self.job)
        state = self.store.state(self.job)
        base = JobView(
            id=self.job,
            state=state,
            out=self.spec.out,
            pipeline=self.spec.pipeline,
            created=self.spec.created,
            trained=self.spec.identity.trained,
            message=outcome.message if outcome else "",
            exit_code=outcome.exit_code if outcome else None,
        )
        if plan is None or self.store.opened(self.job) is None:
            return base
        if outcome is None and (reason := self.store.waits_for(self.job)):
            base = replace(base, message=f"waits: {reason}")
        try:
            self._follow_commits(plan, outcome)
        except VnpError as error:  # a damaged manifest
            return replace(base, message=str(error), is_damaged=True)
        counters = self._counters() if state == RUNNING else {}
        share = self._share(plan.chunks or plan.records, counters)
        return JobView(
            **{
                **vars(base),
                "records": plan.records,
                "letters": plan.letters,
                "chunks": plan.chunks,
                "shards": plan.shards,
                "shards_done": len(self._shards),
                "rows_packed": counters.get("rows_packed", 0),
                "rows_computed": counters.get("rows_computed", 0),
                "share": 1.0 if outcome and outcome.exit_code == 0 else share,
                "eta_s": self._eta(share),
            }
        )

    def _follow_commits(self, plan: Plan, outcome: Outcome | None) -> None:
        """By the manifest. One in an object store costs a request a line: not of a job that has
        ended."""
        if outcome is not None and is_remote(self.spec.out):
            if outcome.state == FINISHED:
                self._shards = set(range(plan.shards))
            return
        if self._tail is None:
            self._tail = place_of(self.spec.out).tail()
        for line in self._tail.poll():
            self._shards.add(line.shard)
            self._chunks_done += line.chunks if plan.chunks else line.records

    def _counters(self) -> dict[str, int]:
        if self._redis_url is None:
            return {}
        from broker.queue import Broker

        try:
            if self._broker is None:
                self._broker = Broker(self._redis_url, self._namespace)
            counters: dict[str, int] = self._broker.progress(self.job)
        except UnavailableError:
            return {}
        return counters

    def _share(self, total: int, counters: dict[str, int]) -> float:
        """Done share of the chunks: committed ones, and what is computed of the packed ones."""
        packed, rows = counters.get("chunks_packed", 0), counters.get("rows_packed", 0)
        computed = packed * counters.get("rows_computed", 0) / rows if rows else 0.0
        return min(max(computed, self._chunks_done) / total, 1.0) if total else 0.0

    def _eta(self, share: float) -> float | None:
        """Seconds left at the mean rate since this watch first saw progress."""
        now = time.monotonic()
        if self._first is None:
            self._first = (now, share) if share > 0 else None
            return None
        since, first_share = self._first
        rate = (share - first_share) / (now - since) if now > since else 0.0
        return (1.0 - share) / rate if rate > 0 else None

"""What the planner knows of one job: its validation, its stream of shards, and which are open."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ops.cut import CutParams, PlanScan, cut_in_steps, plan_input
from ops.errors import DataError
from ops.jobs import JobStore, Plan
from ops.nouns import ShardTask
from ops.place import Tail, place_of
from ops.source import check_readable
from workers.settings import WorkerSettings

#: An input of so many bytes is read in milliseconds, unless it unpacks to much more.
SMALL_BYTES = 1 << 20
#: One step of reading (an input, a manifest) takes at most about this long: no job waits for a
#: large neighbour, and whoever watches the planner sees it move.
SLICE_S = 0.2
#: About what `worst_case_bytes` says of a full shard of a virus job, per base.
CHARGE_PER_BASE = 16
#: Of one shard's place in the window; the number of open shards stays bounded.
LEAST_PLACE = 1 / 8
#: What to do about a shard that fits in no message.
SMALLER = "restart vnpd with smaller shard_bases and shard_records, and submit it with --force"


class JobPlan:
    """One unfinished job. `open` maps issued, uncommitted shards to their charge in bytes."""

    def __init__(self, job: str, store: JobStore, settings: WorkerSettings) -> None:
        self.id = job
        self.spec = store.spec(job)
        self.store = store
        self.settings = settings
        self.open: dict[int, int] = {}
        self.committed: set[int] = set()
        self.waits = False  # for its disk or its store
        self.opened = False  # its output folder, by a writer; the planner tells
        self.served = 0  # the planner's count when a shard was last issued
        self._scan: PlanScan | None = None
        self._tail: Tail | None = None
        self._tasks: Iterator[ShardTask | None] | None = None
        self._held: ShardTask | None = None
        self._first: tuple[float, int] | None = None  # when shards were first seen, how many
        self._plan: Plan | None = store.plan_or_none(job)

    @property
    def needs_plan(self) -> bool:
        return self._plan is None

    @property
    def is_being_read(self) -> bool:
        """True in the midst of the first reading, with a file open."""
        return self._scan is not None

    @property
    def is_small(self) -> bool:
        """True when one slice should be enough for the first reading, and none was spent on it."""
        size = sum(source.size for source in self.spec.inputs)
        return size <= SMALL_BYTES and not self.is_being_read

    @property
    def num_shards(self) -> int:
        return self._plan.shards if self._plan is not None else 0

    def describe_plan(self) -> str:
        """What the first reading found, for the log."""
        plan = self._plan
        assert plan is not None
        return f"{plan.records} records, {plan.letters} letters, cut into {plan.shards} shards"

    @property
    def can_issue(self) -> bool:
        """True once the writer holds the output folder and some shard is neither open nor done."""
        if self._plan is None or not self.knows_since(0.0):
            return False
        return len(self.committed) + len(self.open) < self._plan.shards

    def knows_since(self, moment: float) -> bool:
        """True when all is known that was committed before a moment (monotonic)."""
        return self._tail is not None and self._tail.known_until > moment

    def _find_manifest(self) -> Tail | None:
        if self._tail is None and self._plan and self.opened:
            self._tail = place_of(self.spec.out).tail(SLICE_S)
        return self._tail

    def validate(self, slice_s: float) -> None:
        """Reads on in the input for at most slice_s seconds; writes the plan when all is read.

        Raises DataError or NoInputError for an input that cannot be used.
        """
        if self._scan is None:
            self._check_inputs()
            self._scan = plan_input(self._paths, self._cut_params)
        until = time.monotonic() + slice_s
        for _ in self._scan:
            if time.monotonic() > until:
                return
        self._plan = self._scan.result
        self._scan = None
        self.store.set_plan(self.id, self._plan)

    def overview(self) -> dict[str, Any]:
        """How it stands, in JSON values. eta_s: at the mean rate since this planner took it up."""
        done, total = len(self.committed), self.num_shards
        if self._first is None and done:
            self._first = (time.monotonic(), done)
        since, first = self._first or (0.0, done)
        rate = (done - first) / (time.monotonic() - since) if done > first else 0.0
        state = "planning" if self._plan is None else "waiting" if self.waits else "running"
        return {
            "id": self.id,
            "state": state,
            "pipeline": self.spec.pipeline,
            "priority": self.spec.priority,
            "out": self.spec.out,
            "shards_done": done,
            "shards_open": len(self.open),
            "shards_total": total,
            "eta_s": round((total - done) / rate) if rate else None,
        }

    def look_whether_it_waits(self) -> None:
        """As its writer tells; which takes minutes when a store keeps requests without a reply."""
        is_away = self._tail is not None and self._tail.is_away
        self.waits = is_away or bool(self.store.waits_for(self.id))

    def observe_commits(self, *, at_once: bool = False) -> list[int]:
        """Open shards that the manifest names by now; they stay open until `close` has them, so
        that whoever is interrupted in between finds them again. at_once: see `Tail.poll`. Raises
        CorruptionError, ConfigError."""
        tail = self._find_manifest()
        if tail is None:
            return []
        tail.poll(at_once=at_once)
        self.committed = tail.committed
        return [shard for shard in self.open if shard in self.committed]

    def close(self, shards: Iterable[int]) -> None:
        """These shards are open no more."""
        for shard in shards:
            del self.open[shard]

    def next_task(self, slice_s: float) -> ShardTask | None:
        """The next shard in input order that is neither committed nor open; None at the end of the
        input, and when nothing was found for slice_s seconds. After the end it begins anew: a
        manifest may name less than it did, when somebody has put an older one in its place."""
        if self._held is not None:
            held, self._held = self._held, None
            return held
        if self._tasks is None:
            self._tasks = self._cut()
        until = time.monotonic() + slice_s
        for task in self._tasks:
            if task is not None or time.monotonic() > until:
                return task
        self._tasks = None
        return None

    def _cut(self) -> Iterator[ShardTask | None]:
        self._check_inputs()
        assert self._plan is not None
        return cut_in_steps(
            self._paths,
            self._cut_params,
            self._plan.huge_lengths,
            skip=self._is_taken,
            plan=self._plan,
        )

    def hold(self, task: ShardTask) -> None:
        """Takes a task back that could not be issued; it is the next one again."""
        self._held = task

    def _is_taken(self, shard: int) -> bool:
        return shard in self.committed or shard in self.open

    def reset(self, open_shards: dict[int, int]) -> None:
        """Starts over with what Redis still holds; everything else that is missing is due again."""
        self.observe_commits()
        self.open = {s: c for s, c in open_shards.items() if s not in self.committed}
        self._tasks = self._held = None

    def _check_inputs(self) -> None:
        """Between two readings an input may not change: results would mix two files."""
        for source in self.spec.inputs:
            check_readable(Path(source.path), self.settings.input_roots)
            stat = Path(source.path).stat()
            if (stat.st_size, stat.st_mtime_ns) != (source.size, source.mtime_ns):
                raise DataError(
                    f"{source.path} has changed since it was submitted; submit it again"
                )

    @property
    def _paths(self) -> list[Path]:
        return [Path(source.path) for source in self.spec.inputs]

    @property
    def _cut_params(self) -> CutParams:
        return CutParams.of(
            self.spec.identity,
            job=self.id,
            keep_embeddings=self.spec.keeps_embeddings,
            strict=self.spec.strict,
            shard_bases=self.settings.shard_bases,
            shard_records=self.settings.shard_records,
            input_roots=self.settings.input_roots,
        )


def worst_case_bytes(task: ShardTask, settings: WorkerSettings) -> int:
    """Most bytes that a shard can take in Redis at once: its task, or its batches, or its results.

    A virus chunk of C bases has at most 6 frames of C/3 residues and C DNA tokens (2 bytes each).
    """
    bases, names = len(task.sequence.data), len(task.name.data)
    rows = int((task.stop_chunk - task.first_chunk).sum())
    if task.pipeline == "virus":
        tokens = rows * 6 * (task.chunk_length // 3 + 2 * task.chunk_length + 8)
        rows *= 6
    else:
        tokens = 2 * bases + 8 * rows
    row_bytes = 64 + (4 * settings.embedding_width if task.keep_embeddings else 0)
    return names + bases + tokens + rows * row_bytes


def places(charge: int, shard_bases: int) -> float:
    """What an open shard takes of the window, given its `worst_case_bytes`: 1 when it is full, down
    to LEAST_PLACE, so that many small jobs keep everybody busy."""
    return min(1.0, max(LEAST_PLACE, charge / (CHARGE_PER_BASE * shard_bases)))

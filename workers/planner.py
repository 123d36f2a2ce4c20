"""The planner: job files in, shard tasks out, never more than a window of them.

It reads every input once to validate, count and digest it, then cuts it into shards and keeps a
bounded number of them open. It compares what it has issued with what the manifests name, and issues
again what is missing: at once when Redis has lost its memory, else after a deadline that grows.
There is no other recovery: a resumed job is one whose manifest already names some shards.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from broker.codec import MessageError, encode
from broker.queue import Broker
from ops.durable import FileLock
from ops.errors import FullError, IdentityError, UnavailableError, VnpError
from ops.identity import Identity
from ops.jobs import JobStore, Look, Outcome
from ops.nouns import ShardTask
from workers.job_plan import SLICE_S, SMALLER, JobPlan, places, worst_case_bytes
from workers.logs import get_log
from workers.loop import main
from workers.settings import WorkerSettings
from workers.share import role_of

PAUSE_S = 0.05
#: Between two looks at the job files, each a request to a file server perhaps, while there are no
#: jobs. A new one is seen this and a pause later.
IDLE_LOOK_S = 0.1
#: Without any progress of the whole service for this long, open shards are issued again; doubles.
FIRST_DEADLINE_S = 600.0
#: Shards under way, unless the settings say: at least, and for each gpu worker.
LEAST_WINDOW, WINDOW_OF_GPU = 8, 4
#: Large inputs whose first reading may be under way at once, each with its open file.
MAX_READINGS = 8
#: Between two words on how everything stands, and the number of jobs that these name.
OVERVIEW_EVERY_S, MAX_OVERVIEW = 1.0, 30
#: A gpu worker says something every lease at least; one that has not for so many is gone.
GONE_LEASES = 3
#: Between two questions whether anything is left in Redis.
ASK_EVERY_S = 1.0


class Planner:
    """Holds the window of open shards over all jobs; the only process that issues work."""

    def __init__(self, settings: WorkerSettings, consumer: str) -> None:
        self.log = get_log("planner")
        self.settings = settings
        self.lock = FileLock(Path(settings.state_dir) / "planner.lock")
        self.store = JobStore(Path(settings.shared_dir))
        self.broker = Broker(settings.redis_url, settings.namespace, consumer, settings.lease_s)
        self.role = role_of(self.broker, "planner", settings)
        self.identity = Identity.from_dict(settings.identity)
        self.jobs: dict[str, JobPlan] = {}
        self.incarnation: str | None = None
        self.window = LEAST_WINDOW
        self.tell_full_at = 0.0
        self.turn = 0  # whose input is read on
        self.issued = 0
        self.look: Look | None = None  # the last one at the job files; None: they are away
        self.is_news = False  # when nothing was made of it yet
        self.next_look = 0.0
        self.ask_at = 0.0
        self.last_progress = time.monotonic()
        self.deadline_s = FIRST_DEADLINE_S
        self.next_heartbeat = time.monotonic() + settings.heartbeat_s
        self.next_overview = 0.0

    def step(self) -> None:
        """One round: jobs come and go, commits are observed, the window is filled again."""
        self._look_at_job_files()
        if not self.role.held():
            self._stand_by()
            return
        self._follow_job_files()
        self._check_redis()
        looked_at = time.monotonic()
        nothing_left = self._nothing_is_left()
        self._observe_commits(at_once=nothing_left)
        if nothing_left:
            self._issue_lost_again(looked_at)
        self._issue_overdue_again()
        self._tell_progress()
        self._tell_overview()
        validated, issued = self._validate_a_slice(), self._fill_window()
        if not validated and not issued:
            time.sleep(PAUSE_S)

    def _stand_by(self) -> None:
        """Somebody else plans, or Redis or the job files are away: what we know of the jobs is not
        kept."""
        if self.jobs:
            self.log.warning(
                "planner.stands_by", message="another node plans from here on, or none can"
            )
        self.jobs.clear()
        self.incarnation = None
        time.sleep(PAUSE_S)

    def _look_at_job_files(self) -> None:
        if self.jobs or time.monotonic() >= self.next_look:
            self.look, self.is_news = self.store.look(), True
            self.next_look = time.monotonic() + IDLE_LOOK_S

    def _follow_job_files(self) -> None:
        if self.look is None or not self.is_news:
            return
        self.is_news = False
        unfinished = set(self.look.unfinished)
        for job in [job for job in self.jobs if job not in unfinished]:
            self._close_books(job, self.jobs[job].open)
            del self.jobs[job]
            self.store.clear_spool()
        for job in self.look.unfinished:
            if job in self.look.cancelled:
                self._cancel(job)
            elif job not in self.jobs:
                self._adopt(job)
        for job in self.look.opened & self.jobs.keys():
            self.jobs[job].opened = True

    def _adopt(self, job: str) -> None:
        """Takes a job up, unless it was submitted for other models than this service has."""
        try:
            asked = self.store.spec(job).identity
        except VnpError as error:  # a damaged job file must not take the others along
            self._fail(job, error)
            return
        if asked.served_by(self.identity):
            self.jobs[job] = JobPlan(job, self.store, self.settings)
            return
        message = (
            f"the job asks for {asked.in_words} (algorithm {asked.algorithm}), but this service "
            f"has {self.identity.in_words} (algorithm {self.identity.algorithm}); start vnpd with "
            "what it asks for, or submit it anew with --force; what is committed stays"
        )
        self._end(job, Outcome("failed", IdentityError.exit_code, message))

    def _cancel(self, job: str) -> None:
        self.broker.cancel(job)
        self._end(job, Outcome("cancelled", 130, "cancelled on request"))

    def _fail(self, job: str, error: VnpError) -> None:
        self._end(job, Outcome("failed", error.exit_code, str(error)))

    def _end(self, job: str, outcome: Outcome) -> None:
        if not self.store.set_outcome(job, outcome):
            return  # somebody else, or we, ended it before
        self.log.info(f"job.{outcome.state}", message=outcome.message, **{"job.id": job})

    def _check_redis(self) -> None:
        """A Redis without our last mark has lost its memory, or gone back to an older one: what it
        still holds as open goes on, every other missing shard is due again."""
        known = self.broker.incarnation()
        if known is not None and known == self.incarnation:
            return
        self.broker.ensure_groups()
        self.incarnation = known or self.broker.establish_incarnation()
        open_shards = self.broker.open_shards()
        for job in self.jobs.values():
            self._reset(
                job,
                {shard: charge for (id_, shard), charge in open_shards.items() if id_ == job.id},
            )
        self._forget({job for job, _ in open_shards} - self.jobs.keys(), open_shards)
        self.log.info("redis.joined", message="window rebuilt", shards_open=len(open_shards))

    def _forget(self, ended: set[str], open_shards: Iterable[tuple[str, int]]) -> None:
        """Closes the books of jobs that have ended while nobody planned."""
        for job in ended:
            self._close_books(job, [shard for id_, shard in open_shards if id_ == job])

    def _close_books(self, job: str, open_shards: Iterable[int]) -> None:
        """Its open shards come last: they are what a planner after us knows it by."""
        self.broker.drop_job(job)
        self.broker.close_shards([(job, shard) for shard in open_shards])

    def _reset(self, job: JobPlan, open_shards: dict[int, int]) -> None:
        try:
            job.reset(open_shards)
        except VnpError as error:  # a damaged manifest must not take the others along
            self._fail(job.id, error)

    def _observe_commits(self, *, at_once: bool) -> None:
        for job in self.jobs.values():
            try:
                committed = job.observe_commits(at_once=at_once)
            except VnpError as error:  # a damaged manifest
                self._fail(job.id, error)
                continue
            if committed:
                self.broker.close_shards([(job.id, shard) for shard in committed])
                job.close(committed)
                self.last_progress = time.monotonic()
                self.deadline_s = FIRST_DEADLINE_S

    def _nothing_is_left(self) -> bool:
        """True when shards are open and no stream holds anything of them; asked once a second."""
        if time.monotonic() < self.ask_at:
            return False
        self.ask_at = time.monotonic() + ASK_EVERY_S
        for job in self.jobs.values():
            if job.open or job.waits:
                job.look_whether_it_waits()
        anything_open = any(job.open for job in self.jobs.values())
        return anything_open and self.broker.outstanding() == 0

    def _issue_lost_again(self, looked_at: float) -> None:
        """A shard's entries are acknowledged after its commit only. So what was open when nothing
        was left, and is not committed now, was lost (evicted or deleted by somebody). Of a manifest
        that cannot be read now (a store that is away) nobody can tell."""
        for job in self.jobs.values():
            if job.open and job.knows_since(looked_at):
                self._tell_again("shard.lost", job)
                self._reset(job, {})

    def _tell_again(self, event: str, job: JobPlan) -> None:
        message = f"{len(job.open)} open shards are issued again"
        self.log.warning(event, message=message, **{"job.id": job.id})

    def _issue_overdue_again(self) -> None:
        stale = time.monotonic() - max(self.last_progress, self.broker.last_activity())
        if stale < self.deadline_s or not any(job.open for job in self.jobs.values()):
            return
        self.last_progress = time.monotonic()
        self.deadline_s *= 2
        for job in self.jobs.values():
            self._tell_again("shard.overdue", job)
            self._reset(job, {})

    def _validate_a_slice(self) -> bool:
        """Goes on with first readings: of small inputs, then of a large one in its turn.

        True when there was one.
        So that a job of ten records does not wait until a million are read, or ten times a million.
        """
        waiting = [job for job in self.jobs.values() if job.needs_plan]
        large = [job for job in waiting if not job.is_small]
        large.sort(key=lambda job: (not job.is_being_read, -job.spec.priority, job.id))
        del large[MAX_READINGS:]
        self._read_small(waiting)
        if large:
            self.turn += 1
            self._read_on(large[self.turn % len(large)], SLICE_S)
        return bool(waiting)

    def _read_small(self, waiting: list[JobPlan]) -> None:
        """As many as a slice is enough for. One that turns out to be large goes on as such."""
        if sum(job.is_being_read for job in waiting) >= 2 * MAX_READINGS:
            return
        until = time.monotonic() + SLICE_S
        small = [job for job in waiting if job.is_small]
        for job in sorted(small, key=lambda job: (-job.spec.priority, job.id)):
            if time.monotonic() > until:
                return
            self._read_on(job, SLICE_S)

    def _read_on(self, job: JobPlan, slice_s: float) -> None:
        try:
            job.validate(slice_s)
        except VnpError as error:
            self._fail(job.id, error)
            return
        if not job.needs_plan:
            self.log.info("job.planned", message=job.describe_plan(), **{"job.id": job.id})

    def _tell_progress(self) -> None:
        """One line per running job every heartbeat_s, so that a log shows life."""
        if time.monotonic() < self.next_heartbeat:
            return
        self.next_heartbeat = time.monotonic() + self.settings.heartbeat_s
        for job in self.jobs.values():
            if not job.needs_plan:
                self.log.info(
                    "job.progress",
                    message=f"{len(job.committed)} of {job.num_shards} shards are committed",
                    shards_done=len(job.committed),
                    shards_open=len(job.open),
                    shards_total=job.num_shards,
                    **{"job.id": job.id},
                )

    def _tell_overview(self) -> None:
        """Says in Redis how the jobs and the queue stand, for `vnp top` and the metrics."""
        if time.monotonic() < self.next_overview:
            return
        self.next_overview = time.monotonic() + OVERVIEW_EVERY_S
        stats = self.broker.stats()
        gpus = self.broker.num_living("gpu", GONE_LEASES * self.settings.lease_s)
        self.window = max(LEAST_WINDOW, WINDOW_OF_GPU * gpus)
        jobs = sorted(self.jobs.values(), key=lambda job: (-job.spec.priority, job.id))
        self.broker.register(
            {
                "role": "planner",
                "jobs": [job.overview() for job in jobs[:MAX_OVERVIEW]],
                "jobs_total": len(jobs),
                "shards_open": sum(len(job.open) for job in jobs),
                "window_shards": self.settings.window_shards or self.window,
                "streams": {name: vars(stream) for name, stream in stats.streams.items()},
                "redis_memory_bytes": stats.memory_bytes,
                "redis_max_memory_bytes": stats.max_memory_bytes,
                "redis_version": stats.server_version,
                "progress_age_s": round(time.monotonic() - self.last_progress, 1),
            }
        )

    def _fill_window(self) -> bool:
        """Issues shards until the window is full or dry, or a slice is over; False: none."""
        until = time.monotonic() + SLICE_S
        issued = False
        while time.monotonic() < until and self._issue_next():
            issued = True
        return issued

    def _issue_next(self) -> bool:
        """Issues one shard of the job whose turn it is; False when the window is full or dry."""
        if not self._window_has_room():
            return False
        jobs = self._jobs_in_turn()
        for job in jobs:
            try:
                task = job.next_task(SLICE_S / len(jobs))
            except VnpError as error:
                self._fail(job.id, error)
                return False
            if task is not None:
                return self._issue(job, task)
        return False

    def _issue(self, job: JobPlan, task: ShardTask) -> bool:
        """Issues a task; False when Redis has no room for it now, and it waits for its turn; and
        when no message holds it, and its job has failed."""
        charge = worst_case_bytes(task, self.settings)
        try:
            message = encode(task)
        except MessageError as error:  # it would be the same again, and end us each time
            self._fail(
                job.id, MessageError(f"shard {task.shard} cannot be sent: {error}; {SMALLER}")
            )
            return False
        try:
            self.incarnation = self.broker.issue(message, job.id, task.shard, charge)
        except FullError as error:
            job.hold(task)
            if time.monotonic() > self.tell_full_at:
                self.tell_full_at = time.monotonic() + self.settings.heartbeat_s
                self.log.warning("redis.full", message=str(error))
            return False
        except UnavailableError:
            self._reset(job, job.open)  # the task is gone from the stream of tasks: cut it again
            raise
        job.open[task.shard] = charge
        self.issued += 1
        job.served = self.issued
        return True

    def _window_has_room(self) -> bool:
        full = self.settings.shard_bases
        bytes_, taken = 0, 0.0
        for job in self.jobs.values():
            bytes_ += sum(job.open.values())
            if not job.waits:  # for its disk or store, which must not hold up the others
                taken += sum(places(charge, full) for charge in job.open.values())
        within = bytes_ < self.settings.window_bytes
        return taken == 0 or (within and taken < (self.settings.window_shards or self.window))

    def _jobs_in_turn(self) -> list[JobPlan]:
        """Higher priority first; among equals fewest open shards, then whoever waits longest.

        By age instead, jobs beyond the window's places would wait until older ones have ended.
        """
        ready = [job for job in self.jobs.values() if job.can_issue and not job.waits]
        return sorted(
            ready, key=lambda job: (-job.spec.priority, len(job.open), job.served, job.id)
        )

    def close(self) -> None:
        self.role.give_up()
        self.broker.close()
        self.lock.release()


if __name__ == "__main__":
    main("planner", Planner)

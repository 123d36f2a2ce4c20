"""The writer: accounts and results in, committed shards and finished tables out.

Only this process writes into output folders. An entry of the results stream is acknowledged when
the shard it belongs to stands in the manifest, never before: what the writer holds in memory is
always still in Redis, and what is not in Redis any more is issued again by the planner.

The main thread takes and gathers, and waits for nothing. Commits, and what may take minutes,
opening a folder (its shards are read and checked) and writing its tables, run in other threads
(`workers.pools`). What the file system does not take now is tried again later: a job that has begun
waits for its disk rather than fail.

Of the writers of several nodes one works and the others stand by (`broker.role`). One that loses
the role gives all folders back; should it wake too late for that, its folders' epochs fence it off.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from broker.keys import RESULTS
from broker.lease import LeaseKeeper
from broker.queue import Broker, Entry
from ops.durable import FileLock, describe_os_error
from ops.errors import FencedError, InternalError, UnavailableError, VnpError
from ops.fasta import Piece
from ops.jobs import FAILED, JobStore, Outcome
from ops.manifest import ShardLine
from ops.nouns import Account, Batch, BatchResult, JobFailure, ShardTask
from ops.output import Output
from ops.tables import Counts
from workers.leaving import Leaving
from workers.logs import get_log
from workers.loop import main, read_entry
from workers.open_job import OpenJob
from workers.outcomes import RETRY_S, Outcomes, outcome_of
from workers.pools import Pools
from workers.settings import WorkerSettings
from workers.share import role_of

#: A result may have 24 MB; what is taken at once is held decoded and encoded for a moment.
TAKE_COUNT = 8
BLOCK_MS = 200
#: While work of other threads is under way, whose end has to be noticed.
BUSY_BLOCK_MS = 10
STAND_BY_PAUSE_S = 0.1
#: Between two looks at the job files.
ADOPT_EVERY_S = 0.1
#: Output folders held open at once, each with two files and the shards being gathered.
MAX_OPEN_JOBS = 64
#: Jobs whose tables are written ahead, with up to 70 files and 17 MB each (--compat sorts).
AHEAD_JOBS = 8
#: What a stop waits for commits that are under way or due; the rest is computed again.
CLOSE_LIMIT_S = 6.0


class Writer:
    """Gathers rows by shard, commits whole shards, and finishes jobs whose shards are all there."""

    def __init__(self, settings: WorkerSettings, consumer: str) -> None:
        self.log = get_log("writer")
        self.settings = settings
        self.lock = FileLock(Path(settings.state_dir) / "writer.lock")
        self.store = JobStore(Path(settings.shared_dir))
        if settings.scratch is not None:  # what one that was killed has left
            shutil.rmtree(settings.scratch, ignore_errors=True)
        self.jobs: dict[str, OpenJob] = {}
        self.priorities: dict[str, int] = {}
        self.next_adoption = 0.0
        self.pools = Pools()
        self.leaving = Leaving()
        self.outcomes = Outcomes(self.store)
        self.broker = Broker(settings.redis_url, settings.namespace, consumer, settings.lease_s)
        self.lease = LeaseKeeper(self.broker, RESULTS, settings.lease_s)
        self.role = role_of(self.broker, "writer", settings)

    def step(self) -> None:
        """Takes planned jobs up, gathers what has arrived, sees to what other threads have done."""
        if not self.role.held():
            self._stand_by()
            return
        self.leaving.see_off()
        self.outcomes.say_again()
        self._follow_job_files()
        block_ms = BUSY_BLOCK_MS if any(held.futures for held in self.jobs.values()) else BLOCK_MS
        for entry in self.broker.take(RESULTS, TAKE_COUNT, block_ms):
            self._gather(entry)
        for job in list(self.jobs):
            self._advance(job)

    def _stand_by(self) -> None:
        """Somebody else writes, or Redis or the job files are away: the folders are for whoever has
        the role."""
        if self.jobs:
            self.log.warning(
                "writer.stands_by", message="another node writes from here on, or none can"
            )
            self._give_back([self._close(job) for job in list(self.jobs)])
        self.outcomes.unsaid.clear()  # who has the role finds them out
        self.leaving.see_off()
        time.sleep(STAND_BY_PAUSE_S)

    def _give_back(self, lost: list[OpenJob]) -> None:
        """What we hold of jobs that are not ours to end is for whoever has them now."""
        shards = [shard for held in lost for shard in held.shards.values()]
        entries = [entry for shard in shards for entry in shard.entries]
        self.lease.release(*entries)
        with suppress(UnavailableError):  # then they come free when their lease is over
            self.broker.give_back(RESULTS, entries)

    # -- jobs ------------------------------------------------------------------------------------

    def _follow_job_files(self) -> None:
        """Takes up planned jobs, those that had a writer before first; lets go of ended ones."""
        if time.monotonic() < self.next_adoption:
            return
        self.next_adoption = time.monotonic() + ADOPT_EVERY_S
        running = [job for job in self.store.running() if job not in self.outcomes.unsaid]
        for job in [job for job in self.jobs if job not in running]:
            self._let_go(job)
        for job in self.priorities.keys() - set(running):
            del self.priorities[job]
        room = MAX_OPEN_JOBS - sum(not held.waits_for for held in self.jobs.values())
        if room > 0:
            new = [job for job in running if job not in self.jobs]
            new.sort(key=lambda job: (self.store.opened(job) is None, -self._priority(job), job))
            for job in new[:room]:
                self._adopt(job)

    def _priority(self, job: str) -> int:
        """Of a job that waits to be opened; read once, since thousands may wait."""
        if job not in self.priorities:
            try:
                self.priorities[job] = self.store.spec(job).priority
            except VnpError:  # a damaged job file, which its adoption tells of
                self.priorities[job] = 0
        return self.priorities[job]

    def _adopt(self, job: str) -> None:
        try:
            self.jobs[job] = OpenJob(self.store.spec(job))
        except VnpError as error:  # a damaged job file
            self._end(job, Outcome(FAILED, error.exit_code, str(error)))

    def _let_go(self, job: str) -> None:
        """Gives the folder back. What Redis still holds of the job is nobody's any more."""
        held = self._close(job)
        for shard in held.shards.values():
            self._acknowledge(shard.entries)

    def _close(self, job: str) -> OpenJob:
        """Gives the folder back as soon as other threads' work there has ended."""
        held = self.jobs.pop(job)
        self.leaving.add(held)
        return held

    def _fail(self, job: str, error: VnpError) -> None:
        self._end(job, Outcome(FAILED, error.exit_code, str(error)))

    def _end(self, job: str, outcome: Outcome) -> None:
        self.outcomes.say(job, outcome)
        if job in self.jobs:
            self._let_go(job)

    def _wait_or_fail(self, job: str, error: Exception) -> None:
        """A job that has begun waits for what may pass; any other error ends it."""
        held = self.jobs[job]
        if isinstance(error, OSError):
            error = describe_os_error(error, held.spec.out)
        if not isinstance(error, VnpError):
            message = f"{type(error).__name__}: {error}"
            self.log.error("job.error", message=message, exc_info=error, **{"job.id": job})
            error = InternalError(f"the writer could not go on with this job ({message})")
        if isinstance(error, FencedError):
            self._lose(job, error)
        elif error.may_pass and self.store.opened(job) is not None:
            self._wait(job, held, str(error))
        else:
            self._fail(job, error)

    def _wait(self, job: str, held: OpenJob, reason: str) -> None:
        """A try that took long is not repeated at once: what it needs, others need too."""
        now = time.monotonic()
        held.retry_at = now + max(RETRY_S, now - held.tried_at if held.tried_at else 0.0)
        held.tried_at = 0.0
        if reason != held.waits_for:
            held.waits_for = reason
            self.log.error("job.waiting", message=reason, **{"job.id": job})
            with suppress(OSError):  # the job files may lie on the same disk
                self.store.set_open(job, held.output.epoch if held.output else 0, reason)

    def _go_on(self, job: str, held: OpenJob) -> None:
        """The file system has taken what it was given."""
        if held.waits_for and held.output is not None:
            held.waits_for = ""
            self.log.info("job.goes_on", message="the disk takes it again", **{"job.id": job})
            with suppress(OSError):
                self.store.set_open(job, held.output.epoch)

    def _lose(self, job: str, error: FencedError) -> None:
        """Somebody else has the folder: nothing of ours counts, and nothing is ours to end or to
        acknowledge. What we held goes back to whoever has it; the job is taken up anew later."""
        self.log.error("job.lost", message=str(error), **{"job.id": job})
        lost = self._close(job)
        self._give_back([lost])
        self.jobs[job] = OpenJob(lost.spec, retry_at=time.monotonic() + RETRY_S)

    # -- one round of a job ------------------------------------------------------------------------

    def _advance(self, job: str) -> None:
        """Starts what is due of a job, and takes note of what has ended."""
        held = self.jobs[job]
        try:
            if held.output is None:
                self._advance_opening(job, held)
            else:
                self._advance_tables(job, held, held.output)
                if not held.is_complete:
                    self._advance_commits(job, held)
                elif held.ahead is None:
                    self._advance_finish(job, held, held.output)
        except (UnavailableError, MemoryError):  # Redis, or the machine; all of it comes again
            raise
        except Exception as error:  # of this job alone: the others go on
            self._wait_or_fail(job, error)

    def _advance_opening(self, job: str, held: OpenJob) -> None:
        if held.opening is None:
            if held.retry_at <= time.monotonic() and not self.leaving.holds(held.spec.out):
                pool = self.pools.of_opening(held, self.store.plan(job).shards)
                held.tried_at = time.monotonic()
                held.opening = pool.submit(self._open, job, held)
        elif held.opening.done() and held.retry_at <= time.monotonic():
            if (error := held.opening.exception()) is not None:
                held.opening = None
                raise error
            self._begin(job, held, held.opening.result())
            held.output, held.opening = held.opening.result(), None

    def _open(self, job: str, held: OpenJob) -> Output:
        """In the thread of outputs."""
        again = self.store.opened(job) is not None
        return held.open(self.store.plan(job), again, self.settings.node, self.settings.scratch)

    def _begin(self, job: str, held: OpenJob, output: Output) -> None:
        self.store.set_open(job, output.epoch)
        held.waits_for, held.tried_at = "", 0.0
        for number in [number for number in held.shards if number in output.committed]:
            self._acknowledge(held.shards.pop(number).entries)
        self.log.info(
            "job.resumed" if output.committed else "job.started",
            message=f"{len(output.committed)} of {output.num_shards} shards are committed",
            shards_done=len(output.committed),
            shards_total=output.num_shards,
            **{"job.id": job},
        )

    # -- shards ----------------------------------------------------------------------------------

    def _gather(self, entry: Entry) -> None:
        """Puts a message where it belongs; it stays pending until its shard is committed."""
        message = read_entry(self.broker, RESULTS, entry, Account, BatchResult, JobFailure)
        if message is None:
            return
        assert not isinstance(message, ShardTask | Batch)
        if message.job not in self.jobs and message.job in self.store.running():
            self._adopt(message.job)
        held = self.jobs.get(message.job)
        if held is None or (held.output and message.shard in held.output.committed):
            self.broker.acknowledge(RESULTS, [entry.id])
        elif isinstance(message, JobFailure):
            self._end(message.job, Outcome(FAILED, 70, message.reason))
            self.broker.acknowledge(RESULTS, [entry.id])
        else:
            self._add(held, entry, message)

    def _add(self, held: OpenJob, entry: Entry, message: Account | BatchResult) -> None:
        self.lease.hold(entry.id)
        shard = held.shard(message.shard)
        shard.entries.append(entry.id)
        try:
            shard.gather.add(message)
        except VnpError as error:
            self._fail(message.job, error)

    def _advance_commits(self, job: str, held: OpenJob) -> None:
        assert held.output is not None
        for number, shard in list(held.shards.items()):
            if shard.commit is None:
                if shard.gather.complete and self._may_commit(held):
                    pool = self.pools.of_commits(held)
                    shard.commit = pool.submit(held.output.commit, shard.gather)
            elif shard.commit.done():
                commit, shard.commit = shard.commit, None
                self._end_commit(job, number, commit.result())

    def _may_commit(self, held: OpenJob) -> bool:
        """One that waits tries a single shard: its commits, in threads of another pool then, must
        not meet in its folder."""
        return held.retry_at <= time.monotonic() and not (held.waits_for and held.commits)

    def _advance_tables(self, job: str, held: OpenJob, output: Output) -> None:
        """Has the tables of what is committed written while other shards are computed."""
        if held.ahead is None:
            others = sum(other.has_tables for other in self.jobs.values() if other is not held)
            if output.can_write_ahead and others < AHEAD_JOBS:
                pool = self.pools.of_tables(held, output.num_shards)
                held.ahead = pool.submit(output.write_ahead, self._reader_of(held), held.check)
        elif held.ahead.done():
            ahead, held.ahead = held.ahead, None
            if (error := ahead.exception()) is not None:
                message = f"the tables are written at the end ({error})"
                self.log.warning("job.not_ahead", message=message, **{"job.id": job})

    def _end_commit(self, job: str, number: int, line: ShardLine) -> None:
        """The shard stands in the manifest: only now are its entries acknowledged."""
        held = self.jobs[job]
        assert held.output is not None
        self._go_on(job, held)
        self._acknowledge(held.shards.pop(number).entries)
        self.log.info(
            "job.checkpointed",
            message=f"shard {number} is committed",
            shard=number,
            rows=line.rows,
            shards_done=len(held.output.committed),
            shards_total=held.output.num_shards,
            **{"job.id": job},
        )

    def _acknowledge(self, entries: list[str]) -> None:
        self.lease.release(*entries)
        self.broker.acknowledge(RESULTS, entries)

    # -- the end of a job ------------------------------------------------------------------------

    def _advance_finish(self, job: str, held: OpenJob, output: Output) -> None:
        if held.finishing is None and held.retry_at <= time.monotonic():
            facts = {
                "gpus": self._devices(),
                "preemptions_survived": self.store.preemptions(job),
            }
            self.log.info(
                "job.finishing",
                message=f"tables are written; {output.shards_ahead} shards are in them already",
                shards_ahead=output.shards_ahead,
                **{"job.id": job},
            )
            held.tried_at = time.monotonic()
            pool = self.pools.of_tables(held, output.num_shards)
            held.finishing = pool.submit(self._finish, held, facts)
        elif held.finishing is not None and held.finishing.done():
            finishing, held.finishing = held.finishing, None
            self._end(job, outcome_of(finishing.result()))

    def _finish(self, held: OpenJob, facts: dict[str, Any]) -> Counts:
        """In the thread of outputs."""
        assert held.output is not None
        return held.output.finish(self._reader_of(held), facts, held.check)

    def _reader_of(self, held: OpenJob) -> Callable[[], Iterator[Piece]]:
        return partial(held.read_input, self.settings.input_roots)

    def _devices(self) -> list[str]:
        """What the gpu workers say that they run on."""
        infos = self.broker.workers().values()
        return sorted({str(info["device_name"]) for info in infos if "device_name" in info})

    def close(self) -> None:
        """Stops between two steps: what is complete is committed, the rest waits in Redis."""
        self.lease.close()
        wait([commit for held in self.jobs.values() for commit in held.commits], CLOSE_LIMIT_S)
        for job in list(self.jobs):
            self._close(job)
        self.pools.shutdown()
        self.leaving.wait(CLOSE_LIMIT_S)
        self.role.give_up()
        self.broker.close()
        self.lock.release()


if __name__ == "__main__":
    main("writer", Writer)

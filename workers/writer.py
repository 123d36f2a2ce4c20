"""The writer: accounts and results in, committed shards and finished tables out.

Only this process writes into output folders. An entry of the results stream is acknowledged when
the shard it belongs to stands in the manifest, never before: what the writer holds in memory is
always still in Redis, and what is not in Redis any more is issued again by the planner.

Commits run in one thread of their own, one after another, while the next shards are gathered; all
else happens in the main thread.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from broker.keys import RESULTS
from broker.lease import LeaseKeeper
from broker.queue import Broker, Entry
from ops.durable import FileLock
from ops.errors import VnpError
from ops.fasta import Alphabet, Piece, read_inputs
from ops.gather import ShardGather
from ops.jobs import JobStore, Outcome
from ops.manifest import ShardLine
from ops.nouns import Account, Batch, BatchResult, JobFailure, ShardTask
from ops.output import Output
from workers.logs import get_log
from workers.loop import main, read_entry
from workers.settings import WorkerSettings

#: A result may have 24 MB; what is taken at once is held decoded and encoded for a moment.
TAKE_COUNT = 8
BLOCK_MS = 200
#: While a commit is under way, whose end has to be noticed.
COMMITTING_BLOCK_MS = 10
#: Between two looks at the job files.
ADOPT_EVERY_S = 0.1
#: After a commit that failed (a full disk, say) and before it is tried again.
RETRY_COMMIT_S = 2.0
#: Terminal states.
FINISHED, FAILED = "finished", "failed"


@dataclass
class OpenShard:
    """A shard that is being gathered, and the entries that its commit will acknowledge."""

    gather: ShardGather
    entries: list[str] = field(default_factory=list)
    commit: Future[ShardLine] | None = None
    retry_at: float = 0.0


@dataclass
class OpenJob:
    """A job whose output folder this writer holds."""

    output: Output
    shards: dict[int, OpenShard] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        return self.output.is_complete and not self.shards


class Writer:
    """Gathers rows by shard, commits whole shards, and finishes jobs whose shards are all there."""

    def __init__(self, settings: WorkerSettings, consumer: str) -> None:
        self.log = get_log("writer")
        self.settings = settings
        self.lock = FileLock(Path(settings.state_dir) / "writer.lock")
        self.store = JobStore(Path(settings.state_dir))
        self.jobs: dict[str, OpenJob] = {}
        self.next_adoption = 0.0
        self.committer = ThreadPoolExecutor(1, "commit")
        self.broker = Broker(settings.redis_url, settings.namespace, consumer, settings.lease_s)
        self.lease = LeaseKeeper(self.broker, RESULTS, settings.lease_s)

    def step(self) -> None:
        """Adopts planned jobs, gathers what has arrived, commits and finishes what is complete."""
        self._adopt_jobs()
        block_ms = COMMITTING_BLOCK_MS if self._is_committing() else BLOCK_MS
        for entry in self.broker.take(RESULTS, TAKE_COUNT, block_ms):
            self._gather(entry)
        for job in list(self.jobs):
            self._advance_commits(job)
        for job in [job for job, held in self.jobs.items() if held.is_complete]:
            self._finish(job)

    # -- jobs ------------------------------------------------------------------------------------

    def _adopt_jobs(self) -> None:
        """Opens the output of every planned job, and lets go of jobs that ended elsewhere."""
        if time.monotonic() < self.next_adoption:
            return
        self.next_adoption = time.monotonic() + ADOPT_EVERY_S
        running = self.store.running()
        for job in [job for job in self.jobs if job not in running]:
            self._let_go(job)
        for job in running:
            if job not in self.jobs:
                self._adopt(job)

    def _adopt(self, job: str) -> None:
        try:
            spec, plan = self.store.spec(job), self.store.plan(job)
            # A forced job clears its folder once; whoever adopts it later goes on from there.
            force = spec.force and self.store.opened(job) is None
            output = Output.open(Path(spec.out), spec, plan, force=force, node=self.settings.node)
        except VnpError as error:
            self._fail(job, error)
            return
        self.jobs[job] = OpenJob(output)
        self.store.set_open(job, output.epoch)
        self.log.info(
            "job.resumed" if output.committed else "job.started",
            message=f"{len(output.committed)} of {plan.shards} shards are committed",
            shards_done=len(output.committed),
            shards_total=plan.shards,
            **{"job.id": job},
        )

    def _let_go(self, job: str) -> None:
        held = self.jobs.pop(job)
        self._close_output(held)
        for shard in held.shards.values():
            self._acknowledge(shard.entries)

    def _fail(self, job: str, error: VnpError) -> None:
        self._end(job, Outcome(FAILED, error.exit_code, str(error)))

    def _end(self, job: str, outcome: Outcome) -> None:
        self.store.set_outcome(job, outcome)
        event = self.log.info if outcome.exit_code == 0 else self.log.error
        event(f"job.{outcome.state}", message=outcome.message, **{"job.id": job})
        if job in self.jobs:
            self._let_go(job)

    # -- shards ----------------------------------------------------------------------------------

    def _gather(self, entry: Entry) -> None:
        """Puts a message where it belongs; it stays pending until its shard is committed."""
        message = read_entry(self.broker, RESULTS, entry, Account, BatchResult, JobFailure)
        if message is None:
            return
        assert not isinstance(message, ShardTask | Batch)
        held = self.jobs.get(message.job)
        if held is None or message.shard in held.output.committed:
            self.broker.acknowledge(RESULTS, [entry.id])
        elif isinstance(message, JobFailure):
            self.broker.acknowledge(RESULTS, [entry.id])
            self._end(message.job, Outcome(FAILED, 70, message.reason))
        else:
            self.lease.hold(entry.id)
            shard = held.shards.get(message.shard)
            if shard is None:
                shard = OpenShard(ShardGather(message.job, message.shard))
                held.shards[message.shard] = shard
            shard.entries.append(entry.id)
            try:
                shard.gather.add(message)
            except VnpError as error:
                self._fail(message.job, error)

    def _is_committing(self) -> bool:
        return any(shard.commit for held in self.jobs.values() for shard in held.shards.values())

    def _advance_commits(self, job: str) -> None:
        """Starts the commits that are due, and takes note of those that have ended."""
        held = self.jobs[job]
        for number, shard in list(held.shards.items()):
            if shard.commit is None:
                if shard.gather.complete and shard.retry_at <= time.monotonic():
                    shard.commit = self.committer.submit(held.output.commit, shard.gather)
            elif shard.commit.done():
                self._end_commit(job, number, shard, shard.commit)
            if job not in self.jobs:  # the commit has failed the job
                return

    def _end_commit(
        self, job: str, number: int, shard: OpenShard, commit: Future[ShardLine]
    ) -> None:
        """The shard stands in the manifest: only now are its entries acknowledged."""
        held = self.jobs[job]
        try:
            line = commit.result()
        except OSError as error:
            shard.commit, shard.retry_at = None, time.monotonic() + RETRY_COMMIT_S
            self.log.error("shard.not_committed", message=str(error), **{"job.id": job})
            return
        except VnpError as error:
            self._fail(job, error)
            return
        del held.shards[number]
        self._acknowledge(shard.entries)
        self.log.info(
            "job.checkpointed",
            message=f"shard {number} is committed",
            shard=number,
            rows=line.rows,
            shards_done=len(held.output.committed),
            shards_total=held.output.num_shards,
            **{"job.id": job},
        )

    def _close_output(self, held: OpenJob) -> None:
        """Waits for the commits under way: the folder may be somebody else's afterwards."""
        wait([shard.commit for shard in held.shards.values() if shard.commit])
        held.output.close()

    def _acknowledge(self, entries: list[str]) -> None:
        self.lease.release(*entries)
        self.broker.acknowledge(RESULTS, entries)

    # -- the end of a job ------------------------------------------------------------------------

    def _finish(self, job: str) -> None:
        spec = self.store.spec(job)

        def pieces() -> Iterator[Piece]:
            alphabet: Alphabet = "protein" if spec.pipeline == "protein" else "nucleotide"
            return read_inputs([Path(i.path) for i in spec.inputs], alphabet)

        try:
            facts = {"gpus": self._devices()}
            counts = self.jobs[job].output.finish(pieces, facts)
        except VnpError as error:
            self._fail(job, error)
            return
        message = f"{counts.records} records, {counts.viruses} called virus"
        self._end(job, Outcome(FINISHED, 0, message))

    def _devices(self) -> list[str]:
        """What the gpu workers say that they run on."""
        infos = self.broker.workers().values()
        return sorted({str(info["device_name"]) for info in infos if "device_name" in info})

    def close(self) -> None:
        """Stops between two steps: what is complete is committed, the rest waits in Redis."""
        self.lease.close()
        for held in self.jobs.values():
            self._close_output(held)
        self.committer.shutdown()
        self.broker.close()
        self.lock.release()


if __name__ == "__main__":
    main("writer", Writer)

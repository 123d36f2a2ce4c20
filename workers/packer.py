"""The packer: a shard's sequences in; packed batches and its account out, in one hand-off.

A task that ends three packers fails its job. As with a gpu worker (`workers.gpu`) a death counts
when packing raises, hangs (SIGABRT), or the process dies of SIGSEGV or SIGBUS; a bare SIGKILL, by
a preemption or for want of memory, says nothing about the task in hand and never counts.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from broker.codec import MessageError, encode
from broker.keys import BATCHES, RESULTS, TASKS
from broker.lease import LeaseKeeper
from broker.queue import Broker, Entry
from ops.dna_tokens import DnaTokenizer
from ops.modelstore import TOKENIZER
from ops.nouns import Account, Batch, JobFailure, ShardTask
from ops.packing import Budgets
from ops.prepare import prepare
from workers.deadline import Deadline
from workers.job_plan import SMALLER
from workers.logs import get_log
from workers.loop import PREDECESSOR_SIGNAL, main, read_entry
from workers.settings import WorkerSettings

#: A task that ended its packer this often would end the next one too: it fails its job.
MAX_ATTEMPTS = 3
#: Of the time after which the supervisor kills a process without a step, which tells nothing.
DEADLINE_SHARE = 0.75
BLOCK_MS = 500


class Packer:
    """Turns shard tasks into batches; holds a tokenizer and nothing of any job."""

    def __init__(self, settings: WorkerSettings, consumer: str) -> None:
        self.log = get_log("packer")
        self.settings = settings
        self.budgets = Budgets(settings.esm_budget, settings.dna_budget, settings.max_rows)
        folder = settings.dnabert
        self.tokenizer = DnaTokenizer(Path(folder) / TOKENIZER) if folder else None
        self.broker = Broker(settings.redis_url, settings.namespace, consumer, settings.lease_s)
        self.lease = LeaseKeeper(self.broker, TASKS, settings.lease_s)
        self.deadline = Deadline(DEADLINE_SHARE * settings.stuck_s)
        # A predecessor that died of its task left it in our name: the first that we take is it.
        self.blame = os.environ.get(PREDECESSOR_SIGNAL)
        self.log.info(
            "packer.ready",
            message="full batches" if settings.packing else "one sequence a batch",
            packing=settings.packing,
            esm_budget=self.budgets.esm,
            dna_budget=self.budgets.dna,
            max_rows=self.budgets.max_rows,
        )

    def step(self) -> None:
        """Takes one task, packs it, hands it on."""
        for entry in self.broker.take(TASKS, 1, BLOCK_MS):
            with self.lease.holding(entry.id):
                self._pack(entry)
            self.blame = None

    def _pack(self, entry: Entry) -> None:
        task = read_entry(self.broker, TASKS, entry, ShardTask)
        if task is None:
            return
        if self.broker.is_cancelled(task.job):
            self.broker.acknowledge(TASKS, [entry.id])
        elif self.blame and entry.deliveries > 1:
            self._hand_on_failure(entry, task, f"died of {self.blame}")
        else:
            self._prepare_and_hand_off(entry, task)

    def _prepare_and_hand_off(self, entry: Entry, task: ShardTask) -> None:
        try:
            with self.deadline:
                batches, account = self._prepare(task)
                outputs = [(RESULTS, encode(account))]
                outputs += [(BATCHES, encode(batch)) for batch in batches]
        except MessageError as error:  # the next packer would say the same
            self._fail_job(entry, task, f"shard {task.shard} cannot be sent: {error}; {SMALLER}")
            return
        except Exception as error:
            self._hand_on_failure(entry, task, f"failed with {type(error).__name__}")
            raise
        packed = {
            "shards_packed": 1,
            "chunks_packed": len(account.chunk),
            "rows_packed": sum(len(batch.record) for batch in batches),
        }
        self.broker.hand_off(TASKS, entry.id, outputs, packed, task.job)

    def _prepare(self, task: ShardTask) -> tuple[list[Batch], Account]:
        return prepare(
            task,
            self.tokenizer,
            self.budgets,
            self.settings.max_tokens,
            one_per_batch=not self.settings.packing,
        )

    def _hand_on_failure(self, entry: Entry, task: ShardTask, how: str) -> None:
        """Gives the task to any packer once more, or up when it has ended enough of them."""
        attempts = task.attempts + 1
        if attempts >= MAX_ATTEMPTS:
            reason = f"shard {task.shard} ended {attempts} packers, the last one {how}; see the log"
            self._fail_job(entry, task, reason)
            return
        message = f"shard {task.shard} is packed again: its packer {how}"
        self.log.error("shard.error", message=message, **{"job.id": task.job})
        again = encode(replace(task, attempts=attempts))
        self.broker.hand_off(TASKS, entry.id, [(TASKS, again)], None, task.job)

    def _fail_job(self, entry: Entry, task: ShardTask, reason: str) -> None:
        self.log.error("shard.failed", message=reason, **{"job.id": task.job})
        failure = JobFailure(task.job, task.shard, reason)
        self.broker.hand_off(TASKS, entry.id, [(RESULTS, encode(failure))], None, task.job)

    def close(self) -> None:
        self.deadline.close()
        self.lease.close()
        self.broker.close()


if __name__ == "__main__":
    main("packer", Packer)

"""The packer: a shard's sequences in; packed batches and its account out, in one hand-off."""

from __future__ import annotations

from pathlib import Path

from broker.codec import encode
from broker.keys import BATCHES, RESULTS, TASKS
from broker.lease import LeaseKeeper
from broker.queue import Broker, Entry
from ops.dna_tokens import DnaTokenizer
from ops.modelstore import TOKENIZER
from ops.nouns import JobFailure, ShardTask
from ops.packing import Budgets
from ops.prepare import prepare
from workers.logs import get_log
from workers.loop import main, read_entry
from workers.settings import WorkerSettings

#: A task that ended its packer this often would end the next one too: it fails its job.
MAX_DELIVERIES = 3
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

    def _pack(self, entry: Entry) -> None:
        task = read_entry(self.broker, TASKS, entry, ShardTask)
        if task is None:
            return
        if self.broker.is_cancelled(task.job):
            self.broker.acknowledge(TASKS, [entry.id])
        elif entry.deliveries > MAX_DELIVERIES:
            self._fail_job(entry, task)
        else:
            self._prepare_and_hand_off(entry, task)

    def _prepare_and_hand_off(self, entry: Entry, task: ShardTask) -> None:
        batches, account = prepare(
            task,
            self.tokenizer,
            self.budgets,
            self.settings.max_tokens,
            one_per_batch=not self.settings.packing,
        )
        messages = [(RESULTS, encode(account)), *((BATCHES, encode(batch)) for batch in batches)]
        packed = {
            "shards_packed": 1,
            "chunks_packed": len(account.chunk),
            "rows_packed": sum(len(batch.record) for batch in batches),
        }
        self.broker.hand_off(TASKS, entry.id, messages, packed, task.job)

    def _fail_job(self, entry: Entry, task: ShardTask) -> None:
        reason = f"shard {task.shard} ended its packer {entry.deliveries - 1} times; see the log"
        self.log.error("shard.failed", message=reason, **{"job.id": task.job})
        failure = JobFailure(task.job, task.shard, reason)
        self.broker.hand_off(TASKS, entry.id, [(RESULTS, encode(failure))], None, task.job)

    def close(self) -> None:
        self.lease.close()
        self.broker.close()


if __name__ == "__main__":
    main("packer", Packer)

"""A cancelled job gives the device back: nothing of it is begun any more, whatever is queued."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.codec import decode, encode
from broker.keys import BATCHES, RESULTS
from broker.queue import Broker
from broker.server import PrivateServer
from ops.engine import Engine, Launched
from ops.nouns import Batch, BatchResult
from tests.redis.gpu_fixtures import gpu_settings, protein_batch
from workers import gpu
from workers.gpu import IN_HAND, GpuWorker

QUEUED = 20
#: The batch in the middle of which its job is cancelled, from 0.
CANCELLED_AT = 3


@pytest.mark.parametrize("depth", [1, IN_HAND])
def test_next_job_has_the_device_within_one_batch(
    depth: int,
    redis_server: PrivateServer,
    namespace: str,
    make_broker: Callable[..., Broker],
    raw: Callable[[PrivateServer], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a long job with many batches in the queue, and another job's batch behind them
    client = make_broker("client")
    client.ensure_groups()
    batches = [protein_batch("long", number, [number], [b"MKLVRE"]) for number in range(QUEUED)]
    for batch in [*batches, replace(batches[0], job="next")]:
        raw(redis_server).xadd(client.keys.stream(BATCHES), {"m": encode(batch)})
    order: list[tuple[str, str, int]] = []

    class WatchedEngine(Engine):
        """Notes what is begun and ended; the long job is cancelled in the middle of a batch."""

        def launch(self, batch: Batch) -> Launched:
            order.append(("begun", batch.job, batch.number))
            if (batch.job, batch.number) == ("long", CANCELLED_AT):
                client.cancel("long")
            return super().launch(batch)

        def finish(self, launched: Launched) -> BatchResult:
            order.append(("ended", launched.batch.job, launched.batch.number))
            return super().finish(launched)

    monkeypatch.setattr(gpu, "Engine", WatchedEngine)
    worker = GpuWorker(gpu_settings(tmp_path, redis_server.url, namespace), "n:gpu:0")
    worker.depth = depth
    # When the worker goes on until the queue is empty
    while client.stats().streams[BATCHES].length:
        worker.step()
    worker.close()
    # Then no other batch of the long job was begun, and what follows is the next job's
    begun = [(job, number) for what, job, number in order if what == "begun"]
    assert begun == [("long", number) for number in range(CANCELLED_AT + 1)] + [("next", 0)]
    # And only what was in hand was ended first: one batch, or two
    cancelled = order.index(("begun", "long", CANCELLED_AT))
    between = order[cancelled + 1 : order.index(("begun", "next", 0))]
    assert {what for what, _, _ in between} <= {"ended"}
    assert len(between) <= depth
    # And what the cancelled job was given is no more than it had begun
    results = [decode(entry.payload) for entry in client.take(RESULTS, QUEUED, 100)]
    jobs = [result.job for result in results if isinstance(result, BatchResult)]
    assert sorted(jobs) == ["long"] * jobs.count("long") + ["next"]
    assert jobs.count("long") <= CANCELLED_AT + 1

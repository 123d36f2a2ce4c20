"""A full Redis refuses new work and lets everything through that makes room."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from broker.keys import BATCHES, RESULTS, TASKS
from broker.queue import Broker, Entry
from broker.server import PrivateServer
from ops.errors import UnavailableError

MakeBroker = Callable[..., Broker]
JOB = "job-1"
TASK = b"t" * 10_000


@pytest.fixture
def full(
    make_broker: MakeBroker, fresh_server: PrivateServer, raw: Callable[[PrivateServer], Any]
) -> tuple[Broker, list[Entry]]:
    """A worker with one task in hand and another waiting, on a server that is then full."""
    worker = make_broker("node:packer:0", url=fresh_server.url)
    for shard in range(2):
        worker.issue(TASK, JOB, shard, charge=1)
    entries = worker.take(TASKS, 1, 50)
    client = raw(fresh_server)
    client.config_set("maxmemory", client.info("memory")["used_memory"] // 2)
    return worker, entries


def test_new_work_is_refused_as_a_whole(full: tuple[Broker, list[Entry]]) -> None:
    # Given a full server
    worker, _ = full
    # When a shard is issued
    with pytest.raises(UnavailableError, match="is full; raise its maxmemory"):
        worker.issue(TASK, "job-2", 7, charge=1)
    # Then nothing of it is there
    assert ("job-2", 7) not in worker.open_shards()
    assert worker.stats().streams[TASKS].length == 2


def test_hand_off_works_though_it_adds_more_than_it_removes(
    full: tuple[Broker, list[Entry]],
) -> None:
    # Given a full server, and a task whose outputs are larger than itself
    worker, [entry] = full
    outputs = [(BATCHES, b"b" * 40_000), (BATCHES, b"c" * 40_000), (RESULTS, b"a" * 5_000)]
    # When it is handed off
    assert worker.hand_off(TASKS, entry.id, outputs, {"rows_packed": 3}, JOB)
    # Then all is there
    lengths = {name: s.length for name, s in worker.stats().streams.items()}
    assert lengths == {TASKS: 1, BATCHES: 2, RESULTS: 1}
    assert worker.progress(JOB) == {"rows_packed": 3}


def test_the_pipeline_drains(full: tuple[Broker, list[Entry]]) -> None:
    # Given a full server
    worker, _ = full
    worker.on_unavailable()
    # When everything that is there is worked off, as the processes do it
    done = 0
    while tasks := worker.take(TASKS, 1, 20):
        worker.hand_off(TASKS, tasks[0].id, [(BATCHES, b"b" * 20_000)], {"packed": 1}, JOB)
        for batch in worker.take(BATCHES, 1, 20):
            assert worker.extend(BATCHES, [batch.id]) == {batch.id}
            worker.hand_off(BATCHES, batch.id, [(RESULTS, b"r" * 30_000)], {"computed": 1}, JOB)
        for result in worker.take(RESULTS, 1, 20):
            done += worker.acknowledge(RESULTS, [result.id])
    # Then both tasks came out at the end
    assert done == 2
    assert worker.progress(JOB) == {"packed": 2, "computed": 2}


def test_a_worker_can_start(full: tuple[Broker, list[Entry]], make_broker: MakeBroker) -> None:
    # Given a full server, and a worker that died with a task in hand
    dead, [entry] = full
    # When its successor starts, looks after the groups, says what it is and takes
    successor = make_broker("node:packer:0", url=dead.url)
    successor.register({"device": "cpu"})
    [taken] = successor.take(TASKS, 1, 50)
    # Then it has its predecessor's task
    assert (taken.id, taken.deliveries) == (entry.id, 2)
    assert successor.workers()["node:packer:0"]["device"] == "cpu"


def test_work_can_be_given_back_and_cancelled(full: tuple[Broker, list[Entry]]) -> None:
    # Given a full server
    worker, [entry] = full
    # When the task in hand is given back and its job is cancelled
    assert worker.give_back(TASKS, [entry.id]) == 1
    worker.cancel(JOB)
    # Then workers know
    assert worker.is_cancelled(JOB)

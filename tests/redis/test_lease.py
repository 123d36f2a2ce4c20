"""The lease keeper: work in hand stays in hand, and only that."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from broker.keys import RESULTS, TASKS
from broker.lease import LeaseKeeper
from broker.queue import Broker, Entry
from broker.server import PrivateServer
from tests.redis.nodes import take_until_some

MakeBroker = Callable[..., Broker]
JOB = "job-1"
LEASE_S = 0.3
#: The lease is what the one who looks for it goes by.
OTHERS_LEASE_S = 3.0


@contextmanager
def keeper(broker: Broker, **options: float) -> Iterator[LeaseKeeper]:
    lease = LeaseKeeper(broker, TASKS, LEASE_S, **options)
    yield lease
    lease.close()


def take_one(broker: Broker) -> Entry:
    broker.issue(b"task", JOB, 0, charge=1)
    [entry] = broker.take(TASKS, 1, 50)
    return entry


def take_for(broker: Broker, seconds: float) -> list[Entry]:
    """Everything that comes within some seconds."""
    entries: list[Entry] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        entries += broker.take(TASKS, 9, 20)
    return entries


def test_held_entry_outlives_its_lease(make_broker: MakeBroker) -> None:
    # Given an entry held by a worker that takes its time, and renews ten times a lease
    worker = make_broker("node:gpu:0", lease_s=LEASE_S)
    other = make_broker("node:gpu:1", lease_s=OTHERS_LEASE_S)
    with keeper(worker) as lease:
        entry = take_one(worker)
        # When another looks for expired leases for longer than one
        with lease.holding(entry.id):
            stolen = take_for(other, 1.5 * OTHERS_LEASE_S)
            # Then the entry stays where it is
            assert stolen == []
            assert lease.holds(entry.id)
            assert worker.hand_off(TASKS, entry.id, [(RESULTS, b"r")], None, JOB)
        assert not lease.holds(entry.id)
    assert worker.stats().streams[TASKS].pending == 0


def test_entry_that_is_not_held_expires(make_broker: MakeBroker) -> None:
    # Given an entry that was released without being handed off
    worker = make_broker("node:gpu:0", lease_s=LEASE_S)
    other = make_broker("node:gpu:1", lease_s=LEASE_S)
    with keeper(worker) as lease:
        entry = take_one(worker)
        with lease.holding(entry.id):
            pass
        # When another looks; Then it gets it
        assert [e.id for e in take_until_some(other, TASKS, 9)] == [entry.id]


def test_stuck_owner_loses_its_lease(make_broker: MakeBroker) -> None:
    # Given a worker that holds an entry and has not moved for its deadline
    worker = make_broker("node:gpu:0", lease_s=LEASE_S)
    other = make_broker("node:gpu:1", lease_s=LEASE_S)
    with keeper(worker, deadline_s=0.01) as lease:
        entry = take_one(worker)
        lease.hold(entry.id)
        # When another looks; Then it gets it, though the keeper's thread lives
        assert [e.id for e in take_until_some(other, TASKS, 9)] == [entry.id]


def test_lost_entry_is_let_go(make_broker: MakeBroker) -> None:
    # Given an entry that another claimed while nobody renewed
    worker = make_broker("node:gpu:0", lease_s=LEASE_S)
    other = make_broker("node:gpu:1", lease_s=LEASE_S)
    entry = take_one(worker)
    worker.hold(TASKS, entry.id)
    assert [e.id for e in take_until_some(other, TASKS, 9)] == [entry.id]
    # When the keeper renews
    with keeper(worker) as lease:
        lease.renew()
        # Then it knows, and the other keeps the entry
        assert not lease.holds(entry.id)
    assert other.extend(TASKS, [entry.id]) == {entry.id}


def test_keeper_survives_a_redis_that_is_away(
    make_broker: MakeBroker, fresh_server: PrivateServer
) -> None:
    # Given a held entry, and a Redis that dies
    worker = make_broker("node:gpu:0", lease_s=LEASE_S, url=fresh_server.url)
    with keeper(worker) as lease:
        entry = take_one(worker)
        lease.hold(entry.id)
        fresh_server.stop()
        # When it renews while Redis is away
        lease.renew()
        assert lease.holds(entry.id)
        # Then it finds out when an empty one is back
        fresh_server.start()
        lease.renew()
        assert not lease.holds(entry.id)


@pytest.mark.parametrize("lease_s", [LEASE_S, 3_600.0])
def test_close_does_not_wait_for_the_period(make_broker: MakeBroker, lease_s: float) -> None:
    # Given a keeper of a long lease
    lease = LeaseKeeper(make_broker(), TASKS, lease_s)
    # When it is closed, then it ends (or the time limit of the suite ends this test)
    lease.close()
    assert not lease._thread.is_alive()

"""The queue in bad weather: killed workers, lost replies, a Redis that forgets or dies."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.keys import BATCHES, GROUPS, NOBODY, RESULTS, TASKS, Keys
from broker.queue import Broker
from broker.server import PrivateServer
from ops.errors import UnavailableError
from tests.redis.nodes import take_until_some
from tests.redis.proxy import CuttingProxy

MakeBroker = Callable[..., Broker]
JOB = "job-1"
SHORT_LEASE_S = 0.2


@pytest.fixture
def proxy(redis_server: PrivateServer) -> Iterator[CuttingProxy]:
    with tempfile.TemporaryDirectory(prefix="vnp-") as folder:
        proxy = CuttingProxy(Path(folder), redis_server.socket)
        yield proxy
        proxy.close()


def issue_tasks(broker: Broker, count: int) -> list[bytes]:
    payloads = [b"task %d" % shard for shard in range(count)]
    for shard, payload in enumerate(payloads):
        broker.issue(payload, JOB, shard, charge=1)
    return payloads


# -- workers that die ------------------------------------------------------------------------------


def test_restarted_worker_gets_its_own_entries_at_once_and_counted(
    make_broker: MakeBroker,
) -> None:
    # Given a worker that died with three entries in hand, under a long lease
    dead = make_broker("node:packer:0", lease_s=3_600)
    payloads = issue_tasks(dead, 4)
    assert len(dead.take(TASKS, 3, 50)) == 3
    # When it starts again under its name
    successor = make_broker("node:packer:0", lease_s=3_600)
    leftovers = successor.take(TASKS, 2, 50) + successor.take(TASKS, 2, 50)
    # Then it gets those three, in order, with their delivery counted; then the new one
    assert [entry.payload for entry in leftovers] == payloads[:3]
    assert {entry.deliveries for entry in leftovers} == {2}
    [new] = successor.take(TASKS, 2, 50)
    assert (new.payload, new.deliveries) == (payloads[3], 1)


def test_deliveries_count_every_death(make_broker: MakeBroker) -> None:
    # Given an entry that kills whoever takes it
    issue_tasks(make_broker(), 1)
    # When four processes of one name die of it
    seen = [make_broker("node:gpu:0").take(TASKS, 1, 50)[0].deliveries for _ in range(4)]
    # Then each sees one delivery more
    assert seen == [1, 2, 3, 4]


def test_expired_lease_is_claimed_by_others_and_counted(make_broker: MakeBroker) -> None:
    # Given a dead worker with two entries in hand
    dead = make_broker("node:packer:0", lease_s=SHORT_LEASE_S)
    payloads = issue_tasks(dead, 2)
    assert len(dead.take(TASKS, 2, 50)) == 2
    # When another takes, one at a time, after the lease
    other = make_broker("node:packer:1", lease_s=SHORT_LEASE_S)
    taken = take_until_some(other, TASKS, 1)
    other.hold(TASKS, taken[0].id)
    taken += take_until_some(other, TASKS, 1)
    # Then it gets both
    assert [entry.payload for entry in taken] == payloads
    assert {entry.deliveries for entry in taken} == {2}


def test_lease_in_force_is_respected(make_broker: MakeBroker) -> None:
    # Given an entry in another's hand, under a long lease
    holder = make_broker("node:packer:0", lease_s=3_600)
    issue_tasks(holder, 1)
    assert len(holder.take(TASKS, 1, 50)) == 1
    # When somebody else takes
    other = make_broker("node:packer:1", lease_s=3_600)
    # Then there is nothing for it
    assert other.take(TASKS, 1, 50) == []


def test_zombie_learns_that_its_entry_is_gone_and_does_not_steal_it_back(
    make_broker: MakeBroker,
) -> None:
    # Given a worker whose entry was claimed by another while it stood still
    zombie = make_broker("node:gpu:0", lease_s=SHORT_LEASE_S)
    issue_tasks(zombie, 1)
    [entry] = zombie.take(TASKS, 1, 50)
    zombie.hold(TASKS, entry.id)
    other = make_broker("node:gpu:1", lease_s=SHORT_LEASE_S)
    [claimed] = take_until_some(other, TASKS, 1)
    # When it wakes and renews its lease
    still_ours = zombie.extend(TASKS, [entry.id])
    # Then it is told, and the other's ownership stands
    assert still_ours == set()
    assert other.extend(TASKS, [claimed.id]) == {claimed.id}
    # And whoever finishes first has done the work, once
    assert zombie.hand_off(TASKS, entry.id, [(RESULTS, b"z")], None, JOB)
    assert not other.hand_off(TASKS, claimed.id, [(RESULTS, b"o")], None, JOB)
    assert [e.payload for e in other.take(RESULTS, 9, 50)] == [b"z"]


def test_extend_keeps_the_delivery_count_and_renews(
    make_broker: MakeBroker, namespace: str, redis_server: PrivateServer, raw: Any
) -> None:
    # Given an entry in hand, idle for a while
    broker = make_broker()
    issue_tasks(broker, 1)
    [entry] = broker.take(TASKS, 1, 50)
    key = Keys(namespace).stream(TASKS)
    client = raw(redis_server)
    idle_for = {"idle": 60_000, "justid": True}
    client.xclaim(key, GROUPS[TASKS], broker.consumer, 0, [entry.id], **idle_for)
    # When it is extended
    assert broker.extend(TASKS, [entry.id]) == {entry.id}
    # Then it is not idle any more, and counts as delivered once
    [pending] = client.xpending_range(key, GROUPS[TASKS], "-", "+", 1)
    assert pending["time_since_delivered"] < 60_000
    assert pending["times_delivered"] == 1


def test_extend_revives_nothing_that_was_handed_off(make_broker: MakeBroker) -> None:
    # Given an entry that was handed off
    broker = make_broker()
    issue_tasks(broker, 1)
    [entry] = broker.take(TASKS, 1, 50)
    broker.hand_off(TASKS, entry.id, [], None, JOB)
    # When a late renewal comes
    assert broker.extend(TASKS, [entry.id]) == set()
    # Then nothing is pending
    assert broker.stats().streams[TASKS].pending == 0


def test_given_back_entry_is_anyones_at_once_and_uncounted(
    make_broker: MakeBroker, namespace: str, redis_server: PrivateServer, raw: Any
) -> None:
    # Given an entry in hand under a long lease
    leaver = make_broker("node:gpu:0", lease_s=3_600)
    issue_tasks(leaver, 1)
    [entry] = leaver.take(TASKS, 1, 50)
    leaver.hold(TASKS, entry.id)
    # When it is given back, and a renewal comes late
    assert leaver.give_back(TASKS, [entry.id]) == 1
    assert leaver.extend(TASKS, [entry.id]) == set()
    [pending] = raw(redis_server).xpending_range(
        Keys(namespace).stream(TASKS), GROUPS[TASKS], "-", "+", 1
    )
    assert (pending["consumer"], pending["times_delivered"]) == (NOBODY.encode(), 0)
    # Then another gets it at its next look, as if it were new
    other = make_broker("node:gpu:1", lease_s=3_600)
    [taken] = take_until_some(other, TASKS, 1)
    assert (taken.id, taken.payload, taken.deliveries) == (entry.id, b"task 0", 1)


def test_give_back_leaves_what_others_own(make_broker: MakeBroker) -> None:
    # Given an entry that another has claimed
    zombie = make_broker("node:gpu:0", lease_s=SHORT_LEASE_S)
    issue_tasks(zombie, 1)
    [entry] = zombie.take(TASKS, 1, 50)
    other = make_broker("node:gpu:1", lease_s=SHORT_LEASE_S)
    take_until_some(other, TASKS, 1)
    # When the zombie gives it back
    # Then it was not its to give
    assert zombie.give_back(TASKS, [entry.id]) == 0
    assert other.extend(TASKS, [entry.id]) == {entry.id}


# -- work that is cut short in a living worker -----------------------------------------------------


def test_held_entries_are_not_delivered_again_and_released_ones_are(
    make_broker: MakeBroker,
) -> None:
    # Given a living worker with three entries, of which it holds two
    broker = make_broker()
    payloads = issue_tasks(broker, 3)
    entries = broker.take(TASKS, 3, 50)
    for entry in entries[:2]:
        broker.hold(TASKS, entry.id)
    # When it takes again after a failure of Redis
    broker.on_unavailable()
    [again] = broker.take(TASKS, 9, 50)
    # Then it gets the one that it dropped, which does not count as a delivery
    assert (again.payload, again.deliveries) == (payloads[2], 1)
    # And when it lets go of another
    broker.hold(TASKS, again.id)
    broker.release(TASKS, [entries[0].id])
    broker.on_unavailable()
    assert [entry.payload for entry in broker.take(TASKS, 9, 50)] == [payloads[0]]


def test_many_entries_are_reconciled_page_by_page(make_broker: MakeBroker) -> None:
    # Given more entries in a dead worker's name than one listing has
    dead = make_broker("node:writer:0")
    issue_tasks(dead, 1)
    [task] = dead.take(TASKS, 1, 50)
    outputs = [(RESULTS, b"%d" % number) for number in range(1_203)]
    dead.hand_off(TASKS, task.id, outputs, None, JOB)
    assert len(dead.take(RESULTS, 2_000, 50)) == 1_203
    # When its successor takes and holds them, 64 at a time
    successor = make_broker("node:writer:0")
    seen = []
    while entries := successor.take(RESULTS, 64, 20):
        assert len(entries) <= 64
        for entry in entries:
            successor.hold(RESULTS, entry.id)
            seen.append(entry.payload)
    # Then each came once
    assert seen == [payload for _, payload in outputs]


# -- lost replies ----------------------------------------------------------------------------------


def test_lost_reply_of_a_delivery(make_broker: MakeBroker, proxy: CuttingProxy) -> None:
    # Given two tasks, and a worker whose connection is cut on the reply to its reading
    payloads = issue_tasks(make_broker("node:planner:0"), 2)
    worker = make_broker("node:packer:0", lease_s=3_600, url=proxy.url)
    proxy.cut_reply_to(b"XREADGROUP")
    with pytest.raises(UnavailableError):
        worker.take(TASKS, 1, 50)
    assert proxy.cuts == 1
    # When it takes again, twice
    taken = worker.take(TASKS, 1, 50)
    worker.hold(TASKS, taken[0].id)
    taken += worker.take(TASKS, 1, 50)
    # Then it gets the first one, which it never saw, as a first delivery; and then the second
    assert [entry.payload for entry in taken] == payloads
    assert [entry.deliveries for entry in taken] == [1, 1]


def test_lost_reply_of_a_claim(make_broker: MakeBroker, proxy: CuttingProxy) -> None:
    # Given a dead worker's expired entry
    dead = make_broker("node:packer:0", lease_s=SHORT_LEASE_S)
    issue_tasks(dead, 1)
    dead.take(TASKS, 1, 50)
    time.sleep(2 * SHORT_LEASE_S)
    # When the reply of its claim is cut
    worker = make_broker("node:packer:1", lease_s=SHORT_LEASE_S, url=proxy.url)
    warm_up(worker)
    proxy.cut_reply_to(b"others")
    with pytest.raises(UnavailableError):
        take_until_some(worker, TASKS, 1)
    # Then the next take has it, with one delivery counted and not two
    [entry] = worker.take(TASKS, 1, 50)
    assert (entry.payload, entry.deliveries) == (b"task 0", 2)


def warm_up(broker: Broker) -> None:
    """Makes the server know the claim script, so that the first real call is executed."""
    state = broker._streams[BATCHES]
    broker._claim(state, ["0-1"], "own", 0, 0)


def test_lost_reply_of_a_hand_off(make_broker: MakeBroker, proxy: CuttingProxy) -> None:
    # Given two tasks in hand, the first of which is handed off in peace
    issue_tasks(make_broker("node:planner:0"), 2)
    worker = make_broker("node:packer:0", url=proxy.url)
    one, two = worker.take(TASKS, 2, 50)
    assert worker.hand_off(TASKS, one.id, [(BATCHES, b"one")], {"rows": 1}, JOB)
    # When the reply of the second hand-off is cut, and the client tries again by itself
    proxy.cut_reply_to(b"batch of two")
    done = worker.hand_off(TASKS, two.id, [(BATCHES, b"batch of two")], {"rows": 1}, JOB)
    # Then it finds the work done, and done once
    assert proxy.cuts == 1
    assert done is False
    assert [e.payload for e in worker.take(BATCHES, 9, 50)] == [b"one", b"batch of two"]
    assert worker.progress(JOB) == {"rows": 2}


def test_lost_reply_of_an_issue(make_broker: MakeBroker, proxy: CuttingProxy) -> None:
    # Given a planner that has issued one shard in peace
    planner = make_broker("node:planner:0", url=proxy.url)
    planner.issue(b"first", JOB, 0, charge=1)
    # When the reply of its second issue is cut, and the client tries again by itself
    proxy.cut_reply_to(b"second")
    planner.issue(b"second", JOB, 1, charge=2)
    # Then the shard was issued once
    assert proxy.cuts == 1
    assert [e.payload for e in planner.take(TASKS, 9, 50)] == [b"first", b"second"]
    assert planner.open_shards() == {(JOB, 0): 1, (JOB, 1): 2}


def test_all_connections_killed(
    make_broker: MakeBroker, fresh_server: PrivateServer, raw: Any
) -> None:
    # Given a worker with an entry in hand and one waiting
    worker = make_broker("node:packer:0", url=fresh_server.url)
    issue_tasks(worker, 2)
    [held] = worker.take(TASKS, 1, 50)
    worker.hold(TASKS, held.id)
    # When every connection is killed
    raw(fresh_server).client_kill_filter(_type="normal", skipme=True)
    # Then the hand-off reconnects by itself
    assert worker.hand_off(TASKS, held.id, [(BATCHES, b"batch")], None, JOB)
    # And so does the next delivery
    assert [entry.payload for entry in worker.take(TASKS, 1, 50)] == [b"task 1"]


# -- a Redis that forgets --------------------------------------------------------------------------


def test_flushed_redis(make_broker: MakeBroker, fresh_server: PrivateServer, raw: Any) -> None:
    # Given a planner, and a worker with an entry in hand
    planner = make_broker("node:planner:0", url=fresh_server.url)
    worker = make_broker("node:packer:0", url=fresh_server.url)
    mark = planner.establish_incarnation()
    issue_tasks(planner, 1)
    [old] = worker.take(TASKS, 1, 50)
    worker.hold(TASKS, old.id)
    # When Redis forgets everything
    raw(fresh_server).flushall()
    # Then the planner sees it, and what it issues anew reaches the worker without a restart
    assert planner.incarnation() is None
    assert planner.open_shards() == {}
    assert worker.take(TASKS, 1, 20) == []
    assert planner.establish_incarnation() != mark
    issue_tasks(planner, 1)
    [new] = worker.take(TASKS, 1, 50)
    assert (new.payload, new.deliveries) == (b"task 0", 1)
    # And the old entry can be neither renewed nor handed off
    assert worker.extend(TASKS, [old.id]) == set()
    assert not worker.hand_off(TASKS, old.id, [(BATCHES, b"late")], None, JOB)
    assert worker.stats().streams[BATCHES].length == 0


def test_restarted_redis(make_broker: MakeBroker, fresh_server: PrivateServer) -> None:
    # Given a worker that says what it is, and has read before
    worker = make_broker("node:packer:0", url=fresh_server.url)
    worker.register({"numerics": "ab12"})
    issue_tasks(worker, 1)
    [old] = worker.take(TASKS, 1, 50)
    # When Redis dies and an empty one takes its place
    assert fresh_server.pid is not None
    fresh_server.stop()
    for call in (lambda: worker.take(TASKS, 1, 50), worker.incarnation):
        with pytest.raises(UnavailableError, match="is it running"):
            call()
    fresh_server.start()
    # Then the worker goes on by itself
    assert worker.take(TASKS, 1, 20) == []
    issue_tasks(worker, 1)
    [new] = worker.take(TASKS, 1, 50)
    assert new.id != old.id
    assert worker.hand_off(TASKS, new.id, [(BATCHES, b"batch")], None, JOB)
    # And says again what it is
    assert worker.workers()["node:packer:0"]["numerics"] == "ab12"


def test_register_waits_for_redis(make_broker: MakeBroker, fresh_server: PrivateServer) -> None:
    # Given a Redis that is away
    worker = make_broker("node:gpu:0", url=fresh_server.url)
    fresh_server.stop()
    # When a worker registers
    worker.register({"device": "cpu"})
    fresh_server.start()
    # Then its first take says it
    assert worker.take(BATCHES, 1, 20) == []
    assert worker.take(BATCHES, 1, 20) == []
    assert worker.workers()["node:gpu:0"]["device"] == "cpu"


def test_deleted_payload_of_a_pending_entry(
    make_broker: MakeBroker, namespace: str, redis_server: PrivateServer, raw: Any
) -> None:
    # Given a dead worker's entries, one of which somebody has deleted from the stream
    dead = make_broker("node:packer:0", lease_s=3_600)
    payloads = issue_tasks(dead, 2)
    one, _ = dead.take(TASKS, 2, 50)
    raw(redis_server).xdel(Keys(namespace).stream(TASKS), one.id)
    # When its successor takes
    successor = make_broker("node:packer:0", lease_s=3_600)
    taken = successor.take(TASKS, 9, 50)
    # Then it gets the other, and nothing hangs in the group
    assert [entry.payload for entry in taken] == payloads[1:]
    assert successor.stats().streams[TASKS].pending == 1


def test_older_memory_of_redis_shows(
    make_broker: MakeBroker, fresh_server: PrivateServer, raw: Any
) -> None:
    # Given a planner that has issued a shard, and a snapshot of that moment
    planner = make_broker("node:planner:0", url=fresh_server.url)
    planner.establish_incarnation()
    first = planner.issue(b"first", JOB, 0, charge=1)
    raw(fresh_server).save()
    second = planner.issue(b"second", JOB, 1, charge=1)
    assert planner.incarnation() == second
    # When Redis dies and comes back as it was then
    fresh_server.stop()
    fresh_server.start()
    # Then its mark is not that of the last issue, and its books are those of the snapshot
    assert planner.incarnation() == first
    assert planner.open_shards() == {(JOB, 0): 1}


@pytest.mark.parametrize("stream", GROUPS)
def test_one_lost_stream_voids_the_books(
    make_broker: MakeBroker, fresh_server: PrivateServer, raw: Any, stream: str, namespace: str
) -> None:
    # Given a planner with an open shard
    planner = make_broker("node:planner:0", url=fresh_server.url)
    planner.establish_incarnation()
    planner.issue(b"first", JOB, 0, charge=1)
    # When somebody deletes one stream, and its taker notices
    raw(fresh_server).delete(Keys(namespace).stream(stream))
    make_broker("node:worker:0", url=fresh_server.url).take(stream, 1, 20)
    # Then the planner has to issue everything again
    assert planner.incarnation() is None
    assert planner.open_shards() == {}

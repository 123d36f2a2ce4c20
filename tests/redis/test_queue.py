"""The queue in good weather: what is put in comes out once, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from broker.keys import BATCHES, GROUPS, RESULTS, TASKS, Keys
from broker.queue import Broker
from broker.server import PrivateServer

MakeBroker = Callable[..., Broker]
JOB = "job-1"


def test_hand_off_moves_an_entry_exactly_once(make_broker: MakeBroker) -> None:
    # Given a task in hand
    broker = make_broker()
    broker.issue(b"task", JOB, 0, charge=100)
    [entry] = broker.take(TASKS, 1, 50)
    assert (entry.payload, entry.deliveries) == (b"task", 1)
    # When it is handed off, twice
    outputs = [(RESULTS, b"account"), (BATCHES, b"batch 0"), (BATCHES, b"batch 1")]
    first = broker.hand_off(TASKS, entry.id, outputs, {"shards_packed": 1, "rows": 7}, JOB)
    second = broker.hand_off(TASKS, entry.id, outputs, {"shards_packed": 1, "rows": 7}, JOB)
    # Then its outputs are there once, in order, the counters were raised once, and it is gone
    assert (first, second) == (True, False)
    assert [e.payload for e in broker.take(BATCHES, 9, 50)] == [b"batch 0", b"batch 1"]
    assert [e.payload for e in broker.take(RESULTS, 9, 50)] == [b"account"]
    assert broker.progress(JOB) == {"shards_packed": 1, "rows": 7}
    assert broker.stats().streams[TASKS].length == 0
    assert broker.stats().streams[TASKS].pending == 0


def test_counters_add_up(make_broker: MakeBroker) -> None:
    # Given two tasks
    broker = make_broker()
    for shard in range(2):
        broker.issue(b"task", JOB, shard, charge=1)
    # When both are handed off
    for entry in broker.take(TASKS, 2, 50):
        broker.hand_off(TASKS, entry.id, [], {"rows_packed": 5}, JOB)
    # Then the counter has both
    assert broker.progress(JOB) == {"rows_packed": 10}


def test_take_takes_no_more_than_asked(make_broker: MakeBroker) -> None:
    # Given five tasks, two of them left over by a predecessor of the same name
    predecessor = make_broker("node:packer:0")
    for shard in range(5):
        predecessor.issue(b"task %d" % shard, JOB, shard, charge=1)
    assert len(predecessor.take(TASKS, 2, 50)) == 2
    # When its successor takes one at a time
    broker = make_broker("node:packer:0")
    counts = []
    payloads = []
    while entries := broker.take(TASKS, 1, 20):
        counts.append(broker.stats().streams[TASKS].pending)
        payloads += [entry.payload for entry in entries]
        broker.acknowledge(TASKS, [entry.id for entry in entries])
    # Then it has one more than the untaken leftovers pending, never more, and gets all five
    assert counts == [2, 1, 1, 1, 1]
    assert payloads == [b"task %d" % shard for shard in range(5)]


def test_two_consumers_share_a_stream(make_broker: MakeBroker) -> None:
    # Given four tasks
    one, two = make_broker("node:packer:0"), make_broker("node:packer:1")
    for shard in range(4):
        one.issue(b"task %d" % shard, JOB, shard, charge=1)
    # When two consumers take two each
    taken = one.take(TASKS, 2, 50) + two.take(TASKS, 2, 50)
    # Then each task was taken once
    assert sorted(entry.payload for entry in taken) == [b"task %d" % shard for shard in range(4)]
    assert one.take(TASKS, 1, 20) == []


def test_acknowledge_deletes(make_broker: MakeBroker, redis_server: PrivateServer) -> None:
    # Given more results than one script call takes
    broker = make_broker()
    broker.issue(b"task", JOB, 0, charge=1)
    [task] = broker.take(TASKS, 1, 50)
    outputs = [(RESULTS, b"result %d" % number) for number in range(1_200)]
    broker.hand_off(TASKS, task.id, outputs, None, JOB)
    entries = broker.take(RESULTS, 2_000, 50)
    # When all are acknowledged, and again
    ids = [entry.id for entry in entries]
    counts = broker.acknowledge(RESULTS, ids), broker.acknowledge(RESULTS, ids)
    # Then each counted once and the stream is empty
    assert counts == (1_200, 0)
    assert broker.stats().streams[RESULTS].length == 0


def test_group_made_late_delivers_what_was_there_before(
    namespace: str, redis_server: PrivateServer, raw: Callable[[PrivateServer], Any]
) -> None:
    # Given an entry in a stream without a group
    client = raw(redis_server)
    client.xadd(Keys(namespace).stream(TASKS), {"m": b"early"})
    # When a worker starts, which finds no group, and takes again
    broker = Broker(redis_server.url, namespace, "node:packer:0")
    assert broker.take(TASKS, 1, 20) == []
    # Then it gets the entry
    assert [entry.payload for entry in broker.take(TASKS, 1, 20)] == [b"early"]
    broker.close()


def test_foreign_entry_has_an_empty_payload(
    make_broker: MakeBroker, namespace: str, redis_server: PrivateServer, raw: Any
) -> None:
    # Given an entry that vnp did not write
    broker = make_broker()
    raw(redis_server).xadd(Keys(namespace).stream(TASKS), {"other": b"x"})
    # When it is taken
    [entry] = broker.take(TASKS, 1, 50)
    # Then nothing is made of it (the codec refuses an empty message)
    assert entry.payload == b""


# -- the planner's books ---------------------------------------------------------------------------


def test_open_shards_are_remembered_until_closed(make_broker: MakeBroker) -> None:
    # Given shards of two jobs, one job's id with a slash in it
    broker = make_broker()
    broker.issue(b"a", "job/1", 0, charge=10)
    broker.issue(b"b", "job/1", 1, charge=20)
    broker.issue(b"c", "job/2", 0, charge=30)
    assert broker.open_shards() == {("job/1", 0): 10, ("job/1", 1): 20, ("job/2", 0): 30}
    # When two are closed
    broker.close_shards([("job/1", 0), ("job/2", 0)])
    broker.close_shards([])
    # Then the third is left
    assert broker.open_shards() == {("job/1", 1): 20}


def test_a_shard_can_be_issued_again(make_broker: MakeBroker) -> None:
    # Given an open shard
    broker = make_broker()
    broker.issue(b"first", JOB, 0, charge=10)
    # When it is issued again, as an overdue one is
    broker.issue(b"second", JOB, 0, charge=11)
    # Then both tasks are there, and one open shard
    assert [entry.payload for entry in broker.take(TASKS, 9, 50)] == [b"first", b"second"]
    assert broker.open_shards() == {(JOB, 0): 11}


def test_incarnation_is_established_once(make_broker: MakeBroker) -> None:
    # Given a Redis without a mark
    one, two = make_broker("node:planner:0"), make_broker("other:planner:0")
    assert one.incarnation() is None
    # When two planners mark it
    marks = {one.establish_incarnation(), two.establish_incarnation()}
    # Then it has one mark
    assert marks == {one.incarnation()}


def test_dropped_job_publishes_nothing_more(make_broker: MakeBroker) -> None:
    # Given a task in hand whose job is cancelled
    broker = make_broker()
    broker.issue(b"task", JOB, 0, charge=1)
    [entry] = broker.take(TASKS, 1, 50)
    assert not broker.is_cancelled(JOB)
    broker.cancel(JOB)
    # When it is handed off all the same
    assert broker.hand_off(TASKS, entry.id, [(BATCHES, b"batch")], {"rows": 1}, JOB)
    # Then it is gone, and left nothing
    assert broker.is_cancelled(JOB)
    assert {name: s.length for name, s in broker.stats().streams.items()} == dict.fromkeys(
        GROUPS, 0
    )
    assert broker.progress(JOB) == {}


def test_issuing_revives_a_dropped_job(make_broker: MakeBroker) -> None:
    # Given a dropped job
    broker = make_broker()
    broker.drop_job(JOB)
    # When a shard of it is issued
    broker.issue(b"task", JOB, 0, charge=1)
    # Then its work is done again
    assert not broker.is_cancelled(JOB)


def test_dropped_marks_expire(
    make_broker: MakeBroker, namespace: str, redis_server: PrivateServer, raw: Any
) -> None:
    # When a job is dropped
    make_broker().drop_job(JOB)
    # Then its mark has a lifetime: the marks of all jobs ever must not pile up
    assert 0 < raw(redis_server).ttl(Keys(namespace).dropped(JOB)) <= 7 * 86_400


def test_activity_is_seen_when_somebody_gets_on(make_broker: MakeBroker) -> None:
    # Given a planner that has looked
    planner, packer = make_broker("node:planner:0"), make_broker("node:packer:0")
    planner.issue(b"task", JOB, 0, charge=1)
    before = planner.last_activity()
    assert planner.last_activity() == before
    # When a packer hands something off
    [entry] = packer.take(TASKS, 1, 50)
    packer.hand_off(TASKS, entry.id, [], None, JOB)
    # Then the planner sees it, once
    after = planner.last_activity()
    assert after > before
    assert planner.last_activity() == after


def test_workers_say_what_they_are(make_broker: MakeBroker) -> None:
    # When two workers register
    make_broker("node:gpu:0").register({"numerics": "ab12", "device": "cpu"})
    make_broker("node:gpu:1").register({"numerics": "ab12"})
    # Then everybody can read it
    workers = make_broker().workers()
    ages = [worker.pop("seen_s") for worker in workers.values()]
    assert workers == {
        "node:gpu:0": {"numerics": "ab12", "device": "cpu"},
        "node:gpu:1": {"numerics": "ab12"},
    }
    assert all(0 <= age < 300 for age in ages)


def test_words_of_dead_workers_are_forgotten(
    make_broker: MakeBroker, namespace: str, redis_server: PrivateServer, raw: Any
) -> None:
    # Given a worker that last said something in 1970
    raw(redis_server).hset(Keys(namespace).workers, "gone:gpu:0", "12 {}")
    # When another registers
    broker = make_broker("node:gpu:0")
    broker.register({})
    # Then the first is forgotten
    assert list(broker.workers()) == ["node:gpu:0"]


def test_stats_count_what_is_outstanding(make_broker: MakeBroker) -> None:
    # Given three tasks of which one is in hand
    broker = make_broker()
    for shard in range(3):
        broker.issue(b"task", JOB, shard, charge=1)
    broker.take(TASKS, 1, 50)
    # Then the gauges say so
    stats = broker.stats()
    assert (stats.streams[TASKS].length, stats.streams[TASKS].pending) == (3, 1)
    assert stats.memory_bytes > 0
    assert stats.max_memory_bytes == 0
    assert stats.server_version.count(".") == 2


def test_dead_consumers_are_forgotten_and_holders_are_not(
    make_broker: MakeBroker, namespace: str, redis_server: PrivateServer, raw: Any
) -> None:
    # Given consumers of nodes that are gone, one of which still holds an entry
    names = "gone-1:packer:0", "gone-2:packer:0"
    holder, idler = (make_broker(name) for name in names)
    for shard, broker in enumerate((holder, idler)):
        broker.issue(b"task", JOB, shard, charge=1)
        [entry] = broker.take(TASKS, 1, 50)
    idler.acknowledge(TASKS, [entry.id])
    key, group = Keys(namespace).stream(TASKS), GROUPS[TASKS]
    client = raw(redis_server)
    assert {c["name"].decode() for c in client.xinfo_consumers(key, group)} == set(names)
    # When those unseen for 0 ms are reaped
    assert holder._scripts.run("reap", [key], [group, 0]) == 1
    # Then the holder stays, with its entry
    [consumer] = client.xinfo_consumers(key, group)
    assert (consumer["name"].decode(), consumer["pending"]) == (names[0], 1)
    # And the forgotten one can come back
    broker.issue(b"task", JOB, 2, charge=1)
    assert len(idler.take(TASKS, 1, 50)) == 1


def test_living_consumers_are_not_reaped(
    make_broker: MakeBroker, namespace: str, redis_server: PrivateServer, raw: Any
) -> None:
    # Given a consumer that has just finished something
    broker = make_broker()
    broker.issue(b"task", JOB, 0, charge=1)
    [entry] = broker.take(TASKS, 1, 50)
    broker.acknowledge(TASKS, [entry.id])
    # When the planner looks after the groups
    broker.ensure_groups()
    # Then it is still known
    key = Keys(namespace).stream(TASKS)
    assert len(raw(redis_server).xinfo_consumers(key, GROUPS[TASKS])) == 1

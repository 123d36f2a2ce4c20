"""The protocol against a model: whatever two workers do, and however they die, every task becomes
exactly one result. The server is a real one."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker.keys import GROUPS, RESULTS, TASKS
from broker.queue import Broker, Entry
from broker.server import PrivateServer

JOB = "job"
WORKERS = ("node:packer:0", "node:packer:1")
who = st.sampled_from(WORKERS)
_namespaces = itertools.count()


class Protocol(RuleBasedStateMachine):
    """Two workers on one stream of tasks; `done` counts the hand-offs that said True."""

    server: PrivateServer

    def __init__(self) -> None:
        super().__init__()
        self.namespace = f"model-{next(_namespaces)}"
        self.raw = redis.Redis.from_url(self.server.url, protocol=2)
        self.brokers = {name: self.connect(name) for name in WORKERS}
        self.hands: dict[str, list[Entry]] = {name: [] for name in WORKERS}
        self.issued: list[bytes] = []
        self.lapsed: set[bytes] = set()  # entries whose lease was let expire
        self.done: list[bytes] = []

    def connect(self, name: str) -> Broker:
        broker = Broker(self.server.url, self.namespace, name, lease_s=3_600)
        broker.ensure_groups()
        return broker

    def key(self, stream: str) -> str:
        return self.brokers[WORKERS[0]].keys.stream(stream)

    # -- what may happen ---------------------------------------------------------------------------

    @rule()
    def issue(self) -> None:
        payload = b"task %d" % len(self.issued)
        self.brokers[WORKERS[0]].issue(payload, JOB, len(self.issued), 1)
        self.issued.append(payload)

    @rule(name=who, count=st.integers(1, 3))
    def take(self, name: str, count: int) -> None:
        broker = self.brokers[name]
        held = sum(map(len, self.hands.values()))
        if held == self.raw.xlen(self.key(TASKS)):  # a take that finds nothing costs 0.1 s
            return
        for entry in broker.take(TASKS, count, 1):
            if any(held.id == entry.id for held in self.hands[name]):
                # Its lease had ended unseen, another one took it and gave it back: it comes again.
                assert entry.id.encode() in self.lapsed
                self.hands[name] = [held for held in self.hands[name] if held.id != entry.id]
            broker.hold(TASKS, entry.id)
            self.hands[name].append(entry)

    @precondition(lambda self: any(self.hands.values()))
    @rule(name=who, data=st.data(), twice=st.booleans())
    def hand_off(self, name: str, data: st.DataObject, twice: bool) -> None:
        if not self.hands[name]:
            return
        entry = data.draw(st.sampled_from(self.hands[name]))
        self.hands[name].remove(entry)
        for _ in range(1 + twice):  # as a client does whose reply was lost
            outputs = [(RESULTS, entry.payload)]
            if self.brokers[name].hand_off(TASKS, entry.id, outputs, None, JOB):
                self.done.append(entry.payload)

    @rule(name=who)
    def give_back(self, name: str) -> None:
        self.brokers[name].give_back(TASKS, [entry.id for entry in self.hands[name]])
        self.hands[name] = []

    @rule(name=who)
    def extend(self, name: str) -> None:
        held = {entry.id for entry in self.hands[name]}
        ours = self.brokers[name].extend(TASKS, held)
        for other in WORKERS:
            if other != name:
                theirs = {entry.id for entry in self.hands[other]}
                assert not ours & self.brokers[other].extend(TASKS, theirs)

    @rule(name=who)
    def lose_a_reply(self, name: str) -> None:
        """What a worker does not know that it has comes again."""
        for entry in self.hands[name]:
            self.brokers[name].release(TASKS, [entry.id])
        self.hands[name] = []
        self.brokers[name].on_unavailable()

    @rule(name=who)
    def crash(self, name: str) -> None:
        self.brokers[name].close()
        self.hands[name] = []
        self.brokers[name] = self.connect(name)

    @rule(name=who)
    def let_leases_expire(self, name: str) -> None:
        """Time passes for what this worker holds; it does not know it yet."""
        pending = self.raw.xpending_range(self.key(TASKS), GROUPS[TASKS], "-", "+", 99, name)
        ids = [entry["message_id"] for entry in pending]
        self.lapsed.update(ids)
        if ids:
            idle = {"idle": 10**9, "justid": True}
            self.raw.xclaim(self.key(TASKS), GROUPS[TASKS], name, 0, ids, **idle)
        for broker in self.brokers.values():
            broker._streams[TASKS].claim_at = 0.0

    # -- what must hold ----------------------------------------------------------------------------

    @invariant()
    def nothing_lost_nothing_twice(self) -> None:
        waiting = [fields[b"m"] for _, fields in self.raw.xrange(self.key(TASKS))]
        results = [fields[b"m"] for _, fields in self.raw.xrange(self.key(RESULTS))]
        assert sorted(results) == sorted(self.done)
        assert sorted(waiting + results) == sorted(self.issued)

    def teardown(self) -> None:
        for name in WORKERS:
            self.let_leases_expire(name)
        survivor = self.brokers[WORKERS[1]]
        survivor.on_unavailable()
        self.hands[WORKERS[1]] = []
        survivor.release(TASKS, survivor.held(TASKS))
        for _ in range(2 * len(self.issued) + 2):
            if not self.raw.xlen(self.key(TASKS)):
                break
            survivor._streams[TASKS].claim_at = 0.0
            for entry in survivor.take(TASKS, 3, 1):
                assert survivor.hand_off(TASKS, entry.id, [(RESULTS, entry.payload)], None, JOB)
                self.done.append(entry.payload)
        assert sorted(self.done) == sorted(self.issued)
        for broker in self.brokers.values():
            broker.close()
        self.raw.close()


def test_protocol() -> None:
    with tempfile.TemporaryDirectory(prefix="vnp-") as folder:
        Protocol.server = PrivateServer(Path(folder) / "redis")
        Protocol.server.start()
        try:
            slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
            profile = settings(
                max_examples=120, stateful_step_count=40, deadline=None, suppress_health_check=slow
            )
            case = Protocol.TestCase
            case.settings = profile
            case("runTest").runTest()
        finally:
            Protocol.server.stop()

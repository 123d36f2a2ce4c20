"""Real processes, killed at random moments: nothing is lost, nothing is doubled, nothing hangs."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from broker.keys import GROUPS, NOBODY, RESULTS, TASKS, Keys
from broker.queue import Broker
from broker.server import PrivateServer

NUM_WORKERS = 3
NUM_TASKS = 3_000
NUM_KILLS = 12
LEASE_S = 0.5


def start(url: str, namespace: str, slot: int) -> subprocess.Popen[bytes]:
    consumer = f"node:packer:{slot}"
    words = [url, namespace, consumer, str(LEASE_S)]
    return subprocess.Popen([sys.executable, "-m", "tests.redis.chaos_worker", *words])


def test_killed_workers(
    make_broker: Callable[..., Broker], fresh_server: PrivateServer, namespace: str, raw: Any
) -> None:
    # Given workers on a long queue
    planner = make_broker("node:planner:0", url=fresh_server.url)
    payloads = [b"task %d" % number for number in range(NUM_TASKS)]
    for shard, payload in enumerate(payloads):
        planner.issue(payload, "job", shard, charge=1)
    workers = [start(fresh_server.url, namespace, slot) for slot in range(NUM_WORKERS)]
    # When they are killed again and again in the middle of it, each followed by one of its name
    chance = random.Random(1)
    kills = 0
    while planner.stats().streams[TASKS].length:
        time.sleep(chance.uniform(0.0, 0.1))
        started = planner.progress("job").get("done", 0) > 0
        if started and kills < NUM_KILLS:
            slot = chance.randrange(NUM_WORKERS)
            workers[slot].kill()
            workers[slot].wait()
            workers[slot] = start(fresh_server.url, namespace, slot)
            kills += 1
    for worker in workers:
        worker.kill()
        worker.wait()
    # Then every task became one result
    assert kills > 0
    results = planner.take(RESULTS, 2 * NUM_TASKS, 50)
    assert Counter(entry.payload for entry in results) == Counter(payloads)
    assert planner.progress("job") == {"done": NUM_TASKS}
    # And nothing is pending, in the name of no more consumers than there are slots
    assert planner.stats().streams[TASKS].pending == 0
    key = Keys(namespace).stream(TASKS)
    names = {c["name"].decode() for c in raw(fresh_server).xinfo_consumers(key, GROUPS[TASKS])}
    assert names <= {NOBODY, *(f"node:packer:{slot}" for slot in range(NUM_WORKERS))}

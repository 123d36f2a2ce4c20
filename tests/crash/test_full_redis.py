"""A Redis that is full all the time: the window holds, everything drains, nothing locks up."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import redis

from broker.queue import Broker
from broker.server import PrivateServer
from tests.crash.campaign import left_in, write_input
from tests.crash.harness import SHARD_BASES, Service
from workers.job_plan import places

WINDOW_SHARDS = 6
#: About two shards of this job.
ROOM_BYTES = 120_000


def test_job_through_a_redis_that_is_too_small(tmp_path: Path) -> None:
    # Given a Redis with room for a few shards, and a window of more than that
    fasta = tmp_path / "mixed.fa"
    write_input(fasta, 3_000, seed=1)
    with tempfile.TemporaryDirectory(prefix="vnp-") as folder:
        server = PrivateServer(Path(folder) / "redis")
        server.start()
        client = redis.Redis.from_url(server.url)
        broker = Broker(server.url, "vnp", "test:looking:0")
        service = Service(
            tmp_path, redis_url=server.url, shard_records=100, window_shards=WINDOW_SHARDS
        )
        try:
            service.start()
            # A server's own needs come with use: connections, compiled scripts.
            write_input(tmp_path / "first.fa", 300, seed=2)
            service.wait(service.submit(tmp_path / "first.fa", tmp_path / "first", "--embeddings"))
            used = int(client.info("memory")["used_memory"])  # type: ignore[index]
            client.config_set("maxmemory", used + ROOM_BYTES)
            # When a job goes through it
            job = service.submit(fasta, tmp_path / "out", "--embeddings")
            most_taken = 0.0
            while not (service.state / "jobs" / f"{job}.done.json").exists():
                charges = broker.open_shards().values()
                taken = sum(places(charge, SHARD_BASES) for charge in charges)
                most_taken = max(most_taken, taken)
                time.sleep(0.05)
            service.wait(job)
            left = left_in(client)
        finally:
            service.end()
            broker.close()
            client.close()
            server.stop()
    # Then it ended, though Redis had refused work, and never more than the window was open:
    # the last shard issued found some room, though perhaps less than it takes.
    assert "is full; raise its maxmemory" in (tmp_path / "service.log").read_text()
    assert 0 < most_taken < WINDOW_SHARDS + 1
    assert left == {}

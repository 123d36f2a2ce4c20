"""A planner whose jobs write to a store that is away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.server import PrivateServer
from tests.redis.nodes import Bench, steps
from tests.store.s3 import LOST, PASSED, Proxy

WINDOW = 2


@pytest.fixture
def bench(tmp_path: Path, redis_server: PrivateServer, namespace: str) -> Iterator[Bench]:
    bench = Bench(tmp_path, redis_server.url, namespace)
    yield bench
    bench.close()


def test_store_that_is_away_takes_no_place_in_the_window(
    bench: Bench, store: Proxy, out: str
) -> None:
    # Given a window full of shards of a job whose store is away, which no writer has told of
    planner = bench.planner(shard_bases=400, window_shards=WINDOW)  # a place for a shard
    bench.begun(planner, "away", out=out)
    steps(planner, lambda: len(planner.jobs["away"].open) == WINDOW)
    store.fate = lambda method, path: LOST
    # When a job comes that writes into a folder
    bench.begun(planner, "here")
    # Then it has the window, and the other one gets no more of it
    steps(planner, lambda: len(planner.jobs["here"].open) == WINDOW)
    assert len(planner.jobs["away"].open) == WINDOW
    assert planner.jobs["away"].overview()["state"] == "waiting"
    # And when the store is back, so is its job
    store.fate = lambda method, path: PASSED
    planner.jobs["here"].open.clear()
    steps(planner, lambda: planner.jobs["away"].overview()["state"] == "running", limit=1_000)

"""A row that the models cannot compute is found by halving, and its neighbours lose nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.codec import decode, encode
from broker.keys import BATCHES, RESULTS
from broker.queue import Broker
from broker.server import PrivateServer
from ops.engine import Engine, Launched
from ops.nouns import Batch, BatchResult, Dtype, Status
from tests.redis.gpu_fixtures import gpu_settings, protein_batch
from workers import gpu
from workers.gpu import MAX_ATTEMPTS, GpuWorker
from workers.loop import PREDECESSOR_SIGNAL
from workers.settings import WorkerSettings

ROWS = 13
POISON = 5
MakeBroker = Callable[..., Broker]


class PoisonedEngine(Engine):
    """Fails as a kernel would on one sequence, wherever it stands."""

    calls = 0

    def launch(self, batch: Batch) -> Launched:
        type(self).calls += 1
        if POISON in batch.digest:
            raise RuntimeError("an illegal memory access was encountered")
        return super().launch(batch)


@pytest.fixture
def settings(redis_server: PrivateServer, namespace: str, tmp_path: Path) -> WorkerSettings:
    return gpu_settings(tmp_path, redis_server.url, namespace)


@pytest.fixture
def broker(make_broker: MakeBroker) -> Broker:
    broker = make_broker("client")
    broker.ensure_groups()
    return broker


def make_batch() -> Batch:
    """Proteins of different lengths; a row's digest is its number."""
    return protein_batch("j", 0, range(ROWS), [b"MKLVRE" * (3 + row) for row in range(ROWS)])


def publish(broker: Broker, batch: Batch, raw: Callable[[PrivateServer], Any], server: Any) -> None:
    raw(server).xadd(broker.keys.stream(BATCHES), {"m": encode(batch)})


def work_until_done(settings: WorkerSettings, broker: Broker) -> int:
    """Fresh workers one after another, as the supervisor starts them; returns how many."""
    workers = 0
    while broker.stats().streams[BATCHES].length:
        workers += 1
        worker = GpuWorker(settings, "n:gpu:0")
        try:
            while broker.stats().streams[BATCHES].length:
                worker.step()
        except SystemExit:
            pass  # as after every failure: the supervisor starts the next one
        finally:
            worker.close()
    return workers


def results(broker: Broker) -> dict[int, tuple[BatchResult, int]]:
    """Row number -> (result, place in it); fails when a row comes twice."""
    rows: dict[int, tuple[BatchResult, int]] = {}
    while entries := broker.take(RESULTS, 10, 10):
        for entry in entries:
            result = decode(entry.payload)
            assert isinstance(result, BatchResult)
            for place, digest in enumerate(result.digest.tolist()):
                assert digest not in rows
                rows[digest] = (result, place)
            broker.acknowledge(RESULTS, [entry.id])
    return rows


def test_poison_is_isolated_and_its_neighbours_are_exact(
    settings: WorkerSettings,
    broker: Broker,
    redis_server: PrivateServer,
    raw: Callable[[PrivateServer], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a batch with one row that makes every computation fail
    PoisonedEngine.calls = 0
    monkeypatch.setattr(gpu, "Engine", PoisonedEngine)
    publish(broker, make_batch(), raw, redis_server)
    # When workers compute it
    workers = work_until_done(settings, broker)
    # Then it takes log2(13) halvings and three failures alone, each ending its process
    assert workers <= 4 + MAX_ATTEMPTS + 1
    assert PoisonedEngine.calls <= 2 * 4 + MAX_ATTEMPTS
    rows = results(broker)
    assert sorted(rows) == list(range(ROWS))
    condemned, place = rows.pop(POISON)
    assert condemned.status[place] == Status.FAILED
    assert condemned.dtype[place] == Dtype.FP32
    assert condemned.reasons == ("the models failed with RuntimeError",)
    # And the other rows have the bits of an undisturbed batch
    undisturbed = Engine(gpu.engine_spec(settings)).compute(make_batch()).esm2
    assert undisturbed is not None
    for number, (result, place) in rows.items():
        assert result.status[place] == Status.OK
        assert result.esm2 is not None
        assert np.array_equal(result.esm2[place], undisturbed[number])


@pytest.mark.parametrize(("died_of", "entries"), [("SIGSEGV", 2), ("", 1)])
def test_only_a_death_by_its_own_doing_halves_a_batch(
    died_of: str,
    entries: int,
    settings: WorkerSettings,
    broker: Broker,
    make_broker: MakeBroker,
    redis_server: PrivateServer,
    raw: Callable[[PrivateServer], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a worker that took a batch and died
    publish(broker, make_batch(), raw, redis_server)
    assert len(make_broker("n:gpu:0").take(BATCHES, 1, 100)) == 1
    # When its successor, told of the signal, takes its first step
    monkeypatch.setenv(PREDECESSOR_SIGNAL, died_of)
    worker = GpuWorker(settings, "n:gpu:0")
    worker.step()
    worker.close()
    # Then the batch was halved, or just computed
    stats = broker.stats().streams
    assert (stats[BATCHES].length, stats[RESULTS].length) == {2: (2, 0), 1: (0, 1)}[entries]


def test_with_two_in_hand_a_failure_says_nothing_about_either(
    settings: WorkerSettings,
    broker: Broker,
    redis_server: PrivateServer,
    raw: Callable[[PrivateServer], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a worker with a good batch in hand, and one behind it that fails
    monkeypatch.setattr(gpu, "Engine", PoisonedEngine)
    good, bad = gpu.take_rows(make_batch(), np.arange(POISON)), make_batch()
    for batch in (good, bad):
        publish(broker, batch, raw, redis_server)
    worker = GpuWorker(settings, "n:gpu:0")
    worker.depth = gpu.IN_HAND
    worker.step()
    assert len(worker.in_hand) == 1
    # When it takes the second one, then it ends, and neither is halved or lost
    with pytest.raises(SystemExit):
        worker.step()
    worker.lease.close()
    assert broker.stats().streams[BATCHES].length == 2
    # And its successor computes each with nothing else in hand: now the failure counts
    monkeypatch.setenv(PREDECESSOR_SIGNAL, "SIGSEGV")
    successor = GpuWorker(settings, "n:gpu:0")
    successor.depth = gpu.IN_HAND
    successor.step()
    assert broker.stats().streams[RESULTS].length == 1
    with pytest.raises(SystemExit):
        successor.step()
    successor.lease.close()
    assert broker.stats().streams[BATCHES].length == 2  # the halves


def test_what_is_in_hand_is_finished_before_the_end(
    settings: WorkerSettings,
    broker: Broker,
    redis_server: PrivateServer,
    raw: Callable[[PrivateServer], Any],
) -> None:
    # Given a worker with a batch under way
    publish(broker, make_batch(), raw, redis_server)
    worker = GpuWorker(settings, "n:gpu:0")
    worker.depth = gpu.IN_HAND
    worker.step()
    assert broker.stats().streams[RESULTS].length == 0
    # When it is told to stop, then it hands on what it has
    worker.close()
    assert broker.stats().streams[RESULTS].length == 1
    assert broker.stats().streams[BATCHES].length == 0

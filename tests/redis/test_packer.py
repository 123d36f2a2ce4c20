"""Deaths of packers: those that the task in hand has caused count against it, all others do not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from broker.codec import decode, encode
from broker.keys import BATCHES, GROUPS, RESULTS, TASKS
from broker.queue import Broker
from ops.cut import CutParams, cut_shards
from ops.modelstore import BUNDLED, DEFAULT_NAMES
from ops.nouns import Account, JobFailure, Ragged, ShardTask
from tests.crash.harness import until
from workers.loop import PREDECESSOR_SIGNAL, SLOT
from workers.packer import MAX_ATTEMPTS, Packer
from workers.settings import WorkerSettings

MakeBroker = Callable[..., Broker]
PACKER = "n:packer:0"


@pytest.fixture
def broker(make_broker: MakeBroker) -> Broker:
    """Of the planner, and of the writer."""
    return make_broker()


@pytest.fixture
def settings(
    tmp_path: Path, broker: Broker, redis_server: object, namespace: str
) -> WorkerSettings:
    return WorkerSettings(
        state_dir=str(tmp_path),
        shared_dir=str(tmp_path),
        redis_url=redis_server.url,  # type: ignore[attr-defined]
        identity={},
        node="n",
        namespace=namespace,
        dnabert=str(BUNDLED / DEFAULT_NAMES["dnabert"]),
    )


def shard_task(folder: Path, bases: int) -> ShardTask:
    """Chunks so short that nearly each has open frames."""
    letters = "".join(random.Random(1).choices("ACGT", k=bases))
    (folder / "x.fa").write_text(f">r\n{letters}\n")
    params = CutParams("job", "i", "virus", 30, False, True)
    return next(iter(cut_shards([folder / "x.fa"], params, {})))


@contextmanager
def process_of(settings: WorkerSettings) -> Iterator[subprocess.Popen[bytes]]:
    """A packer, which is killed in the end."""
    environment = {**os.environ, **settings.to_environment(), SLOT: "0"}
    process = subprocess.Popen([sys.executable, "-m", "workers.packer"], env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def deliveries(settings: WorkerSettings, broker: Broker) -> int:
    """Of the one task."""
    with redis.Redis.from_url(settings.redis_url) as client:
        key = broker.keys.stream(TASKS)
        pending: Any = client.xpending_range(key, GROUPS[TASKS], "-", "+", 1)
    return int(pending[0]["times_delivered"]) if pending else 0


def test_killed_packers_fail_no_job(
    tmp_path: Path, settings: WorkerSettings, broker: Broker
) -> None:
    # Given a task with which five packers were killed, one after another
    broker.issue(encode(shard_task(tmp_path, 1 << 20)), "job", 0, 1)
    for number in range(1, 6):
        with process_of(settings) as process:
            until(lambda n=number: deliveries(settings, broker) == n, "the task to be taken", 60)  # type: ignore[misc]
            process.send_signal(signal.SIGSTOP)
        assert broker.stats().streams[BATCHES].length == 0
    # When another one takes it; Then it is packed
    with process_of(settings):
        until(lambda: broker.stats().streams[RESULTS].length == 1, "the account", 60)
    [entry] = broker.take(RESULTS, 1, 50)
    assert isinstance(decode(entry.payload), Account)
    assert broker.stats().streams[BATCHES].length > 0


def test_task_that_crashes_its_packers_fails_its_job(
    tmp_path: Path,
    settings: WorkerSettings,
    broker: Broker,
    make_broker: MakeBroker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a task with which one packer was killed
    broker.issue(encode(shard_task(tmp_path, 1_000)), "job", 0, 1)
    assert make_broker(PACKER).take(TASKS, 1, 50)
    # When the following ones die of it
    monkeypatch.setenv(PREDECESSOR_SIGNAL, "SIGSEGV")
    for number in range(1, MAX_ATTEMPTS + 1):
        assert make_broker(PACKER).take(TASKS, 1, 50)
        packer = Packer(settings, PACKER)
        packer.step()
        packer.close()
        # Then each time but the last it is given another chance
        assert broker.stats().streams[RESULTS].length == number // MAX_ATTEMPTS
        assert broker.stats().streams[TASKS].length == 1 - number // MAX_ATTEMPTS
    [entry] = broker.take(RESULTS, 1, 50)
    failure = decode(entry.payload)
    assert isinstance(failure, JobFailure)
    assert failure.reason == "shard 0 ended 3 packers, the last one died of SIGSEGV; see the log"


def test_successor_of_a_crash_takes_new_work_as_ever(
    tmp_path: Path, settings: WorkerSettings, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a packer whose predecessor died with nothing in hand
    broker.issue(encode(shard_task(tmp_path, 1_000)), "job", 0, 1)
    monkeypatch.setenv(PREDECESSOR_SIGNAL, "SIGSEGV")
    packer = Packer(settings, PACKER)
    packer.step()
    packer.close()
    [entry] = broker.take(RESULTS, 1, 50)
    assert isinstance(decode(entry.payload), Account)


def test_task_that_fails_in_three_packers_fails_its_job(
    tmp_path: Path, settings: WorkerSettings, broker: Broker
) -> None:
    # Given a task that cannot be packed: its sequence is shorter than its chunks
    task = shard_task(tmp_path, 1_000)
    spoilt = replace(task, sequence=Ragged.from_bytes([b"ACGT"]))
    broker.issue(encode(spoilt), "job", 0, 1)
    # When packers try; Then each ends by it, and after the third the job has failed
    for _ in range(MAX_ATTEMPTS):
        packer = Packer(settings, PACKER)
        with pytest.raises(IndexError):
            packer.step()
        packer.close()
    [entry] = broker.take(RESULTS, 1, 50)
    failure = decode(entry.payload)
    assert isinstance(failure, JobFailure)
    assert failure.reason.startswith("shard 0 ended 3 packers, the last one failed with IndexError")
    assert broker.stats().streams[TASKS].length == 0


def test_shard_whose_account_fits_in_no_message_fails_its_job_at_once(
    tmp_path: Path, settings: WorkerSettings, broker: Broker
) -> None:
    # Given a task with as much text as a message holds, and more chunks than its account may tell
    task = shard_task(tmp_path, 1_000_000)
    name = Ragged(np.zeros(63 << 20, np.uint8), np.array([0, 63 << 20]))
    broker.issue(encode(replace(task, name=name)), "job", 0, 1)
    # When it is packed
    packer = Packer(settings, PACKER)
    packer.step()
    packer.close()
    # Then the packer lives, and the job has failed
    [entry] = broker.take(RESULTS, 1, 50)
    failure = decode(entry.payload)
    assert isinstance(failure, JobFailure)
    assert failure.reason.startswith("shard 0 cannot be sent: message of ")

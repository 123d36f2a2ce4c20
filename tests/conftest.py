"""Fixtures that several parts of the suite share: a private real Redis and brokers on it."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import structlog
from hypothesis import HealthCheck, settings

from broker.queue import Broker
from broker.server import PrivateServer, find_server
from ops.errors import UnavailableError

_numbers = itertools.count()

#: A busy machine makes any example slow.
settings.register_profile("vnp", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("vnp")


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """What a test has made of the logs, which belong to the whole process, ends with it."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@contextmanager
def running_server(max_memory_bytes: int = 0) -> Iterator[PrivateServer]:
    """A Redis of its own in a short temporary folder; skips at home, fails in CI, without one."""
    try:
        find_server()
    except UnavailableError as error:
        give_up = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        give_up(str(error))
    with tempfile.TemporaryDirectory(prefix="vnp-") as folder:
        server = PrivateServer(Path(folder) / "redis", max_memory_bytes)
        server.start()
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[PrivateServer]:
    """A Redis that tests share; each uses a namespace of its own and leaves the rest alone."""
    with running_server() as server:
        yield server


@pytest.fixture
def fresh_server() -> Iterator[PrivateServer]:
    """A Redis that the test may fill, flush or kill."""
    with running_server() as server:
        yield server


@pytest.fixture
def raw() -> Iterator[Callable[[PrivateServer], Any]]:
    """raw(server) is a plain client, to look at Redis from outside."""
    clients: list[Any] = []

    def connect(server: PrivateServer) -> Any:
        clients.append(redis.Redis.from_url(server.url, protocol=2))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


@pytest.fixture
def namespace() -> str:
    return f"test-{next(_numbers)}"


@pytest.fixture
def make_broker(request: pytest.FixtureRequest, namespace: str) -> Iterator[Callable[..., Broker]]:
    """make_broker(consumer, lease_s=..., url=...); the shared server unless a url is given."""
    brokers: list[Broker] = []

    def make(consumer: str = "node:test:0", lease_s: float = 30.0, url: str = "") -> Broker:
        url = url or request.getfixturevalue("redis_server").url
        broker = Broker(url, namespace, consumer, lease_s)
        broker.ensure_groups()
        brokers.append(broker)
        return broker

    yield make
    for broker in brokers:
        broker.close()

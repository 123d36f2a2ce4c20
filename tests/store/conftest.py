from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from ops import bucket, bucket_tail
from tests.store.s3 import BUCKET, Proxy, Server

_numbers = itertools.count()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def store(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The way to the server; what it is told to do to requests ends with the test."""
    proxy = Proxy(server)
    for name, value in proxy.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(bucket, "_TRIED", set())
    monkeypatch.setattr(bucket_tail, "_AWAY", {})
    yield proxy
    proxy.close()


@pytest.fixture
def out() -> str:
    """A prefix that nobody has used."""
    return f"s3://{BUCKET}/some/where-{next(_numbers)}"

"""Writers of several nodes around one Redis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.server import PrivateServer
from tests.redis.nodes import Writers


@pytest.fixture
def writers(tmp_path: Path, redis_server: PrivateServer, namespace: str) -> Iterator[Writers]:
    writers = Writers(tmp_path, redis_server.url, namespace)
    yield writers
    writers.close()

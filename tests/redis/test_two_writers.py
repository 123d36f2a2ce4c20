"""Writers of two nodes on a real Redis and one shared folder: the role changes hands."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.server import PrivateServer
from ops.jobs import RUNNING
from ops.output import Output
from tests.redis.nodes import Nodes, steps
from tests.unit.output_fixtures import PLAN, make_spec
from workers import writer as writer_module
from workers.writer import Writer

LEASE_S = 1.0


class Bench(Nodes):
    """A shared folder, and writers of several nodes on one Redis."""

    def writer(self, node: str) -> Writer:
        return self.begin("writer", Writer, node, lease_s=LEASE_S)

    def plan(self, job: str) -> None:
        self.store.create(make_spec(self.folder / f"{job}.out", id=job))
        self.store.set_plan(job, PLAN)


@pytest.fixture
def bench(tmp_path: Path, redis_server: PrivateServer, namespace: str) -> Iterator[Bench]:
    bench = Bench(tmp_path, redis_server.url, namespace)
    yield bench
    bench.close()


def test_role_that_is_lost_during_the_first_opening(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a writer that has the folder's lock, and stands still before it could say so
    monkeypatch.setattr(writer_module, "RETRY_S", 0.1)
    has_it, goes_on = threading.Event(), threading.Event()
    plain = Output.open

    def slowly(*words: object, **options: object) -> Output:
        output = plain(*words, **options)  # type: ignore[arg-type]
        if not has_it.is_set():
            has_it.set()
            goes_on.wait(60)
        return output

    monkeypatch.setattr(Output, "open", slowly)
    bench.plan("job1")
    first, second = bench.writer("a"), bench.writer("b")
    steps(first, has_it.is_set)
    # When another one takes the role over, then it does not give the job up
    steps(second, lambda: "job1" in second.jobs and bool(second.jobs["job1"].retry_at))
    assert bench.store.outcome("job1") is None
    # And has it when the first one has let go
    goes_on.set()
    out = str(bench.folder / "job1.out")
    steps(first, lambda: first.jobs == {} and not first.leaving.holds(out))
    steps(second, lambda: bench.store.state("job1") == RUNNING)
    assert second.jobs["job1"].output is not None

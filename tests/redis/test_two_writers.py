"""Writers of two nodes on a real Redis and one shared folder: the role changes hands."""

from __future__ import annotations

import threading

import pytest

from ops.jobs import RUNNING
from ops.output import Output
from tests.redis.nodes import Writers, steps
from workers import writer as writer_module


def test_role_that_is_lost_during_the_first_opening(
    writers: Writers, monkeypatch: pytest.MonkeyPatch
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
    writers.plan("job1")
    first, second = writers.writer("a"), writers.writer("b")
    steps(first, has_it.is_set)
    # When another one takes the role over, then it does not give the job up
    steps(second, lambda: "job1" in second.jobs and bool(second.jobs["job1"].retry_at))
    assert writers.store.outcome("job1") is None
    # And has it when the first one has let go
    goes_on.set()
    out = str(writers.folder / "job1.out")
    steps(first, lambda: first.jobs == {} and not first.leaving.holds(out))
    steps(second, lambda: writers.store.state("job1") == RUNNING)
    assert second.jobs["job1"].output is not None

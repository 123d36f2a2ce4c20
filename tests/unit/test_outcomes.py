"""How a job ended is said once, in its files and in the log."""

from __future__ import annotations

from pathlib import Path

import pytest

from ops.jobs import CANCELLED, FINISHED, JobStore, Outcome
from tests.unit.output_fixtures import make_spec
from workers.outcomes import Outcomes


def test_end_that_came_too_late_is_not_logged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given a job that was cancelled while its last file was written, one whose end the disk took,
    # only to refuse the fsync, and another
    store, ours = JobStore(tmp_path), Outcome(FINISHED, 0, "as a test wants it")
    jobs = ("cancelled", "refused", "sound")
    for job in jobs:
        store.create(make_spec(tmp_path / job, id=job))
    store.set_outcome("cancelled", Outcome(CANCELLED, 130, "cancelled on request"))
    store.set_outcome("refused", ours)
    # When the writer says that they are finished; Then the log says so of the others only
    outcomes = Outcomes(store)
    for job in jobs:
        outcomes.say(job, ours)
    told = [line for line in capsys.readouterr().out.splitlines() if "job.finished" in line]
    assert [word for line in told for word in jobs if f"job.id={word}" in line] == [
        "refused",
        "sound",
    ]
    assert outcomes.unsaid == {}
    outcome = store.outcome("cancelled")
    assert outcome is not None
    assert outcome.state == CANCELLED

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
    # Given a job that was cancelled while its last file was written, and another
    store = JobStore(tmp_path)
    for job in ("cancelled", "sound"):
        store.create(make_spec(tmp_path / job, id=job))
    store.set_outcome("cancelled", Outcome(CANCELLED, 130, "cancelled on request"))
    # When the writer says that they are finished; Then the log says so of the other only
    outcomes = Outcomes(store)
    for job in ("cancelled", "sound"):
        outcomes.say(job, Outcome(FINISHED, 0, "as a test wants it"))
    told = [line for line in capsys.readouterr().out.splitlines() if "job.finished" in line]
    assert len(told) == 1
    assert "sound" in told[0]
    assert outcomes.unsaid == {}
    outcome = store.outcome("cancelled")
    assert outcome is not None
    assert outcome.state == CANCELLED

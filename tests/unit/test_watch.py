"""`vnp status --watch` ends with the job, and has told its end."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from daemon import show
from daemon.cli import vnp
from daemon.config import Config
from ops.jobs import FINISHED, JobStore, Outcome
from tests.unit.output_fixtures import make_spec


def test_job_that_ends_just_after_a_look_is_told_as_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a job that ends just after it was shown
    config = Config(state_dir=tmp_path)
    store = JobStore(config.jobs_dir)
    store.create(make_spec(tmp_path / "out", id="job1"))
    monkeypatch.setattr(show, "WATCH_EVERY_S", 0.0)
    plain = show.status

    def show_and_end(config: Config, job: str | None, as_json: bool) -> None:
        plain(config, job, as_json)
        store.set_outcome("job1", Outcome(FINISHED, 0, "as a test wants it"))

    monkeypatch.setattr(show, "status", show_and_end)
    # When it is watched; Then the last that is shown is its end
    words = ["status", "job1", "--watch", "--state-dir", str(tmp_path)]
    done = CliRunner().invoke(vnp, words, catch_exceptions=False)
    assert done.exit_code == 0
    assert done.output.count("queued") == 1
    assert done.output.count("finished") == 1

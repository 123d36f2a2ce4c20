"""The events of jobs that somebody waits for, from a log that is behind the job files."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from daemon.config import Config
from daemon.events import told_of_jobs
from ops.jobs import FINISHED, JobStore, Outcome
from tests.unit.output_fixtures import make_spec


def line(event: str, job: str) -> str:
    return f'{{"log.level": "info", "event.name": "{event}", "message": "so", "job.id": "{job}"}}\n'


@pytest.fixture
def config(tmp_path: Path) -> Config:
    config = Config(state_dir=tmp_path / "state", log_file=tmp_path / "vnp.log")
    store = JobStore(config.jobs_dir)
    for job in ("job1", "job2"):
        store.create(make_spec(tmp_path / job, id=job))
    (tmp_path / "vnp.log").write_text(line("job.planned", "job1"))
    return config


def end(config: Config, job: str) -> None:
    JobStore(config.jobs_dir).set_outcome(job, Outcome(FINISHED, 0, "as a test wants it"))


def test_end_that_is_logged_late_is_told(config: Config) -> None:
    # Given a job whose end is in its files a second before it is in the log
    assert config.log_path is not None
    told: list[str] = []

    def log_late() -> None:
        time.sleep(1)
        with config.log_path.open("a") as log:  # type: ignore[union-attr]
            log.write(line("job.finished", "job2") + line("job.finished", "job1"))

    late = threading.Thread(target=log_late)
    # When somebody has waited for it
    with told_of_jobs(config, ["job1"], told.append):
        end(config, "job1")
        late.start()
    late.join()
    # Then they were told of it all, and of nobody else's
    assert told == ["info: job.planned: so", "info: job.finished: so"]


def test_who_comes_late_or_leaves_does_not_wait(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a job that ended long ago, its last lines in a log that is gone, and one that goes on
    monkeypatch.setattr("daemon.events.LATE_S", 600.0)
    end(config, "job1")
    told: list[str] = []
    # When somebody waits for the one, and leaves the other
    with told_of_jobs(config, ["job1"], told.append):
        pass
    with pytest.raises(KeyboardInterrupt), told_of_jobs(config, ["job2"], told.append):
        raise KeyboardInterrupt
    # Then they are told what there is, and that is that
    assert told == ["info: job.planned: so"]

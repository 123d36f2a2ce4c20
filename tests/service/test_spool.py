"""Copies that a client makes for the service go with the job, also when it comes to none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.client import JobRequest, submit
from daemon.config import Config
from ops.errors import NoInputError, OutputError
from tests.crash.harness import until

GENOME = Path(__file__).parents[1] / "data" / "fixtures" / "virus_phiX174.fa"


@pytest.fixture(autouse=True)
def _same_umask() -> Iterator[None]:
    """A submit to another user's service sets it, for a process that ends then."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def private_copy(folder: Path) -> Path:
    """A genome that only its owner may read."""
    path = folder / "mine.fa"
    path.write_bytes(GENOME.read_bytes())
    path.chmod(0o600)
    return path


def spooled(config: Config) -> list[Path]:
    return list((config.jobs_dir / "spool").glob("*"))


def test_nothing_is_copied_for_a_job_that_cannot_be(tmp_path: Path) -> None:
    # Given an input that would be copied, and one that is missing
    config = Config(state_dir=tmp_path / "state")
    request = JobRequest(inputs=(str(private_copy(tmp_path)), str(tmp_path / "missing.fa")))
    # When they are submitted; Then nothing is left behind
    with pytest.raises(NoInputError, match=r"missing\.fa cannot be read"):
        submit(config, request, to_other_user=True)
    assert not (config.jobs_dir / "spool").exists()


def test_no_copy_is_left_of_a_job_that_is_not_accepted(tmp_path: Path) -> None:
    # Given a state folder that takes copies and no jobs
    config = Config(state_dir=tmp_path / "state")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "jobs").touch()
    # When a job is submitted; Then its copy goes with it
    request = JobRequest(inputs=(str(private_copy(tmp_path)),))
    with pytest.raises(OutputError, match="jobs cannot be written"):
        submit(config, request, to_other_user=True)
    assert spooled(config) == []


def test_no_copy_is_left_of_an_interrupted_submit(tmp_path: Path) -> None:
    # Given a client that copies standard input, which does not end
    config = Config(state_dir=tmp_path / "state")
    script = (
        "from pathlib import Path; from daemon.client import JobRequest, submit;"
        "from daemon.config import Config;"
        f"submit(Config(state_dir=Path({str(config.state_dir)!r})), JobRequest(inputs=('-',)))"
    )
    client = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, cwd=tmp_path)
    assert client.stdin is not None
    with client.stdin:
        client.stdin.write(GENOME.read_bytes())
        client.stdin.flush()
        until(lambda: spooled(config) != [], "the copy")
        # When it is interrupted; Then the half copy is gone
        client.send_signal(signal.SIGINT)
        client.wait(60)
    assert spooled(config) == []

"""A job is computed with the models that it asks for, or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.client import JobRequest, submit
from daemon.config import Config
from ops.identity import ALGORITHM_VERSION
from tests.crash.harness import Service, until


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path)
    yield service
    if service.process is not None and service.process.poll() is None:
        service.stop()


def outcome(service: Service, job: str) -> dict[str, object]:
    path = service.state / "jobs" / f"{job}.done.json"
    until(path.exists, "the job's end")
    done: dict[str, object] = json.loads(path.read_text())
    return done


def test_clients_take_over_what_the_service_was_started_with(service: Service, fasta: Path) -> None:
    # Given a service whose dtype was given to it alone
    environment = service.environment
    service.environment = {**environment, "VNP_DTYPE": "bf16"}
    service.start()
    service.environment = environment
    # When a client submits that knows nothing of it
    out = service.folder / "out"
    service.wait(service.submit(fasta, out))
    # Then the job was computed in it
    assert json.loads((out / "run.json").read_text())["identity"]["dtype"] == "bf16"
    # And a client that asks for another dtype is refused, with both named
    service.environment = {**environment, "VNP_DTYPE": "fp32"}
    done = service.vnp("submit", fasta, "--out", service.folder / "other")
    assert done.returncode == 73
    assert "in fp32, but the service" in done.stderr
    assert "in bf16" in done.stderr


def test_an_unfinished_job_of_other_models_says_what_to_do(service: Service, fasta: Path) -> None:
    # Given a job that was accepted, and a service that is started again with another dtype
    service.start()
    service.kill()
    service.environment = {**service.environment, "VNP_DTYPE": "fp32"}
    config = Config(state_dir=service.state)
    job = submit(config, JobRequest(inputs=(str(fasta),), out=str(service.folder / "out")))
    service.environment = {**service.environment, "VNP_DTYPE": "bf16"}
    service.start()
    # Then the job is not computed with what it did not ask for
    done = outcome(service, job)
    assert (done["state"], done["exit_code"]) == ("failed", 73)
    assert f"in fp32 (algorithm {ALGORITHM_VERSION}), but this service has" in str(done["message"])
    assert not (service.folder / "out").exists()


def test_standard_input_is_kept_only_as_long_as_the_job(service: Service, fasta: Path) -> None:
    # Given a service and a job from standard input
    service.start()
    spool = service.state / "spool"
    done = subprocess.run(
        [sys.executable, "-m", "daemon.cli", "submit", "-", "--out", service.folder / "out"],
        input=fasta.read_bytes(),
        env=service.environment,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    job = done.stdout.decode().strip()
    # When it has ended
    service.wait(job)
    # Then what was kept of it is gone, and the result is there
    until(lambda: list(spool.iterdir()) == [], "an empty spool", 20)
    assert (service.folder / "out" / "sequences.tsv").exists()

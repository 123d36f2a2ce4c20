"""What the pods run, without a cluster: vnpd with the settings, commands, users and URLs of the
manifests, each with a folder of its own, on the Redis of the manifests."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemon.config import Config
from tests.crash.harness import until
from tests.deploy.test_shared_redis import BASE, server, url
from tests.deploy.tools import FIXTURES, with_programs

__all__ = ["server", "url"]  # fixtures
ROLES = ("planner", "planner", "writer", "writer", "packer", "gpu")


def settings(pod: Path, shared: Path) -> str:
    """vnp.toml with the folders of this test, for a machine without a GPU."""
    text = (BASE / "vnp.toml").read_text().replace("/shared/vnp", str(shared))
    text = text.replace("/var/lib/vnp", str(pod)).replace("cuda:0", "cpu").replace("bf16", "fp32")
    lines = [line for line in text.splitlines() if not line.startswith("listen")]
    return "\n".join(
        line for line in lines if line.partition(" ")[0] in (*Config.model_fields, "#")
    )


@pytest.fixture
def pods(
    tmp_path: Path, url: Callable[[str], str]
) -> Iterator[list[tuple[Path, dict[str, str], subprocess.Popen[bytes]]]]:
    """(its folder, its environment, vnpd) of each."""
    started = []
    for number, role in enumerate(ROLES):
        pod = tmp_path / f"vnp-{role}-{number}"
        pod.mkdir()
        (pod / "vnp.toml").write_text(settings(pod, tmp_path / "shared"))
        environment = {
            **with_programs(tmp_path),
            "VNP_CONFIG": str(pod / "vnp.toml"),
            "VNP_REDIS_URL": url(role),
            "VNP_NODE": pod.name,
        }
        command = [tmp_path / "bin" / "vnpd", "--roles", role]
        with (pod / "log").open("wb") as log:
            started.append(
                (pod, environment, subprocess.Popen(command, env=environment, stderr=log))
            )
    yield started
    for _, _, vnpd in started:
        vnpd.kill()
        vnpd.wait()


def test_a_job_through_the_pods(
    tmp_path: Path, pods: list[tuple[Path, dict[str, str], subprocess.Popen[bytes]]]
) -> None:
    # Given two planners and two writers, a packer and a GPU worker, all ready
    inputs = tmp_path / "shared" / "inputs"
    inputs.mkdir(parents=True)
    (inputs / "phage.fa").write_bytes((FIXTURES / "virus_phiX174.fa").read_bytes())

    def is_ready(pod: Path) -> bool:
        return '"service.ready"' in (pod / "log").read_text()

    until(lambda: all(is_ready(pod) or vnpd.poll() for pod, _, vnpd in pods), "the pods")
    assert all(is_ready(pod) for pod, _, _ in pods), said(pods)
    # When a job is submitted in a planner's pod, as by kubectl exec
    out = tmp_path / "shared" / "results"
    submit = [tmp_path / "bin" / "vnp-submit", inputs / "phage.fa", "--out", out, "--wait"]
    done = subprocess.run(submit, env=pods[0][1], capture_output=True, text=True, timeout=300)
    # Then it has been computed
    assert done.returncode == 0, done.stderr + said(pods)
    assert "\tvirus\t" in (out / "sequences.tsv").read_text()
    # And SIGTERM ends every pod in order
    for _, _, vnpd in pods:
        vnpd.terminate()
    assert [vnpd.wait(60) for _, _, vnpd in pods] == [0] * len(pods), said(pods)
    assert "refuses this user" not in said(pods)


def said(pods: list[tuple[Path, dict[str, str], subprocess.Popen[bytes]]]) -> str:
    """Warnings and errors, and what is no log line."""
    lines = [line for pod, _, _ in pods for line in (pod / "log").read_text().splitlines()]
    return "\n".join(line for line in lines if not is_fine(line))


def is_fine(line: str) -> bool:
    return line.startswith("{") and json.loads(line)["log.level"] in ("debug", "info")

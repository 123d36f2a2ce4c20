"""The Slurm scripts, run by bash with the variables and commands that Slurm would give them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.keys import Keys
from broker.server import PrivateServer
from tests.crash.harness import until
from tests.deploy.tools import DEPLOY, FIXTURES, fake, shellcheck, with_programs

SLURM = DEPLOY / "slurm"
SCRIPTS = sorted(SLURM.glob("*.sbatch"))
STATE = 'case $1 in show) echo "JobId=7 JobState={} x" ;; *) echo "$*" >>"$ASKED" ;; esac'


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A node's own disk; its path is short, since a socket's path has to be."""
    with tempfile.TemporaryDirectory(prefix="vnp-") as folder:
        yield Path(folder)


@pytest.fixture
def environment(tmp_path: Path, scratch: Path) -> dict[str, str]:
    """A node of a cluster: our programs, small shards in turn, a scontrol that notes."""
    fake(tmp_path / "bin" / "scontrol", STATE.format("RUNNING"))
    settings = {"DEVICE": "cpu", "SHARD_BASES": 4_000, "WINDOW_SHARDS": 1, "PACKERS": 1}
    return {
        **with_programs(tmp_path),
        **{f"VNP_{name}": str(value) for name, value in settings.items()},
        "ASKED": str(tmp_path / "asked"),
        "SLURM_JOB_ID": "7",
        "SLURM_TMPDIR": str(scratch),
    }


def start(
    environment: dict[str, str], folder: Path, task: int, *options: str
) -> subprocess.Popen[str]:
    """Task number `task` of the array over folder/inputs.txt."""
    script = ["bash", str(SLURM / "vnp-array.sbatch"), "inputs.txt", "results", *options]
    variables = {**environment, "SLURM_ARRAY_TASK_ID": str(task)}
    return subprocess.Popen(
        script,
        cwd=folder,
        env=variables,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    said, _ = process.communicate(timeout=300)
    return process.returncode, said


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(script: Path) -> None:
    shellcheck(script)


def test_an_array_that_is_stopped_in_the_middle_goes_on(
    tmp_path: Path, scratch: Path, environment: dict[str, str]
) -> None:
    # Given an array over two files
    names = ("virus_phiX174.fa", "virus_lambda.fa")
    (tmp_path / "inputs.txt").write_text("".join(f"{FIXTURES / name}\n" for name in names))
    # When the first task runs
    code, said = ended(start(environment, tmp_path, 1))
    # Then its results are in a folder of its name, and nothing is left on the node's disk
    assert code == 0, said
    assert (tmp_path / "results" / "virus_phiX174.vnp" / "sequences.tsv").exists()
    assert list(scratch.iterdir()) == []
    # When the shell of the second gets SIGTERM after some shards, as at its time limit
    out = tmp_path / "results" / "virus_lambda.vnp"
    task = start(environment, tmp_path, 2)
    until(lambda: len(list(out.glob("shards/*.h5"))) > 1, "the first shards")
    task.send_signal(signal.SIGTERM)
    code, said = ended(task)
    # Then it ends as stopped, asks to be requeued, and has no table yet
    assert code == 128 + signal.SIGTERM, said
    assert (tmp_path / "asked").read_text() == "requeue 7\n"
    assert not (out / "sequences.tsv").exists()
    committed = len(list(out.glob("shards/*.h5")))
    # When Slurm runs it again
    code, said = ended(start({**environment, "SLURM_RESTART_COUNT": "1"}, tmp_path, 2))
    # Then it has gone on from there
    assert code == 0, said
    run = json.loads((out / "run.json").read_text())
    assert run["interruptions_survived"] == 1
    assert 0 < committed < run["shards"]
    assert (out / "sequences.tsv").exists()
    assert list(scratch.iterdir()) == []


def test_a_cancelled_task_is_not_requeued(tmp_path: Path, environment: dict[str, str]) -> None:
    # Given a task that ends as if by SIGTERM, because somebody has cancelled it
    fake(tmp_path / "bin" / "scontrol", STATE.format("CANCELLED"))
    fake(tmp_path / "bin" / "vnp", "exit 143")
    (tmp_path / "inputs.txt").write_text("x.fa\n")
    assert ended(start(environment, tmp_path, 1))[0] == 143
    assert not (tmp_path / "asked").exists()


@pytest.mark.parametrize(("code", "task"), [(65, 1), (66, 2)])
def test_other_ends_are_passed_on(
    tmp_path: Path, environment: dict[str, str], code: int, task: int
) -> None:
    # Given an input that vnp refuses (65), or a task beyond the list (66)
    fake(tmp_path / "bin" / "vnp", 'echo "$@"; exit 65')
    (tmp_path / "inputs.txt").write_text("/data/a b.fa.gz\n")
    got, said = ended(start(environment, tmp_path, task, "--compat"))
    assert got == code
    assert not (tmp_path / "asked").exists()
    if task == 1:
        assert said == "run /data/a b.fa.gz --out results/a b.vnp --quiet --compat\n"


def test_workers_of_a_shared_redis(
    tmp_path: Path,
    scratch: Path,
    environment: dict[str, str],
    redis_server: PrivateServer,
    namespace: str,
    raw: Any,
) -> None:
    # Given srun, which starts the command with the script's environment, and a Redis
    fake(tmp_path / "bin" / "srun", 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"')
    (tmp_path / "redis-url").write_text(redis_server.url + "\n")
    (tmp_path / "vnp.toml").write_text(f'namespace = "{namespace}"\n')
    variables = {**environment, "REDIS_URL_FILE": str(tmp_path / "redis-url")}
    command = ["bash", str(SLURM / "vnp-workers.sbatch"), str(tmp_path / "vnp.toml")]
    # When a node's part of the job starts
    with (tmp_path / "log").open("wb") as log:
        vnpd = subprocess.Popen(command, env=variables, stderr=log)
    log_text = (tmp_path / "log").read_text
    until(
        lambda: '"service.ready"' in log_text() or vnpd.poll() is not None,
        "the workers to be ready",
    )
    assert vnpd.poll() is None, log_text()
    # Then its state is on the node's disk; and at SIGTERM it ends in order
    assert [path.name for path in scratch.iterdir()] == ["vnp-7"]
    # And another job on the same machine is another node
    assert raw(redis_server).exists(Keys(namespace).node(f"{socket.gethostname()}-7"))
    os.kill(vnpd.pid, signal.SIGTERM)
    assert vnpd.wait(60) == 0, log_text()

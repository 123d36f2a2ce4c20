"""A real service in a temporary folder, and the means to hurt it while a job is running."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import psutil
import redis

#: Small shards and short leases, so that a job of seconds has many of both.
SHARD_BASES = 20_000
LEASE_S = 2.0
LIMIT_S = 300.0

T = TypeVar("T")


def until(condition: Callable[[], T], what: str, limit_s: float = LIMIT_S) -> T:
    """Waits for a condition and returns what it gave; a test that waits for ever says for what."""
    deadline = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {limit_s} s for {what}"
        time.sleep(0.02)
    return found


class Service:
    """`vnpd` with all roles on a state folder of its own."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.environment = {
            **os.environ,
            "VNP_STATE_DIR": str(self.state),
            "VNP_SHARD_BASES": str(SHARD_BASES),
            "VNP_LEASE_S": str(LEASE_S),
            "VNP_PACKERS": "2",
            **{f"VNP_{name.upper()}": str(value) for name, value in settings.items()},
        }
        self.process: subprocess.Popen[bytes] | None = None

    # -- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        with (self.folder / "service.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "daemon.vnpd"], env=self.environment, stderr=log
            )
        until(lambda: bool(self.facts.get("ready")), "the service to be ready")

    @property
    def facts(self) -> dict[str, object]:
        """STATE/service.json, as the running service wrote it."""
        try:
            facts: dict[str, object] = json.loads((self.state / "service.json").read_text())
        except FileNotFoundError:
            return {}
        return facts if self.process and facts.get("pid") == self.process.pid else {}

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(60)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    # -- use -------------------------------------------------------------------------------------

    def end(self) -> None:
        """Stops it, if it runs."""
        if self.process is not None and self.process.poll() is None:
            self.stop()

    def vnp(
        self,
        *arguments: object,
        limit_s: float = LIMIT_S,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "daemon.cli", *map(str, arguments)],
            env={**self.environment, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=limit_s,
        )

    def submit(self, fasta: Path, out: Path, *options: object) -> str:
        done = self.vnp("submit", fasta, "--out", out, *options)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def wait(self, job: str, limit_s: float = LIMIT_S) -> None:
        done = self.vnp("wait", job, limit_s=limit_s)
        assert done.returncode == 0, done.stderr + (self.folder / "service.log").read_text()[-3000:]

    def redis(self) -> redis.Redis:
        return redis.Redis.from_url(str(self.facts["redis_url"]))

    def children(self) -> list[psutil.Process]:
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    def kill_role(self, role: str, sig: int = signal.SIGKILL) -> None:
        """Sends a signal to every process of one role ("redis" is one too)."""
        until(lambda: self.processes(role) != [], f"a process of role {role}")
        for victim in self.processes(role):
            with suppress(psutil.NoSuchProcess):
                victim.send_signal(sig)

    def processes(self, role: str) -> list[psutil.Process]:
        mark = "-server" if role == "redis" else f"workers.{role}"
        return [child for child in self.children() if mark in " ".join(command_line(child))]


def undisturbed_run(folder: Path, fasta: Path, *options: object) -> Path:
    """The folder of a job that one service does and nobody disturbs."""
    service = Service(folder)
    service.start()
    service.wait(service.submit(fasta, folder / "out", *options))
    assert service.stop() == 0
    return folder / "out"


def command_line(process: psutil.Process) -> list[str]:
    """Words of a process' command; none of one that has just ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def shards_done(out: Path) -> int:
    """Shards that the manifest names so far."""
    try:
        return (out / "manifest.jsonl").read_text().count('"kind":"shard"')
    except FileNotFoundError:
        return 0


def digests(out: Path) -> dict[str, str]:
    """sha256 of every file whose bytes are promised: tables and shards."""
    names = [
        *sorted(out.glob("shards/*")),
        *sorted(out.glob("*.tsv")),
        out / "virus.fasta.gz",
        *sorted(out.glob("compat/*")),
    ]
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in names
    }

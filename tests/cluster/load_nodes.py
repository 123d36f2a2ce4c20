"""Nodes of one service on this machine: a `vnpd` each, around one Redis and one folder of jobs.

They share a network with everything else here, so that no rights are needed; `network` has hosts.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from broker.keys import Keys
from broker.server import PrivateServer
from daemon.config import Config
from tests.crash.harness import Service, until

NAMESPACE = "load"
#: A gpu worker with an empty kernel cache takes some 20 s.
READY_LIMIT_S = 120.0
#: Instead of a device: a node without a gpu worker.
NO_GPU = "none"


class LoadNode(Service):
    """`vnpd` that is started without waiting for it."""

    def begin(self) -> None:
        with (self.folder / "service.log").open("ab") as log:
            command = [sys.executable, "-m", "daemon.vnpd"]
            self.process = subprocess.Popen(command, env=self.environment, stderr=log)

    def is_ready(self) -> bool:
        return bool(self.facts.get("ready"))

    @property
    def name(self) -> str:
        return self.folder.name


class Nodes:
    """One node for each device, n1, n2, ...; shards and leases are those of the defaults."""

    def __init__(
        self, folder: Path, devices: Sequence[str], packers: int, models: dict[str, str]
    ) -> None:
        self.folder, self.shared = folder, folder / "shared"
        self.server = PrivateServer(folder / "redis")
        computing = next(device for device in devices if device != NO_GPU)
        self._settings = {"shared_dir": self.shared, "device": computing, **models}
        self.all = [
            self._node(f"n{number}", device, packers) for number, device in enumerate(devices, 1)
        ]

    def _node(self, name: str, device: str, packers: int) -> LoadNode:
        (self.folder / name).mkdir()
        settings: dict[str, object] = {
            **self._settings,
            "node": name,
            "redis_url": self.server.url,
            "namespace": NAMESPACE,
            "packers": packers,
            "threads": 1 if device == "cpu" else 0,
            "shard_bases": 1 << 20,
            "lease_s": 30,
        }
        if device == NO_GPU:
            settings["roles"] = "planner,packer,writer"
        else:
            settings["device"] = device
        return LoadNode(self.folder / name, **settings)

    def start(self) -> None:
        self.server.start()
        for node in self.all:
            node.begin()
        for node in self.all:
            try:
                until(node.is_ready, f"{node.name} to be ready", READY_LIMIT_S)
            except AssertionError:
                print((node.state / "vnp.log").read_text()[-4_000:])
                raise

    @property
    def config(self) -> Config:
        """What a client on a machine of its own has."""
        return Config(state_dir=self.folder / "client", **self._settings)

    def holder(self, role: str) -> str:
        """The node whose planner or writer works; empty: none just now."""
        with self.all[0].redis() as client:
            consumer = client.get(Keys(NAMESPACE).role(role))
        return consumer.decode().partition(":")[0] if isinstance(consumer, bytes) else ""

    def end(self) -> None:
        running = [node.process for node in self.all if node.process is not None]
        for process in running:
            process.terminate()
        for process in running:
            process.wait(60)
        self.server.stop()

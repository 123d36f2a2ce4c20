"""Hosts on this machine: a network namespace each, joined by a bridge in one of their own.

Nothing of it is seen outside: no address of the machine changes, and no packet leaves it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress

SUBNET = "10.213.77"


def why_not() -> str:
    """Why hosts cannot be made here; nothing where they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not shutil.which("ip"):
        return "network namespaces need the command ip (Debian: iproute2)"
    name = f"vnp{os.getpid()}try"
    try:
        run("ip", "netns", "add", name)
        run("ip", "netns", "del", name)
    except subprocess.CalledProcessError as error:
        return f"no network namespaces here: {error.stderr.strip()}"
    return ""


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)


class Network:
    """A bridge and the hosts on it; `close` removes all of them."""

    def __init__(self) -> None:
        self._prefix = f"vnp{os.getpid()}"
        self._hosts: list[str] = []
        self._hub = f"{self._prefix}hub"
        run("ip", "netns", "add", self._hub)
        run("ip", "-n", self._hub, "link", "add", "bridge", "type", "bridge")
        run("ip", "-n", self._hub, "link", "set", "bridge", "up")

    def add_host(self, name: str) -> str:
        """A host on the bridge; returns its address."""
        host, number = self._namespace(name), len(self._hosts) + 1
        address = f"{SUBNET}.{number}"
        self._hosts.append(name)
        run("ip", "netns", "add", host)
        plug = ("ip", "-n", self._hub, "link", "add", name, "type", "veth")
        run(*plug, "peer", "name", "eth0", "netns", host)
        run("ip", "-n", self._hub, "link", "set", name, "master", "bridge", "up")
        run("ip", "-n", host, "addr", "add", f"{address}/24", "dev", "eth0")
        run("ip", "-n", host, "link", "set", "eth0", "up")
        run("ip", "-n", host, "link", "set", "lo", "up")
        return address

    def inside(self, name: str) -> list[str]:
        """The words before a command that runs on a host."""
        return ["ip", "netns", "exec", self._namespace(name)]

    def cut_off(self, name: str) -> None:
        """Pulls the host's plug: packets vanish, connections stay half open."""
        run("ip", "-n", self._hub, "link", "set", name, "down")

    def heal(self, name: str) -> None:
        run("ip", "-n", self._hub, "link", "set", name, "up")

    def close(self) -> None:
        for host in [*map(self._namespace, self._hosts), self._hub]:
            with suppress(subprocess.CalledProcessError):
                run("ip", "netns", "del", host)

    def _namespace(self, name: str) -> str:
        return f"{self._prefix}{name}"

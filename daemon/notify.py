"""Words to systemd: sd_notify(3) in a few lines, and nothing where no systemd listens."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping
from contextlib import suppress

#: What one EXTEND_TIMEOUT_USEC buys, and how often it is bought while models load.
EXTENSION_S, EXTEND_EVERY_S = 60.0, 15.0


class Notifier:
    """Sends states to the socket named by NOTIFY_SOCKET, which it takes out of the environment, so
    that no child speaks for the service."""

    def __init__(self, environment: MutableMapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        address = environment.pop("NOTIFY_SOCKET", "")
        watchdog_us = environment.pop("WATCHDOG_USEC", "")
        watched_pid = environment.pop("WATCHDOG_PID", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if address else None
        ours = watched_pid in ("", str(os.getpid()))
        #: Seconds between two pings; None where nobody waits for them.
        self.watchdog_s = int(watchdog_us) / 2e6 if watchdog_us and ours else None
        self._next_ping = self._next_extension = 0.0
        self._status = ""

    def send(self, *states: str) -> None:
        """Each state is a line NAME=VALUE. That nobody takes it is no reason to stop working."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.sendto("\n".join(states).encode(), self._address)

    def status(self, text: str) -> None:
        """What `systemctl status` shows; sent when it changes."""
        if text != self._status:
            self._status = text
            self.send(f"STATUS={text}")

    def ping(self) -> None:
        """Feeds the watchdog, when it is time to."""
        now = time.monotonic()
        if self.watchdog_s is not None and now >= self._next_ping:
            self._next_ping = now + self.watchdog_s
            self.send("WATCHDOG=1")

    def extend(self) -> None:
        """Asks for more time to start or to stop."""
        now = time.monotonic()
        if now >= self._next_extension:
            self._next_extension = now + EXTEND_EVERY_S
            self.send(f"EXTEND_TIMEOUT_USEC={int(EXTENSION_S * 1e6)}")

    def close(self) -> None:
        """Says nothing any more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

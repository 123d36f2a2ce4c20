"""A proxy before a Redis socket that cuts replies, stalls, and outlives the server behind it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from pathlib import Path


class CuttingProxy:
    """Listens on a unix socket. Commands always reach the server; what may suffer is the replies.

    `cut_reply_to(pattern)` cuts one connection, once: the command that holds the pattern is
    executed, and when its reply comes, the client's connection is closed instead. `cut_replies()`
    does that to every connection at its next reply. `stall(seconds)` holds all replies back.
    """

    def __init__(self, folder: Path, target: Path) -> None:
        self._target = str(target)
        self._path = folder / "proxy.sock"
        self._pattern: bytes | None = None
        self._pairs: dict[socket.socket, _Pair] = {}
        self._stalled_until = 0.0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._path))
        self._listener.listen(64)
        self.cuts = 0
        self._acceptor = threading.Thread(target=self._accept)
        self._acceptor.start()

    @property
    def url(self) -> str:
        return f"unix://{self._path}"

    def cut_reply_to(self, pattern: bytes) -> None:
        self._pattern = pattern

    def cut_replies(self) -> None:
        for pair in list(self._pairs.values()):
            pair.doomed.set()

    def stall(self, seconds: float) -> None:
        self._stalled_until = time.monotonic() + seconds

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join()
        pairs = list(self._pairs.values())
        for pair in pairs:
            _shut(pair.client)
            _shut(pair.server)
        for pair in pairs:
            for thread in pair.threads:
                thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(self._target)
            except OSError:  # it is down: the client sees a closed connection
                server.close()
                client.close()
                continue
            pair = _Pair(client, server)
            self._pairs[client] = pair
            pair.start(self._carry_commands, self._carry_replies)

    def _carry_commands(self, pair: _Pair) -> None:
        while data := _receive(pair.client):
            if self._pattern is not None and self._pattern in data:
                self._pattern = None
                pair.doomed.set()
            if not _send(pair.server, data):
                break
        _shut(pair.server)

    def _carry_replies(self, pair: _Pair) -> None:
        while data := _receive(pair.server):
            time.sleep(max(0.0, self._stalled_until - time.monotonic()))
            if pair.doomed.is_set():
                self.cuts += 1
                break
            if not _send(pair.client, data):
                break
        _shut(pair.client)
        pair.threads[0].join()
        pair.client.close()
        pair.server.close()
        self._pairs.pop(pair.client, None)


class _Pair:
    """A client's connection and ours to the server."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.doomed = threading.Event()
        self.threads: list[threading.Thread] = []

    def start(self, *directions: object) -> None:
        self.threads = [threading.Thread(target=d, args=(self,)) for d in directions]  # type: ignore[arg-type]
        for thread in self.threads:
            thread.start()


def _receive(end: socket.socket) -> bytes:
    try:
        return end.recv(1 << 16)
    except OSError:
        return b""


def _send(end: socket.socket, data: bytes) -> bool:
    try:
        end.sendall(data)
    except OSError:
        return False
    return True


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the other side was faster
        end.shutdown(socket.SHUT_RDWR)

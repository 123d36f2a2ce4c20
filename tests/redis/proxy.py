"""A proxy before a Redis socket that carries a command to the server and cuts its reply."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path


class CuttingProxy:
    """Listens on a unix socket; `cut_reply_to(pattern)` cuts one connection, once.

    The command that holds the pattern is executed by the server; when the reply comes, the client's
    connection is closed instead.
    """

    def __init__(self, folder: Path, target: Path) -> None:
        self._target = str(target)
        self._path = folder / "proxy.sock"
        self._pattern: bytes | None = None
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._path))
        self._listener.listen()
        self.cuts = 0
        self._start(self._accept)

    @property
    def url(self) -> str:
        return f"unix://{self._path}"

    def cut_reply_to(self, pattern: bytes) -> None:
        self._pattern = pattern

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._sockets:
            _shut(end)
        for thread in self._threads:
            thread.join()
        for end in self._sockets:
            end.close()

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._target)
            self._sockets += [client, server]
            doomed = threading.Event()
            self._start(self._carry_commands, client, server, doomed)
            self._start(self._carry_replies, client, server, doomed)

    def _carry_commands(
        self, client: socket.socket, server: socket.socket, doomed: threading.Event
    ) -> None:
        while data := _receive(client):
            if self._pattern is not None and self._pattern in data:
                self._pattern = None
                doomed.set()
            server.sendall(data)
        _shut(server)

    def _carry_replies(
        self, client: socket.socket, server: socket.socket, doomed: threading.Event
    ) -> None:
        while data := _receive(server):
            if doomed.is_set():
                self.cuts += 1
                break
            client.sendall(data)
        _shut(client)


def _receive(end: socket.socket) -> bytes:
    try:
        return end.recv(1 << 16)
    except OSError:
        return b""


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the other side was faster
        end.shutdown(socket.SHUT_RDWR)

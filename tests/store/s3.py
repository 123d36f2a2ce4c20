"""An S3 server (moto) in a process of its own, and a proxy that does what networks do."""

from __future__ import annotations

import hashlib
import http.client
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ops.files import DERIVED
from ops.place import place_of
from tests.crash.harness import until

BUCKET = "results"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class Server:
    """The server; keeps everything in its memory."""

    def __init__(self) -> None:
        self.port = free_port()
        words = ["-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(self._makes_bucket, "the S3 server to answer", 60)

    def _makes_bucket(self) -> bool:
        try:
            return self.ask("PUT", f"/{BUCKET}") == 200
        except OSError:
            return False

    def ask(self, method: str, path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, headers={"Authorization": AUTHORIZATION})
            return connection.getresponse().status
        finally:
            connection.close()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


#: The server takes any signature, but wants to see one.
AUTHORIZATION = (
    "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, "
    "SignedHeaders=host, Signature=0"
)
#: What becomes of a request: (method, path) -> one of the words below.
Fate = Callable[[str, str], str]
PASSED = "passed"
#: The server does what it is asked, and the reply is lost.
REPLY_LOST = "reply lost"
#: The request never arrives.
LOST = "lost"
#: 503 SlowDown.
BUSY = "busy"
#: 409 ConditionalRequestConflict.
CONFLICT = "conflict"
#: The condition If-None-Match is dropped on the way, as some proxies do.
UNCONDITIONAL = "unconditional"


class Proxy:
    """Listens on loopback and asks `fate` for every request."""

    def __init__(self, server: Server) -> None:
        self.fate: Fate = lambda method, path: PASSED
        proxy = self

        class Handler(_Handler):
            target = server.port

            def fate(self) -> str:
                return proxy.fate(self.command, self.path)

        self._listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._listener.daemon_threads = True
        self._thread = threading.Thread(target=self._listener.serve_forever)
        self._thread.start()

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to come through here."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._listener.server_address[1]}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }

    def close(self) -> None:
        self._listener.shutdown()
        self._listener.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    target = 0

    def fate(self) -> str:
        raise NotImplementedError

    def handle_request(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fate = self.fate()
        if fate == LOST:
            self._hang_up()
        elif fate == BUSY:
            self._reply(503, {}, b"<Error><Code>SlowDown</Code></Error>")
        elif fate == CONFLICT:
            self._reply(409, {}, b"<Error><Code>ConditionalRequestConflict</Code></Error>")
        else:
            reply = self._forward(body, fate == UNCONDITIONAL)
            if fate == REPLY_LOST:
                self._hang_up()
            else:
                self._reply(*reply)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_request  # noqa: N815

    def _forward(self, body: bytes, unconditional: bool) -> tuple[int, dict[str, str], bytes]:
        dropped = {"host", "connection"} | ({"if-none-match"} if unconditional else set())
        headers = {k: v for k, v in self.headers.items() if k.lower() not in dropped}
        connection = http.client.HTTPConnection("127.0.0.1", self.target, timeout=30)
        try:
            connection.request(self.command, self.path, body, headers)
            reply = connection.getresponse()
            found = {name.lower(): value for name, value in reply.getheaders()}
            return reply.status, found, reply.read()
        finally:
            connection.close()

    def _reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        length = headers.get("content-length") if self.command == "HEAD" else None
        for name, value in headers.items():
            if name not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *words: object) -> None:
        """Says nothing."""


def nth(number: int, fate: str, method: str = "PUT") -> Fate:
    """The fate of the number-th request of a method, counted from 0; all others pass."""
    seen = [0]

    def decide(asked: str, path: str) -> str:
        if asked != method:
            return PASSED
        seen[0] += 1
        return fate if seen[0] == number + 1 else PASSED

    return decide


def promised(out: Any) -> dict[str, str]:
    """sha256 of every table, and of every shard by its number."""
    place = place_of(out)
    names = {name: name for name, size in place.sizes(DERIVED).items() if size >= 0}
    names |= {f"shard {line.shard}": line.file for line in place.manifest().shards.values()}
    return {name: hashlib.sha256(place.read(file)).hexdigest() for name, file in names.items()}

"""Metadata services of three clouds on loopback, as their documentation describes them."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

TOKEN = "/latest/api/token"
ACTION = "/latest/meta-data/spot/instance-action"
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
PREEMPTED = "/computeMetadata/v1/instance/preempted"
EVENTS = "/metadata/scheduledevents"
NAME = "/metadata/instance/compute/name"


class _Handler(BaseHTTPRequestHandler):
    cloud: ClassVar[Metadata]

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length).decode()
        self.cloud.seen.append((self.command, self.path, body))
        time.sleep(self.cloud.delay_s)
        code, text, headers = self.cloud.reply(self.command, self.path, dict(self.headers))
        data = text.encode()
        try:
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            pass  # the client did not wait

    do_GET = do_PUT = do_POST = _answer  # noqa: N815 - the names that http.server calls

    def log_message(self, *arguments: Any) -> None:
        pass


class Metadata:
    """One cloud's service. Set `notice`, `hint`, `fails` (an HTTP code), `delay_s` at any time."""

    def __init__(self, cloud: str) -> None:
        self.cloud = cloud
        self.notice: str | None = None
        self.hint = False
        self.fails = 0
        self.delay_s = 0.0
        self.token = 1
        self.seen: list[tuple[str, str, str]] = []
        handler = type("Handler", (_Handler,), {"cloud": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Metadata:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def reply(
        self, method: str, path: str, headers: dict[str, str]
    ) -> tuple[int, str, dict[str, str]]:
        if self.fails:
            return self.fails, "", {}
        answer: tuple[int, str, dict[str, str]] = getattr(self, f"_{self.cloud}")(
            method, path, {name.lower(): value for name, value in headers.items()}
        )
        return answer

    def _aws(
        self, method: str, path: str, headers: dict[str, str]
    ) -> tuple[int, str, dict[str, str]]:
        if (method, path) == ("PUT", TOKEN) and "x-aws-ec2-metadata-token-ttl-seconds" in headers:
            return 200, f"token-{self.token}", {}
        if headers.get("x-aws-ec2-metadata-token") != f"token-{self.token}":
            return 401, "", {}
        if path == ACTION and self.notice is not None:
            return 200, json.dumps({"action": "terminate", "time": self.notice}), {}
        if path == REBALANCE and self.hint:
            return 200, json.dumps({"noticeTime": "2026-01-01T00:00:00Z"}), {}
        return 404, "", {}

    def _gcp(
        self, method: str, path: str, headers: dict[str, str]
    ) -> tuple[int, str, dict[str, str]]:
        flavor = {"Metadata-Flavor": "Google"}
        if headers.get("metadata-flavor") != "Google":
            return 403, "", flavor
        value = self.notice or "FALSE"
        if path.startswith(PREEMPTED) and "wait_for_change" in path:
            before = path.rpartition("last_etag=")[2]
            end = time.monotonic() + 5
            while before == (self.notice or "FALSE") and time.monotonic() < end:
                time.sleep(0.02)
            value = self.notice or "FALSE"
        return 200, value, {**flavor, "ETag": value}

    def _azure(
        self, method: str, path: str, headers: dict[str, str]
    ) -> tuple[int, str, dict[str, str]]:
        if headers.get("metadata") != "true":
            return 400, "", {}
        if path.startswith(NAME):
            return 200, "this-vm", {}
        if path.startswith(EVENTS):
            events = [] if self.notice is None else [json.loads(self.notice)]
            return 200, json.dumps({"DocumentIncarnation": 1, "Events": events}), {}
        return 404, "", {}


def azure_event(resource: str = "this-vm", before: str = "", kind: str = "Preempt") -> str:
    """An event as Scheduled Events lists it."""
    return json.dumps(
        {
            "EventId": "event-7",
            "EventType": kind,
            "EventStatus": "Scheduled" if before else "Started",
            "NotBefore": before,
            "Resources": [resource],
        }
    )

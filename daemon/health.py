"""/healthz, /readyz and /metrics on a loopback address.

Healthy means that work moves on, not that a thread lives: the supervisor has ticked a moment ago,
and no child is stuck for good. Ready means that every role takes work and Redis answers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from daemon.observer import Snapshot
from ops import __version__
from ops.errors import ConfigError

#: The supervisor ticks twenty times a second; starting a process may take it a moment.
LATEST_TICK_S = 10.0
Probe = Callable[[], str]


class Metrics:
    """Collected when asked for: what the last look at Redis has shown, and what the service
    counts."""

    def __init__(self, snapshot: Callable[[], Snapshot], service: Any) -> None:
        self._snapshot = snapshot
        self._service = service

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("vnp_build", "This program", {"version": __version__})
        yield from self._of_service()
        snapshot = self._snapshot()
        yield from _of_planner(snapshot)
        yield from _of_gpus(snapshot.gpus)

    def _of_service(self) -> Iterator[Metric]:
        service = self._service
        yield GaugeMetricFamily("vnp_ready", "1: every role takes work", value=service.ready)
        restarts = CounterMetricFamily(
            "vnp_worker_restarts", "Processes that had to be replaced", labels=["role"]
        )
        for role, count in service.supervisor.restarts.items():
            restarts.add_metric([role], count)
        yield restarts


def _of_planner(snapshot: Snapshot) -> Iterator[Metric]:
    planner = snapshot.planner
    yield GaugeMetricFamily("vnp_redis_up", "1: Redis answers", value=not snapshot.error)
    if not planner:
        return
    jobs = GaugeMetricFamily("vnp_jobs", "Unfinished jobs", labels=["state"])
    for state in ("planning", "running", "waiting"):
        jobs.add_metric([state], sum(job["state"] == state for job in snapshot.jobs))
    yield jobs
    yield GaugeMetricFamily(
        "vnp_shards_open", "Shards issued and not committed", value=planner["shards_open"]
    )
    yield GaugeMetricFamily(
        "vnp_last_progress_timestamp_seconds",
        "When a shard was committed last, or the planner started",
        value=round(time.time() - planner["seen_s"] - planner["progress_age_s"]),
    )
    entries = GaugeMetricFamily("vnp_stream_entries", "Outstanding entries", labels=["stream"])
    pending = GaugeMetricFamily(
        "vnp_stream_pending_entries", "Those that somebody works on", labels=["stream"]
    )
    for name, stream in planner["streams"].items():
        entries.add_metric([name], stream["length"])
        pending.add_metric([name], stream["pending"])
    yield from (entries, pending)
    yield GaugeMetricFamily(
        "vnp_redis_memory_bytes", "Memory that Redis uses", value=planner["redis_memory_bytes"]
    )


def _of_gpus(gpus: dict[str, dict[str, Any]]) -> Iterator[Metric]:
    gauges = {
        "busy": GaugeMetricFamily(
            "vnp_gpu_busy_ratio", "Share of time that the device computed", labels=["gpu"]
        ),
        "frames_per_s": GaugeMetricFamily(
            "vnp_gpu_frames_per_second", "Frames computed", labels=["gpu"]
        ),
        "memory_bytes": GaugeMetricFamily(
            "vnp_gpu_memory_used_bytes", "Most memory in use so far", labels=["gpu"]
        ),
    }
    rows = CounterMetricFamily("vnp_frames", "Frames computed by this process", labels=["gpu"])
    for name, said in gpus.items():
        for field, gauge in gauges.items():
            if field in said:
                gauge.add_metric([name], said[field])
        rows.add_metric([name], said.get("rows_total", 0))
    yield from (*gauges.values(), rows)


class HealthServer:
    """Serves until closed. alive, ready: return what is wrong, or nothing.

    Raises ConfigError when the address cannot be listened on, or is not a loopback address.
    """

    def __init__(self, address: str, alive: Probe, ready: Probe, metrics: Metrics) -> None:
        registry = CollectorRegistry()
        registry.register(metrics)
        probes = {"/healthz": alive, "/readyz": ready}

        class Handler(BaseHTTPRequestHandler):
            timeout = 5

            def do_GET(self) -> None:
                if self.path in probes:
                    problem = probes[self.path]()
                    self._answer(503 if problem else 200, problem or "ok", "text/plain")
                elif self.path == "/metrics":
                    text = generate_latest(registry).decode()
                    self._answer(200, text, "text/plain; version=0.0.4")
                else:
                    self._answer(404, "/healthz, /readyz and /metrics are here", "text/plain")

            def _answer(self, code: int, text: str, kind: str) -> None:
                body = text.encode() + (b"" if text.endswith("\n") else b"\n")
                self.send_response(code)
                self.send_header("Content-Type", f"{kind}; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        host, _, port = address.rpartition(":")
        try:
            self._server = ThreadingHTTPServer((host.strip("[]"), int(port)), Handler)
        except OSError as error:
            raise ConfigError(f"health address {address} cannot be used: {error}") from error
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="health")
        self._thread.daemon = True
        self._thread.start()

    @property
    def port(self) -> int:
        port: int = self._server.server_address[1]
        return port

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

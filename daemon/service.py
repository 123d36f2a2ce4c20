"""`vnpd`: the resident service. Starts the supervisor, says when it is ready, ends in order."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from broker.client import require_redis, without_password
from broker.server import PrivateServer
from daemon.config import Config
from daemon.supervisor import Supervisor, make_children
from ops.durable import FileLock, describe_os_error, make_dir, write_atomic
from workers.logs import configure_logs, get_log
from workers.loop import StopFlag

TICK_S = 0.05


class Service:
    """The processes of one state folder; a context manager, so that nothing outlives an error.

    At most one per state folder (a lock says so). STATE/service.json tells clients where Redis is,
    which identity is served, and whether the models are loaded.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.state = Path(config.state_dir)
        config.cards  # noqa: B018 - a missing model is told before anything starts
        make_state_dir(self.state)
        self.lock = FileLock(
            self.state / "service.lock", f"another vnpd serves {self.state}; stop it first"
        )
        server = None if config.redis_url else PrivateServer(self.state.absolute() / "redis")
        self.redis_url = config.redis_url or (server.url if server else "")
        settings = config.worker_settings(self.redis_url)
        children = make_children(config.role_counts, settings.to_environment(), config.devices)
        self.supervisor = Supervisor(children, server)
        self.ready = False

    def __enter__(self) -> Service:
        try:
            if self.supervisor.server is not None:
                self.supervisor.server.start()
            else:
                require_redis(self.redis_url)
        except BaseException:
            self.lock.release()
            raise
        self._publish()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.supervisor.stop()
        (self.state / "service.json").unlink(missing_ok=True)
        self.lock.release()

    def tick(self) -> None:
        """Tends the children; publishes readiness when it comes and when it goes."""
        self.supervisor.tick()
        if self.supervisor.ready != self.ready:
            self.ready = self.supervisor.ready
            self._publish()
            if self.ready:
                get_log("supervisor").info("service.ready", message="every role takes work")

    def _publish(self) -> None:
        facts: dict[str, Any] = {
            "pid": os.getpid(),
            "redis_url": without_password(self.redis_url),  # any user may read this file
            "ready": self.ready,
            "identity": self.config.identity("virus", None, allow_chunk_length=True).to_dict(),
            "serves": self.config.served_settings,
        }
        write_atomic(self.state / "service.json", json.dumps(facts).encode() + b"\n")


def make_state_dir(path: Path) -> None:
    try:
        make_dir(path)
    except OSError as error:
        raise describe_os_error(error, path) from error


def serve(config: Config) -> int:
    """Runs until SIGTERM or SIGINT; returns the exit code."""
    make_state_dir(config.state_dir)
    configure_logs("supervisor", level=config.log_level, log_file=str(config.log_path))
    stop = StopFlag()
    with Service(config) as service:
        while not stop.raised:
            service.tick()
            time.sleep(TICK_S)
    return 0

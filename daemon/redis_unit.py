"""`vnp-redis`: the private Redis as a unit of its own, so that several services can share it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import click

from broker.server import PrivateServer
from daemon.cli import run_command
from daemon.notify import Notifier
from ops.errors import UnavailableError
from workers.loop import StopFlag

TICK_S = 0.2


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    default=lambda: os.environ.get("RUNTIME_DIRECTORY") or "/run/vnp-redis",
    help="Where its socket lies, redis.sock (default: RUNTIME_DIRECTORY, /run/vnp-redis).",
)
def vnp_redis(directory: Path) -> int:
    """A Redis for vnp, in memory and on a unix socket that its group may use.

    What it holds can be made again: it may be stopped and started at any time.
    """
    notifier, stop = Notifier(), StopFlag()
    server = PrivateServer(directory, shared=True)
    server.start()
    notifier.send("READY=1", f"STATUS=serves {server.socket}")
    try:
        while not stop.raised:
            if not server.reachable:
                raise UnavailableError("Redis has died, or its socket is gone; start this again")
            time.sleep(TICK_S)
    finally:
        notifier.send("STOPPING=1")
        notifier.close()
        server.stop()
    return 0


def main() -> None:
    sys.exit(run_command(vnp_redis))


if __name__ == "__main__":
    main()

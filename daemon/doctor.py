"""`vnp doctor`: what this machine has, and whether vnp gives a known answer on it."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path

import click

from daemon.config import Config
from ops.errors import ConfigError, VnpError

EX_CONFIG = 78


def doctor(config: Config) -> int:
    """One line per check: ok or FAILED, what, and what was found. 78 when one has failed."""
    checks: dict[str, Callable[[Config], str]] = {
        "python": lambda _: platform.python_version(),
        "device": _device,
        "redis": _redis,
        "state folder": _state_folder,
        "models": _models,
        "known answer": _known_answer,
    }
    failed = 0
    for name, check in checks.items():
        try:
            word, found = "ok", check(config)
        except (VnpError, OSError) as error:
            word, found = "FAILED", str(error)
            failed += 1
        click.echo(f"{word}\t{name}\t{found}")
    return EX_CONFIG if failed else 0


def _device(config: Config) -> str:
    from ops.engine import Engine, EngineSpec

    facts = Engine(EngineSpec(device=config.devices[0], dtype=config.resolved_dtype)).facts
    return f"{facts['device']} ({facts['device_name']}), {facts['dtype']}, torch {facts['torch']}"


def _redis(config: Config) -> str:
    from broker.client import without_password
    from broker.server import PrivateServer, find_server

    if config.redis_url:
        version = _redis_version(config.redis_url)
        return f"{without_password(config.redis_url)}, version {version}"
    with tempfile.TemporaryDirectory(prefix="vnp-doctor-") as folder:
        server = PrivateServer(Path(folder))
        server.start()
        try:
            version = _redis_version(server.url)
        finally:
            server.stop()
    return f"{find_server()}, version {version}, starts and answers"


def _redis_version(url: str) -> str:
    from broker.client import connect, require_redis

    require_redis(url)
    client = connect(url, "command")
    version: str = client.info("server")["redis_version"]
    client.close()
    return version


def _state_folder(config: Config) -> str:
    """The folder, or the nearest one above that exists, can be written."""
    folder = next(p for p in (config.state_dir, *config.state_dir.absolute().parents) if p.exists())
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{folder} cannot be written; choose another --state-dir")
    return str(config.state_dir)


def _models(config: Config) -> str:
    """The models in use fit each other, and their files are those that were imported."""
    from ops.modelstore import verify_model

    config.identity("virus", None)
    for card in config.cards.values():
        verify_model(card)
    return ", ".join(card.name for card in config.cards.values())


def _known_answer(config: Config) -> str:
    from ops.known_answer import LIMIT, largest_difference

    frames, difference = largest_difference(config.devices[0])
    text = f"bundled models, {frames} frames: scores differ by at most {difference:.1e}"
    if difference > LIMIT:
        raise ConfigError(f"{text}, which is more than {LIMIT:.0e}; results here cannot be trusted")
    return text

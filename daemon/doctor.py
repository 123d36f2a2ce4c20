"""`vnp doctor`: what this machine has, and whether vnp gives a known answer on it."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click

from daemon.config import Config
from ops.durable import free_bytes
from ops.errors import ConfigError, VnpError
from ops.jobs import utc_now

EX_CONFIG = 78
DRIVER = Path("/proc/driver/nvidia/version")
UNITS = Path("/usr/lib/systemd/system")
LEAST_FREE_BYTES = 1 << 30
#: 2026-11-01, seconds since 1970: no clock that is right says less.
BUILT_AT = 1_793_491_200


def doctor(config: Config, as_json: bool = False) -> int:
    """One line per check: ok or FAILED, what, and what was found. 78 when one has failed."""
    checks: dict[str, Callable[[Config], str]] = {
        "python": lambda _: platform.python_version(),
        "driver": _driver,
        "device": _device,
        "redis": _redis,
        "folders": _folders,
        "units": lambda _: _units(),
        "clock": lambda _: _clock(),
        "models": _models,
        "known answer": _known_answer,
    }
    results = []
    for name, check in checks.items():
        try:
            ok, found = True, check(config)
        except (VnpError, OSError) as error:
            ok, found = False, str(error)
        results.append({"check": name, "ok": ok, "found": found})
        if not as_json:
            click.echo(f"{'ok' if ok else 'FAILED'}\t{name}\t{found}")
    if as_json:
        click.echo(json.dumps(results))
    return 0 if all(result["ok"] for result in results) else EX_CONFIG


def _driver(config: Config) -> str:
    """The NVIDIA driver as the kernel module says of itself."""
    if config.devices[0] == "cpu":
        return "not needed on the cpu"
    try:
        version = re.search(r"\b[0-9]{3,}\.[0-9.]+", DRIVER.read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"no NVIDIA driver is loaded ({DRIVER}); use --device cpu") from error
    return f"NVIDIA {version[0]}" if version else f"{DRIVER} names no version"


def _device(config: Config) -> str:
    """The first device computes; on a GPU every kernel is compared with its plain version."""
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
    """Raises ConfigError for a server that forgets what it was given."""
    from broker.client import connect, require_redis

    require_redis(url)
    client = connect(url, "command")
    try:
        version: str = client.info("server")["redis_version"]
        policy = client.info("memory").get("maxmemory_policy", "noeviction")
    finally:
        client.close()
    if policy != "noeviction":
        raise ConfigError(f"maxmemory-policy is {policy}; set it to noeviction")
    return version


def _folders(config: Config) -> str:
    """State and models, or the nearest folders above that exist, can be written and have room."""
    found = []
    for path in (config.state_dir, config.models_dir):
        folder = next(p for p in (path, *path.absolute().parents) if p.exists())
        if path == config.state_dir and not os.access(folder, os.W_OK):
            raise ConfigError(f"{folder} cannot be written; choose another --state-dir")
        free = free_bytes(path)
        if free < LEAST_FREE_BYTES:
            raise ConfigError(f"{folder} has {free >> 20} MiB left; a GiB is little already")
        found.append(f"{path} ({free >> 30} GiB free)")
    return ", ".join(found)


def _units() -> str:
    """What systemd says of the installed units; nothing where there are none."""
    units = sorted(str(path) for path in UNITS.glob("vnp*.service") if "@" not in path.name)
    if not units:
        return "not installed; `make install` does"
    command = ["systemd-analyze", "verify", *units]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60).stderr
    ours = [line for line in said.splitlines() if "vnp" in line]
    if ours:
        raise ConfigError(f"{ours[0]}; run `make install` again")
    return f"{len(units)} installed"


def _clock() -> str:
    """Logs, job ids and the clouds' notices need the time of day; results do not."""
    now = utc_now()
    if time.time() < BUILT_AT:
        raise ConfigError(f"the clock says {now}, which is before vnp was made; set it")
    try:
        command = ["timedatectl", "show", "--property=NTPSynchronized", "--value"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        said = ""
    kept = {"yes": "kept by NTP", "no": "not kept by NTP"}.get(said, "nobody says whether kept")
    return f"{now}, {kept}"


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

"""The service that runs, as its clients see it: where it speaks, whose it is, what it serves."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from daemon.config import Config
from ops.errors import IdentityError, UnavailableError
from ops.identity import Identity
from ops.modelstore import ModelCard

#: A service of another machine that has said nothing for so long does not run any more. It says
#: something every 10 s; the rest is for clocks that differ.
SILENT_S = 90.0


def service_words(shared_dir: Path) -> Path:
    """Where services of all nodes say something of themselves."""
    return shared_dir / "services"


def describe_service(config: Config, redis_url: str, ready: bool) -> dict[str, Any]:
    """What a service says of itself: all that a client needs to submit, on any machine."""
    return {
        "pid": os.getpid(),
        "uid": os.getuid(),
        "node": config.node,
        "redis_url": redis_url,
        "ready": ready,
        "identity": config.identity("virus", None, allow_chunk_length=True).to_dict(),
        "serves": config.served_settings,
        "models": {kind: card.to_dict() for kind, card in config.cards.items()},
    }


def find_service(config: Config) -> dict[str, Any]:
    """What the running service says of itself, on this machine or, where jobs are shared, on
    another. Raises UnavailableError when none runs."""
    facts = _own_service(config) or _service_elsewhere(config)
    if facts is None:
        raise UnavailableError(
            f"no vnpd runs on {config.jobs_dir}; start it with `vnpd`, or use `vnp run`"
        )
    return facts


def _own_service(config: Config) -> dict[str, Any] | None:
    try:
        facts: dict[str, Any] = json.loads((config.state_dir / "service.json").read_text())
        os.kill(facts["pid"], 0)
    except PermissionError:
        pass  # it lives, as another user
    except (OSError, ValueError):
        return None
    return facts


def _service_elsewhere(config: Config) -> dict[str, Any] | None:
    """The one that has spoken last, unless that was long ago."""
    if config.shared_dir is None:
        return None
    said: list[tuple[float, dict[str, Any]]] = []
    for path in service_words(config.shared_dir).glob("*.json"):
        with suppress(OSError, ValueError):  # it has just ended
            said.append((path.stat().st_mtime, json.loads(path.read_text())))
    said_at, facts = max(said, key=lambda word: (word[1]["ready"], word[0]), default=(0.0, None))
    return facts if time.time() - said_at < SILENT_S else None


def is_other_users(facts: dict[str, Any]) -> bool:
    """True when the service runs as somebody else."""
    return bool(facts.get("uid", os.getuid()) != os.getuid())


def served_config(config: Config) -> Config:
    """The configuration of the running service, but for what this one sets explicitly.

    Raises UnavailableError when no service runs, IdentityError when it serves other models than
    were asked for.
    """
    facts = find_service(config)
    given = {name: getattr(config, name) for name in config.model_fields_set}
    ours = config.changed(**{**facts["serves"], **given})
    served = Identity.from_dict(facts["identity"])
    cards = facts.get("models", {}).items()
    ours.take_cards({k: ModelCard.from_dict(card) for k, card in cards if k not in given})
    asked = ours.identity("virus", None, allow_chunk_length=True)
    if not asked.served_by(served):
        raise IdentityError(
            f"this asks for {asked.in_words}, but the service on {config.jobs_dir} serves "
            f"{served.in_words}; give both the same configuration, or start a service for it"
        )
    return ours

"""What a service has to make sure of before it works beside others on one Redis: its name, its
models, and the folder of jobs."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path

from broker.claims import Claim, Claims
from broker.keys import Keys
from broker.state import SharedState
from daemon.config import Config
from ops.durable import describe_os_error
from ops.errors import ConfigError
from ops.marks import make_mark
from ops.share import Share

#: What systemd knows a machine by; containers and clones may lack it, or share it.
MACHINE_ID = Path("/etc/machine-id")


def claims_of(config: Config, redis_url: str) -> Claims:
    """The node's name, which nobody else may have, and the models, which all must have."""
    keys = Keys(config.namespace)
    name = Claim(
        keys.node(config.node),
        f"{_installation(config.state_dir)} {socket.gethostname()}",
        f"node {config.node!r} of namespace {config.namespace} is another service, on {{who}}; "
        "set `node` to another name on one of them",
    )
    identity = config.identity("virus", None, allow_chunk_length=True)
    words = (
        f"{identity.in_words} (algorithm {identity.algorithm}, max_tokens {identity.max_tokens}, "
        f"identity {identity.digest})"
    )
    models = Claim(
        keys.models,
        f"{identity.digest} {words}",
        f"the nodes of namespace {config.namespace} compute with {{who}}, but this one has "
        f"{words}; give it their models, dtype and kind of device, or a namespace of its own",
        is_shared=True,
    )
    return Claims(redis_url, config.namespace, [name, models], config.lease_s)


def _installation(state_dir: Path) -> str:
    """A word for this state folder on this machine: a copy of the folder elsewhere is another one,
    and a restart, or another unit of the same folder, is the same."""
    try:
        machine = MACHINE_ID.read_text().strip()
    except OSError:
        machine = ""
    mark = make_mark(state_dir / "node.id")
    return hashlib.sha256(f"vnp {mark} {machine}".encode()).hexdigest()[:32]


def require_share(config: Config, redis_url: str) -> None:
    """Sees to it that who plans or writes has the folder of jobs that the other nodes have.

    Raises ConfigError where Redis knows another one; the first to come marks its own.
    """
    share = Share(config.jobs_dir)
    state = SharedState(redis_url, config.namespace, "share")
    try:
        if config.shared_dir is not None and not state.share(""):
            share.make()
        mark = share.read()
        if state.share(mark) != mark:
            raise ConfigError(
                f"{config.jobs_dir} is not the folder that the other nodes of namespace "
                f"{config.namespace} share; mount it, or set shared_dir; if it is to be a new one, "
                f"stop all nodes and delete the key {state.keys.share} in Redis"
            )
    except OSError as error:
        raise describe_os_error(error, share.folder) from error
    finally:
        state.close()

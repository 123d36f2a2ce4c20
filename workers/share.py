"""Who plans or writes sees the folder that all nodes share, or leaves its role to others."""

from __future__ import annotations

from pathlib import Path

from broker.queue import Broker
from broker.role import RoleLease
from ops.share import Share
from workers.logs import get_log
from workers.settings import WorkerSettings


def role_of(broker: Broker, role: str, settings: WorkerSettings) -> RoleLease:
    """The claim to a role of a process whose jobs lie in the shared folder."""
    share = Share(Path(settings.shared_dir))

    def tell() -> None:
        message = (
            f"{share.folder} is not the folder that the other nodes share, so their {role} works "
            "in place of this one; mount it, then this one goes on"
        )
        get_log(role).error("share.differs", message=message)

    return RoleLease(broker, role, settings.lease_s, share.mark, tell)

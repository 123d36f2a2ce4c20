"""A role that one process of all nodes fills at a time, the planner's or the writer's; the others
stand by and take over when its holder has not renewed it for a lease.

The lease only saves work: two planners issue some shards twice, and two writers of a folder fence
each other off by its epochs. So nothing here compares the clocks of two machines: the server
counts the lease down, and the holder counts by its own monotonic clock from before it asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from broker.queue import Broker
from ops.errors import UnavailableError

#: Between two tries of one that stands by.
STAND_BY_S = 0.5


class RoleLease:
    """One process' claim to a role. The holder's successor of the same name has it at once.

    is_able: False while this process could do nothing with the role, and others had better have it.
    """

    def __init__(
        self,
        broker: Broker,
        role: str,
        lease_s: float,
        is_able: Callable[[], bool] = lambda: True,
    ) -> None:
        self.role = role
        self._is_able = is_able
        self._broker = broker
        self._lease_s = lease_s
        self._valid_until = 0.0
        self._ask_at = 0.0

    def held(self) -> bool:
        """True while the role is ours; asks Redis every third of a lease.

        A Redis that does not answer raises nothing: the role stays ours until its lease is over.
        Then this says so before it asks again, which may take its time: others wait for what we
        have to give back.
        """
        if not self._is_able():
            if self._valid_until:
                self.give_up()
            return False
        now = time.monotonic()
        if 0 < self._valid_until <= now:
            self._valid_until = 0.0
            return False
        if now >= self._ask_at:
            self._ask()
        return time.monotonic() < self._valid_until

    def _ask(self) -> None:
        asked = time.monotonic()
        try:
            ours = self._broker.take_role(self.role, int(self._lease_s * 1_000))
        except UnavailableError:
            self._ask_at = time.monotonic() + STAND_BY_S
            return
        self._valid_until = asked + self._lease_s if ours else 0.0
        self._ask_at = asked + (self._lease_s / 3 if ours else STAND_BY_S)

    def give_up(self) -> None:
        """Lets somebody else have the role at once."""
        self._valid_until = self._ask_at = 0.0
        with suppress(UnavailableError):
            self._broker.give_up_role(self.role)

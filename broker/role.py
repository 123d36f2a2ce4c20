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

    share: the mark of the folder that this process works with, empty without one; None while it is
    away. A process whose folder is away, or not the one that Redis knows, does not have the role.
    tell: is called when the folder turns out to be another one.
    """

    def __init__(
        self,
        broker: Broker,
        role: str,
        lease_s: float,
        share: Callable[[], str | None] = lambda: "",
        tell: Callable[[], None] = lambda: None,
    ) -> None:
        self.role = role
        self._share = share
        self._tell = tell
        self._has_told = False
        self._mark = ""  # of the folder when the role was asked for
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
        mark = self._share()
        if mark is None or (self._valid_until and mark != self._mark):
            if self._valid_until:
                self.give_up()
            return False
        now = time.monotonic()
        if 0 < self._valid_until <= now:
            self._valid_until = 0.0
            return False
        if now >= self._ask_at:
            self._ask(mark)
        return time.monotonic() < self._valid_until

    def _ask(self, mark: str) -> None:
        asked = time.monotonic()
        self._mark = mark
        try:
            is_same = self._broker.share(mark) == mark
            ours = is_same and self._broker.take_role(self.role, int(self._lease_s * 1_000))
        except UnavailableError:
            self._ask_at = time.monotonic() + STAND_BY_S
            return
        if not is_same:
            self._leave()
        self._has_told = not is_same
        self._valid_until = asked + self._lease_s if ours else 0.0
        self._ask_at = asked + (self._lease_s / 3 if ours else STAND_BY_S)

    def _leave(self) -> None:
        """Ours is not the folder that the others share."""
        if self._valid_until:
            self.give_up()
        if not self._has_told:
            self._tell()

    def give_up(self) -> None:
        """Lets somebody else have the role at once."""
        self._valid_until = self._ask_at = 0.0
        with suppress(UnavailableError):
            self._broker.give_up_role(self.role)

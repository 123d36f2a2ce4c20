"""The lease: what a process holds stays its own while it gets on with it, and no longer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from broker.queue import Broker
from ops.errors import UnavailableError

#: A process that has not taken, held or released anything for this long is stuck; longer than any
#: batch's own deadline.
DEADLINE_S = 7_200.0


class LeaseKeeper:
    """Renews, every third of a lease, what the broker's process holds of one stream.

    A thread of its own with a connection of its own. It renews only while the process works (see
    deadline_s): a lease must not outlive the work because the thread does. An entry that another
    consumer has claimed meanwhile is let go; `holds` then says False.
    """

    def __init__(
        self, broker: Broker, stream: str, lease_s: float, deadline_s: float = DEADLINE_S
    ) -> None:
        self._broker = broker
        self._stream = stream
        self._period_s = lease_s / 3
        self._deadline_s = deadline_s
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease-{stream}", daemon=True)
        self._thread.start()

    def hold(self, id_: str) -> None:
        self._broker.hold(self._stream, id_)

    def release(self, *ids: str) -> None:
        self._broker.release(self._stream, ids)

    def holds(self, id_: str) -> bool:
        """False once the entry was released, handed off, or lost to another consumer."""
        return id_ in self._broker.held(self._stream)

    @contextmanager
    def holding(self, id_: str) -> Iterator[None]:
        """Holds an entry during the work on it."""
        self.hold(id_)
        try:
            yield
        finally:
            self.release(id_)

    def close(self) -> None:
        """Stops renewing; what is held is claimable a lease later."""
        self._closed.set()
        self._thread.join()

    def _keep(self) -> None:
        while not self._closed.wait(self._period_s):
            if self._broker.idle_s < self._deadline_s:
                self.renew()

    def renew(self) -> None:
        """One round of renewals. That Redis does not answer is for the taker to report."""
        held = self._broker.held(self._stream)
        try:
            ours = self._broker.extend(self._stream, held)
        except UnavailableError:
            return
        self._broker.let_go(self._stream, held - ours)

"""What a service claims of a namespace before it works there: that its node's name is its own, and
that it computes with what all others compute with. Two nodes of one name would take each other's
work for their own; nodes with different models would mix their results.

A claim is leased and renewed, so that a node that has vanished leaves nothing for ever. Its holder
is known by a word that it keeps over restarts, and so never waits for itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from broker.state import SharedState
from ops.errors import ConfigError, UnavailableError

#: The longest time between two renewals: soon enough that after a loss of memory hardly anybody
#: else comes first, and that whoever is refused need not wait long to be sure.
RENEW_EVERY_S = 2.0
LOOK_EVERY_S = 0.1


@dataclass(frozen=True)
class Claim:
    """holder: one word that tells holders apart, then what people should read of this one.

    refusal: the line for who comes second, with {who} for the words of the first.
    is_shared: others may have the same claim, so that it is not ours to give up.
    """

    key: str
    holder: str
    refusal: str
    is_shared: bool = False


class Claims:
    """The claims of one service; renewed by a thread of its own until they are closed."""

    def __init__(self, url: str, namespace: str, claims: Iterable[Claim], lease_s: float) -> None:
        self._state = SharedState(url, namespace, "claims")
        self._claims = list(claims)
        self._lease_ms = int(lease_s * 1_000)
        self._period_s = min(RENEW_EVERY_S, lease_s / 3)
        self._lost: ConfigError | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="claims", daemon=True)

    def enter(self, tell: Callable[[str], None] = lambda line: None) -> None:
        """Claims all, or raises ConfigError; UnavailableError when Redis does not answer.

        tell: is told, in a line for people, when there is something to wait for.
        """
        for claim in self._claims:
            if not self._take(claim):
                tell(f"waits, a lease at most, to see whether somebody else renews {claim.key}")
                self._wait_for(claim)
        self._thread.start()

    def _wait_for(self, claim: Claim) -> None:
        """What the dead have left ends with its lease; what is renewed meanwhile has a living
        holder."""
        least_ms: int | None = None
        while not self._take(claim):
            who, left_ms = self._state.claimed(claim.key)
            if least_ms is not None and left_ms > least_ms:
                raise _refusal(claim, who)
            least_ms = left_ms if who else None
            time.sleep(LOOK_EVERY_S)

    def require(self) -> None:
        """Raises ConfigError once somebody else has one of the claims: after a cut from Redis that
        was longer than the lease."""
        if self._lost is not None:
            raise self._lost

    def close(self) -> None:
        """Ends the renewals, and gives up what is ours alone, so that a successor need not wait."""
        self.stop_renewing()
        for claim in self._claims:
            if not claim.is_shared:
                with suppress(UnavailableError):  # its lease will end
                    self._state.give_up_claim(claim.key, claim.holder)
        self._state.close()

    def stop_renewing(self) -> None:
        """As a kill would: what is claimed stays claimed until its lease is over."""
        self._closed.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _take(self, claim: Claim) -> bool:
        return self._state.claim(claim.key, claim.holder, self._lease_ms)

    def _keep(self) -> None:
        """A Redis that is away, or has forgotten everything, is claimed again when it answers."""
        while self._lost is None and not self._closed.wait(self._period_s):
            with suppress(UnavailableError):
                self._renew()

    def _renew(self) -> None:
        for claim in self._claims:
            if not self._take(claim):
                self._lost = _refusal(claim, self._state.claimed(claim.key)[0])


def _refusal(claim: Claim, holder: str) -> ConfigError:
    who = holder.partition(" ")[2] or holder
    return ConfigError(claim.refusal.replace("{who}", who))

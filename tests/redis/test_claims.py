"""What a service claims of the namespace that it shares: its node's name, and the models of all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.claims import Claim, Claims
from broker.keys import Keys
from broker.queue import Broker
from broker.server import PrivateServer
from ops.errors import ConfigError
from tests.crash.harness import until
from tests.redis.proxy import CuttingProxy

SHORT_S, LONG_S = 0.6, 3_600.0
MakeClaims = Callable[..., Claims]


@pytest.fixture
def make_claims(fresh_server: PrivateServer, namespace: str) -> Iterator[MakeClaims]:
    """make_claims(holder, ...) of the node's name "same"; entered by the test, not closed."""
    made: list[Claims] = []
    key = Keys(namespace).node("same")

    def make(
        holder: str, lease_s: float = LONG_S, is_shared: bool = False, url: str = ""
    ) -> Claims:
        claim = Claim(key, holder, "another node ({who}) has the name", is_shared)
        made.append(Claims(url or fresh_server.url, namespace, [claim], lease_s))
        return made[-1]

    yield make
    for claims in made:
        claims.stop_renewing()


@pytest.fixture
def holder(fresh_server: PrivateServer, namespace: str) -> Callable[[], str]:
    """Whose the name is, up to the first space."""

    def look() -> str:
        broker = Broker(fresh_server.url, namespace, "node:test:0")
        try:
            return broker.claimed(Keys(namespace).node("same"))[0].partition(" ")[0]
        finally:
            broker.close()

    return look


def test_another_holder_is_refused_while_the_first_lives(make_claims: MakeClaims) -> None:
    make_claims("a host-1").enter()
    with pytest.raises(ConfigError, match=r"^another node \(host-1\) has the name$"):
        make_claims("b host-2").enter()


def test_the_same_holder_has_it_at_once_after_a_kill(make_claims: MakeClaims) -> None:
    # Given a claim that nobody renews or gives up; When its holder comes back under a new host name
    killed = make_claims("a host-1")
    killed.enter()
    killed.stop_renewing()
    # Then it neither waits nor is refused
    again = make_claims("a host-2")
    again.enter()
    again.require()


def test_what_the_dead_have_left_is_waited_for(
    make_claims: MakeClaims, holder: Callable[[], str], namespace: str
) -> None:
    # Given a node that was killed, and lost its state folder
    killed = make_claims("a host-1", 5 * SHORT_S)
    killed.enter()
    killed.stop_renewing()
    # When it comes back as somebody new; Then it has the name when the lease is over
    told: list[str] = []
    make_claims("b host-1", SHORT_S).enter(told.append)
    assert holder() == "b"
    # And says once that it waits, and for what
    assert [line.rpartition(" ")[2] for line in told] == [f"{{{namespace}}}:node:same"]


def test_what_is_given_up_is_free_unless_others_share_it(
    make_claims: MakeClaims, holder: Callable[[], str]
) -> None:
    first = make_claims("a")
    first.enter()
    first.close()
    assert holder() == ""
    # And of a claim that several share one does not give up the others'
    shared = make_claims("a", is_shared=True)
    shared.enter()
    shared.close()
    assert holder() == "a"


def test_lost_memory_is_claimed_again(
    make_claims: MakeClaims, holder: Callable[[], str], fresh_server: PrivateServer, raw: Any
) -> None:
    claims = make_claims("a", SHORT_S)
    claims.enter()
    raw(fresh_server).flushall()
    until(lambda: holder() == "a", "the name to be claimed again", limit_s=30)
    claims.require()


def test_redis_that_is_away_changes_nothing(
    make_claims: MakeClaims,
    holder: Callable[[], str],
    fresh_server: PrivateServer,
    tmp_path: Path,
) -> None:
    # Given a holder that is cut off, and another one that has taken the name meanwhile
    proxy = CuttingProxy(tmp_path, fresh_server.socket)
    cut_off = make_claims("a", SHORT_S, url=proxy.url)
    cut_off.enter()
    proxy.close()
    make_claims("b host-2", SHORT_S).enter()
    assert holder() == "b"
    # Then the first one goes on, until it can see that the name is gone
    cut_off.require()


def test_holder_whose_name_was_taken_is_told(
    make_claims: MakeClaims, fresh_server: PrivateServer, namespace: str, raw: Any
) -> None:
    claims = make_claims("a", SHORT_S)
    claims.enter()
    raw(fresh_server).set(Keys(namespace).node("same"), "b host-2")

    def is_told() -> bool:
        try:
            claims.require()
        except ConfigError as error:
            return str(error) == "another node (host-2) has the name"
        return False

    until(is_told, "the first one to be told", limit_s=30)


def test_names_can_be_claimed_on_a_full_server(
    make_claims: MakeClaims, holder: Callable[[], str], fresh_server: PrivateServer, raw: Any
) -> None:
    raw(fresh_server).config_set("maxmemory", 1)
    make_claims("a").enter()
    assert holder() == "a"

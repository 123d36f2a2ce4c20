"""Roles that one process of all nodes fills at a time, on a real Redis."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from broker.queue import Broker
from broker.role import STAND_BY_S, RoleLease
from broker.server import PrivateServer
from tests.crash.harness import until
from tests.redis.proxy import CuttingProxy

MakeBroker = Callable[..., Broker]
SHORT_S, MEDIUM_S, LONG_S = 0.6, 3.0, 3_600.0


def test_one_holds_the_role_and_the_other_stands_by(make_broker: MakeBroker) -> None:
    first = RoleLease(make_broker("a:writer:0"), "writer", LONG_S)
    second = RoleLease(make_broker("b:writer:0"), "writer", LONG_S)
    assert first.held()
    assert not second.held()
    # Another role is another matter
    assert RoleLease(make_broker("b:planner:0"), "planner", LONG_S).held()
    assert make_broker().role_holder("writer") == "a:writer:0"


def test_successor_of_the_same_name_has_it_at_once(make_broker: MakeBroker) -> None:
    assert RoleLease(make_broker("a:writer:0"), "writer", LONG_S).held()
    assert RoleLease(make_broker("a:writer:0"), "writer", LONG_S).held()


def test_role_that_is_given_up_is_taken_at_once(make_broker: MakeBroker) -> None:
    first = RoleLease(make_broker("a:writer:0"), "writer", LONG_S)
    second = RoleLease(make_broker("b:writer:0"), "writer", LONG_S)
    assert first.held()
    first.give_up()
    assert second.held()
    # And who has lost it cannot give it away
    first.give_up()
    assert make_broker().role_holder("writer") == "b:writer:0"


def test_holder_that_stops_renewing_loses_it_and_knows(make_broker: MakeBroker) -> None:
    first = RoleLease(make_broker("a:writer:0"), "writer", SHORT_S)
    second = RoleLease(make_broker("b:writer:0"), "writer", SHORT_S)
    assert first.held()
    # When the first one is stopped for longer than its lease
    until(second.held, "the lease of the first to end", limit_s=30)
    # Then it finds the role gone when it wakes, and gets it back when the other one ends
    assert not first.held()
    second.give_up()
    time.sleep(STAND_BY_S)
    assert first.held()


def test_holder_keeps_it_by_renewing(make_broker: MakeBroker) -> None:
    first = RoleLease(make_broker("a:writer:0"), "writer", MEDIUM_S)
    second = RoleLease(make_broker("b:writer:0"), "writer", MEDIUM_S)
    until_s = time.monotonic() + 1.5 * MEDIUM_S
    while time.monotonic() < until_s:
        assert first.held()
        assert not second.held()
        time.sleep(0.02)


def test_holder_that_is_cut_off_stands_down_by_its_own_clock(
    make_broker: MakeBroker, redis_server: PrivateServer, tmp_path: Path
) -> None:
    # Given a holder whose connection dies
    proxy = CuttingProxy(tmp_path, redis_server.socket)
    first = RoleLease(make_broker("a:writer:0", url=proxy.url), "writer", SHORT_S)
    second = RoleLease(make_broker("b:writer:0"), "writer", SHORT_S)
    assert first.held()
    proxy.close()
    # Then it goes on for the rest of its lease, and no longer, whoever else has the role
    until(lambda: not first.held(), "the holder to stand down", limit_s=30)
    until(second.held, "the other one to take over", limit_s=30)


def test_lost_memory_frees_the_role_and_the_first_to_ask_has_it(
    fresh_server: PrivateServer, make_broker: MakeBroker, raw: Any
) -> None:
    first = RoleLease(make_broker("a:planner:0", url=fresh_server.url), "planner", SHORT_S)
    second = RoleLease(make_broker("b:planner:0", url=fresh_server.url), "planner", SHORT_S)
    assert first.held()
    raw(fresh_server).flushall()
    assert second.held()
    # The first one notices at its next renewal, a third of a lease later
    until(lambda: not first.held(), "the first one to notice", limit_s=30)


def test_role_can_be_taken_on_a_full_server(
    fresh_server: PrivateServer, make_broker: MakeBroker, raw: Any
) -> None:
    broker = make_broker("a:planner:0", url=fresh_server.url)
    raw(fresh_server).config_set("maxmemory", 1)
    assert RoleLease(broker, "planner", LONG_S).held()
    assert RoleLease(broker, "planner", LONG_S).held()

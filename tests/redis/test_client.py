"""The border to Redis: time-outs set on purpose, and errors in one line that say what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from broker.client import MAX_BLOCK_MS, connect, without_password
from broker.keys import BATCHES, TASKS, Keys
from broker.queue import Broker
from broker.server import PrivateServer
from ops.errors import ConfigError, UnavailableError

CALLS: dict[str, Callable[[Broker], object]] = {
    "take": lambda b: b.take(TASKS, 1, 20),
    "extend": lambda b: b.extend(TASKS, ["1-1"]),
    "give_back": lambda b: b.give_back(TASKS, ["1-1"]),
    "give_back_all": lambda b: b.give_back_all(),
    "hand_off": lambda b: b.hand_off(TASKS, "1-1", [(BATCHES, b"x")], None, "job"),
    "acknowledge": lambda b: b.acknowledge(TASKS, ["1-1"]),
    "ensure_groups": lambda b: b.ensure_groups(),
    "establish_incarnation": lambda b: b.establish_incarnation(),
    "incarnation": lambda b: b.incarnation(),
    "outstanding": lambda b: b.outstanding(),
    "issue": lambda b: b.issue(b"task", "job", 0, 1),
    "open_shards": lambda b: b.open_shards(),
    "close_shards": lambda b: b.close_shards([("job", 0)]),
    "drop_job": lambda b: b.drop_job("job"),
    "cancel": lambda b: b.cancel("job"),
    "is_cancelled": lambda b: b.is_cancelled("job"),
    "last_activity": lambda b: b.last_activity(),
    "take_role": lambda b: b.take_role("planner", 1_000),
    "give_up_role": lambda b: b.give_up_role("planner"),
    "share": lambda b: b.share("mark"),
    "role_holder": lambda b: b.role_holder("planner"),
    "claim": lambda b: b.claim(Keys("vnp").models, "digest words", 1_000),
    "claimed": lambda b: b.claimed(Keys("vnp").models),
    "give_up_claim": lambda b: b.give_up_claim(Keys("vnp").models, "digest words"),
    "num_living": lambda b: b.num_living("gpu", 1.0),
    "progress": lambda b: b.progress("job"),
    "workers": lambda b: b.workers(),
    "stats": lambda b: b.stats(),
}
#: Methods that do not talk to Redis, or never fail.
SILENT = {"close", "on_unavailable", "hold", "release", "let_go", "held", "idle_s", "register"}


def test_every_method_is_tried_below() -> None:
    public = {name for name in dir(Broker) if not name.startswith("_")}
    assert public == set(CALLS) | SILENT


@pytest.mark.parametrize("name", CALLS)
def test_no_server(name: str, tmp_path: Path) -> None:
    # Given no Redis where one should be
    broker = Broker(f"unix://{tmp_path}/none.sock", "vnp", "node:test:0")
    # When it is used
    with pytest.raises(UnavailableError) as caught:
        CALLS[name](broker)
    # Then the error is one line with the address
    message = str(caught.value)
    assert "\n" not in message
    assert f"{tmp_path}/none.sock does not answer" in message
    assert message.endswith("is it running?")
    broker.close()


def test_reader_waits_longer_than_it_blocks_and_never_retries() -> None:
    # Given the two kinds of client
    reader, command = connect("unix:///x", "reader"), connect("unix:///x", "command")
    options = reader.connection_pool.connection_kwargs
    # Then a reader's time-out is finite and longer than any BLOCK, and it tries once
    assert MAX_BLOCK_MS / 1_000 < options["socket_timeout"] < 60
    assert options["retry"].get_retries() == 0
    # And a command is tried again
    assert command.connection_pool.connection_kwargs["retry"].get_retries() > 0
    # And both speak RESP2 and bytes, whatever the library's defaults become
    for client in (reader, command):
        assert client.connection_pool.connection_kwargs["protocol"] == 2
        assert not client.connection_pool.connection_kwargs["decode_responses"]


def test_waiting_reader_gets_what_comes(make_broker: Callable[..., Broker]) -> None:
    # Given an empty stream
    broker = make_broker()
    # When a worker waits in vain
    assert broker.take(TASKS, 1, 300) == []
    # Then that is no error, and the next entry reaches it
    broker.issue(b"task", "job", 0, 1)
    assert len(broker.take(TASKS, 1, 300)) == 1


@pytest.mark.parametrize("block_ms", [0, MAX_BLOCK_MS + 1])
def test_block_has_bounds(make_broker: Callable[..., Broker], block_ms: int) -> None:
    # A BLOCK of 0 would mean for ever, and one above the socket's time-out an error
    with pytest.raises(AssertionError):
        make_broker().take(TASKS, 1, block_ms)


@pytest.mark.parametrize("url", ["", "redis.sock", "http://host:1", "redis://host:port"])
def test_malformed_url(url: str) -> None:
    with pytest.raises(ConfigError, match="must be unix:///PATH, redis://HOST:PORT"):
        connect(url, "command")


@pytest.mark.parametrize("namespace", ["", "a b", "{a}", "a:b", "-a", "x" * 65, "a\n"])
def test_malformed_namespace(namespace: str) -> None:
    with pytest.raises(ConfigError, match="namespace"):
        Keys(namespace)


def test_all_keys_share_a_hash_tag() -> None:
    # Given the keys of a namespace
    keys = Keys("vnp@two")
    named = [keys.open, keys.incarnation, keys.activity, keys.workers]
    named += [keys.stream(TASKS), keys.dropped("{job}"), keys.progress("job")]
    # Then they land in one slot of a cluster, which hashes the first {...} only
    assert len(set(named)) == 7
    assert all(key.startswith("{vnp@two}:") for key in named)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rediss://worker:secret@host:6379/0", "rediss://worker@host:6379/0"),
        ("redis://:secret@host:6379", "redis://@host:6379"),
        ("unix://user:secret@/run/vnp/redis.sock?db=1", "unix://user@/run/vnp/redis.sock"),
        ("redis://host:6379?password=secret", "redis://host:6379"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
    ],
)
def test_passwords_are_not_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_refused_user(fresh_server: PrivateServer) -> None:
    # Given a user that Redis does not know
    url = fresh_server.url.replace("unix://", "unix://worker:secret@")
    broker = Broker(url, "vnp")
    # When it is used, then the error says so, without the password
    with pytest.raises(UnavailableError, match="refuses this user") as caught:
        broker.incarnation()
    assert "secret" not in str(caught.value)
    broker.close()


def test_refused_command(fresh_server: PrivateServer, raw: Callable[..., object]) -> None:
    # Given a key of the wrong type
    client = raw(fresh_server)
    client.set(Keys("vnp").open, "not a hash")  # type: ignore[attr-defined]
    broker = Broker(fresh_server.url, "vnp")
    # When it is read, then the error carries Redis' own words
    with pytest.raises(UnavailableError, match=r"refused a command \(.*WRONGTYPE|wrong kind"):
        broker.open_shards()
    broker.close()

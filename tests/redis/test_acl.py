"""Users of Redis: each role can do its work, and nothing beyond; nobody needs CONFIG or DEBUG."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
import redis

from broker.acl import ONCE, ROLES, rules
from broker.keys import BATCHES, GROUPS, RESULTS, TASKS, Keys
from broker.queue import Broker
from broker.server import PrivateServer
from ops.errors import UnavailableError

JOB = "job"
PASSWORD = "s3cret/with:odd@letters"


@pytest.fixture
def as_user(fresh_server: PrivateServer, namespace: str, raw: Any) -> Any:
    """as_user(*roles) is a broker whose user has just these roles."""
    brokers: list[Broker] = []

    def make(*roles: str) -> Broker:
        name = "-".join(roles)
        raw(fresh_server).execute_command(
            "ACL", "SETUSER", name, "reset", "on", f">{PASSWORD}", *rules(roles, namespace)
        )
        url = f"unix://{name}:{quote(PASSWORD, safe='')}@{fresh_server.socket}"
        brokers.append(Broker(url, namespace, f"node:{name}:0", 30.0))
        return brokers[-1]

    yield make
    for broker in brokers:
        broker.close()


def test_a_shard_goes_through_the_hands_of_all_roles(as_user: Callable[..., Broker]) -> None:
    planner, packer, gpu, writer = (as_user(role) for role in ROLES[:4])
    planner.ensure_groups()
    planner.establish_incarnation()
    planner.issue(b"task", JOB, 0, charge=1)
    [task] = packer.take(TASKS, 1, 50)
    packer.hand_off(TASKS, task.id, [(BATCHES, b"b"), (RESULTS, b"a")], {"rows_packed": 1}, JOB)
    gpu.register({"device": "cpu"})
    [batch] = gpu.take(BATCHES, 1, 50)
    assert gpu.extend(BATCHES, [batch.id]) == {batch.id}
    assert not gpu.is_cancelled(JOB)
    gpu.hand_off(BATCHES, batch.id, [(RESULTS, b"r")], {"rows_computed": 1}, JOB)
    entries = writer.take(RESULTS, 9, 50)
    assert writer.acknowledge(RESULTS, [entry.id for entry in entries]) == 2
    assert planner.outstanding() == 0
    assert planner.last_activity() > 0
    planner.close_shards([(JOB, 0)])
    planner.drop_job(JOB)
    assert "node:gpu:0" in writer.workers()


@pytest.mark.parametrize("role", ROLES[:4])
def test_every_node_claims_its_name_and_models(
    as_user: Callable[..., Broker], namespace: str, role: str
) -> None:
    broker, keys = as_user(role), Keys(namespace)
    for key in (keys.node("n-1.example"), keys.models):
        assert broker.claim(key, "a words", 60_000)
        assert not broker.claim(key, "b words", 60_000)
        holder, left_ms = broker.claimed(key)
        assert (holder, left_ms > 0) == ("a words", True)
        broker.give_up_claim(key, "a words")
    # And who plans or writes tells which folder is shared
    if role in ONCE:
        assert broker.share("mark") == "mark"
        assert broker.share("other") == "mark"


def test_a_lost_group_is_made_again_by_whoever_takes(
    as_user: Callable[..., Broker], raw: Any, fresh_server: PrivateServer
) -> None:
    gpu = as_user("gpu")
    gpu.ensure_groups()
    raw(fresh_server).flushall()
    assert gpu.take(BATCHES, 1, 20) == []
    assert gpu.take(BATCHES, 1, 20) == []


def test_users_of_vnp_see_progress_and_no_results(
    as_user: Callable[..., Broker], namespace: str
) -> None:
    # Given a service with results in Redis
    service = as_user("planner", "packer", "gpu", "writer")
    service.ensure_groups()
    service.issue(b"task", JOB, 0, charge=1)
    [task] = service.take(TASKS, 1, 50)
    service.hand_off(TASKS, task.id, [(RESULTS, b"secret")], {"rows_packed": 7}, JOB)
    # When somebody looks who may submit
    client = as_user("client")
    # Then there is the progress
    assert client.progress(JOB) == {"rows_packed": 7}
    # And nothing else
    keys = Keys(namespace)
    for command in (
        ["XRANGE", keys.stream(RESULTS), "-", "+"],
        ["XREADGROUP", "GROUP", "writers", "x", "STREAMS", keys.stream(RESULTS), ">"],
        ["XADD", keys.stream(TASKS), "*", "m", "x"],
        ["HGETALL", keys.open],
        ["DEL", keys.progress(JOB)],
        ["KEYS", "*"],
    ):
        with pytest.raises(Exception, match=r"(?i)no permission|NOPERM"):
            client._commands.execute_command(*command)
    with pytest.raises(UnavailableError, match="refuses this user"):
        client.take(RESULTS, 1, 20)


@pytest.mark.parametrize("role", ROLES)
def test_nobody_may_touch_the_server_or_others(as_user: Callable[..., Broker], role: str) -> None:
    commands = as_user(role)._commands
    for words in (
        ["CONFIG", "GET", "*"],
        ["DEBUG", "SLEEP", "0"],
        ["FLUSHALL"],
        ["ACL", "LIST"],
        ["MONITOR"],
        ["SET", "{other}:incarnation", "x"],
    ):
        # From 7.0 on a server refuses DEBUG to all before it looks at the user.
        with pytest.raises(Exception, match=r"(?i)no permission|NOPERM|DEBUG command not allowed"):
            commands.execute_command(*words)


def test_the_scaler_sees_counts_and_no_entry(
    as_user: Callable[..., Broker], namespace: str, fresh_server: PrivateServer
) -> None:
    # Given a service with a task that waits and a batch in hand
    service = as_user("planner", "packer", "gpu", "writer")
    service.ensure_groups()
    service.issue(b"secret", JOB, 0, charge=1)
    # When KEDA's scaler connects as its client library does, and asks what it asks
    as_user("scaler")
    client = redis.Redis(
        unix_socket_path=str(fresh_server.socket), username="scaler", password=PASSWORD, protocol=3
    )
    keys = Keys(namespace)
    for words in (
        ["PING"],
        ["SELECT", "0"],
        ["INFO"],
        ["XINFO", "GROUPS", keys.stream(BATCHES)],
        ["XINFO", "GROUPS", keys.stream(TASKS)],
        ["XPENDING", keys.stream(BATCHES), GROUPS[BATCHES]],
        ["XPENDING", keys.stream(TASKS), GROUPS[TASKS]],
        ["XLEN", keys.stream(TASKS)],
    ):
        client.execute_command(*words)
    # Then it may do that, and neither read nor write nor change anything
    for words in (
        ["XRANGE", keys.stream(TASKS), "-", "+"],
        ["XREADGROUP", "GROUP", "packers", "x", "STREAMS", keys.stream(TASKS), ">"],
        ["XADD", keys.stream(TASKS), "*", "m", "x"],
        ["XDEL", keys.stream(TASKS), "1-1"],
        ["XGROUP", "DESTROY", keys.stream(TASKS), "packers"],
        ["XINFO", "STREAM", keys.stream(TASKS), "FULL"],
        ["XLEN", keys.stream(RESULTS)],
        ["HGETALL", keys.open],
        ["HGETALL", keys.progress(JOB)],
        ["EVAL", "return 1", "0"],
    ):
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.execute_command(*words)
    client.close()


def test_the_writer_issues_no_work(as_user: Callable[..., Broker]) -> None:
    as_user("planner").ensure_groups()
    with pytest.raises(UnavailableError):
        as_user("writer").issue(b"task", JOB, 0, charge=1)


def test_passwords_stay_out_of_messages(as_user: Callable[..., Broker]) -> None:
    with pytest.raises(UnavailableError) as caught:
        as_user("client").take(RESULTS, 1, 20)
    assert PASSWORD not in str(caught.value)
    assert quote(PASSWORD, safe="") not in str(caught.value)


def aclfile(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "broker.acl", *words], capture_output=True, text=True
    )


def test_lines_for_the_servers_aclfile(fresh_server: PrivateServer, raw: Any) -> None:
    # Given the lines of all roles, and the one of a node with some
    lines = aclfile("ns").stdout.splitlines() + aclfile("ns", "packer,gpu").stdout.splitlines()
    assert [line.split()[1] for line in lines] == [f"ns-{role}" for role in (*ROLES, "node")]
    # Then a server takes each of them
    for line in lines:
        raw(fresh_server).execute_command("ACL", "SETUSER", *line.split()[1:])
    assert set(raw(fresh_server).acl_users()) == {"default", *(line.split()[1] for line in lines)}
    # And a role that there is none of is refused
    refused = aclfile("ns", "gpus")
    assert (refused.returncode, refused.stdout) == (64, "")
    assert "no role gpus" in refused.stderr

"""Words to systemd, against a datagram socket like systemd's."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator, MutableMapping
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from daemon.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A socket, and how NOTIFY_SOCKET names it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.settimeout(5)
        name = str(tmp_path / "notify")
        if request.param == "abstract":
            name = f"@vnp-test-{secrets.token_hex(8)}"
        bound.bind("\0" + name[1:] if name.startswith("@") else name)
        yield bound, name


def speaks(environment: MutableMapping[str, str]) -> closing[Notifier]:
    return closing(Notifier(environment))


def nothing_more(bound: socket.socket) -> bool:
    bound.settimeout(0.05)
    try:
        bound.recv(4_096)
    except TimeoutError:
        return True
    return False


def test_states_arrive_in_one_message(listener: tuple[socket.socket, str]) -> None:
    bound, name = listener
    with speaks({"NOTIFY_SOCKET": name}) as notifier:
        notifier.send("READY=1", "STATUS=serves")
    assert bound.recv(4_096) == b"READY=1\nSTATUS=serves"


def test_status_is_sent_when_it_changes(listener: tuple[socket.socket, str]) -> None:
    bound, name = listener
    with speaks({"NOTIFY_SOCKET": name}) as notifier:
        for text in ("one", "one", "two"):
            notifier.status(text)
    assert [bound.recv(4_096) for _ in range(2)] == [b"STATUS=one", b"STATUS=two"]
    assert nothing_more(bound)


def test_watchdog_is_fed_at_half_its_interval(
    listener: tuple[socket.socket, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a watchdog of 400 ms, and a clock that nobody holds up
    milliseconds = iter(range(1_000, 1_501))
    clock = SimpleNamespace(monotonic=lambda: next(milliseconds) / 1_000)
    monkeypatch.setattr("daemon.notify.time", clock)
    bound, name = listener
    with speaks({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "400000"}) as notifier:
        # When there are many more calls than pings are due
        for _ in range(500):
            notifier.ping()
    # Then there were three, at 0, 200 and 400 ms
    assert [bound.recv(4_096) for _ in range(3)] == [b"WATCHDOG=1"] * 3
    assert nothing_more(bound)


def test_watchdog_of_another_process(listener: tuple[socket.socket, str]) -> None:
    bound, name = listener
    variables = {"WATCHDOG_USEC": "400000", "WATCHDOG_PID": str(os.getpid() + 1)}
    with speaks({"NOTIFY_SOCKET": name, **variables}) as notifier:
        notifier.ping()
    assert nothing_more(bound)


def test_children_inherit_nothing(listener: tuple[socket.socket, str]) -> None:
    environment = {"NOTIFY_SOCKET": listener[1], "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "A": ""}
    with speaks(environment):
        pass
    assert environment == {"A": ""}


def test_nobody_listens(tmp_path: Path) -> None:
    # Without systemd, and with one that has gone: no error
    for environment in ({}, {"NOTIFY_SOCKET": str(tmp_path / "gone")}):
        with speaks(environment) as notifier:
            notifier.send("READY=1")

"""Preemption notices of three clouds, of a file and of a command."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from daemon import preemption
from daemon.preemption import Aws, Azure, Gcp, MetadataError, Watcher, find_cloud
from tests.preemption.metadata import EVENTS, TOKEN, Metadata, azure_event

CLOUDS = ("aws", "gcp", "azure")
SOURCES = {"aws": Aws, "gcp": Gcp, "azure": Azure}


def in_seconds(seconds: float) -> datetime:
    return datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=seconds)


NOTICES: dict[str, Callable[[], str]] = {
    "aws": lambda: in_seconds(90).isoformat().replace("+00:00", "Z"),
    "gcp": lambda: "TRUE",
    "azure": lambda: azure_event(before=format_datetime(in_seconds(90), usegmt=True)),
}


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Polls every twentieth of a second instead of every few seconds."""
    monkeypatch.setattr(preemption, "POLL_S", dict.fromkeys(preemption.POLL_S, 0.05))
    monkeypatch.setattr(preemption, "LONGEST_PAUSE_S", 0.2)
    monkeypatch.setattr(preemption, "ANSWER_LIMIT_S", 0.5)
    monkeypatch.setattr(preemption, "AZURE_FIRST_LIMIT_S", 3.0)


@pytest.fixture(params=CLOUDS)
def cloud(request: pytest.FixtureRequest) -> Iterator[Metadata]:
    with Metadata(request.param) as metadata:
        yield metadata


def until(condition: Callable[[], object], limit_s: float = 10) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def watched(cloud: Metadata) -> Watcher:
    watcher = Watcher(cloud.cloud, cloud.url)
    until(lambda: len(cloud.seen) > 2)
    return watcher


def test_found(cloud: Metadata) -> None:
    # Given a machine in one of three clouds; When nobody says in which
    found = find_cloud("auto", cloud.url)
    # Then it is found by asking
    assert found is not None
    assert found.name == cloud.cloud


def test_no_cloud() -> None:
    # Given no metadata service at all; When it is looked for
    began = time.monotonic()
    # Then there is none, and looking did not take long
    assert find_cloud("auto", "http://127.0.0.1:9") is None
    assert time.monotonic() - began < 3 * preemption.PROBE_LIMIT_S + 1


def test_notice_and_its_withdrawal(cloud: Metadata) -> None:
    # Given a watched machine that is not preempted
    watcher = watched(cloud)
    assert watcher.preempted is None
    # When notice is given
    cloud.notice = NOTICES[cloud.cloud]()
    until(lambda: watcher.preempted)
    # Then it is known, with the time that is left
    notice = watcher.preempted
    assert notice is not None
    assert (notice.source, notice.kind) == (cloud.cloud, "preempt")
    assert 25 < notice.budget_s <= 90
    # And when it is withdrawn, so is ours
    cloud.notice = None
    until(lambda: watcher.preempted is None)
    watcher.close()


@pytest.mark.parametrize("code", [404, 500])
def test_storm_of_errors(cloud: Metadata, code: int) -> None:
    # Given a service that answers everything with an error for a while
    watcher = watched(cloud)
    cloud.fails = code
    count = len(cloud.seen)
    until(lambda: len(cloud.seen) > count + 4)
    assert watcher.preempted is None
    # When it recovers, with a notice; Then the notice is seen
    cloud.notice = NOTICES[cloud.cloud]()
    cloud.fails = 0
    until(lambda: watcher.preempted)
    watcher.close()


def test_hanging_answers(cloud: Metadata) -> None:
    # Given a service that takes its time for a while
    watcher = watched(cloud)
    cloud.delay_s = 1.0
    time.sleep(1.2)
    # When it is itself again, with a notice; Then the notice is seen
    cloud.notice = NOTICES[cloud.cloud]()
    cloud.delay_s = 0.0
    until(lambda: watcher.preempted, 15)
    watcher.close()


def test_aws_token_that_has_expired(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a token
    monkeypatch.setattr(preemption, "ANSWER_LIMIT_S", 5.0)
    with Metadata("aws") as cloud:
        source = Aws(cloud.url)
        assert source.poll() is None
        # When the service no longer knows it; Then a fresh one is taken, within one poll
        cloud.token = 2
        assert source.poll() is None
        assert [path for _, path, _ in cloud.seen].count(TOKEN) == 2


def test_aws_rebalance_is_a_hint() -> None:
    with Metadata("aws") as cloud:
        # Given a recommendation; Then it is a hint and no preemption
        cloud.hint = True
        watcher = Watcher("aws", cloud.url)
        until(lambda: watcher.hinted)
        assert watcher.preempted is None
        # And the notice that follows replaces it
        cloud.notice = NOTICES["aws"]()
        until(lambda: watcher.preempted)
        assert not watcher.hinted
        watcher.close()


@pytest.mark.parametrize(
    "event", [azure_event("another-vm"), azure_event(kind="Reboot"), azure_event(kind="Freeze")]
)
def test_azure_events_of_others(event: str) -> None:
    with Metadata("azure") as cloud:
        cloud.notice = event
        assert Azure(cloud.url).poll() is None


def test_azure_started_and_drained() -> None:
    with Metadata("azure") as cloud:
        # Given an event that has started already, and a slow first answer
        source = Azure(cloud.url)
        assert source.probe()
        cloud.notice, cloud.delay_s = azure_event(), 0.7
        notice = source.poll()
        # Then no time is left
        assert notice is not None
        assert notice.budget_s == 0
        # And when all is safe, the event may go ahead
        cloud.delay_s = 0.0
        source.drained()
        method, path, body = cloud.seen[-1]
        assert (method, path.partition("?")[0]) == ("POST", EVENTS)
        assert json.loads(body) == {"StartRequests": [{"EventId": "event-7"}]}


@pytest.mark.parametrize(("name", "text"), [("aws", "soon"), ("azure", '"now"')])
def test_nonsense_is_an_error(name: str, text: str) -> None:
    with Metadata(name) as cloud:
        cloud.notice = text
        with pytest.raises(MetadataError):
            SOURCES[name](cloud.url).poll()


def test_proxies_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a proxy that is not there
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with Metadata("gcp") as cloud:
        # Then the service is reached all the same
        assert find_cloud("gcp", cloud.url) is not None
        assert Gcp(cloud.url).probe()


def test_file_and_command(tmp_path: Path) -> None:
    # Given hooks for a file and for a command
    sign, other = tmp_path / "sign", tmp_path / "other"
    for watcher in (Watcher("off", file=sign), Watcher("off", command=f"test -e {other}")):
        time.sleep(0.2)
        assert watcher.preempted is None
        # When the sign appears; Then that is a notice, until it goes
        for path in (sign, other):
            path.touch()
        until(lambda watcher=watcher: watcher.preempted)
        for path in (sign, other):
            path.unlink()
        until(lambda watcher=watcher: watcher.preempted is None)
        watcher.close()

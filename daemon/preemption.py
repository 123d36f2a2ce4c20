"""Preemption notices: one watcher for the cloud that this machine is in, or a file, or a command.

A notice only saves time: nothing is lost without one. Endpoints and waiting times are those of the
clouds' documentation: AWS instance metadata (IMDSv2), GCP metadata server, Azure Scheduled Events
2020-07-01. Proxies are never asked.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, Protocol

from workers.logs import get_log

LINK_LOCAL = "http://169.254.169.254"
#: By number: a sandboxed unit may have no way to a name server.
GOOGLE = "http://169.254.169.254"
PROBE_LIMIT_S = 1.0
ANSWER_LIMIT_S = 5.0
#: The service enables itself on its first call, which may take two minutes.
AZURE_FIRST_LIMIT_S = 130.0
LONG_POLL_S = 60
TOKEN_S, RENEW_EARLY_S = 3_600, 15
#: What each cloud gives at least; a time that the notice names replaces it.
BUDGET_S = {"aws": 120.0, "gcp": 30.0, "azure": 30.0, "file": 30.0, "command": 30.0}
POLL_S = {"aws": 5.0, "gcp": 0.0, "azure": 1.0, "file": 1.0, "command": 5.0}
LONGEST_PAUSE_S = 30.0
Kind = Literal["preempt", "rebalance"]

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Notice:
    """The machine goes away in about budget_s seconds (preempt), or is likely to (rebalance)."""

    source: str
    kind: Kind
    budget_s: float


class MetadataError(Exception):
    """A metadata service that does not answer, or answers with nonsense."""


class Answer(NamedTuple):
    code: int
    body: str
    headers: Message


class Source(Protocol):
    """Something that gives notice."""

    @property
    def name(self) -> str: ...

    def poll(self) -> Notice | None:
        """Raises MetadataError."""

    def drained(self) -> None:
        """Called when everything is safe: the machine may go."""


class Cloud(Source, Protocol):
    """A source that has to be found first."""

    def probe(self) -> bool:
        """True when this machine is in this cloud. Raises MetadataError."""


def fetch(
    url: str,
    headers: Mapping[str, str],
    method: str = "GET",
    body: bytes | None = None,
    limit_s: float = ANSWER_LIMIT_S,
) -> Answer:
    """Any HTTP answer; MetadataError when there is none."""
    request = urllib.request.Request(url, body, dict(headers), method=method)
    try:
        with _opener.open(request, timeout=limit_s) as reply:
            return Answer(reply.status, reply.read(65_536).decode(errors="replace"), reply.headers)
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.read(65_536).decode(errors="replace"), error.headers)
    except (OSError, HTTPException) as error:
        raise MetadataError(f"{url} does not answer: {error}") from error


class Aws:
    """Spot instance-action, and the rebalance recommendation as an early hint."""

    name = "aws"

    def __init__(self, base: str = LINK_LOCAL) -> None:
        self._base = base
        self._token, self._renew_at = "", 0.0

    def probe(self) -> bool:
        return bool(self._new_token(PROBE_LIMIT_S))

    def poll(self) -> Notice | None:
        action = self._get("/latest/meta-data/spot/instance-action")
        if action.code == 200:
            try:
                at = datetime.fromisoformat(json.loads(action.body)["time"])
            except (ValueError, KeyError, TypeError) as error:
                raise MetadataError(f"instance-action is {action.body[:80]!r}") from error
            return Notice(self.name, "preempt", _seconds_until(at))
        hint = self._get("/latest/meta-data/events/recommendations/rebalance")
        return Notice(self.name, "rebalance", BUDGET_S["aws"]) if hint.code == 200 else None

    def drained(self) -> None:
        pass

    def _get(self, path: str) -> Answer:
        for _ in range(2):
            if time.monotonic() >= self._renew_at:
                self._new_token(ANSWER_LIMIT_S)
            answer = fetch(self._base + path, {"X-aws-ec2-metadata-token": self._token})
            if answer.code != 401:
                break
            self._renew_at = 0.0  # an expired token: a fresh one, once
        if answer.code not in (200, 404):
            raise MetadataError(f"{path} answers {answer.code}")
        return answer

    def _new_token(self, limit_s: float) -> str:
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_S)}
        answer = fetch(f"{self._base}/latest/api/token", headers, "PUT", limit_s=limit_s)
        if answer.code != 200:
            raise MetadataError(f"no IMDSv2 token: answer {answer.code}")
        self._token = answer.body.strip()
        self._renew_at = time.monotonic() + TOKEN_S - RENEW_EARLY_S
        return self._token


class Gcp:
    """The `preempted` value, by long poll."""

    name = "gcp"
    _headers: ClassVar = {"Metadata-Flavor": "Google"}

    def __init__(self, base: str = GOOGLE) -> None:
        self._base = base
        self._etag = ""

    def probe(self) -> bool:
        answer = fetch(f"{self._base}/computeMetadata/v1/", self._headers, limit_s=PROBE_LIMIT_S)
        return answer.code == 200 and answer.headers.get("Metadata-Flavor") == "Google"

    def poll(self) -> Notice | None:
        """Returns at once the first time, later when the value changes or the poll runs out."""
        wait = f"?wait_for_change=true&timeout_sec={LONG_POLL_S}&last_etag={self._etag}"
        url = f"{self._base}/computeMetadata/v1/instance/preempted{wait if self._etag else ''}"
        answer = fetch(url, self._headers, limit_s=LONG_POLL_S + ANSWER_LIMIT_S)
        if answer.code != 200:
            self._etag = ""
            raise MetadataError(f"preempted answers {answer.code}")
        self._etag = answer.headers.get("ETag", "")
        is_true = answer.body.strip().upper() == "TRUE"
        if not is_true and not self._etag:
            time.sleep(1.0)  # a server without etags would be asked without end
        return Notice(self.name, "preempt", BUDGET_S["gcp"]) if is_true else None

    def drained(self) -> None:
        pass


class Azure:
    """Scheduled Events of type Preempt that name this machine."""

    name = "azure"
    _headers: ClassVar = {"Metadata": "true"}

    def __init__(self, base: str = LINK_LOCAL) -> None:
        self._events = f"{base}/metadata/scheduledevents?api-version=2020-07-01"
        self._name = f"{base}/metadata/instance/compute/name?api-version=2021-02-01&format=text"
        self._machine = ""
        self._limit_s = AZURE_FIRST_LIMIT_S
        self._event = ""

    def probe(self) -> bool:
        answer = fetch(self._name, self._headers, limit_s=PROBE_LIMIT_S)
        self._machine = answer.body.strip() if answer.code == 200 else ""
        return bool(self._machine)

    def poll(self) -> Notice | None:
        if not self._machine and not self.probe():
            raise MetadataError("the machine's name is not known")
        answer = fetch(self._events, self._headers, limit_s=self._limit_s)
        if answer.code != 200:
            raise MetadataError(f"scheduledevents answers {answer.code}")
        self._limit_s = ANSWER_LIMIT_S
        try:
            events = json.loads(answer.body)["Events"]
            ours = [
                event
                for event in events
                if event["EventType"] == "Preempt" and self._machine in event["Resources"]
            ]
            if not ours:
                return None
            self._event = str(ours[0]["EventId"])
            before = ours[0].get("NotBefore")
            budget_s = _seconds_until(parsedate_to_datetime(before)) if before else 0.0
        except (ValueError, KeyError, TypeError) as error:
            raise MetadataError(f"scheduledevents is {answer.body[:80]!r}") from error
        return Notice(self.name, "preempt", budget_s)

    def drained(self) -> None:
        """Lets the event go ahead, so that nobody pays for the rest of the notice."""
        body = json.dumps({"StartRequests": [{"EventId": self._event}]}).encode()
        fetch(self._events, self._headers, "POST", body)


@dataclass(frozen=True)
class FileHook:
    """A file that somebody makes: notice."""

    path: Path
    name: str = "file"

    def poll(self) -> Notice | None:
        return Notice(self.name, "preempt", BUDGET_S["file"]) if self.path.exists() else None

    def drained(self) -> None:
        pass


@dataclass(frozen=True)
class CommandHook:
    """A shell command that ends with 0: notice."""

    command: str
    name: str = "command"

    def poll(self) -> Notice | None:
        try:
            done = subprocess.run(
                self.command, shell=True, capture_output=True, timeout=ANSWER_LIMIT_S
            )
        except subprocess.TimeoutExpired as error:
            raise MetadataError(f"{self.command!r} took longer than {ANSWER_LIMIT_S} s") from error
        return None if done.returncode else Notice(self.name, "preempt", BUDGET_S["command"])

    def drained(self) -> None:
        pass


CLOUDS: dict[str, Callable[..., Cloud]] = {"aws": Aws, "gcp": Gcp, "azure": Azure}


def find_cloud(choice: str, base: str | None = None) -> Cloud | None:
    """The cloud of that name, or with "auto" the first that answers; None when there is none."""
    if choice != "auto":
        return _made(choice, base)
    for name in CLOUDS:
        cloud = _made(name, base)
        try:
            if cloud.probe():
                return cloud
        except MetadataError:
            continue
    return None


def _made(name: str, base: str | None) -> Cloud:
    return CLOUDS[name](base) if base else CLOUDS[name]()


class Watcher:
    """Polls its sources, each in a thread of its own; `notice` is the latest of each kind.

    choice: off, auto, aws, gcp or azure. A source that fails is asked again, ever more rarely; that
    it fails is logged once.
    """

    def __init__(
        self, choice: str, base: str | None = None, file: Path | None = None, command: str = ""
    ) -> None:
        self._choice, self._base = choice, base
        self._closed = threading.Event()
        self._log = get_log("supervisor")
        self._notices: dict[str, Notice] = {}
        self._sources: list[Source] = [
            *([FileHook(file)] if file else []),
            *([CommandHook(command)] if command else []),
        ]
        for source in list(self._sources):
            self._start(self._watch, source)
        if choice != "off":
            self._start(self._find_and_watch)

    def _start(self, work: Callable[..., None], *arguments: Source) -> None:
        threading.Thread(target=work, args=arguments, name="preemption", daemon=True).start()

    @property
    def preempted(self) -> Notice | None:
        return self._notices.get("preempt")

    @property
    def hinted(self) -> bool:
        """True while a rebalance is recommended."""
        return "rebalance" in self._notices

    def _find_and_watch(self) -> None:
        cloud = find_cloud(self._choice, self._base)
        if cloud is None:
            self._log.info("preemption.no_cloud", message="no metadata service; SIGTERM is notice")
            return
        self._log.info("preemption.watching", message=f"asking {cloud.name}", source=cloud.name)
        self._sources.append(cloud)
        self._watch(cloud)

    def _watch(self, source: Source) -> None:
        pause = failures = 0.0
        while not self._closed.wait(pause):
            try:
                self._note(source.name, source.poll())
                failures, pause = 0, POLL_S[source.name]
            except (MetadataError, OSError) as error:
                if not failures:
                    self._log.warning("preemption.unknown", message=str(error), source=source.name)
                failures += 1
                pause = min(2.0**failures / 2, LONGEST_PAUSE_S)

    def _note(self, source: str, notice: Notice | None) -> None:
        """Keeps what is new, and drops what this source has withdrawn."""
        kind = notice.kind if notice else None
        for old in [k for k, n in self._notices.items() if n.source == source and k != kind]:
            del self._notices[old]
            self._log.info("preemption.withdrawn", message=f"{source}: {old}", source=source)
        if notice is not None and notice.kind not in self._notices:
            self._notices[notice.kind] = notice
            self._log.warning(
                "preemption.notice",
                message=f"{source}: {notice.kind} in {notice.budget_s:.0f} s",
                source=source,
                kind=notice.kind,
                budget_s=round(notice.budget_s, 1),
            )

    def drained(self) -> None:
        """Tells every source that gave notice; that it does not listen is no error."""
        notice = self.preempted
        for source in self._sources:
            if notice is not None and source.name == notice.source:
                try:
                    source.drained()
                except MetadataError as error:
                    self._log.warning("preemption.unknown", message=str(error))

    def close(self) -> None:
        """Threads end by themselves, or with the process: a long poll cannot be interrupted."""
        self._closed.set()


def _seconds_until(at: datetime) -> float:
    """From now, by this machine's clock; 0 for what is past."""
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())

"""What all processes share in Redis beside the entries: groups, open shards, jobs, gauges."""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import redis

from broker.client import connect, translated
from broker.keys import GROUPS, TASKS, Keys
from broker.scripts import Scripts
from ops.errors import UnavailableError

#: Ids or fields per call: bounds how long one call keeps the server to itself.
PAGE = 500
#: A consumer that was not seen for this long and holds nothing is forgotten; so are its words.
FORGET_AFTER_S = 3_600
#: How long the streams' leftovers of a job that has ended are known as such.
DROPPED_FOR_S = 7 * 86_400


@dataclass(frozen=True)
class StreamStats:
    """length: outstanding entries; pending: those of them that somebody works on."""

    length: int
    pending: int
    consumers: int


@dataclass(frozen=True)
class Stats:
    """Gauges as the server has them now; max_memory_bytes is 0 when there is no limit."""

    streams: dict[str, StreamStats]
    memory_bytes: int
    max_memory_bytes: int
    server_version: str


class SharedState:
    """The base of `queue.Broker`, which says what holds for both."""

    def __init__(self, url: str, namespace: str, consumer: str) -> None:
        self.url = url
        self.keys = Keys(namespace)
        self.consumer = consumer
        self._commands = connect(url, "command")
        self._scripts = Scripts(self._commands)
        self._activity: tuple[bytes | None, float] = (None, time.monotonic())
        self._info: str | None = None

    def close(self) -> None:
        self._commands.close()

    def on_unavailable(self) -> None:
        """Called after every failure of Redis, before the error goes on."""

    # -- groups ------------------------------------------------------------------------------------

    @translated
    def ensure_groups(self) -> None:
        """Makes what is missing of streams and groups, from entry 0; forgets dead consumers."""
        for stream, group in GROUPS.items():
            # Asked first: on a full server even the creation of an existing group is refused.
            if self._group(stream) is None:
                self._create_group(stream)
            self._scripts.run("reap", [self.keys.stream(stream)], [group, FORGET_AFTER_S * 1_000])

    def _group(self, stream: str) -> dict[str, Any] | None:
        try:
            groups: Any = self._commands.xinfo_groups(self.keys.stream(stream))
        except redis.ResponseError as error:
            if "no such key" not in str(error):
                raise
            return None
        name = GROUPS[stream].encode()
        return next((group for group in groups if group["name"] == name), None)

    def _create_group(self, stream: str) -> None:
        key, group = self.keys.stream(stream), GROUPS[stream]
        try:
            self._commands.xgroup_create(key, group, id="0", mkstream=True)
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):  # somebody else was faster
                raise
            return
        # The planner makes all groups before it issues anything. Whoever makes one later has seen
        # that memory was lost, perhaps this stream alone: the planner's books count no more.
        self._commands.delete(self.keys.incarnation, self.keys.open)

    # -- the planner's books -----------------------------------------------------------------------

    @translated
    def establish_incarnation(self) -> str:
        """Marks this memory of Redis, unless it is marked; returns the mark, see `issue`."""
        self._commands.set(self.keys.incarnation, secrets.token_hex(8), nx=True)
        mark: Any = self._commands.get(self.keys.incarnation)
        return str(mark.decode())

    @translated
    def incarnation(self) -> str | None:
        """The mark; None or another one than before when Redis has lost its memory."""
        mark: Any = self._commands.get(self.keys.incarnation)
        return mark.decode() if mark is not None else None

    @translated
    def issue(self, task: bytes, job: str, shard: int, charge: int) -> str:
        """Publishes a shard's task and notes the shard as open, with its charge in bytes.

        Returns the new mark of this memory of Redis: every issue sets one, so that also a Redis
        which goes back to an older state of its own shows it. Whoever calls this again publishes
        the task again. A full server refuses it as a whole. When it raises, the task may have been
        published all the same.
        """
        names = (self.keys.open, self.keys.dropped(job), self.keys.incarnation)
        mark = secrets.token_hex(8)
        words: list[str | bytes | int] = [f"{job}/{shard}", f"{charge} {mark}", task, mark]
        self._scripts.run("issue", [self.keys.stream(TASKS), *names], words)
        return mark

    @translated
    def outstanding(self) -> int:
        """Entries in all streams: work that is waited for, or in somebody's hands."""
        lengths: list[Any] = [self._commands.xlen(self.keys.stream(name)) for name in GROUPS]
        return sum(lengths)

    @translated
    def open_shards(self) -> dict[tuple[str, int], int]:
        """(job, shard) -> charge of what was issued and not closed."""
        fields: Any = self._commands.hgetall(self.keys.open)
        shards = {}
        for name, value in fields.items():
            job, _, shard = name.decode().rpartition("/")
            shards[job, int(shard)] = int(value.split()[0])
        return shards

    @translated
    def close_shards(self, shards: Iterable[tuple[str, int]]) -> None:
        """Notes shards as committed, or as nobody's any more."""
        names = [f"{job}/{shard}" for job, shard in shards]
        for page in pages(names):
            self._commands.hdel(self.keys.open, *page)

    @translated
    def drop_job(self, job: str) -> None:
        """Forgets a job that has ended: its counters go, its leftovers are not worth doing.

        Issuing a shard of it revives it.
        """
        keys = [self.keys.dropped(job), self.keys.progress(job)]
        self._scripts.run("drop_job", keys, [DROPPED_FOR_S])

    def cancel(self, job: str) -> None:
        """Workers skip what is left of the job from now on."""
        self.drop_job(job)

    @translated
    def is_cancelled(self, job: str) -> bool:
        """True when the job was cancelled or dropped."""
        return bool(self._commands.exists(self.keys.dropped(job)))

    @translated
    def last_activity(self) -> float:
        """time.monotonic() of when this process first saw that entries were acknowledged anew."""
        counter: Any = self._commands.get(self.keys.activity)
        if counter != self._activity[0]:
            self._activity = (counter, time.monotonic())
        return self._activity[1]

    # -- roles that are filled once ----------------------------------------------------------------

    @translated
    def take_role(self, role: str, lease_ms: int) -> bool:
        """Takes a role, or renews it; False while somebody else has it. See `role.RoleLease`."""
        words: list[str | bytes | int] = [self.consumer, lease_ms]
        return bool(self._scripts.run("take_role", [self.keys.role(role)], words))

    @translated
    def give_up_role(self, role: str) -> None:
        """Gives up a role; does nothing when it is somebody else's."""
        self._scripts.run("give_up_role", [self.keys.role(role)], [self.consumer])

    @translated
    def share(self, mark: str) -> str:
        """The mark of the folder that the nodes share: the one that was told first, or that was
        there when Redis had lost its memory. Empty: nobody has told one, nor is `mark` one."""
        known: Any = self._commands.get(self.keys.share)
        if known is None and mark:
            self._commands.set(self.keys.share, mark, nx=True)
            known = self._commands.get(self.keys.share)
        return known.decode() if known is not None else ""

    @translated
    def role_holder(self, role: str) -> str | None:
        """The consumer that fills a role now."""
        holder: Any = self._commands.get(self.keys.role(role))
        return holder.decode() if holder is not None else None

    # -- what a service claims for its node -------------------------------------------------------

    @translated
    def claim(self, key: str, holder: str, lease_ms: int) -> bool:
        """Claims a key, or renews the claim; False while another holder's lives.

        A holder is known by what stands before the first space.
        """
        return bool(self._scripts.run("take_role", [key], [holder, lease_ms]))

    @translated
    def claimed(self, key: str) -> tuple[str, int]:
        """Who has a claim, and its ms left; "" and less than 0 when nobody has."""
        left_ms: Any = self._commands.pttl(key)
        holder: Any = self._commands.get(key)
        return (holder.decode() if holder is not None else ""), left_ms

    @translated
    def give_up_claim(self, key: str, holder: str) -> None:
        """Does nothing when somebody else has it."""
        self._scripts.run("give_up_role", [key], [holder])

    # -- what a display wants ----------------------------------------------------------------------

    @translated
    def progress(self, job: str) -> dict[str, int]:
        """The job's counters; telemetry only."""
        counters: Any = self._commands.hgetall(self.keys.progress(job))
        return {name.decode(): int(value) for name, value in counters.items()}

    def register(self, info: Mapping[str, Any]) -> None:
        """Says something of this worker (JSON values). Repeated by `take`, so never an error."""
        self._info = json.dumps(dict(info))
        with contextlib.suppress(UnavailableError):
            self._register()

    @translated
    def _register(self) -> None:
        if self._info is not None:
            words = [self.consumer, self._info, str(FORGET_AFTER_S)]
            self._scripts.run("register", [self.keys.workers], words)

    @translated
    def workers(self) -> dict[str, dict[str, Any]]:
        """Consumer name -> what it has registered, with seen_s: seconds since it last said so."""
        now: Any = self._commands.time()
        said: Any = self._commands.hgetall(self.keys.workers)
        workers = {}
        for name, words in said.items():
            said_at, _, info = words.partition(b" ")
            workers[name.decode()] = {**json.loads(info), "seen_s": now[0] - int(said_at)}
        return workers

    def num_living(self, role: str, silent_s: float) -> int:
        """Workers of a role that have said something in the last silent_s seconds."""
        said = self.workers().values()
        return sum(word.get("role") == role and word["seen_s"] < silent_s for word in said)

    @translated
    def stats(self) -> Stats:
        """Lengths, pending entries and memory, read from the server."""
        info: Any = self._commands.info()
        return Stats(
            streams={stream: self._stream_stats(stream) for stream in GROUPS},
            memory_bytes=info["used_memory"],
            max_memory_bytes=info["maxmemory"],
            server_version=info.get("valkey_version", info["redis_version"]),
        )

    def _stream_stats(self, stream: str) -> StreamStats:
        length: Any = self._commands.xlen(self.keys.stream(stream))
        group = self._group(stream) or {"pending": 0, "consumers": 0}
        return StreamStats(length, group["pending"], group["consumers"])


def pages(items: list[str]) -> list[list[str]]:
    """The items in lists of at most PAGE."""
    return [items[i : i + PAGE] for i in range(0, len(items), PAGE)]

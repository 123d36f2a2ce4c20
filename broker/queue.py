"""The queue: entries are taken, held, and handed off or acknowledged; nothing is lost in between.

At least once, and harmless when twice: an entry stays pending until one script acknowledges it and
publishes what it became. Whoever dies, its entries are claimed by others when their lease expires,
or at once by its successor of the same name.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import redis

from broker.client import MAX_BLOCK_MS, connect, lost_group, translated
from broker.keys import FIELD, GROUPS, NOBODY
from broker.state import PAGE, SharedState, pages

#: Between two looks for other consumers' expired leases.
CLAIM_EVERY_S = 1.0


class Entry(NamedTuple):
    """One delivered message. deliveries counts this delivery too: 1 is the first."""

    id: str
    payload: bytes
    deliveries: int


@dataclass
class _Stream:
    """What this process knows of one stream: what it holds, and what it should look at again."""

    key: str
    group: str
    held: set[str] = field(default_factory=set)
    orphans: deque[str] = field(default_factory=deque)  # ours, and not in hand
    raise_deliveries: int = 1  # 1 until the predecessor's leftovers are listed
    reconcile_at: float = 0.0
    claim_at: float = 0.0


class Broker(SharedState):
    """One process' access to the queue; every method raises UnavailableError when Redis fails it.

    One thread takes; any thread may call the rest. An entry that `take` returned counts as in hand
    until the next `take`, and longer only while it is held (`hold`, `lease.LeaseKeeper`). What is
    then pending in our name and not in hand (its reply was lost, or its work was cut short) is
    delivered again, without being counted as a delivery. `consumer` is a stable name,
    node:role:slot: two living processes must not share one.
    """

    def __init__(
        self, url: str, namespace: str, consumer: str = "client", lease_s: float = 30.0
    ) -> None:
        super().__init__(url, namespace, consumer)
        self.lease_s = lease_s
        self._reader = connect(url, "reader")
        self._streams = {name: _Stream(self.keys.stream(name), GROUPS[name]) for name in GROUPS}
        self._lock = threading.Lock()
        self._touched = time.monotonic()

    def close(self) -> None:
        super().close()
        self._reader.close()

    def on_unavailable(self) -> None:
        """After any failure a delivery may have got lost on its way: the next `take` looks."""
        for stream in self._streams.values():
            stream.reconcile_at = 0.0

    # -- taking ------------------------------------------------------------------------------------

    @translated
    def take(self, stream: str, count: int, block_ms: int) -> list[Entry]:
        """At most `count` entries: own leftovers, else expired leases of others, else new ones.

        Waits up to block_ms for a new one. Empty when there was none, and after Redis was found to
        have lost the group (it is made again).
        """
        assert count > 0, count
        assert 0 < block_ms <= MAX_BLOCK_MS, block_ms
        self._touched = time.monotonic()
        state = self._streams[stream]
        try:
            return (
                self._take_leftovers(state, count)
                or self._take_expired(state, count)
                or self._take_new(state, count, block_ms)
            )
        except redis.ResponseError as error:
            if not lost_group(error):
                raise
            self.ensure_groups()
            return []

    def _take_leftovers(self, state: _Stream, count: int) -> list[Entry]:
        if time.monotonic() >= state.reconcile_at:
            self._reconcile(state)
        entries: list[Entry] = []
        while state.orphans and not entries:
            ids = [state.orphans.popleft() for _ in range(min(count, len(state.orphans)))]
            entries = self._claim(state, ids, "own", 0, state.raise_deliveries)
        if not state.orphans:
            state.raise_deliveries = 0
        return entries

    def _reconcile(self, state: _Stream) -> None:
        """Lists what is pending in our name and not in hand."""
        self._register()
        found = list(self._own_pending(state))
        with self._lock:
            state.orphans = deque(id_ for id_ in found if id_ not in state.held)
        state.reconcile_at = time.monotonic() + self.lease_s

    def _own_pending(self, state: _Stream) -> Iterator[str]:
        first = "-"
        while True:
            page: Any = self._commands.xpending_range(
                state.key, state.group, first, "+", PAGE, self.consumer
            )
            for entry in page:
                yield entry["message_id"].decode()
            if len(page) < PAGE:
                return
            first = f"({page[-1]['message_id'].decode()}"

    def _take_expired(self, state: _Stream, count: int) -> list[Entry]:
        if time.monotonic() < state.claim_at:
            return []
        state.claim_at = time.monotonic() + CLAIM_EVERY_S
        lease_ms = int(self.lease_s * 1_000)
        expired: Any = self._commands.xpending_range(
            state.key, state.group, "-", "+", max(count, PAGE), idle=lease_ms
        )
        mine = self.consumer.encode()
        ids = [e["message_id"].decode() for e in expired if e["consumer"] != mine]
        if len(ids) > count:
            state.claim_at = 0.0
        return self._claim(state, ids[:count], "others", lease_ms, 1)

    def _claim(
        self, state: _Stream, ids: list[str], whose: str, min_idle_ms: int, increment: int
    ) -> list[Entry]:
        if not ids:
            return []
        options: list[str | int] = [state.group, self.consumer, min_idle_ms, increment, whose]
        claimed = self._scripts.run("claim", [state.key], [*options, *ids], self._reader)
        return [Entry(id_.decode(), payload, count) for id_, count, payload in claimed]

    def _take_new(self, state: _Stream, count: int, block_ms: int) -> list[Entry]:
        reply: Any = self._reader.xreadgroup(
            state.group, self.consumer, {state.key: ">"}, count, block_ms
        )
        return [
            Entry(id_.decode(), fields.get(FIELD, b""), 1)
            for _, entries in reply or []
            for id_, fields in entries
        ]

    # -- holding -----------------------------------------------------------------------------------

    def hold(self, stream: str, id_: str) -> None:
        """Notes that an entry stays in hand over the next `take`."""
        self._touched = time.monotonic()
        with self._lock:
            self._streams[stream].held.add(id_)

    def release(self, stream: str, ids: Iterable[str]) -> None:
        """The opposite of hold. What is then still pending will be delivered again."""
        self._touched = time.monotonic()
        self.let_go(stream, ids)

    def let_go(self, stream: str, ids: Iterable[str]) -> None:
        """Like release, for a thread that watches the work but does not do it (see idle_s)."""
        with self._lock:
            self._streams[stream].held.difference_update(ids)

    def held(self, stream: str) -> set[str]:
        """Ids that are held now."""
        with self._lock:
            return set(self._streams[stream].held)

    @property
    def idle_s(self) -> float:
        """Seconds since this process last took, held or released an entry."""
        return time.monotonic() - self._touched

    @translated
    def extend(self, stream: str, ids: Iterable[str]) -> set[str]:
        """Renews leases; returns the ids that are still ours. The others are not any more."""
        state = self._streams[stream]
        ours: set[str] = set()
        for page in pages(list(ids)):
            ours.update(id_.decode() for id_ in self._run_on_own("extend", state, [], page) or [])
        return ours

    @translated
    def give_back(self, stream: str, ids: Iterable[str]) -> int:
        """Gives up entries undone, the delivery not counted; anyone may claim them at once.

        Returns how many were still ours.
        """
        state, ids = self._streams[stream], list(ids)
        self.release(stream, ids)
        return sum(self._run_on_own("give_back", state, [NOBODY], page) or 0 for page in pages(ids))

    @translated
    def give_back_all(self) -> int:
        """Gives up everything that is pending in our name, of all streams; returns how much."""
        count = 0
        for name, state in self._streams.items():
            if self._group(name) is not None:
                count += self.give_back(name, list(self._own_pending(state)))
        return count

    def _run_on_own(self, script: str, state: _Stream, options: list[str], ids: list[str]) -> Any:
        """The script's reply; None when Redis has lost the group, and with it what was ours."""
        arguments = [state.group, self.consumer, *options, *ids]
        try:
            return self._scripts.run(script, [state.key], arguments)
        except redis.ResponseError as error:
            if not lost_group(error):
                raise
            return None

    # -- finishing ---------------------------------------------------------------------------------

    @translated
    def hand_off(
        self,
        source: str,
        id_: str,
        outputs: Sequence[tuple[str, bytes]],
        progress: Mapping[str, int] | None,
        job: str,
    ) -> bool:
        """Acknowledges an entry and publishes its outputs (stream, payload), in one script.

        False when the entry was handed off before, and then nothing is published: somebody else was
        faster, or an earlier try of this very call had lost its reply. Works on a full server. For
        a dropped job only the acknowledgement is done.
        """
        state, progress = self._streams[source], progress or {}
        streams = sorted({name for name, _ in outputs})
        keys = [
            state.key,
            self.keys.activity,
            self.keys.dropped(job),
            self.keys.progress(job),
            *(self.keys.stream(name) for name in streams),
        ]
        arguments: list[str | bytes | int] = [state.group, id_, len(progress)]
        for counter in progress.items():
            arguments += counter
        for name, payload in outputs:
            arguments += (5 + streams.index(name), payload)
        done = bool(self._scripts.run("hand_off", keys, arguments))
        self.release(source, [id_])
        return done

    @translated
    def acknowledge(self, stream: str, ids: Iterable[str]) -> int:
        """Acknowledges and deletes entries; returns how many were still pending."""
        state, ids = self._streams[stream], list(ids)
        keys = [state.key, self.keys.activity]
        acknowledged = sum(
            int(self._scripts.run("acknowledge", keys, [state.group, *page])) for page in pages(ids)
        )
        self.release(stream, ids)
        return acknowledged

"""Follows the manifest of an object store, for the planner and for displays."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from ops.bucket import READERS, Bucket
from ops.errors import PermissionDeniedError, StoreError
from ops.manifest import EpochLine, HeaderLine, Line, ShardLine

#: Stores that did not answer when last asked, by scheme and bucket, and until when nobody asks them
#: again (monotonic).
_AWAY: dict[str, float] = {}


class BucketTail:
    """Follows the manifest; at most one request a second when there is nothing new.

    A store that does not answer has nothing new, and is not asked for a while, by no tail of this
    process: each try takes its time, and there may be many jobs.
    """

    EVERY_S, AWAY_S = 1.0, 10.0

    def __init__(self, bucket: Bucket, slice_s: float) -> None:
        self._bucket = bucket
        self._slice_s = slice_s
        self._next = self._epoch = 0
        self._width = 1  # lines that are asked for at once
        self._poll_at = 0.0
        self.known_until = 0.0
        self.committed: set[int] = set()

    @property
    def is_away(self) -> bool:
        return self._bucket.store in _AWAY

    def poll(self, *, at_once: bool = False) -> list[ShardLine]:
        """As a `place.Tail` does. Raises CorruptionError."""
        new: list[ShardLine] = []
        now = time.monotonic()
        if now < _AWAY.get(self._bucket.store, 0.0) or (now < self._poll_at and not at_once):
            return new
        try:
            if self._read_on(new, now + self._slice_s):
                self._poll_at = time.monotonic() + self.EVERY_S
            _AWAY.pop(self._bucket.store, None)
        except (StoreError, PermissionDeniedError):
            _AWAY[self._bucket.store] = time.monotonic() + self.AWAY_S
        return new

    def _read_on(self, new: list[ShardLine], until: float) -> bool:
        """Appends to what is new; True when all was read before the time was over."""
        while time.monotonic() < until:
            asked = time.monotonic()
            for line in self._ask_for_more():
                if line is None:
                    self._width, self.known_until = 1, asked
                    return True
                self._next += 1
                self._take(line, new)
            self._width = min(2 * self._width, READERS)
        return False

    def _ask_for_more(self) -> list[Line | None]:
        """The next lines, the more at once the more there were; None where there is none yet."""
        if self._width == 1:
            return [self._bucket.line(self._next)]
        with ThreadPoolExecutor(self._width) as pool:
            numbers = range(self._next, self._next + self._width)
            return list(pool.map(self._bucket.line, numbers))

    def _counts(self, line: ShardLine) -> bool:
        return line.epoch == self._epoch and line.shard not in self.committed

    def _take(self, line: Line, new: list[ShardLine]) -> None:
        """The same rule as ManifestState.apply, for a reader that keeps numbers only."""
        if isinstance(line, HeaderLine):
            self.committed.clear()
            new.clear()
        elif isinstance(line, EpochLine):
            self._epoch = max(self._epoch, line.epoch)
        elif self._counts(line):
            self.committed.add(line.shard)
            new.append(line)

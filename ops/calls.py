"""From frame scores to calls: of every chunk, and of every record, which may span many shards.

Chunk (the original's rule): s1 and s2 are the largest others- and virus-probability of its frames;
it is virus when s2 >= s1, its score is s2 / (s1 + s2), and its best frame is the first with s2.
A chunk with a failed frame has failed and is not scored: what the frame would have said is unknown.
Record: the float64 mean of the scores of its scored chunks, added up in order; virus from 0.5.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ops.gather import RowColumns, chunk_of_row
from ops.nouns import U8, Account, Status

VIRUS_FROM = 0.5
FRAMES = ("", "F1", "F2", "F3", "R1", "R2", "R3")
#: Statuses of a record that no chunk can change, in the order in which they apply.
_DECIDED = (Status.EMPTY, Status.TOO_SHORT, Status.TOO_LONG, Status.FILTERED)
#: Statuses that its chunks give it, in the order in which they apply.
_BY_CHUNKS = (Status.FAILED, Status.OK, Status.TOO_LONG, Status.AMBIGUOUS)


@dataclass(frozen=True)
class ChunkCall:
    """One scored chunk: is it virus, how sure (0 to 1), and which frame (1 to 6) says so most."""

    is_virus: bool
    score: float
    best_frame: int


@dataclass(frozen=True, eq=False)
class ChunkCalls:
    """The calls of a shard's chunks, one entry per chunk of its account."""

    status: U8  # Status: OK (scored; in protein and dna jobs: embedded), FAILED, or the account's
    is_virus: NDArray[np.bool_]  # False where not scored
    score: NDArray[np.float64]  # NaN where not scored
    best_frame: U8  # 0 where not scored


def call_chunk(frames: Sequence[tuple[int, float, float]]) -> ChunkCall:
    """The rule, plainly, for one chunk: (frame, P(others), P(virus)) of its frames, in order."""
    s1 = max(others for _, others, _ in frames)
    s2 = max(virus for _, _, virus in frames)
    best = next(frame for frame, _, virus in frames if virus == s2)
    return ChunkCall(s2 >= s1, s2 / (s1 + s2), best)


def call_chunks(account: Account, rows: RowColumns) -> ChunkCalls:
    """The rule for all chunks of a shard at once. float32 scores are widened before dividing."""
    place = chunk_of_row(account)
    status = np.array(account.chunk_status, np.uint8)
    status[place[rows.status == Status.FAILED]] = Status.FAILED
    score = np.full(len(status), np.nan)
    best_frame = np.zeros(len(status), np.uint8)
    is_virus = np.zeros(len(status), bool)
    if rows.scores is not None and len(place):
        first = np.flatnonzero(np.diff(place, prepend=-1))
        chunk, scores = place[first], rows.scores.astype(np.float64)
        s1, s2 = np.maximum.reduceat(scores, first).T
        best = np.flatnonzero(scores[:, 1] == np.repeat(s2, np.diff(first, append=len(place))))
        best_of, at = np.unique(place[best], return_index=True)
        scored = status[chunk] == Status.OK
        score[chunk] = np.where(scored, s2 / (s1 + s2), np.nan)
        is_virus[chunk] = scored & (s2 >= s1)
        best_frame[best_of] = rows.frame[best[at]]
        best_frame[status != Status.OK] = 0
    return ChunkCalls(status, is_virus, score, best_frame)


@dataclass
class RecordTally:
    """A record's call, from its chunks in order; what it holds does not grow with the record."""

    num_scored: int = 0
    num_virus: int = 0
    longest_virus_run: int = 0  # of neighbouring chunks; one that is not scored ends a run
    max_chunk_score: float = float("nan")
    num_chunks: dict[int, int] = field(default_factory=dict)  # by status
    _sum: float = 0.0
    _run: int = 0

    def add(self, status: int, is_virus: bool, score: float) -> None:
        """Takes the next chunk in. score: NaN when it has none."""
        self.num_chunks[status] = self.num_chunks.get(status, 0) + 1
        self._run = self._run + 1 if is_virus else 0
        self.longest_virus_run = max(self.longest_virus_run, self._run)
        if score == score:
            self.num_scored += 1
            self.num_virus += is_virus
            self._sum += score
            if not self.max_chunk_score >= score:
                self.max_chunk_score = score

    @property
    def virus_score(self) -> float:
        """NaN when no chunk is scored."""
        return self._sum / self.num_scored if self.num_scored else float("nan")

    @property
    def prediction(self) -> str:
        """virus, others, or NA when no chunk is scored."""
        if not self.num_scored:
            return "NA"
        return "virus" if self.virus_score >= VIRUS_FROM else "others"

    def status(self, record_status: int) -> Status:
        """The first that applies; a record is too_long by its chunks when none could be scored."""
        if record_status in _DECIDED:
            return Status(record_status)
        by_chunks = (status for status in _BY_CHUNKS if status in self.num_chunks)
        return next(by_chunks, Status.NO_OPEN_FRAME)


def call_record(chunks: Iterable[tuple[int, bool, float]]) -> RecordTally:
    """The call of a whole record from (status, is_virus, score) of all its chunks, in order."""
    tally = RecordTally()
    for status, is_virus, score in chunks:
        tally.add(status, is_virus, score)
    return tally

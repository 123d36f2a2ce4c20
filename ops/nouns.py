"""The nouns that every room shares: what travels from the planner to the shard, as plain columns.

All of them are frozen, hold numpy arrays and plain values only, and cross process borders as they
are (`broker.codec`). Rows are never joined by position or by name: a row's key is
(record, chunk, frame), and its digest says which input it was computed from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]
F32 = NDArray[np.float32]

PIPELINES = ("virus", "protein", "dna")


class Status(IntEnum):
    """What became of a record, a chunk or a row; `label` is the word in the tables."""

    OK = 0
    EMPTY = 1
    TOO_SHORT = 2
    TOO_LONG = 3
    FILTERED = 4
    FAILED = 5
    AMBIGUOUS = 6
    NO_OPEN_FRAME = 7

    @property
    def label(self) -> str:
        return self.name.lower()


class Dtype(IntEnum):
    """The number format in which a row was computed; `label` is the word on the command line."""

    FP32 = 0
    FP16 = 1
    BF16 = 2
    FP8 = 3

    @property
    def label(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of unequal length in one flat array: row i is data[offsets[i]:offsets[i + 1]].

    data: (total,) of any dtype; offsets: (rows + 1,) int64, offsets[0] == 0.
    """

    data: NDArray[Any]
    offsets: I64

    @classmethod
    def from_lengths(cls, data: NDArray[Any], lengths: NDArray[Any]) -> Ragged:
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return cls(data, offsets)

    @classmethod
    def from_bytes(cls, rows: Iterable[bytes]) -> Ragged:
        rows = list(rows)
        data = np.frombuffer(b"".join(rows), np.uint8)
        return cls.from_lengths(data, np.fromiter(map(len, rows), np.int64, len(rows)))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> NDArray[Any]:
        return self.data[self.offsets[row] : self.offsets[row + 1]]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[row] for row in range(len(self)))

    @property
    def lengths(self) -> I64:
        return np.diff(self.offsets)

    def to_bytes(self) -> list[bytes]:
        raw = self.data.tobytes()
        step = self.data.itemsize
        bounds = (self.offsets * step).tolist()
        return [raw[a:b] for a, b in pairwise(bounds)]

    def take(self, rows: NDArray[Any]) -> Ragged:
        """The given rows, in the given order, as a new Ragged; no Python loop over rows."""
        return gather_runs(self.data, self.offsets[:-1][rows], self.lengths[rows])


def gather_runs(data: NDArray[Any], start: NDArray[Any], length: NDArray[Any]) -> Ragged:
    """Row i is data[start[i] : start[i] + length[i]]."""
    picked = Ragged.from_lengths(data[:0], length)
    shift = np.repeat(start - picked.offsets[:-1], length)
    return Ragged(data[np.arange(picked.offsets[-1]) + shift], picked.offsets)


@dataclass(frozen=True, eq=False)
class ShardTask:
    """A shard's work, planner -> packer: consecutive records, or chunks of one huge record.

    Every array has one entry per record (or part of a record) in the shard.
    """

    job: str
    shard: int
    identity: str
    pipeline: str
    chunk_length: int  # 0 in protein and dna jobs
    keep_embeddings: bool
    uracil_as_t: bool  # False: the original's treatment, codons with U are deleted
    record: U64  # ordinal in the input, from 0
    name: Ragged  # uint8, UTF-8: the header's first word
    length: U64  # of the whole record, in bases or residues
    num_chunks: U32  # of the whole record
    first_chunk: U32  # the first chunk that this shard holds, from 0
    stop_chunk: U32  # one past the last chunk that this shard holds
    offset: U64  # 0-based position in the record of the first base carried
    sequence: Ragged  # uint8, upper-case letters: the bases from `offset` that those chunks cover
    min_length: int = 0  # records with fewer letters are filtered
    max_ambiguous: int = 100  # percent; chunks with a larger share of such letters are not computed
    attempts: int = 0  # packers that it has ended


@dataclass(frozen=True, eq=False)
class Batch:
    """A packed batch, packer -> gpu. One row per frame (virus) or record (protein, dna)."""

    job: str
    shard: int
    number: int  # within the shard, from 0
    identity: str
    pipeline: str
    keep_embeddings: bool
    attempts: int  # failures so far that were attributed to this batch
    record: U64
    chunk: U32
    frame: U8  # F1..R3 = 1..6; 0 in protein and dna jobs
    digest: U64  # of the row's input, see ops.prepare
    esm_tokens: Ragged | None  # uint8, <cls> residues <eos>; None in dna jobs
    dna_tokens: Ragged | None  # uint16, [CLS] BPE [SEP]; None in protein jobs


@dataclass(frozen=True, eq=False)
class BatchResult:
    """What a batch gave, gpu -> writer: key columns and contiguous matrices, one row per frame."""

    job: str
    shard: int
    number: int
    identity: str
    numerics: str  # the numerics hash of the worker
    record: U64
    chunk: U32
    frame: U8
    digest: U64
    dtype: U8  # Dtype codes
    status: U8  # Status.OK or Status.FAILED
    scores: F32 | None  # (rows, 2): P(others), P(virus); NaN in failed rows; None in other jobs
    esm2: F32 | None  # (rows, width); None unless kept
    dnabert_s: F32 | None  # (rows, width); None unless kept
    reasons: tuple[str, ...]  # one per failed row, in row order

    @classmethod
    def of(
        cls,
        batch: Batch,
        numerics: str,
        *,
        dtype: U8,
        status: U8,
        scores: F32 | None = None,
        esm2: F32 | None = None,
        dnabert_s: F32 | None = None,
        reasons: tuple[str, ...] = (),
    ) -> BatchResult:
        """The result of a batch, under its identity and keys."""
        return cls(
            job=batch.job,
            shard=batch.shard,
            number=batch.number,
            identity=batch.identity,
            numerics=numerics,
            record=batch.record,
            chunk=batch.chunk,
            frame=batch.frame,
            digest=batch.digest,
            dtype=dtype,
            status=status,
            scores=scores,
            esm2=esm2,
            dnabert_s=dnabert_s,
            reasons=reasons,
        )


@dataclass(frozen=True, eq=False)
class Account:
    """All that a shard holds, packer -> writer: every record, every chunk, every row to expect."""

    job: str
    shard: int
    identity: str
    # one entry per record, as in ShardTask
    record: U64
    name: Ragged
    length: U64
    num_chunks: U32
    first_chunk: U32
    stop_chunk: U32
    record_status: U8  # EMPTY, TOO_SHORT, TOO_LONG, FILTERED; else OK: its chunks decide
    num_ambiguous: U64  # letters other than A C G T U (virus, dna) in this shard's part
    num_uracil: U64  # U letters in this shard's part
    # one entry per chunk (virus jobs: chunks; protein and dna jobs: the record, whole)
    chunk_record: U64
    chunk: U32
    start: U64  # 1-based
    end: U64  # inclusive
    chunk_status: U8  # OK when it has rows, else TOO_LONG, AMBIGUOUS, NO_OPEN_FRAME
    num_frames: U8
    # one entry per row, ascending by (record, chunk, frame)
    row_record: U64
    row_chunk: U32
    row_frame: U8
    row_digest: U64
    row_same: U32  # the row whose result this one takes: its own, or an earlier one's of one input


def is_computed(row_same: U32) -> NDArray[np.bool_]:
    """Per row of an account: is it computed itself? The others take the result of such a row."""
    return np.equal(row_same, np.arange(len(row_same)))


@dataclass(frozen=True, eq=False)
class JobFailure:
    """A shard that cannot be packed or computed at all, packer or gpu -> writer: fails its job."""

    job: str
    shard: int
    reason: str

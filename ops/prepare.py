"""What a packer does with a shard: chunks, frames, tokens, packed batches, and the account.

The account names every record, every chunk and every row to expect, so that the writer can tell
when a shard is whole. A row's digest says which input it was computed from. Rows of one input are
computed once: the first of them is packed, and the account says which rows take its result.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops import esm_tokens
from ops.dna_tokens import DnaTokenizer
from ops.frames import chunk_bounds, chunk_table, open_frames
from ops.nouns import I64, U8, U32, U64, Account, Batch, Ragged, ShardTask, Status, is_computed
from ops.packing import Budgets, check_batches, pack

#: A virus record with fewer bases than a codon is too short.
SHORTEST = 3
_URACIL_TO_THYMINE = bytes.maketrans(b"U", b"T")


@dataclass(frozen=True, eq=False)
class Rows:
    """Everything that is computed on: one entry per row, ascending by key."""

    record: U64
    chunk: U32
    frame: U8
    digest: U64
    esm_tokens: Ragged | None
    dna_tokens: Ragged | None

    def take(self, rows: NDArray[Any]) -> Rows:
        esm, dna = self.esm_tokens, self.dna_tokens
        return Rows(
            self.record[rows],
            self.chunk[rows],
            self.frame[rows],
            self.digest[rows],
            None if esm is None else esm.take(rows),
            None if dna is None else dna.take(rows),
        )

    def num_tokens(self) -> I64:
        """(rows,) the larger of a row's two numbers of tokens."""
        both = [t.lengths for t in (self.esm_tokens, self.dna_tokens) if t is not None]
        longest: I64 = np.max(both, axis=0)
        return longest


@dataclass(frozen=True, eq=False)
class Chunks:
    """One entry per chunk; in protein and dna jobs per record that has letters."""

    record: U64
    chunk: U32
    start: U64
    end: U64
    status: U8
    num_frames: U8


def prepare(
    task: ShardTask,
    tokenizer: DnaTokenizer | None,
    budgets: Budgets,
    max_tokens: int,
    *,
    one_per_batch: bool = False,
    every_row: bool = False,
) -> tuple[list[Batch], Account]:
    """Batches and account of a shard. A sequence of more than max_tokens tokens is too_long.

    tokenizer: None in protein jobs. one_per_batch: no packing, every batch has one row. every_row:
    rows of one input are each computed, for those who have no use for the account.
    """
    sequence = read_uracil(task)
    if task.pipeline == "virus":
        assert tokenizer is not None
        rows, chunks = _virus_rows(task, sequence, tokenizer, max_tokens)
    else:
        for_dna = tokenizer if task.pipeline == "dna" else None  # a packer holds one for all jobs
        rows, chunks = _whole_rows(task, sequence, for_dna, max_tokens)
    same = each_alone(rows) if every_row else first_alike(rows)
    packed = rows.take(np.flatnonzero(is_computed(same)))
    return _batches(task, packed, budgets, one_per_batch), _account(task, rows, same, chunks)


def first_alike(rows: Rows) -> U32:
    """Per row, the first with its digest and its tokens: itself, where there is none before.

    A result depends on the tokens alone. They are compared as they are: a digest of 8 bytes that
    two inputs share would give one of them the other's values, and nobody would notice.
    """
    tokens = [t.to_bytes() for t in (rows.esm_tokens, rows.dna_tokens) if t is not None]
    first: dict[tuple[Any, ...], int] = {}
    inputs = enumerate(zip(rows.digest.tolist(), *tokens, strict=True))
    return np.fromiter((first.setdefault(key, row) for row, key in inputs), np.uint32)


def each_alone(rows: Rows) -> U32:
    """The plain version of `first_alike`, which saves nothing: every row is computed."""
    return np.arange(len(rows.record), dtype=np.uint32)


def read_uracil(task: ShardTask) -> Ragged:
    """The task's sequences, U read as T unless the job keeps the original's treatment."""
    if task.pipeline == "protein" or not task.uracil_as_t:
        return task.sequence
    letters = task.sequence.data.tobytes().translate(_URACIL_TO_THYMINE)
    return Ragged(np.frombuffer(letters, np.uint8), task.sequence.offsets)


def _virus_rows(
    task: ShardTask, sequence: Ragged, tokenizer: DnaTokenizer, max_tokens: int
) -> tuple[Rows, Chunks]:
    owner, chunk, bounds = chunk_table(
        task.length.astype(np.int64),
        task.chunk_length,
        task.first_chunk.astype(np.int64),
        task.stop_chunk.astype(np.int64),
    )
    shift = sequence.offsets[:-1] - task.offset.astype(np.int64)
    frames = open_frames(sequence.data, bounds + shift[owner][:, None])
    rows = Rows(
        task.record[owner][frames.chunk],
        chunk[frames.chunk].astype(np.uint32),
        frames.frame,
        _digests(frames.protein, frames.nucleotide),
        esm_tokens.encode(frames.protein),
        tokenizer.encode(frames.nucleotide),
    )
    num_frames = np.bincount(frames.chunk, minlength=len(chunk))
    too_long = np.zeros(len(chunk), bool)
    too_long[frames.chunk[rows.num_tokens() > max_tokens]] = True
    status = np.full(len(chunk), Status.OK, np.uint8)
    status[_too_ambiguous(task, sequence, bounds + shift[owner][:, None])] = Status.AMBIGUOUS
    status[num_frames == 0] = Status.NO_OPEN_FRAME
    status[(num_frames == 0) & (frames.num_open > 0)] = Status.AMBIGUOUS
    status[too_long] = Status.TOO_LONG
    status[(task.length < task.min_length)[owner]] = Status.FILTERED
    status[task.length[owner] < SHORTEST] = Status.TOO_SHORT
    chunks = Chunks(
        task.record[owner],
        chunk.astype(np.uint32),
        (bounds[:, 0] + 1).astype(np.uint64),
        bounds[:, 1].astype(np.uint64),
        status,
        num_frames.astype(np.uint8),
    )
    return rows.take(np.flatnonzero((status == Status.OK)[frames.chunk])), chunks


def _too_ambiguous(task: ShardTask, sequence: Ragged, bounds: I64) -> NDArray[np.bool_]:
    """Per (start, end) in the sequences' letters: are more than max_ambiguous percent ambiguous?"""
    if task.max_ambiguous >= 100:
        return np.zeros(len(bounds), bool)
    is_plain = np.isin(sequence.data, np.frombuffer(b"ACGTU", np.uint8))
    before = np.concatenate([[0], np.cumsum(~is_plain)])
    start, end = bounds.T
    too_many: NDArray[np.bool_] = 100 * (before[end] - before[start]) > task.max_ambiguous * (
        end - start
    )
    return too_many


def _whole_rows(
    task: ShardTask, sequence: Ragged, tokenizer: DnaTokenizer | None, max_tokens: int
) -> tuple[Rows, Chunks]:
    """One row per record with letters. A record that is not carried whole has too many tokens."""
    present = np.flatnonzero(task.length > 0)
    whole = sequence.lengths == task.length
    carried = sequence.take(present)
    esm = esm_tokens.encode(carried) if tokenizer is None else None
    dna = tokenizer.encode(carried) if tokenizer is not None else None
    count = len(present)
    rows = Rows(
        task.record[present],
        np.zeros(count, np.uint32),
        np.zeros(count, np.uint8),
        _digests(carried),
        esm,
        dna,
    )
    fits = whole[present] & (rows.num_tokens() <= max_tokens)
    edges = np.stack([carried.offsets[:-1], carried.offsets[1:]], axis=1)
    status = np.where(fits, Status.OK, Status.TOO_LONG).astype(np.uint8)
    status[_too_ambiguous(task, carried, edges)] = Status.AMBIGUOUS
    status[task.length[present] < task.min_length] = Status.FILTERED
    computed = status == Status.OK
    chunks = Chunks(
        rows.record,
        rows.chunk,
        np.ones(count, np.uint64),
        task.length[present],
        status,
        computed.astype(np.uint8),
    )
    return rows.take(np.flatnonzero(computed)), chunks


def _digests(*columns: Ragged) -> U64:
    """(rows,) first 8 bytes of BLAKE2b over a row's letters, protein and nucleotide joined by |."""
    rows = zip(*(column.to_bytes() for column in columns), strict=True)
    raw = b"".join(blake2b(b"|".join(row), digest_size=8).digest() for row in rows)
    return np.frombuffer(raw, "<u8").astype(np.uint64)


def _batches(task: ShardTask, rows: Rows, budgets: Budgets, one_per_batch: bool) -> list[Batch]:
    esm = None if rows.esm_tokens is None else rows.esm_tokens.lengths
    dna = None if rows.dna_tokens is None else rows.dna_tokens.lengths
    packed = pack(esm, dna, budgets, one_per_batch=one_per_batch)
    check_batches(packed, esm, dna, budgets)
    return [_batch(task, number, rows.take(np.sort(own))) for number, own in enumerate(packed)]


def _batch(task: ShardTask, number: int, rows: Rows) -> Batch:
    return Batch(
        job=task.job,
        shard=task.shard,
        number=number,
        identity=task.identity,
        pipeline=task.pipeline,
        keep_embeddings=task.keep_embeddings,
        attempts=0,
        record=rows.record,
        chunk=rows.chunk,
        frame=rows.frame,
        digest=rows.digest,
        esm_tokens=rows.esm_tokens,
        dna_tokens=rows.dna_tokens,
    )


def _account(task: ShardTask, rows: Rows, same: U32, chunks: Chunks) -> Account:
    ambiguous, uracil = _count_letters(task)
    return Account(
        job=task.job,
        shard=task.shard,
        identity=task.identity,
        record=task.record,
        name=task.name,
        length=task.length,
        num_chunks=task.num_chunks,
        first_chunk=task.first_chunk,
        stop_chunk=task.stop_chunk,
        record_status=_record_status(task, chunks),
        num_ambiguous=ambiguous,
        num_uracil=uracil,
        chunk_record=chunks.record,
        chunk=chunks.chunk,
        start=chunks.start,
        end=chunks.end,
        chunk_status=chunks.status,
        num_frames=chunks.num_frames,
        row_record=rows.record,
        row_chunk=rows.chunk,
        row_frame=rows.frame,
        row_digest=rows.digest,
        row_same=same,
    )


def _record_status(task: ShardTask, chunks: Chunks) -> U8:
    """EMPTY, TOO_SHORT, FILTERED or TOO_LONG where that holds; else OK: the chunks decide."""
    status = np.full(len(task.record), Status.OK, np.uint8)
    long_records = chunks.record[chunks.status == Status.TOO_LONG]
    status[np.isin(task.record, long_records)] = Status.TOO_LONG
    status[task.length < task.min_length] = Status.FILTERED
    if task.pipeline == "virus":
        status[task.length < SHORTEST] = Status.TOO_SHORT
    status[task.length == 0] = Status.EMPTY
    return status


def _count_letters(task: ShardTask) -> tuple[U64, U64]:
    """Ambiguous letters and U per record. The bases that the next shard's first chunk shares with
    our last one are the next shard's to count."""
    ambiguous = np.zeros(len(task.record), np.uint64)
    uracil = np.zeros(len(task.record), np.uint64)
    if task.pipeline == "protein":
        return ambiguous, uracil
    for row, letters in enumerate(task.sequence.to_bytes()):
        own = letters[: _own_bases(task, row)]
        ambiguous[row] = len(own.translate(None, b"ACGTU"))
        uracil[row] = own.count(b"U")
    return ambiguous, uracil


def _own_bases(task: ShardTask, row: int) -> int | None:
    stop = int(task.stop_chunk[row])
    if stop >= int(task.num_chunks[row]):
        return None
    next_start = chunk_bounds(int(task.length[row]), task.chunk_length, stop, stop + 1)[0, 0]
    return int(next_start) - int(task.offset[row])

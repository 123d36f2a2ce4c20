"""Cutting an input into shards: from the input and the job's parameters alone, so that every run of
the job cuts the same.

A shard is a run of consecutive records of at most `shard_bases` letters, `shard_records` records
and SHARD_NAME_BYTES of names. A record with more letters is *huge*: it has shards of its own, runs
of its chunks. To cut a huge record its length must be known before its end has been read, hence the
two passes: the first validates, counts, digests and remembers the lengths of huge records (at most
one per `shard_bases` letters of input, nothing of the others); the second makes the tasks.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.errors import DataError
from ops.fasta import Alphabet, Piece, input_digest, name_bytes, read_inputs
from ops.frames import chunk_bounds, num_chunks
from ops.identity import Identity
from ops.jobs import Plan
from ops.nouns import Ragged, ShardTask

SHARD_BASES = 1 << 20
SHARD_RECORDS = 8_192
#: Bytes of a shard's names, which fit in a message beside its letters. So many that SHARD_RECORDS
#: names of any length never reach it; only more records with very long names do.
SHARD_NAME_BYTES = 32 << 20
#: A protein or DNA sequence that is embedded whole is never cut. One longer than this has more
#: tokens than any model takes (a DNABERT-S token has at most 32 bases), and is not even carried.
LONGEST_WHOLE = 1 << 20


@dataclass(frozen=True)
class CutParams:
    """What the cut and its tasks depend on, beside the input."""

    job: str
    identity: str
    pipeline: str
    chunk_length: int
    keep_embeddings: bool
    uracil_as_t: bool
    shard_bases: int = SHARD_BASES
    shard_records: int = SHARD_RECORDS
    input_roots: tuple[str, ...] = ()
    min_length: int = 0
    max_ambiguous: int = 100
    strict: bool = False  # refuse two records of the same name

    @classmethod
    def of(cls, identity: Identity, **others: Any) -> CutParams:
        """Those that the identity tells, and the others."""
        return cls(
            identity=identity.digest,
            pipeline=identity.pipeline,
            chunk_length=identity.chunk_length,
            uracil_as_t=identity.uracil_as_t,
            min_length=identity.min_length,
            max_ambiguous=identity.max_ambiguous,
            **others,
        )

    @property
    def alphabet(self) -> Alphabet:
        return "protein" if self.pipeline == "protein" else "nucleotide"

    @property
    def huge_from(self) -> int:
        """Records with more letters than this are huge."""
        if self.pipeline == "virus":
            return self.shard_bases
        return max(self.shard_bases, LONGEST_WHOLE)

    @property
    def chunks_per_shard(self) -> int:
        return max(1, self.shard_bases // self.chunk_length)

    def chunks_of(self, length: int) -> int:
        """Chunks of a record: the record itself, when it has letters, in protein and dna jobs."""
        if self.pipeline != "virus":
            return int(length > 0)
        return int(num_chunks(length, self.chunk_length))

    def shards_of_huge(self, length: int) -> int:
        if self.pipeline != "virus":
            return 1
        return -(-self.chunks_of(length) // self.chunks_per_shard)


@dataclass
class _Group:
    """The run of records that is being filled; the same arithmetic in both passes."""

    params: CutParams
    records: int = 0
    letters: int = 0
    name_bytes: int = 0

    def has_room(self, length: int, name: str) -> bool:
        if self.records >= self.params.shard_records:
            return False
        named = self.name_bytes + name_bytes(name) <= SHARD_NAME_BYTES
        return named and self.letters + length <= self.params.shard_bases

    def add(self, length: int, name: str) -> None:
        self.records += 1
        self.letters += length
        self.name_bytes += name_bytes(name)

    def clear(self) -> bool:
        """Empties it; True when it held a shard."""
        held = self.records > 0
        self.records = self.letters = self.name_bytes = 0
        return held


class DistinctNames:
    """Told all names, finds two that are alike; 8 bytes a name, of its BLAKE2b digest, and as much
    again for the search: the one thing in a planner that grows with the input."""

    def __init__(self) -> None:
        self._digests = array("Q")

    def add(self, name: str) -> None:
        digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        self._digests.append(int.from_bytes(digest, "little"))

    def check(self) -> None:
        """Raises DataError for two records of one name."""
        digests = np.frombuffer(self._digests, np.uint64)
        ascending = np.sort(digests)
        twice = np.flatnonzero(ascending[1:] == ascending[:-1])
        if len(twice):
            first, second = np.flatnonzero(digests == ascending[twice[0]])[:2] + 1
            raise DataError(
                f"records {first} and {second} of the input have the same name; rename one, or "
                "leave --strict out (records are told apart by their order)"
            )


class PlanScan:
    """The first pass: iterate to read on; when the iteration ends, `result` is the plan.

    Every step reads one piece of at most a few MB, so that the caller may do other things in
    between. Raises NoInputError and DataError for inputs that cannot be used.
    """

    def __init__(self, inputs: Sequence[Path], params: CutParams) -> None:
        self.params = params
        self._digest = input_digest()
        self._pieces = read_inputs(inputs, params.alphabet, self._digest, params.input_roots)
        self._group = _Group(params)
        self._records = self._letters = self._chunks = self._shards = 0
        self._ambiguous = self._uracil = 0
        self._huge: dict[int, int] = {}
        self._names = DistinctNames() if params.strict else None

    def __iter__(self) -> Iterator[int]:
        """Yields the letters read so far."""
        for piece in self._pieces:
            self._letters += len(piece.letters)
            self._uracil += piece.letters.count(b"U")
            if self.params.pipeline != "protein":
                self._ambiguous += len(piece.letters.translate(None, b"ACGTU"))
            if piece.last:
                self._add_record(piece.ordinal, piece.start + len(piece.letters), piece.name)
                if self._names is not None:
                    self._names.add(piece.name)
            yield self._letters
        self._shards += self._group.clear()
        if self._names is not None:
            self._names.check()

    def _add_record(self, ordinal: int, length: int, name: str) -> None:
        self._records += 1
        self._chunks += self.params.chunks_of(length)
        if length > self.params.huge_from:
            self._huge[ordinal] = length
            self._shards += self._group.clear() + self.params.shards_of_huge(length)
            return
        if not self._group.has_room(length, name):
            self._shards += self._group.clear()
        self._group.add(length, name)

    @property
    def result(self) -> Plan:
        return Plan(
            records=self._records,
            letters=self._letters,
            chunks=self._chunks if self.params.pipeline == "virus" else 0,
            shards=self._shards,
            input_digest=_digest_text(self._digest),
            huge_lengths=self._huge,
            ambiguous=self._ambiguous,
            uracil=self._uracil if self.params.pipeline != "protein" else 0,
            shard_bases=self.params.shard_bases,
            shard_records=self.params.shard_records,
        )


def plan_input(inputs: Sequence[Path], params: CutParams) -> PlanScan:
    """Starts the first pass over the inputs."""
    return PlanScan(inputs, params)


def cut_shards(
    inputs: Sequence[Path],
    params: CutParams,
    huge_lengths: Mapping[int, int],
    skip: Callable[[int], bool] = lambda shard: False,
    *,
    plan: Plan | None = None,
) -> Iterator[ShardTask]:
    """The second pass: the tasks in the order of their numbers, but for those that `skip` names.
    As `cut_in_steps`."""
    steps = cut_in_steps(inputs, params, huge_lengths, skip, plan=plan)
    return (task for task in steps if task is not None)


def cut_in_steps(
    inputs: Sequence[Path],
    params: CutParams,
    huge_lengths: Mapping[int, int],
    skip: Callable[[int], bool] = lambda shard: False,
    *,
    plan: Plan | None = None,
) -> Iterator[ShardTask | None]:
    """The second pass, with None in the place of each task that `skip` names, so that the caller
    may do other things in between.

    plan: when given, the last task comes only after the whole input was read again and found to
    have the plan's digest and shards: an input that changes, or grows, between or during the passes
    cannot end in a complete result of two files. One task is held back for that.
    Raises DataError for an input that is not the planned one.
    """
    digest = None if plan is None else input_digest()
    pieces = read_inputs(inputs, params.alphabet, digest, params.input_roots)
    tasks = _Cutter(params, huge_lengths, skip).cut(pieces)
    return tasks if plan is None or digest is None else _checked(tasks, plan, digest)


def _checked(
    tasks: Iterator[ShardTask | None], plan: Plan, digest: hashlib._Hash
) -> Iterator[ShardTask | None]:
    """The tasks, each one late, so that what follows the last is known before that is given."""
    held: ShardTask | None = None
    for task in tasks:
        if task is not None and task.shard >= plan.shards:
            raise _changed()
        if task is not None:
            held, task = task, held
        yield task
    if held is not None:
        if _digest_text(digest) != plan.input_digest:
            raise _changed()
        yield held


def _digest_text(digest: hashlib._Hash) -> str:
    return f"sha256:{digest.hexdigest()}"


def _changed() -> DataError:
    return DataError("an input changed while it was read; start again when it is complete")


def _next_part(piece: Piece, pieces: Iterator[Piece]) -> Piece:
    """The piece of the same record that follows."""
    if piece.last:
        raise _changed()
    return next(pieces)


@dataclass
class _Part:
    """A record, or the part of a huge one, that goes into a task."""

    ordinal: int
    name: str
    length: int
    first_chunk: int
    stop_chunk: int
    offset: int
    letters: bytes


@dataclass
class _Cutter:
    """Collects pieces into parts, and parts into tasks; holds at most a shard and a piece."""

    params: CutParams
    huge_lengths: Mapping[int, int]
    skip: Callable[[int], bool]
    shard: int = 0
    group: _Group = field(init=False)
    parts: list[_Part] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.group = _Group(self.params)

    def cut(self, pieces: Iterator[Piece]) -> Iterator[ShardTask | None]:
        held: list[bytes] = []
        for piece in pieces:
            length = self.huge_lengths.get(piece.ordinal)
            if length is not None:
                yield from self._flush()
                yield from self._cut_huge(piece, pieces, length)
                continue
            if piece.start + len(piece.letters) > self.params.huge_from:
                raise _changed()
            held.append(piece.letters)
            if piece.last:
                yield from self._add_record(piece, b"".join(held))
                held.clear()
        yield from self._flush()

    def _add_record(self, piece: Piece, letters: bytes) -> Iterator[ShardTask | None]:
        if not self.group.has_room(len(letters), piece.name):
            yield from self._flush()
        self.group.add(len(letters), piece.name)
        chunks = self.params.chunks_of(len(letters))
        self.parts.append(_Part(piece.ordinal, piece.name, len(letters), 0, chunks, 0, letters))

    def _flush(self) -> Iterator[ShardTask | None]:
        if self.group.clear():
            parts, self.parts = self.parts, []
            yield from self._emit(parts)

    def _emit(self, parts: list[_Part]) -> Iterator[ShardTask | None]:
        number = self.shard
        self.shard += 1
        yield None if self.skip(number) else self._task(number, parts)

    def _cut_huge(
        self, piece: Piece, pieces: Iterator[Piece], length: int
    ) -> Iterator[ShardTask | None]:
        """The shards of one huge record, whose first piece is given."""
        chunks = self.params.chunks_of(length)
        if self.params.pipeline != "virus":
            while not piece.last:
                piece = _next_part(piece, pieces)
            yield from self._emit([_Part(piece.ordinal, piece.name, length, 0, chunks, 0, b"")])
            return
        held, at = piece.letters, 0
        for first in range(0, chunks, self.params.chunks_per_shard):
            stop = min(first + self.params.chunks_per_shard, chunks)
            bounds = chunk_bounds(length, self.params.chunk_length, first, stop)
            start, end = int(bounds[0, 0]), int(bounds[-1, 1])
            while at + len(held) < end:
                piece = _next_part(piece, pieces)
                held = held[max(start - at, 0) :] + piece.letters
                at = piece.start + len(piece.letters) - len(held)
            letters = held[start - at : end - at]
            yield from self._emit(
                [_Part(piece.ordinal, piece.name, length, first, stop, start, letters)]
            )
        while not piece.last:  # it may be empty
            piece = _next_part(piece, pieces)

    def _task(self, number: int, parts: list[_Part]) -> ShardTask:
        params = self.params

        def column(name: str, dtype: type) -> NDArray[Any]:
            return np.fromiter((getattr(p, name) for p in parts), dtype, len(parts))

        length = column("length", np.uint64)
        chunks = np.fromiter((params.chunks_of(p.length) for p in parts), np.uint32, len(parts))
        return ShardTask(
            job=params.job,
            shard=number,
            identity=params.identity,
            pipeline=params.pipeline,
            chunk_length=params.chunk_length,
            keep_embeddings=params.keep_embeddings,
            uracil_as_t=params.uracil_as_t,
            record=column("ordinal", np.uint64),
            name=Ragged.from_bytes(p.name.encode() for p in parts),
            length=length,
            num_chunks=chunks,
            first_chunk=column("first_chunk", np.uint32),
            stop_chunk=column("stop_chunk", np.uint32),
            offset=column("offset", np.uint64),
            sequence=Ragged.from_bytes(p.letters for p in parts),
            min_length=params.min_length,
            max_ambiguous=params.max_ambiguous,
        )

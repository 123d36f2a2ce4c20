"""Embeddings of fragments, by the very path that serves jobs: prepare, pack, compute."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np

from ops.dna_tokens import DnaTokenizer
from ops.engine import Engine
from ops.errors import DataError
from ops.frames import num_chunks
from ops.nouns import F32, I64, U8, U32, Ragged, ShardTask
from ops.packing import Budgets
from ops.prepare import prepare

#: Bases of one task: enough for full batches, little enough to stay small in memory.
TASK_BASES = 1 << 20


@dataclass(frozen=True, eq=False)
class Features:
    """One row per stop-free frame, ascending by (fragment, chunk, frame).

    fragment: (rows,) which fragment; chunk: within it; frame: F1..R3 = 1..6; dnabert_s and esm2:
    (rows, width) fp32.
    """

    fragment: I64
    chunk: U32
    frame: U8
    dnabert_s: F32
    esm2: F32

    def joined(self) -> F32:
        """(rows, both widths): DNABERT-S first, as the classifier takes them."""
        return np.concatenate([self.dnabert_s, self.esm2], axis=1)


@dataclass(frozen=True, eq=False)
class Embedder:
    """An engine with the tokenizer and limits that belong to it."""

    engine: Engine
    tokenizer: DnaTokenizer
    max_tokens: int

    def features(
        self,
        genomes: Sequence[bytes],
        fragments: I64,
        chunk_length: int,
        progress: Callable[[int], None] = lambda bases: None,
    ) -> Features:
        """The features of fragments (n, 3) of the genomes. progress is told the bases just done.

        Raises DataError when an embedding is not finite.
        """
        spec = self.engine.spec
        budgets = Budgets(spec.esm_budget, spec.dna_budget, spec.max_rows)
        parts = []
        for first, stop in _runs(fragments):
            task = _task(genomes, fragments, first, stop, chunk_length)
            batches, _ = prepare(task, self.tokenizer, budgets, self.max_tokens, every_row=True)
            for batch in batches:
                esm2, dnabert_s = self.engine.embed(batch)
                assert esm2 is not None
                assert dnabert_s is not None
                record = batch.record.astype(np.int64)
                parts.append(Features(record, batch.chunk, batch.frame, dnabert_s, esm2))
            progress(int(fragments[first:stop, 2].sum()))
        return _checked(_sorted(parts, spec_widths(self.engine)))


def spec_widths(engine: Engine) -> tuple[int, int]:
    """Widths of the DNABERT-S and the ESM-2 embedding."""
    return engine.width("dnabert"), engine.width("esm2")


def _runs(fragments: I64) -> Iterator[tuple[int, int]]:
    """Runs of fragments of about TASK_BASES."""
    total = np.cumsum(fragments[:, 2])
    first = 0
    while first < len(fragments):
        done = int(total[first - 1]) if first else 0
        stop = max(first + 1, int(np.searchsorted(total, done + TASK_BASES, side="right")))
        yield first, stop
        first = stop


def _task(
    genomes: Sequence[bytes], fragments: I64, first: int, stop: int, chunk_length: int
) -> ShardTask:
    own = fragments[first:stop]
    count = len(own)
    chunks = num_chunks(own[:, 2], chunk_length).astype(np.uint32)
    return ShardTask(
        job="train",
        shard=0,
        identity="train",
        pipeline="virus",
        chunk_length=chunk_length,
        keep_embeddings=True,
        uracil_as_t=True,
        record=np.arange(first, stop, dtype=np.uint64),
        name=Ragged.from_bytes([b""] * count),
        length=own[:, 2].astype(np.uint64),
        num_chunks=chunks,
        first_chunk=np.zeros(count, np.uint32),
        stop_chunk=chunks,
        offset=np.zeros(count, np.uint64),
        sequence=Ragged.from_bytes(genomes[g][s : s + n] for g, s, n in own.tolist()),
    )


def _sorted(parts: Sequence[Features], widths: tuple[int, int]) -> Features:
    if not parts:
        empty = np.zeros(0, np.int64)
        dnabert_s, esm2 = (np.zeros((0, width), np.float32) for width in widths)
        return Features(empty, empty.astype(np.uint32), empty.astype(np.uint8), dnabert_s, esm2)
    names = [field.name for field in fields(Features)]
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    order = np.lexsort((columns["frame"], columns["chunk"], columns["fragment"]))
    return Features(**{name: column[order] for name, column in columns.items()})


def _checked(features: Features) -> Features:
    for name, values in (("DNABERT-S", features.dnabert_s), ("ESM-2", features.esm2)):
        if not np.isfinite(values).all():
            raise DataError(f"the {name} model gives values that are not finite; use --dtype fp32")
    return features

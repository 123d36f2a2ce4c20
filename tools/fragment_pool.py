"""Fragments of genomes, their stop-free frames and tokens, as padded arrays to train on."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops import esm_tokens
from ops.dna_tokens import DnaTokenizer
from ops.frames import open_frames
from ops.nouns import I64, Ragged
from ops.train.fragments import Sources
from tools.genomes import Genome

FRAGMENTS_A_TASK = 20_000
#: First tokens that stand for bases, in the ESM-2 alphabet and in our BPE; letters end at 24.
FIRST_ESM, STOP_ESM, FIRST_DNA = 4, 24, 5


@dataclass(frozen=True)
class Shape:
    """What the rows of one pool have in common: fragments of shortest to longest bases, of which a
    share is as long as the longest; rows are padded to esm and dna tokens."""

    shortest: int
    longest: int
    share_longest: float
    esm: int
    dna: int


@dataclass(frozen=True, eq=False)
class Pool:
    """One row per stop-free frame, in the order of the fragments.

    esm: (rows, tokens) uint8; dna: (rows, tokens) uint16; esm_length, dna_length: (rows,) uint8;
    virus: (rows,) uint8; genome, fragment: (rows,) int32 numbers.
    """

    esm: NDArray[np.uint8]
    dna: NDArray[np.uint16]
    esm_length: NDArray[np.uint8]
    dna_length: NDArray[np.uint8]
    virus: NDArray[np.uint8]
    genome: NDArray[np.int32]
    fragment: NDArray[np.int32]

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for field in fields(self):
            np.save(folder / f"{field.name}.npy", getattr(self, field.name))

    @classmethod
    def load(cls, folder: Path) -> Pool:
        return cls(**{f.name: np.load(folder / f"{f.name}.npy") for f in fields(cls)})


def sources(genomes: Sequence[Genome]) -> Sources:
    """The genomes as `ops.train.fragments` takes them."""
    lengths = np.array([len(genome.letters) for genome in genomes], np.int64)
    virus = np.array([genome.is_virus for genome in genomes], bool)
    return Sources(lengths, virus, [genome.group for genome in genomes])


def make_pool(
    genomes: Sequence[Genome], fragments: I64, tokenizer: Path, shape: Shape, processes: int
) -> Pool:
    """The rows of fragments (n, 3); a row with more tokens than the shape holds is left out."""
    parts = np.array_split(fragments, max(1, len(fragments) // FRAGMENTS_A_TASK))
    tasks = [
        ([genomes[g].letters[s : s + n] for g, s, n in part.tolist()], tokenizer, shape)
        for part in parts
    ]
    with ProcessPoolExecutor(processes) as executor:
        made = list(executor.map(_rows, tasks))
    firsts = np.cumsum([0, *(len(part) for part in parts[:-1])])
    fragment = np.concatenate([rows[4] + first for rows, first in zip(made, firsts, strict=True)])
    genome = fragments[fragment, 0]
    virus = sources(genomes).virus.astype(np.uint8)[genome]
    columns = [np.concatenate(column) for column in zip(*(rows[:4] for rows in made), strict=True)]
    return Pool(*columns, virus, genome.astype(np.int32), fragment.astype(np.int32))


def _rows(task: tuple[list[bytes], Path, Shape]) -> tuple[NDArray[Any], ...]:
    letters, tokenizer_path, shape = task
    tokenizer = DnaTokenizer(tokenizer_path)
    sequences = Ragged.from_bytes(letters)
    bounds = np.stack([sequences.offsets[:-1], sequences.offsets[1:]], 1)
    frames = open_frames(sequences.data, bounds)
    esm = esm_tokens.encode(frames.protein)
    dna = tokenizer.encode(frames.nucleotide)
    kept = np.flatnonzero((dna.lengths <= shape.dna) & (esm.lengths <= shape.esm))
    return (
        _padded(esm.take(kept), shape.esm, STOP_ESM, np.uint8),
        _padded(dna.take(kept), shape.dna, tokenizer.vocabulary, np.uint16),
        esm.lengths[kept].astype(np.uint8),
        dna.lengths[kept].astype(np.uint8),
        frames.chunk[kept],
    )


def _padded(rows: Ragged, width: int, stop: int, dtype: type) -> NDArray[Any]:
    """(rows, width). Padding is never looked at; tokens of every kind spread its zero gradient over
    the whole table, whose deterministic sum takes as long as its most frequent token."""
    out = np.resize(np.arange(FIRST_DNA, stop, dtype=dtype), (len(rows), width))
    out[np.arange(width)[None, :] < rows.lengths[:, None]] = rows.data
    return out

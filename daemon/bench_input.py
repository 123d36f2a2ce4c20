"""What `vnp bench gpu` measures with: fragments of genomes, and the shards that they make."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path

import numpy as np

from ops.errors import ConfigError
from ops.fasta import read_inputs
from ops.frames import num_chunks
from ops.nouns import Ragged, ShardTask

FRAGMENT = 500


def write_fragments(genomes: Sequence[Path], target: Path, count: int) -> None:
    """FASTA of `count` fragments of FRAGMENT bp from random places of the genomes."""
    long = [sequence for sequence in whole_records(genomes) if len(sequence) >= FRAGMENT]
    if not long:
        raise ConfigError(f"the genomes hold no record of {FRAGMENT} bp")
    rng = np.random.default_rng(0)
    weights = np.array([len(sequence) for sequence in long], float)
    which = rng.choice(len(long), count, p=weights / weights.sum())
    with target.open("wb") as file:
        for number, genome in enumerate(which.tolist()):
            start = int(rng.integers(0, len(long[genome]) - FRAGMENT + 1))
            file.write(b">fragment_%d\n%s\n" % (number, long[genome][start : start + FRAGMENT]))


def whole_records(paths: Sequence[Path]) -> Iterator[bytes]:
    """The letters of every record."""
    for _, pieces in groupby(read_inputs(paths, "nucleotide"), key=lambda piece: piece.ordinal):
        yield b"".join(piece.letters for piece in pieces)


def tasks(fasta: Path, count: int) -> Iterable[ShardTask]:
    """Shards of 2,000 fragments each, as the planner would cut them."""
    records = whole_records([fasta])
    for shard in range(count):
        own = list(islice(records, 2_000))
        lengths = np.array([len(letters) for letters in own], np.int64)
        chunks = num_chunks(lengths, FRAGMENT).astype(np.uint32)
        yield ShardTask(
            job="bench",
            shard=shard,
            identity="bench",
            pipeline="virus",
            chunk_length=FRAGMENT,
            keep_embeddings=False,
            uracil_as_t=True,
            record=np.arange(len(own), dtype=np.uint64),
            name=Ragged.from_bytes([b""] * len(own)),
            length=lengths.astype(np.uint64),
            num_chunks=chunks,
            first_chunk=np.zeros(len(own), np.uint32),
            stop_chunk=chunks,
            offset=np.zeros(len(own), np.uint64),
            sequence=Ragged.from_bytes(own),
        )

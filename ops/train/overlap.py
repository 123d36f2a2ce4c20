"""One genome on both sides: found by the 31-mers that two records share, whatever their names.

A sketch keeps the k-mers whose hash is among the lowest 1/SCALE (FracMinHash, Irber et al. 2022);
of a k-mer and its reverse complement the smaller stands for both, so strand does not matter.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ops.errors import DataError
from ops.nouns import U64
from ops.train.labelled import Genome

K = 31
SCALE = 100
#: Records that share this part of the smaller one's k-mers are one genome.
SAME = 0.9
#: Fewer k-mers in a sketch say too little; such records are compared as a whole only.
LEAST = 10
_CODE = np.full(256, 4, np.uint8)
_CODE[np.frombuffer(b"ACGT", np.uint8)] = np.arange(4)


def check_overlap(genomes: Sequence[Genome]) -> None:
    """DataError when two records that are one genome stand in different splits or classes."""
    sketches = [sketch(genome.letters) for genome in genomes]
    holders: dict[int, list[int]] = defaultdict(list)
    for index, own in enumerate(sketches):
        for value in own.tolist():
            holders[value].append(index)
    shared: Counter[tuple[int, int]] = Counter()
    for owners in holders.values():
        if len(owners) > 1:
            shared.update(_across(genomes, owners))
    for (a, b), count in sorted(shared.items()):
        if count >= SAME * min(len(sketches[a]), len(sketches[b])):
            raise DataError(_message(genomes[a], genomes[b]))


def _across(genomes: Sequence[Genome], owners: list[int]) -> list[tuple[int, int]]:
    return [
        (a, b)
        for place, a in enumerate(owners)
        for b in owners[place + 1 :]
        if (genomes[a].split, genomes[a].virus) != (genomes[b].split, genomes[b].virus)
    ]


def _message(a: Genome, b: Genome) -> str:
    where = [f"{g.name} ({g.label}, {g.split})" for g in (a, b)]
    return (
        f"{where[0]} and {where[1]} are the same genome (at least {SAME:.0%} of their {K}-mers); "
        "put them into one split and one class, or remove one"
    )


def sketch(letters: bytes) -> U64:
    """Sorted hashes of the sampled canonical k-mers; of all of them when those are too few."""
    hashes = _mix(canonical_kmers(letters))
    sampled = np.unique(hashes[hashes < np.uint64(2**64 // SCALE)])
    return sampled if len(sampled) >= LEAST else np.unique(hashes)


def canonical_kmers(letters: bytes) -> U64:
    """2-bit codes of all k-mers of A, C, G, T, each the smaller of itself and its complement."""
    code = _CODE[np.frombuffer(letters, np.uint8)]
    count = len(code) - K + 1
    if count < 1:
        return np.zeros(0, np.uint64)
    forward, known = _windows(code, count)
    backward, _ = _windows((3 - code)[::-1], count)
    kmers: U64 = np.minimum(forward, backward[::-1])[known]
    return kmers


def _windows(code: NDArray[np.uint8], count: int) -> tuple[U64, NDArray[np.bool_]]:
    """Codes of the windows of K letters by doubling their width, and which hold known letters."""
    kmers = np.zeros(count, np.uint64)
    width, at, values = 1, 0, (code & 3).astype(np.uint64)
    for bit in range(K.bit_length()):
        if K >> bit & 1:
            kmers = (kmers << np.uint64(2 * width)) | values[at : at + count]
            at += width
        values = (values[:-width] << np.uint64(2 * width)) | values[width:]
        width *= 2
    unknown = np.cumsum(np.concatenate([[0], code > 3]))
    return kmers, unknown[K:] == unknown[:-K]


def _mix(values: U64) -> U64:
    """SplitMix64's finalizer (Steele et al. 2014): a bijection with well spread bits."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))

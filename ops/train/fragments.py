"""Fragments of genomes: drawn to train on, and laid out without overlap to measure on.

Large groups must not drown small ones: myco- and enterophages alone would be a third of all viral
bases. A fragment is (genome, start, length), the start 0-based.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ops.nouns import I64

#: No base is drawn more often than this on average, however small its group.
MAX_COVER = 40


@dataclass(frozen=True, eq=False)
class Sources:
    """What fragments are cut from, one entry per genome: bases, class, group."""

    length: I64
    virus: np.ndarray  # (genomes,) bool
    group: Sequence[str]

    def members(self, virus: bool, shortest: int) -> list[I64]:
        """Genomes of each group of a class that have that many bases, groups by name."""
        names = np.array(self.group)
        usable = (self.virus == virus) & (self.length >= shortest)
        return [np.flatnonzero(usable & (names == name)) for name in np.unique(names[usable])]


def draw(
    sources: Sources,
    count: int,
    longest: int,
    seed: int,
    shortest: int | None = None,
    share_longest: float = 1.0,
) -> I64:
    """About `count` fragments (n, 3) in random order, half of them viral.

    Within a class a group is drawn with the square root of its bases; within a group bases are
    drawn evenly. share_longest of the fragments have `longest` bases, the others fewer, from
    `shortest` on.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for virus in (False, True):
        members = sources.members(virus, longest)
        bases = np.array([sources.length[own].sum() for own in members])
        weights = np.sqrt(bases)
        wanted = np.minimum(count / 2 * weights / weights.sum(), bases / longest * MAX_COVER)
        for own, number in zip(members, wanted.astype(int), strict=True):
            lengths = sources.length[own]
            genome = rng.choice(own, number, p=lengths / lengths.sum())
            length = rng.integers(shortest or longest, longest + 1, number)
            length[rng.random(number) < share_longest] = longest
            room = sources.length[genome] - length + 1
            rows.append(np.stack([genome, (rng.random(number) * room).astype(np.int64), length], 1))
    return rng.permutation(np.concatenate(rows))


def grid(sources: Sources, length: int, per_group: int, seed: int) -> I64:
    """Fragments (n, 3) that never overlap, at most per_group of every group; others first."""
    rng = np.random.default_rng(seed)
    rows = []
    for virus in (False, True):
        for own in sources.members(virus, length):
            counts = sources.length[own] // length
            offset = (rng.random(len(own)) * (sources.length[own] - counts * length + 1)).astype(
                int
            )
            genome = np.repeat(own, counts)
            number = np.arange(len(genome)) - np.repeat(np.cumsum(counts) - counts, counts)
            start = np.repeat(offset, counts) + number * length
            kept = np.sort(rng.permutation(len(genome))[:per_group])
            rows.append(np.stack([genome, start, np.full(len(genome), length)], 1)[kept])
    return np.concatenate(rows) if rows else np.zeros((0, 3), np.int64)


def whole(sources: Sources, shortest: int, per_group: int, seed: int) -> I64:
    """Whole genomes (n, 3) of at least `shortest` bases, at most per_group of every group."""
    rng = np.random.default_rng(seed)
    rows = []
    for virus in (False, True):
        for own in sources.members(virus, shortest):
            kept = np.sort(rng.permutation(own)[:per_group])
            rows.append(np.stack([kept, np.zeros_like(kept), sources.length[kept]], 1))
    return np.concatenate(rows) if rows else np.zeros((0, 3), np.int64)

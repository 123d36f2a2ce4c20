"""Which open frame of a fragment is the true reading frame, as far as the sequence alone tells.

No annotation is needed: the frame whose run from stop codon to stop codon in the whole genome is
the longest. A frame that is open by chance seldom stays so beyond the fragment.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ops.nouns import I64, U8

_COMPLEMENT = bytes.maketrans(b"ACGT", b"TGCA")


def longest_frames(
    genomes: dict[int, bytes], fragments: I64, fragment: I64, frame: U8
) -> NDArray[np.bool_]:
    """(rows,) whether a row's frame has the longest open run among its fragment's rows.

    genomes: letters by number; fragments: (n, 3) genome, start, length; fragment, frame: (rows,)
    which fragment and which frame (F1..R3 = 1..6) each row is, ascending by fragment. The first
    frame wins a tie.
    """
    runs = np.zeros(len(fragment), np.int64)
    genome = fragments[fragment, 0]
    order = np.argsort(genome, kind="stable")
    edges = np.flatnonzero(np.diff(genome[order], prepend=-1, append=-1))
    for first, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        rows = order[first:stop]
        letters = genomes[int(genome[rows[0]])]
        runs[rows] = open_runs(letters, fragments[fragment[rows], 1:], frame[rows])
    best = np.zeros(len(fragments), np.int64)
    np.maximum.at(best, fragment, runs)
    tied = np.flatnonzero(runs == best[fragment])
    chosen = np.zeros(len(fragment), bool)
    chosen[tied[np.unique(fragment[tied], return_index=True)[1]]] = True
    return chosen


def open_runs(letters: bytes, places: I64, frame: U8) -> I64:
    """(rows,) codons without a stop around each row's frame, in the whole genome.

    places: (rows, 2) start (0-based) and length of the fragment; frame: F1..R3 = 1..6.
    """
    runs = np.zeros(len(frame), np.int64)
    strands = (letters, letters.translate(_COMPLEMENT)[::-1])
    for reverse, strand in enumerate(strands):
        start = places[:, 0] if not reverse else len(letters) - places.sum(axis=1)
        first = start + (frame.astype(np.int64) - 1) % 3
        for phase in range(3):
            rows = np.flatnonzero(((frame > 3) == reverse) & (first % 3 == phase))
            if len(rows):
                runs[rows] = _runs_around(strand, phase, first[rows] // 3)
    return runs


def _runs_around(strand: bytes, phase: int, codon: I64) -> I64:
    """Codons between the stops before and behind each given codon of one phase."""
    stops, count = _stops(strand, phase)
    edges = np.concatenate([[-1], stops, [count]])
    place = np.searchsorted(edges, codon, side="right")
    runs: I64 = edges[np.minimum(place, len(edges) - 1)] - edges[place - 1] - 1
    return runs


def _stops(strand: bytes, phase: int) -> tuple[I64, int]:
    letters = np.frombuffer(strand, np.uint8)
    count = (len(letters) - phase) // 3
    codons = letters[phase : phase + 3 * count].reshape(-1, 3)
    t, a, g = (codons == ord(letter) for letter in "TAG")
    purine_pairs = (a[:, 1] & (a[:, 2] | g[:, 2])) | (g[:, 1] & a[:, 2])
    return np.flatnonzero(t[:, 0] & purine_pairs), count

"""Chunks and their stop-free frames, for a whole shard at once and without loops over its bases.

Instead of translating six frames of every chunk, both strands are laid end to end and the codon at
*every* position is numbered once. The codons are then sorted by phase (position modulo 3), so that
a frame of a chunk is one run of them; it is open when the next stop codon lies beyond the run. Only
open frames, about one in eight, are copied and translated. `ops.frames_plain` says the same chunk
by chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.frames_plain import BASES, CODONS
from ops.nouns import I64, U8, Ragged

#: What a codon with an unknown letter translates to; no letter, since it is deleted.
DELETED = 0


def _codon_table() -> bytes:
    """256-byte table from a codon's number, 25 a + 5 b + c with bases 0..3 in the order of BASES
    and 4 for unknown letters, to its amino acid."""
    table = bytearray([DELETED]) * 256
    for codon, letter in CODONS.items():
        a, b, c = (BASES.index(base) for base in codon)
        table[25 * a + 5 * b + c] = ord(letter)
    return bytes(table)


_NUMBER = bytes(BASES.find(chr(letter)) % 5 for letter in range(256))
_AMINO = _codon_table()
_STOPS = [number for number, letter in enumerate(_AMINO) if letter == ord("*")]  # of three codons
_COMPLEMENT = bytes.maketrans(b"ACGT", b"TGCA")


@dataclass(frozen=True, eq=False)
class Frames:
    """Stop-free frames with at least one residue, ascending by (chunk, frame).

    chunk: (rows,) int64 index into the bounds given; frame: (rows,) uint8, F1..R3 = 1..6;
    protein, nucleotide: uint8 letters. num_open: (chunks,) all stop-free frames of each chunk,
    those included whose protein is empty because every codon has an unknown letter.
    """

    chunk: I64
    frame: U8
    protein: Ragged
    nucleotide: Ragged
    num_open: I64


def num_chunks(length: NDArray[Any] | int, chunk_length: int) -> Any:
    """Chunks of a record of `length` bases: ceil(length / chunk_length)."""
    return -(-length // chunk_length)


def chunk_table(lengths: I64, chunk_length: int, first: I64, stop: I64) -> tuple[I64, I64, I64]:
    """Chunks first[i] to stop[i] of records of the given lengths (bases), one row per chunk.

    Returns the record's index (chunks,), the chunk's number (chunks,) and its start and end
    (chunks, 2), 0-based and half-open, in its record. The original's cut in closed form
    (original-semantics 1.2): n chunks of C bases have a surplus of R = n * C - length bases; with
    q, r = divmod(R, n) the first q + r gaps overlap by q + 1 and the rest by q. Where q + r > n - 1
    the last chunk is short.
    """
    counts = stop - first
    record = np.repeat(np.arange(len(lengths)), counts)
    chunk = np.arange(len(record)) + (first - np.cumsum(counts) + counts)[record]
    total = num_chunks(lengths, chunk_length)
    overlap, remainder = np.divmod(total * chunk_length - lengths, np.maximum(total, 1))
    wide_gaps = overlap + remainder
    start = chunk * (chunk_length - overlap[record]) - np.minimum(chunk, wide_gaps[record])
    end = np.minimum(start + chunk_length, lengths[record])
    return record, chunk, np.stack([start, end], axis=1)


def chunk_bounds(length: int, chunk_length: int, first: int = 0, stop: int | None = None) -> I64:
    """(chunks, 2) start and end of chunks `first` to `stop` of one record; see `chunk_table`."""
    stop = num_chunks(length, chunk_length) if stop is None else stop
    one = [np.array([value], np.int64) for value in (length, first, stop)]
    return chunk_table(one[0], chunk_length, one[1], one[2])[2]


def open_frames(sequence: U8, bounds: I64) -> Frames:
    """The stop-free frames of chunks that lie in one array of upper-case letters.

    sequence: (bases,) uint8; bounds: (chunks, 2) into it, 0-based and half-open.
    """
    strands = np.concatenate([sequence, _look_up(_COMPLEMENT, sequence)[::-1]])
    codons = _codons_by_phase(sequence)
    first, bases = _frame_places(bounds, len(strands))
    count = bases // 3
    run = first % 3 * (len(codons) // 3) + first // 3
    is_open = _without_stop(codons, run, count).T
    chunk, frame = np.nonzero(is_open)
    proteins = _translate(_copy_runs(codons, run[frame, chunk], count[frame, chunk]))
    kept = np.flatnonzero(proteins.lengths > 0)
    if len(kept) < len(proteins):
        chunk, frame, proteins = chunk[kept], frame[kept], proteins.take(kept)
    # The original's slice strand[f - 1 : f + 3 * residues] of each frame f = 1..3: it ends one base
    # late, and goes on from the frame's 5' end even where codons were deleted.
    length = np.minimum(3 * proteins.lengths + 1, bases[frame, chunk])
    return Frames(
        chunk.astype(np.int64),
        (frame + 1).astype(np.uint8),
        proteins,
        _copy_runs(strands, first[frame, chunk], length),
        is_open.sum(axis=1),
    )


def _codons_by_phase(sequence: U8) -> U8:
    """Number of the codon that starts at each position of the strands, end to end: 0, 3, 6, ...,
    then 1, 4, 7, ..., then 2, 5, 8, ...; the three parts are equally long."""
    number = _look_up(_NUMBER, sequence)
    complement = np.minimum(number ^ 2, 4)  # T, C, A, G = 0..3; unknown letters stay 4
    padding = np.full(2 + -2 * len(sequence) % 3, 4, np.uint8)
    number = np.concatenate([number, complement[::-1], padding])
    codon = 25 * number[:-2] + 5 * number[1:-1] + number[2:]  # at most 124: it fits 8 bits
    return codon.reshape(-1, 3).T.reshape(-1)


def _look_up(table: bytes, values: U8) -> U8:
    """table[values], flat; `bytes.translate` is several times faster at it than fancy indexing."""
    return np.frombuffer(values.tobytes().translate(table), np.uint8)


def _frame_places(bounds: I64, strands_length: int) -> tuple[I64, I64]:
    """(6, chunks) each frame's first base in the strands, and its bases up to the chunk's end."""
    start, end = bounds.T
    offset = np.arange(3)[:, None]
    bases = np.maximum(end - start - offset, 0)
    first = np.concatenate([start + offset, strands_length - end + offset])
    return first, np.concatenate([bases, bases])


def _without_stop(codons: U8, run: I64, count: I64) -> NDArray[np.bool_]:
    """(6, chunks) whether no stop codon is among codons run to run + count of each frame.

    Stops are few: they are listed, and the next one from the run's first codon on is looked up.
    """
    ochre, amber, opal = (codons == stop for stop in _STOPS)
    stops = np.append(np.flatnonzero(ochre | amber | opal), np.iinfo(np.int64).max)
    following: NDArray[np.bool_] = stops[np.searchsorted(stops, run)] >= run + count
    return following


def _copy_runs(letters: U8, start: I64, length: I64) -> Ragged:
    """Row i is letters[start[i] : start[i] + length[i]]. Runs of a hundred letters and more are
    copied faster one by one than gathered by index, and need no index of eight bytes a letter."""
    raw = letters.tobytes()
    ends = zip(start.tolist(), (start + length).tolist(), strict=True)
    rows = b"".join([raw[first:stop] for first, stop in ends])
    return Ragged.from_lengths(np.frombuffer(rows, np.uint8), length)


def _translate(codons: Ragged) -> Ragged:
    """The residues of each run of codons, deleted ones left out."""
    residues = _look_up(_AMINO, codons.data)
    real = residues != DELETED
    if real.all():
        return Ragged(residues, codons.offsets)
    kept = np.concatenate([[0], np.cumsum(real)])
    return Ragged(residues[real], kept[codons.offsets])

"""Chunks and their stop-free frames, for a whole shard at once and without loops over either.

Instead of translating six frames of every chunk, the codon at *every* position of the shard is
looked up once per strand. A frame of a chunk is then every third of these from some position on;
it is open when the running count of stop codons, kept per phase, does not change along it. Only
open frames, about one in eight, are gathered. `ops.frames_plain` says the same chunk by chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.frames_plain import BASES, CODONS, reverse_complement
from ops.nouns import I64, U8, Ragged, gather_runs

STOP = ord("*")
#: What a codon with an unknown letter translates to; no letter, since it is deleted.
DELETED = 0


def _codon_tables() -> tuple[bytes, bytes]:
    """256-byte tables from a codon's number, 25 a + 5 b + c with bases 0..3 in the order of BASES
    and 4 for unknown letters, to its amino acid: as it stands, and as its reverse complement."""
    forward, backward = bytearray(256), bytearray(256)
    for codon, letter in CODONS.items():
        for table, letters in ((forward, codon), (backward, reverse_complement(codon))):
            a, b, c = (BASES.index(base) for base in letters)
            table[25 * a + 5 * b + c] = ord(letter)
    return bytes(forward), bytes(backward)


_NUMBER = bytes(BASES.find(chr(letter)) % 5 for letter in range(256))
_AMINO, _AMINO_BACKWARD = _codon_tables()
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
    codons = np.stack(_codons(sequence))
    first, count = _frame_places(bounds)
    is_open = np.concatenate(
        [_without_stop(codons[s], first[:, 3 * s : 3 * s + 3], count) for s in (0, 1)], axis=1
    )
    chunk, frame = np.nonzero(is_open)
    proteins = _gather_proteins(codons, frame // 3, first[chunk, frame], count[chunk, frame % 3])
    kept = np.flatnonzero(proteins.lengths > 0)
    chunk, frame, proteins = chunk[kept], frame[kept], proteins.take(kept)
    nucleotides = _gather_nucleotides(sequence, bounds[chunk], frame, proteins.lengths)
    return Frames(
        chunk.astype(np.int64),
        (frame + 1).astype(np.uint8),
        proteins,
        nucleotides,
        is_open.sum(axis=1),
    )


def _codons(sequence: U8) -> tuple[U8, U8]:
    """Amino acid of the codon that starts at each position: (bases - 2,), forward and backward.

    Backward, position p stands for the reverse complement of the letters p, p + 1, p + 2.
    """
    number = _look_up(_NUMBER, sequence)
    codon = 25 * number[:-2] + 5 * number[1:-1] + number[2:]  # at most 124: it fits 8 bits
    return _look_up(_AMINO, codon), _look_up(_AMINO_BACKWARD, codon)


def _look_up(table: bytes, values: U8) -> U8:
    """table[values]; `bytes.translate` is several times faster at it than fancy indexing."""
    return np.frombuffer(values.tobytes().translate(table), np.uint8)


def _frame_places(bounds: I64) -> tuple[I64, I64]:
    """(chunks, 6) position of each frame's lowest codon; (chunks, 3) codons of F1/R1 to F3/R3.

    A reverse frame walks down from the chunk's end; its codons are the same positions, in the
    opposite order.
    """
    start, end = bounds[:, :1], bounds[:, 1:]
    offset = np.arange(3)
    count = np.maximum(end - start - offset, 0) // 3
    return np.concatenate([start + offset, end - offset - 3 * count], axis=1), count


def _without_stop(codons: U8, first: I64, count: I64) -> NDArray[np.bool_]:
    """(chunks, 3) whether no stop codon is among codons first, first + 3, ... of each frame.

    Stops are few: they are listed by phase and position, and a frame is open when the next stop of
    its phase, from its first codon on, lies beyond its last.
    """
    size = len(codons) + 3
    position = np.flatnonzero(codons == STOP)
    phase = position % 3
    stops = np.concatenate([position[phase == p] + p * size for p in range(3)] + [[4 * size]])
    begin = first % 3 * size + first
    following: NDArray[np.bool_] = stops[np.searchsorted(stops, begin)] >= begin + 3 * count
    return following


def _gather_proteins(codons: NDArray[Any], strand: I64, first: I64, count: I64) -> Ragged:
    """The residues of each frame in reading order, deleted codons left out."""
    ends = np.cumsum(count)
    stride = np.where(strand == 0, 3, -3)
    begin = strand * codons.shape[1] + np.where(strand == 0, first, first + 3 * (count - 1))
    place = np.repeat(begin - stride * (ends - count), count)
    place += np.repeat(stride, count) * np.arange(len(place))
    residues = codons.reshape(-1)[place]
    real = residues != DELETED
    if real.all():
        return Ragged.from_lengths(residues, count)
    kept = np.concatenate([[0], np.cumsum(real)])
    return Ragged.from_lengths(residues[real], kept[ends] - kept[ends - count])


def _gather_nucleotides(sequence: U8, bounds: I64, frame: I64, residues: I64) -> Ragged:
    """strand[f - 1 : f + 3 * residues] of each frame f = 1..3: the original's slice, which ends one
    base late, and from the frame's 5' end on even where codons were deleted."""
    offset = frame % 3
    length = np.minimum(3 * residues + 1, bounds[:, 1] - bounds[:, 0] - offset)
    # Both strands end to end: every slice is then one run of letters.
    complement = _look_up(_COMPLEMENT, sequence)[::-1]
    backward = 2 * len(sequence) - bounds[:, 1]
    start = np.where(frame < 3, bounds[:, 0], backward) + offset
    return gather_runs(np.concatenate([sequence, complement]), start, length)

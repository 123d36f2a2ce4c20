"""Chunks and frames, one string at a time: the readable oracle of `ops.frames`.

The rules are the original's (VirNucPro, `units.py` and `prediction.py`), its quirks included: a
frame is kept when its whole chunk is open in it, codons with unknown letters are deleted, and the
nucleotide slice ends one base late.
"""

from __future__ import annotations

from dataclasses import dataclass

BASES = "TCAG"
#: The standard genetic code (NCBI table 1), first base slowest, in the order of BASES.
AMINO_ACIDS = "FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG"
CODONS = {
    a + b + c: AMINO_ACIDS[16 * i + 4 * j + k]
    for i, a in enumerate(BASES)
    for j, b in enumerate(BASES)
    for k, c in enumerate(BASES)
}
COMPLEMENT = str.maketrans("ACGT", "TGCA")
FRAME_NAMES = ("F1", "F2", "F3", "R1", "R2", "R3")


@dataclass(frozen=True)
class Frame:
    """A stop-free frame of a chunk. number: 1..6 for F1..R3."""

    number: int
    protein: str
    nucleotide: str


def chunk_bounds(length: int, chunk_length: int) -> list[tuple[int, int]]:
    """0-based half-open chunks of a record, as the original walks through it.

    n = ceil(length / chunk_length) chunks overlap so that they cover the record: the surplus is
    spread over the gaps, one more base in the first of them. The last chunk may be short.
    """
    if length == 0:
        return []
    count = -(-length // chunk_length)
    surplus = count * chunk_length - length
    lower, remainder = divmod(surplus, count)
    wide_gaps = lower + remainder
    start, bounds = 0, []
    for gap in range(count):
        bounds.append((start, min(start + chunk_length, length)))
        start += chunk_length - (lower + 1 if gap < wide_gaps else lower)
    return bounds


def reverse_complement(sequence: str) -> str:
    """Letters other than A, C, G, T change place and stay what they are."""
    return sequence.translate(COMPLEMENT)[::-1]


def translate(sequence: str, offset: int) -> str:
    """The protein from `offset` on; codons with an unknown letter vanish, stops are `*`."""
    codons = (sequence[i : i + 3] for i in range(offset, len(sequence) - 2, 3))
    return "".join(CODONS.get(codon, "") for codon in codons)


def open_frames(chunk: str) -> list[Frame]:
    """All stop-free frames of an upper-case chunk, F1 to R3, also those with an empty protein."""
    frames = []
    for strand, sequence in enumerate((chunk, reverse_complement(chunk))):
        for offset in range(3):
            protein = translate(sequence, offset)
            if "*" not in protein:
                nucleotide = sequence[offset : offset + 1 + 3 * len(protein)]
                frames.append(Frame(3 * strand + offset + 1, protein, nucleotide))
    return frames

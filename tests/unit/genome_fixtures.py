"""Made-up genomes that a classifier can tell apart: codons without stops, AT-rich or GC-rich."""

from __future__ import annotations

import numpy as np

from ops.frames_plain import CODONS

SENSE = sorted(codon for codon, residue in CODONS.items() if residue != "*")


def open_letters(bases: int, virus: bool, seed: int) -> bytes:
    """A genome that is open in its first frame from end to end."""
    rng = np.random.default_rng(seed)
    weights = np.array([2.0 ** sum(letter in "AT" for letter in codon) for codon in SENSE])
    weights = weights if virus else 1 / weights
    codons = rng.choice(SENSE, bases // 3, p=weights / weights.sum())
    return "".join(codons).encode()

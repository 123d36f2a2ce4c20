"""ESM-2's tokens, by table: <cls> residues <eos>."""

from __future__ import annotations

import numpy as np

from ops.nouns import Ragged

#: Numbers 4 to 30 of the ESM-1b alphabet (fair-esm 2.0.0, `esm/constants.py`), in order.
RESIDUES = b"LAGVSERTIDPKQNFYMHWCXBUZO.-"
CLS, PAD, EOS, UNK = 0, 1, 2, 3
#: Letter -> token; whatever is not a residue (`*`, J, lower case) is unknown.
TABLE = bytes(RESIDUES.find(letter) + 4 if letter in RESIDUES else UNK for letter in range(256))


def encode(proteins: Ragged) -> Ragged:
    """Tokens of each protein, uint8, two more than it has letters.

    proteins: uint8 letters.
    """
    lengths = proteins.lengths + 2
    tokens = Ragged.from_lengths(np.empty(int(lengths.sum()), np.uint8), lengths)
    inside = np.ones(len(tokens.data), bool)
    inside[tokens.offsets[:-1]] = False
    inside[tokens.offsets[1:] - 1] = False
    tokens.data[inside] = np.frombuffer(proteins.data.tobytes().translate(TABLE), np.uint8)
    tokens.data[tokens.offsets[:-1]] = CLS
    tokens.data[tokens.offsets[1:] - 1] = EOS
    return tokens

"""The yardstick: logistic regression on 6-mer frequencies of both strands, as any laptop can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from ops.nouns import F32, I64
from ops.train.metrics import Bools, auroc

K = 6
#: Inverse strengths of the L2 penalty to choose from.
STRENGTHS = (1e-6, 1e-5, 1e-4, 1e-3)
_CODE = np.full(256, 4, np.int64)
_CODE[np.frombuffer(b"ACGT", np.uint8)] = np.arange(4)


def frequencies(genomes: Sequence[bytes], fragments: I64) -> F32:
    """(fragments, 4**K) share of each 6-mer among those of both strands of a fragment."""
    rows = np.zeros((len(fragments), 4**K), np.float32)
    for row, (genome, start, length) in zip(rows, fragments.tolist(), strict=True):
        code = _CODE[np.frombuffer(genomes[genome], np.uint8, length, start)]
        for strand in (code, np.where(code < 4, 3 - code, 4)[::-1]):
            row += np.bincount(_kmers(strand), minlength=4**K)
        row /= max(row.sum(), 1)
    return rows


def _kmers(code: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers of the 6-mers without unknown letters."""
    count = len(code) - K + 1
    if count < 1:
        return np.zeros(0, np.int64)
    number = np.zeros(count, np.int64)
    known = np.ones(count, bool)
    for at in range(K):
        part = code[at : at + count]
        number = 4 * number + part
        known &= part < 4
    return number[known]


@dataclass(frozen=True, eq=False)
class KmerModel:
    """A fitted regression and the spread of each 6-mer that it divides by."""

    model: LogisticRegression
    spread: F32

    @classmethod
    def fit(cls, train: F32, virus: Bools, valid: F32, valid_virus: Bools) -> KmerModel:
        """Of several penalties the one that ranks the validation fragments best."""
        spread = train.std(0) + np.float32(1e-6)
        candidates = [cls(_regression(train / spread, virus, c), spread) for c in STRENGTHS]
        return max(candidates, key=lambda one: auroc(valid_virus, one.scores(valid)) or 0.0)

    def scores(self, features: F32) -> NDArray[np.float64]:
        """(fragments,) P(virus)."""
        found: NDArray[np.float64] = self.model.predict_proba(features / self.spread)[:, 1]
        return found.astype(np.float64)


def _regression(features: F32, virus: Bools, strength: float) -> LogisticRegression:
    model = LogisticRegression(C=strength, max_iter=300, class_weight="balanced")
    return model.fit(features, virus)

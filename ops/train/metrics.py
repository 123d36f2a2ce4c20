"""How well scores tell viruses from the rest, with intervals over genomes rather than fragments.

Fragments of one genome are not independent: the bootstrap draws genomes with replacement, viruses
and others apart, and a fragment counts as often as its genome was drawn.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import auc, average_precision_score, roc_curve

from ops.nouns import I64

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

RESAMPLES = 200
BINS = 10
#: Percentiles of the 95 % interval.
INTERVAL = (2.5, 97.5)


def measure(virus: Bools, score: Floats, genome: I64, seed: int) -> dict[str, Any] | None:
    """Each figure as [value, low, high]; None when one of the classes is missing.

    virus, score (0 to 1), genome: one entry per fragment. Figures: auroc, auprc (average
    precision), accuracy (at 0.5), sensitivity_at_1 and _at_5 percent false positives,
    calibration_error (expected, over BINS bins of equal width).
    """
    if virus.all() or not virus.any():
        return None
    value = figures(virus, score, np.ones(len(virus)))
    rng = np.random.default_rng(seed)
    drawn = [
        figures(virus, score, weight)
        for weight in (_draw(virus, genome, rng) for _ in range(RESAMPLES))
    ]
    return {
        name: [value[name], *np.percentile([one[name] for one in drawn], INTERVAL).tolist()]
        for name in value
    }


def _draw(virus: Bools, genome: I64, rng: np.random.Generator) -> Floats:
    """Weights of the fragments in one bootstrap sample; both classes are always in it."""
    weight = np.zeros(len(genome))
    for side in (virus, ~virus):
        names, place = np.unique(genome[side], return_inverse=True)
        times = np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names))
        weight[side] = times[place]
    return weight


def figures(virus: Bools, score: Floats, weight: Floats) -> dict[str, float]:
    """The figures of `measure` for weighted fragments, plain values."""
    kept = weight > 0
    virus, score, weight = virus[kept], score[kept], weight[kept]
    false_rate, true_rate, _ = roc_curve(virus, score, sample_weight=weight)
    return {
        "auroc": float(auc(false_rate, true_rate)),
        "auprc": float(average_precision_score(virus, score, sample_weight=weight)),
        "accuracy": float(np.average((score >= 0.5) == virus, weights=weight)),
        "sensitivity_at_1": _sensitivity(false_rate, true_rate, 0.01),
        "sensitivity_at_5": _sensitivity(false_rate, true_rate, 0.05),
        "calibration_error": _calibration_error(virus, score, weight),
    }


def _sensitivity(false_rate: Floats, true_rate: Floats, limit: float) -> float:
    """The largest true positive rate at a threshold with at most `limit` false positives."""
    return float(true_rate[false_rate <= limit].max())


def _calibration_error(virus: Bools, score: Floats, weight: Floats) -> float:
    """Mean distance of the share of viruses from the mean score, over bins by their weight."""
    place = _bin_of(score)
    total = np.bincount(place, weight, BINS)
    gap = np.bincount(place, weight * score, BINS) - np.bincount(place, weight * virus, BINS)
    return float(np.abs(gap).sum() / total.sum())


def _bin_of(score: Floats) -> NDArray[np.int64]:
    return np.minimum((score * BINS).astype(np.int64), BINS - 1)


def reliability(virus: Bools, score: Floats) -> list[dict[str, float]]:
    """Per bin of scores that is not empty: its bounds, fragments, mean score, share of viruses."""
    place = _bin_of(score)
    return [
        {
            "from": number / BINS,
            "to": (number + 1) / BINS,
            "fragments": int(own.sum()),
            "mean_score": float(score[own].mean()),
            "share_virus": float(virus[own].mean()),
        }
        for number in range(BINS)
        if (own := place == number).any()
    ]


def auroc(virus: Bools, score: Floats) -> float | None:
    """Area under the ROC curve; None when one of the classes is missing."""
    if virus.all() or not virus.any():
        return None
    false_rate, true_rate, _ = roc_curve(virus, score)
    return float(auc(false_rate, true_rate))

"""Scores of test fragments as a job would give them, and the figures that follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.classifier import Classifier, classify
from ops.nouns import F32, I64
from ops.train.features import Features
from ops.train.labelled import Genome
from ops.train.metrics import Bools, Floats, auroc, measure, reliability


def record_scores(features: Features, probabilities: F32, count: int) -> Floats:
    """(count,) virus score of every fragment by the rule of `ops.calls`; NaN without a frame.

    probabilities: (rows, 2) others and virus. A chunk's score is s2 / (s1 + s2) of the largest
    probabilities over its frames; a fragment's is the mean over its chunks.
    """
    scores = np.full(count, np.nan)
    if not len(features.fragment):
        return scores
    key = features.fragment << 32 | features.chunk
    first = np.flatnonzero(np.diff(key, prepend=-1))
    s1, s2 = np.maximum.reduceat(probabilities.astype(np.float64), first).T
    fragment = features.fragment[first]
    total = np.bincount(fragment, s2 / (s1 + s2), count)
    chunks = np.bincount(fragment, minlength=count)
    scored = chunks > 0
    scores[scored] = total[scored] / chunks[scored]
    return scores


@dataclass(frozen=True)
class Modality:
    """A classifier that sees both embeddings, or one of them and zeros for the other."""

    classifier: Classifier
    dna: bool = True
    protein: bool = True

    def scores(self, features: Features, count: int) -> Floats:
        """(count,) scores of the fragments that these features are of."""
        dnabert_s = features.dnabert_s if self.dna else np.zeros_like(features.dnabert_s)
        esm2 = features.esm2 if self.protein else np.zeros_like(features.esm2)
        return record_scores(features, classify(self.classifier, dnabert_s, esm2), count)


@dataclass(frozen=True, eq=False)
class TestSet:
    """Test fragments of one length. One entry each: genome, virus, group, seen in training."""

    __test__ = False  # no test class, whatever its name says to pytest

    genome: I64
    virus: Bools
    group: NDArray[np.str_]
    seen: Bools


def evaluate(tests: TestSet, scores: Mapping[str, Floats], seed: int) -> dict[str, Any]:
    """Figures on groups never seen in training, and on those seen.

    scores: by name of the model; NaN where a fragment has no score. All models are measured on the
    fragments that "both" scores; "kmer_all" in the result is the baseline on all of them.
    """
    sides = {"unseen_groups": ~tests.seen, "seen_groups": tests.seen}
    return {name: _side(tests, scores, own, seed) for name, own in sides.items() if own.any()}


def _side(tests: TestSet, scores: Mapping[str, Floats], own: Bools, seed: int) -> dict[str, Any]:
    scored = own & np.isfinite(scores["both"])
    figures: dict[str, Any] = {
        "fragments": _by_class(tests.virus, own),
        "scored": _by_class(tests.virus, scored),
    }
    for name, values in scores.items():
        figures[name] = measure(tests.virus[scored], values[scored], tests.genome[scored], seed)
    figures["kmer_all"] = measure(tests.virus[own], scores["kmer"][own], tests.genome[own], seed)
    figures["reliability"] = reliability(tests.virus[scored], scores["both"][scored])
    return figures


def _by_class(virus: Bools, own: Bools) -> dict[str, int]:
    return {"virus": int((own & virus).sum()), "other": int((own & ~virus).sum())}


def by_group(tests: TestSet, score: Floats) -> list[dict[str, Any]]:
    """Per test group: fragments, scored ones, right calls, AUROC against the other class's scored
    fragments of the same side (unseen or seen)."""
    rows = []
    for virus, group in sorted(set(zip(tests.virus.tolist(), tests.group.tolist(), strict=True))):
        own = (tests.virus == virus) & (tests.group == group)
        seen = bool(tests.seen[own][0])
        scored = np.isfinite(score)
        mine = own & scored
        against = scored & (tests.virus != virus) & (tests.seen == seen)
        pair = mine | against
        rows.append(
            {
                "group": group,
                "class": "virus" if virus else "other",
                "seen": seen,
                "genomes": len(np.unique(tests.genome[own])),
                "fragments": int(own.sum()),
                "scored": int(mine.sum()),
                "called_right": _mean((score[mine] >= 0.5) == virus),
                "auroc": auroc(tests.virus[pair], score[pair]) if mine.any() else None,
            }
        )
    return rows


def _mean(values: Bools) -> float | None:
    return float(values.mean()) if len(values) else None


def counts(genomes: Sequence[Genome]) -> dict[str, dict[str, dict[str, int]]]:
    """Genomes, groups and bases by split and class."""
    table: dict[str, dict[str, dict[str, int]]] = {}
    for split in ("train", "valid", "test"):
        for label in ("virus", "other"):
            own = [g for g in genomes if g.split == split and g.label == label]
            table.setdefault(split, {})[label] = {
                "genomes": len(own),
                "groups": len({g.group for g in own}),
                "bases": sum(len(g.letters) for g in own),
            }
    return table

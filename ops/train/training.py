"""The steps of a training between genomes and model folder: fit, measure, report, write."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ops.errors import UsageError
from ops.modelstore import ModelCard
from ops.nouns import I64
from ops.train.evaluate import Modality, TestSet, by_group, counts, evaluate
from ops.train.features import Features
from ops.train.fit import Fit, Recipe, Rows, balanced, fit
from ops.train.fragments import Sources, draw, grid, whole
from ops.train.kmers import KmerModel, frequencies
from ops.train.labelled import Genome, data_digest
from ops.train.reading_frames import longest_frames
from ops.train.report import markdown
from ops.weights import write_model

#: (fragments (n, 3), what they are for) -> their features.
Embed = Callable[[I64, str], Features]

REPORT_FORMAT = "vnp-train-report-1"
#: Fragment lengths in the report; whole records beside them.
LENGTHS = (150, 300, 500, 1000)
#: Shortest record that counts as a whole one.
SHORTEST_WHOLE = 1_000
#: Fragments to train on are whole chunks for the most part; last chunks and reads are shorter.
SHARE_OF_WHOLE_CHUNKS = 0.6
SHORTEST_TRAINED = 150
KMER_FRAGMENTS = 20_000


@dataclass(frozen=True)
class TrainRequest:
    """What the command line asks for. per_group: test fragments of each group and length."""

    virus: tuple[Path, ...]
    other: tuple[Path, ...]
    labels: Path | None
    name: str
    chunk_length: int
    fragments: int
    per_group: int
    recipe: Recipe


@dataclass(frozen=True, eq=False)
class Data:
    """Genomes with all that is asked of them by number."""

    genomes: Sequence[Genome]

    @property
    def letters(self) -> list[bytes]:
        return [genome.letters for genome in self.genomes]

    def seen(self, *splits: str) -> np.ndarray:
        """(genomes,) bool: these splits have genomes of that group."""
        groups = {(g.virus, g.group) for g in self.genomes if g.split in splits}
        return np.array([(g.virus, g.group) in groups for g in self.genomes])

    def sources(self, split: str) -> Sources:
        """Where fragments of a split come from; genomes of other splits count as empty.

        For validation only groups that training has not seen, if both classes have such: what is
        chosen there is chosen for the unseen.
        """
        own = np.array([g.split == split for g in self.genomes])
        virus = np.array([g.virus for g in self.genomes])
        unseen = own & ~self.seen("train")
        if split == "valid" and (unseen & virus).any() and (unseen & ~virus).any():
            own = unseen
        lengths = np.array([len(g.letters) for g in self.genomes], np.int64)
        return Sources(np.where(own, lengths, 0), virus, [g.group for g in self.genomes])

    def virus(self, fragments: I64) -> np.ndarray:
        """(fragments,) bool."""
        return np.array([g.virus for g in self.genomes])[fragments[:, 0]]

    def tests(self, fragments: I64) -> TestSet:
        """What is known of test fragments; a group that choices were made by counts as seen."""
        groups = np.array([g.group for g in self.genomes])
        genome, seen = fragments[:, 0], self.seen("train", "valid")
        return TestSet(genome, self.virus(fragments), groups[genome], seen[genome])


# -- fitting -----------------------------------------------------------------------------------


def fit_best(
    data: Data, embed: Embed, request: TrainRequest
) -> tuple[dict[str, Modality], dict[str, Any]]:
    """The classifiers of all modalities, trained on the better choice of frames; and what was."""
    fragments, features, valid = _embedded(data, embed, request)
    train = _rows(features, data.virus(fragments))
    letters = dict(enumerate(data.letters))
    longest = longest_frames(letters, fragments, features.fragment, features.frame)
    choices = {"all": train, "longest": train.take(longest)}
    widths = (features.dnabert_s.shape[1], features.esm2.shape[1])
    fits = {name: fit(rows, valid, widths, request.recipe) for name, rows in choices.items()}
    kept = max(fits, key=lambda name: fits[name].valid_auroc)
    modalities = {"both": Modality(fits[kept].classifier)}
    for name, dna in (("dna", True), ("protein", False)):
        masked = [_masked(rows, widths[0], dna) for rows in (choices[kept], valid)]
        found = fit(masked[0], masked[1], widths, request.recipe)
        modalities[name] = Modality(found.classifier, dna=dna, protein=not dna)
    return modalities, {
        "fragments": len(fragments),
        "rows": len(choices[kept].virus),
        "valid_rows": len(valid.virus),
        "frames": {name: _told(choices[name], found) for name, found in fits.items()},
        "frames_kept": kept,
        "kept": fits[kept].kept,
        "curve": fits[kept].curve,
        "calibration": {"scale": fits[kept].scale, "shift": fits[kept].shift},
    }


def _embedded(data: Data, embed: Embed, request: TrainRequest) -> tuple[I64, Features, Rows]:
    """Training fragments with their features, and the rows to validate on."""
    drawn = {split: _draw(data, request, split) for split in ("train", "valid")}
    features = {split: embed(own, split) for split, own in drawn.items()}
    for split, own in features.items():
        _check_rows(own, data.virus(drawn[split]), split)
    valid = _rows(features["valid"], data.virus(drawn["valid"]))
    return drawn["train"], features["train"], valid


def _told(rows: Rows, found: Fit) -> dict[str, Any]:
    return {
        "rows": len(rows.virus),
        "kept": found.kept,
        "valid_auroc": found.valid_auroc,
        "candidates": found.candidates,
    }


def _draw(data: Data, request: TrainRequest, split: str) -> I64:
    """Fragments to fit to: whole chunks for the most part; a quarter as many for validation."""
    share, seed = {"train": (1, 0), "valid": (4, 1)}[split]
    return draw(
        data.sources(split),
        request.fragments // share,
        request.chunk_length,
        request.recipe.seed + seed,
        SHORTEST_TRAINED,
        SHARE_OF_WHOLE_CHUNKS,
    )


def _check_rows(features: Features, virus: np.ndarray, split: str) -> None:
    of_rows = virus[features.fragment]
    for label, count in (("virus", of_rows.sum()), ("other", (~of_rows).sum())):
        if count < 2:
            raise UsageError(
                f"the {split} fragments of class {label} have {count} open frames; "
                "give more genomes or more --fragments"
            )


def _rows(features: Features, virus: np.ndarray) -> Rows:
    of_rows = virus[features.fragment]
    return Rows(features.joined(), of_rows, balanced(of_rows))


def _masked(rows: Rows, dnabert_width: int, dna: bool) -> Rows:
    """The rows with the other modality's embedding at zero."""
    masked = rows.features.copy()
    masked[:, dnabert_width:] *= not dna
    masked[:, :dnabert_width] *= dna
    return replace(rows, features=masked)


# -- measuring ---------------------------------------------------------------------------------


def begin_report(
    request: TrainRequest,
    cards: dict[str, ModelCard],
    data: Data,
    training: dict[str, Any],
    facts: dict[str, Any],
) -> dict[str, Any]:
    return {
        "format": REPORT_FORMAT,
        "name": request.name,
        "chunk_length": request.chunk_length,
        "seed": request.recipe.seed,
        "recipe": vars(request.recipe),
        "encoders": {k: {"name": c.name, "digest": c.digest} for k, c in cards.items()},
        "data": {"digest": data_digest(data.genomes), "counts": counts(data.genomes)},
        "engine": facts,
        "training": training,
        "lengths": {},
        "groups": {},
    }


def measure_tests(
    data: Data,
    embed: Embed,
    request: TrainRequest,
    modalities: dict[str, Modality],
    report: dict[str, Any],
) -> None:
    """Fills in the report's figures by fragment length and group."""
    seed = request.recipe.seed
    baseline = _kmer_model(data, request)
    sources = data.sources("test")
    for length in (*LENGTHS, None):
        if length is None:
            fragments = whole(sources, SHORTEST_WHOLE, max(1, request.per_group // 15), seed)
        else:
            fragments = grid(sources, length, request.per_group, seed)
        if not len(fragments):
            continue
        name = str(length or "whole")
        features = embed(fragments, f"test {name}")
        scores = {k: m.scores(features, len(fragments)) for k, m in modalities.items()}
        scores["kmer"] = baseline.scores(frequencies(data.letters, fragments))
        tests = data.tests(fragments)
        report["lengths"][name] = evaluate(tests, scores, seed)
        report["groups"][name] = by_group(tests, scores["both"])


def _kmer_model(data: Data, request: TrainRequest) -> KmerModel:
    """The baseline, on as many fragments as memory should take, its penalty chosen likewise."""
    limited = replace(request, fragments=min(request.fragments, KMER_FRAGMENTS))
    fragments = [_draw(data, limited, split) for split in ("train", "valid")]
    train, valid = ((frequencies(data.letters, own), data.virus(own)) for own in fragments)
    return KmerModel.fit(*train, *valid)


# -- what is left behind -----------------------------------------------------------------------


def write_classifier(
    folder: Path,
    request: TrainRequest,
    cards: dict[str, ModelCard],
    kept: Modality,
    report: dict[str, Any],
) -> ModelCard:
    config = kept.classifier.config
    settings = {
        "kind": "classifier",
        "input_widths": list(config.input_widths),
        "width": config.width,
        "chunk_length": request.chunk_length,
        "trained": True,
        "source": f"vnp train classifier --seed {request.recipe.seed}",
        "encoders": {kind: card.digest for kind, card in cards.items()},
        "data": report["data"]["digest"],
        "metrics": headline(report),
        "note": note(report),
    }
    files = {
        "report.json": (json.dumps(report, indent=1) + "\n").encode(),
        "report.md": markdown(report).encode(),
    }
    return write_model(folder, settings, kept.classifier.state_dict(), files)


def headline(report: dict[str, Any]) -> dict[str, float]:
    """AUROC by fragment length on groups never seen, or on all where every group was seen."""
    found = {}
    for length, cell in report["lengths"].items():
        side = "unseen_groups" if "unseen_groups" in cell else "seen_groups"
        figures = cell[side]["both"]
        if figures is not None:
            found[f"auroc_{length}_{side}"] = round(figures["auroc"][0], 4)
    return found


def note(report: dict[str, Any]) -> str:
    """What `vnp models list` says: AUROC at the chunk length, where that was measured."""
    found = headline(report)
    length = report["chunk_length"]
    for side, words in (("unseen_groups", "unseen"), ("seen_groups", "seen")):
        value = found.get(f"auroc_{length}_{side}")
        if value is not None:
            return f"AUROC {value:.2f} for {length} bp of {words} groups"
    return ""

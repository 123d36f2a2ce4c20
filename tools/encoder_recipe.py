"""Architectures and settings: what decides the weights of the encoders beside the genomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ops.dnabert import DnabertConfig
from ops.esm2 import Esm2Config

VOCABULARY = 4096
#: The learning rate stays until this step, or a third of them all, then falls along a cosine.
FALLS_FROM = 800


@dataclass(frozen=True)
class Recipe:
    """What decides the weights beside genomes and architecture.

    rows: of a batch of long fragments; short ones make batches of as many tokens. noise: share of
    tokens replaced at random. mask_weight: of the masked-token losses, which see half of the rows.
    average: of the moving average of the weights. steps: where the learning rate would reach its
    lowest. check_every: steps between two measurements on the groups kept out.
    """

    steps: int
    noise: float
    rate: float = 1.5e-3
    drop: float = 0.1
    mask_weight: float = 0.0
    seed: int = 1
    rows: int = 768
    warmup: int = 300
    weight_decay: float = 0.05
    smoothing: float = 0.05
    modality_weight: float = 0.5
    average: float = 0.999
    share_long: float = 0.65
    fragments: int = 2_500_000
    check_every: int = 1_000


@dataclass(frozen=True)
class Size:
    """One point of the frontier. The steps are those that 440 s on one H200 had room for."""

    esm2: Esm2Config
    dnabert: DnabertConfig
    recipe: Recipe


SIZES = {
    "w64": Size(
        Esm2Config(64, 4, 4, 256),
        DnabertConfig(64, 2, 4, 256, VOCABULARY),
        Recipe(10_827, noise=0.05),
    ),
    "w192": Size(
        Esm2Config(192, 3, 6, 512),
        DnabertConfig(128, 2, 4, 256, VOCABULARY),
        Recipe(8_575, noise=0.1),
    ),
    "w256": Size(
        Esm2Config(256, 4, 8, 1024),
        DnabertConfig(192, 3, 6, 512, VOCABULARY),
        Recipe(5_188, noise=0.1, rate=1.2e-3, drop=0.15),
    ),
    "w384": Size(
        Esm2Config(384, 6, 6, 1536),
        DnabertConfig(256, 4, 4, 768, VOCABULARY),
        Recipe(6_465, noise=0.05, rate=1e-3, drop=0.2, mask_weight=0.1),
    ),
}


def changed(size: Size, settings: Sequence[str]) -> Size:
    """The size with other values in its recipe, each as NAME=VALUE."""
    values: dict[str, Any] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in asdict(size.recipe):
            raise SystemExit(f"train_encoders: no setting {name!r}; see class Recipe")
        values[name] = type(getattr(size.recipe, name))(float(value))
    return replace(size, recipe=replace(size.recipe, **values))


def rate_factor(step: int, recipe: Recipe) -> float:
    """Of the learning rate: up, level, then down a cosine to a fiftieth."""
    first = min(FALLS_FROM, recipe.steps // 3)
    past = max(0.0, (step - first) / (recipe.steps - first))
    return min(1.0, (step + 1) / recipe.warmup) * (0.49 * (1 + float(np.cos(np.pi * past))) + 0.02)

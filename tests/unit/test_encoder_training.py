"""Training of the encoders: the same function as inference, the same bits for the same seed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ops.attention import plain
from ops.dnabert import Dnabert, DnabertConfig
from ops.esm2 import Esm2, Esm2Config
from ops.layers import BLOCK_ROWS, Layout
from ops.modelstore import read_card, verify_model
from ops.pooling import pool
from tests.unit.genome_fixtures import open_letters
from tests.unit.model_fixtures import random_tokens
from tools import encoder_noise, encoder_recipe, train_encoders
from tools.encoder_training import (
    Trainee,
    dnabert_hidden,
    esm2_hidden,
    mean_dnabert,
    mean_esm2,
)
from tools.fragment_pool import Pool, sources
from tools.genomes import HELD_OUT_VALID, Genome

ESM2 = Esm2Config(32, 2, 2, 64)
DNABERT = DnabertConfig(48, 2, 3, 64, 300)
LENGTHS = [3, 17, 50, 104, 104, 168]
#: fp32 sums of a few hundred terms in another order; a wrong mask or scale shows at 1e-2.
TOLERANCE = 2e-5


def trainee() -> Trainee:
    model = Trainee(ESM2, DNABERT, 16)
    model.reset(3)
    return model.eval()


def packed(model: Esm2 | Dnabert, tokens: list[np.ndarray], name: str) -> np.ndarray:
    """What inference gives."""
    layout = Layout.of(np.array([len(row) for row in tokens]), 2 * BLOCK_ROWS)
    flat = np.zeros(layout.rows, np.int64)
    flat[: layout.total] = np.concatenate([tokens[slot] for slot in layout.order])
    model.attend = plain
    return pool(model(torch.from_numpy(flat), layout), layout, name)


@pytest.mark.parametrize("name", ["esm2", "dnabert"])
def test_training_and_inference_are_one_function(name: str) -> None:
    # Given sequences of several lengths, padded with anything
    model = trainee()
    ragged = random_tokens(LENGTHS, vocab=24 if name == "esm2" else 300, seed=1)
    rows = list(ragged)
    padded = torch.randint(5, 24, (len(rows), max(LENGTHS)))
    for row, tokens in zip(padded, rows, strict=True):
        row[: len(tokens)] = torch.from_numpy(tokens.astype(np.int64))
    lengths = torch.tensor(LENGTHS)
    # When both paths embed them
    with torch.no_grad():
        if name == "esm2":
            ours = mean_esm2(esm2_hidden(model.esm2, padded, lengths), lengths)
            theirs = packed(model.esm2, rows, name)
        else:
            ours = mean_dnabert(dnabert_hidden(model.dnabert, padded, lengths), lengths)
            theirs = packed(model.dnabert, rows, name)
    # Then every row is the same
    gap = np.linalg.norm(ours.numpy() - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
    assert gap.max() < TOLERANCE


def made_up_genomes() -> list[Genome]:
    """Two classes in three groups each, of which the last is for validation."""
    return [
        Genome(
            id=f"g{number}",
            label="virus" if number % 2 == 0 else "cellular",
            group=f"group{number // 4}",
            split="valid" if number >= 8 else "train",
            note=HELD_OUT_VALID if number >= 8 else "",
            sha256="",
            source="",
            licence="",
            letters=open_letters(12_000, virus=number % 2 == 0, seed=number),
        )
        for number in range(12)
    ]


def test_pools_hold_every_frame_once(tmp_path: Path) -> None:
    # Given genomes, a tokenizer and fragments
    genomes = made_up_genomes()
    recipe = replace(encoder_recipe.SIZES["w64"].recipe, fragments=400)
    train_encoders.VOCABULARY, before = 300, train_encoders.VOCABULARY
    try:
        pools = train_encoders.make_pools(genomes[:8], genomes[8:], tmp_path, recipe)
    finally:
        train_encoders.VOCABULARY = before
    pool_ = pools["short"]
    # Then rows are sorted by fragment, classes are those of their genomes, lengths fit
    assert (np.diff(pool_.fragment) >= 0).all()
    assert (pool_.virus == sources(genomes).virus[pool_.genome]).all()
    assert pool_.esm_length.max() <= pool_.esm.shape[1] == 104
    assert (pool_.esm[:, 0] == 0).all()
    assert (pool_.dna[np.arange(len(pool_.dna)), pool_.dna_length - 1] == 2).all()
    # And they come back from disk as they were
    pool_.save(tmp_path / "pool")
    assert (Pool.load(tmp_path / "pool").dna == pool_.dna).all()


def test_a_training_repeats_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a small recipe with masks and noise, on the CPU, and a seed
    for module in (train_encoders, encoder_noise):
        monkeypatch.setattr(module, "VOCABULARY", 300)
    monkeypatch.setattr(train_encoders, "LOG_EVERY", 3)
    monkeypatch.setattr(train_encoders, "NORM_ROWS", 16)
    monkeypatch.setattr(train_encoders, "VALID_PER_GROUP", 20)
    # A small vocabulary makes more tokens.
    shapes = {name: replace(shape, dna=280) for name, shape in train_encoders.SHAPES.items()}
    monkeypatch.setattr(train_encoders, "SHAPES", shapes)
    recipe = replace(
        encoder_recipe.SIZES["w64"].recipe,
        steps=12,
        warmup=2,
        rows=32,
        fragments=600,
        mask_weight=0.1,
        check_every=6,
    )
    size = encoder_recipe.Size(ESM2, DNABERT, recipe)
    genomes = made_up_genomes()
    digests = []
    for out in (tmp_path / "a", tmp_path / "b"):
        # When it is trained twice
        pools = train_encoders.make_pools(genomes[:8], genomes[8:], out, recipe)
        run = train_encoders.Run(size, pools, torch.device("cpu"))
        run.train()
        train_encoders.write(run, out, {"train": "1", "valid": "2"})
        # Then the loss falls, and both checks were made
        assert run.curve[-1]["joint"] < run.curve[0]["joint"]
        assert [check["step"] for check in run.checks] == [6, 12]
        cards = [read_card(out / f"vnp-small-{kind}") for kind in ("esm2", "dnabert")]
        for card in cards:
            verify_model(card)
        digests.append([card.digest for card in cards])
    # And the weights are the same to the bit
    assert digests[0] == digests[1]


def test_settings_change_the_recipe_alone() -> None:
    size = encoder_recipe.SIZES["w64"]
    other = encoder_recipe.changed(size, ["steps=600", "noise=0.2"])
    assert other == replace(size, recipe=replace(size.recipe, steps=600, noise=0.2))
    assert isinstance(other.recipe.steps, int)
    with pytest.raises(SystemExit, match="no setting 'step'"):
        encoder_recipe.changed(size, ["step=600"])


def test_the_rate_rises_stays_and_falls() -> None:
    recipe = replace(encoder_recipe.SIZES["w64"].recipe, steps=2_800, warmup=100)
    factors = [encoder_recipe.rate_factor(step, recipe) for step in (0, 99, 800, 1_800, 2_800)]
    assert factors == pytest.approx([0.01, 1.0, 1.0, 0.51, 0.02])
    # And a short training ends as low
    short = replace(recipe, steps=600)
    assert [encoder_recipe.rate_factor(s, short) for s in (200, 600)] == pytest.approx([1.0, 0.02])


def test_masks_leave_marks_and_other_rows_alone() -> None:
    # Given tokens of rows of different lengths
    tokens = torch.arange(5, 45).repeat(4, 1) % 20 + 5
    lengths = torch.tensor([40, 30, 40, 30])
    torch.manual_seed(0)
    # When half of the rows are masked
    where, new = encoder_noise.masked(tokens, lengths, 2, "dna")
    # Then places are inside the sequence, and all else is as it was
    assert where.shape == (2, 12)
    assert (where >= 1).all()
    assert (where.max(1).values < lengths[:2] - 1).all()
    assert (new[2:] == tokens[2:]).all()
    changed = new[:2] != tokens[:2]
    assert (new == 4).any()
    assert changed.any()
    assert not changed.scatter(1, where, False).any()


def test_shapes_hold_their_longest_fragment() -> None:
    for shape in train_encoders.SHAPES.values():
        assert shape.longest // 3 + 2 <= shape.esm

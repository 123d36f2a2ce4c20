"""ESM-2 against fair-esm and transformers, random weights, fp32 on the CPU."""

from __future__ import annotations

import esm
import numpy as np
import pytest
import torch
from esm.model.esm2 import ESM2
from transformers import EsmConfig, EsmModel

from ops.attention import grouped, padded, plain
from ops.checkpoints import from_fair_esm, from_folder
from ops.errors import ConfigError
from ops.esm2 import Esm2, Esm2Config
from ops.layers import Layout
from ops.nouns import Ragged
from ops.pooling import pool
from tests.unit.model_fixtures import (
    per_token,
    random_esm2,
    random_tokens,
    randomised,
    relative_l2,
    rows_for,
)

LENGTHS = (1, 2, 3, 49, 50, 166, 400, 1500)
LETTERS = "ACDEFGHIKLMNPQRSTVWYXBUZO.-*"
HEADS = 4
LAYERS = 3
ALPHABET = esm.data.Alphabet.from_architecture("ESM-1b")

# fp32 sums of up to 1,500 terms in another order: a few 1e-7 a layer. A wrong scale, position,
# special token or norm shows at 1e-3 and above.
TOLERANCE = 1e-5


def proteins() -> list[str]:
    """One protein of every length, and one of all letters that the tokenizer knows."""
    rng = np.random.default_rng(7)
    made = ["".join(rng.choice(list(LETTERS), length)) for length in LENGTHS]
    return [*made, LETTERS]


def tokens_of(sequences: list[str]) -> Ragged:
    rows = [[0, *(ALPHABET.get_idx(letter) for letter in s), 2] for s in sequences]
    return Ragged.from_lengths(np.concatenate(rows), np.array([len(row) for row in rows]))


def their_model(head_width: int) -> ESM2:
    return randomised(ESM2(LAYERS, HEADS * head_width, HEADS, ALPHABET), seed=head_width)


def ours_from(theirs: ESM2) -> Esm2:
    arguments = {
        "encoder_layers": LAYERS,
        "encoder_attention_heads": HEADS,
        "token_dropout": True,
    }
    data = {"cfg": {"model": arguments}, "model": theirs.state_dict()}
    settings, tensors = from_fair_esm(data, "fair-esm")  # type: ignore[arg-type]
    settings.pop("kind")
    model = Esm2(Esm2Config(**settings), grouped)
    model.load_state_dict(tensors)
    return model.eval()


@pytest.mark.parametrize("head_width", [16, 24, 32, 64])
def test_equals_fair_esm_per_token_and_pooled(head_width: int) -> None:
    # Given fair-esm's model, ours with its weights, and proteins of every length and letter
    theirs = their_model(head_width)
    ours = ours_from(theirs)
    tokens = tokens_of(proteins())
    # When both compute: ours all in one packed batch, theirs one at a time without padding
    mine = per_token(ours, tokens)
    with torch.no_grad():
        reference = [
            theirs(torch.from_numpy(row)[None], repr_layers=[LAYERS])["representations"][LAYERS][0]
            for row in tokens
        ]
    # Then every token of every protein agrees, and so does the mean over its first 1,024 residues
    for row, (a, b) in enumerate(zip(mine, reference, strict=True)):
        assert a.shape == b.shape
        assert relative_l2(a, b) <= TOLERANCE, f"row {row}"
    layout = Layout.of(tokens.lengths, rows_for(len(tokens.data)))
    flat = np.ones(layout.rows, np.int64)
    flat[: layout.total] = tokens.take(layout.order).data
    pooled = torch.from_numpy(pool(ours(torch.from_numpy(flat), layout), layout, "esm2"))
    means = torch.stack([b[1 : min(len(b) - 2, 1024) + 1].double().mean(0) for b in reference])
    assert relative_l2(pooled, means) <= TOLERANCE


@pytest.mark.parametrize("head_width", [16, 24, 32, 64])
def test_equals_transformers(head_width: int) -> None:
    # Given transformers' EsmModel with random weights, and ours with the same weights renamed
    width = HEADS * head_width
    config = EsmConfig(
        vocab_size=33,
        mask_token_id=32,
        pad_token_id=1,
        hidden_size=width,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * width,
        position_embedding_type="rotary",
        token_dropout=True,
        layer_norm_eps=1e-5,
        attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0,
    )
    theirs = randomised(EsmModel(config, add_pooling_layer=False), seed=head_width)
    settings, tensors, _ = from_folder(config.to_dict(), theirs.state_dict(), "hf")  # type: ignore[arg-type]
    settings.pop("kind")
    ours = Esm2(Esm2Config(**settings), grouped)
    ours.load_state_dict(tensors)
    tokens = tokens_of(proteins())
    # When both compute
    mine = per_token(ours.eval(), tokens)
    with torch.no_grad():
        reference = [theirs(torch.from_numpy(row)[None]).last_hidden_state[0] for row in tokens]
    # Then every token agrees
    assert max(relative_l2(a, b) for a, b in zip(mine, reference, strict=True)) <= TOLERANCE


@pytest.mark.parametrize("attend", [grouped, padded])
def test_attention_backends_equal_the_plain_one(attend: object) -> None:
    # Given the same weights behind the textbook attention and behind another backend
    oracle = random_esm2(4, 24, attend=plain)
    model = random_esm2(4, 24, attend=attend)  # type: ignore[arg-type]
    tokens = random_tokens([1, 2, 63, 64, 65, 64, 200, 200, 700])
    # When both compute
    pairs = zip(per_token(model, tokens), per_token(oracle, tokens), strict=True)
    # Then every token agrees
    assert max(relative_l2(a, b) for a, b in pairs) <= TOLERANCE


def test_positions_restart_in_every_sequence() -> None:
    # Given the same protein three times in one batch
    tokens = Ragged.from_lengths(np.tile([0, 5, 6, 7, 8, 2], 3), np.array([6, 6, 6]))
    # When it is computed
    first, second, third = per_token(random_esm2(2, 16), tokens)
    # Then each copy is the same: rotary positions do not run on
    assert torch.equal(first, second)
    assert torch.equal(first, third)


@pytest.mark.parametrize(("width", "heads", "ffn"), [(60, 4, 240), (64, 3, 256), (64, 4, 200)])
def test_unsupported_dimensions_are_refused(width: int, heads: int, ffn: int) -> None:
    # Given dimensions that no published ESM-2 has
    # When a model of them is built
    # Then it is a configuration error
    with pytest.raises(ConfigError, match="not supported"):
        Esm2(Esm2Config(width, 1, heads, ffn), grouped)

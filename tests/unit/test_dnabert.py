"""DNABERT-S against the float64 textbook, random weights, fp32 on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ops.attention import Attend, alibi_slopes, grouped, padded, plain
from ops.checkpoints import from_folder
from ops.dnabert import Dnabert, DnabertConfig
from ops.nouns import Ragged
from tests.unit import dnabert_textbook as textbook
from tests.unit.model_fixtures import per_token, random_tokens, relative_l2

LENGTHS = [3, 4, 5, 49, 50, 110, 400, 1500]
VOCAB = 128

# As for ESM-2: fp32 rounding over a few layers stays near 1e-6.
TOLERANCE = 1e-5


def models(tmp_path: Path, heads: int, head_width: int, attend: Attend) -> tuple[dict, Dnabert]:  # type: ignore[type-arg]
    width = heads * head_width
    state = textbook.random_state(width, 2, heads, 2 * width, VOCAB, seed=head_width)
    (tmp_path / "tokenizer.json").write_text("{}")
    config = {"num_hidden_layers": 2, "num_attention_heads": heads}
    settings, tensors, _ = from_folder(config, state, tmp_path)
    settings.pop("kind")
    ours = Dnabert(DnabertConfig(**settings), attend)
    ours.load_state_dict(tensors)
    return state, ours.eval()


def worst(state: dict[str, torch.Tensor], ours: Dnabert, tokens: Ragged) -> float:
    heads = ours.config.heads
    reference = [textbook.forward(state, torch.from_numpy(row), 2, heads) for row in tokens]
    return max(relative_l2(a, b) for a, b in zip(per_token(ours, tokens), reference, strict=True))


@pytest.mark.parametrize(("heads", "head_width"), [(4, 16), (12, 64), (8, 32)])
def test_equals_the_textbook_per_token(tmp_path: Path, heads: int, head_width: int) -> None:
    # Given a published state dict with random weights, in the textbook and in our model
    state, ours = models(tmp_path, heads, head_width, grouped)
    # When both compute sequences of every length, ours all in one packed batch
    distance = worst(state, ours, random_tokens(LENGTHS, VOCAB))
    # Then every token agrees
    assert distance <= TOLERANCE


@pytest.mark.parametrize("attend", [plain, padded])
def test_other_attention_backends_equal_the_textbook(tmp_path: Path, attend: Attend) -> None:
    # Given another backend
    state, ours = models(tmp_path, 12, 16, attend)
    # When it computes lengths around the padding's multiple
    distance = worst(state, ours, random_tokens([1, 2, 63, 64, 65, 64, 300], VOCAB))
    # Then every token agrees
    assert distance <= TOLERANCE


@pytest.mark.parametrize("heads", [4, 8, 12])
def test_slopes_are_the_published_ones(heads: int) -> None:
    # Given the published slopes; When ours are built; Then they are the same numbers
    assert torch.equal(alibi_slopes(heads), torch.tensor(textbook.SLOPES[heads]))

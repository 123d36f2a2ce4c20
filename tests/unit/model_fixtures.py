"""Random models and batches that several test files share."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch

from ops.attention import Attend, grouped
from ops.dnabert import Dnabert, DnabertConfig
from ops.esm2 import Esm2, Esm2Config
from ops.layers import BLOCK_ROWS, Layout
from ops.nouns import I64, Batch, Ragged

M = TypeVar("M", bound=torch.nn.Module)


def randomised(model: M, seed: int = 0) -> M:
    """Weights of a trained network's size, norms and biases included: zeros would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                parameter.copy_(noise * (1.0 if "embed" in name else parameter.shape[-1] ** -0.5))
            else:
                # LayerNorm and BatchNorm weights stand around one, all else around zero.
                parameter.copy_(
                    noise * 0.1 + (1.0 if "norm" in name.lower() and "weight" in name else 0.0)
                )
    return model.eval()


def random_esm2(
    heads: int, head_width: int, layers: int = 2, attend: Attend = grouped, seed: int = 0
) -> Esm2:
    width = heads * head_width
    return randomised(Esm2(Esm2Config(width, layers, heads, 4 * width), attend), seed)


def random_dnabert(
    heads: int, head_width: int, layers: int = 2, attend: Attend = grouped, seed: int = 0
) -> Dnabert:
    width = heads * head_width
    config = DnabertConfig(width, layers, heads, 4 * width, vocab=256)
    return randomised(Dnabert(config, attend), seed)


def random_tokens(lengths: list[int], vocab: int = 24, seed: int = 0) -> Ragged:
    """Sequences of tokens 4..vocab of these lengths."""
    sizes = np.array(lengths, np.int64)
    rng = np.random.default_rng(seed)
    return Ragged.from_lengths(rng.integers(4, vocab, sizes.sum()), sizes)


def rows_for(total: int) -> int:
    return -(-total // BLOCK_ROWS) * BLOCK_ROWS


def per_token(model: Esm2 | Dnabert, tokens: Ragged, rows: int = 0) -> list[torch.Tensor]:
    """The hidden states of every sequence, (length, width) each, in the caller's order."""
    layout = Layout.of(tokens.lengths, rows or rows_for(len(tokens.data)))
    flat = np.full(layout.rows, 3, np.int64)
    flat[: layout.total] = tokens.take(layout.order).data
    hidden = model(torch.from_numpy(flat), layout)
    slots: I64 = np.argsort(layout.order)
    return [hidden[layout.starts[s] : layout.starts[s + 1]] for s in slots]


def relative_l2(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest relative L2 distance of any row (token), or of the vector."""
    difference = (ours.double() - theirs.double()).norm(dim=-1)
    return float((difference / theirs.double().norm(dim=-1)).max())


def make_batch(
    pipeline: str,
    esm_tokens: Ragged | None = None,
    dna_tokens: Ragged | None = None,
    keep_embeddings: bool = True,
) -> Batch:
    """A batch with one record a row."""
    tokens = esm_tokens if esm_tokens is not None else dna_tokens
    assert tokens is not None
    rows = len(tokens)
    number = np.arange(rows)
    return Batch(
        job="job",
        shard=3,
        number=1,
        identity="0123456789abcdef",
        pipeline=pipeline,
        keep_embeddings=keep_embeddings,
        attempts=0,
        record=number.astype(np.uint64),
        chunk=np.zeros(rows, np.uint32),
        frame=np.ones(rows, np.uint8),
        digest=(number * 7 + 5).astype(np.uint64),
        esm_tokens=None
        if esm_tokens is None
        else Ragged(esm_tokens.data.astype(np.uint8), esm_tokens.offsets),
        dna_tokens=None
        if dna_tokens is None
        else Ragged(dna_tokens.data.astype(np.uint16), dna_tokens.offsets),
    )

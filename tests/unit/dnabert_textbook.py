"""DNABERT-2 from its arithmetic alone, float64, one sequence at a time: the tests' oracle.

Written for reading. It takes the published state dict names, not ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

State = Mapping[str, Tensor]

#: ALiBi slopes as published for twelve heads: those of 8, then every second one of 16.
SLOPES = {
    4: [2**-2, 2**-4, 2**-6, 2**-8],
    8: [2**-i for i in range(1, 9)],
    12: [*(2**-i for i in range(1, 9)), 2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5],
}


def forward(state: State, tokens: Tensor, layers: int, heads: int) -> Tensor:
    """Hidden states (tokens, width) of one sequence, [CLS] and [SEP] included."""
    get = {name: tensor.double() for name, tensor in state.items()}
    x = get["embeddings.word_embeddings.weight"][tokens]
    x = x + get["embeddings.token_type_embeddings.weight"][0]
    x = layer_norm(get, "embeddings.LayerNorm", x)
    for layer in range(layers):
        name = f"encoder.layer.{layer}."
        attended = attention(get, name + "attention.self.Wqkv", x, heads)
        dense = linear(get, name + "attention.output.dense", attended)
        x = layer_norm(get, name + "attention.output.LayerNorm", dense + x)
        x = layer_norm(get, name + "mlp.layernorm", glu(get, name + "mlp.", x) + x)
    return x


def attention(get: State, name: str, x: Tensor, heads: int) -> Tensor:
    length, width = x.shape
    size = width // heads
    q, k, v = linear(get, name, x).split(width, dim=1)
    out = torch.empty_like(x)
    for head, slope in enumerate(SLOPES[heads]):
        mine = slice(head * size, (head + 1) * size)
        scores = q[:, mine] @ k[:, mine].T / math.sqrt(size)
        for i in range(length):
            scores[i] -= slope * (torch.arange(length) - i).abs()
        out[:, mine] = torch.softmax(scores, dim=1) @ v[:, mine]
    return out


def glu(get: State, name: str, x: Tensor) -> Tensor:
    both = x @ get[name + "gated_layers.weight"].T
    gated, linear_half = both.split(both.shape[1] // 2, dim=1)
    gelu = gated * 0.5 * (1 + torch.erf(gated / math.sqrt(2)))
    return linear(get, name + "wo", gelu * linear_half)


def linear(get: State, name: str, x: Tensor) -> Tensor:
    return x @ get[name + ".weight"].T + get[name + ".bias"]


def layer_norm(get: State, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(dim=1, keepdim=True)
    variance = centred.pow(2).mean(dim=1, keepdim=True)
    return centred / torch.sqrt(variance + 1e-12) * get[name + ".weight"] + get[name + ".bias"]


def random_state(
    width: int, layers: int, heads: int, ffn: int, vocab: int, seed: int
) -> dict[str, Tensor]:
    """A published state dict with random weights, the unused pooler included."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(*shape: int, scale: float | None = None) -> Tensor:
        return torch.randn(shape, generator=generator) * (scale or shape[-1] ** -0.5)

    def norm(name: str) -> dict[str, Tensor]:
        return {f"{name}.weight": 1 + matrix(width, scale=0.1), f"{name}.bias": matrix(width)}

    def dense(name: str, out: int, inputs: int) -> dict[str, Tensor]:
        return {f"{name}.weight": matrix(out, inputs), f"{name}.bias": matrix(out, scale=0.1)}

    state = {
        "embeddings.word_embeddings.weight": matrix(vocab, width, scale=1.0),
        "embeddings.token_type_embeddings.weight": matrix(2, width, scale=0.3),
        **norm("embeddings.LayerNorm"),
        **dense("pooler.dense", width, width),
    }
    for layer in range(layers):
        name = f"encoder.layer.{layer}."
        state |= dense(name + "attention.self.Wqkv", 3 * width, width)
        state |= dense(name + "attention.output.dense", width, width)
        state |= norm(name + "attention.output.LayerNorm")
        state[name + "mlp.gated_layers.weight"] = matrix(2 * ffn, width)
        state |= dense(name + "mlp.wo", width, ffn)
        state |= norm(name + "mlp.layernorm")
    return state

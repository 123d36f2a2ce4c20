"""DNABERT-2 / DNABERT-S (Zhou et al. 2024) on packed input: post-LayerNorm BERT with ALiBi and GLU.

The pooler is not built: DNABERT-S embeddings are means over tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ops.attention import Attend, alibi_slopes
from ops.layers import Layout, blocks, check_widths

LAYER_NORM_EPS = 1e-12
PAD = 3


@dataclass(frozen=True)
class DnabertConfig:
    """Dimensions of a checkpoint; ffn is the width of each half of the gated layer."""

    width: int
    layers: int
    heads: int
    ffn: int
    vocab: int


class DnabertLayer(nn.Module):
    """One layer, as the two halves on either side of the attention."""

    def __init__(self, config: DnabertConfig) -> None:
        super().__init__()
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.norm1 = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.gated = nn.Linear(config.width, 2 * config.ffn, bias=False)
        self.wo = nn.Linear(config.ffn, config.width)
        self.norm2 = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)

    def before(self, x: Tensor, qkv: Tensor) -> None:
        """Queries, keys and values of x (rows, width) into qkv (rows, 3, heads, d)."""
        torch.addmm(self.qkv.bias, x, self.qkv.weight.t(), out=qkv.view(len(x), -1))

    def after(self, x: Tensor, attended: Tensor) -> None:
        """Replaces x (rows, width) by the layer's output."""
        hidden = self.norm1(self.out(attended) + x)
        # Two products instead of one and a split: GELU then runs over contiguous rows.
        gate, value = self.gated.weight.chunk(2)
        inner = F.gelu(F.linear(hidden, gate)) * F.linear(hidden, value)
        x.copy_(self.norm2(self.wo(inner) + hidden))


class Dnabert(nn.Module):
    """tokens (rows,) int64 in a Layout's order -> (rows, width); padding rows hold no meaning."""

    def __init__(self, config: DnabertConfig, attend: Attend) -> None:
        super().__init__()
        check_widths(config.width, config.heads, config.ffn)
        self.config = config
        self.attend = attend
        self.embed_tokens = nn.Embedding(config.vocab, config.width)
        # Sequences have no second segment: only row 0 of the token types is ever added.
        self.token_type = nn.Parameter(torch.empty(config.width))
        self.norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.layers = nn.ModuleList(DnabertLayer(config) for _ in range(config.layers))
        self._slopes: Tensor | None = None

    @torch.inference_mode()
    def forward(self, tokens: Tensor, layout: Layout) -> Tensor:
        x: Tensor = self.embed_tokens(tokens)
        x += self.token_type
        slopes = self._slopes_on(x.device)
        qkv = x.new_empty(len(x), 3, self.config.heads, self.config.width // self.config.heads)
        parts = blocks(len(x), x.device)
        for part in parts:
            x[part] = self.norm(x[part])
        for layer in self.layers:
            assert isinstance(layer, DnabertLayer)
            for part in parts:
                layer.before(x[part], qkv[part])
            attended = self.attend(qkv, layout, slopes)
            for part in parts:
                layer.after(x[part], attended[part])
        return x

    def _slopes_on(self, device: torch.device) -> Tensor:
        # No buffer: a cast of the model must not demote the slopes.
        if self._slopes is None:
            self._slopes = alibi_slopes(self.config.heads).to(device)
        return self._slopes

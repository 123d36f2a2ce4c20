"""ESM-2 (Lin et al. 2023) on packed input: tokens of many sequences in one flat row, no padding.

The last representation (index num_layers: after the final LayerNorm) is what comes out; there is no
language-model head. Input never holds <mask>, so token dropout is its constant rescale.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ops.attention import Attend
from ops.layers import Layout, Rotary, blocks, check_widths, rotate_

#: Training masked 15 % of the tokens and zeroed 80 % of those; without <mask> the model expects
#: its input scaled by what was left on average.
TOKEN_DROPOUT_SCALE = 1 - 0.15 * 0.8
VOCAB = 33
PAD = 1


@dataclass(frozen=True)
class Esm2Config:
    """Dimensions of a checkpoint."""

    width: int
    layers: int
    heads: int
    ffn: int
    vocab: int = VOCAB
    token_dropout: bool = True


class Esm2Layer(nn.Module):
    """One pre-LayerNorm transformer layer, as the two halves on either side of the attention."""

    def __init__(self, config: Esm2Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.norm2 = nn.LayerNorm(config.width)
        self.fc1 = nn.Linear(config.width, config.ffn)
        self.fc2 = nn.Linear(config.ffn, config.width)

    def before(self, x: Tensor, cos: Tensor, sin: Tensor, qkv: Tensor) -> None:
        """Rotated queries and keys, and values, of x (rows, width) into qkv (rows, 3, heads, d)."""
        flat = qkv.view(len(x), -1)
        torch.addmm(self.qkv.bias, self.norm1(x), self.qkv.weight.t(), out=flat)
        rotate_(qkv[:, :2], cos, sin)

    def after(self, x: Tensor, attended: Tensor) -> None:
        """Adds projection and feed-forward network to x (rows, width) in place."""
        x += self.out(attended)
        x += self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Esm2(nn.Module):
    """tokens (rows,) int64 in a Layout's order -> (rows, width); padding rows hold no meaning."""

    def __init__(self, config: Esm2Config, attend: Attend) -> None:
        super().__init__()
        check_widths(config.width, config.heads, config.ffn)
        self.config = config
        self.attend = attend
        self.embed_tokens = nn.Embedding(config.vocab, config.width)
        self.layers = nn.ModuleList(Esm2Layer(config) for _ in range(config.layers))
        self.norm_after = nn.LayerNorm(config.width)
        self._rotary: Rotary | None = None

    @torch.inference_mode()
    def forward(self, tokens: Tensor, layout: Layout) -> Tensor:
        x: Tensor = self.embed_tokens(tokens)
        if self.config.token_dropout:
            x *= TOKEN_DROPOUT_SCALE
        cos, sin = self._rotary_on(x.device).rows(layout.positions())
        qkv = x.new_empty(len(x), 3, self.config.heads, self.config.width // self.config.heads)
        parts = blocks(len(x), x.device)
        for layer in self.layers:
            assert isinstance(layer, Esm2Layer)
            for part in parts:
                layer.before(x[part], cos[part], sin[part], qkv[part])
            attended = self.attend(qkv, layout, None)
            for part in parts:
                layer.after(x[part], attended[part])
        for part in parts:
            x[part] = self.norm_after(x[part])
        return x

    def _rotary_on(self, device: torch.device) -> Rotary:
        # Outside the module's buffers on purpose: a cast of the model must not demote the tables.
        if self._rotary is None:
            self._rotary = Rotary(self.config.width // self.config.heads, device)
        return self._rotary

"""The encoders as they run on a GPU: the weights of the plain ones, at constant shapes.

Matrix products are cuBLAS's, everything between them is a kernel of ours (`ops.kernels`), compiled
once per model and dtype. LayerNorms are fused with the sums before them: a layer of ESM-2 takes the
residual stream and what is to be added to it, and gives the same pair.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ops import kernels
from ops.attention import alibi_slopes
from ops.dnabert import LAYER_NORM_EPS, Dnabert, DnabertLayer
from ops.esm2 import TOKEN_DROPOUT_SCALE, Esm2, Esm2Layer
from ops.fast_attention import Attention, Tables
from ops.layers import Rotary
from ops.staging import Packed

ESM_EPS = 1e-5


class Linear(NamedTuple):
    """weight: (n, k); bias: (n,) or None; scales: (1, n) fp32 of an fp8 weight, else None."""

    weight: Tensor
    bias: Tensor | None
    scales: Tensor | None = None


class Norm(NamedTuple):
    weight: Tensor
    bias: Tensor


class EsmWeights(NamedTuple):
    """What one layer of ESM-2 holds."""

    norm1: Norm
    qkv: Linear
    out: Linear
    norm2: Norm
    fc1: Linear
    fc2: Linear


class DnabertWeights(NamedTuple):
    """What one layer of DNABERT-S holds."""

    qkv: Linear
    out: Linear
    norm1: Norm
    gated: Linear
    wo: Linear
    norm2: Norm


def linear(a: Tensor, layer: Linear) -> Tensor:
    """a (rows, k) times the layer's weight, plus its bias: (rows, n)."""
    return F.linear(a, layer.weight, layer.bias)


def linear_fp8(a: Tensor, scales: Tensor, layer: Linear) -> Tensor:
    """The same in fp8, scales (rows, 1) fp32: accumulated in fp32, (rows, n) bf16."""
    assert layer.scales is not None
    product: Tensor = torch._scaled_mm(
        a,
        layer.weight.t(),
        scale_a=scales,
        scale_b=layer.scales,
        bias=layer.bias,
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )
    return product


def esm2_layer(
    x: Tensor,
    y: Tensor,
    layer: EsmWeights,
    packed: Packed,
    heads: int,
    tables: Tables,
    attend: Attention,
) -> tuple[Tensor, Tensor]:
    """One layer on the residual stream x and the summand y, each (rows, width)."""
    x, h = kernels.add_norm(x, y, *layer.norm1, ESM_EPS)
    attended = attend(linear(h, layer.qkv), packed, heads, tables, None)
    x, h = kernels.add_norm(x, linear(attended, layer.out), *layer.norm2, ESM_EPS)
    return x, linear(kernels.gelu(linear(h, layer.fc1)), layer.fc2)


def esm2_layer_fp8(
    x: Tensor,
    y: Tensor,
    layer: EsmWeights,
    packed: Packed,
    heads: int,
    tables: Tables,
    attend: Attention,
) -> tuple[Tensor, Tensor]:
    """The same with products in fp8: scales per row of what is multiplied, found as it is made."""
    x, h, scales = kernels.add_norm_fp8(x, y, *layer.norm1, ESM_EPS)
    attended = attend(linear_fp8(h, scales, layer.qkv), packed, heads, tables, None)
    y = linear_fp8(*kernels.quantise(attended), layer.out)
    x, h, scales = kernels.add_norm_fp8(x, y, *layer.norm2, ESM_EPS)
    hidden = kernels.gelu_fp8(linear_fp8(h, scales, layer.fc1))
    return x, linear_fp8(*hidden, layer.fc2)


def dnabert_layer(
    x: Tensor,
    layer: DnabertWeights,
    packed: Packed,
    heads: int,
    slopes: Tensor,
    attend: Attention,
) -> Tensor:
    """One layer of DNABERT-S on x (rows, width)."""
    attended = attend(linear(x, layer.qkv), packed, heads, None, slopes)
    h = kernels.norm(linear(attended, layer.out), x, *layer.norm1, LAYER_NORM_EPS)
    y = linear(kernels.glu(linear(h, layer.gated)), layer.wo)
    return kernels.norm(y, h, *layer.norm2, LAYER_NORM_EPS)


class FastEsm2:
    """ESM-2 on a GPU; the plain model's tensors, or fp8 copies of its products' weights."""

    def __init__(
        self, plain: Esm2, attend: Attention, positions: int, *, fp8: bool = False
    ) -> None:
        self.config = plain.config
        self.embed = plain.embed_tokens.weight
        if plain.config.token_dropout:
            self.embed = self.embed * TOKEN_DROPOUT_SCALE
        self.layers = [_esm_weights(layer, fp8) for layer in plain.layers]  # type: ignore[arg-type]
        self.last = _norm(plain.norm_after)
        rotary = Rotary(plain.config.width // plain.config.heads, self.embed.device)
        self.tables = rotary.tables(positions)
        self.attend = attend
        self.step = esm2_layer_fp8 if fp8 else esm2_layer

    @torch.inference_mode()
    def __call__(self, packed: Packed) -> Tensor:
        """The last representation, (rows, width); rows of no sequence hold no meaning."""
        x = F.embedding(packed.tokens, self.embed)
        y = torch.zeros_like(x)
        for layer in self.layers:
            x, y = self.step(x, y, layer, packed, self.config.heads, self.tables, self.attend)
        return kernels.norm(x, y, *self.last, ESM_EPS)


class FastDnabert:
    """DNABERT-S on a GPU, with the plain model's tensors."""

    def __init__(self, plain: Dnabert, attend: Attention) -> None:
        self.config = plain.config
        self.embed = plain.embed_tokens.weight
        self.token_type = plain.token_type
        self.first = _norm(plain.norm)
        self.layers = [_dnabert_weights(layer) for layer in plain.layers]  # type: ignore[arg-type]
        self.slopes = alibi_slopes(plain.config.heads).to(self.embed.device)
        self.attend = attend

    @torch.inference_mode()
    def __call__(self, packed: Packed) -> Tensor:
        """The last layer's output, (rows, width); rows of no sequence hold no meaning."""
        x = F.embedding(packed.tokens, self.embed)
        x = kernels.norm(x, self.token_type.expand_as(x).contiguous(), *self.first, LAYER_NORM_EPS)
        for layer in self.layers:
            x = dnabert_layer(x, layer, packed, self.config.heads, self.slopes, self.attend)
        return x


def to_fp8(layer: nn.Linear) -> Linear:
    """The weight in fp8, each output's largest value at 448."""
    weight = layer.weight.detach()
    scales = weight.abs().amax(1, keepdim=True).float().clamp(min=1e-12) / kernels.FP8_MAX
    return Linear((weight.float() / scales).to(kernels.FP8), layer.bias.detach(), scales.t())


def _linear(layer: nn.Linear) -> Linear:
    return Linear(layer.weight, layer.bias)


def _norm(layer: nn.LayerNorm) -> Norm:
    return Norm(layer.weight, layer.bias)


def _esm_weights(layer: Esm2Layer, fp8: bool) -> EsmWeights:
    made = to_fp8 if fp8 else _linear
    products = made(layer.qkv), made(layer.out), made(layer.fc1), made(layer.fc2)
    qkv, out, fc1, fc2 = products
    return EsmWeights(_norm(layer.norm1), qkv, out, _norm(layer.norm2), fc1, fc2)


def _dnabert_weights(layer: DnabertLayer) -> DnabertWeights:
    return DnabertWeights(
        _linear(layer.qkv),
        _linear(layer.out),
        _norm(layer.norm1),
        _linear(layer.gated),
        _linear(layer.wo),
        _norm(layer.norm2),
    )

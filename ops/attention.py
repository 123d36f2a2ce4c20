"""Attention over packed sequences, behind one small interface; `choose` picks a kernel once.

Every backend takes qkv (rows, 3, heads, head width) and gives (rows, width). A sequence attends to
itself only; scores are scaled by head width ** -0.5. ALiBi (DNABERT-S) adds -slope * |i - j|.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ops.errors import ConfigError
from ops.layers import Layout

#: (qkv, layout, ALiBi slopes (heads,) fp32 or None) -> (rows, width); padding rows become zeros.
Attend = Callable[[Tensor, Layout, Tensor | None], Tensor]

#: Lengths are padded to a multiple of this by the "padded" backend: a function of a sequence's own
#: length, so that its company does not change its shape.
PAD_MULTIPLE = 64


def alibi_slopes(heads: int) -> Tensor:
    """(heads,) fp32 slopes of ALiBi (Press et al. 2022): a geometric series for powers of two,
    else that of the next lower power followed by every second slope of the next higher."""

    def series(count: int) -> list[float]:
        return [2.0 ** (-8.0 * (i + 1) / count) for i in range(count)]

    lower = 1 << (heads.bit_length() - 1)
    slopes = series(lower) + series(2 * lower)[0::2][: heads - lower]
    return torch.tensor(slopes, dtype=torch.float32)


def plain(qkv: Tensor, layout: Layout, slopes: Tensor | None) -> Tensor:
    """The textbook, one sequence after another: the oracle, and the emergency switch."""
    rows, _, heads, head_width = qkv.shape
    out = qkv.new_zeros(rows, heads * head_width)
    for start, stop in zip(layout.starts[:-1].tolist(), layout.starts[1:].tolist(), strict=True):
        q, k, v = qkv[start:stop].unbind(1)
        scores = torch.einsum("ihd,jhd->hij", q, k) * head_width**-0.5
        if slopes is not None:
            scores = scores + _dense_bias(slopes, stop - start).to(scores.dtype)
        weights = scores.float().softmax(-1).to(v.dtype)
        out[start:stop] = torch.einsum("hij,jhd->ihd", weights, v).reshape(stop - start, -1)
    return out


def _dense_bias(slopes: Tensor, length: int) -> Tensor:
    at = torch.arange(length, device=slopes.device)
    return -slopes[:, None, None] * (at[:, None] - at[None, :]).abs()


def grouped(qkv: Tensor, layout: Layout, slopes: Tensor | None) -> Tensor:
    """One SDPA call per run of sequences of equal length; nothing is padded.

    On the CPU a sequence's bits depend on its own length only, not on how many share the call.
    """
    rows, _, heads, head_width = qkv.shape
    out = qkv.new_empty(rows, heads, head_width)
    out[layout.total :] = 0
    for _, start, count, length in layout.groups:
        stop = start + count * length
        q, k, v = (
            part.transpose(1, 2)
            for part in qkv[start:stop].view(count, length, 3, heads, head_width).unbind(2)
        )
        bias = None
        if slopes is not None:
            bias = _reversed_bias(slopes, length).to(q.dtype)[None]
            k, v = k.flip(2), v.flip(2)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        out[start:stop].view(count, length, heads, head_width).copy_(attended.transpose(1, 2))
    return out.view(rows, -1)


def _reversed_bias(slopes: Tensor, length: int) -> Tensor:
    """(heads, length, length) ALiBi for keys in reversed order, without a matrix in memory.

    With key j in place length - 1 - j the bias depends on the sum of the indices only, so every row
    of it is a window of one vector: overlapping strides instead of length ** 2 numbers a head.
    Attention does not depend on the order of its keys.
    """
    distance = torch.arange(1 - length, length, device=slopes.device).abs()
    line = -slopes[:, None] * distance
    bias = line.as_strided((len(slopes), length, length), (line.stride(0), 1, 1))
    # Accelerator kernels want aligned rows; the CPU's read any.
    return bias if bias.device.type == "cpu" else bias.contiguous()


def padded(qkv: Tensor, layout: Layout, slopes: Tensor | None) -> Tensor:
    """SDPA with a dense bias over groups padded to a multiple of PAD_MULTIPLE tokens."""
    rows, _, heads, head_width = qkv.shape
    out = qkv.new_zeros(rows, heads * head_width)
    for index, real in _padded_groups(layout, qkv.device):
        q, k, v = (part.transpose(1, 2) for part in qkv[index].unbind(2))
        bias = torch.where(real, 0.0, -math.inf)[:, None, None, :]
        if slopes is not None:
            bias = bias + _dense_bias(slopes, index.shape[1])
        bias = bias.to(q.dtype).expand(-1, heads, index.shape[1], -1)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2)
        out[index[real]] = attended.reshape(*index.shape, -1)[real]
    return out


def _padded_groups(layout: Layout, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Per padded length: row numbers (count, padded length), and which of them are real."""
    lengths, starts = torch.from_numpy(layout.lengths), torch.from_numpy(layout.starts[:-1])
    ceilings = (lengths + PAD_MULTIPLE - 1) // PAD_MULTIPLE * PAD_MULTIPLE
    groups = []
    for ceiling in sorted(set(ceilings.tolist())):
        mine = ceilings == ceiling
        at = torch.arange(ceiling)
        real = at[None, :] < lengths[mine][:, None]
        index = torch.where(real, starts[mine][:, None] + at, starts[mine][:, None])
        groups.append((index.to(device), real.to(device)))
    return groups


def absent(qkv: Tensor, layout: Layout, slopes: Tensor | None) -> Tensor:
    """Of a model that only lends its weights."""
    raise NotImplementedError


BACKENDS = ("grouped", "padded", "plain")


def choose(name: str, device: torch.device) -> tuple[str, Attend]:
    """The backend of that name and its callable; "auto" is "grouped".

    Raises ConfigError for a name that is unknown, or that only a GPU with compiled kernels has.
    """
    if name == "auto":
        name = "grouped"
    if name not in BACKENDS:
        raise ConfigError(
            f"attention {name} needs a GPU and compile = true; on {device.type} choose one of "
            f"auto, {', '.join(BACKENDS)}"
        )
    return name, {"grouped": grouped, "padded": padded, "plain": plain}[name]

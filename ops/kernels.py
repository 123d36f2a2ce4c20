"""The fast path's own kernels (Triton): what surrounds the matrix products, each in one pass.

Every kernel works row by row or sequence by sequence, in an order of its own that nothing around it
changes, and without atomics: what comes out for a row depends on that row, or its sequence, alone.
Sums, statistics, rotary angles and softmax are fp32 whatever the dtype. `ops.layers`,
`ops.attention` and `ops.pooling` hold the plain versions that these are tested against.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from ops import device_kernels as device

#: Query rows of one program of the attention, and keys of one of its steps.
TILE = 64
#: The largest number that float8 e4m3 holds.
FP8_MAX = 448.0
FP8 = torch.float8_e4m3fn
#: Rows that one program normalises: enough bytes under way for narrow models, too.
_NORM_ELEMENTS = 4_096


# -- normalisation -----------------------------------------------------------------------------


def add_norm(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """(x + y, LayerNorm(x + y)), each (rows, width) in x's dtype; the sum is rounded first."""
    total, normed = torch.empty_like(x), torch.empty_like(x)
    _launch_norm(x, y, weight, bias, eps, total, normed, None)
    return total, normed


def norm(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm(x + y) alone."""
    normed = torch.empty_like(x)
    _launch_norm(x, y, weight, bias, eps, None, normed, None)
    return normed


def add_norm_fp8(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(x + y, LayerNorm(x + y) in fp8, its scales (rows, 1) fp32)."""
    total, normed = torch.empty_like(x), torch.empty_like(x, dtype=FP8)
    scales = x.new_empty(len(x), 1, dtype=torch.float32)
    _launch_norm(x, y, weight, bias, eps, total, normed, scales)
    return total, normed, scales


def _launch_norm(
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    total: Tensor | None,
    normed: Tensor,
    scales: Tensor | None,
) -> None:
    rows, width = x.shape
    block = triton.next_power_of_2(width)
    together = max(1, _NORM_ELEMENTS // block)
    device.norm_kernel[(triton.cdiv(rows, together),)](
        x,
        y,
        weight,
        bias,
        normed if total is None else total,
        normed,
        weight if scales is None else scales,
        rows,
        EPS=eps,
        WIDTH=width,
        BLOCK=block,
        ROWS=together,
        KEEP_SUM=total is not None,
        QUANTISE=scales is not None,
        num_warps=8,
    )


# -- activation --------------------------------------------------------------------------------


def gelu(a: Tensor) -> Tensor:
    """GELU of a (rows, ffn), in a's dtype."""
    out = torch.empty_like(a)
    _launch_gelu(a, out, gated=False)
    return out


def glu(a: Tensor) -> Tensor:
    """(rows, 2 * ffn) -> GELU of the first half times the second, (rows, ffn)."""
    out = a.new_empty(a.shape[0], a.shape[1] // 2)
    _launch_gelu(a, out, gated=True)
    return out


def _launch_gelu(a: Tensor, out: Tensor, gated: bool) -> None:
    rows, ffn = out.shape
    block = min(2_048, triton.next_power_of_2(ffn))
    device.gelu_kernel[(rows, triton.cdiv(ffn, block))](
        a, out, FFN=ffn, BLOCK=block, GATED=gated, EXACT=a.dtype == torch.float32, num_warps=4
    )


# -- eight bits --------------------------------------------------------------------------------


def gelu_fp8(a: Tensor) -> tuple[Tensor, Tensor]:
    """GELU of a (rows, ffn) in fp8, and its scales (rows, 1) fp32."""
    return _rows_to_fp8(a, activate=True)


def quantise(a: Tensor) -> tuple[Tensor, Tensor]:
    """a (rows, n) in fp8 and its scales (rows, 1) fp32: each row's largest value becomes 448."""
    return _rows_to_fp8(a, activate=False)


def _rows_to_fp8(a: Tensor, activate: bool) -> tuple[Tensor, Tensor]:
    rows, width = a.shape
    # A row is held in registers as two powers of two, so that few lanes are masked: 10,240 is
    # 8,192 and 2,048.
    head = 1 << (width.bit_length() - 1)
    rest = max(triton.next_power_of_2(width - head), 16)
    out = torch.empty_like(a, dtype=FP8)
    scales = a.new_empty(rows, 1, dtype=torch.float32)
    device.fp8_kernel[(rows,)](
        a, out, scales, WIDTH=width, HEAD=head, REST=rest, ACTIVATE=activate, num_warps=8
    )
    return out, scales


# -- attention ---------------------------------------------------------------------------------


def turn_(qkv: Tensor, positions: Tensor, tables: tuple[Tensor, Tensor], heads: int) -> None:
    """Turns queries and keys of qkv (rows, 3 * width) in place by their positions.

    positions: (rows,) int32. tables: cosines and sines, each (positions, head width / 2) fp32. The
    rotation of RoFormer, half-split over the whole head.
    """
    rows, width = qkv.shape[0], qkv.shape[1] // 3
    half = width // heads // 2
    device.turn_kernel[(rows,)](
        qkv,
        positions,
        *tables,
        WIDTH=width,
        HEADS=heads,
        MANY=triton.next_power_of_2(heads),
        HALF=half,
        BLOCK=triton.next_power_of_2(half),
        num_warps=4,
    )


def attend(qkv: Tensor, tiles: Tensor, heads: int, slopes: Tensor | None) -> Tensor:
    """Attention of packed sequences, (rows, width), with ALiBi or without.

    qkv: (rows, 3 * width). tiles: (n, 3) int32, per program the first row of a sequence, its
    length, and the first of TILE queries; length 0 for none. slopes: (heads,) fp32. Rows of no
    sequence are not written.
    """
    rows, width = qkv.shape[0], qkv.shape[1] // 3
    head_width = width // heads
    out = qkv.new_empty(rows, width)
    # Heads run fastest: programs that run together then read neighbouring columns of the same rows.
    device.attend_kernel[(heads, tiles.shape[0])](
        qkv,
        out,
        tiles,
        qkv if slopes is None else slopes,
        WIDTH=width,
        D=head_width,
        BLOCK=max(16, triton.next_power_of_2(head_width)),
        ALIBI=slopes is not None,
        QUERIES=TILE,
        KEYS=32,
        SCALE=1.4426950408889634 * head_width**-0.5,
        PRECISION="ieee" if qkv.dtype == torch.float32 else "tf32",
        num_warps=4,
        num_stages=3 if head_width <= 64 else 2,
    )
    return out


# -- pooling -----------------------------------------------------------------------------------


def pool_into(out: Tensor, hidden: Tensor, spans: Tensor) -> None:
    """Writes mean rows of hidden (rows, width) into out (n, at least width columns) fp32.

    spans: (n, 3) int32, each the first row, the row behind the last, and the row of `out`, which is
    -1 for none. An empty span gives NaN.
    """
    width = hidden.shape[1]
    block = 128
    device.pool_kernel[(spans.shape[0], triton.cdiv(width, block))](
        hidden, spans, out, out.stride(0), WIDTH=width, BLOCK=block, ROWS=32, num_warps=4
    )


def compiled() -> int:
    """How many variants of these kernels this process has compiled."""
    kernels: list[Any] = [
        device.norm_kernel,
        device.gelu_kernel,
        device.fp8_kernel,
        device.turn_kernel,
        device.attend_kernel,
        device.pool_kernel,
    ]
    return sum(len(entry[0]) for kernel in kernels for entry in kernel.device_caches.values())

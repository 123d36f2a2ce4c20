"""Attention on a GPU: backends behind one signature, chosen once, and checked before they count."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ops import kernels
from ops.attention import alibi_slopes, plain
from ops.errors import ConfigError
from ops.layers import Rotary, rotate_
from ops.nouns import Ragged
from ops.staging import Packed, stage

Tables = tuple[Tensor, Tensor]
#: (qkv (rows, 3 * width), packed, heads, rotary tables or None, ALiBi slopes (heads,) fp32 or None)
#: -> (rows, width). qkv may be overwritten; rows of no sequence hold no meaning.
Attention = Callable[[Tensor, Packed, int, Tables | None, Tensor | None], Tensor]

#: triton: our own kernel, any dtype, also ALiBi. varlen: torch's flash attention, no ALiBi. flash:
#: the flash-attn package.
FAST_BACKENDS = ("triton", "varlen", "flash")
#: Lengths of the check's sequences: around the kernels' tiles, and long.
CHECK_LENGTHS = (1, 2, 31, 32, 33, 63, 64, 65, 168, 300)
#: Relative L2 from the plain version, computed in fp32 from the same rounded inputs: some roundings
#: of 2**-9, 2**-12 and 2**-24 each; a wrong mask, scale or angle gives 0.1 and more.
CHECK_LIMITS = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}


def attend_triton(
    qkv: Tensor, packed: Packed, heads: int, tables: Tables | None, slopes: Tensor | None
) -> Tensor:
    """Our own kernels."""
    if tables is not None:
        kernels.turn_(qkv, packed.positions, tables, heads)
    return kernels.attend(qkv, packed.tiles, heads, slopes)


class Varlen:
    """torch.nn.attention.varlen: flash attention as torch brings it, fp16 and bf16."""

    def __init__(self) -> None:
        try:
            from torch.nn.attention.varlen import varlen_attn
        except ImportError as error:
            raise ConfigError("attention varlen needs torch >= 2.10; use triton") from error
        self._attend = varlen_attn

    def __call__(
        self, qkv: Tensor, packed: Packed, heads: int, tables: Tables | None, slopes: Tensor | None
    ) -> Tensor:
        assert slopes is None
        q, k, v = _turned(qkv, packed, heads, tables)
        edges, longest = _edges(packed)
        out = self._attend(q, k, v, edges, edges, longest, longest)
        assert isinstance(out, Tensor)
        return _whole(qkv, out)


class Flash:
    """The flash-attn package, 2.8 and later, fp16 and bf16, with ALiBi."""

    def __init__(self) -> None:
        try:
            from flash_attn import flash_attn_varlen_func
        except ImportError as error:
            raise ConfigError(
                "attention flash needs the flash-attn package (pip install 'vnp[flash]'); "
                "use triton"
            ) from error
        self._attend = flash_attn_varlen_func

    def __call__(
        self, qkv: Tensor, packed: Packed, heads: int, tables: Tables | None, slopes: Tensor | None
    ) -> Tensor:
        q, k, v = _turned(qkv, packed, heads, tables)
        edges, longest = _edges(packed)
        out = self._attend(q, k, v, edges, edges, longest, longest, alibi_slopes=slopes)
        return _whole(qkv, out)


def _turned(
    qkv: Tensor, packed: Packed, heads: int, tables: Tables | None
) -> tuple[Tensor, Tensor, Tensor]:
    if tables is not None:
        kernels.turn_(qkv, packed.positions, tables, heads)
    total = packed.layout.total
    q, k, v = qkv.view(len(qkv), 3, heads, -1)[:total].unbind(1)
    return q.contiguous(), k.contiguous(), v.contiguous()


def _edges(packed: Packed) -> tuple[Tensor, int]:
    lengths = packed.layout.lengths
    return packed.edges[: len(lengths) + 1], int(lengths.max())


def _whole(qkv: Tensor, attended: Tensor) -> Tensor:
    out = qkv.new_zeros(len(qkv), qkv.shape[1] // 3)
    out[: len(attended)] = attended.reshape(len(attended), -1)
    return out


def choose_fast(name: str, dtype: torch.dtype, alibi: bool) -> tuple[str, Attention]:
    """The backend of that name; "auto" is our own, which measured fastest (docs/log.md).

    Raises ConfigError for one that is not installed, or cannot do this dtype.
    """
    if name in ("auto", "triton") or (name == "varlen" and alibi):
        return "triton", attend_triton
    if dtype == torch.float32:
        raise ConfigError(f"attention {name} needs --dtype bf16, fp16 or fp8; use triton")
    return name, Varlen() if name == "varlen" else Flash()


def check_attention(
    attend: Attention, device: torch.device, dtype: torch.dtype, heads: int, width: int, alibi: bool
) -> float:
    """Relative L2 between a backend and the plain version, at a model's dimensions.

    Raises ConfigError when they differ by more than rounding.
    """
    lengths = np.array(CHECK_LENGTHS)
    rows = -(-int(lengths.sum()) // kernels.TILE) * kernels.TILE
    tokens = Ragged.from_lengths(np.zeros(int(lengths.sum()), np.int64), lengths)
    packed = stage(tokens, rows, len(lengths), lambda length: (0, length), 0, device)
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(rows, 3 * width, generator=generator).to(device, dtype)
    slopes = alibi_slopes(heads).to(device) if alibi else None
    tables = None if alibi else Rotary(width // heads, device).tables(rows)
    expected = qkv.float().view(rows, 3, heads, -1).clone()
    if tables is not None:
        rotate_(expected[:, :2], *(table[packed.positions.long()] for table in tables))
    total = packed.layout.total
    exact = plain(expected, packed.layout, slopes)[:total].double()
    ours = attend(qkv, packed, heads, tables, slopes)[:total].double()
    difference = float((ours - exact).norm() / exact.norm())
    if not difference <= CHECK_LIMITS[dtype]:
        raise ConfigError(
            f"attention differs from the plain version by {difference:.2g} (relative L2) on this "
            "machine; use --attention grouped, and report the versions of `vnp doctor`"
        )
    return difference

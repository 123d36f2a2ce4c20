"""The parts that both encoders share: constant-row blocks, rotary tables, the packed layout.

Why blocks: a matrix product's rounding depends on its shape (a kernel for 3 rows adds in another
order than one for 2,048), so on the CPU every Linear, LayerNorm and GELU sees exactly BLOCK_ROWS
rows, whatever the batch. Then a row's bits depend on the row alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ops.errors import ConfigError
from ops.nouns import I64

#: Rows of one block on the CPU. Large enough for the matrix products' full speed, small enough for
#: a block's activations to stay in the cache. A power of two: see `check_widths`.
BLOCK_ROWS = 512


def check_widths(width: int, heads: int, ffn: int) -> None:
    """ConfigError for dimensions that the encoders do not support.

    Elementwise kernels split their work evenly over 2**k threads and finish each part with scalar
    code, whose exp and erf round differently from the vector code. Blocks of 512 rows by a multiple
    of 64 columns split at vector multiples for any 2**k <= 1,024 threads, so no such ends exist.
    """
    if heads < 1 or width % heads or (width // heads) % 8 or width // heads > 256:
        raise ConfigError(
            f"{heads} heads over a width of {width} are not supported: "
            "the width of a head must be a multiple of 8, at most 256"
        )
    if width % 16 or ffn % 64:
        raise ConfigError(
            f"a width of {width} with a feed-forward width of {ffn} is not supported: "
            "they must be multiples of 16 and 64"
        )


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the sequences of a packed batch lie: slots ascending by length, then padding rows.

    order: (n,) which of the caller's sequences is in each slot. lengths: (n,) tokens of each slot.
    starts: (n + 1,) first row of each slot. rows: rows in all, the bucket.
    groups: (first slot, first row, count, length) of each run of slots of equal length.
    """

    order: I64
    lengths: I64
    starts: I64
    rows: int
    groups: tuple[tuple[int, int, int, int], ...]

    @classmethod
    def of(cls, lengths: I64, rows: int) -> Layout:
        """The layout of sequences of these lengths (tokens, each at least 1) in `rows` rows."""
        assert len(lengths) == 0 or lengths.min() > 0
        order = np.argsort(lengths, kind="stable")
        ascending = lengths[order]
        starts = np.zeros(len(order) + 1, np.int64)
        np.cumsum(ascending, out=starts[1:])
        assert starts[-1] <= rows
        return cls(order, ascending, starts, rows, tuple(_runs(ascending, starts)))

    @property
    def total(self) -> int:
        """Real rows; those from here to `rows` are padding."""
        return int(self.starts[-1])

    def positions(self) -> I64:
        """(rows,) position of every row in its own sequence; 0 in the padding rows."""
        positions = np.zeros(self.rows, np.int64)
        positions[: self.total] = np.arange(self.total) - np.repeat(self.starts[:-1], self.lengths)
        return positions


def _runs(ascending: I64, starts: I64) -> Iterator[tuple[int, int, int, int]]:
    edges = np.flatnonzero(np.diff(ascending, prepend=-1, append=-1))
    for first, stop in pairwise(edges.tolist()):
        yield first, int(starts[first]), stop - first, int(ascending[first])


def blocks(rows: int, device: torch.device) -> list[slice]:
    """The row ranges to work through: constant blocks on the CPU, all at once elsewhere."""
    if device.type != "cpu":
        return [slice(0, rows)]
    assert rows % BLOCK_ROWS == 0
    return [slice(first, first + BLOCK_ROWS) for first in range(0, rows, BLOCK_ROWS)]


class Rotary:
    """Cosines and sines of the rotary embedding (RoFormer, base 10,000), always fp32.

    The angles are fp32 products like those of the published model; the functions are evaluated in
    float64, so that a table's entries do not depend on its size.
    """

    def __init__(self, head_width: int, device: torch.device) -> None:
        self._head_width = head_width
        self._device = device
        self._tables = self._build(2048)

    def _build(self, positions: int) -> tuple[Tensor, Tensor]:
        exponents = torch.arange(0, self._head_width, 2).float() / self._head_width
        frequencies = 1.0 / (10000**exponents)
        angles = (torch.arange(positions).float()[:, None] * frequencies).double()
        return angles.cos().float().to(self._device), angles.sin().float().to(self._device)

    def tables(self, positions: int) -> tuple[Tensor, Tensor]:
        """(cos, sin), each (at least `positions`, head width / 2) fp32."""
        if positions > len(self._tables[0]):
            self._tables = self._build(1 << (positions - 1).bit_length())
        return self._tables

    def rows(self, positions: I64) -> tuple[Tensor, Tensor]:
        """(cos, sin), each (rows, head width / 2) fp32, for these positions."""
        cos, sin = self.tables(int(positions.max(initial=0)) + 1)
        index = torch.from_numpy(positions).to(self._device)
        return cos[index], sin[index]


def rotate_(qk: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Turns queries and keys in place: half-split rotation over the whole head.

    qk: (rows, 2, heads, head width); cos, sin: (rows, head width / 2) fp32.
    """
    cos, sin = cos[:, None, None, :], sin[:, None, None, :]
    first, second = qk.chunk(2, dim=-1)
    turned = first * cos - second * sin
    second.copy_(second * cos + first * sin)
    first.copy_(turned)

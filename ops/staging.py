"""From a batch's tokens to the device: constant shapes, built on the host, one copy each way.

All that a model needs of a batch travels in one pinned int32 buffer whose size depends on the
bucket alone, so that nothing compiled sees a new shape and no copy waits for another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ops.kernels import TILE
from ops.layers import Layout
from ops.nouns import Ragged

I32 = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Packed:
    """A packed batch on the device. `rows` and `max_rows` of the bucket decide every shape.

    tokens: (rows,) int32. positions: (rows,) int32, of each token in its own sequence. tiles:
    (rows // TILE + max_rows, 3) int32, see `ops.kernels.attend`. spans: (max_rows, 3) int32, see
    `ops.kernels.pool_into`. edges: (max_rows + 1,) int32, cu_seqlens. layout: the same on the host.
    """

    tokens: Tensor
    positions: Tensor
    tiles: Tensor
    spans: Tensor
    edges: Tensor
    layout: Layout


def stage(
    tokens: Ragged,
    rows: int,
    max_rows: int,
    span: Callable[[int], tuple[int, int]],
    pad: int,
    device: torch.device,
) -> Packed:
    """The batch at the shapes of a bucket of `rows` tokens and at most max_rows sequences.

    span: which tokens of a sequence of some length are averaged (`ops.pooling`). The copy runs on
    the current stream; nothing waits for it.
    """
    layout = Layout.of(tokens.lengths, rows)
    count = len(layout.order)
    assert count <= max_rows, (count, max_rows)
    shapes = {
        "tokens": (rows,),
        "positions": (rows,),
        "tiles": (rows // TILE + max_rows, 3),
        "spans": (max_rows, 3),
        "edges": (max_rows + 1,),
    }
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    pinned = torch.empty(sum(sizes), dtype=torch.int32, pin_memory=device.type == "cuda")
    flat, *_ = host = [
        part.numpy().reshape(shape)
        for part, shape in zip(torch.split(pinned, sizes), shapes.values(), strict=True)
    ]
    _, positions, tiles, spans, edges = host
    flat[: layout.total] = tokens.take(layout.order).data
    flat[layout.total :] = pad
    positions[:] = layout.positions()
    _fill_tiles(tiles, layout)
    _fill_spans(spans, layout, span)
    edges[: count + 1] = layout.starts
    edges[count + 1 :] = layout.total
    copied = torch.split(pinned.to(device, non_blocking=True), sizes)
    parts = {
        name: part.view(shape) for part, (name, shape) in zip(copied, shapes.items(), strict=True)
    }
    return Packed(**parts, layout=layout)


def _fill_tiles(tiles: I32, layout: Layout) -> None:
    """(first row, length, first query) of every piece of TILE queries, the longest first."""
    lengths, starts = layout.lengths[::-1], layout.starts[-2::-1]
    pieces = -(-lengths // TILE)
    total = int(pieces.sum())
    tiles[:total, 0] = np.repeat(starts, pieces)
    tiles[:total, 1] = np.repeat(lengths, pieces)
    tiles[:total, 2] = TILE * (np.arange(total) - np.repeat(np.cumsum(pieces) - pieces, pieces))
    tiles[total:] = 0


def _fill_spans(spans: I32, layout: Layout, span: Callable[[int], tuple[int, int]]) -> None:
    count = len(layout.order)
    for slot, start, many, length in layout.groups:
        first, stop = span(length)
        at = start + length * np.arange(many)
        spans[slot : slot + many, 0] = at + first
        spans[slot : slot + many, 1] = at + max(first, stop)
    spans[:count, 2] = layout.order
    spans[count:] = (0, 0, -1)

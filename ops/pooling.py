"""Mean embeddings: float64 sums over each sequence's own tokens, without atomics."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ops.layers import Layout
from ops.nouns import F32

#: The original averages residues 1..min(1024, length) (original-semantics 1.6).
MAX_RESIDUES = 1024


def esm2_span(length: int) -> tuple[int, int]:
    """The pooled tokens of `<cls> residues <eos>`: its residues, at most MAX_RESIDUES."""
    return 1, max(1, min(length - 1, MAX_RESIDUES + 1))


def dnabert_span(length: int) -> tuple[int, int]:
    """The pooled tokens of `[CLS] BPE [SEP]`: all of them (original-semantics 1.5)."""
    return 0, length


def pool(hidden: Tensor, layout: Layout, model: str) -> F32:
    """Mean over each sequence's span, (n, width) fp32, in the caller's order of sequences.

    hidden: (rows, width). An empty span (no residues) gives NaN.
    """
    span = esm2_span if model == "esm2" else dnabert_span
    pooled = np.empty((len(layout.order), hidden.shape[1]), np.float32)
    for slot, start, count, length in layout.groups:
        first, stop = span(length)
        group = hidden[start : start + count * length].view(count, length, -1)[:, first:stop]
        mean = _sums(group) / max(stop - first, 1) if stop > first else np.nan
        pooled[layout.order[slot : slot + count]] = mean
    return pooled


def _sums(group: Tensor) -> NDArray[np.float64]:
    """(count, tokens, width) -> (count, width) float64.

    numpy adds along the middle axis token after token, so a sum does not depend on the count.
    """
    if group.device.type == "cpu" and group.dtype == torch.float32:
        sums: NDArray[np.float64] = np.add.reduce(group.numpy(), axis=1, dtype=np.float64)
    else:
        sums = group.sum(1, dtype=torch.float64).cpu().numpy()
    return sums

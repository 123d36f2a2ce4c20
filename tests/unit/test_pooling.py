"""Which tokens are averaged, and how exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ops.layers import Layout
from ops.pooling import dnabert_span, esm2_span, pool


@pytest.mark.parametrize(
    ("residues", "span"),
    [
        (0, (1, 1)),
        (1, (1, 2)),
        (166, (1, 167)),
        (1024, (1, 1025)),
        (1025, (1, 1025)),
        (3000, (1, 1025)),
    ],
)
def test_esm2_pools_residues_up_to_1024(residues: int, span: tuple[int, int]) -> None:
    # Given a protein with <cls> and <eos>; When its span is asked; Then both ends are left out
    assert esm2_span(residues + 2) == span


def test_dnabert_pools_every_token() -> None:
    # Given a sequence with [CLS] and [SEP]; When its span is asked; Then both are in it
    assert dnabert_span(112) == (0, 112)


@pytest.mark.parametrize("model", ["esm2", "dnabert"])
def test_means_are_exact_and_in_the_callers_order(model: str) -> None:
    # Given hidden states whose means are sensitive to float32 sums: large offsets, long sequences
    lengths = np.array([1500, 3, 168, 3, 40, 168])
    layout = Layout.of(lengths, 2048)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn((2048, 24), generator=generator) + 1000
    # When they are pooled
    pooled = pool(hidden, layout, model)
    # Then each mean is the float64 mean, rounded once, in the order in which lengths were given
    for row, length in enumerate(lengths.tolist()):
        start = int(layout.starts[np.flatnonzero(layout.order == row)[0]])
        first, stop = esm2_span(length) if model == "esm2" else dnabert_span(length)
        own = hidden[start + first : start + stop].double().numpy()
        # One unit in the last place of float32: the float64 sums may differ in their last bits.
        np.testing.assert_allclose(pooled[row], own.mean(axis=0), rtol=2**-23)


def test_a_protein_without_residues_has_no_mean() -> None:
    # Given <cls> <eos> only; When pooled; Then there is no number, rather than an arbitrary one
    assert np.isnan(pool(torch.ones(512, 4), Layout.of(np.array([2]), 512), "esm2")).all()


def test_padding_rows_do_not_reach_a_mean() -> None:
    # Given padding rows full of NaN
    layout = Layout.of(np.array([5, 9]), 512)
    hidden = torch.full((512, 4), torch.nan)
    hidden[:14] = 1.0
    # When pooled; Then the means are those of the real rows
    assert (pool(hidden, layout, "dnabert") == 1.0).all()

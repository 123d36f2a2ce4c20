"""Packing: rows into batches under token budgets, best fit decreasing.

A batch has a budget of ESM-2 tokens, one of DNABERT-S tokens, and a number of rows. Rows are taken
longest first; each goes into the batch that it fills best. Best fit looks at one budget only, the
*leading* one (ESM-2's, where there are ESM-2 tokens), and the others must merely hold.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ops.nouns import I64


@dataclass(frozen=True)
class Budgets:
    """What one batch may hold: ESM-2 tokens, DNABERT-S tokens, rows."""

    esm: int
    dna: int
    max_rows: int


class _Open:
    """A batch that still takes rows."""

    __slots__ = ("lead", "number", "other", "rows")

    def __init__(self, number: int, lead: int, other: int) -> None:
        self.number = number
        self.lead = lead  # tokens left of the leading budget
        self.other = other
        self.rows: list[int] = []


def pack(
    esm_lengths: I64 | None,
    dna_lengths: I64 | None,
    budgets: Budgets,
    *,
    one_per_batch: bool = False,
) -> list[I64]:
    """Batches as arrays of row numbers, fullest first; each row is in exactly one.

    Lengths are tokens per row, for the models in use. Every row must fit into the budgets alone;
    what does not is `too_long`, and the caller's to leave out.
    """
    if esm_lengths is not None:
        lead, other = esm_lengths, dna_lengths
        limits = (budgets.esm, budgets.dna)
    else:
        assert dna_lengths is not None
        lead, other = dna_lengths, None
        limits = (budgets.dna, 0)
    if other is None:
        other = np.zeros(len(lead), np.int64)
    assert not len(lead) or (lead.max() <= limits[0] and other.max() <= limits[1])
    if one_per_batch:
        return [np.array([row]) for row in range(len(lead))]
    batches = _best_fit_decreasing(lead, other, limits, budgets.max_rows)
    return [np.array(rows, np.int64) for rows in sorted(batches, key=lambda b: -lead[b].sum())]


def _best_fit_decreasing(
    lead: I64, other: I64, limits: tuple[int, int], max_rows: int
) -> list[list[int]]:
    """`open_` is kept ascending by what is left, so that the best fit is found by bisection."""
    lead_list, other_list = lead.tolist(), other.tolist()
    open_: list[tuple[int, int]] = []  # (left of the leading budget, batch)
    batches: list[_Open] = []
    for row in np.lexsort((-other, -lead)).tolist():
        need, also = lead_list[row], other_list[row]
        place = bisect_left(open_, (need, -1))
        while place < len(open_) and batches[open_[place][1]].other < also:
            place += 1
        if place < len(open_):
            batch = batches[open_.pop(place)[1]]
        else:
            batch = _Open(len(batches), *limits)
            batches.append(batch)
        batch.lead -= need
        batch.other -= also
        batch.rows.append(row)
        if len(batch.rows) < max_rows and batch.lead > 0:
            insort(open_, (batch.lead, batch.number))
    return [batch.rows for batch in batches]


def check_batches(
    batches: Sequence[I64], esm_lengths: I64 | None, dna_lengths: I64 | None, budgets: Budgets
) -> None:
    """The invariants of a packing: every row once, no batch empty, no budget exceeded."""
    num_rows = len(esm_lengths) if esm_lengths is not None else len(dna_lengths)  # type: ignore[arg-type]
    seen = np.concatenate(batches) if batches else np.zeros(0, np.int64)
    assert np.array_equal(np.sort(seen), np.arange(num_rows)), "a row is missing or twice"
    for rows in batches:
        assert 0 < len(rows) <= budgets.max_rows, f"a batch of {len(rows)} rows"
        assert esm_lengths is None or esm_lengths[rows].sum() <= budgets.esm
        assert dna_lengths is None or dna_lengths[rows].sum() <= budgets.dna


def fill(batches: Sequence[I64], lengths: I64, budget: int) -> tuple[float, float]:
    """Share of the padded tokens that are real: in all batches but the last, and in the last.

    The last batch is the tail, which is padded to a smaller bucket and reported apart.
    """
    shares = [float(lengths[rows].sum()) / budget for rows in batches]
    return (sum(shares[:-1]) / max(len(shares) - 1, 1), shares[-1]) if shares else (1.0, 1.0)

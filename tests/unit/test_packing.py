"""Packing: every row once, no budget exceeded, and full batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.nouns import I64
from ops.packing import Budgets, check_batches, fill, pack

BUDGETS = Budgets(esm=10_752, dna=10_752, max_rows=1_024)


def frames_of_166_residues(rng: np.random.Generator) -> tuple[I64, I64]:
    """What chunks of 500 bases give: 168 ESM-2 tokens, 70 to 130 of DNABERT-S."""
    return np.full(6_400, 168, np.int64), rng.integers(70, 130, 6_400)


def proteins(rng: np.random.Generator) -> tuple[I64, None]:
    """Log-normal lengths as in UniRef (median 290), 20 to 1,022 residues."""
    lengths = np.clip(rng.lognormal(np.log(290), 0.75, 4_000).astype(np.int64), 20, 1_022)
    return lengths + 2, None


def reads(rng: np.random.Generator) -> tuple[I64, I64]:
    """Frames of 150-base reads: 49 or 50 residues."""
    return rng.choice([51, 52], 20_700), rng.integers(25, 40, 20_700)


@pytest.mark.parametrize("make", [frames_of_166_residues, proteins, reads])
def test_995_of_1000_padded_tokens_are_real(make) -> None:  # type: ignore[no-untyped-def]
    esm, dna = make(np.random.default_rng(1))
    batches = pack(esm, dna, BUDGETS)
    check_batches(batches, esm, dna, BUDGETS)
    assert len(batches) >= 100
    # The tail is padded to a smaller bucket and counts apart.
    full, _tail = fill(batches, esm, BUDGETS.esm)
    assert full >= 0.995


@given(
    rows=st.lists(st.tuples(st.integers(2, 60), st.integers(2, 60)), max_size=60),
    dna_budget=st.integers(60, 200),
    max_rows=st.integers(1, 9),
)
def test_invariants_hold_for_any_lengths(
    rows: list[tuple[int, int]], dna_budget: int, max_rows: int
) -> None:
    esm, dna = (np.array([row[i] for row in rows], np.int64) for i in (0, 1))
    budgets = Budgets(100, dna_budget, max_rows)
    check_batches(pack(esm, dna, budgets), esm, dna, budgets)
    check_batches(pack(None, dna, budgets), None, dna, budgets)
    check_batches(pack(esm, None, budgets), esm, None, budgets)


def test_the_other_budget_binds() -> None:
    # Given rows whose DNA tokens fill the budget long before their ESM-2 tokens do
    esm, dna = np.full(40, 10), np.full(40, 2_000)
    batches = pack(esm, dna, BUDGETS)
    assert [len(batch) for batch in batches] == [5] * 8


def test_best_fit_beats_next_fit() -> None:
    # Given lengths where only the right neighbour fills a batch
    esm = np.array([60, 50, 40, 50])
    assert sorted(sorted(b.tolist()) for b in pack(esm, None, Budgets(100, 0, 9))) == [
        [0, 2],
        [1, 3],
    ]


def test_row_limit_one_per_batch_and_nothing_at_all() -> None:
    lengths = np.full(10, 3)
    assert [len(b) for b in pack(lengths, None, Budgets(10_752, 0, 4))] == [4, 4, 2]
    alone = pack(lengths, None, BUDGETS, one_per_batch=True)
    assert [b.tolist() for b in alone] == [[row] for row in range(10)]
    assert pack(np.zeros(0, np.int64), None, BUDGETS) == []


@pytest.mark.parametrize(
    "batches",
    [[[0, 1]], [[0, 1, 2], [2]], [[0, 1, 2], []], [[0, 1, 2]]],
    ids=["a row is missing", "a row is twice", "an empty batch", "over budget"],
)
def test_broken_packings_are_noticed(batches: list[list[int]]) -> None:
    lengths = np.array([5, 5, 5])
    with pytest.raises(AssertionError):
        check_batches([np.array(b, np.int64) for b in batches], lengths, None, Budgets(14, 0, 9))


def test_real_tokens_of_dna_alone() -> None:
    # Given DNA only, so that its budget leads
    lengths = np.random.default_rng(2).integers(70, 130, 12_000)
    batches = pack(None, lengths, BUDGETS)
    check_batches(batches, None, lengths, BUDGETS)
    assert len(batches) >= 100
    assert fill(batches, lengths, BUDGETS.dna)[0] >= 0.995


def test_fill_reports_the_tail_apart() -> None:
    lengths = np.array([10, 8, 9, 3])
    batches = [np.array([0]), np.array([1]), np.array([3])]
    assert fill(batches, lengths, 10) == (0.9, 0.3)
    assert fill(batches[:1], lengths, 10) == (0.0, 1.0)
    assert fill([], lengths, 10) == (1.0, 1.0)


@pytest.mark.parametrize("one_per_batch", [False, True])
def test_a_row_over_a_budget_is_refused_and_not_packed(one_per_batch: bool) -> None:
    # Given a row that no batch may hold, by either model
    for esm, dna in (([101, 3], [9, 9]), ([9, 9], [3, 101])):
        with pytest.raises(AssertionError):
            pack(np.array(esm), np.array(dna), Budgets(100, 100, 9), one_per_batch=one_per_batch)
    # And one that fills a batch to the last token is packed alone
    assert [b.tolist() for b in pack(np.array([100, 3]), None, Budgets(100, 0, 9))] == [[0], [1]]


def test_the_same_rows_are_packed_the_same_way() -> None:
    esm, dna = reads(np.random.default_rng(3))
    first, second = (pack(esm[:2_000], dna[:2_000], BUDGETS) for _ in range(2))
    assert [b.tolist() for b in first] == [b.tolist() for b in second]

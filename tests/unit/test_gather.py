"""Rows are joined by key, never by position: any order of arrival, any number of times."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from ops.errors import InternalError
from ops.gather import NOT_FINITE, RowColumns, ShardGather, rows_not_finite
from ops.nouns import Account, BatchResult, Status
from tests.unit.output_fixtures import (
    IDENTITY,
    JOB,
    NUMERICS,
    Record,
    make_account,
    make_result,
    scores_of,
)

ACCOUNT = make_account(3, [Record(2**40 + i, f"r{i}", [[1, 3, 6], [2], [4, 5]]) for i in range(9)])
ROWS = len(ACCOUNT.row_record)


def gather(messages: list[Account | BatchResult]) -> ShardGather:
    gather = ShardGather("job1", 3)
    for message in messages:
        gather.add(message)
    return gather


def assert_same(a: RowColumns, b: RowColumns) -> None:
    for name in RowColumns.__dataclass_fields__:
        left, right = getattr(a, name), getattr(b, name)
        if isinstance(left, np.ndarray):
            assert left.tobytes() == right.tobytes(), name
            assert left.dtype == right.dtype
        else:
            assert left == right, name


def batches(size: int, **options: object) -> list[BatchResult]:
    order = list(range(ROWS))
    random.Random(size).shuffle(order)
    parts = [order[i : i + size] for i in range(0, ROWS, size)]
    return [make_result(ACCOUNT, part, **options) for part in parts]  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(8))
def test_order_batching_and_repetition_do_not_matter(seed: int) -> None:
    # Given a shard in one batch, and in many that come in any order, some of them twice
    options = {"width": 3, "failed": [4, 11]}
    plain = gather([ACCOUNT, make_result(ACCOUNT, range(ROWS), **options)])  # type: ignore[arg-type]
    chance = random.Random(seed)
    messages: list[Account | BatchResult] = [ACCOUNT, *batches(seed + 1, **options)]
    messages += chance.sample(messages, len(messages) // 2)
    chance.shuffle(messages)
    # When both are gathered
    shuffled = gather(messages)
    # Then the rows are the same bytes
    assert plain.complete
    assert shuffled.complete
    assert_same(plain.rows(), shuffled.rows())
    assert shuffled.numerics == (NUMERICS,)


def test_rows_are_in_order_and_each_has_its_own_values() -> None:
    rows = gather([*batches(5, width=2), ACCOUNT]).rows()
    keys = list(zip(rows.record.tolist(), rows.chunk.tolist(), rows.frame.tolist(), strict=True))
    assert keys == sorted(set(keys))
    assert len(keys) == ROWS
    assert rows.scores is not None
    assert rows.scores.tobytes() == scores_of(rows.record, rows.chunk, rows.frame).tobytes()
    assert rows.start.tolist() == [300 * chunk + 1 for _, chunk, _ in keys]
    assert rows.end.tolist() == [300 * chunk + 300 for _, chunk, _ in keys]
    assert rows.digest.tolist() == ACCOUNT.row_digest.tolist()


def test_not_complete_until_the_account_and_the_last_row_are_there() -> None:
    open_shard = ShardGather("job1", 3)
    parts = batches(10)
    for part in parts[:-1]:
        open_shard.add(part)
    assert not open_shard.complete
    open_shard.add(ACCOUNT)
    open_shard.add(parts[0])
    assert not open_shard.complete
    assert open_shard.num_bytes > 0
    open_shard.add(parts[-1])
    assert open_shard.complete


def test_shard_without_rows_is_complete_with_its_account() -> None:
    account = make_account(3, [Record(0, "n", [Status.NO_OPEN_FRAME]), Record(1, "e")])
    rows = gather([account]).rows()
    assert len(rows.record) == 0
    assert rows.scores is None


def test_empty_account() -> None:
    assert gather([make_account(3, [])]).complete


def test_failed_rows_carry_their_reasons_in_row_order() -> None:
    rows = gather([ACCOUNT, *batches(4, width=2, failed=[20, 3])]).rows()
    assert np.flatnonzero(rows.status == Status.FAILED).tolist() == [3, 20]
    assert rows.reasons == ("row 3: device-side assert", "row 20: device-side assert")
    for matrix in (rows.scores, rows.esm2, rows.dnabert_s):
        assert matrix is not None
        assert np.isnan(matrix[[3, 20]]).all()
        assert np.isfinite(np.delete(matrix, [3, 20], axis=0)).all()


def test_condemned_row_without_matrices_beside_rows_with_them() -> None:
    # Given a row that was condemned: no matrices, a reason of several lines
    bad = replace(
        make_result(ACCOUNT, [7], failed=[7]), scores=None, reasons=("CUDA error:\n  at line 3",)
    )
    others = make_result(ACCOUNT, [i for i in range(ROWS) if i != 7], width=2)
    # When it comes first or last
    for messages in ([bad, ACCOUNT, others], [ACCOUNT, others, bad]):
        rows = gather(messages).rows()
        # Then its values are missing, and the reason is one line
        assert rows.reasons == ("CUDA error: at line 3",)
        assert rows.esm2 is not None
        assert np.flatnonzero(np.isnan(rows.esm2).any(axis=1)).tolist() == [7]


def test_value_that_is_not_finite_fails_its_row() -> None:
    result = make_result(ACCOUNT, range(ROWS), width=2)
    assert result.esm2 is not None
    result.esm2[6, 1] = np.inf
    rows = gather([ACCOUNT, result]).rows()
    assert rows.status[6] == Status.FAILED
    assert rows.reasons == (NOT_FINITE,)


def test_large_values_whose_sum_overflows_are_finite() -> None:
    matrix = np.full((4, 8), 3e38, np.float32)
    matrix[1, 7] = np.nan
    matrix[2, :2] = np.inf, -np.inf
    assert rows_not_finite(matrix) == [1, 2]


def result_with(**changes: object) -> BatchResult:
    return replace(make_result(ACCOUNT, [0, 1]), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (result_with(digest=ACCOUNT.row_digest[[0, 2]]), "another input"),
        (result_with(frame=np.array([1, 2], np.uint8)), "does not name"),
        (result_with(record=np.array([1, 2], np.uint64)), "not in the shard"),
        (result_with(record=np.array([2**50] * 2, np.uint64)), "not in the shard"),
        (result_with(identity="0" * 16), "another identity"),
    ],
)
def test_rows_that_do_not_belong_are_refused(wrong: BatchResult, message: str) -> None:
    with pytest.raises(InternalError, match=message):
        gather([ACCOUNT, wrong])
    with pytest.raises(InternalError, match=message):
        gather([wrong, ACCOUNT])


def test_account_that_comes_again_with_other_rows_is_refused() -> None:
    other = make_account(3, [Record(1, "r", [[1]])])
    with pytest.raises(InternalError, match="packed twice"):
        gather([ACCOUNT, other])


@pytest.mark.parametrize("seed", range(4))
def test_rows_of_one_input_take_the_results_of_the_first(seed: int) -> None:
    # Given a shard whose rows have few inputs; one of those fails, with a reason of its own
    inputs = np.arange(ROWS) % 5
    digest = inputs.astype(np.uint64)
    every = replace(ACCOUNT, row_digest=digest)
    account = replace(every, row_same=inputs.astype(np.uint32))
    computed = make_result(account, range(5), width=3, failed=[2])
    everything = replace(
        computed,
        **{
            name: getattr(computed, name)[inputs]
            for name in ("dtype", "status", "scores", "esm2", "dnabert_s")
        },
        **{name: getattr(ACCOUNT, f"row_{name}") for name in ("record", "chunk", "frame")},
        digest=digest,
        reasons=computed.reasons * int((inputs == 2).sum()),
    )
    # When every row has come, and when only the first of each input has, in any order, some twice
    chance = random.Random(seed)
    rows = (0, 1, 2, 3, 4, 0, 2)
    messages: list[Account | BatchResult] = [account]
    messages += [make_result(account, [row], 3, [2]) for row in rows]
    chance.shuffle(messages)
    once = gather(messages)
    # Then the shard is complete, and its rows are the same bytes
    assert once.complete
    assert_same(once.rows(), gather([every, everything]).rows())
    assert_same(once.rows(), once.rows())
    # And it is not before the last of the firsts has come
    assert not gather([account, make_result(account, [0, 1, 3, 4], 3)]).complete


@pytest.mark.parametrize(
    "same",
    [
        [1, 1, 2],  # of a later row
        [0, 0, 1],  # of a row that takes another's
        [0, 1, 0],  # of another input
        [0, 1, 9],  # of no row
    ],
)
def test_row_that_would_take_the_result_of_another_input_is_refused(same: list[int]) -> None:
    account = make_account(3, [Record(1, "r", [[1, 2, 3]])])
    digest = np.array([7, 7, 8], np.uint64)
    wrong = replace(account, row_digest=digest, row_same=np.array(same, np.uint32))
    with pytest.raises(InternalError, match="another input"):
        gather([wrong])


def test_account_that_comes_again_with_other_rows_alike_is_refused() -> None:
    account = replace(
        make_account(3, [Record(1, "r", [[1, 2]])]), row_digest=np.array([7, 7], np.uint64)
    )
    other = replace(account, row_same=np.array([0, 0], np.uint32))
    with pytest.raises(InternalError, match="packed twice"):
        gather([account, other])


def test_account_out_of_order_is_refused() -> None:
    backwards = make_account(3, [Record(1, "b", [[2, 1]])])
    with pytest.raises(InternalError, match="not in order"):
        gather([backwards])


def test_rows_of_which_only_some_have_embeddings_are_refused() -> None:
    half = ROWS // 2
    mixed = [
        make_result(ACCOUNT, range(half), width=2),
        make_result(ACCOUNT, range(half, ROWS), width=0),
    ]
    with pytest.raises(InternalError, match="only some rows"):
        gather([ACCOUNT, *mixed]).rows()
    wider = [mixed[0], make_result(ACCOUNT, range(half, ROWS), width=3)]
    with pytest.raises(InternalError, match="width"):
        gather([ACCOUNT, *wider])


def test_parts_of_one_record_in_two_shards() -> None:
    # Given the second part of a record, whose chunks do not start at 0
    account = replace(make_account(3, JOB[2]), identity=IDENTITY.digest)
    rows = gather([account, make_result(account, range(len(account.row_record)))]).rows()
    assert rows.chunk.tolist() == [3, 3, 3, 4]
    assert rows.start.tolist() == [901, 901, 901, 1201]

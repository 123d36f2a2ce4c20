"""Calls of chunks and records: the vectorised rule equals the plain one, in any cut into shards."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.calls import ChunkCalls, RecordTally, call_chunk, call_chunks, call_record
from ops.gather import RowColumns
from ops.nouns import Account, Status
from tests.unit.output_fixtures import Record, gathered, make_account

#: Few values, so that ties between frames and between classes are common.
SCORES = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, 0.1, 1e-30, 1 - 2**-24])
NAN = float("nan")


def test_original_rule_on_the_published_scores() -> None:
    # Scores of the original program for two designed sequences (see original-semantics, 2)
    virus = call_chunk([(4, 0.12100612, 0.8789939), (5, 0.0011595711, 0.9988405)])
    assert virus.is_virus
    assert virus.best_frame == 5
    assert virus.score == 0.9988405 / (0.12100612 + 0.9988405)
    # One of the frames says others, and the chunk is virus all the same
    mixed = call_chunk([(4, 0.5501341, 0.4498659), (5, 0.06045397, 0.93954605)])
    assert mixed.is_virus


def test_ties() -> None:
    # A tie between the classes is virus, a tie between frames goes to the first
    tie = call_chunk([(2, 0.5, 0.5), (3, 0.5, 0.5)])
    assert (tie.is_virus, tie.score, tie.best_frame) == (True, 0.5, 2)


@given(st.lists(st.tuples(SCORES, SCORES), min_size=1, max_size=6))
def test_score_and_call_agree(frames: list[tuple[float, float]]) -> None:
    if max(max(pair) for pair in frames) == 0:
        return  # probabilities of a frame add up to 1
    call = call_chunk([(i + 1, *pair) for i, pair in enumerate(frames)])
    assert call.is_virus == (call.score >= 0.5)


@given(st.lists(st.lists(st.tuples(st.integers(1, 6), SCORES), max_size=6), max_size=8))
def test_vectorised_equals_plain(chunks: list[list[tuple[int, float]]]) -> None:
    # Given a record with any frames and scores
    frames = [sorted(dict(chunk).items()) for chunk in chunks]
    parts = [[f for f, _ in chunk] or Status.NO_OPEN_FRAME for chunk in frames]
    account = make_account(0, [Record(5, "r", parts)])
    flat = [virus for chunk in frames for _, virus in chunk]
    scores = np.array([(1 - v, v) for v in flat], np.float32).reshape(-1, 2)
    rows = replace(gathered(account).rows(), scores=scores)
    # When it is called
    calls = call_chunks(account, rows)
    # Then each chunk has what the plain rule says
    values = iter(scores.astype(np.float64).tolist())
    for at, chunk in enumerate(frames):
        if not chunk:
            assert (calls.status[at], calls.best_frame[at]) == (Status.NO_OPEN_FRAME, 0)
            assert math.isnan(calls.score[at])
            assert not calls.is_virus[at]
            continue
        plain = call_chunk([(frame, *next(values)) for frame, _ in chunk])
        assert calls.is_virus[at] == plain.is_virus
        assert calls.score[at] == plain.score
        assert calls.best_frame[at] == plain.best_frame


def called(account: Account, failed: list[int]) -> tuple[ChunkCalls, RowColumns]:
    rows = gathered(account, failed=failed).rows()
    return call_chunks(account, rows), rows


def test_chunk_with_a_failed_frame_is_not_scored() -> None:
    # Given three chunks, and a frame of the second that failed
    account = make_account(0, [Record(0, "r", [[1], [2, 3, 4], [5]])])
    calls, _ = called(account, failed=[2])
    # Then the second has failed, and the others have not
    assert calls.status.tolist() == [Status.OK, Status.FAILED, Status.OK]
    assert np.isnan(calls.score).tolist() == [False, True, False]
    assert calls.best_frame.tolist() == [1, 0, 5]


def test_shard_without_rows_or_chunks() -> None:
    empty = make_account(0, [])
    assert len(call_chunks(empty, gathered(empty).rows()).status) == 0
    closed = make_account(0, [Record(0, "r", [Status.NO_OPEN_FRAME, Status.AMBIGUOUS])])
    calls = call_chunks(closed, gathered(closed).rows())
    assert calls.status.tolist() == [Status.NO_OPEN_FRAME, Status.AMBIGUOUS]
    assert np.isnan(calls.score).all()


def test_mean_is_added_up_in_order() -> None:
    # Given scores whose sum depends on the order
    chance = random.Random(1)
    scores = [chance.random() for _ in range(1000)]
    # When they are averaged
    tally = call_record([(Status.OK, s >= 0.5, s) for s in scores])
    # Then it is the float64 sum from first to last, bit for bit (not pairwise, not exact)
    total = 0.0
    for score in scores:
        total += score
    assert tally.virus_score == total / 1000
    assert tally.max_chunk_score == max(scores)
    assert total != math.fsum(scores)


def test_longest_run_of_neighbouring_virus_chunks() -> None:
    def run(calls: str) -> int:
        chunks = {
            "v": (Status.OK, True, 0.9),
            "o": (Status.OK, False, 0.1),
            "-": (Status.NO_OPEN_FRAME, False, NAN),
        }
        return call_record([chunks[call] for call in calls]).longest_virus_run

    assert run("") == run("oo-o") == 0
    assert run("vvovvvo") == 3
    assert run("vv-vv") == 2
    assert run("ovvvv") == 4


def test_verdict_from_one_half() -> None:
    def tally(*scores: float) -> RecordTally:
        return call_record([(Status.OK, s >= 0.5, s) for s in scores])

    assert tally(0.5).prediction == "virus"
    assert tally(math.nextafter(0.5, 0)).prediction == "others"
    assert tally(0.25, 0.75).prediction == "virus"
    assert tally().prediction == "NA"
    assert math.isnan(tally().virus_score)
    assert math.isnan(tally().max_chunk_score)


OK, FAILED, CLOSED = Status.OK, Status.FAILED, Status.NO_OPEN_FRAME


@pytest.mark.parametrize(
    ("record", "chunks", "expected"),
    [
        (Status.EMPTY, [], Status.EMPTY),
        (Status.TOO_SHORT, [CLOSED], Status.TOO_SHORT),
        (Status.TOO_LONG, [Status.TOO_LONG], Status.TOO_LONG),
        (Status.FILTERED, [OK], Status.FILTERED),
        (OK, [OK, FAILED, CLOSED], FAILED),
        (OK, [CLOSED, OK, Status.AMBIGUOUS, Status.TOO_LONG], OK),
        (OK, [CLOSED, Status.TOO_LONG, Status.AMBIGUOUS], Status.TOO_LONG),
        (OK, [CLOSED, Status.AMBIGUOUS, CLOSED], Status.AMBIGUOUS),
        (OK, [CLOSED, CLOSED], CLOSED),
    ],
)
def test_first_status_that_applies(record: Status, chunks: list[Status], expected: Status) -> None:
    tally = call_record([(status, False, 0.1 if status == OK else NAN) for status in chunks])
    assert tally.status(record) is expected

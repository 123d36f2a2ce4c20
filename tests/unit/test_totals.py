"""Totals that do not add up end a job; what a reader should know is said, and only then."""

from __future__ import annotations

import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ops.errors import AccountingError
from ops.jobs import Plan
from ops.nouns import Status
from ops.output import Output
from ops.shardfile import ShardData
from ops.tables import Counts, TableWriter
from ops.totals import check_totals, remarks
from tests.unit.output_fixtures import (
    JOB,
    PLAN,
    Record,
    commit,
    gathered,
    make_account,
    make_spec,
    read_records,
    run_job,
)


def counts_of(out: Path) -> Counts:
    return Counts(**json.loads((out / "run.json").read_text())["counts"])


def test_totals_of_a_job_add_up(tmp_path: Path) -> None:
    # Given a finished job with records and chunks of all kinds
    run_job(tmp_path, JOB)
    counts = counts_of(tmp_path)
    # Then nothing of it is unaccounted for
    check_totals(counts, PLAN, "virus")
    assert counts.records == 8 == counts.viruses + counts.others + counts.without_call
    assert counts.chunks == 16
    assert counts.chunk_statuses == {"ok": 10, "ambiguous": 2, "no_open_frame": 4}
    assert counts.frames == counts.frames_computed == 18


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"records": 7}, "records of the input and of the tables: 8 and 7; records and their stat"),
        ({"letters": 1}, "letters of the input and of the tables: 4,802 and 1"),
        ({"chunks": 15}, "chunks of the input and of the tables: 16 and 15; chunks and their stat"),
        ({"chunks_scored": 9}, "scored chunks and those with status ok: 9 and 10"),
        ({"statuses": {"ok": 4}}, "records and their statuses: 8 and 4"),
        ({"chunk_statuses": {"ok": 10}}, "chunks and their statuses: 16 and 10"),
        ({"without_call": 0}, "records and their calls: 8 and "),
    ],
)
def test_totals_that_do_not_add_up(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    run_job(tmp_path, JOB)
    wrong = replace(counts_of(tmp_path), **changes)
    with pytest.raises(AccountingError) as caught:
        check_totals(wrong, PLAN, "virus")
    assert words in str(caught.value)
    assert caught.value.exit_code == 70


@pytest.mark.parametrize("wrong", ["letters", "chunks"])
def test_job_whose_totals_do_not_add_up_is_not_finished(tmp_path: Path, wrong: str) -> None:
    # Given a job of which the first reading has counted more than its shards hold
    plan: Plan = replace(PLAN, **{wrong: getattr(PLAN, wrong) + 1})
    output = Output.open(tmp_path, make_spec(tmp_path), plan)
    commit(output, 0, 1, 2, 3)
    # When it is finished; Then it is an error, and run.json does not call it finished
    with pytest.raises(AccountingError, match=f"{wrong} of the input and of the tables"):
        output.finish(lambda: read_records(JOB))
    output.close()
    assert json.loads((tmp_path / "run.json").read_text())["state"] == "running"


def written(*records: Record, digests: list[int] | None = None) -> Counts:
    """The totals of a job of one shard."""
    account = make_account(0, records)
    if digests is not None:
        account = replace(account, row_digest=np.array(digests, np.uint64))
    gather = gathered(account)
    tables = TableWriter(BytesIO(), BytesIO())
    tables.add(ShardData(account, gather.rows(), {}))
    return tables.close(len(records))


def test_scored_records_below_300_bases_are_remarked_on() -> None:
    # Given records around 300 bases, and a shorter one without a call
    counts = written(
        Record(0, "a", [[1]], length=300),
        Record(1, "b", [[2]], length=299),
        Record(2, "c", [Status.NO_OPEN_FRAME], length=100),
    )
    # Then the shorter one with a call is counted, in words that a reader understands
    assert counts.scored_below_300 == 1
    assert remarks(vars(counts), "virus") == [
        "1 of 2 scored records is shorter than 300 bases: published classifiers are near chance "
        "there"
    ]
    assert remarks(vars(written(Record(0, "a", [[1]], length=300))), "virus") == []


def test_rows_that_were_not_computed_again_are_remarked_on() -> None:
    counts = written(Record(0, "a", [[1, 2, 3], [4]]), digests=[5, 6, 5, 5])
    assert (counts.frames, counts.frames_computed) == (4, 2)
    told = "2 of 4 {} were identical to an earlier one of their shard and computed once"
    for pipeline, noun in (("virus", "frames"), ("dna", "sequences")):
        assert remarks(vars(counts), pipeline) == [told.format(noun)]

"""sequences.tsv and chunks.tsv: every record once, in input order, however the input was cut."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest

from ops.calls import call_chunk, call_record
from ops.errors import CorruptionError
from ops.identity import Identity
from ops.nouns import Status
from ops.shardfile import ShardData
from ops.tables import CHUNK_COLUMNS, SEQUENCE_COLUMNS, Counts, TableWriter, escape, number
from tests.unit.output_fixtures import CHUNK, IDENTITY, JOB, PROTEIN, Record, gathered, make_account


def make_shard(
    number: int,
    records: Sequence[Record],
    failed: Sequence[int] = (),
    identity: Identity = IDENTITY,
) -> ShardData:
    gather = gathered(make_account(number, records, identity), failed=failed)
    return ShardData(gather.account, gather.rows(), {})


def tables_of(
    shards: Sequence[ShardData], num_records: int, uracil_as_t: bool = True
) -> tuple[list[dict[str, str]], list[dict[str, str]], Counts]:
    sequences, chunks = BytesIO(), BytesIO()
    writer = TableWriter(sequences, chunks, uracil_as_t)
    for shard in shards:
        writer.add(shard)
    counts = writer.close(num_records)
    return parse(sequences), parse(chunks), counts


def parse(table: BytesIO) -> list[dict[str, str]]:
    text = table.getvalue().decode()
    assert text.endswith("\n")
    assert "\r" not in text
    header, *lines = text[:-1].split("\n")
    rows = [line.split("\t") for line in lines]
    columns = header.split("\t")
    assert all(len(row) == len(columns) for row in rows)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def job_shards(job: Sequence[Sequence[Record]] = JOB) -> list[ShardData]:
    return [make_shard(number, records) for number, records in enumerate(job)]


def test_columns_are_those_of_the_design() -> None:
    assert " ".join(SEQUENCE_COLUMNS) == (
        "seq_name length prediction virus_score max_chunk_score longest_virus_run n_chunks "
        "n_chunks_scored n_virus_chunks n_frames status note"
    )
    assert " ".join(CHUNK_COLUMNS) == (
        "seq_name chunk start end prediction virus_score best_frame n_frames status"
    )


def test_every_record_once_in_input_order_with_a_status() -> None:
    sequences, _, counts = tables_of(job_shards(), 8)
    assert [(row["seq_name"], row["status"]) for row in sequences] == [
        ("first", "ok"),
        ("empty", "empty"),
        ("short", "too_short"),
        ("huge", "ok"),
        ("twice", "ok"),
        ("twice", "ok"),
        ("closed", "no_open_frame"),
        ("unknown", "ambiguous"),
    ]
    assert counts.records == 8
    assert counts.chunks == 16
    assert counts.frames == 18
    assert counts.chunks_scored == 10
    assert counts.statuses == {
        "ok": 4, "empty": 1, "too_short": 1, "no_open_frame": 1, "ambiguous": 1
    }  # fmt: skip
    assert (counts.ambiguous_letters, counts.uracil_letters) == (13, 3)


def test_rows_equal_the_plain_rule() -> None:
    # Given the frames of all chunks, read straight from the shards
    frames: dict[tuple[int, int], list[tuple[int, float, float]]] = {}
    shards = job_shards()
    for shard in shards:
        rows = shard.rows
        assert rows.scores is not None
        for at in range(len(rows.record)):
            others, virus = rows.scores[at].astype(np.float64).tolist()
            key = (int(rows.record[at]), int(rows.chunk[at]))
            frames.setdefault(key, []).append((int(rows.frame[at]), others, virus))
    sequences, chunks, counts = tables_of(shards, 8)
    table = iter(chunks)
    records = {r.ordinal: r for shard in JOB for r in shard}
    for ordinal, record in records.items():
        calls = []
        for chunk in range(record.whole):
            row = next(table)
            assert (row["seq_name"], row["chunk"]) == (record.name, str(chunk + 1))
            assert (row["start"], row["end"]) == (str(chunk * CHUNK + 1), str((chunk + 1) * CHUNK))
            if (ordinal, chunk) not in frames:
                assert (row["prediction"], row["virus_score"], row["best_frame"]) == ("NA",) * 3
                calls.append((Status.NO_OPEN_FRAME, False, float("nan")))
                continue
            # When the plain rule is applied to them
            call = call_chunk(frames[ordinal, chunk])
            calls.append((Status.OK, call.is_virus, call.score))
            # Then the tables say the same, to the last bit
            assert float(row["virus_score"]) == call.score
            assert row["prediction"] == ("virus" if call.is_virus else "others")
            assert row["best_frame"] == ["F1", "F2", "F3", "R1", "R2", "R3"][call.best_frame - 1]
            assert row["n_frames"] == str(len(frames[ordinal, chunk]))
            assert row["status"] == "ok"
        tally = call_record(calls)
        sequence = sequences[ordinal]
        assert sequence["prediction"] == tally.prediction
        assert sequence["virus_score"] == number(tally.virus_score)
        assert sequence["max_chunk_score"] == number(tally.max_chunk_score)
        assert sequence["longest_virus_run"] == str(tally.longest_virus_run)
        assert sequence["n_chunks"] == str(record.whole)
        assert sequence["n_chunks_scored"] == str(tally.num_scored)
        assert sequence["n_virus_chunks"] == str(tally.num_virus)
    assert next(table, None) is None
    assert counts.viruses == sum(row["prediction"] == "virus" for row in sequences)


@pytest.mark.parametrize("cut", [1, 2, 3, 7])
def test_cut_into_shards_changes_no_byte(cut: int) -> None:
    # Given a record of 21 chunks, whole or in parts
    open_frames = [[1, 2], Status.NO_OPEN_FRAME, [6], [3, 4, 5], Status.AMBIGUOUS, [1], [2]] * 3
    whole = [make_shard(0, [Record(0, "long", open_frames, uracil=21, ambiguous=42)])]
    parts = []
    for at in range(0, 21, cut):
        held = open_frames[at : at + cut]
        part = Record(0, "long", held, at, 21, uracil=len(held), ambiguous=2 * len(held))
        parts.append(make_shard(len(parts), [part]))
    # When both are written, then the tables are the same
    assert tables_of(whole, 1) == tables_of(parts, 1)


def test_notes() -> None:
    job = [
        Record(0, "rna", [[1]], uracil=3, ambiguous=12),
        Record(1, "bad", [[1], [2, 3]]),
        Record(2, "plain", [[1]]),
    ]
    sequences, chunks, _ = tables_of([make_shard(0, job, failed=[2, 3])], 3)
    assert [row["note"] for row in sequences] == [
        "3 U read as T; 12 ambiguous letters",
        "2 failed: row 2: device-side assert",
        "NA",
    ]
    # A record with a failed chunk says so, and is still called from its other chunks
    assert sequences[1]["status"] == "failed"
    assert sequences[1]["n_chunks_scored"] == "1"
    assert sequences[1]["virus_score"] == chunks[1]["virus_score"]
    assert [row["status"] for row in chunks] == ["ok", "ok", "failed", "ok"]
    sequences, _, _ = tables_of([make_shard(0, job)], 3, uracil_as_t=False)
    assert sequences[0]["note"].startswith("3 U kept; codons with U are deleted; 12 ambiguous")


def test_chunks_too_long_for_the_model() -> None:
    job = [Record(0, "a", [Status.TOO_LONG, [1]]), Record(1, "b", [Status.TOO_LONG])]
    sequences, chunks, _ = tables_of([make_shard(0, job)], 2)
    assert [row["status"] for row in sequences] == ["ok", "too_long"]
    assert [row["note"] for row in sequences] == ["1 too long"] * 2
    assert [row["status"] for row in chunks] == ["too_long", "ok", "too_long"]


def test_protein_job_has_records_only() -> None:
    # Given embeddings of proteins, one of them failed and one too long
    job = [
        Record(0, "a", [[0]], length=50),
        Record(1, "b", [[0]], length=60),
        Record(2, "c", [Status.TOO_LONG], status=Status.TOO_LONG, length=9000),
        Record(3, "d", status=Status.EMPTY, length=0),
    ]
    shard = make_shard(0, job, failed=[1], identity=PROTEIN)
    shard = replace(shard, rows=replace(shard.rows, scores=None))
    sequences = BytesIO()
    writer = TableWriter(sequences, None)
    writer.add(shard)
    counts = writer.close(4)
    # Then each has a row without a call
    rows = parse(sequences)
    assert [row["status"] for row in rows] == ["ok", "failed", "too_long", "empty"]
    assert [row["length"] for row in rows] == ["50", "60", "9000", "0"]
    for row in rows:
        assert {row[column] for column in SEQUENCE_COLUMNS[2:10]} == {"NA"}
    assert (counts.chunks, counts.viruses) == (0, 0)


def test_empty_input_gives_header_lines() -> None:
    assert tables_of([], 0)[:2] == ([], [])
    assert tables_of([make_shard(0, [])], 0)[:2] == ([], [])


@pytest.mark.parametrize(
    ("shards", "num_records"),
    [
        ([0, 1, 2], 8),  # the last shard is missing
        ([0, 1, 3], 8),  # half of a record is missing
        ([1, 2, 3], 8),
        ([0, 2, 1, 3], 8),
        ([0, 1, 1, 2, 3], 8),
        ([0, 1, 2, 3], 9),
        ([0, 1], 4),  # a record that does not end
    ],
)
def test_missing_doubled_or_misplaced_parts_are_noticed(
    shards: list[int], num_records: int
) -> None:
    parts = job_shards()
    with pytest.raises(CorruptionError, match="--force"):
        tables_of([parts[shard] for shard in shards], num_records)


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        ("sp|P0DTC2|SPIKE_SARS2", "sp|P0DTC2|SPIKE_SARS2"),
        ("back\\slash", "back\\slash"),
        ("naïve_µ", "naïve_µ"),
        ("a\tb", "a\\x09b"),
        ('"a"', "\\x22a\\x22"),
        ("NA", "\\x4eA"),
        ("nan", "\\x6ean"),
        ("NAN", "NAN"),
        ("a\x00\x1f\x7f\x85", "a\\x00\\x1f\\x7f\\x85"),
        ("a\u2028b", "a\\u2028b"),
    ],
)
def test_names_stay_in_their_cell(name: str, escaped: str) -> None:
    assert escape(name) == escaped
    sequences, chunks, _ = tables_of([make_shard(0, [Record(0, name, [[1]])])], 1)
    assert sequences[0]["seq_name"] == chunks[0]["seq_name"] == escaped


@pytest.mark.parametrize("value", [0.1 + 0.2, 1 / 3, 1e-300, 5e-324, 0.5, 1.0])
def test_numbers_read_back_the_same(value: float) -> None:
    assert float(number(value)) == value
    assert number(math.nan) == "NA"


def test_memory_does_not_grow_with_the_record() -> None:
    # Given one record over few or many shards
    def peak(num_shards: int) -> int:
        part = make_shard(0, [Record(0, "long", [[1, 2]] * 100, 0, 100 * num_shards)])
        account = part.account
        writer = TableWriter(Discard(), Discard())
        tracemalloc.start()
        for shard in range(num_shards):
            first, stop = np.uint32([100 * shard]), np.uint32([100 * shard + 100])
            moved = replace(account, first_chunk=first, stop_chunk=stop)
            writer.add(replace(part, account=moved))
        writer.close(1)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    # Then the peak is the same, within 10 % for the allocator's mood
    peak(2)
    assert peak(100) < 1.1 * peak(10)


class Discard(BytesIO):
    def write(self, data: object) -> int:
        return 0

"""The original's files: its header, order and digits, against a plain in-memory version."""

from __future__ import annotations

import random
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from ops.calls import FRAMES
from ops.compat import CompatWriter, Highest, Sorter
from ops.shardfile import ShardData
from tests.unit.output_fixtures import JOB, Record, gathered, make_account


def make_shards(job: list[list[Record]], failed: list[int] | None = None) -> list[ShardData]:
    gathers = [gathered(make_account(i, part), failed=failed or []) for i, part in enumerate(job)]
    return [ShardData(gather.account, gather.rows(), {}) for gather in gathers]


def written(shards: list[ShardData], folder: Path) -> tuple[str, str]:
    predictions, highest = BytesIO(), BytesIO()
    writer = CompatWriter(predictions, highest, folder)
    for shard in shards:
        writer.add(shard)
    writer.close()
    return predictions.getvalue().decode(), highest.getvalue().decode()


def plain(shards: list[ShardData]) -> tuple[str, str]:
    """Everything in memory, as the original has it: a list of rows, then group by and sort."""
    lines, groups = [], dict[str, list[tuple[np.float32, np.float32]]]()
    for shard in shards:
        names = dict(zip(shard.account.record.tolist(), shard.account.name.to_bytes(), strict=True))
        rows = shard.rows
        assert rows.scores is not None
        for at in range(len(rows.record)):
            s1, s2 = rows.scores[at]
            if np.isnan(s1):
                continue
            name = names[int(rows.record[at])].decode()
            id_ = f"{name}_chunk_{rows.chunk[at] + 1}{FRAMES[rows.frame[at]]}"
            label = ["others", "virus"][int(np.argmax(rows.scores[at]))]
            lines.append(f"{id_}\t{label}\t{s1!s}\t{s2!s}\n")
            groups.setdefault(id_[:-2], []).append((s1, s2))
    calls = [
        f"{id_}\t{max(s2 for _, s2 in groups[id_]) >= max(s1 for s1, _ in groups[id_])}\n"
        for id_ in sorted(groups)
    ]
    return (
        "Sequence_ID\tPrediction\tscore1\tscore2\n" + "".join(lines),
        "Modified_ID\tIs_Virus\n" + "".join(calls),
    )


def test_golden_rows_of_the_original(tmp_path: Path) -> None:
    # Given the eight frames that the original program has scored (original-semantics, 2)
    names = ["synthetic_seq_1", "synthetic_seq_2", "fixed_500bp_seq1", "fixed_500bp_seq2"]
    frames = [[4, 5], [4, 5], [4, 6], [4, 6]]
    values = [
        (0.12100612, 0.8789939),
        (0.0011595711, 0.9988405),
        (0.5501341, 0.4498659),
        (0.06045397, 0.93954605),
        (0.002076708, 0.9979233),
        (0.21817714, 0.7818229),
        (0.08007622, 0.9199237),
        (0.22702886, 0.7729711),
    ]
    [shard] = make_shards([[Record(i, names[i], [frames[i]]) for i in range(4)]])
    scores = np.array(values, np.float32)
    shard = replace(shard, rows=replace(shard.rows, scores=scores))
    # When they are written
    predictions, highest = written([shard], tmp_path)
    # Then header, ids, labels and digits are the original's
    assert predictions == (
        "Sequence_ID\tPrediction\tscore1\tscore2\n"
        "synthetic_seq_1_chunk_1R1\tvirus\t0.12100612\t0.8789939\n"
        "synthetic_seq_1_chunk_1R2\tvirus\t0.0011595711\t0.9988405\n"
        "synthetic_seq_2_chunk_1R1\tothers\t0.5501341\t0.4498659\n"
        "synthetic_seq_2_chunk_1R2\tvirus\t0.06045397\t0.93954605\n"
        "fixed_500bp_seq1_chunk_1R1\tvirus\t0.002076708\t0.9979233\n"
        "fixed_500bp_seq1_chunk_1R3\tvirus\t0.21817714\t0.7818229\n"
        "fixed_500bp_seq2_chunk_1R1\tvirus\t0.08007622\t0.9199237\n"
        "fixed_500bp_seq2_chunk_1R3\tvirus\t0.22702886\t0.7729711\n"
    )
    assert highest == (
        "Modified_ID\tIs_Virus\n"
        "fixed_500bp_seq1_chunk_1\tTrue\n"
        "fixed_500bp_seq2_chunk_1\tTrue\n"
        "synthetic_seq_1_chunk_1\tTrue\n"
        "synthetic_seq_2_chunk_1\tTrue\n"
    )


def test_equals_the_plain_version(tmp_path: Path) -> None:
    shards = make_shards(JOB, failed=[1])
    assert written(shards, tmp_path) == plain(shards)
    assert list(tmp_path.iterdir()) == []


def test_lexicographic_order_and_duplicate_names(tmp_path: Path) -> None:
    # Given a record of 12 chunks, between two records of one name, whose chunks share their ids
    job = [
        [Record(0, "twin", [[1], [1]]), Record(1, "long", [[2]] * 12)],
        [Record(2, "twin", [[1], [1], [4]])],
    ]
    shards = make_shards(job)
    predictions, highest = written(shards, tmp_path)
    # Then ids are sorted as text, and each has one row
    ids = [line.split("\t")[0] for line in highest.splitlines()[1:]]
    assert ids[:4] == ["long_chunk_1", "long_chunk_10", "long_chunk_11", "long_chunk_12"]
    assert ids[-3:] == ["twin_chunk_1", "twin_chunk_2", "twin_chunk_3"]
    assert (predictions, highest) == plain(shards)


def test_ties(tmp_path: Path) -> None:
    # Given a chunk whose classes tie
    [shard] = make_shards([[Record(0, "r", [[1]])]])
    half = np.full((1, 2), 0.5, np.float32)
    predictions, highest = written(
        [replace(shard, rows=replace(shard.rows, scores=half))], tmp_path
    )
    # Then the frame is others (the first of equals), and the chunk is virus (s2 >= s1)
    assert predictions.splitlines()[1] == "r_chunk_1F1\tothers\t0.5\t0.5"
    assert highest.splitlines()[1] == "r_chunk_1\tTrue"


def test_digits_are_the_shortest_of_float32(tmp_path: Path) -> None:
    values = np.array([1e-05, 1.1754944e-38, 0.1, 1 / 3, 1.0, 0.0, 0.99999994], np.float32)
    [shard] = make_shards([[Record(i, f"r{i}", [[1]]) for i in range(len(values))]])
    scores = np.stack([values, values], axis=1)
    predictions, _ = written([replace(shard, rows=replace(shard.rows, scores=scores))], tmp_path)
    digits = [line.split("\t")[2] for line in predictions.splitlines()[1:]]
    assert digits == ["1e-05", "1.1754944e-38", "0.1", "0.33333334", "1.0", "0.0", "0.99999994"]


def test_no_rows(tmp_path: Path) -> None:
    assert written(make_shards([[]]), tmp_path) == (
        "Sequence_ID\tPrediction\tscore1\tscore2\n",
        "Modified_ID\tIs_Virus\n",
    )


@pytest.mark.parametrize(("run_bytes", "max_runs"), [(1, 2), (500, 3), (5_000, 64), (1 << 20, 64)])
def test_external_sort_equals_sorted(tmp_path: Path, run_bytes: int, max_runs: int) -> None:
    # Given many ids, some of them equal, some with letters beyond ASCII
    chance = random.Random(run_bytes)
    items: list[Highest] = [
        (f"{chance.choice('aAzµ漢😀')}_chunk_{chance.randrange(200)}".encode(), i / 2, i * 2.0)
        for i in range(300)
    ]
    # When they are sorted in memory for a fraction of them
    with Sorter(tmp_path, run_bytes, max_runs) as sorter:
        for item in items:
            sorter.add(item)
        found = list(sorter)
    # Then nothing is lost, the order is that of Python's text, and no file stays
    text = [item[0].decode() for item in found]
    assert text == sorted(text)
    assert merged(found) == merged(items)
    assert list(tmp_path.iterdir()) == []


def merged(items: list[Highest]) -> dict[bytes, tuple[float, float]]:
    largest: dict[bytes, tuple[float, float]] = {}
    for key, others, virus in items:
        held = largest.get(key, (others, virus))
        largest[key] = (max(held[0], others), max(held[1], virus))
    return largest

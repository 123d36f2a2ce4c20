"""Cutting into shards: both passes agree, and the cut depends on input and parameters alone."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from ops import cut as cut_module
from ops import fasta, source
from ops.cut import SHARD_RECORDS, CutParams, cut_shards, plan_input
from ops.errors import DataError
from ops.frames import chunk_bounds
from ops.jobs import Plan
from ops.nouns import ShardTask


def params(pipeline: str = "virus", **changes: object) -> CutParams:
    values = {
        "job": "j",
        "identity": "i",
        "pipeline": pipeline,
        "chunk_length": 50 if pipeline == "virus" else 0,
        "keep_embeddings": False,
        "uracil_as_t": True,
        "shard_bases": 1_000,
        "shard_records": 4,
        **changes,
    }
    return CutParams(**values)  # type: ignore[arg-type]


def write(path: Path, records: list[str], width: int = 60) -> Path:
    with path.open("w") as stream:
        for number, letters in enumerate(records):
            stream.write(f">r{number % 3} text\n")
            stream.writelines(letters[i : i + width] + "\n" for i in range(0, len(letters), width))
    return path


def plan_of(path: Path, cut: CutParams) -> Plan:
    scan = plan_input([path], cut)
    for _ in scan:
        pass
    return scan.result


def cut_of(path: Path, cut: CutParams) -> list[ShardTask]:
    return list(cut_shards([path], cut, plan_of(path, cut).huge_lengths))


def random_records(seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    lengths = rng.choice([0, 1, 3, 49, 50, 51, 400, 1_000, 1_001, 3_333, 9_000], 30)
    return ["".join(rng.choice(list("ACGTNU"), length)) for length in lengths]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("piece", [40, 1 << 20])
def test_passes_agree_and_nothing_is_lost(
    seed: int, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given records from empty to huge, in pieces of any size
    monkeypatch.setattr(fasta, "PIECE_LETTERS", piece)
    monkeypatch.setattr(source, "BLOCK_BYTES", piece)
    records = random_records(seed)
    path = write(tmp_path / "x.fa", records)
    # When the input is planned and cut
    plan = plan_of(path, params())
    tasks = cut_of(path, params())
    # Then the shards are those of the plan
    assert [task.shard for task in tasks] == list(range(plan.shards))
    assert plan.records == len(records)
    assert plan.letters == sum(map(len, records))
    # And every chunk of every record is in one of them, with its own bases
    chunks = [
        (int(record), chunk, letters.tobytes()[start : end + 1].decode())
        for task in tasks
        for record, length, first, stop, offset, letters in zip(
            task.record,
            task.length,
            task.first_chunk,
            task.stop_chunk,
            task.offset,
            task.sequence,
            strict=True,
        )
        for chunk, (start, end) in zip(
            range(first, stop),
            chunk_bounds(int(length), 50, int(first), int(stop)) - [int(offset), int(offset) + 1],
            strict=True,
        )
    ]
    assert chunks == [
        (number, chunk, letters[start:end])
        for number, letters in enumerate(records)
        for chunk, (start, end) in enumerate(chunk_bounds(len(letters), 50).tolist())
    ]
    assert plan.chunks == len(chunks)


def test_limits_of_a_shard(tmp_path: Path) -> None:
    path = write(tmp_path / "x.fa", ["A" * 10] * 9 + ["C" * 600] * 3 + ["G" * 5_000, "T"])
    tasks = cut_of(path, params())
    assert [task.record.tolist() for task in tasks] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
        [10],
        [11],
        *([[12]] * 5),  # huge: 100 chunks, 20 a shard
        [13],
    ]
    assert [task.first_chunk.tolist() for task in tasks[5:10]] == [[0], [20], [40], [60], [80]]
    assert max(len(task.sequence.data) for task in tasks) <= 1_000


def test_names_of_a_shard_fit_in_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given names that are as long as all else is short; é has two bytes
    monkeypatch.setattr(cut_module, "SHARD_NAME_BYTES", 4_000)
    path = tmp_path / "x.fa"
    path.write_text("".join(f">{'é' * 900}\nACGT\n" for _ in range(5)))
    # Then both passes close a shard before its names are too many
    cut = params(shard_records=100)
    assert [task.record.tolist() for task in cut_of(path, cut)] == [[0, 1], [2, 3], [4]]
    assert plan_of(path, cut).shards == 3


def test_names_do_not_change_the_cut_of_full_default_shards() -> None:
    assert SHARD_RECORDS * fasta.MAX_NAME_BYTES <= cut_module.SHARD_NAME_BYTES


def test_skipped_shards_change_nothing_of_the_others(tmp_path: Path) -> None:
    path = write(tmp_path / "x.fa", random_records(7))
    plan = plan_of(path, params())
    rest = cut_shards([path], params(), plan.huge_lengths, skip=lambda shard: shard % 3 != 1)
    whole = {task.shard: task for task in cut_of(path, params())}
    for task in rest:
        assert task.shard % 3 == 1
        assert np.array_equal(task.sequence.data, whole.pop(task.shard).sequence.data)
    assert {shard for shard in whole if shard % 3 == 1} == set()


def test_counts_of_letters_and_the_digest(tmp_path: Path) -> None:
    plain = write(tmp_path / "a.fa", ["ACGTNNRU", "uuac"])
    plan = plan_of(plain, params())
    assert (plan.letters, plan.ambiguous, plan.uracil) == (12, 3, 3)
    other = write(tmp_path / "b.fa", ["ACGTNNRU", "uuag"])
    assert plan_of(other, params()).input_digest != plan.input_digest


def test_protein_and_dna_records_are_never_cut(tmp_path: Path) -> None:
    path = write(tmp_path / "x.fa", ["MKV" * 700, "", "MK"])
    tasks = cut_of(path, params("protein"))
    assert [task.record.tolist() for task in tasks] == [[0], [1, 2]]
    assert tasks[1].num_chunks.tolist() == [0, 1]
    assert plan_of(path, params("protein")).chunks == 0


def test_nobody_carries_a_protein_that_no_model_takes(tmp_path: Path) -> None:
    path = write(tmp_path / "x.fa", ["M", "K" * ((1 << 20) + 1), "V"])
    tasks = cut_of(path, params("protein", shard_bases=1 << 20))
    assert [(task.length.tolist(), len(task.sequence.data)) for task in tasks] == [
        ([1], 1),
        ([(1 << 20) + 1], 0),
        ([1], 1),
    ]


def test_a_bad_input_is_refused_in_the_first_pass(tmp_path: Path) -> None:
    path = write(tmp_path / "x.fa", ["ACGT" * 500, "AC1"])
    with pytest.raises(DataError, match="record 'r1'"):
        plan_of(path, params())


HUGE = ["A" * 900] * 3_000 + ["C" * 5_000]


@pytest.mark.parametrize(
    "later",
    [
        ["G" * 900] * 3_000 + ["C" * 5_000],  # other letters
        ["A" * 900] * 3_000 + ["C" * 4_000],  # the huge record ends early
        ["A" * 900] * 2_999 + ["A" * 1_100, "C" * 5_000],  # another record is huge
        ["A" * 900] * 3_000,  # the huge record is gone
        [*HUGE, "T"],
    ],
)
def test_an_input_that_changes_while_it_is_cut_never_gives_all_its_shards(
    later: list[str], tmp_path: Path
) -> None:
    # Given a planned input of which the first shards were cut
    path = write(tmp_path / "x.fa", HUGE)
    plan = plan_of(path, params())
    tasks = cut_shards([path], params(), plan.huge_lengths, plan=plan)
    seen = [next(tasks).shard]
    # When somebody writes other content into the same file
    write(path, later)
    # Then it is refused before the last shard is given
    with pytest.raises(DataError, match="an input changed while it was read"):
        seen.extend(task.shard for task in tasks)
    assert len(seen) < plan.shards


def test_an_unchanged_input_gives_all_shards_with_its_digest(tmp_path: Path) -> None:
    path = write(tmp_path / "x.fa", HUGE)
    plan = plan_of(path, params())
    tasks = list(cut_shards([path], params(), plan.huge_lengths, plan=plan))
    assert [task.shard for task in tasks] == list(range(plan.shards))


def test_dna_records_are_never_cut(tmp_path: Path) -> None:
    path = write(tmp_path / "x.fa", ["ACGT" * 600, "", "AC"])
    tasks = cut_of(path, params("dna"))
    assert [task.record.tolist() for task in tasks] == [[0], [1, 2]]
    assert [task.sequence.lengths.tolist() for task in tasks] == [[2_400], [0, 2]]
    assert plan_of(path, params("dna")).chunks == 0


@pytest.mark.parametrize("pipeline", ["virus", "protein", "dna"])
def test_an_empty_file_has_no_shards(pipeline: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.fa", [])
    plan = plan_of(path, params(pipeline))
    assert (plan.records, plan.letters, plan.chunks, plan.shards) == (0, 0, 0, 0)
    assert cut_of(path, params(pipeline)) == []


def test_a_record_is_huge_from_one_letter_over_a_shard(tmp_path: Path) -> None:
    path = write(tmp_path / "x.fa", ["A" * 1_000, "C" * 1_001])
    assert plan_of(path, params()).huge_lengths == {1: 1_001}
    tasks = cut_of(path, params())
    assert [task.record.tolist() for task in tasks] == [[0], [1], [1]]
    assert [int(task.stop_chunk[0]) for task in tasks] == [20, 20, 21]


def test_a_chunk_longer_than_a_shard_is_a_shard(tmp_path: Path) -> None:
    path = write(tmp_path / "x.fa", ["A" * 95])
    tasks = cut_of(path, params(shard_bases=10))
    # Two chunks for 95 bases: overlaps of 3 would be due in three gaps, and there is one, so that
    # the last chunk is two bases short.
    assert [task.sequence.lengths.tolist() for task in tasks] == [[50], [48]]


def test_duplicate_names_stay_and_ordinals_tell_them_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "x.fa", ["A" * 9, "C" * 9, "G" * 9, "T" * 9, "A" * 2_000])
    tasks = cut_of(path, params())
    named = [(int(r), n) for t in tasks for r, n in zip(t.record, t.name.to_bytes(), strict=True)]
    assert named[:4] == [(0, b"r0"), (1, b"r1"), (2, b"r2"), (3, b"r0")]
    assert set(named[4:]) == {(4, b"r1")}


def test_a_gzipped_copy_is_the_same_input(tmp_path: Path) -> None:
    records = random_records(8)
    plain = write(tmp_path / "x.fa", records)
    packed = tmp_path / "x.fa.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert plan_of(packed, params()) == plan_of(plain, params())
    first, second = cut_of(plain, params()), cut_of(packed, params())
    assert [t.sequence.to_bytes() for t in first] == [t.sequence.to_bytes() for t in second]


def test_strict_refuses_a_name_that_comes_twice(tmp_path: Path) -> None:
    # Given four records, of which the first and the last have one name
    path = write(tmp_path / "x.fa", ["ACGT"] * 4)
    # When the input is planned; Then that is fine, and refused with strict
    assert plan_of(path, params()).records == 4
    with pytest.raises(DataError, match="records 1 and 4 of the input have the same name"):
        plan_of(path, params(strict=True))
    assert plan_of(write(tmp_path / "y.fa", ["A"] * 3), params(strict=True)).records == 3
    assert plan_of(write(tmp_path / "z.fa", []), params(strict=True)).records == 0

"""What a packer makes of a shard: rows, tokens, digests, batches and the account."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest

from ops import esm_tokens
from ops import frames_plain as plain
from ops.cut import CutParams, cut_shards, plan_input
from ops.dna_tokens import DnaTokenizer
from ops.errors import UsageError
from ops.frames_export import write_frames
from ops.nouns import Account, Batch, Ragged, Status, is_computed
from ops.packing import Budgets
from ops.prepare import Rows, each_alone, first_alike, prepare

BUDGETS = Budgets(10_752, 10_752, 1_024)
TOKENIZER = DnaTokenizer(Path(__file__).parents[1] / "data" / "dnabert-s" / "tokenizer.json")


def prepared(
    path: Path,
    records: list[str],
    pipeline: str = "virus",
    chunk_length: int = 60,
    max_tokens: int = 8_192,
    uracil_as_t: bool = True,
    shard_bases: int = 1 << 20,
    one_per_batch: bool = False,
    every_row: bool = False,
    **filters: int,
) -> list[tuple[list[Batch], Account]]:
    """Batches and account of every shard of a file with these records."""
    path.write_text("".join(f">r{i}\n{letters}\n" for i, letters in enumerate(records)))
    chunks = chunk_length if pipeline == "virus" else 0
    cut = CutParams("j", "i", pipeline, chunks, True, uracil_as_t, shard_bases, **filters)
    scan = plan_input([path], cut)
    for _ in scan:
        pass
    return [  # with a tokenizer whatever comes, as a packer of a service has one
        prepare(
            task,
            TOKENIZER,
            BUDGETS,
            max_tokens,
            one_per_batch=one_per_batch,
            every_row=every_row,
        )
        for task in cut_shards([path], cut, scan.result.huge_lengths)
    ]


def keys_of(account: Account) -> list[tuple[int, int, int]]:
    columns = (account.row_record, account.row_chunk, account.row_frame)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_rows_are_the_plain_frames_in_key_order(tmp_path: Path) -> None:
    # Given records with all kinds of frames
    rng = np.random.default_rng(0)
    records = ["".join(rng.choice(list("ACGTN"), n)) for n in (200, 0, 2, 61, 500)] + ["ACG" * 99]
    [(batches, account)] = prepared(tmp_path / "x.fa", records)
    expected = {
        (number, chunk, frame.number): frame
        for number, letters in enumerate(records)
        for chunk, (start, end) in enumerate(plain.chunk_bounds(len(letters), 60))
        for frame in plain.open_frames(letters[start:end])
        if frame.protein
    }
    # Then the account names just these rows, ascending
    assert keys_of(account) == sorted(expected)
    # And every row is in one batch, with the tokens and the digest of its own letters
    seen = {}
    for batch in batches:
        assert batch.esm_tokens is not None
        assert batch.dna_tokens is not None
        for row in range(len(batch.record)):
            key = (int(batch.record[row]), int(batch.chunk[row]), int(batch.frame[row]))
            letters = (expected[key].protein.encode(), expected[key].nucleotide.encode())
            esm, dna = (Ragged.from_bytes([text]) for text in letters)
            assert np.array_equal(batch.esm_tokens[row], esm_tokens.encode(esm)[0])
            assert np.array_equal(batch.dna_tokens[row], TOKENIZER.encode(dna)[0])
            digest = blake2b(b"|".join(letters), digest_size=8).digest()
            assert int(batch.digest[row]) == int.from_bytes(digest, "little")
            seen[key] = int(batch.digest[row])
    assert len(seen) == sum(len(batch.record) for batch in batches)
    # But for those that an earlier row of the same letters stands for
    first = {}
    for row, key in enumerate(keys_of(account)):
        frame = expected[key]
        own = first.setdefault((frame.protein, frame.nucleotide), row)
        assert int(account.row_same[row]) == own
        assert (key in seen) == (own == row)
        assert seen[keys_of(account)[own]] == int(account.row_digest[row])
    assert len(seen) < len(expected)


def test_statuses_of_records_and_chunks(tmp_path: Path) -> None:
    stops = "TAACTAGCTAACTAGCTAACTAG"  # a stop in every frame
    records = ["", "AC", "N" * 100, stops, "ACG" * 20]
    [(_, account)] = prepared(tmp_path / "x.fa", records, chunk_length=100)
    assert account.record_status.tolist() == [
        Status.EMPTY,
        Status.TOO_SHORT,
        Status.OK,
        Status.OK,
        Status.OK,
    ]
    assert account.chunk_record.tolist() == [1, 2, 3, 4]
    assert account.chunk_status.tolist() == [
        Status.TOO_SHORT,
        Status.AMBIGUOUS,
        Status.NO_OPEN_FRAME,
        Status.OK,
    ]
    assert account.num_frames.tolist()[:3] == [0, 0, 0]
    assert (account.start.tolist(), account.end.tolist()) == ([1] * 4, [2, 100, 23, 60])


def test_a_chunk_with_a_frame_that_no_model_takes_is_too_long(tmp_path: Path) -> None:
    [(batches, account)] = prepared(
        tmp_path / "x.fa", ["ACG" * 20, "ACG" * 2], chunk_length=60, max_tokens=16
    )
    assert account.record_status.tolist() == [Status.TOO_LONG, Status.OK]
    assert account.chunk_status.tolist() == [Status.TOO_LONG, Status.OK]
    assert {int(r) for batch in batches for r in batch.record} == {1}


@pytest.mark.parametrize("uracil_as_t", [True, False])
def test_uracil(uracil_as_t: bool, tmp_path: Path) -> None:
    [(batches, account)] = prepared(tmp_path / "x.fa", ["AUGAAA"], uracil_as_t=uracil_as_t)
    first = next(i for i, frame in enumerate(batches[0].frame) if frame == 1)
    assert batches[0].esm_tokens is not None
    proteins = {True: b"MK", False: b"K"}
    expected = esm_tokens.encode(Ragged.from_bytes([proteins[uracil_as_t]]))[0]
    assert np.array_equal(batches[0].esm_tokens[first], expected)
    assert account.num_uracil.tolist() == [1]


def test_ambiguous_letters_of_a_cut_record_are_counted_once(tmp_path: Path) -> None:
    # Given a record that is cut, whose chunks overlap in ambiguous letters
    shards = prepared(tmp_path / "x.fa", ["N" * 5_010 + "U" * 7], shard_bases=1_000)
    assert len(shards) > 3
    assert sum(int(account.num_ambiguous.sum()) for _, account in shards) == 5_010
    assert sum(int(account.num_uracil.sum()) for _, account in shards) == 7


def test_protein_and_dna_have_one_row_per_record(tmp_path: Path) -> None:
    [(batches, account)] = prepared(tmp_path / "p.fa", ["MKV", "", "M" * 50], "protein", 0, 40)
    assert keys_of(account) == [(0, 0, 0)]
    assert account.record_status.tolist() == [Status.OK, Status.EMPTY, Status.TOO_LONG]
    assert batches[0].dna_tokens is None
    assert batches[0].esm_tokens is not None
    [(batches, account)] = prepared(tmp_path / "d.fa", ["ACGU", "", "N" * 50], "dna", 0, 40)
    assert keys_of(account) == [(0, 0, 0)]
    assert account.record_status.tolist() == [Status.OK, Status.EMPTY, Status.TOO_LONG]
    assert batches[0].esm_tokens is None
    assert batches[0].dna_tokens is not None
    assert (account.start.tolist(), account.end.tolist()) == ([1, 1], [4, 50])


def test_one_per_batch(tmp_path: Path) -> None:
    [(batches, account)] = prepared(tmp_path / "x.fa", ["ACG" * 99], one_per_batch=True)
    assert len(batches) == int(is_computed(account.row_same).sum()) > 1
    assert {len(batch.record) for batch in batches} == {1}


def test_frames_as_the_original_writes_them(tmp_path: Path) -> None:
    # Given two records of one name, with U
    fasta = tmp_path / "x.fa"
    fasta.write_text(">a one\nAUGAAACCC\n>a two\nTTTTTT\n")
    # When the frames are written
    count = write_frames([fasta], 500, tmp_path / "n.fna", tmp_path / "p.faa")
    # Then ids, order and the treatment of U are the original's
    nucleotide = (tmp_path / "n.fna").read_text().splitlines()
    protein = (tmp_path / "p.faa").read_text().splitlines()
    expected = [
        (f">a_chunk_1{plain.FRAME_NAMES[frame.number - 1]}", frame.protein, frame.nucleotide)
        for letters in ("AUGAAACCC", "TTTTTT")
        for frame in plain.open_frames(letters)
        if frame.protein
    ]
    assert nucleotide == [line for id_, _, letters in expected for line in (id_, letters)]
    assert protein == [line for id_, letters, _ in expected for line in (id_, letters)]
    assert count == len(expected)
    assert expected[0] == (">a_chunk_1F1", "KP", "AUGAAAC")


def test_frames_never_replace_their_input_or_each_other(tmp_path: Path) -> None:
    # Given an input, and a link to it
    fasta = tmp_path / "x.fa"
    fasta.write_text(">a\nACGACG\n")
    (tmp_path / "link.fa").symlink_to(fasta)
    # When an output is the input, or both outputs are one
    for nucleotide, protein in (("x.fa", "p"), ("n", "link.fa"), ("n", "n")):
        with pytest.raises(UsageError, match="is named twice"):
            write_frames([fasta], 500, tmp_path / nucleotide, tmp_path / protein)
    # Then nothing was written
    assert fasta.read_text() == ">a\nACGACG\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.fa", "x.fa"]


def test_rows_do_not_depend_on_the_cut(tmp_path: Path) -> None:
    # Given records, two of them with more letters than a small shard
    rng = np.random.default_rng(5)
    records = ["".join(rng.choice(list("ACGGCN"), n)) for n in (2_500, 90, 1_001, 0, 300)]
    whole = prepared(tmp_path / "x.fa", records)
    cut = prepared(tmp_path / "x.fa", records, shard_bases=400)
    assert (len(whole), len(cut) > 8) == (1, True)
    # Then keys, digests, chunks and counts are the same, whatever the shards
    for name in ("row_record", "row_chunk", "row_frame", "row_digest"):
        expected = getattr(whole[0][1], name).tolist()
        assert [x for _, account in cut for x in getattr(account, name).tolist()] == expected
    for name in ("chunk_record", "chunk", "start", "end", "chunk_status", "num_frames"):
        expected = getattr(whole[0][1], name).tolist()
        assert [x for _, account in cut for x in getattr(account, name).tolist()] == expected
    ambiguous = [0] * len(records)
    for _, account in cut:
        for record, count in zip(account.record, account.num_ambiguous, strict=True):
            ambiguous[int(record)] += int(count)
    assert ambiguous == whole[0][1].num_ambiguous.tolist() == [r.count("N") for r in records]


def test_batches_partition_the_rows_of_real_genomes() -> None:
    # Given the shards of a genome and of one in eight records
    fixtures = Path(__file__).parents[1] / "data" / "fixtures"
    inputs = [fixtures / "virus_influenzaA_PR8.fa", fixtures / "virus_lambda.fa"]
    params = CutParams("j", "i", "virus", 300, True, True, shard_bases=9_000)
    scan = plan_input(inputs, params)
    assert list(scan)
    rows = 0
    for task in cut_shards(inputs, params, scan.result.huge_lengths):
        batches, account = prepare(task, TOKENIZER, Budgets(1_000, 900, 7), 512)
        keys = [
            key
            for batch in batches
            for key in zip(
                batch.record.tolist(), batch.chunk.tolist(), batch.frame.tolist(), strict=True
            )
        ]
        # Then their rows are the account's, each once, and no batch is over a limit
        assert sorted(keys) == keys_of(account)
        assert account.row_same.tolist() == list(range(len(keys)))
        assert [batch.number for batch in batches] == list(range(len(batches)))
        for batch in batches:
            assert batch.esm_tokens is not None
            assert batch.dna_tokens is not None
            assert 1 <= len(batch.record) <= 7
            assert len(batch.esm_tokens.data) <= 1_000
            assert len(batch.dna_tokens.data) <= 900
        rows += len(keys)
    # The number of frames that the original finds in the two files
    assert rows == 41 + 132


@pytest.mark.parametrize("pipeline", ["virus", "dna", "protein"])
def test_shorter_records_are_filtered(pipeline: str, tmp_path: Path) -> None:
    # Given records around a least length; When they are prepared
    records = ["ACG" * 33, "ACG" * 40, "", "AC"]
    [(batches, account)] = prepared(tmp_path / "x.fa", records, pipeline, min_length=100)
    # Then the shorter ones have the status, the empty ones their own, and only the others have rows
    short = Status.TOO_SHORT if pipeline == "virus" else Status.FILTERED
    assert account.record_status.tolist() == [Status.FILTERED, Status.OK, Status.EMPTY, short]
    assert set(account.row_record.tolist()) == {1}
    assert {int(record) for batch in batches for record in batch.record} == {1}
    first = account.chunk_status[account.chunk_record == 0]
    assert set(first.tolist()) == {Status.FILTERED}


@pytest.mark.parametrize("shard_bases", [120, 1 << 20])
def test_ambiguous_chunks_are_not_computed(shard_bases: int, tmp_path: Path) -> None:
    # Given chunks of 60 bases, of which the second has 12 N (20 %), and the third has 13
    chunks = ["ACG" * 20, "ACG" * 16 + "N" * 12, "ACG" * 15 + "AC" + "N" * 13]
    prepared_shards = prepared(
        tmp_path / "x.fa", ["".join(chunks)], shard_bases=shard_bases, max_ambiguous=20
    )
    # When at most 20 % are allowed; Then only the third is left out, however it is cut
    status = [int(one) for _, account in prepared_shards for one in account.chunk_status]
    rows = {int(one) for _, account in prepared_shards for one in account.row_chunk}
    assert status == [Status.OK, Status.OK, Status.AMBIGUOUS]
    assert rows == {0, 1}


def test_ambiguous_records_of_dna(tmp_path: Path) -> None:
    records = ["ACGTACGTNN", "ACGTACGNNN"]
    [(_, account)] = prepared(tmp_path / "x.fa", records, "dna", max_ambiguous=20)
    assert account.chunk_status.tolist() == [Status.OK, Status.AMBIGUOUS]
    assert account.row_record.tolist() == [0]


def packed_keys(batches: list[Batch]) -> list[tuple[int, int, int]]:
    columns = [(b.record.tolist(), b.chunk.tolist(), b.frame.tolist()) for b in batches]
    return sorted(key for each in columns for key in zip(*each, strict=True))


@pytest.mark.parametrize("pipeline", ["virus", "protein", "dna"])
def test_rows_of_one_input_are_packed_once(pipeline: str, tmp_path: Path) -> None:
    # Given three sequences, one of them three times
    records = ["ATGGCTAAAGAT", "ATGGCTAAA", "ATGGCTAAAGAT", "ATGGCTACAGAT", "ATGGCTAAAGAT"]
    [(batches, account)] = prepared(tmp_path / "x.fa", records, pipeline)
    [(every, plain)] = prepared(tmp_path / "x.fa", records, pipeline, every_row=True)
    # Then the account names all rows, as it does when every row is packed
    for name in ("row_record", "row_chunk", "row_frame", "row_digest", "chunk_status"):
        assert np.array_equal(getattr(account, name), getattr(plain, name))
    assert packed_keys(every) == keys_of(plain)
    assert plain.row_same.tolist() == list(range(len(plain.row_same)))
    # And the rows of the repeated record take the results of the first of them, frame by frame
    keys = keys_of(account)
    same = {keys[row]: keys[first] for row, first in enumerate(account.row_same.tolist())}
    assert same == {(r, c, f): (0 if r in (2, 4) else r, c, f) for r, c, f in keys}
    assert packed_keys(batches) == [key for key in keys if key[0] in (0, 1, 3)]


def test_a_shared_digest_does_not_make_rows_alike() -> None:
    # Given rows of which three share a digest, and two of these their letters
    proteins, bases = [b"MK", b"MK", b"MV", b"MK"], [b"ATGAAA", b"ATGAAA", b"ATGAAA", b"ATGAAG"]
    rows = Rows(
        np.arange(4, dtype=np.uint64),
        np.zeros(4, np.uint32),
        np.zeros(4, np.uint8),
        np.array([7, 7, 7, 8], np.uint64),
        esm_tokens.encode(Ragged.from_bytes(proteins)),
        TOKENIZER.encode(Ragged.from_bytes(bases)),
    )
    # Then only those two are alike: what decides is what is computed
    assert first_alike(rows).tolist() == [0, 0, 2, 3]
    assert each_alone(rows).tolist() == [0, 1, 2, 3]
    assert first_alike(rows).dtype == each_alone(rows).dtype == np.uint32

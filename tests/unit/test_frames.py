"""Chunks and frames: the worked examples of the original, its counts on real genomes, and the
vectorised form against the plain one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ops import frames_plain as plain
from ops.fasta import read_inputs
from ops.frames import chunk_bounds, chunk_table, num_chunks, open_frames

DATA = Path(__file__).parents[1] / "data"
LETTERS = "ACGTNRYSWKMBDHVU"

#: chunks and frames at 300, chunks and frames at 500: counted with the original program.
COUNTS = {
    "virus_phiX174": (18, 16, 11, 5),
    "virus_lambda": (162, 132, 98, 45),
    "virus_SAOMS1": (468, 240, 281, 98),
    "virus_phi13_prophage": (143, 77, 86, 29),
    "virus_Pf1": (25, 32, 15, 10),
    "virus_crAssphage_ctcc615": (301, 221, 181, 104),
    "virus_SARS-CoV-2": (100, 91, 60, 50),
    "virus_SARS-CoV-1": (100, 90, 60, 51),
    "virus_HIV-1": (31, 23, 19, 12),
    "virus_influenzaA_PR8": (48, 41, 31, 19),
    "virus_ebola_Zaire": (64, 47, 38, 23),
    "virus_poliovirus": (25, 21, 15, 12),
    "virus_HCV": (33, 44, 20, 20),
    "virus_tomato_mosaic": (22, 20, 13, 10),
    "virus_PGV_virophage_part": (29, 23, 18, 10),
    "cell_archaeon_M.mahii_200kb": (667, 517, 400, 194),
    "cell_bacterium_E.coli_K12_250kb": (834, 749, 500, 295),
    "cell_yeast_chrXII_300kb": (1000, 665, 600, 319),
    "cell_arabidopsis_chloroplast": (515, 197, 309, 92),
    "cell_arabidopsis_BAC_T25K16": (289, 48, 173, 12),
}


def vectorised(
    sequences: list[str], chunk_length: int
) -> list[tuple[int, int, int, int, str, str]]:
    """(record, start, end, frame, protein, nucleotide) of every kept frame, all records at once."""
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    owner, _, bounds = chunk_table(
        lengths, chunk_length, np.zeros_like(lengths), num_chunks(lengths, chunk_length)
    )
    starts = np.cumsum(lengths) - lengths
    flat = np.frombuffer("".join(sequences).encode(), np.uint8)
    frames = open_frames(flat, bounds + starts[owner][:, None])
    return [
        (
            int(owner[chunk]),
            *bounds[chunk].tolist(),
            int(frame),
            protein.tobytes().decode(),
            nucleotide.tobytes().decode(),
        )
        for chunk, frame, protein, nucleotide in zip(
            frames.chunk, frames.frame, frames.protein, frames.nucleotide, strict=True
        )
    ]


def one_by_one(
    sequences: list[str], chunk_length: int
) -> list[tuple[int, int, int, int, str, str]]:
    """The same from the plain version."""
    return [
        (number, start, end, frame.number, frame.protein, frame.nucleotide)
        for number, sequence in enumerate(sequences)
        for start, end in plain.chunk_bounds(len(sequence), chunk_length)
        for frame in plain.open_frames(sequence[start:end])
        if frame.protein
    ]


@pytest.mark.parametrize("chunk_length", [300, 500, 77])
def test_bounds_for_all_lengths_up_to_20_chunks(chunk_length: int) -> None:
    for length in range(20 * chunk_length + 1):
        expected = plain.chunk_bounds(length, chunk_length)
        assert list(map(tuple, chunk_bounds(length, chunk_length).tolist())) == expected


@pytest.mark.parametrize(
    ("length", "chunk_length", "last"),
    [
        (501, 500, (250, 501)),
        (301, 300, (150, 301)),
        (600, 500, (299, 600)),
        (1001, 500, (666, 1001)),
        (29903, 500, (29403, 29903)),
        (500, 500, (0, 500)),
        (7, 500, (0, 7)),
    ],
)
def test_bounds_of_the_worked_examples(
    length: int, chunk_length: int, last: tuple[int, int]
) -> None:
    assert tuple(chunk_bounds(length, chunk_length)[-1].tolist()) == last


def test_part_of_a_record_has_the_same_bounds_as_in_the_whole() -> None:
    whole = chunk_bounds(123_456, 500)
    assert np.array_equal(chunk_bounds(123_456, 500, 17, 40), whole[17:40])


@pytest.mark.parametrize(
    ("length", "slices"),
    [(500, (499, 499, 498)), (300, (300, 298, 298)), (150, (150, 148, 148)), (5, (4, 4, 3))],
)
def test_nucleotide_slice_ends_one_base_late(length: int, slices: tuple[int, ...]) -> None:
    # Given a chunk that is open everywhere
    found = vectorised(["G" * length], length)
    # Then each frame's slice is one base longer than its codons, unless the chunk ends before
    assert tuple(len(row[5]) for row in found) == slices + slices


def test_unknown_codons_are_deleted_and_the_slice_shrinks() -> None:
    found = vectorised(["ATGNNNAAACCC"], 500)
    assert (0, 0, 12, 1, "MKP", "ATGNNNAAAC") in found


def test_reverse_complement_keeps_unknown_letters() -> None:
    assert plain.reverse_complement("ACGTNRYU") == "UYRNACGT"


def test_terminal_stop_closes_a_frame() -> None:
    assert [row[3] for row in vectorised(["ATGAAATAA"], 500)] == [
        frame.number for frame in plain.open_frames("ATGAAATAA") if frame.protein
    ]
    assert 1 not in [row[3] for row in vectorised(["ATGAAATAA"], 500)]


def test_all_ambiguous_chunk_has_open_frames_but_no_rows() -> None:
    sequence = np.frombuffer(b"N" * 60, np.uint8)
    frames = open_frames(sequence, chunk_bounds(60, 60))
    assert len(frames.chunk) == 0
    assert frames.num_open.tolist() == [6]


@pytest.mark.parametrize("name", COUNTS)
def test_counts_on_real_genomes(name: str) -> None:
    path = DATA / "fixtures" / f"{name}.fa"
    records = [p.letters.decode() for p in read_inputs([path], "nucleotide")]
    counts = []
    for chunk_length in (300, 500):
        counts.append(sum(num_chunks(len(record), chunk_length) for record in records))
        counts.append(len(vectorised(records, chunk_length)))
    assert tuple(counts) == COUNTS[name]


def test_golden_frames_exactly() -> None:
    # Given the inputs of the original's published results
    with np.load(Path(__file__).parents[2] / "ops" / "golden" / "vanilla_500.npz") as golden:
        expected = list(
            zip(
                golden["ids"].tolist(),
                golden["protein"].tolist(),
                golden["nucleotide"].tolist(),
                strict=True,
            )
        )
    # When their frames are taken
    found = []
    for name in ("test_with_orfs", "test_fixed_500bp"):
        pieces = list(read_inputs([DATA / "golden" / f"{name}.fa"], "nucleotide"))
        for row in vectorised([piece.letters.decode() for piece in pieces], 500):
            id_ = f"{pieces[row[0]].name}_chunk_1{plain.FRAME_NAMES[row[3] - 1]}"
            found.append((id_, row[4], row[5]))
    # Then ids, proteins and nucleotides are the original's
    assert sorted(found) == sorted(expected)


@settings(max_examples=300)
@given(
    sequences=st.lists(st.text("ACGT", max_size=400) | st.text(LETTERS, max_size=400), max_size=5),
    chunk_length=st.integers(1, 90),
)
def test_vectorised_is_plain_on_any_letters(sequences: list[str], chunk_length: int) -> None:
    assert vectorised(sequences, chunk_length) == one_by_one(sequences, chunk_length)


@pytest.mark.parametrize("chunk_length", [300, 500, 333])
def test_vectorised_is_plain_at_all_lengths_up_to_20_chunks(chunk_length: int) -> None:
    # Given records of lengths all over 1 to 20 chunks; A, C and G give many open frames
    rng = np.random.default_rng(chunk_length)
    for alphabet, step in (("ACG", 23), ("ACGTN", 41), ("GCU", 37)):
        lengths = range(1, 20 * chunk_length, step)
        sequences = ["".join(rng.choice(list(alphabet), length)) for length in lengths]
        assert vectorised(sequences, chunk_length) == one_by_one(sequences, chunk_length)


def test_open_frames_is_plain_at_every_chunk_length_up_to_500() -> None:
    # Given a chunk of every length from nothing on, with few stops and some unknown letters
    rng = np.random.default_rng(0)
    letters = "".join(rng.choice(list("ACGTN"), 700, p=[0.15, 0.4, 0.4, 0.04, 0.01]))
    lengths = range(501)
    bounds = np.array([(length % 7, length % 7 + length) for length in lengths])
    # When all of them are taken from one array
    frames = open_frames(np.frombuffer(letters.encode(), np.uint8), bounds)
    found = [(int(c), int(f)) for c, f in zip(frames.chunk, frames.frame, strict=True)]
    rows = list(zip(found, frames.protein.to_bytes(), frames.nucleotide.to_bytes(), strict=True))
    # Then each chunk gives what it gives alone
    alone = [plain.open_frames(letters[start:end]) for start, end in bounds.tolist()]
    assert rows == [
        ((chunk, frame.number), frame.protein.encode(), frame.nucleotide.encode())
        for chunk, own in enumerate(alone)
        for frame in own
        if frame.protein
    ]
    assert frames.num_open.tolist() == [len(own) for own in alone]
    assert len({chunk for chunk, _ in found}) > 100


@settings(max_examples=100)
@given(
    chunk_length=st.sampled_from([300, 500, 331]),
    part=st.floats(0, 20, exclude_min=True),
    alphabet=st.sampled_from(["ACGT", "ACGacg", "ACGTacgtN", "ACGTUacgtu", LETTERS]),
    seed=st.integers(0, 2**32 - 1),
)
def test_vectorised_is_plain_on_records_of_1_to_20_chunks(
    chunk_length: int,
    part: float,
    alphabet: str,
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    # Given a record in a file, lower case and all
    length = max(1, round(part * chunk_length))
    letters = "".join(np.random.default_rng(seed).choice(list(alphabet), length))
    path = tmp_path_factory.getbasetemp() / "record.fa"
    path.write_text(f">a\n{letters}\n")
    # When it is read and its frames are taken; Then they are those of its upper-case letters
    found = [piece.letters.decode() for piece in read_inputs([path], "nucleotide")]
    assert vectorised(found, chunk_length) == one_by_one([letters.upper()], chunk_length)


@pytest.mark.parametrize(("chunk_length", "percent"), [(500, 67.8), (300, 55.3)])
def test_chunks_cover_the_record_and_the_last_is_short_as_often_as_the_originals(
    chunk_length: int, percent: float
) -> None:
    short = 0
    for length in range(1, 30 * chunk_length + 1):
        starts, ends = chunk_bounds(length, chunk_length).T
        # There is no gap, the ends are the record's, and all chunks but the last are whole
        assert starts[0] == 0
        assert ends[-1] == length
        assert (starts[1:] <= ends[:-1]).all()
        assert (starts[1:] > starts[:-1]).all()
        assert (ends[:-1] - starts[:-1] == chunk_length).all()
        short += length > chunk_length and ends[-1] - starts[-1] < chunk_length
    # The share that was counted with the original program, to its last digit. It is of the records
    # of more than one chunk; of all records it would be 65.6 and 53.5 %.
    assert round(100 * short / (29 * chunk_length), 1) == percent

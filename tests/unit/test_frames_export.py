"""`vnp frames`: the files of the original's first step, to the byte."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from ops import frames_plain as plain
from ops.errors import DataError, NoInputError
from ops.frames_export import chunk_id, write_frames

ROOT = Path(__file__).parents[2]


def exported(inputs: list[Path], chunk_length: int, folder: Path) -> tuple[str, str]:
    """Both files, after a look at the number that was returned."""
    nucleotide, protein = folder / "out.fna", folder / "out.faa"
    count = write_frames(inputs, chunk_length, nucleotide, protein)
    texts = nucleotide.read_text(), protein.read_text()
    assert [text.count(">") for text in texts] == [count, count]
    return texts


def expected(records: list[tuple[str, str]], chunk_length: int) -> tuple[str, str]:
    """The same from the plain version."""
    nucleotide, protein = "", ""
    for name, letters in records:
        for chunk, (start, end) in enumerate(plain.chunk_bounds(len(letters), chunk_length)):
            for frame in plain.open_frames(letters[start:end]):
                if frame.protein:
                    head = f">{chunk_id(name, chunk)}{plain.FRAME_NAMES[frame.number - 1]}\n"
                    nucleotide += f"{head}{frame.nucleotide}\n"
                    protein += f"{head}{frame.protein}\n"
    return nucleotide, protein


def test_golden_files_are_the_originals(tmp_path: Path) -> None:
    # Given the inputs of the original's published results, read as one
    names = ("test_with_orfs.fa", "test_fixed_500bp.fa")
    inputs = [ROOT / "tests" / "data" / "golden" / name for name in names]
    with np.load(ROOT / "ops" / "golden" / "vanilla_500.npz") as golden:
        columns = [golden[name].tolist() for name in ("ids", "nucleotide", "protein")]
    # When their frames are exported
    nucleotide, protein = exported(inputs, 500, tmp_path)
    # Then ids, letters and order are the original's
    rows = list(zip(*columns, strict=True))
    assert nucleotide == "".join(f">{id_}\n{letters}\n" for id_, letters, _ in rows)
    assert protein == "".join(f">{id_}\n{letters}\n" for id_, _, letters in rows)


def test_records_over_several_shards_are_one_file(tmp_path: Path) -> None:
    # Given a record of more than a shard between two small ones of one name
    rng = np.random.default_rng(0)
    long = "".join(rng.choice(list("ACGT"), 1_300_000))
    records = [("a", "ACG" * 50), ("long", long), ("a", "AUGNNNAAACCC")]
    path = tmp_path / "x.fa.gz"
    text = "".join(f">{name} text\n{letters}\n" for name, letters in records)
    path.write_bytes(gzip.compress(text.encode(), 1))
    # When the frames are exported; Then they are those of the plain version
    assert exported([path], 500, tmp_path) == expected(records, 500)


def test_letters_are_upper_cased_and_u_is_not_t(tmp_path: Path) -> None:
    path = tmp_path / "x.fa"
    path.write_text(">a\naugaaaCCCn\n")
    found = exported([path], 500, tmp_path)
    assert found == expected([("a", "AUGAAACCCN")], 500)
    assert found[1].startswith(">a_chunk_1F1\nKP\n")


@pytest.mark.parametrize(
    "text", ["", ">a\n>b\n", ">a\nAC\n", ">a\nNNNNNN\n", ">a\nTAACTAGCTAACTAG\n"]
)
def test_inputs_without_a_frame_give_two_empty_files(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.fa").write_text(text)
    assert exported([tmp_path / "x.fa"], 500, tmp_path) == ("", "")


def test_a_refused_input_leaves_what_was_there(tmp_path: Path) -> None:
    # Given results of an earlier run, and inputs of which the second cannot be used
    (tmp_path / "n").write_text("old")
    good, bad = tmp_path / "good.fa", tmp_path / "bad.fa"
    good.write_text(">a\nACGACG\n")
    bad.write_text(">b\nACG\nAC*\n")
    for second, error in ((bad, DataError), (tmp_path / "none.fa", NoInputError)):
        # When they are exported
        with pytest.raises(error, match=second.name):
            write_frames([good, second], 500, tmp_path / "n", tmp_path / "p")
    # Then the old file stays, and no other was begun
    assert (tmp_path / "n").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.fa", "good.fa", "n"]

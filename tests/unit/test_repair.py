"""What is damaged is named, and repaired by computing just that again, to the same bytes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from ops.errors import CorruptionError, OutputError
from ops.files import RUN
from ops.manifest import MANIFEST, read_manifest
from ops.output import Output
from ops.repair import repair_output
from ops.verify import verify_output
from tests.unit.output_fixtures import JOB, open_job, run_job

#: Of the manifest; each is repaired and its job run again, some 20 ms.
FLIPS = 150


@pytest.fixture
def out(tmp_path: Path) -> Path:
    run_job(tmp_path / "out", JOB, width=3, embeddings=True, compat=True)
    return tmp_path / "out"


def contents(out: Path) -> dict[str, bytes]:
    """Every file whose bytes are promised."""
    paths = [*out.glob("shards/*"), *out.glob("*.tsv"), *out.glob("compat/*"), *out.glob("*.gz")]
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


def run_again(out: Path) -> Output:
    return run_job(out, JOB, width=3, embeddings=True, compat=True)


def flip(path: Path, at: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def test_nothing_to_repair(out: Path) -> None:
    before = contents(out)
    assert not repair_output(out).needed
    assert contents(out) == before


def test_flipped_bit_anywhere_in_the_manifest(out: Path) -> None:
    # Given a finished job
    undisturbed = contents(out)
    manifest = (out / MANIFEST).read_bytes()
    run = (out / RUN).read_bytes()
    random_ = random.Random(1)
    lines = [at for at, byte in enumerate(manifest) if byte == ord("\n")]
    places = {*lines, *random_.sample(range(len(manifest)), FLIPS)}
    for at in sorted(places):
        # When one bit of its manifest changes
        (out / MANIFEST).write_bytes(manifest)
        (out / RUN).write_bytes(run)
        flip(out / MANIFEST, at, random_.randrange(8))
        # Then it is found and the file named
        assert any(MANIFEST in problem for problem in verify_output(out).problems), at
        # And after the repair the job goes on to the same bytes
        repaired = repair_output(out)
        assert repaired.lines
        run_again(out)
        assert contents(out) == undisturbed, at
        assert verify_output(out).ok


@pytest.mark.parametrize("shard", range(len(JOB)))
def test_flipped_bit_in_a_shard(out: Path, shard: int) -> None:
    undisturbed = contents(out)
    path = out / f"shards/shard-{shard:06d}.h5"
    size = path.stat().st_size
    for at in random.Random(shard).sample(range(size), 20):
        # Given one flipped bit
        flip(path, at, at % 8)
        # Then it is found by whoever looks, and named
        assert any(path.name in problem for problem in verify_output(out).problems)
        with pytest.raises(CorruptionError, match=rf"{path.name}.*vnp verify --repair"):
            run_again(out)
        # And repaired by computing this shard alone
        kept = {p: p.stat().st_mtime_ns for p in out.glob("shards/*") if p != path}
        assert repair_output(out).shards == (shard,)
        assert set(read_manifest(out / MANIFEST).shards) == set(range(len(JOB))) - {shard}
        run_again(out)
        assert contents(out) == undisturbed
        assert {p: p.stat().st_mtime_ns for p in kept} == kept


def test_damaged_table_is_written_again(out: Path) -> None:
    undisturbed = contents(out)
    flip(out / "sequences.tsv", 100, 0)
    repaired = repair_output(out)
    assert repaired.shards == ()
    assert "sequences.tsv" in repaired.problems[0]
    run_again(out)
    assert contents(out) == undisturbed


def test_header_and_run_both_damaged(out: Path) -> None:
    flip(out / MANIFEST, 5, 0)
    (out / RUN).unlink()
    with pytest.raises(CorruptionError, match=r"has lost its header.*--force"):
        repair_output(out)


def test_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    output = open_job(tmp_path)
    with pytest.raises(OutputError, match="in use by a run"):
        repair_output(tmp_path)
    output.close()

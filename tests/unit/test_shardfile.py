"""Shard files: the same bytes from every process, whatever it did before; damage is noticed."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from ops.errors import CorruptionError
from ops.gather import RowColumns
from ops.nouns import Account, Ragged, Status
from ops.shardfile import build_shard, read_shard
from tests.unit.output_fixtures import IDENTITY, JOB, PROTEIN, Record, gathered, make_account

#: Rows enough for several chunks of every dataset.
BIG = [Record(i, f"record_{i}", [[1, 2, 3, 4, 5, 6]] * 12) for i in range(1000)]


def image_of(records: list[Record], width: int = 0, failed: tuple[int, ...] = ()) -> bytes:
    gather = gathered(make_account(0, records), width, failed)
    return build_shard(gather.account, gather.rows(), IDENTITY)


def assert_same(a: Account | RowColumns, b: Account | RowColumns) -> None:
    for name in a.__dataclass_fields__:
        left, right = getattr(a, name), getattr(b, name)
        if isinstance(left, Ragged):
            assert left.to_bytes() == right.to_bytes(), name
        elif isinstance(left, np.ndarray):
            assert (left.dtype, left.shape) == (right.dtype, right.shape), name
            assert left.tobytes() == right.tobytes(), name
        elif name != "job":
            assert left == right, name


@pytest.mark.parametrize("shard", range(len(JOB)))
@pytest.mark.parametrize("width", [0, 5])
def test_round_trip(tmp_path: Path, shard: int, width: int) -> None:
    # Given a shard
    gather = gathered(make_account(shard, JOB[shard]), width, failed=[1])
    account, rows = gather.account, gather.rows()
    # When it is written and read back
    (tmp_path / "s.h5").write_bytes(build_shard(account, rows, IDENTITY))
    data = read_shard(tmp_path / "s.h5")
    # Then it is the same in all its columns
    assert_same(data.account, account)
    assert_same(data.rows, rows)
    assert data.account.job == ""
    assert data.attrs == {
        "schema_version": 1,
        "shard": shard,
        "identity_digest": IDENTITY.digest,
        "identity": IDENTITY.to_dict(),
    }


def test_embeddings_are_left_out_if_not_wanted(tmp_path: Path) -> None:
    (tmp_path / "s.h5").write_bytes(image_of(JOB[0], width=5))
    rows = read_shard(tmp_path / "s.h5", embeddings=False).rows
    assert rows.esm2 is None
    assert rows.dnabert_s is None
    assert rows.scores is not None


@pytest.mark.parametrize("records", [[], [Record(0, "", [], length=0, status=Status.EMPTY)]])
def test_shard_without_rows(tmp_path: Path, records: list[Record]) -> None:
    (tmp_path / "s.h5").write_bytes(image_of(records, width=5))
    data = read_shard(tmp_path / "s.h5")
    assert len(data.account.record) == len(records)
    assert data.rows.scores is not None
    assert data.rows.scores.shape == (0, 2)
    assert data.rows.esm2 is None


def test_shard_of_condemned_rows_only(tmp_path: Path) -> None:
    account = make_account(0, [Record(0, "poison", [[1], [2]])])
    gather = gathered(account, failed=[0, 1])
    rows = replace(gather.rows(), scores=None)
    (tmp_path / "s.h5").write_bytes(build_shard(account, rows, IDENTITY))
    read = read_shard(tmp_path / "s.h5").rows
    assert read.scores is not None
    assert np.isnan(read.scores).all()
    assert len(read.reasons) == 2


def test_protein_shard_has_no_scores(tmp_path: Path) -> None:
    account = make_account(0, [Record(0, "p", [[0]]), Record(1, "q", [[0]])], PROTEIN)
    rows = replace(gathered(account, width=4).rows(), scores=None, dnabert_s=None)
    (tmp_path / "s.h5").write_bytes(build_shard(account, rows, PROTEIN))
    with h5py.File(tmp_path / "s.h5") as file:
        assert "score_virus" not in file
        assert list(file["embeddings"]) == ["esm2"]
        assert file["embeddings/esm2"].shape == (2, 4)


def test_documented_layout_and_checksums(tmp_path: Path) -> None:
    (tmp_path / "s.h5").write_bytes(image_of(BIG, width=300))
    with h5py.File(tmp_path / "s.h5") as file:
        types = {name: file[name].dtype.name for name in file if name not in GROUPS}
        assert types == TYPES
        datasets: list[h5py.Dataset] = []
        file.visititems(lambda _, item: datasets.append(item) if hasattr(item, "dtype") else None)
        assert all(item.fletcher32 for item in datasets if item.size)
        assert file["embeddings/esm2"].shape == (72_000, 300)
        # about 1 MiB share a checksum
        assert file["embeddings/esm2"].chunks[0] * 300 * 4 <= 1 << 20
        assert file["record"].chunks[0] <= 1 << 16


GROUPS = ("account", "embeddings", "failures")
TYPES = {
    "record": "uint64",
    "chunk": "uint32",
    "frame": "uint8",
    "start": "uint64",
    "end": "uint64",
    "digest": "uint64",
    "dtype": "uint8",
    "status": "uint8",
    "score_others": "float32",
    "score_virus": "float32",
}

#: Builds the shard of JOB[number] and prints its digest, after having done what argv says.
SCRIPT = """
import hashlib, sys, time
import h5py, numpy as np
from tests.unit.output_fixtures import *
from ops.shardfile import build_shard
if sys.argv[1] == "busy":
    time.sleep(1.1)
    junk = [np.full(1 << 20, 255, np.uint8) for _ in range(8)]
    with h5py.File("other", "w", driver="core", backing_store=False) as file:
        file["a/b"] = np.random.default_rng().random(100_000)
    del junk
for shard in ((2, 0, 1) if sys.argv[1] == "busy" else (0, 1, 2)):
    account = make_account(shard, JOB[shard], job=sys.argv[1])
    gather = gathered(account, 700, [1], batch=5 if sys.argv[1] == "busy" else 3)
    image = build_shard(gather.account, gather.rows(), IDENTITY)
    print(shard, hashlib.sha256(image).hexdigest())
"""


def test_same_bytes_from_every_process_whatever_it_did_before() -> None:
    # Given two processes: one fresh; one later, with used memory, another job id and order
    outputs = []
    for history in ("fresh", "busy"):
        command = [sys.executable, "-c", SCRIPT, history]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=Path(__file__).parents[2]
        )
        assert done.returncode == 0, done.stderr
        outputs.append(sorted(done.stdout.splitlines()))
    # When both have built the same shards, then the bytes are the same
    assert len(outputs[0]) == 3
    assert outputs[0] == outputs[1]


def test_names_of_models_and_the_job_id_do_not_enter_keys_but_identity_does() -> None:
    gather = gathered(make_account(0, JOB[0]))
    image = build_shard(gather.account, gather.rows(), IDENTITY)
    assert b"job1" not in image
    assert b"tiny-esm2" in image
    assert IDENTITY.digest.encode() in image


def test_flipped_bits_in_data_are_noticed(tmp_path: Path) -> None:
    # Given a shard with known places of its data
    image = image_of(BIG[:50], width=4)
    path = tmp_path / "s.h5"
    path.write_bytes(image)
    rows = read_shard(path).rows
    assert rows.esm2 is not None
    assert rows.scores is not None
    for data in (rows.esm2, rows.digest, np.ascontiguousarray(rows.scores[:, 1])):
        at = image.index(data.tobytes()[:64])
        for offset in (0, 17, 63):
            # When a bit of it flips
            damaged = bytearray(image)
            damaged[at + offset] ^= 4
            path.write_bytes(damaged)
            # Then the file is refused, by name
            with pytest.raises(CorruptionError, match=r"s\.h5 is damaged or missing"):
                read_shard(path)


@pytest.mark.parametrize("size", [0, 10, 1000, -1])
def test_cut_file_is_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "s.h5").write_bytes(image_of(JOB[0])[:size])
    with pytest.raises(CorruptionError, match=r"s\.h5 is damaged"):
        read_shard(tmp_path / "s.h5")


def test_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptionError, match="missing"):
        read_shard(tmp_path / "none.h5")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["data"] = [1, 2, 3]
    with pytest.raises(CorruptionError, match=r"foreign\.h5"):
        read_shard(tmp_path / "foreign.h5")

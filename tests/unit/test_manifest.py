"""The commit journal: torn anywhere it loses its last line at most; a flipped bit is noticed."""

from __future__ import annotations

import json
import os
import re
import tempfile
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.errors import CorruptionError, FencedError, IdentityError, VnpError
from ops.manifest import (
    EpochLine,
    HeaderLine,
    Line,
    ManifestState,
    ManifestTail,
    ManifestWriter,
    ShardLine,
    decode_line,
    encode_line,
    read_manifest,
)
from tests.unit.output_fixtures import IDENTITY, NUMERICS

HEADER = HeaderLine(
    identity=IDENTITY,
    input_digest="sha256:1234",
    num_shards=3,
    num_records=9,
    embeddings=False,
    shard_bases=1 << 20,
    shard_records=8192,
)


def epoch(number: int) -> EpochLine:
    return EpochLine(epoch=number, node="n", host="h", pid=1, time="2026-01-01T00:00:00.000Z")


def shard(number: int, epoch: int = 1, rows: int = 5) -> ShardLine:
    return ShardLine(
        shard=number,
        file=f"shards/shard-{number:06d}.h5",
        rows=rows,
        records=2,
        chunks=4,
        bytes=1000,
        sha256="a" * 64,
        numerics=(NUMERICS,),
        epoch=epoch,
    )


LINES: list[Line] = [HEADER, epoch(1), shard(0), shard(2), epoch(2), shard(1, epoch=2)]


def write(path: Path, lines: list[Line]) -> bytes:
    data = b"".join(map(encode_line, lines))
    path.write_bytes(data)
    return data


@pytest.mark.parametrize("line", LINES)
def test_line_round_trip(line: Line) -> None:
    raw = encode_line(line)
    assert raw.endswith(b'"}\n')
    assert raw.count(b"\n") == 1
    assert decode_line(raw[:-1]) == line


def test_whole_manifest(tmp_path: Path) -> None:
    data = write(tmp_path / "m", LINES)
    state = read_manifest(tmp_path / "m")
    assert state.header == HEADER
    assert sorted(state.shards) == [0, 1, 2]
    assert (state.epoch, len(state.epochs)) == (2, 2)
    assert (state.good_bytes, state.torn_bytes) == (len(data), 0)
    assert state.numerics == (NUMERICS,)


def test_torn_at_every_byte_loses_the_last_line_at_most(tmp_path: Path) -> None:
    # Given a manifest
    path = tmp_path / "m"
    data = write(path, LINES)
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
    for size in range(len(data) + 1):
        # When it is cut at any byte
        path.write_bytes(data[:size])
        state = read_manifest(path)
        # Then exactly the whole lines count
        whole = sum(end <= size for end in ends)
        expected = {line.shard for line in LINES[:whole] if isinstance(line, ShardLine)}
        assert set(state.shards) == expected
        assert state.good_bytes == (ends[whole - 1] if whole else 0)
        assert state.torn_bytes == size - state.good_bytes
        assert (state.header is not None) == (whole > 0)


def test_flipped_bit_anywhere_is_noticed(tmp_path: Path) -> None:
    # Given a manifest
    path = tmp_path / "m"
    data = write(path, LINES)
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
    shards = {line.shard for line in LINES if isinstance(line, ShardLine)}
    refused: list[str] = []
    for position in range(len(data)):
        # When one bit of a byte is flipped
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        # Then it is an error; or, at the end and before an epoch's line, where a crash may have
        # torn it, the line does not count (nor the next, when the newline between them is gone)
        try:
            found = set(read_manifest(path).shards)
        except CorruptionError as error:
            refused.append(str(error))
        else:
            assert found < shards
            assert position > ends[1]
    assert len(refused) > len(data) // 2
    assert all(re.search(r"/m is damaged at byte \d+; .*--repair", line) for line in refused)


def test_lines_of_an_older_epoch_count_for_nothing(tmp_path: Path) -> None:
    # Given a writer that goes on although another one has taken over
    write(
        tmp_path / "m", [HEADER, epoch(1), shard(0), epoch(2), shard(1, 1), epoch(1), shard(2, 2)]
    )
    # When the manifest is read
    state = read_manifest(tmp_path / "m")
    # Then what it appended is not there
    assert sorted(state.shards) == [0, 2]
    assert state.epoch == 2
    assert [line.shard for line in ManifestTail(tmp_path / "m").poll()] == [0, 2]


def test_first_line_of_a_shard_stands(tmp_path: Path) -> None:
    write(tmp_path / "m", [HEADER, epoch(1), shard(0, rows=5), shard(0, rows=6)])
    assert read_manifest(tmp_path / "m").shards[0].rows == 5
    assert [line.rows for line in ManifestTail(tmp_path / "m").poll()] == [5]


def test_other_format_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "m", [replace(HEADER, format=2)])
    with pytest.raises(IdentityError, match="format 2, not 1"):
        read_manifest(tmp_path / "m")


def test_tail_sees_every_line_once_whenever_it_looks(tmp_path: Path) -> None:
    # Given a manifest that grows by single bytes
    path = tmp_path / "m"
    tail = ManifestTail(path)
    assert tail.poll() == []
    seen: list[int] = []
    with path.open("wb", buffering=0) as stream:
        for byte in b"".join(map(encode_line, LINES)):
            stream.write(bytes([byte]))
            # When it is followed
            seen += [line.shard for line in tail.poll()]
    # Then each shard comes once, in order
    assert seen == [0, 2, 1]
    assert tail.poll() == []


def test_tail_reads_a_replaced_manifest_anew(tmp_path: Path) -> None:
    path = tmp_path / "m"
    write(path, LINES)
    tail = ManifestTail(path)
    assert len(tail.poll()) == 3
    # When the folder is forced to another job
    write(tmp_path / "new", [HEADER, epoch(1), shard(7)])
    (tmp_path / "new").replace(path)
    # Then the tail follows
    assert [line.shard for line in tail.poll()] == [7]


def test_tail_believes_the_open_file_and_not_what_is_told_of_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given what an NFS client tells of a path for seconds after another node has appended
    path = tmp_path / "m"
    data = write(path, LINES[:3])
    tail = ManifestTail(path)
    assert [line.shard for line in tail.poll()] == [0]
    before, ask = path.stat(), os.stat
    path.write_bytes(data + encode_line(LINES[3]))
    monkeypatch.setattr(
        os, "stat", lambda name, **how: before if name == path else ask(name, **how)
    )
    # When it is followed; Then the new line is seen at once
    assert len(tail.poll()) == 1


def test_tail_after_recovery_has_cut_a_torn_line(tmp_path: Path) -> None:
    # Given a follower that looked while the last line was torn
    path = tmp_path / "m"
    data = write(path, LINES[:3])
    path.write_bytes(data + b'{"kind":"shard","sha')
    tail = ManifestTail(path)
    assert [line.shard for line in tail.poll()] == [0]
    # When the next writer goes on
    writer = ManifestWriter(path, read_manifest(path))
    writer.start(epoch(2))
    writer.append(shard(1, epoch=2))
    writer.close()
    # Then the follower goes on too
    assert [line.shard for line in tail.poll()] == [1]


def test_writer_refuses_a_file_that_somebody_else_changes(tmp_path: Path) -> None:
    # Given a writer
    path = tmp_path / "m"
    write(path, LINES[:1])
    writer = ManifestWriter(path, read_manifest(path))
    writer.start(epoch(1))
    writer.append(shard(0))
    # When another process appends too
    with path.open("ab") as other:
        other.write(encode_line(epoch(2)))
    # Then it stops instead of mixing lines
    with pytest.raises(FencedError, match="has a newer writer"):
        writer.append(shard(1))
    writer.close()
    writer.close()
    assert sorted(read_manifest(path).shards) == [0]


@pytest.mark.parametrize("torn", [b'{"kind":"sh', encode_line(shard(0))[:-1]])
def test_line_after_a_torn_one(tmp_path: Path, torn: bytes) -> None:
    # Given a writer, a follower, and a line that was not written whole, as on a full disk
    path = tmp_path / "m"
    write(path, LINES[:1])
    writer = ManifestWriter(path, read_manifest(path))
    writer.start(epoch(1))
    tail = ManifestTail(path)
    with path.open("ab") as other:
        other.write(torn)
    tail.poll()
    # When it writes the next
    writer.append(shard(0))
    writer.append(shard(1))
    writer.close()
    # Then every reader finds both, and nothing was ever taken away
    assert sorted(read_manifest(path).shards) == [0, 1]
    tail.poll()
    assert tail.committed == {0, 1}
    assert torn in path.read_bytes()


def test_line_of_a_late_writer_harms_nobody(tmp_path: Path) -> None:
    # Given two writers, the first of which was stopped between its look and its line
    path = tmp_path / "m"
    write(path, LINES[:1])
    ManifestWriter(path, read_manifest(path)).start(epoch(1))
    writer = ManifestWriter(path, read_manifest(path))
    writer.start(epoch(2))
    # When the line comes late, whole or torn
    for late in (encode_line(shard(0)), encode_line(shard(1))[:40]):
        with path.open("ab") as other:
            other.write(late)
        writer.append(shard(2 if late.endswith(b"\n") else 3, epoch=2))
    # Then it counts for nothing, and the second writer goes on
    assert sorted(read_manifest(path).shards) == [2, 3]
    writer.close()


@settings(max_examples=400)
@given(st.data())
def test_any_bytes_are_a_manifest_or_an_error_of_ours(data: st.DataObject) -> None:
    # Given whole lines, whole lines of nonsense with a good CRC, and anything between
    whole = [encode_line(line) for line in LINES]
    words = st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
        max_leaves=6,
    )
    fields = st.dictionaries(
        st.sampled_from(["kind", "format", "shard", "epoch", "identity", "file", "rows"]),
        words | st.sampled_from(["header", "epoch", "shard"]),
    )

    def signed(values: dict[str, object]) -> bytes:
        body = json.dumps(values).encode()[:-1]
        return body + b',"crc":"%08x"}\n' % zlib.crc32(body)

    part = st.sampled_from(whole) | fields.map(signed) | st.binary(max_size=20)
    raw = b"".join(data.draw(st.lists(part, max_size=8)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m"
        path.write_bytes(raw)
        # When it is read, then it is a state, or an error on purpose
        state, refusal = ManifestState(torn_bytes=len(raw)), ""
        try:
            state = read_manifest(path)
        except VnpError as error:
            refusal = str(error)
        assert "\n" not in refusal
        assert state.good_bytes + state.torn_bytes == len(raw)


@pytest.mark.parametrize("file", ["../../etc/passwd", "/etc/passwd", "shards/../x.h5", "shards/x"])
def test_line_that_leads_elsewhere_is_refused(file: str) -> None:
    line = encode_line(replace(shard(0), file=file))
    with pytest.raises(CorruptionError, match="another program or version"):
        decode_line(line[:-1])

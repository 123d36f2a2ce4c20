"""Messages: what goes in comes out, and nothing else comes in."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import codec
from broker.codec import MAX_MESSAGE_BYTES, VERSION, MessageError, Noun, decode, encode
from ops.nouns import Account, Batch, BatchResult, JobFailure, Ragged, ShardTask, Status


def column(dtype: type, rows: int) -> np.ndarray[Any, Any]:
    return (np.arange(rows) + 1).astype(dtype)


def ragged(rows: int, dtype: type = np.uint8) -> Ragged:
    lengths = np.arange(rows) % 4  # some rows are empty
    return Ragged.from_lengths(np.arange(lengths.sum()).astype(dtype), lengths)


def shard_task(rows: int) -> ShardTask:
    return ShardTask(
        job="20260102-abc",
        shard=7,
        identity="0123456789abcdef",
        pipeline="virus",
        chunk_length=300,
        keep_embeddings=True,
        uracil_as_t=False,
        record=column(np.uint64, rows),
        name=ragged(rows),
        length=column(np.uint64, rows),
        num_chunks=column(np.uint32, rows),
        first_chunk=column(np.uint32, rows),
        stop_chunk=column(np.uint32, rows),
        offset=column(np.uint64, rows),
        sequence=ragged(rows),
    )


def batch(rows: int) -> Batch:
    return Batch(
        job="j",
        shard=0,
        number=3,
        identity="i",
        pipeline="virus",
        keep_embeddings=False,
        attempts=2,
        record=column(np.uint64, rows),
        chunk=column(np.uint32, rows),
        frame=column(np.uint8, rows),
        digest=column(np.uint64, rows) + np.uint64(2**63),
        esm_tokens=ragged(rows),
        dna_tokens=ragged(rows, np.uint16),
    )


def result(rows: int, failed: int = 0) -> BatchResult:
    status = np.zeros(rows, np.uint8)
    status[:failed] = Status.FAILED
    return BatchResult(
        job="j",
        shard=1,
        number=0,
        identity="i",
        numerics="n",
        record=column(np.uint64, rows),
        chunk=column(np.uint32, rows),
        frame=column(np.uint8, rows),
        digest=column(np.uint64, rows),
        dtype=column(np.uint8, rows),
        status=status,
        scores=np.full((rows, 2), np.nan, np.float32),
        esm2=column(np.float32, rows * 5).reshape(rows, 5),
        dnabert_s=column(np.float32, rows * 3).reshape(rows, 3),
        reasons=tuple(f"grün {n}" for n in range(failed)),
    )


def account(rows: int) -> Account:
    return Account(
        job="j",
        shard=2**40,
        identity="i",
        record=column(np.uint64, rows),
        name=ragged(rows),
        length=column(np.uint64, rows),
        num_chunks=column(np.uint32, rows),
        first_chunk=column(np.uint32, rows),
        stop_chunk=column(np.uint32, rows),
        record_status=column(np.uint8, rows),
        num_ambiguous=column(np.uint64, rows),
        num_uracil=column(np.uint64, rows),
        chunk_record=column(np.uint64, 2 * rows),
        chunk=column(np.uint32, 2 * rows),
        start=column(np.uint64, 2 * rows),
        end=column(np.uint64, 2 * rows),
        chunk_status=column(np.uint8, 2 * rows),
        num_frames=column(np.uint8, 2 * rows),
        row_record=column(np.uint64, 3 * rows),
        row_chunk=column(np.uint32, 3 * rows),
        row_frame=column(np.uint8, 3 * rows),
        row_digest=column(np.uint64, 3 * rows),
        row_same=column(np.uint32, 3 * rows),
    )


NOUNS: list[Noun] = [
    *(make(rows) for make in (shard_task, batch, result, account) for rows in (0, 1, 5)),
    result(4, failed=3),
    replace(batch(3), esm_tokens=None),
    replace(batch(3), dna_tokens=None),
    replace(result(3), scores=None, esm2=None, dnabert_s=None),
    JobFailure("j", 4, "what went wrong"),
]


def assert_same(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    if isinstance(ours, Ragged):
        assert_same(ours.data, theirs.data)
        assert_same(ours.offsets, theirs.offsets)
    elif isinstance(ours, np.ndarray):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert ours.tobytes() == theirs.tobytes()  # bytes: NaN is not equal to itself
    else:
        assert ours == theirs


def tampered(noun: Noun, field: str, value: object) -> bytes:
    """The noun's message with one value replaced, as nobody of ours would write it."""
    version, kind, values = msgpack.unpackb(encode(noun))
    names = [f.name for f in dataclasses.fields(noun)]
    values[names.index(field)] = value
    return bytes(msgpack.packb([version, kind, values]))


@pytest.mark.parametrize("noun", NOUNS, ids=lambda noun: type(noun).__name__)
def test_what_goes_in_comes_out(noun: Noun) -> None:
    # When a noun is written and read
    again = decode(encode(noun))
    # Then every field is the same, to the byte
    assert type(again) is type(noun)
    for field in dataclasses.fields(noun):
        assert_same(getattr(again, field.name), getattr(noun, field.name))


def test_same_noun_same_bytes() -> None:
    assert encode(account(5)) == encode(account(5))


def test_numpy_scalars_and_strided_columns_are_written_as_plain_values() -> None:
    # Given a noun with a numpy scalar and a column that is a strided view
    strided = np.arange(6, dtype=np.uint64)[::2]
    noun = replace(batch(3), shard=np.int64(9), record=strided)  # type: ignore[arg-type]
    # When it is written and read
    again = decode(encode(noun))
    # Then it is the plain value and the dense column
    assert isinstance(again, Batch)
    assert type(again.shard) is int
    assert again.record.tolist() == [0, 2, 4]


def test_arrays_are_read_only_views() -> None:
    # Given a message that was read
    again = decode(encode(result(4)))
    assert isinstance(again, BatchResult)
    # Then its arrays own no memory of their own and refuse to be written
    assert again.esm2 is not None
    assert not again.esm2.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        again.record[0] = 1


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("job", 5, "job is not str"),
        ("job", b"j", "job is not str"),
        ("shard", "5", "shard is not int"),
        ("shard", True, "shard is not int"),
        ("keep_embeddings", 1, "keep_embeddings is not bool"),
        ("record", None, "record is not an array of u8"),
        ("record", ["<u4", [5], bytes(20)], "record is not an array of u8"),
        ("record", ["|O", [1], bytes(8)], "record is not an array of u8"),
        ("record", ["<u8", [5, 1], bytes(40)], "record is not 1-dimensional"),
        ("record", ["<u8", [-5], bytes(40)], "record has no proper shape"),
        ("record", ["<u8", [5.0], bytes(40)], "record has no proper shape"),
        ("record", ["<u8", [5], "text"], "record has no proper shape"),
        ("record", ["<u8", [5], bytes(39)], "record has 39 bytes"),
        ("record", ["<u8", [2**62], bytes(40)], "record has 40 bytes"),
        ("record", ["<u8", [4], bytes(32)], "columns of unequal length"),
        ("esm_tokens", [], "esm_tokens is not a ragged array"),
        ("dna_tokens", [["<u1", [0], b""], ["<i8", [6], bytes(48)]], "not an array of u2"),
    ],
)
def test_tampered_values_are_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(MessageError, match=message):
        decode(tampered(batch(5), field, value))


def test_declared_size_is_not_believed() -> None:
    # Given a matrix whose declared shape overflows 64 bits to the size it has
    shape = [2**33, 2**31]
    # Then it is refused: the product is taken in whole numbers
    with pytest.raises(MessageError, match="is not its shape"):
        decode(tampered(result(5), "esm2", ["<f4", shape, b""]))


@pytest.mark.parametrize(
    "offsets", [[], [1, 6], [0, 5], [0, 7], [0, 4, 2, 6], [0, -1, 6], [0, 2**62, 6]]
)
def test_offsets_that_do_not_fit_are_refused(offsets: list[int]) -> None:
    # Given a ragged column of six items
    raw = np.array(offsets, "<i8").tobytes()
    value = [["<u1", [6], bytes(6)], ["<i8", [len(offsets)], raw]]
    # Then offsets which do not cut it into rows are refused
    with pytest.raises(MessageError, match="offsets that do not fit"):
        decode(tampered(batch(5), "esm_tokens", value))


@pytest.mark.parametrize("reasons", [[], ["a", "b"], [3], "a", None])
def test_reasons_belong_to_failed_rows(reasons: object) -> None:
    with pytest.raises(MessageError, match="reasons"):
        decode(tampered(result(4, failed=1), "reasons", reasons))


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ([1, 1, []], f"message of version 1, this vnp reads {VERSION}"),
        ([VERSION, 99, []], "unknown kind 99"),
        ([VERSION, [], []], "unknown kind"),
        ([VERSION, True, []], "unknown kind"),
        ([VERSION, 5, []], "wrong number of values"),
        ([VERSION, 5, {"job": "j"}], "wrong number of values"),
        ([VERSION, 5], "not .version, kind, values"),
        ({"kind": 5}, "not .version, kind, values"),
        (7, "not .version, kind, values"),
    ],
)
def test_foreign_messages_are_refused(message: object, words: str) -> None:
    with pytest.raises(MessageError, match=words):
        decode(bytes(msgpack.packb(message)))


@pytest.mark.parametrize(
    "payload", [b"", b"\xc1", b"\xdd\xff\xff\xff\xff", b"\x91" * 100_000, b"\x01\x02", b"\xa1\xff"]
)
def test_bytes_that_are_no_message_are_refused(payload: bytes) -> None:
    with pytest.raises(MessageError, match="damaged"):
        decode(payload)


def test_large_messages_are_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given something larger than any message, which is not even msgpack
    with pytest.raises(MessageError, match=f"the limit is {MAX_MESSAGE_BYTES}"):
        decode(b"\xc1" * (MAX_MESSAGE_BYTES + 1))
    # And a noun that would become larger than the limit
    monkeypatch.setattr(codec, "MAX_MESSAGE_BYTES", 1_000)
    with pytest.raises(MessageError, match="the limit is 1000"):
        encode(shard_task(100))


@pytest.mark.parametrize(
    "wrong",
    [
        replace(batch(3), record=np.zeros(3, np.int64)),  # type: ignore[arg-type]
        replace(batch(3), record=np.zeros((3, 1), np.uint64)),
        replace(batch(3), frame=np.zeros(2, np.uint8)),
        replace(batch(3), esm_tokens=ragged(2)),
        replace(batch(3), dna_tokens=ragged(3)),
        replace(result(3), scores=np.zeros((2, 2), np.float32)),
        replace(result(3), esm2=np.zeros((3, 5), np.float64)),  # type: ignore[arg-type]
        replace(account(3), row_digest=np.zeros(3, np.uint64)),
        replace(account(3), row_same=np.zeros(3, np.uint32)),
    ],
)
def test_inconsistent_nouns_are_not_written(wrong: Noun) -> None:
    with pytest.raises(MessageError):
        encode(wrong)


@settings(max_examples=300)
@given(
    noun=st.sampled_from([n for n in NOUNS if not isinstance(n, JobFailure)]),
    where=st.floats(0, 1),
    bits=st.integers(1, 255),
    keep=st.floats(0, 1),
)
def test_damage_never_raises_anything_else(
    noun: Noun, where: float, bits: int, keep: float
) -> None:
    # Given a message with one byte changed, and one cut off
    payload = bytearray(encode(noun))
    payload[int(where * (len(payload) - 1))] ^= bits
    for damaged in (bytes(payload), bytes(payload[: int(keep * len(payload))])):
        # When it is read
        try:
            again = decode(damaged)
        except MessageError:
            continue
        # Then it is refused, or it is consistent: damage may hit letters and numbers
        encode(again)

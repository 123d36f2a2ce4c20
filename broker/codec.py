"""The messages' codec: the nouns of `ops.nouns` to bytes and back, as plain data of bounded size.

A message is one msgpack array [version, kind, values], values in the order of the noun's fields.
An array is [dtype code, shape, raw little-endian bytes]; a Ragged is [data, offsets]; None is nil.
Everything is checked against the noun's own annotations: nothing in a message names a type.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgpack  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from ops.errors import InternalError
from ops.nouns import Account, Batch, BatchResult, JobFailure, Ragged, ShardTask, Status

VERSION = 4
#: Larger messages are neither made nor read. The largest real one, 1,024 rows with the embeddings
#: of ESM-2 15B and DNABERT-S, has 24 MB.
MAX_MESSAGE_BYTES = 64 << 20

Noun = ShardTask | Batch | BatchResult | Account | JobFailure


class MessageError(InternalError):
    """A message that this version of vnp cannot read or make."""


#: Annotation of an array field -> numpy dtype string, which is also the code in the message.
_ARRAYS = {"U8": "<u1", "U32": "<u4", "U64": "<u8", "F32": "<f4"}
#: Ragged data is uint8 everywhere else.
_RAGGED = {"dna_tokens": "<u2"}
_SCALARS: dict[str, type] = {"str": str, "int": int, "bool": bool}

Column = tuple[Callable[[Any, str], Any], Callable[[Any, str], Any]]


@dataclass(frozen=True)
class Schema:
    """How one noun is written: its kind on the wire and the fields that share a number of rows."""

    kind: int
    noun: type
    groups: tuple[tuple[str, ...], ...] = ()

    def check(self, message: Any) -> None:
        for group in self.groups:
            columns = {name: getattr(message, name) for name in group}
            lengths = {n: len(column) for n, column in columns.items() if column is not None}
            if len(set(lengths.values())) > 1:
                raise MessageError(f"{self.noun.__name__} has columns of unequal length: {lengths}")


_KEY = ("record", "chunk", "frame", "digest")
_RECORDS = ("record", "name", "length", "num_chunks", "first_chunk", "stop_chunk")
_SCHEMAS = (
    Schema(1, ShardTask, ((*_RECORDS, "offset", "sequence"),)),
    Schema(2, Batch, ((*_KEY, "esm_tokens", "dna_tokens"),)),
    Schema(3, BatchResult, ((*_KEY, "dtype", "status", "scores", "esm2", "dnabert_s"),)),
    Schema(
        4,
        Account,
        (
            (*_RECORDS, "record_status", "num_ambiguous", "num_uracil"),
            ("chunk_record", "chunk", "start", "end", "chunk_status", "num_frames"),
            ("row_record", "row_chunk", "row_frame", "row_digest", "row_same"),
        ),
    ),
    Schema(5, JobFailure),
)
_BY_NOUN = {schema.noun: schema for schema in _SCHEMAS}
_BY_KIND = {schema.kind: schema for schema in _SCHEMAS}


def encode(noun: Noun) -> bytes:
    """One message. Raises MessageError for a noun that is inconsistent or larger than the limit."""
    schema = _BY_NOUN[type(noun)]
    schema.check(noun)
    values = [
        _column(field)[0](getattr(noun, field.name), field.name)
        for field in dataclasses.fields(noun)
    ]
    payload: bytes = msgpack.packb([VERSION, schema.kind, values])
    _check_size(payload)
    return payload


def decode(payload: bytes) -> Noun:
    """The noun of a message; its arrays are read-only views.

    Raises MessageError, before anything is decoded, for a message that is too large; and for one
    that is damaged, of another version, or not consistent in itself.
    """
    _check_size(payload)
    schema, values = _open(payload)
    fields = dataclasses.fields(schema.noun)
    if not isinstance(values, list) or len(values) != len(fields):
        raise MessageError(f"{schema.noun.__name__} message has the wrong number of values")
    noun = schema.noun(
        *(_column(f)[1](value, f.name) for f, value in zip(fields, values, strict=True))
    )
    schema.check(noun)
    _check_result(noun)
    return noun  # type: ignore[no-any-return]


def _check_size(payload: bytes) -> None:
    if len(payload) > MAX_MESSAGE_BYTES:
        raise MessageError(f"message of {len(payload)} bytes; the limit is {MAX_MESSAGE_BYTES}")


def _open(payload: bytes) -> tuple[Schema, Any]:
    try:
        message = msgpack.unpackb(payload)
    except (ValueError, msgpack.UnpackException) as error:
        raise MessageError(f"message is damaged: {error or type(error).__name__}") from error
    if not isinstance(message, list) or len(message) != 3:
        raise MessageError("message is damaged: not [version, kind, values]")
    version, kind, values = message
    if version != VERSION:
        raise MessageError(
            f"message of version {version!r}, this vnp reads {VERSION}: run one vnp per namespace"
        )
    if type(kind) is not int or kind not in _BY_KIND:
        raise MessageError(f"message of unknown kind {kind!r}")
    return _BY_KIND[kind], values


def _check_result(noun: Any) -> None:
    if isinstance(noun, BatchResult):
        failed = int(np.count_nonzero(noun.status == Status.FAILED))
        if failed != len(noun.reasons):
            raise MessageError(f"BatchResult has {failed} failed rows, {len(noun.reasons)} reasons")


# -- one column ------------------------------------------------------------------------------------


def _column(field: dataclasses.Field[Any]) -> Column:
    """Writer and reader of a field, from its annotation."""
    annotation = str(field.type)
    kind = annotation.removesuffix(" | None")
    if kind in _ARRAYS:
        ndim = 2 if kind == "F32" else 1
        column = _array_column(_ARRAYS[kind], ndim)
    elif kind == "Ragged":
        column = _ragged_column(_RAGGED.get(field.name, "<u1"))
    elif kind == "tuple[str, ...]":
        column = _write_strings, _read_strings
    else:
        column = _scalar_column(_SCALARS[kind])
    return _optional(column) if annotation != kind else column


def _optional(column: Column) -> Column:
    write, read = column
    return (
        lambda value, name: None if value is None else write(value, name),
        lambda value, name: None if value is None else read(value, name),
    )


def _scalar_column(kind: type) -> Column:
    def read(value: Any, name: str) -> Any:
        if type(value) is not kind:
            raise MessageError(f"{name} is not {kind.__name__}")
        return value

    return (lambda value, name: kind(value)), read


def _write_strings(value: tuple[str, ...], name: str) -> list[str]:
    return [str(word) for word in value]


def _read_strings(value: Any, name: str) -> tuple[str, ...]:
    if not isinstance(value, list) or any(type(word) is not str for word in value):
        raise MessageError(f"{name} is not a list of strings")
    return tuple(value)


def _array_column(dtype: str, ndim: int) -> Column:
    def write(value: NDArray[Any], name: str) -> list[Any]:
        if value.dtype != np.dtype(dtype) or value.ndim != ndim:
            raise MessageError(f"{name} is {value.ndim}-d {value.dtype}, not {ndim}-d {dtype[1:]}")
        # packb copies a view once; one of size 0 cannot be cast
        raw = np.ascontiguousarray(value).data.cast("B") if value.size else b""
        return [dtype, list(value.shape), raw]

    def read(value: Any, name: str) -> NDArray[Any]:
        shape, raw = _array_parts(value, dtype, ndim, name)
        return np.frombuffer(raw, dtype).reshape(shape)

    return write, read


def _array_parts(value: Any, dtype: str, ndim: int, name: str) -> tuple[list[int], bytes]:
    if not isinstance(value, list) or len(value) != 3 or value[0] != dtype:
        raise MessageError(f"{name} is not an array of {dtype[1:]}")
    _, shape, raw = value
    if not isinstance(shape, list) or len(shape) != ndim:
        raise MessageError(f"{name} is not {ndim}-dimensional")
    if any(type(n) is not int or n < 0 for n in shape) or type(raw) is not bytes:
        raise MessageError(f"{name} has no proper shape")
    if len(raw) != _num_items(shape) * np.dtype(dtype).itemsize:
        raise MessageError(f"{name} has {len(raw)} bytes, which is not its shape {shape}")
    return shape, raw


def _num_items(shape: list[int]) -> int:
    """Product in Python integers: a declared shape cannot overflow."""
    items = 1
    for n in shape:
        items *= n
    return items


def _ragged_column(dtype: str) -> Column:
    write_data, read_data = _array_column(dtype, 1)
    write_offsets, read_offsets = _array_column("<i8", 1)

    def write(value: Ragged, name: str) -> list[Any]:
        return [write_data(value.data, name), write_offsets(value.offsets, name)]

    def read(value: Any, name: str) -> Ragged:
        if not isinstance(value, list) or len(value) != 2:
            raise MessageError(f"{name} is not a ragged array")
        ragged = Ragged(read_data(value[0], name), read_offsets(value[1], name))
        _check_offsets(ragged, name)
        return ragged

    return write, read


def _check_offsets(ragged: Ragged, name: str) -> None:
    offsets = ragged.offsets
    ends = len(offsets) > 0 and offsets[0] == 0 and offsets[-1] == len(ragged.data)
    if not ends or bool(np.any(offsets[1:] < offsets[:-1])):
        raise MessageError(f"{name} has offsets that do not fit its data")

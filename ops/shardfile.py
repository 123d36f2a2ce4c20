"""Shard files: one HDF5 file per shard, immutable, and the same bytes from whoever writes it.

The file is built in memory and written as bytes (`ops.durable`): a process that dies in the middle
leaves nothing behind, and the digest in the manifest is of what was written.
Nothing in it tells of the run: no times, no job id, no host.

Layout, schema 1 (R rows, C chunks, N records or parts of one):

    record chunk frame start end digest dtype status        (R,) key columns, ascending
    score_others score_virus                                (R,) float32, virus jobs; NaN: failed
    embeddings/esm2, embeddings/dnabert_s                   (R, width) float32, when kept
    failures/text uint8, failures/offsets int64 (F + 1,)    reasons of the F failed rows, in order
    account/...                                             the fields of `nouns.Account`
    account/name uint8, account/name_offsets int64 (N + 1,) names, UTF-8, end to end

Positions are 1-based and inclusive; chunks and records count from 0. Datasets carry a Fletcher-32
checksum, except those without entries. A shard without rows has no embeddings.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ops.errors import CorruptionError
from ops.gather import RowColumns
from ops.identity import Identity
from ops.nouns import Account, Ragged

SCHEMA_VERSION = 1
#: Entries of a column that share a checksum, and bytes of a matrix that do.
COLUMN_ENTRIES = 1 << 16
MATRIX_BYTES = 1 << 20
#: HDF5 takes two files of one name in memory for one; it does one thing at a time anyhow.
_BUILDING = threading.Lock()
_KEYS = ("record", "chunk", "frame", "start", "end", "digest", "dtype", "status")
_MATRICES = ("esm2", "dnabert_s")
#: row_same is left out: how a row came to its values is no part of the result.
_NOT_STORED = ("job", "shard", "identity", "name", "row_same")
_ACCOUNT = tuple(f.name for f in fields(Account) if f.name not in _NOT_STORED)


@dataclass(frozen=True, eq=False)
class ShardData:
    """A shard as read back. It does not know its job (account.job is empty), nor which rows were
    computed (account.row_same: every row for itself)."""

    account: Account
    rows: RowColumns
    attrs: Mapping[str, Any]


def build_shard(account: Account, rows: RowColumns, identity: Identity) -> bytes:
    """The bytes of a shard file: a pure function of its arguments, account.job aside."""
    # A fixed object format, so that the version of HDF5 does not choose the bytes.
    with (
        _BUILDING,
        h5py.File(
            "shard", "w", driver="core", backing_store=False, libver=("v110", "v110")
        ) as file,
    ):
        file.attrs["schema_version"] = np.int64(SCHEMA_VERSION)
        file.attrs["shard"] = np.int64(account.shard)
        file.attrs["identity_digest"] = np.bytes_(identity.digest)
        file.attrs["identity"] = np.bytes_(json.dumps(identity.to_dict(), sort_keys=True))
        _write_rows(file, rows, identity.pipeline == "virus")
        _write_account(file.create_group("account"), account)
        file.flush()
        image: bytes = file.id.get_file_image()
    return image


def _write_rows(file: h5py.File, rows: RowColumns, scored: bool) -> None:
    for name in _KEYS:
        _write(file, name, getattr(rows, name))
    if scored:
        scores = rows.scores
        if scores is None:  # no row of this shard was computed
            scores = np.full((len(rows.record), 2), np.nan, np.float32)
        _write(file, "score_others", scores[:, 0])
        _write(file, "score_virus", scores[:, 1])
    for name in _MATRICES:
        if getattr(rows, name) is not None:
            _write(file, f"embeddings/{name}", getattr(rows, name))
    reasons = Ragged.from_bytes(reason.encode() for reason in rows.reasons)
    _write(file, "failures/text", reasons.data)
    _write(file, "failures/offsets", reasons.offsets)


def _write_account(group: h5py.Group, account: Account) -> None:
    for name in _ACCOUNT:
        _write(group, name, getattr(account, name))
    _write(group, "name", account.name.data)
    _write(group, "name_offsets", account.name.offsets)


def _write(group: h5py.Group, name: str, array: NDArray[Any]) -> None:
    """One dataset; HDF5 keeps checksums only in chunked ones, and cannot chunk an empty one."""
    array = np.ascontiguousarray(array)
    if not array.size:
        group.create_dataset(name, data=array)
        return
    entries = COLUMN_ENTRIES
    if array.ndim == 2:
        entries = max(1, MATRIX_BYTES // (array.shape[1] * array.itemsize))
    parts = math.ceil(len(array) / entries)
    chunks = (math.ceil(len(array) / parts), *array.shape[1:])
    group.create_dataset(name, data=array, chunks=chunks, fletcher32=True)


def read_shard(path: Path, embeddings: bool = True, shown: str = "") -> ShardData:
    """Reads a shard file, its embeddings only if wanted. shown: its name in messages.

    Raises CorruptionError for a file that is missing, damaged, or not a shard of this schema.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            attrs = _read_attributes(file)
            if attrs["schema_version"] != SCHEMA_VERSION:
                raise ValueError(f"schema {attrs['schema_version']}, not {SCHEMA_VERSION}")
            rows = _read_rows(file, embeddings)
            return ShardData(_read_account(file["account"], attrs), rows, attrs)
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CorruptionError(
            f"{shown or path} is damaged or missing ({reason}); "
            "`vnp verify` checks the whole folder"
        ) from error


def _read_attributes(file: h5py.File) -> dict[str, Any]:
    return {
        "schema_version": int(file.attrs["schema_version"]),
        "shard": int(file.attrs["shard"]),
        "identity_digest": file.attrs["identity_digest"].decode(),
        "identity": json.loads(file.attrs["identity"].decode()),
    }


def _read_rows(file: h5py.File, embeddings: bool) -> RowColumns:
    columns: dict[str, Any] = {name: file[name][:] for name in _KEYS}
    scores = None
    if "score_virus" in file:
        scores = np.stack([file["score_others"][:], file["score_virus"][:]], axis=1)
    held = file.get("embeddings", {}) if embeddings else {}
    columns |= {name: held[name][:] if name in held else None for name in _MATRICES}
    texts = Ragged(file["failures/text"][:], file["failures/offsets"][:]).to_bytes()
    reasons = tuple(text.decode() for text in texts)
    return RowColumns(**columns, scores=scores, reasons=reasons)


def _read_account(group: h5py.Group, attrs: Mapping[str, Any]) -> Account:
    columns = {name: group[name][:] for name in _ACCOUNT}
    return Account(
        job="",
        shard=attrs["shard"],
        identity=attrs["identity_digest"],
        name=Ragged(group["name"][:], group["name_offsets"][:]),
        row_same=np.arange(len(columns["row_digest"]), dtype=np.uint32),
        **columns,
    )

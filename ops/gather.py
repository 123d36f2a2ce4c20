"""Gathers a shard's rows, in any order and any number of times, until its account is satisfied.

Rows of one input are computed once. Only the first of them is waited for; in `rows()` the others
have its values, its format and, when it has failed, its reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.errors import InternalError
from ops.nouns import F32, I64, U8, U32, U64, Account, BatchResult, Status, is_computed

NOT_FINITE = "the models gave values that are not finite"
MAX_REASON = 500


@dataclass(frozen=True, eq=False)
class RowColumns:
    """A shard's rows, ascending by (record, chunk, frame). Matrices: NaN in failed rows."""

    record: U64
    chunk: U32
    frame: U8
    start: U64  # of the row's chunk, 1-based
    end: U64  # inclusive
    digest: U64
    dtype: U8
    status: U8
    scores: F32 | None  # (rows, 2): P(others), P(virus)
    esm2: F32 | None  # (rows, width)
    dnabert_s: F32 | None  # (rows, width)
    reasons: tuple[str, ...]  # one per failed row, in row order


def row_keys(account: Account, record: U64, chunk: U32, frame: U8) -> U64:
    """(record, chunk, frame) as one number: 29 bits of place in account.record, then 32, then 3.

    Raises InternalError for a record that the account does not name.
    """
    place = np.searchsorted(account.record, record)
    inside = place < len(account.record)
    if not inside.all() or not np.array_equal(account.record[place], record):
        raise InternalError(f"shard {account.shard}: a row of a record that is not in the shard")
    keys = place.astype(np.uint64)
    for shift, column in ((32, chunk), (3, frame)):
        keys = (keys << np.uint64(shift)) | column.astype(np.uint64)
    return keys


def locate(keys: U64, wanted: U64) -> I64:
    """Positions of `wanted` in ascending `keys`; -1 where there is none."""
    if not len(keys):
        return np.full(len(wanted), -1, np.int64)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, place, -1).astype(np.int64)


class ShardGather:
    """One open shard. `add` what arrives; when `complete`, `account` and `rows()` are the shard."""

    def __init__(self, job: str, shard: int) -> None:
        self.job = job
        self.shard = shard
        self.num_bytes = 0
        self._account: Account | None = None
        self._early: list[BatchResult] = []

    @property
    def account(self) -> Account:
        assert self._account is not None, "the shard's account has not come yet"
        return self._account

    @property
    def complete(self) -> bool:
        return self._account is not None and bool(self._have.all())

    @property
    def numerics(self) -> tuple[str, ...]:
        """Numerics hashes of the workers whose rows are in the shard, sorted."""
        return tuple(sorted(self._numerics))

    def add(self, message: Account | BatchResult) -> None:
        """Takes a message in; what is known already is dropped.

        Raises InternalError for rows that the account does not expect, or of another input.
        """
        assert (message.job, message.shard) == (self.job, self.shard), "message of another shard"
        if isinstance(message, Account):
            self._add_account(message)
        elif self._account is None:
            self.num_bytes += num_bytes(message)
            self._early.append(message)
        else:
            self._add_rows(message)

    def _add_account(self, account: Account) -> None:
        if self._account is not None:
            known = self._account
            if not all(
                np.array_equal(getattr(account, name), getattr(known, name))
                for name in ("row_digest", "row_same")
            ):
                raise InternalError(f"shard {self.shard} was packed twice, with other rows")
            return
        keys = row_keys(account, account.row_record, account.row_chunk, account.row_frame)
        if (np.diff(account.record.astype(np.int64)) <= 0).any() or (keys[1:] <= keys[:-1]).any():
            raise InternalError(f"shard {self.shard}: the account is not in order")
        _check_same(account)
        self._account, self._keys = account, keys
        rows = len(keys)
        self._have = ~is_computed(account.row_same)  # nobody waits for the others
        self._dtype = np.zeros(rows, np.uint8)
        self._status = np.zeros(rows, np.uint8)
        self._matrices: dict[str, F32] = {}
        self._absent: set[str] = set()
        self._reasons: dict[int, str] = {}
        self._numerics: set[str] = set()
        self.num_bytes = num_bytes(account)
        early, self._early = self._early, []
        for result in early:
            self._add_rows(result)

    def _add_rows(self, result: BatchResult) -> None:
        account = self.account
        if result.identity != account.identity:
            raise InternalError(f"shard {self.shard}: rows of another identity")
        rows = locate(self._keys, row_keys(account, result.record, result.chunk, result.frame))
        if (rows < 0).any():
            raise InternalError(f"shard {self.shard}: a row that the account does not name")
        if not np.array_equal(account.row_digest[rows], result.digest):
            raise InternalError(f"shard {self.shard}: a row computed from another input")
        reasons = failure_reasons(result)
        for source, reason in reasons.items():
            if not self._have[rows[source]]:
                self._reasons[int(rows[source])] = reason
        self._place(result, rows, np.isin(np.arange(len(rows)), list(reasons)))

    def _place(self, result: BatchResult, rows: I64, failed: NDArray[np.bool_]) -> None:
        """Copies the rows that are new to where they belong."""
        new = ~self._have[rows]
        if not new.any():
            return
        at, source = rows[new], slice(None) if new.all() else new
        self._numerics.add(result.numerics)
        self._have[at] = True
        self._dtype[at] = result.dtype[source]
        self._status[at] = np.where(failed[source], Status.FAILED, Status.OK)
        for name in ("scores", "esm2", "dnabert_s"):
            matrix = getattr(result, name)
            if matrix is not None:
                self._matrix(name, matrix.shape[1])[at] = matrix[source]
            elif not failed[new].all():
                self._absent.add(name)

    def _matrix(self, name: str, width: int) -> F32:
        """The shard's matrix of that name, made when the first of its rows arrives."""
        if name not in self._matrices:
            # Pages that no row touches cost no memory, so it is filled only at the end.
            self._matrices[name] = np.empty((len(self._keys), width), np.float32)
            self.num_bytes += self._matrices[name].nbytes
        matrix = self._matrices[name]
        if matrix.shape[1] != width:
            raise InternalError(
                f"shard {self.shard}: {name} of width {width} and {matrix.shape[1]}"
            )
        return matrix

    def rows(self) -> RowColumns:
        """All rows in order, with the start and end of their chunks."""
        assert self.complete, "some rows have not come yet"
        account = self.account
        self._fill_alike(account.row_same)
        failed = self._status == Status.FAILED
        for name, matrix in self._matrices.items():
            if name in self._absent:
                raise InternalError(f"shard {self.shard}: only some rows have {name}")
            matrix[failed] = np.nan
        chunk = chunk_of_row(account)
        return RowColumns(
            record=account.row_record,
            chunk=account.row_chunk,
            frame=account.row_frame,
            start=account.start[chunk],
            end=account.end[chunk],
            digest=account.row_digest,
            dtype=self._dtype,
            status=self._status,
            scores=self._matrices.get("scores"),
            esm2=self._matrices.get("esm2"),
            dnabert_s=self._matrices.get("dnabert_s"),
            reasons=tuple(self._reasons[row] for row in account.row_same[failed].tolist()),
        )

    def _fill_alike(self, same: U32) -> None:
        """Gives the rows that were not computed what the first of their input has. Only their own
        part of a matrix is copied: embeddings are large."""
        alike = np.flatnonzero(~is_computed(same))
        columns: list[NDArray[Any]] = [self._dtype, self._status, *self._matrices.values()]
        for column in columns:
            column[alike] = column[same[alike]]


def _check_same(account: Account) -> None:
    """Raises InternalError for a row that would take the result of another input, or of a row that
    is not computed."""
    same, digest = account.row_same, account.row_digest
    is_before = bool((same <= np.arange(len(same))).all())
    if not is_before or (same[same] != same).any() or (digest[same] != digest).any():
        raise InternalError(f"shard {account.shard}: a row takes the result of another input")


def chunk_of_row(account: Account) -> I64:
    """For every row, the position of its chunk in the account. Raises InternalError: no chunk."""
    no_frame = np.zeros(1, np.uint8)
    chunks = row_keys(account, account.chunk_record, account.chunk, no_frame)
    found = locate(chunks, row_keys(account, account.row_record, account.row_chunk, no_frame))
    if (found < 0).any():
        raise InternalError(
            f"shard {account.shard}: a row of a chunk that the account does not name"
        )
    return found


def failure_reasons(result: BatchResult) -> dict[int, str]:
    """Failed rows of a batch and why, one line each; a row that is not finite has failed too."""
    failed = np.flatnonzero(result.status == Status.FAILED).tolist()
    assert len(failed) == len(result.reasons), "one reason per failed row"
    reasons = {
        row: " ".join(reason.split())[:MAX_REASON]
        for row, reason in zip(failed, result.reasons, strict=True)
    }
    for matrix in (result.scores, result.esm2, result.dnabert_s):
        if matrix is not None:
            for row in rows_not_finite(matrix):
                reasons.setdefault(row, NOT_FINITE)
    return reasons


def rows_not_finite(matrix: F32) -> list[int]:
    """Rows that hold a value which is not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        # One pass without temporaries: such a value makes the sum of its row not finite either.
        suspects = np.flatnonzero(~np.isfinite(matrix.sum(axis=1)))
    return [int(row) for row in suspects if not np.isfinite(matrix[row]).all()]


def num_bytes(message: Any) -> int:
    """Bytes of a message's arrays."""
    parts = (getattr(message, name) for name in message.__dataclass_fields__)
    return sum(part.nbytes for part in parts if isinstance(part, np.ndarray))

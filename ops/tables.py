"""sequences.tsv and chunks.tsv, written shard by shard in input order and in bounded memory.

Tab-separated, one header line, LF, UTF-8, `NA` for what there is not. Scores are the shortest
decimal that reads back as the same float64, so a reader computes with the very numbers that made
the calls. Names and notes: quotes (which readers would take for their own), control characters and
line separators become \\x22, \\x09, \\u2028, and so on. A name that readers take for a missing
value has its first letter written so: \\x4eA.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from ops.calls import FRAMES, ChunkCalls, RecordTally, call_chunks
from ops.errors import CorruptionError
from ops.nouns import Account, Status
from ops.shardfile import ShardData

SEQUENCE_COLUMNS = (
    "seq_name",
    "length",
    "prediction",
    "virus_score",
    "max_chunk_score",
    "longest_virus_run",
    "n_chunks",
    "n_chunks_scored",
    "n_virus_chunks",
    "n_frames",
    "status",
    "note",
)
CHUNK_COLUMNS = (
    "seq_name",
    "chunk",
    "start",
    "end",
    "prediction",
    "virus_score",
    "best_frame",
    "n_frames",
    "status",
)
#: What pandas, polars and R take for a missing value where nobody tells them otherwise.
_MISSING = {
    *("NA", "N/A", "n/a", "<NA>", "#NA", "#N/A", "NULL", "null", "None", "NaN", "nan", "-NaN"),
    *("-nan", "1.#IND", "1.#QNAN", "-1.#IND", "-1.#QNAN"),
}
#: Below so many bases the published classifiers are near chance.
SHORT = 300
_UNSAFE = re.compile('["\x00-\x1f\x7f-\x9f\u2028\u2029]')


@dataclass
class Counts:
    """What the tables hold in all; `statuses` and `chunk_statuses` count by the word in the column.

    In protein and dna jobs there are no chunks and no calls, and frames are rows.
    """

    records: int = 0
    letters: int = 0
    viruses: int = 0
    others: int = 0
    without_call: int = 0
    scored_below_300: int = 0  # records called though shorter than SHORT
    chunks: int = 0
    chunks_scored: int = 0
    frames: int = 0
    frames_computed: int = 0  # those of one input in one shard count once
    ambiguous_letters: int = 0
    uracil_letters: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    chunk_statuses: dict[str, int] = field(default_factory=dict)


def escape(text: str) -> str:
    """Text that stays in its cell, and is text, whatever reads the table."""
    if text in _MISSING:
        return _escape_one(text[0]) + text[1:]
    return _UNSAFE.sub(lambda match: _escape_one(match[0]), text)


def _escape_one(letter: str) -> str:
    code = ord(letter)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def number(value: float) -> str:
    """Shortest decimal of a float64 that reads back the same; NA for NaN."""
    return repr(value) if value == value else "NA"


def row(cells: Iterable[str]) -> bytes:
    return ("\t".join(cells) + "\n").encode("utf-8", "backslashreplace")


@dataclass
class OpenRecord:
    """A record whose chunks are coming in, possibly from several shards."""

    ordinal: int
    name: str
    length: int
    num_chunks: int
    status: int
    next_chunk: int = 0
    num_frames: int = 0
    num_ambiguous: int = 0
    num_uracil: int = 0
    num_failed: int = 0
    reason: str = ""
    tally: RecordTally = field(default_factory=RecordTally)


class TableWriter:
    """Takes shards in order, writes their rows; `close` says what they hold.

    chunks is None in protein and dna jobs, whose records have no chunks and no calls.
    Raises CorruptionError when the shards leave a record or chunk out, or hold one twice.
    """

    def __init__(
        self, sequences: BinaryIO, chunks: BinaryIO | None, uracil_as_t: bool = True
    ) -> None:
        self.counts = Counts()
        self._sequences = sequences
        self._chunks = chunks
        self._uracil_as_t = uracil_as_t
        self._open: OpenRecord | None = None
        sequences.write(row(SEQUENCE_COLUMNS))
        if chunks is not None:
            chunks.write(row(CHUNK_COLUMNS))

    def add(self, shard: ShardData) -> list[bytes]:
        """Writes the chunks of a shard, and the records that end in it; returns their lines."""
        account, rows = shard.account, shard.rows
        calls = call_chunks(account, rows)
        names = [
            escape(name.decode("utf-8", "backslashreplace")) for name in account.name.to_bytes()
        ]
        bounds = np.searchsorted(account.chunk_record, account.record).tolist()
        bounds.append(len(account.chunk_record))
        self._count_part(account, calls)
        failures = _failures(shard)
        lines: list[bytes] = []
        for part, name in enumerate(names):
            record = self._continue_record(account, part, name)
            self._tally(record, account, calls, slice(bounds[part], bounds[part + 1]))
            failed = failures.get(record.ordinal, [])
            record.num_failed += len(failed)
            record.reason = record.reason or next(iter(failed), "")
            if record.next_chunk == record.num_chunks:
                lines.append(self._close_record(record))
        self._sequences.write(b"".join(lines))
        if self._chunks is not None:
            self._chunks.write(b"".join(_chunk_lines(account, calls, names)))
        return lines

    def close(self, num_records: int) -> Counts:
        """The counts, once all shards are in. Raises CorruptionError: records are missing."""
        if self._open is not None or self.counts.records != num_records:
            raise CorruptionError(
                f"the shards hold {self.counts.records} of {num_records} records; "
                "run it again with --force"
            )
        return self.counts

    def _count_part(self, account: Account, calls: ChunkCalls) -> None:
        counts = self.counts
        if self._chunks is not None:
            counts.chunks += len(account.chunk)
            counts.chunks_scored += int((calls.score == calls.score).sum())
            for status, number in zip(*np.unique(calls.status, return_counts=True), strict=True):
                _count(counts.chunk_statuses, Status(status).label, int(number))
        counts.frames += len(account.row_record)
        counts.frames_computed += len(np.unique(account.row_digest))
        counts.ambiguous_letters += int(account.num_ambiguous.sum())
        counts.uracil_letters += int(account.num_uracil.sum())

    def _continue_record(self, account: Account, part: int, name: str) -> OpenRecord:
        """The open record, or the next one; checks that nothing lies between or comes twice."""
        ordinal, first = int(account.record[part]), int(account.first_chunk[part])
        if self._open is None:
            self._open = OpenRecord(
                ordinal=ordinal,
                name=name,
                length=int(account.length[part]),
                num_chunks=int(account.num_chunks[part]),
                status=int(account.record_status[part]),
            )
        record = self._open
        if (ordinal, first) != (self.counts.records, record.next_chunk):
            raise CorruptionError(
                f"shard {account.shard} starts at chunk {first} of record {ordinal}, not at chunk "
                f"{record.next_chunk} of record {self.counts.records}; run it again with --force"
            )
        record.next_chunk = int(account.stop_chunk[part])
        record.num_ambiguous += int(account.num_ambiguous[part])
        record.num_uracil += int(account.num_uracil[part])
        return record

    def _tally(self, record: OpenRecord, account: Account, calls: ChunkCalls, of: slice) -> None:
        record.num_frames += int(account.num_frames[of].sum())
        for status, is_virus, score in zip(
            calls.status[of].tolist(),
            calls.is_virus[of].tolist(),
            calls.score[of].tolist(),
            strict=True,
        ):
            record.tally.add(status, is_virus, score)

    def _close_record(self, record: OpenRecord) -> bytes:
        self._open = None
        status = record.tally.status(record.status).label
        counts = self.counts
        counts.records += 1
        counts.letters += record.length
        _count(counts.statuses, status, 1)
        if self._chunks is not None:
            self._count_call(record)
        calls = ["NA"] * 8 if self._chunks is None else _call_cells(record)
        return row([record.name, str(record.length), *calls, status, self._note(record)])

    def _count_call(self, record: OpenRecord) -> None:
        counts, prediction = self.counts, record.tally.prediction
        counts.viruses += prediction == "virus"
        counts.others += prediction == "others"
        counts.without_call += prediction == "NA"
        counts.scored_below_300 += prediction != "NA" and record.length < SHORT

    def _note(self, record: OpenRecord) -> str:
        uracil = "read as T" if self._uracil_as_t else "kept; codons with U are deleted"
        too_long = record.tally.num_chunks.get(Status.TOO_LONG, 0)
        parts = {
            f"{record.num_failed} failed: {escape(record.reason)}": record.num_failed,
            f"{too_long} too long": too_long if self._chunks is not None else 0,
            f"{record.num_uracil} U {uracil}": record.num_uracil,
            f"{record.num_ambiguous} ambiguous letters": record.num_ambiguous,
        }
        return "; ".join(text for text, count in parts.items() if count) or "NA"


def _count(counts: dict[str, int], word: str, number: int) -> None:
    counts[word] = counts.get(word, 0) + number


def _call_cells(record: OpenRecord) -> list[str]:
    tally = record.tally
    return [
        tally.prediction,
        number(tally.virus_score),
        number(tally.max_chunk_score),
        str(tally.longest_virus_run),
        str(record.num_chunks),
        str(tally.num_scored),
        str(tally.num_virus),
        str(record.num_frames),
    ]


def _failures(shard: ShardData) -> dict[int, list[str]]:
    """Reasons of the failed rows of each record."""
    failed = np.flatnonzero(shard.rows.status == Status.FAILED)
    reasons: dict[int, list[str]] = {}
    for record, reason in zip(shard.rows.record[failed].tolist(), shard.rows.reasons, strict=True):
        reasons.setdefault(record, []).append(reason)
    return reasons


def _chunk_lines(account: Account, calls: ChunkCalls, names: list[str]) -> list[bytes]:
    part = np.searchsorted(account.record, account.chunk_record).tolist()
    statuses = {int(status): status.label for status in Status}
    columns = zip(
        part,
        (account.chunk + 1).tolist(),
        account.start.tolist(),
        account.end.tolist(),
        calls.is_virus.tolist(),
        calls.score.tolist(),
        calls.best_frame.tolist(),
        account.num_frames.tolist(),
        calls.status.tolist(),
        strict=True,
    )
    return [
        row(
            [
                names[at],
                f"{chunk}\t{start}\t{end}",
                ("virus" if is_virus else "others") if score == score else "NA",
                number(score),
                FRAMES[best] or "NA",
                str(frames),
                statuses[status],
            ]
        )
        for at, chunk, start, end, is_virus, score, best, frames, status in columns
    ]

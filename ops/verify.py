"""`vnp verify`: re-reads an output folder and names every file that is not what it should be."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ops.errors import CorruptionError, NoInputError, VnpError
from ops.files import CHUNKS, RUN, SEQUENCES, VIRUSES, file_digest, is_sound
from ops.gather import row_keys
from ops.manifest import MANIFEST, HeaderLine, ManifestState, ShardLine
from ops.partial import Nowhere
from ops.place import Place, place_of
from ops.runfile import read_run
from ops.shardfile import ShardData, read_shard
from ops.tables import Counts, TableWriter


@dataclass
class VerifyReport:
    """What was checked, and what is wrong with it: one line per problem, which names the file."""

    place: Place
    shards: int = 0  # committed
    num_shards: int = 0  # of the whole job
    rows: int = 0
    records: int = 0  # in the committed shards
    files: int = 0  # tables and sequences, of a finished job
    finished: bool = False
    problems: list[str] = field(default_factory=list)
    bad_shards: list[int] = field(default_factory=list)  # those of the problems that name a shard

    @property
    def ok(self) -> bool:
        return not self.problems


def verify_output(out: str | os.PathLike[str]) -> VerifyReport:
    """Checks manifest, shards (bytes, digests, keys, counts) and, of a finished job, its files.

    Reads only, one shard at a time. Raises NoInputError when `out` is no output.
    """
    place = place_of(out)
    report = VerifyReport(place)
    try:
        state = place.manifest()
        if state.header is None:
            raise CorruptionError(f"{place}: the manifest is damaged: it has no header")
        run = read_run(place) or {}
    except OSError as error:
        raise NoInputError(f"{place} holds no {MANIFEST}; name the --out of a job") from error
    except VnpError as error:
        report.problems.append(str(error))
        return report
    report.num_shards, report.shards = state.header.num_shards, len(state.shards)
    report.finished = run.get("state") == "finished"
    counts = _check_shards(place, state, state.header, report)
    if report.finished:
        _check_ending(place, state, run, report)
        _check_files(place, run.get("files", {}), report)
        if counts is not None:
            _check_counts(place, counts, run.get("counts"), report)
    return report


def _check_shards(
    place: Place, state: ManifestState, header: HeaderLine, report: VerifyReport
) -> Counts | None:
    """Checks every committed shard; returns what the tables must hold when all are there."""
    scored = header.identity.pipeline == "virus"
    tables = TableWriter(Nowhere(), Nowhere() if scored else None)
    whole = len(state.shards) == header.num_shards
    try:
        for number in sorted(state.shards):
            shard = _check_shard(place, state.shards[number], header, report)
            whole = whole and shard is not None
            if shard is None:
                report.bad_shards.append(number)
            if shard is not None and whole:
                tables.add(shard)
        counts = tables.close(header.num_records) if whole else None
    except CorruptionError as error:
        report.problems.append(f"{place.path('shards')}: {error}")
        return None
    return counts


def _check_shard(
    place: Place, line: ShardLine, header: HeaderLine, report: VerifyReport
) -> ShardData | None:
    """A shard that is sound; None when something is wrong with it, which is then reported."""
    shown = place.path(line.file)
    try:
        shard = _read_sound(place, line)
        wrong = [what for what, holds in _facts(shard, line, header).items() if not holds()]
    except VnpError as error:
        report.problems.append(str(error))
        return None
    report.problems += [f"{shown} is not what was committed: wrong {what}" for what in wrong]
    report.rows += line.rows
    report.records += line.records
    return None if wrong else shard


def _read_sound(place: Place, line: ShardLine) -> ShardData:
    shown = place.path(line.file)
    try:
        with place.local(line.file) as path:
            if not path.is_file():
                raise FileNotFoundError
            if not is_sound(path, line):
                raise CorruptionError(
                    f"{shown} is damaged: its bytes are not those that were committed"
                )
            return read_shard(path, shown=shown)
    except FileNotFoundError:
        raise CorruptionError(f"{shown} is missing, though it was committed") from None


def _facts(shard: ShardData, line: ShardLine, header: HeaderLine) -> dict[str, Callable[[], bool]]:
    """What must hold of a shard's contents."""
    account, rows = shard.account, shard.rows

    def ascending() -> bool:
        keys = row_keys(account, rows.record, rows.chunk, rows.frame)
        return bool((keys[1:] > keys[:-1]).all())

    def expected() -> bool:
        keys = row_keys(account, rows.record, rows.chunk, rows.frame)
        named = row_keys(account, account.row_record, account.row_chunk, account.row_frame)
        return np.array_equal(keys, named) and np.array_equal(rows.digest, account.row_digest)

    matrices = [m for m in (rows.scores, rows.esm2, rows.dnabert_s) if m is not None]
    held = (len(rows.record), len(account.record), len(account.chunk))
    return {
        "shard number": lambda: account.shard == line.shard,
        "identity": lambda: account.identity == header.identity.digest,
        "number of rows, records or chunks": lambda: held == (line.rows, line.records, line.chunks),
        "number of scores or embeddings": lambda: {len(m) for m in matrices} <= {line.rows},
        "order of rows": ascending,
        "keys or digests of rows": expected,
    }


def _check_ending(
    place: Place, state: ManifestState, run: Mapping[str, Any], report: VerifyReport
) -> None:
    """A finished job has all its shards, and nothing torn."""
    if state.torn_bytes:
        report.problems.append(
            f"{place.path(MANIFEST)} is damaged: {state.torn_bytes} bytes at its end"
        )
    if report.shards != report.num_shards:
        report.problems.append(
            f"{place.path(MANIFEST)} names {report.shards} of {report.num_shards} shards"
        )
    if run.get("identity", {}).get("digest") != (state.header and state.header.identity.digest):
        report.problems.append(f"{place.path(RUN)} is of another job")


def _check_files(place: Place, files: Mapping[str, Any], report: VerifyReport) -> None:
    sizes = place.sizes(files)
    for name, fact in files.items():
        report.files += 1
        if sizes[name] < 0:
            report.problems.append(f"{place.path(name)} is missing")
            continue
        with place.local(name) as path:
            same = (sizes[name], file_digest(path)) == (fact["bytes"], fact["sha256"])
        if not same:
            report.problems.append(f"{place.path(name)} is not the file that the job wrote")


def _check_counts(place: Place, counts: Counts, told: object, report: VerifyReport) -> None:
    """Tables, run.json and shards must tell the same number of everything."""
    # A folder of an earlier version tells fewer of them.
    if not isinstance(told, Mapping) or {**asdict(counts), **told} != asdict(counts):
        report.problems.append(f"{place.path(RUN)}: its counts are not those of the shards")
    expected: dict[str, tuple[Callable[[Path], int], int]] = {
        SEQUENCES: (count_rows, counts.records),
        CHUNKS: (count_rows, counts.chunks),
        VIRUSES: (count_sequences, counts.viruses),
    }
    for name, size in place.sizes(expected).items():
        count, rows = expected[name]
        if size < 0:
            continue
        with place.local(name) as path:
            if count(path) != rows:
                report.problems.append(
                    f"{place.path(name)} does not have {rows} rows, as the shards have"
                )


def count_rows(path: Path) -> int:
    """Rows of a table without its header."""
    with path.open("rb") as stream:
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b"")) - 1


def count_sequences(path: Path) -> int:
    """Records of a gzipped FASTA file; -1 when it cannot be read to its end."""
    try:
        with gzip.open(path, "rb") as stream:
            return sum(line.startswith(b">") for line in stream)
    except (OSError, EOFError, zlib.error):
        return -1

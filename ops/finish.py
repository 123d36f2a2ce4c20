"""The last step of a job: tables and sequences from the committed shards, in bounded memory.

Every file is written whole under a temporary name and then renamed; doing it all again gives the
same bytes, so a crash in the middle needs no repair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from ops.compat import CompatWriter
from ops.durable import atomic_file, make_subfolder
from ops.errors import CorruptionError
from ops.files import (
    CHUNKS,
    COMPAT,
    DERIVED,
    HIGHEST,
    PREDICTIONS,
    SEQUENCES,
    VIRUSES,
    file_digest,
)
from ops.identity import Identity
from ops.place import Place
from ops.shardfile import ShardData, read_shard
from ops.tables import Counts, TableWriter
from ops.virusfasta import RecordPiece, write_virus_fasta

ReadRecords = Callable[[], Iterable[RecordPiece]]


def read_shards(
    place: Place,
    files: Iterable[str],
    identity: Identity,
    *,
    first: int = 0,
    embeddings: bool = False,
) -> Iterator[ShardData]:
    """Shards of a job in order, from that number on. Raises CorruptionError."""
    for number, file in enumerate(files, first):
        shard = read_shard_of(place, file, embeddings)
        if (shard.account.shard, shard.account.identity) != (number, identity.digest):
            raise CorruptionError(
                f"{place.path(file)} is not shard {number} of this job; use --force"
            )
        yield shard


def read_shard_of(place: Place, file: str, embeddings: bool = True) -> ShardData:
    """One shard of a place. Raises CorruptionError."""
    try:
        with place.local(file) as path:
            return read_shard(path, embeddings, shown=place.path(file))
    except FileNotFoundError as error:
        raise CorruptionError(f"{place.path(file)} is missing; restore it") from error


class _DroppedError(Exception):
    """Leaves the files of tables that are not wanted."""


class Tables:
    """The tables of a job, written shard by shard in order under temporary names: `close` makes
    them appear, `drop` leaves nothing of them. compat: two files more."""

    def __init__(self, out: Path, identity: Identity, compat: bool) -> None:
        is_virus_job = identity.pipeline == "virus"
        self.num_shards = 0  # that are in them
        with ExitStack() as files:
            sequences = files.enter_context(atomic_file(out / SEQUENCES))
            chunks = files.enter_context(atomic_file(out / CHUNKS)) if is_virus_job else None
            self._tables = TableWriter(sequences, chunks, identity.uracil_as_t)
            self._original = _compat_writer(out, files) if compat and is_virus_job else None
            self._files = files.pop_all()

    def add(self, shard: ShardData) -> None:
        """Takes the next shard; after an error there is nothing to do but `drop`."""
        self._tables.add(shard)
        if self._original is not None:
            self._original.add(shard)
        self.num_shards += 1

    def close(self, num_records: int) -> Counts:
        with self._files:
            counts = self._tables.close(num_records)
            if self._original is not None:
                self._original.close()
        return counts

    def drop(self) -> None:
        """Does nothing after `close`."""
        with suppress(_DroppedError), self._files:
            raise _DroppedError


def write_results(
    out: Path,
    tables: Tables,
    shards: Iterable[ShardData],
    identity: Identity,
    num_records: int,
    read_records: ReadRecords,
) -> Counts:
    """Writes what is left of the tables, and in virus jobs the sequences called virus."""
    try:
        for shard in shards:
            tables.add(shard)
        counts = tables.close(num_records)
    except BaseException:
        tables.drop()
        raise
    if identity.pipeline == "virus":
        with (
            (out / SEQUENCES).open("rb") as table,
            atomic_file(out / VIRUSES) as target,
        ):
            write_virus_fasta(target, read_records(), table)
    return counts


def _compat_writer(out: Path, files: ExitStack) -> CompatWriter:
    make_subfolder(out / COMPAT)
    predictions = files.enter_context(atomic_file(out / COMPAT / PREDICTIONS))
    highest = files.enter_context(atomic_file(out / COMPAT / HIGHEST))
    return CompatWriter(predictions, highest, out / COMPAT)


def describe_files(out: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every derived file that is there."""
    return {
        name: {"bytes": (out / name).stat().st_size, "sha256": file_digest(out / name)}
        for name in DERIVED
        if (out / name).exists()
    }

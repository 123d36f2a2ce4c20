"""The last step of a job: tables and sequences from the committed shards, in bounded memory.

Every file is written whole under a temporary name and then renamed; doing it all again gives the
same bytes, so a crash in the middle needs no repair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from types import TracebackType
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
from ops.jobs import Plan
from ops.place import Place
from ops.shardfile import ShardData, read_shard
from ops.tables import Counts, TableWriter
from ops.totals import check_totals
from ops.virusfasta import RecordPiece, VirusFasta

ReadRecords = Callable[[], Iterable[RecordPiece]]


def read_shards(
    place: Place, files: Iterable[str], identity: Identity, *, embeddings: bool = False
) -> Iterator[ShardData]:
    """The first shards of a job, or all of them, from their files in order. Raises
    CorruptionError."""
    for number, file in enumerate(files):
        yield read_nth_shard(place, file, number, identity, embeddings=embeddings)


def read_nth_shard(
    place: Place, file: str, number: int, identity: Identity, *, embeddings: bool = False
) -> ShardData:
    """The shard of that number. Raises CorruptionError, also for one of another job."""
    shard = read_shard_of(place, file, embeddings)
    if (shard.account.shard, shard.account.identity) != (number, identity.digest):
        raise CorruptionError(f"{place.path(file)} is not shard {number} of this job; use --force")
    return shard


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
    """All derived files of a job, written shard by shard in order under temporary names.

    A block around `add` and `close` makes them belong to the place when it ends well; when it does
    not, or by `drop`, nothing of them is left. results: the block of `Hold.results`; compat: two
    files more. In virus jobs the input is read once more, as far as the shards go.
    """

    def __init__(
        self,
        results: AbstractContextManager[Path],
        identity: Identity,
        compat: bool,
        read_records: ReadRecords,
    ) -> None:
        self.num_shards = 0  # that are in them
        self._pipeline = identity.pipeline
        with ExitStack() as place:
            self._folder = place.enter_context(results)
            self._files = place.enter_context(ExitStack())
            self._open_files(identity, compat, read_records)
            self._place = place.pop_all()

    def _open_files(self, identity: Identity, compat: bool, read_records: ReadRecords) -> None:
        out, files = self._folder, self._files
        is_virus_job = identity.pipeline == "virus"
        sequences = files.enter_context(atomic_file(out / SEQUENCES))
        chunks = files.enter_context(atomic_file(out / CHUNKS)) if is_virus_job else None
        self._tables = TableWriter(sequences, chunks, identity.uracil_as_t)
        self._original = _compat_writer(out, files) if compat and is_virus_job else None
        self._viruses: VirusFasta | None = None
        if is_virus_job:
            target = files.enter_context(atomic_file(out / VIRUSES))
            self._viruses = files.enter_context(VirusFasta(target, read_records()))

    def __enter__(self) -> Tables:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._place.__exit__(kind, error, trace)

    def add(self, shard: ShardData) -> None:
        """Takes the next shard. Raises CorruptionError, DataError (the input has changed), OSError;
        then there is nothing to do but `drop`."""
        lines = self._tables.add(shard)
        if self._original is not None:
            self._original.add(shard)
        if self._viruses is not None:
            self._viruses.add(lines)
        self.num_shards += 1

    def close(self, plan: Plan) -> tuple[Counts, dict[str, dict[str, Any]]]:
        """Lets the files appear; returns what they hold, and size and sha256 of each. Raises what
        `add` raises, and AccountingError (the totals do not add up)."""
        counts = self._tables.close(plan.records)
        if self._original is not None:
            self._original.close()
        if self._viruses is not None:
            self._viruses.require_end()
        check_totals(counts, plan, self._pipeline)
        self._files.close()
        return counts, describe_files(self._folder)

    def drop(self) -> None:
        """After an end of the block it does nothing. A folder that is away keeps what it has until
        it is opened again."""
        with suppress(_DroppedError, OSError), self:
            raise _DroppedError


def _compat_writer(out: Path, files: ExitStack) -> CompatWriter:
    make_subfolder(out / COMPAT)
    predictions = files.enter_context(atomic_file(out / COMPAT / PREDICTIONS))
    highest = files.enter_context(atomic_file(out / COMPAT / HIGHEST))
    writer = CompatWriter(predictions, highest, out / COMPAT)
    files.callback(writer.drop)
    return writer


def describe_files(out: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every derived file that is there."""
    return {
        name: {"bytes": (out / name).stat().st_size, "sha256": file_digest(out / name)}
        for name in DERIVED
        if (out / name).exists()
    }

"""`vnp export`: a finished job's tables and embeddings in the formats that other programs read.

All of it comes from the shards, one at a time, so that memory does not grow with the job but for
the names, which have to be told apart. Every file appears whole or not at all, and the same job
gives the same values in each format.

| format | files |
|---|---|
| npy | `rows.tsv` (one line per embedded row), `esm2.npy`, `dnabert_s.npy`: (rows, width) float32 |
| h5-per-id | `esm2.h5`, `dnabert_s.h5`: one dataset per row, named by its id |
| parquet | `sequences.parquet`, `chunks.parquet`, and with embeddings `embeddings.parquet` |

A row's id is the record's name in protein and dna jobs, and NAME_chunk_1F2 (the original's) in
virus jobs. Where records share a name, the second has `#2` after it, and so on.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from ops.calls import FRAMES
from ops.durable import atomic_file, describe_os_error, make_dir
from ops.errors import CorruptionError, NoInputError, UsageError
from ops.finish import read_shards
from ops.frames_export import chunk_id
from ops.identity import Identity
from ops.manifest import MANIFEST
from ops.nouns import F32, Dtype, Status
from ops.place import Place, place_of
from ops.runfile import finished_run
from ops.shardfile import ShardData
from ops.tables import escape, row

#: A folder, or the URL of a prefix in an object store.
Out = str | os.PathLike[str]
MATRICES = ("esm2", "dnabert_s")
ROW_COLUMNS = ("id", "seq_name", "record", "chunk", "frame", "start", "end", "dtype")


@dataclass(frozen=True)
class Source:
    """A finished job, as `vnp export` reads it."""

    place: Place
    identity: Identity
    files: tuple[str, ...]  # of the shards, in order
    num_rows: int  # computed or failed
    embeddings: bool

    def shards(self, *, embeddings: bool) -> Iterator[ShardData]:
        return read_shards(self.place, self.files, self.identity, embeddings=embeddings)

    @property
    def matrices(self) -> dict[str, str]:
        """Name of each matrix and of the model it comes from."""
        names = (self.identity.esm2_name, self.identity.dnabert_s_name)
        return {matrix: name for matrix, name in zip(MATRICES, names, strict=True) if name}


def open_source(out: Out, *, needs_embeddings: bool) -> Source:
    """Raises NoInputError: not finished; UsageError: embeddings are wanted and were not kept."""
    place = place_of(out)
    try:
        state = place.manifest()
    except FileNotFoundError:
        raise NoInputError(f"{out} holds no {MANIFEST}; name the --out of a job") from None
    finished_run(place)
    header = state.header
    if header is None or len(state.shards) < header.num_shards:
        raise CorruptionError(f"{out} has lost shards; `vnp verify --repair {out}` says which")
    if needs_embeddings and not header.embeddings:
        raise UsageError(
            f"{out} was made without --embeddings; run the job again with it and --force"
        )
    rows = sum(line.rows for line in state.shards.values())
    files = tuple(state.shards[number].file for number in range(header.num_shards))
    return Source(place, header.identity, files, rows, header.embeddings)


@dataclass(frozen=True, eq=False)
class ExportRows:
    """The embedded rows of one shard; failed rows have no embedding and are left out."""

    ids: list[str]
    names: list[str]
    record: list[int]  # from 1, as people count
    chunk: list[int]  # from 1
    frame: list[str]
    start: list[int]
    end: list[int]
    dtype: list[int]
    matrices: dict[str, F32]

    def lines(self) -> Iterator[bytes]:
        """Lines of rows.tsv."""
        words = {int(dtype): dtype.label for dtype in Dtype}
        columns = (self.record, self.chunk, self.frame, self.start, self.end)
        for id_, name, *cells, dtype in zip(
            self.ids, self.names, *columns, self.dtype, strict=True
        ):
            yield row([escape(id_), escape(name), *map(str, cells), words[dtype]])


class RowNamer:
    """Ids of rows, told apart where records share a name; remembers each name's records."""

    def __init__(self, scored: bool) -> None:
        self._scored = scored
        self._count: Counter[str] = Counter()
        self._last = -1
        self._name = ""

    def name(self, record: int, name: str, chunk: int, frame: int) -> str:
        """Rows come in ascending order of their records."""
        if record != self._last:
            self._last = record
            self._name = self._unused(name)
        return chunk_id(self._name, chunk) + FRAMES[frame] if self._scored else self._name

    def _unused(self, name: str) -> str:
        """The name, or with the first number from #2 on that no record has had, as its own name."""
        found = name
        while found in self._count:
            self._count[name] += 1
            found = f"{name}#{self._count[name]}"
        self._count[found] = 1
        return found


def export_rows(source: Source) -> Iterator[ExportRows]:
    """All embedded rows, shard by shard, in the order of their keys."""
    namer = RowNamer(source.identity.pipeline == "virus")
    for shard in source.shards(embeddings=True):
        account, rows = shard.account, shard.rows
        ok = np.flatnonzero(rows.status != Status.FAILED)
        part = np.searchsorted(account.record, rows.record[ok]).tolist()
        texts = [name.decode("utf-8", "backslashreplace") for name in account.name.to_bytes()]
        names = [texts[at] for at in part]
        record, chunk, frame = (
            column[ok].tolist() for column in (rows.record, rows.chunk, rows.frame)
        )
        yield ExportRows(
            ids=[namer.name(*key) for key in zip(record, names, chunk, frame, strict=True)],
            names=names,
            record=[one + 1 for one in record],
            chunk=[one + 1 for one in chunk],
            frame=[FRAMES[one] or "NA" for one in frame],
            start=rows.start[ok].tolist(),
            end=rows.end[ok].tolist(),
            dtype=rows.dtype[ok].tolist(),
            matrices={
                name: matrix[ok]
                for name in source.matrices
                if (matrix := getattr(rows, name)) is not None
            },
        )


def _require_folder(into: Path) -> None:
    try:
        make_dir(into)
    except OSError as error:
        raise describe_os_error(error, into) from error


def export_npy(out: Out, into: Path) -> list[Path]:
    """rows.tsv and one (rows, width) float32 matrix per model; returns the files."""
    source = open_source(out, needs_embeddings=True)
    _require_folder(into)
    paths = [into / "rows.tsv", *(into / f"{name}.npy" for name in source.matrices)]
    with ExitStack() as files:
        table = files.enter_context(atomic_file(paths[0]))
        table.write(row(ROW_COLUMNS))
        streams = {path.stem: files.enter_context(atomic_file(path)) for path in paths[1:]}
        count = 0
        width = dict.fromkeys(source.matrices, 0)
        for stream in streams.values():  # the header comes last, when the shape is known
            stream.write(_npy_header((0, 0)))
        for rows in export_rows(source):
            table.writelines(rows.lines())
            count += len(rows.ids)
            for name, matrix in rows.matrices.items():
                width[name] = matrix.shape[1]
                streams[name].write(np.ascontiguousarray(matrix, "<f4").data)
        for name, stream in streams.items():
            stream.seek(0)
            stream.write(_npy_header((count, width[name])))
    return paths


def _npy_header(shape: tuple[int, int]) -> bytes:
    """A header of format 1.0 that has the same length for every shape: 128 bytes."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.ljust(117).encode() + b"\n"


def export_h5_per_id(out: Out, into: Path) -> list[Path]:
    """One dataset of (width,) float32 per row, and the attribute `model_name`; returns the files.

    / and a lone . or .. cannot stand in a name of HDF5: such ids are percent-encoded.
    """
    source = open_source(out, needs_embeddings=True)
    _require_folder(into)
    paths = [into / f"{name}.h5" for name in source.matrices]
    with ExitStack() as files:
        stores = {path.stem: files.enter_context(_atomic_h5(path)) for path in paths}
        for name, store in stores.items():
            store.attrs["model_name"] = source.matrices[name]
            store.attrs["pooling"] = source.identity.pooling
            store.attrs["identity_digest"] = source.identity.digest
        for rows in export_rows(source):
            for name, matrix in rows.matrices.items():
                for id_, vector in zip(rows.ids, matrix, strict=True):
                    stores[name].create_dataset(h5_name(id_), data=vector)
    return paths


def h5_name(id_: str) -> str:
    """An id as a name of HDF5."""
    name = id_.replace("%", "%25").replace("/", "%2F").replace("\0", "%00")
    return name.replace(".", "%2E") if name in (".", "..") else name or "%"


@contextmanager
def _atomic_h5(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file that appears under its name when the block ends well."""
    with atomic_file(path) as stream, h5py.File(stream, "w", libver=("v110", "v110")) as file:
        yield file


def export(out: Out, form: str, into: Path) -> list[Path]:
    """Writes one of FORMATS; returns the files."""
    return FORMATS[form](out, into)


def _export_parquet(out: Out, into: Path) -> list[Path]:
    from ops.export_parquet import export_parquet

    return export_parquet(out, into)


FORMATS: dict[str, Callable[[Out, Path], list[Path]]] = {
    "parquet": _export_parquet,
    "npy": export_npy,
    "h5-per-id": export_h5_per_id,
}

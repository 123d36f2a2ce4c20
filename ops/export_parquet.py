"""Tables and embeddings as Parquet, for R (arrow), DuckDB, polars and pandas."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from ops.durable import atomic_file, describe_os_error, make_dir
from ops.errors import ConfigError, CorruptionError
from ops.export import ROW_COLUMNS, ExportRows, Out, Source, export_rows, open_source
from ops.files import CHUNKS, SEQUENCES
from ops.nouns import Dtype
from ops.tables import escape

try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv
    import pyarrow.parquet
except ImportError as error:  # an extra: 150 MB that most nodes do not need
    raise ConfigError("Parquet needs pyarrow; pip install 'vnp[parquet]'") from error

#: Columns of the tables that are no text. Missing is NA in the tables and null here.
_TYPES: dict[str, Any] = {
    **dict.fromkeys(("length", "start", "end"), pa.int64()),
    **dict.fromkeys(("n_chunks", "n_chunks_scored", "n_virus_chunks", "n_frames"), pa.int64()),
    **dict.fromkeys(("chunk", "longest_virus_run"), pa.int64()),
    **dict.fromkeys(("virus_score", "max_chunk_score"), pa.float64()),
}
#: A record called NA stands as \\x4eA in the tables, so that in these NA is a missing value.
_NULLABLE_TEXT = ("prediction", "best_frame", "note")
BLOCK_BYTES = 8 << 20


def export_parquet(out: Out, into: Path) -> list[Path]:
    """sequences, chunks (virus jobs), and embeddings where they were kept; returns the files."""
    source = open_source(out, needs_embeddings=False)
    try:
        tables = _tables(source)
        make_dir(into)
        paths = [into / Path(name).with_suffix(".parquet").name for name in tables]
        for name, path in zip(tables, paths, strict=True):
            with source.place.local(name) as table, atomic_file(path) as stream:
                _write(stream, _table_batches(table))
        if source.embeddings:
            paths.append(into / "embeddings.parquet")
            with atomic_file(paths[-1]) as stream:
                _write(stream, _embedding_batches(source))
    except OSError as error:
        raise describe_os_error(error, into) from error
    return paths


def _tables(source: Source) -> list[str]:
    """Names of the job's tables. Raises CorruptionError for one that is missing."""
    names = [SEQUENCES, CHUNKS] if source.identity.pipeline == "virus" else [SEQUENCES]
    for name, size in source.place.sizes(names).items():
        if size < 0:
            raise CorruptionError(
                f"{source.place.path(name)} is missing; `vnp verify --repair {source.place}` "
                "writes it again"
            )
    return names


def _write(stream: BinaryIO, batches: Iterator[Any]) -> None:
    """The first batch, which may be empty, tells the schema."""
    with ExitStack() as closing:
        writer = None
        for batch in batches:
            if writer is None:
                made = pyarrow.parquet.ParquetWriter(stream, batch.schema, compression="zstd")
                writer = closing.enter_context(made)
            writer.write_batch(batch)


def _table_batches(path: Path) -> Iterator[Any]:
    """A table as it stands: no quotes, no guesses at types."""
    with path.open("rb") as stream:
        header = stream.readline().decode().rstrip("\n").split("\t")
    types = {name: _TYPES.get(name, pa.string()) for name in header}
    schema = pa.schema(types.items())
    yield pa.record_batch([pa.array([], kind) for kind in schema.types], schema=schema)
    reader = pyarrow.csv.open_csv(
        path,
        read_options=pyarrow.csv.ReadOptions(block_size=BLOCK_BYTES),
        parse_options=pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=types, null_values=["NA"], strings_can_be_null=False
        ),
    )
    for batch in reader:
        columns = [
            pc.if_else(pc.equal(column, "NA"), None, column) if name in _NULLABLE_TEXT else column
            for name, column in zip(header, batch.columns, strict=True)
        ]
        yield pa.record_batch(columns, schema=schema)


def _embedding_batches(source: Source) -> Iterator[Any]:
    """One batch a shard; without any row there is no width to tell, and no embedding column."""
    empty = True
    for rows in export_rows(source):
        if rows.ids:
            empty = False
            yield _embedding_batch(rows)
    if empty:
        yield _embedding_batch(ExportRows([], [], [], [], [], [], [], [], {}))


def _embedding_batch(rows: ExportRows) -> Any:
    words = {int(dtype): dtype.label for dtype in Dtype}
    columns = {
        "id": pa.array(map(escape, rows.ids), pa.string()),
        "seq_name": pa.array(map(escape, rows.names), pa.string()),  # as the tables have it
        **{
            name: pa.array(getattr(rows, name), pa.int64())
            for name in ("record", "chunk", "start", "end")
        },
        "frame": pa.array(rows.frame, pa.string()),
        "dtype": pa.array([words[one] for one in rows.dtype], pa.string()),
    }
    for name, matrix in rows.matrices.items():
        flat = pa.array(matrix.reshape(-1), pa.float32())
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, matrix.shape[1])
    names = [*ROW_COLUMNS, *rows.matrices]
    return pa.record_batch([columns[name] for name in names], names=names)

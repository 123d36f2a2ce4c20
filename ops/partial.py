"""What a running job has done so far, as the rows that sequences.tsv will start with."""

from __future__ import annotations

from io import BytesIO
from itertools import count, takewhile
from typing import Any, BinaryIO

from ops.errors import NoInputError
from ops.finish import read_shards
from ops.manifest import MANIFEST
from ops.place import Place
from ops.tables import TableWriter


class Nowhere(BytesIO):
    """A stream that keeps nothing."""

    def write(self, data: Any) -> int:
        return len(data)


def write_partial(place: Place, stream: BinaryIO) -> tuple[int, int]:
    """Writes header and rows of all records before the first shard that is not committed; returns
    how many, and how many records the job has. Rows that are written stay as they are.

    Raises NoInputError when nobody has begun to write there.
    """
    try:
        state = place.manifest()
    except FileNotFoundError:
        raise NoInputError(f"{place} holds no {MANIFEST} yet; see `vnp list`") from None
    if state.header is None:
        raise NoInputError(f"{place} has no shards yet; see `vnp list`")
    identity = state.header.identity
    whole = takewhile(state.shards.__contains__, count())
    files = (state.shards[number].file for number in whole)
    chunks = Nowhere() if identity.pipeline == "virus" else None
    tables = TableWriter(stream, chunks, identity.uracil_as_t)
    for shard in read_shards(place, files, identity):
        tables.add(shard)
    return tables.counts.records, state.header.num_records

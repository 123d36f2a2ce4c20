"""`vnp frames`: all stop-free frames as the original writes them, ids and order included.

U is not read as T here, as in the original: a codon with U is deleted.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np

from ops.cut import CutParams, cut_shards, plan_input
from ops.durable import atomic_file, describe_os_error
from ops.errors import UsageError
from ops.frames import chunk_table, open_frames
from ops.frames_plain import FRAME_NAMES
from ops.nouns import ShardTask


def chunk_id(name: str, chunk: int) -> str:
    """The original's id of a chunk; `chunk` counts from 0."""
    return f"{name}_chunk_{chunk + 1}"


def write_frames(inputs: Sequence[Path], chunk_length: int, nucleotide: Path, protein: Path) -> int:
    """Writes both files, one line per sequence; returns the number of frames.

    Shard by shard, so in bounded memory; each file appears whole or not at all. Raises
    UsageError (a file named twice), NoInputError, DataError, OutputError.
    """
    _require_distinct(inputs, nucleotide, protein)
    params = CutParams("", "", "virus", chunk_length, False, uracil_as_t=False)
    scan = plan_input(inputs, params)
    for _ in scan:  # an input that cannot be used is refused before anything is written
        pass
    plan = scan.result
    tasks = cut_shards(inputs, params, plan.huge_lengths, plan=plan)
    count = 0
    try:
        with ExitStack() as files:
            streams = [files.enter_context(atomic_file(path)) for path in (nucleotide, protein)]
            for task in tasks:
                count += _write_task(task, streams[0], streams[1])
    except OSError as error:
        raise describe_os_error(error, nucleotide) from error
    return count


def _require_distinct(inputs: Sequence[Path], nucleotide: Path, protein: Path) -> None:
    """Neither output may be the other one or an input, under whatever name."""
    taken = {path.resolve() for path in inputs}
    for path in (nucleotide, protein):
        if path.resolve() in taken:
            raise UsageError(f"{path} is named twice; give each output a file of its own")
        taken.add(path.resolve())


def _write_task(task: ShardTask, nucleotide: IO[bytes], protein: IO[bytes]) -> int:
    owner, chunk, bounds = chunk_table(
        task.length.astype(np.int64),
        task.chunk_length,
        task.first_chunk.astype(np.int64),
        task.stop_chunk.astype(np.int64),
    )
    shift = task.sequence.offsets[:-1] - task.offset.astype(np.int64)
    frames = open_frames(task.sequence.data, bounds + shift[owner][:, None])
    names = [name.decode() for name in task.name.to_bytes()]
    ids = [
        chunk_id(names[owner[c]], int(chunk[c])) + FRAME_NAMES[f - 1]
        for c, f in zip(frames.chunk.tolist(), frames.frame.tolist(), strict=True)
    ]
    for stream, letters in ((nucleotide, frames.nucleotide), (protein, frames.protein)):
        for id_, row in zip(ids, letters.to_bytes(), strict=True):
            stream.write(b">%s\n%s\n" % (id_.encode(), row))
    return len(ids)

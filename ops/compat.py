"""The original program's two result files: its columns, its order, its digits.

prediction_results.txt has one row per computed frame, in input order. The original gives a chunk
without a computed frame no row, so neither does this. prediction_results_highestscore.csv (tab
separated, for all its name) has one row per chunk id, in lexicographic order: "_chunk_10" comes
before "_chunk_2". Chunks of records of the same name share an id and a row, as its groupby has it.
"""

from __future__ import annotations

import heapq
import struct
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ops.calls import FRAMES
from ops.nouns import F32, Account, Status
from ops.shardfile import ShardData

PREDICTIONS_HEADER = b"Sequence_ID\tPrediction\tscore1\tscore2\n"
HIGHEST_HEADER = b"Modified_ID\tIs_Virus\n"
#: Sorted in memory at once, bytes of ids and scores; runs merged at once (open files).
RUN_BYTES = 16 << 20
MAX_RUNS = 64
_HEAD = struct.Struct("<Iff")

#: A chunk id (UTF-8) with the largest others- and virus-probability of its frames.
Highest = tuple[bytes, float, float]


class CompatWriter:
    """Takes shards in order; `close` sorts and writes the second file. Spills into `folder`."""

    def __init__(self, predictions: BinaryIO, highest: BinaryIO, folder: Path) -> None:
        self._predictions = predictions
        self._highest = highest
        self._sorter = Sorter(folder)
        predictions.write(PREDICTIONS_HEADER)

    def add(self, shard: ShardData) -> None:
        rows = shard.rows
        scored = np.flatnonzero(rows.status == Status.OK)
        if rows.scores is None or not len(scored):
            return
        ids = _chunk_ids(shard.account, scored)
        frames = [FRAMES[frame].encode() for frame in rows.frame[scored].tolist()]
        scores = rows.scores[scored]
        self._predictions.write(b"".join(_prediction_lines(ids, frames, scores)))
        others, virus = scores.T.tolist()
        for item in zip(ids, others, virus, strict=True):
            self._sorter.add(item)

    def close(self) -> None:
        self._highest.write(HIGHEST_HEADER)
        with self._sorter as sorter:
            self._highest.writelines(_highest_lines(sorter))

    def drop(self) -> None:
        """Closes the files that it has spilled into."""
        self._sorter.close()


def _chunk_ids(account: Account, rows: NDArray[np.intp]) -> list[bytes]:
    """Chunk ids as the original makes them, with chunks counted from 1."""
    names = account.name.to_bytes()
    part = np.searchsorted(account.record, account.row_record[rows]).tolist()
    chunk = (account.row_chunk[rows].astype(np.int64) + 1).tolist()
    return [b"%s_chunk_%d" % (names[p], c) for p, c in zip(part, chunk, strict=True)]


def _prediction_lines(ids: list[bytes], frames: list[bytes], scores: F32) -> Iterator[bytes]:
    """str(numpy.float32) is the shortest decimal that reads back as the same float32."""
    is_virus = (scores[:, 1] > scores[:, 0]).tolist()  # argmax: the first of equals, others
    digits = [(str(others).encode(), str(virus).encode()) for others, virus in scores]
    for chunk, frame, virus, (s1, s2) in zip(ids, frames, is_virus, digits, strict=True):
        yield b"%s%s\t%s\t%s\t%s\n" % (chunk, frame, b"virus" if virus else b"others", s1, s2)


def _highest_lines(items: Iterable[Highest]) -> Iterator[bytes]:
    for chunk, same in groupby(items, key=itemgetter(0)):
        group = list(same)
        is_virus = max(item[2] for item in group) >= max(item[1] for item in group)
        yield b"%s\t%s\n" % (chunk, b"True" if is_virus else b"False")


class Sorter:
    """External merge sort by chunk id, in constant memory; the bytes of UTF-8 sort as its letters.

    Runs are files without a name in `folder`: whatever happens, nothing of them stays.
    """

    def __init__(self, folder: Path, run_bytes: int = RUN_BYTES, max_runs: int = MAX_RUNS) -> None:
        self._folder = folder
        self._run_bytes = run_bytes
        self._max_runs = max_runs
        self._items: list[Highest] = []
        self._num_bytes = 0
        self._runs: list[BinaryIO] = []
        self._files = ExitStack()

    def __enter__(self) -> Sorter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._files.close()

    def add(self, item: Highest) -> None:
        """Takes an item in; one with the id of the one before is merged with it at once."""
        if self._items and self._items[-1][0] == item[0]:
            chunk, others, virus = self._items[-1]
            self._items[-1] = (chunk, max(others, item[1]), max(virus, item[2]))
            return
        self._items.append(item)
        self._num_bytes += len(item[0]) + 200  # Python's own, roughly
        if self._num_bytes > self._run_bytes:
            self._spill()

    def __iter__(self) -> Iterator[Highest]:
        """All items, ascending by id."""
        self._items.sort(key=itemgetter(0))
        runs: list[Iterator[Highest]] = [_read_run(run) for run in self._runs]
        return heapq.merge(*runs, self._items, key=itemgetter(0))

    def _spill(self) -> None:
        self._items.sort(key=itemgetter(0))
        self._runs.append(self._write_run(self._items))
        self._items, self._num_bytes = [], 0
        if len(self._runs) > self._max_runs:
            merged = heapq.merge(*map(_read_run, self._runs), key=itemgetter(0))
            run = self._write_run(merged)
            for old in self._runs:
                old.close()
            self._runs = [run]

    def _write_run(self, items: Iterable[Highest]) -> BinaryIO:
        run = self._files.enter_context(tempfile.TemporaryFile(dir=self._folder))  # noqa: SIM115
        for chunk, others, virus in items:
            run.write(_HEAD.pack(len(chunk), others, virus) + chunk)
        return run


def _read_run(run: BinaryIO) -> Iterator[Highest]:
    run.seek(0)
    while head := run.read(_HEAD.size):
        size, others, virus = _HEAD.unpack(head)
        yield run.read(size), others, virus

"""What `vnp report` shows, gathered from a finished job's tables in one pass and bounded memory."""

from __future__ import annotations

import csv
import heapq
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from ops.files import CHUNKS, SEQUENCES
from ops.place import Place, place_of
from ops.runfile import finished_run

SCORE_BINS = 50
#: Decades of length, four bins each, from 10 to 10 million letters.
LENGTH_BINS, SHORTEST_LOG10, BINS_PER_DECADE = 24, 1.0, 4
LARGEST = 12
#: Points of a track; a record with more chunks shows the largest score of each run of them.
TRACK_POINTS = 400
TIME_POINTS = 120


@dataclass(order=True)
class Track:
    """Chunk scores along a record. scores: of at most TRACK_POINTS runs of chunks; None: none."""

    length: int
    order: int  # earlier records first among equals
    name: str = field(compare=False)
    prediction: str = field(compare=False)
    virus_score: float = field(compare=False)
    scores: list[float | None] = field(compare=False)


@dataclass
class Report:
    """Everything on the page. Histograms count; heat[length bin][score bin] counts records."""

    run: dict[str, Any]
    records: list[int] = field(default_factory=lambda: [0] * SCORE_BINS)
    chunks: list[int] = field(default_factory=lambda: [0] * SCORE_BINS)
    heat: list[list[int]] = field(
        default_factory=lambda: [[0] * SCORE_BINS for _ in range(LENGTH_BINS)]
    )
    tracks: list[Track] = field(default_factory=list)
    progress: list[tuple[float, int]] = field(default_factory=list)  # seconds, rows committed


def gather_report(out: str | os.PathLike[str]) -> Report:
    """Raises NoInputError: not a finished job."""
    place = place_of(out)
    run = finished_run(place)
    report = Report(run, progress=_progress(place))
    if run["parameters"]["pipeline"] == "virus":
        with place.local(SEQUENCES) as sequences, place.local(CHUNKS) as chunks:
            _read_tables(_rows(sequences), _rows(chunks), report)
    return report


def _rows(path: Path) -> Iterator[list[str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        yield from csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)


def _read_tables(
    sequences: Iterator[list[str]], chunks: Iterator[list[str]], report: Report
) -> None:
    """Both tables side by side: a record's chunks are the next n_chunks rows of chunks.tsv."""
    columns, chunk_columns = next(sequences), next(chunks)
    score_at = chunk_columns.index("virus_score")
    largest: list[Track] = []
    for order, cells in enumerate(sequences):
        row = dict(zip(columns, cells, strict=True))
        length, num_chunks = int(row["length"]), int(row["n_chunks"])
        own = (_score(chunk[score_at]) for chunk in islice(chunks, num_chunks))
        if row["virus_score"] == "NA":
            for _ in own:
                pass
            continue
        scores = _condense(own, num_chunks, report.chunks)
        score = float(row["virus_score"])
        report.records[_score_bin(score)] += 1
        report.heat[_length_bin(length)][_score_bin(score)] += 1
        track = Track(length, -order, row["seq_name"], row["prediction"], score, scores)
        if len(largest) < LARGEST:
            heapq.heappush(largest, track)
        else:
            heapq.heappushpop(largest, track)
    report.tracks = sorted(largest, reverse=True)


def _score(cell: str) -> float | None:
    return None if cell == "NA" else float(cell)


def _condense(
    scores: Iterator[float | None], count: int, histogram: list[int]
) -> list[float | None]:
    """The largest score of each of at most TRACK_POINTS runs of chunks; counts all of them."""
    points = min(count, TRACK_POINTS)
    best: list[float | None] = [None] * points
    for number, score in enumerate(scores):
        if score is not None:
            histogram[_score_bin(score)] += 1
            at = number * points // count
            best[at] = max(score, best[at] or 0.0)
    return best


def _score_bin(score: float) -> int:
    return min(int(score * SCORE_BINS), SCORE_BINS - 1)


def _length_bin(length: int) -> int:
    place = int((math.log10(max(length, 1)) - SHORTEST_LOG10) * BINS_PER_DECADE)
    return min(max(place, 0), LENGTH_BINS - 1)


def _progress(place: Place) -> list[tuple[float, int]]:
    """Rows committed over time, told from when the shard files were written; a point a step."""
    rows_of = {line.file: line.rows for line in place.manifest().shards.values()}
    written = sorted((at, rows_of[name]) for name, at in place.times(rows_of).items())
    if not written:
        return []
    begin, total, points = written[0][0], 0, []
    for time, rows in written:
        total += rows
        points.append((time - begin, total))
    step = -(-len(points) // TIME_POINTS)
    return [*points[:-1:step], points[-1]]

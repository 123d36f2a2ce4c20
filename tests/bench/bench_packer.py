"""The packer on one core: chunks and frames against the plain version, and the whole with BPE.

    python -m tests.bench.bench_packer

Goals: chunk and translate 20 times as fast as the plain version; 5,000 frames/s with the BPE of
DNABERT-S. Input: all test genomes, chunks of 500.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ops import frames_plain as plain
from ops.cut import CutParams, cut_shards, plan_input
from ops.dna_tokens import DnaTokenizer
from ops.fasta import read_inputs
from ops.frames import chunk_bounds, open_frames
from ops.nouns import Batch
from ops.packing import Budgets
from ops.prepare import Rows, first_alike, prepare

DATA = Path(__file__).parents[1] / "data"
CHUNK_LENGTH = 500
REPEATS = 7


def best_of(*functions: Callable[[], int]) -> list[tuple[float, int]]:
    """Seconds of the fastest of REPEATS runs of each, and what it counted. They take turns, so that
    a busy machine slows them alike."""
    times: list[list[float]] = [[] for _ in functions]
    counts = [0] * len(functions)
    for _ in range(REPEATS):
        for number, function in enumerate(functions):
            started = time.perf_counter()
            counts[number] = function()
            times[number].append(time.perf_counter() - started)
    return list(zip(map(min, times), counts, strict=True))


@contextmanager
def one_core() -> Iterator[None]:
    """Everything inside runs on one core; the benchmarks that follow have all of them again."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def rows_of(batch: Batch) -> Rows:
    """A batch as what it was packed from."""
    key = (batch.record, batch.chunk, batch.frame, batch.digest)
    return Rows(*key, batch.esm_tokens, batch.dna_tokens)


def main() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with one_core():
        bench()


def bench() -> None:
    genomes = sorted((DATA / "fixtures").glob("*.fa"))
    records = [piece.letters for piece in read_inputs(genomes, "nucleotide")]
    bases = sum(map(len, records))

    def vectorised() -> int:
        return sum(
            len(open_frames(np.frombuffer(r, np.uint8), chunk_bounds(len(r), CHUNK_LENGTH)).frame)
            for r in records
        )

    def one_by_one() -> int:
        return sum(
            bool(frame.protein)
            for letters in map(bytes.decode, records)
            for start, end in plain.chunk_bounds(len(letters), CHUNK_LENGTH)
            for frame in plain.open_frames(letters[start:end])
        )

    (fast, frames), (slow, same) = best_of(vectorised, one_by_one)
    assert frames == same
    print(
        f"chunk + translate: {bases / fast / 1e6:.0f} Mbp/s, plain {bases / slow / 1e6:.1f} Mbp/s,"
    )
    print(f"                   {slow / fast:.1f} times as fast (goal 20)")

    cut = CutParams("bench", "", "virus", CHUNK_LENGTH, False, True)
    scan = plan_input(genomes, cut)
    for _ in scan:
        pass
    tasks = list(cut_shards(genomes, cut, scan.result.huge_lengths))
    tokenizer = DnaTokenizer(DATA / "dnabert-s" / "tokenizer.json")
    budgets = Budgets(10_752, 10_752, 1_024)

    batches = [batch for t in tasks for batch in prepare(t, tokenizer, budgets, 8_192)[0]]
    (whole, frames), (looking, _) = best_of(
        lambda: sum(len(prepare(t, tokenizer, budgets, 8_192)[1].row_record) for t in tasks),
        lambda: sum(len(first_alike(rows_of(batch))) for batch in batches),
    )
    print(f"whole packer with DNABERT-S' BPE: {frames / whole:,.0f} frames/s a core (goal 5,000)")
    print(f"looking for rows of one input: {100 * looking / whole:.1f} % of its time")


if __name__ == "__main__":
    main()

"""Names of a job's files, in a folder and in an object store alike, and their digests."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ops.manifest import ShardLine

RUN = "run.json"
SEQUENCES, CHUNKS, VIRUSES, COMPAT = "sequences.tsv", "chunks.tsv", "virus.fasta.gz", "compat"
PREDICTIONS, HIGHEST = "prediction_results.txt", "prediction_results_highestscore.csv"
#: Everything that can be made again from the shards, in OUT.
DERIVED = (SEQUENCES, CHUNKS, VIRUSES, f"{COMPAT}/{PREDICTIONS}", f"{COMPAT}/{HIGHEST}")


def shard_file(shard: int) -> str:
    """Where a shard lies in a folder; a function of its number alone."""
    return f"shards/shard-{shard:06d}.h5"


def is_sound(path: Path, line: ShardLine) -> bool:
    """True when a shard file has the bytes that its line committed."""
    return path.is_file() and path.stat().st_size == line.bytes and file_digest(path) == line.sha256


def file_digest(path: Path) -> str:
    """sha256 of a file, hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

"""What a gpu worker needs in a test: its settings, and a batch of proteins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ops.esm_tokens import encode
from ops.modelstore import BUNDLED, DEFAULT_NAMES
from ops.nouns import Batch, Ragged
from workers.logs import configure_logs
from workers.settings import WorkerSettings


def gpu_settings(folder: Path, redis_url: str, namespace: str) -> WorkerSettings:
    """Of a worker with the bundled ESM-2 on one thread, which logs errors only."""
    configure_logs("gpu", level="error", log_file=str(folder / "log"))
    return WorkerSettings(
        state_dir=str(folder),
        shared_dir=str(folder),
        redis_url=redis_url,
        identity={},
        node="n",
        namespace=namespace,
        esm2=str(BUNDLED / DEFAULT_NAMES["esm2"]),
        threads=1,
    )


def protein_batch(job: str, number: int, records: Sequence[int], proteins: list[bytes]) -> Batch:
    """One row a protein; its digest is its record's number."""
    rows = len(proteins)
    return Batch(
        job=job,
        shard=0,
        number=number,
        identity="i",
        pipeline="protein",
        keep_embeddings=True,
        attempts=0,
        record=np.array(records, np.uint64),
        chunk=np.zeros(rows, np.uint32),
        frame=np.zeros(rows, np.uint8),
        digest=np.array(records, np.uint64),
        esm_tokens=encode(Ragged.from_bytes(proteins)),
        dna_tokens=None,
    )

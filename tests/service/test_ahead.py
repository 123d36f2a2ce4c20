"""A job of many shards, whose tables are written while later shards are computed."""

from __future__ import annotations

import json
from pathlib import Path

from tests.crash.campaign import write_input
from tests.crash.harness import Service, digests


def run(folder: Path, fasta: Path, **settings: object) -> Path:
    """Where a service with these settings has put its results."""
    folder.mkdir()
    service = Service(folder, **settings)
    service.start()
    try:
        service.wait(service.submit(fasta, folder / "out"))
    finally:
        service.end()
    assert "job.not_ahead" not in (service.state / "vnp.log").read_text()
    return folder / "out"


def test_tables_of_many_shards(tmp_path: Path) -> None:
    # Given a job of more shards than it takes, and the same job in a few large ones
    fasta = tmp_path / "reads.fa"
    write_input(fasta, 3_000, seed=7)
    many, few = (
        run(tmp_path / "many", fasta, shard_records=100),
        run(tmp_path / "few", fasta, shard_records=3_000, shard_bases=1 << 20),
    )
    # Then the tables have the same bytes, and nothing is left of their writing
    runs = [json.loads((out / "run.json").read_text()) for out in (many, few)]
    assert runs[0]["shards"] > 16 > runs[1]["shards"]
    tables = [
        {name: digest for name, digest in digests(out).items() if "shard" not in name}
        for out in (many, few)
    ]
    assert tables[0] == tables[1]
    assert list(many.rglob(".*.tmp-*")) == []

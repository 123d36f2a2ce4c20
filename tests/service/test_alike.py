"""Rows of one input are computed once, and no byte of a result tells."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.queue import Broker
from ops.shardfile import read_shard
from tests.crash.campaign import HOOKS
from tests.crash.harness import Service, until
from tests.service.conftest import FIXTURES

GENOME = FIXTURES / "virus_phiX174.fa"
READS, COPIES = 60, 3


def write_reads(path: Path, pipeline: str) -> Path:
    """Reads of a genome, or of random proteins, each several times; odd records too."""
    chance = random.Random(11)
    letters = "".join(GENOME.read_text().splitlines()[1:])
    if pipeline == "protein":
        letters = "".join(chance.choices("ACDEFGHIKLMNPQRSTVWY", k=5_000))
    starts = [chance.randrange(len(letters) - 200) for _ in range(READS)]
    reads = [letters[start : start + chance.choice((90, 200))] for start in starts] * COPIES
    reads += ["", "AC", "ACGACGACGNACG", "ACGACGACGNACG", letters[:3_000], letters[:3_000]]
    chance.shuffle(reads)
    path.write_text("".join(f">read_{at}\n{read}\n" for at, read in enumerate(reads)))
    return path


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Service]]:
    """Two services with small shards: as it is, and with packers that pack every row."""
    found = {}
    try:
        for name, every_row in (("once", ""), ("every_row", "1")):
            found[name] = Service(tmp_path_factory.mktemp(name), shard_bases=9_000, threads=1)
            found[name].environment |= {"PYTHONPATH": str(HOOKS), "TEST_EVERY_ROW": every_row}
            found[name].start()
        yield found
    finally:
        for service in found.values():
            service.end()


def compute(service: Service, fasta: Path, out: Path, *options: str) -> int:
    """Runs a job, and holds it up before its first batch until all is packed; returns the rows
    that were."""
    service.kill_role("gpu", signal.SIGSTOP)
    job = service.submit(fasta, out, *options)
    broker = Broker(str(service.facts["redis_url"]), "vnp")

    def is_packed() -> bool:
        plan = service.state / "jobs" / f"{job}.plan.json"
        shards = json.loads(plan.read_text())["shards"] if plan.exists() else -1
        return broker.progress(job).get("shards_packed") == shards

    try:
        until(is_packed, "all shards to be packed")
        rows = broker.progress(job)["rows_packed"]
    finally:
        broker.close()
        service.kill_role("gpu", signal.SIGCONT)
    service.wait(job)
    return rows


def promised(out: Path) -> dict[str, bytes]:
    """Every file whose bytes are promised."""
    paths = [
        path for pattern in ("shards/*", "*.tsv", "*.gz", "compat/*") for path in out.glob(pattern)
    ]
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


@pytest.mark.parametrize(
    ("pipeline", "options"),
    [
        ("virus", ["--compat", "--embeddings"]),
        ("protein", []),
        ("dna", []),
    ],
)
def test_rows_of_one_input_are_computed_once(
    services: dict[str, Service], tmp_path: Path, pipeline: str, options: list[str]
) -> None:
    # Given reads that come several times, some in one shard and some in another
    fasta = write_reads(tmp_path / "reads.fa", pipeline)
    # When they are computed as always, and by a service that computes every row
    rows = {
        name: compute(service, fasta, tmp_path / name, "--pipeline", pipeline, *options)
        for name, service in services.items()
    }
    # Then every byte of shards and tables is the same
    once, every_row = tmp_path / "once", tmp_path / "every_row"
    assert promised(once) == promised(every_row)
    assert len(promised(once)) >= {"virus": 7, "protein": 3, "dna": 3}[pipeline]
    # And what was computed is all rows there, and here those of each input once in a shard
    shards = [read_shard(path) for path in sorted(once.glob("shards/*"))]
    assert len(shards) > 1
    distinct = sum(len(set(shard.rows.digest.tolist())) for shard in shards)
    assert rows == {"once": distinct, "every_row": sum(len(s.rows.record) for s in shards)}
    assert distinct < 0.8 * rows["every_row"]
    # And run.json tells so from the shards, whoever has computed them
    for out in (once, every_row):
        counts = json.loads((out / "run.json").read_text())["counts"]
        assert counts["frames_computed"] == distinct
        assert counts["frames"] == rows["every_row"]

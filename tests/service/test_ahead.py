"""A job of many shards, whose tables are written while later shards are computed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ops.output import AHEAD_FROM
from tests.crash.campaign import write_input
from tests.crash.harness import Service, digests, shards_done, until

#: In shards of a hundred these are a few more than AHEAD_FROM.
READS = 2_000


@pytest.fixture(scope="module")
def fasta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reads") / "reads.fa"
    write_input(path, READS, seed=7)
    return path


def serve(folder: Path, **settings: object) -> Iterator[Service]:
    service = Service(folder, **settings)
    service.start()
    yield service
    service.end()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One that makes many shards of the reads."""
    yield from serve(tmp_path_factory.mktemp("many"), shard_records=100)


def tables(out: Path) -> dict[str, str]:
    return {name: digest for name, digest in digests(out).items() if "shard" not in name}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, fasta: Path) -> dict[str, str]:
    """Tables of the same reads in one shard, written at the end of the job."""
    folder = tmp_path_factory.mktemp("few")
    for few in serve(folder, shard_records=READS, shard_bases=1 << 20):
        job = few.submit(fasta, folder / "out", "--compat")
        few.wait(job)
        assert event(few, "job.finishing", job)["shards_ahead"] == 0
    return tables(folder / "out")


def event(service: Service, name: str, job: str) -> dict[str, Any]:
    """The only line of that name that the service's log has of a job."""
    lines = (service.state / "vnp.log").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    [found] = [e for e in events if (e["event.name"], e.get("job.id")) == (name, job)]
    return dict(found)


def begun(out: Path) -> list[Path]:
    return list(out.glob(".sequences.tsv.tmp-*"))


def begin_tables(service: Service, fasta: Path, out: Path) -> str:
    """A job whose tables are begun."""
    job = service.submit(fasta, out, "--compat")
    until(lambda: begun(out) != [], "tables that are begun")
    return job


def require_alike(out: Path, plain: dict[str, str]) -> None:
    assert tables(out) == plain
    assert list(out.rglob(".*.tmp-*")) == []


def test_tables_of_many_shards(
    service: Service, fasta: Path, plain: dict[str, str], tmp_path: Path
) -> None:
    # When a job has more shards than it takes
    out = tmp_path / "out"
    job = service.submit(fasta, out, "--compat")
    service.wait(job)
    # Then its tables were begun before its end, and have the same bytes
    assert shards_done(out) > AHEAD_FROM
    assert 0 < event(service, "job.finishing", job)["shards_ahead"] <= shards_done(out)
    assert "job.not_ahead" not in (service.state / "vnp.log").read_text()
    require_alike(out, plain)


def test_killed_writer_begins_the_tables_again(
    service: Service, fasta: Path, plain: dict[str, str], tmp_path: Path
) -> None:
    # Given a job whose tables are begun; When its writer is killed
    out = tmp_path / "out"
    job = begin_tables(service, fasta, out)
    [left] = begun(out)
    service.kill_role("writer")
    service.wait(job)
    # Then nothing of them is left, and the tables are whole
    assert not left.exists()
    require_alike(out, plain)


def test_folder_that_is_away_while_tables_are_ahead(
    service: Service, fasta: Path, plain: dict[str, str], tmp_path: Path
) -> None:
    # Given a job whose tables are begun; When its folder goes away until the job waits for it
    out = tmp_path / "out"
    job = begin_tables(service, fasta, out)
    out.rename(tmp_path / "away")
    until(lambda: "waits: " in service.vnp("status", job).stdout, "the job to wait")
    (tmp_path / "away").rename(out)
    # Then it goes on, and ends with the same bytes
    service.wait(job)
    require_alike(out, plain)

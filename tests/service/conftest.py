"""One resident service for all tests of this folder; each job has an output folder of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.harness import Service
from tests.service.shell import Shell, plain_environment

FIXTURES = Path(__file__).parents[1] / "data" / "fixtures"
#: Header and sequence of valid records that are odd in every way, two of them with one name.
ODD = (
    ("empty first of all", ""),
    ("short one", "AC"),
    ("unknown", "N" * 700),
    ("twice", "ACGTACGTAC"),
    ("twice", "ACGTAcgtNNRYSWKMBDHV"),
    ("rna", "AUGGCUACGUUAGCAUCG" * 10),
    ("[bold]", "ACGTTGCATTGCA"),
    ("", "ACG"),
    ("last", ""),
)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """The programs, without a service."""
    return Shell(tmp_path, plain_environment(tmp_path))


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A running vnpd."""
    service = Service(tmp_path_factory.mktemp("service"), heartbeat_s=0.2)
    service.start()
    yield service
    assert service.stop() == 0


@pytest.fixture(scope="session")
def fasta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small genome after odd records; one shard."""
    path = tmp_path_factory.mktemp("input") / "small.fa"
    odd = "".join(f">{header}\n{sequence}\n" for header, sequence in ODD)
    path.write_text(odd + (FIXTURES / "virus_phiX174.fa").read_text())
    return path


@pytest.fixture(scope="session")
def finished(service: Service, fasta: Path) -> tuple[str, Path]:
    """A job that has ended well: its id and its output folder."""
    out = service.folder / "finished"
    job = service.submit(fasta, out)
    service.wait(job)
    return job, out

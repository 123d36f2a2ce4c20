"""Every kind of fault lands once on a real service; `make crash` is the long form."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.campaign import Campaign, table
from tests.crash.faults import FAULTS


@pytest.mark.timeout(600)
def test_every_fault_once(tmp_path: Path) -> None:
    # Given a job of genomes and reads; When each fault lands while it, or the next one, is running
    report = Campaign(tmp_path, "6.2", faults=len(FAULTS), seed=3, reads=8_000).run()
    # Then nothing is lost, nothing doubled, no byte differs, and nothing is left behind
    print(table(report))
    assert report.problems == []
    landed = {landed.fault for landed in report.landed}
    assert landed | set(report.skipped) == set(FAULTS)
    assert set(report.skipped) <= {"disk full"}

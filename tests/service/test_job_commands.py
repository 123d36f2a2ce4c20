"""submit, status, list, wait, cancel, logs, results, verify: against a running service."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crash.harness import Service, digests
from tests.service.shell import Shell, refused

FIXTURES = Path(__file__).parents[1] / "data" / "fixtures"
GENOME = FIXTURES / "virus_phiX174.fa"
LARGER = FIXTURES / "virus_SAOMS1.fa"


# -- jobs ------------------------------------------------------------------------------------------


def test_life_of_a_job(service: Service, tmp_path: Path) -> None:
    # Given a job; When it has been submitted
    out = tmp_path / "out"
    submitted = service.vnp("submit", GENOME, "--out", out)
    # Then its id, and only that, is on standard output
    assert submitted.stderr == ""
    assert re.fullmatch(r"[0-9a-z]{12}\n", submitted.stdout)
    job = submitted.stdout.strip()
    # And when it has ended
    assert service.vnp("wait", job).returncode == 0
    # Then it can be looked at by id
    view = json.loads(service.vnp("status", job, "--json").stdout)
    assert (view["id"], view["state"], view["share"]) == (job, "finished", 1.0)
    assert (view["records"], view["chunks"], view["trained"]) == (1, 11, True)
    assert "UNTRAINED" not in service.vnp("status", job).stdout
    listed = json.loads(service.vnp("list", "--json").stdout)
    assert [one["state"] for one in listed if one["id"] == job] == ["finished"]
    table = (out / "sequences.tsv").read_text()
    assert service.vnp("results", job).stdout == table
    assert service.vnp("results", out).stdout == table
    # And its log lines are JSON, all of them its own
    lines = [json.loads(line) for line in service.vnp("logs", job).stdout.splitlines()]
    assert {line["job.id"] for line in lines} == {job}
    events = [line["event.name"] for line in lines]
    assert "job.started" in events
    # (the planner looks at the jobs, and then says how they stand)
    assert [event for event in events if event != "job.progress"][-1] == "job.finished"
    # And to cancel it now changes nothing
    late = service.vnp("cancel", job)
    assert late.stderr == f"vnp: {job} has ended already: finished\n"
    assert service.vnp("wait", job).returncode == 0


def test_same_request_is_the_same_job(service: Service, tmp_path: Path) -> None:
    # Given a job that has ended
    job = service.submit(GENOME, tmp_path / "out")
    service.wait(job)
    before = digests(tmp_path / "out")
    # When the same is asked again, and when it is forced, and when other files are asked for
    assert service.submit(GENOME, tmp_path / "out") == job
    forced = service.submit(GENOME, tmp_path / "out", "--force")
    other = service.submit(GENOME, tmp_path / "other", "--compat")
    # Then only the first is the same job; and forced files are the same bytes again
    assert len({job, forced, other}) == 3
    service.wait(forced)
    assert digests(tmp_path / "out") == before
    service.wait(other)
    assert (tmp_path / "other" / "compat" / "prediction_results.txt").exists()


def test_standard_input(service: Service, tmp_path: Path) -> None:
    # Given a genome on standard input, gzipped; When it is submitted and waited for
    out = tmp_path / "out"
    shell = Shell(tmp_path, service.environment)
    data = gzip.compress(GENOME.read_bytes())
    done = shell("vnp-submit", "-", "--out", out, "--wait", "--json", given=data)
    # Then the tables are those of the file itself
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout)) == ["id"]
    service.wait(service.submit(GENOME, tmp_path / "file"))
    assert digests(out) == digests(tmp_path / "file")


def test_spool_of_a_relative_state_folder(service: Service, tmp_path: Path) -> None:
    # Given a client that names the state folder relative to where it is
    out = tmp_path / "out"
    shell = Shell(service.folder, service.environment)
    arguments = ("-", "--out", out, "--wait", "--state-dir", "state")
    # When it submits standard input; Then the service, which is elsewhere, finds it
    done = shell("vnp-submit", *arguments, given=GENOME.read_bytes(), VNP_STATE_DIR="")
    assert done.returncode == 0, done.stderr
    assert len((out / "sequences.tsv").read_text().splitlines()) == 2


def test_cancelled_job(service: Service, tmp_path: Path) -> None:
    # Given a job that waits, because the planner stands still
    service.kill_role("planner", signal.SIGSTOP)
    try:
        job = service.submit(LARGER, tmp_path / "out")
        assert json.loads(service.vnp("status", job, "--json").stdout)["state"] == "queued"
        assert job in service.vnp("status").stdout
        # When it is cancelled
        assert service.vnp("cancel", job).returncode == 0
    finally:
        service.kill_role("planner", signal.SIGCONT)
    # Then it ends so, its exit code is that of an interrupted command, and nothing was written
    waited = service.vnp("wait", job)
    assert waited.returncode == 130
    assert waited.stderr == f"vnp: {job} cancelled: cancelled on request\n"
    assert not (tmp_path / "out").exists()


def test_client_with_other_models_is_refused(service: Service, tmp_path: Path) -> None:
    # Given a job, and a client that is configured for another number format than the service
    job = service.submit(GENOME, tmp_path / "out")
    environment = {**service.environment, "VNP_DTYPE": "bf16"}
    shell = Shell(tmp_path, environment)
    # When it submits; Then it is refused with both named
    done = shell("vnp-submit", GENOME, "--out", tmp_path / "out2")
    refused(done, 73, "in bf16", "in fp32", "same configuration")
    # And looking, waiting and cancelling ask for no models
    assert shell("vnp", "wait", job).returncode == 0
    assert json.loads(shell("vnp", "status", "--json").stdout)["service"]["ready"] is True


# -- vnp verify ------------------------------------------------------------------------------------


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut_short, flip_a_bit, Path.unlink])
@pytest.mark.parametrize("name", ["shards/*.h5", "chunks.tsv"])
def test_damage_is_named(
    service: Service,
    finished: tuple[str, Path],
    tmp_path: Path,
    name: str,
    damage: Callable[[Path], None],
) -> None:
    # Given the finished output of a job, one file of which is damaged
    out = tmp_path / "out"
    shutil.copytree(finished[1], out)
    assert service.vnp("verify", out).returncode == 0
    victim = next(iter(sorted(out.glob(name))))
    damage(victim)
    # When it is verified
    done = service.vnp("verify", out)
    # Then the file is named, and the exit code is EX_IOERR
    assert done.returncode == 74
    assert victim.name in done.stderr
    assert "problem" in done.stdout

"""Checks under a booted systemd, in a throw-away copy of the machine: `test_systemd.py` starts it.

The steps build on each other, in the order of the file: install, submit, reload, kill, stop.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
GENOMES = sorted((ROOT / "demo" / "genomes").glob("*.fa"))
STATE = Path("/var/lib/vnp")
UNITS = ("vnp", "vnp-redis", "vnp-cpu", "vnp-gpu")
#: A copy of a machine inside a chroot may not make user namespaces; servers may.
DROP_IN = "[Service]\nPrivateUsers=no\nRestartSec=1\n"


def run(*command: str, check: bool = True, **options: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
    assert not check or done.returncode == 0, (command, done.returncode, done.stdout, done.stderr)
    return done.stdout.strip()


def as_ann(command: str) -> str:
    return run("runuser", "-u", "ann", "--", "sh", "-c", f"cd /home/ann && {command}")


def show(name: str, unit: str = "vnp") -> str:
    return run("systemctl", "show", "-P", name, unit)


def until(condition: Callable[[], object], limit_s: float = 60) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, run("journalctl", "-n", "30", "-o", "cat")
        time.sleep(0.1)


def is_active(unit: str = "vnp") -> bool:
    return show("ActiveState", unit) == "active"


def journal() -> list[dict[str, Any]]:
    lines = run("journalctl", "-o", "cat", "_SYSTEMD_UNIT=vnp.service").splitlines()
    return [json.loads(line) for line in lines]


def events(name: str) -> list[dict[str, Any]]:
    return [line for line in journal() if line["event.name"] == name]


def worker(role: str) -> int:
    return int(run("pgrep", "-f", f"workers.{role}$").split()[0])


def drop_in(unit: str, text: str) -> None:
    folder = Path(f"/etc/systemd/system/{unit}.service.d")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "test.conf").write_text(text)


def tables(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix in (".tsv", ".gz")}


def submit(fasta: str) -> str:
    return as_ann(f"vnp-submit {fasta}")


def wait(job: str) -> Path:
    as_ann(f"vnp wait {job}")
    (out,) = (STATE / "results").glob(f"*-{job}")
    return out


@pytest.fixture(scope="module")
def reads() -> str:
    """A FASTA file of some seconds' work in a home that nobody else may enter."""
    run("useradd", "-m", "ann")
    run("usermod", "-aG", "vnp", "ann")
    home = Path("/home/ann")
    text = "".join(path.read_text() for path in GENOMES)
    copies = (text.replace(">", f">copy{number}_") for number in range(30))
    (home / "reads.fa").write_text("".join(copies))
    (home / "small.fa").write_text(GENOMES[-1].read_text())
    run("chown", "-R", "ann:ann", str(home))
    home.chmod(0o700)
    return "reads.fa"


def test_install() -> None:
    # Given a machine that has systemd; When vnp is installed
    run("make", "-C", str(ROOT), "install", "PYTHON=/usr/bin/python3.11")
    # Then systemd finds nothing wrong with the units
    for unit in Path("/usr/lib/systemd/system").glob("vnp*"):
        name = unit.name.replace("@.", "@two.")
        said = run("systemd-analyze", "verify", str(unit.with_name(name)), check=False)
        assert "vnp" not in said, said
    for unit in UNITS:
        drop_in(unit, DROP_IN)
    run("systemctl", "daemon-reload")
    # And it starts, ready when `start` returns, with a status line for people
    run("systemctl", "enable", "--now", "vnp.target", "vnp")
    assert is_active()
    assert events("service.ready")
    until(lambda: show("StatusText") == "0 unfinished jobs")
    # And user and group own the state
    assert (STATE.owner(), STATE.group(), STATE.stat().st_mode & 0o7777) == ("vnp", "vnp", 0o2750)


def test_other_user(reads: str) -> None:
    # Given a user whose home the service cannot read; When they submit
    job = submit("small.fa")
    # Then it finishes, and they read the results through their group
    out = wait(job)
    assert "virus" in as_ann(f"cat {out}/sequences.tsv")
    assert (out.owner(), out.group(), out.stat().st_mode & 0o7777) == ("vnp", "vnp", 0o2750)
    # And the copy of the input is gone when the service next looks
    until(lambda: not list((STATE / "spool").iterdir()), 90)
    # And strangers read nothing
    run("useradd", "bob")
    done = subprocess.run(["runuser", "-u", "bob", "ls", str(out)], capture_output=True)
    assert done.returncode != 0


def test_restart_in_mid_job(reads: str) -> None:
    # Given the tables of an undisturbed run
    expected = tables(wait(submit(reads)))
    # When the service is restarted in the middle of the same job
    job = submit(reads)
    until(lambda: any(line.get("job.id") == job for line in events("job.started")))
    began = time.monotonic()
    run("systemctl", "restart", "vnp")
    # Then it goes on, and gives the same bytes
    assert time.monotonic() - began < 28 + 30
    assert tables(wait(job)) == expected
    assert any(line["job.id"] == job for line in events("job.preempted"))
    # And after kill -9 of the main process, too
    job = submit(reads)
    until(lambda: any(line.get("job.id") == job for line in events("job.started")))
    before = int(show("NRestarts"))
    os.kill(int(show("MainPID")), 9)
    until(lambda: int(show("NRestarts")) > before and is_active())
    assert tables(wait(job)) == expected


def test_reload() -> None:
    # Given a running service; When a live setting changes and it is reloaded
    config = Path("/etc/vnp/vnp.toml")
    text = config.read_text()
    config.write_text(text + "heartbeat_s = 5\n")
    pid, gpu = show("MainPID"), worker("gpu")
    run("systemctl", "reload", "vnp")
    until(lambda: events("config.reloaded"))
    # Then neither the supervisor nor the models were started anew
    assert (show("MainPID"), worker("gpu")) == (pid, gpu)
    # And a setting that needs a restart, or none at all, is refused and changes nothing
    for wrong, words in (("shard_bases = 5000\n", "restart vnpd"), ("nonsense = 1\n", "unknown")):
        count = len(events("config.refused"))
        config.write_text(text + wrong)
        run("systemctl", "reload", "vnp")
        until(lambda before=count: len(events("config.refused")) > before)
        assert words in events("config.refused")[-1]["message"]
    config.write_text(text + "heartbeat_s = 5\n")
    assert is_active()


def test_watchdog() -> None:
    # Given limits of seconds, and an idle service
    drop_in("vnp", DROP_IN + "WatchdogSec=4\nEnvironment=VNP_STUCK_S=5\n")
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", "vnp")
    restarts, packer = int(show("NRestarts")), worker("packer")
    # When nothing happens for longer than they are
    time.sleep(15)
    # Then nothing is restarted
    assert (int(show("NRestarts")), worker("packer")) == (restarts, packer)
    # And a worker that is stuck is replaced, without the service
    os.kill(packer, 19)
    until(lambda: run("pgrep", "-f", "workers.packer$", check=False) not in ("", str(packer)))
    assert events("worker.stuck")[-1]["worker"] == "packer-0"
    assert int(show("NRestarts")) == restarts
    # And a stuck supervisor is ended by systemd's watchdog, and the service comes back
    os.kill(int(show("MainPID")), 19)
    until(lambda: int(show("NRestarts")) > restarts and is_active())
    # And the limits are the usual ones again: a slow machine needs longer for a batch
    drop_in("vnp", DROP_IN)
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", "vnp")


def test_stop(reads: str) -> None:
    # Given a job at work; When the service is stopped
    job = submit(reads)
    until(lambda: any(line.get("job.id") == job for line in events("job.started")))
    began = time.monotonic()
    run("systemctl", "stop", "vnp")
    # Then it ends well inside its limit, and nothing is left
    assert time.monotonic() - began < 25
    assert show("Result") == "success"
    assert run("pgrep", "-u", "vnp", "-f", "workers", check=False) == ""


def test_roles_in_units_of_their_own() -> None:
    # Given a job that waits; When CPU and GPU roles run as two units, sandboxed apart
    run("systemctl", "start", "vnp-cpu", "vnp-gpu")
    job = submit("small.fa")
    # Then they do the work together
    assert (wait(job) / "sequences.tsv").exists()
    run("systemctl", "stop", "vnp-cpu", "vnp-gpu")


def test_broken_configuration() -> None:
    # Given a configuration that cannot be read; When the service is started
    config = Path("/etc/vnp/vnp.toml")
    text = config.read_text()
    config.write_text("device = 'abacus'\n")
    before = int(show("NRestarts"))
    run("systemctl", "start", "vnp", check=False)
    # Then it has failed, once, and the journal has the one line that says why
    until(lambda: show("ActiveState") == "failed")
    time.sleep(4)
    assert (show("ActiveState"), show("ExecMainStatus")) == ("failed", "78")
    assert int(show("NRestarts")) <= before
    assert "abacus" in run("journalctl", "-u", "vnp", "-n", "20", "-o", "cat")
    config.write_text(text)
    run("systemctl", "reset-failed", "vnp")


def test_journal() -> None:
    # Then of all that the service wrote, every line is JSON with the fields that tools read
    lines = run("journalctl", "-o", "json", "_SYSTEMD_UNIT=vnp.service").splitlines()
    messages = [json.loads(line) for line in lines]
    assert len(messages) > 50
    plain = [m["MESSAGE"] for m in messages if not m["MESSAGE"].startswith("{")]
    # but for the one line of a configuration that could not be read
    assert all(line.startswith("vnp: ") for line in plain), plain
    for text in (m["MESSAGE"] for m in messages if m["MESSAGE"].startswith("{")):
        assert {"@timestamp", "log.level", "event.name", "message"} <= json.loads(text).keys()
    # And journald dropped none
    assert "Suppressed" not in run("journalctl", "-u", "systemd-journald", "-o", "cat")


def test_uninstall() -> None:
    # Given results; When vnp is removed
    kept = sorted(path for path in STATE.rglob("*") if path.is_file())
    run("make", "-C", str(ROOT), "uninstall")
    # Then its files are gone, and the data is as it was
    assert not Path("/opt/vnp").exists()
    assert not list(Path("/usr/lib/systemd/system").glob("vnp*"))
    assert sorted(path for path in STATE.rglob("*") if path.is_file()) == kept
    assert Path("/etc/vnp/vnp.toml").exists()

"""What is told on standard error: with -v, with -q, on a terminal and away from one."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from daemon.events import plain
from tests.crash.harness import Service, until
from tests.service.conftest import FIXTURES
from tests.service.shell import Shell, command, refused

GENOME = FIXTURES / "virus_phiX174.fa"
LINE = re.compile(r"(debug|info|warning|error): [a-z_]+\.[a-z_]+: .*")
#: "Select Graphic Rendition" with a colour in it: 30 to 49, and the bright ones from 90 on.
COLOUR = re.compile(rb"\x1b\[(?:\d+;)*(?:3\d|4\d|9\d|10\d)(?:;\d+)*m")


def events(told: str) -> list[str]:
    """Names of the events that were told; every line is one, or (vnp:) of the progress."""
    lines = [line for line in told.splitlines() if not line.startswith("vnp: ")]
    assert [line for line in lines if not LINE.fullmatch(line)] == []
    names = [line.split(": ")[1] for line in lines]
    # The planner looks at the jobs, and then says how they stand: after their end, perhaps.
    return [name for name in names if name != "job.progress"]


def test_run_tells_events_as_they_come(shell: Shell) -> None:
    # When a genome is run with -v, and the same again without
    loud = shell("vnp", "run", GENOME, "--out", "out", "-v")
    again = shell("vnp", "run", GENOME, "--out", "out")
    # Then its life is told, a line an event, and standard output is what it always is
    names = events(loud.stderr)
    assert loud.returncode == again.returncode == 0
    life = ["job.planned", "job.started", "job.checkpointed", "job.finished"]
    assert [name for name in names if name in life] == life
    assert "model.loaded" in names
    assert loud.stdout == again.stdout
    assert events(again.stderr) == []
    # And what is no terminal gets not one escape code
    assert "\x1b" not in loud.stdout + loud.stderr


def test_who_waits_is_told_of_their_job_only(service: Service, tmp_path: Path) -> None:
    # Given a job that is waited for from its submission on, and another
    shell = Shell(tmp_path, service.environment)
    other = service.submit(GENOME, tmp_path / "other")
    done = shell("vnp-submit", GENOME, "--out", tmp_path / "out", "--wait", "--verbose")
    job = done.stdout.strip()
    # Then the id alone is on standard output, and the events of that job on standard error
    assert done.returncode == 0
    assert re.fullmatch(r"[0-9a-z]{12}", job)
    names = events(done.stderr)
    assert (names[0], names[-1]) == ("job.planned", "job.finished")
    assert names.count("job.finished") == 1
    # And who comes late is told the same, also of two jobs, and nothing without -v
    service.wait(other)
    late = service.vnp("wait", job, "-v")
    assert (late.returncode, late.stdout, late.stderr) == (0, "", done.stderr)
    both = service.vnp("wait", job, other, "-v")
    assert events(both.stderr).count("job.finished") == 2
    assert service.vnp("wait", job).stderr == ""


def test_failure_is_told_once_more_in_the_end(service: Service, tmp_path: Path) -> None:
    # Given a file that is refused; When it is waited for with -v
    bad = tmp_path / "bad.fa"
    bad.write_text(">a\nAC7\n")
    done = service.vnp("submit", bad, "--out", tmp_path / "out", "--wait", "-v")
    # Then the event comes first, and the line that always comes is the last
    *told, last = done.stderr.splitlines()
    assert done.returncode == 65
    assert any(line.startswith("error: job.failed: ") or "job.failed" in line for line in told)
    assert last == f"vnp: {done.stdout.strip()} failed: {last.partition(' failed: ')[2]}"
    assert "line 2" in last


@pytest.mark.parametrize(("sig", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_who_stops_waiting_stops_nothing_else(
    service: Service, tmp_path: Path, sig: signal.Signals, code: int
) -> None:
    # Given a job that waits, because the planner stands still, and somebody who waits for it
    service.kill_role("planner", signal.SIGSTOP)
    try:
        job = service.submit(GENOME, tmp_path / "out")
        process = subprocess.Popen(
            command("vnp", "wait", job, "-v"), env=service.environment, stderr=subprocess.PIPE
        )
        until(lambda: len(psutil.Process(process.pid).threads()) > 1, "the thread that tells")
        # When they give up
        process.send_signal(sig)
        _, told = process.communicate(timeout=300)
    finally:
        service.kill_role("planner", signal.SIGCONT)
    # Then a shell sees 130 or 143 (the signal itself), and the job goes on
    assert (process.returncode, told.strip()) == (code, b"")
    service.wait(job)


def test_log_that_is_not_there_costs_the_events_only(service: Service, tmp_path: Path) -> None:
    job = service.submit(GENOME, tmp_path / "out")
    gone = {"VNP_LOG_FILE": str(tmp_path / "none.log"), "PATH": ""}
    done = service.vnp("wait", job, "-v", environment=gone)
    assert done.returncode == 0
    assert done.stderr.startswith("vnp: no events: log file ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("run g.fa -q -v", "--quiet and --verbose do not go together"),
        ("submit g.fa -v", "add --wait"),
    ],
)
def test_what_does_not_go_together(shell: Shell, words: str, message: str) -> None:
    refused(shell("vnp", *words.split()), 64, message)


def test_an_event_is_one_line_and_no_command_to_a_terminal() -> None:
    line = '{"log.level": "info", "event.name": "a.b", "message": "x\\u001b[31m\\ny \\u00e9"}\n'
    assert plain(line) == r"info: a.b: x\x1b[31m\ny é"
    assert plain("not JSON\n") == "not JSON"
    assert plain("[1]\n") == "[1]"


# -- terminals -------------------------------------------------------------------------------------


def on_a_terminal(shell: Shell, *arguments: object, **variables: str) -> bytes:
    """Everything that the command writes to a terminal; both streams are it."""
    ours, theirs = pty.openpty()
    environment = {**shell.environment, "TERM": "xterm-256color", **variables}
    process = subprocess.Popen(
        command("vnp", *arguments),
        cwd=shell.folder,
        env={k: v for k, v in environment.items() if v},
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            block = os.read(ours, 65536)
        except OSError:  # what Linux says when the last writer is gone
            break
        seen += block
    os.close(ours)
    assert process.wait() == 0, seen
    return seen


def test_colours_are_for_terminals_that_want_them(shell: Shell) -> None:
    # When the same is run on a terminal, on one without colours, and looked at on a dumb one
    in_colour = on_a_terminal(shell, "run", GENOME, "--out", "out", NO_COLOR="")
    without = on_a_terminal(shell, "run", GENOME, "--out", "out", "--force", NO_COLOR="1")
    dumb = on_a_terminal(shell, "run", GENOME, "--out", "out", TERM="dumb", NO_COLOR="")
    # Then there is a bar in colour, a bar without, and not one escape code
    assert COLOUR.search(in_colour)
    assert b"\x1b[" in without
    assert not COLOUR.search(without)
    assert b"NC_001422.1" in dumb
    assert b"\x1b" not in dumb

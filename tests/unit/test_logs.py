"""Structured logs: JSON lines with stated fields, in a file that processes share."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from workers.settings import WorkerSettings

EVERY_LINE = {
    "@timestamp",
    "log.level",
    "event.name",
    "message",
    "process.pid",
    "service.name",
    "service.version",
    "vnp.role",
}
WRITER = """
import sys
from workers.logs import configure_logs, get_log
configure_logs(sys.argv[1], level=sys.argv[3], log_file=sys.argv[2])
log = get_log(sys.argv[1])
"""


def run_script(
    body: str, role: str, log_file: Path, level: str = "info"
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", WRITER + body, role, str(log_file), level]
    return subprocess.Popen(command, stderr=subprocess.PIPE)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_line_has_the_stated_fields(tmp_path: Path) -> None:
    # Given a process that logs; When it has said something with fields of its own
    path = tmp_path / "vnp.log"
    body = "log.info('job.started', message='5 of 9\\nshards \\u00e9', shards_done=5)"
    process = run_script(body, "writer", path)
    _, printed = process.communicate()
    # Then it is one line of JSON, the same on standard error and in the file
    assert printed == path.read_bytes()
    (line,) = lines_of(path)
    assert set(line) == EVERY_LINE | {"shards_done"}
    assert line["log.level"] == "info"
    assert line["event.name"] == "job.started"
    assert line["message"] == "5 of 9\nshards é"
    assert line["vnp.role"] == "writer"
    assert line["process.pid"] == process.pid
    assert line["shards_done"] == 5
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["@timestamp"])


def test_lines_of_a_thread_name_their_worker(tmp_path: Path) -> None:
    # Given a worker that logs from a thread of its own; When both have said something
    path = tmp_path / "vnp.log"
    body = """
import threading
configure_logs(sys.argv[1], worker="writer-0", log_file=sys.argv[2])
log.info("main")
thread = threading.Thread(target=log.info, args=("thread",))
thread.start()
thread.join()
"""
    run_script(body, "writer", path).communicate()
    # Then both lines say who it was
    of_main, of_thread = lines_of(path)
    assert (of_thread["worker"], of_thread["vnp.role"]) == ("writer-0", "writer")
    assert set(of_thread) == set(of_main) == EVERY_LINE | {"worker"}


def test_level_keeps_quiet_what_is_below_it(tmp_path: Path) -> None:
    # Given level warning; When something is said at every level
    path = tmp_path / "vnp.log"
    body = "\n".join(f"log.{level}('x')" for level in ("debug", "info", "warning", "error"))
    run_script(body, "gpu", path, "warning").communicate()
    # Then only the two upper ones are there
    assert [line["log.level"] for line in lines_of(path)] == ["warning", "error"]


def test_processes_share_a_file(tmp_path: Path) -> None:
    # Given four processes that write long lines into one file at the same time
    path = tmp_path / "vnp.log"
    body = "for i in range(300): log.info('x', message='m' * 9000, number=i)"
    processes = [run_script(body, f"role{i}", path) for i in range(4)]
    for process in processes:
        process.communicate()
    # Then no line is torn, none is lost, and each process' lines are in their order
    seen: dict[str, list[int]] = {}
    for line in lines_of(path):
        assert line["message"] == "m" * 9000
        seen.setdefault(line["vnp.role"], []).append(line["number"])
    assert seen == {f"role{i}": list(range(300)) for i in range(4)}


def test_log_file_only(tmp_path: Path) -> None:
    # Given a foreground run, whose terminal belongs to the progress bar
    path = tmp_path / "vnp.log"
    body = "log.info('x')"
    command = [sys.executable, "-c", WRITER + body, "gpu", str(path), "info"]
    done = subprocess.run(command, capture_output=True, env={"VNP_LOG_FILE_ONLY": "1"})
    # Then the file has the line, and the terminal nothing
    assert len(lines_of(path)) == 1
    assert done.stderr == b""


def test_full_disk_does_not_stop_the_work() -> None:
    # Given a log file that takes nothing; When the process logs, and goes on
    body = "log.info('x')\nprint('went on', file=sys.stderr)"
    process = run_script(body, "gpu", Path("/dev/full"))
    _, printed = process.communicate()
    # Then it ends well, and standard error still has the line
    assert process.returncode == 0
    assert json.loads(printed.splitlines()[0])["event.name"] == "x"
    assert printed.splitlines()[1] == b"went on"


def test_crash_of_a_worker_is_a_line(tmp_path: Path) -> None:
    # Given a worker whose second step raises
    path = tmp_path / "vnp.log"
    settings = WorkerSettings(
        state_dir=str(tmp_path),
        shared_dir=str(tmp_path),
        redis_url="unix:///none",
        identity={},
        node="n",
        log_file=str(path),
    )
    script = """
from workers.loop import main

class Broken:
    steps = 0
    def step(self):
        self.steps += 1
        if self.steps == 2:
            raise LookupError("no such thing")
    def close(self): pass

main("broken", lambda settings, consumer: Broken())
"""
    # When it runs
    done = subprocess.run(
        [sys.executable, "-c", script], env=settings.to_environment(), capture_output=True
    )
    # Then its last line says what happened and where, and its exit code that it is a bug
    assert done.returncode == 70
    assert done.stderr == path.read_bytes()
    (line,) = lines_of(path)
    assert line["event.name"] == "worker.failed"
    assert line["log.level"] == "error"
    assert line["message"] == "broken ends: LookupError: no such thing"
    assert (line["error.type"], line["error.message"]) == ("LookupError", "no such thing")
    assert "in step" in line["error.stack_trace"]

"""The shell around every role: it ends when it has to."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from workers.settings import WorkerSettings

#: A worker that fails while a thread of its pool does what cannot be stopped.
WORKER = """
import time
from concurrent.futures import ThreadPoolExecutor
from workers.loop import main

class Worker:
    def __init__(self, settings, consumer):
        self.pool = ThreadPoolExecutor(1)
    def step(self):
        self.pool.submit(time.sleep, 600)
        raise RuntimeError("this one")
    def close(self):
        pass

main("writer", Worker)
"""


def test_process_that_fails_does_not_wait_for_its_threads(tmp_path: Path) -> None:
    settings = WorkerSettings(
        state_dir=str(tmp_path),
        shared_dir=str(tmp_path),
        redis_url="",
        namespace="vnp",
        identity={},
        node="n",
    )
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", WORKER],
        env=settings.to_environment(),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 70
    assert "this one" in done.stderr
    assert time.monotonic() - began < 60  # a start on a busy machine; the thread sleeps for 600 s

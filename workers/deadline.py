"""A limit on one batch: a computation that hangs ends its process with SIGABRT."""

from __future__ import annotations

import faulthandler
import os
import threading
import time


class Deadline:
    """`with deadline:` around one computation; a thread aborts the process when it takes too long.

    A thread and not a signal handler: Python runs handlers between bytecodes, and a hung kernel
    never comes back to one.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._expires = float("inf")
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="deadline", daemon=True).start()

    def __enter__(self) -> None:
        self._expires = time.monotonic() + self._seconds

    def __exit__(self, *exception: object) -> None:
        self._expires = float("inf")

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._seconds / 4)):
            if time.monotonic() > self._expires:
                faulthandler.dump_traceback()
                os.abort()

    def close(self) -> None:
        self._closed.set()

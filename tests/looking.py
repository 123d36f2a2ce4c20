"""A look at what runs, again and again, beside it."""

from __future__ import annotations

import threading
from typing import Self


class Looking:
    """Calls `look` every so many seconds, in a thread of its own, while its block lasts."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def look(self) -> None:
        """What a subclass looks at."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s):
            self.look()

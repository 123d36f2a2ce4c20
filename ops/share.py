"""SHARED, the folder of jobs that nodes share, told by its mark from any other at the same path:
where nothing is mounted, a node would make a folder of its own, and see no jobs."""

from __future__ import annotations

from pathlib import Path

from ops.jobs import JobStore
from ops.marks import make_mark

MARK = "share.id"


class Share:
    """The folder as one process sees it, many times a second."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._jobs = JobStore(folder).folder
        self._path = folder / MARK
        self._seen: tuple[int, int, int] | None = None
        self._mark = ""

    def mark(self) -> str | None:
        """Empty for a folder that has none. None while it is away: not mounted, or no answer."""
        try:
            self._jobs.stat()
            return self.read()
        except OSError:
            return None

    def read(self) -> str:
        """The mark, empty where there is none, nor a folder. Raises OSError.

        Opens only what is new: on a network file system a look costs less.
        """
        try:
            facts = self._path.stat()
        except FileNotFoundError:
            return ""
        seen = (facts.st_dev, facts.st_ino, facts.st_mtime_ns)
        if seen != self._seen:
            self._mark = self._path.read_text().strip()
            self._seen = seen
        return self._mark

    def make(self) -> str:
        """Makes and marks the folder, unless it is there and marked; returns the mark.

        Raises OutputError, PermissionDeniedError.
        """
        return make_mark(self._path)

"""The writer's threads: for commits, for opening folders and for writing tables."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from ops.output import AHEAD_FROM
from ops.place import is_remote

#: Shards that are on their way to an object store at once, where one alone waits for its replies.
UPLOAD_THREADS = 4
#: Folders that are opened or finished at once. Large jobs, from AHEAD_FROM shards on, have threads
#: of their own: those that began together end together, and would hold up all small ones.
OUTPUT_THREADS, LARGE_THREADS = 4, 2


class Pools:
    """Commits to folders run one after another: they share a disk."""

    def __init__(self) -> None:
        self._committer = ThreadPoolExecutor(1, "commit")
        self._uploader = ThreadPoolExecutor(UPLOAD_THREADS, "upload")
        self._outputs = ThreadPoolExecutor(OUTPUT_THREADS, "outputs")
        self._large_outputs = ThreadPoolExecutor(LARGE_THREADS, "large-outputs")

    def of_commits(self, out: str) -> ThreadPoolExecutor:
        return self._uploader if is_remote(out) else self._committer

    def of_output(self, num_shards: int) -> ThreadPoolExecutor:
        """For the opening, the tables and the end of a job of so many shards."""
        return self._large_outputs if num_shards >= AHEAD_FROM else self._outputs

    def shutdown(self) -> None:
        """Waits for what is under way."""
        for pool in (self._committer, self._uploader, self._outputs, self._large_outputs):
            pool.shutdown()

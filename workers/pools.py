"""The writer's threads: for commits, for opening folders and for writing tables."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from ops.output import AHEAD_FROM
from workers.open_job import OpenJob

#: Shards that are on their way to an object store at once, where one alone waits for its replies.
UPLOAD_THREADS = 4
#: Folders that are opened or finished at once. Large jobs, from AHEAD_FROM shards on, have threads
#: of their own: those that began together end together, and would hold up all small ones.
OUTPUT_THREADS, LARGE_THREADS = 4, 2


class Pools:
    """Whom each kind of work may hold up is what divides them.

    Commits to folders run one after another, since they share a disk. A job that waits for its
    place works in threads that no other job needs: a store that does not answer keeps each of them
    for minutes.
    """

    def __init__(self) -> None:
        self._commits = ThreadPoolExecutor(1, "commit")
        self._uploads = ThreadPoolExecutor(UPLOAD_THREADS, "upload")
        self._outputs = ThreadPoolExecutor(OUTPUT_THREADS, "outputs")
        self._large_openings = ThreadPoolExecutor(LARGE_THREADS, "large-openings")
        self._large_tables = ThreadPoolExecutor(LARGE_THREADS, "large-tables")
        self._waiting = ThreadPoolExecutor(LARGE_THREADS, "waiting")

    def of_commits(self, held: OpenJob) -> ThreadPoolExecutor:
        if held.waits_for:
            return self._waiting
        return self._uploads if held.is_remote else self._commits

    def of_opening(self, held: OpenJob, num_shards: int) -> ThreadPoolExecutor:
        return self._of_output(held, num_shards, self._large_openings)

    def of_tables(self, held: OpenJob, num_shards: int) -> ThreadPoolExecutor:
        return self._of_output(held, num_shards, self._large_tables)

    def _of_output(
        self, held: OpenJob, num_shards: int, large: ThreadPoolExecutor
    ) -> ThreadPoolExecutor:
        if held.waits_for:
            return self._waiting
        return large if num_shards >= AHEAD_FROM else self._outputs

    def shutdown(self) -> None:
        """Begins nothing more; what is under way goes on."""
        for pool in vars(self).values():
            pool.shutdown(wait=False, cancel_futures=True)

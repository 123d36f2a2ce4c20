"""Folders that the writer gives back: at once, or when what other threads do there has ended.

A request to a store that does not answer may take minutes, and the main thread must not wait for
it: all other jobs, and the writer's role, are in its hands.
"""

from __future__ import annotations

from concurrent.futures import wait

from workers.open_job import OpenJob


class Leaving:
    """Jobs that are not the writer's any more, each as long as somebody works in its folder."""

    def __init__(self) -> None:
        self._jobs: list[OpenJob] = []

    def add(self, held: OpenJob) -> None:
        """Nothing of the job is begun from here on, and what can stop stops."""
        held.closing = True
        for future in held.futures:
            future.cancel()
        self._jobs.append(held)
        self.see_off()

    def see_off(self) -> None:
        """Gives back the folders in which nobody works any more."""
        gone = [held for held in self._jobs if all(future.done() for future in held.futures)]
        for held in gone:
            self._jobs.remove(held)
            held.give_back()

    def holds(self, out: str) -> bool:
        """True while that folder is not given back."""
        return any(held.spec.out == out for held in self._jobs)

    def wait(self, limit_s: float) -> None:
        """For the folders that are given back within that time."""
        wait([future for held in self._jobs for future in held.futures], limit_s)
        self.see_off()

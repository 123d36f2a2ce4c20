"""A worker's pulse: how many steps it has made, in memory that it shares with its supervisor.

What a watchdog should know is whether work moves on. A timer thread would only prove that a
thread lives; a counter that the work itself raises stops when the work does.
"""

from __future__ import annotations

import mmap
import os
import struct

PULSE_FD = "VNP_PULSE_FD"
_COUNT = struct.Struct("=Q")


class Pulse:
    """A counter in anonymous memory, known by its file descriptor."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, _COUNT.size)

    @classmethod
    def create(cls) -> Pulse:
        """A fresh one; its descriptor is inherited where it is passed on."""
        descriptor = os.memfd_create("vnp-pulse")
        os.ftruncate(descriptor, _COUNT.size)
        return cls(descriptor)

    @classmethod
    def inherited(cls) -> Pulse:
        """The one that the supervisor watches; without a supervisor, one that nobody does."""
        given = os.environ.pop(PULSE_FD, None)
        return cls(int(given)) if given is not None else cls.create()

    def beat(self) -> None:
        """One step was made."""
        _COUNT.pack_into(self._memory, 0, self.count + 1)

    @property
    def count(self) -> int:
        count: int = _COUNT.unpack_from(self._memory)[0]
        return count

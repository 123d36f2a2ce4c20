"""Faults inside the service's own processes, for tests; does nothing without its variables.

On PYTHONPATH, Python imports this at the start of every process.

TEST_DISK_FAULT names a file, TEST_DISK_ROOT a folder: while the file says "readonly", whatever
writes below the folder gets EROFS, as from a disk that has gone read-only; while it says "slow N",
an fsync takes N seconds longer. Processes of the role writer only.

TEST_POISON is "KIND LETTERS": a gpu worker that meets a protein with those letters crashes
("crash": SIGSEGV), hangs ("hang"), runs out of memory ("memory"), or gives NaN ("nan").

TEST_EVERY_ROW: packers pack every row, also those of one input.

TEST_PROFILE is "AFTER SECONDS FILE": AFTER seconds from its start, a gpu worker records the kernels
of a window of SECONDS, and writes to FILE as JSON the share of the window in which one ran.
"""

from __future__ import annotations

import builtins
import errno
import importlib.abc
import importlib.machinery
import io
import json
import os
import signal
import sys
import threading
import time


class DiskFaults:
    """Patches what writes to disk in this process."""

    def __init__(self, control: str, root: str) -> None:
        self.control, self.root = control, root
        self.open, self.fsync = io.open, os.fsync

    def install(self) -> None:
        os.fsync = self.slow_fsync
        io.open = builtins.open = self.guarded_open  # type: ignore[assignment]
        for name in ("write", "ftruncate", "mkdir", "unlink"):
            setattr(os, name, self.guarded(getattr(os, name), 1))
        for name in ("replace", "rename", "link"):
            setattr(os, name, self.guarded(getattr(os, name), 2))

    def told(self) -> list[str]:
        try:
            with self.open(self.control) as stream:
                return stream.read().split()
        except FileNotFoundError:
            return []

    def refuse(self, file: object) -> None:
        """Raises EROFS for a path, or an open file, on the disk that is read-only now."""
        if self.told() == ["readonly"]:
            path = os.readlink(f"/proc/self/fd/{file}") if isinstance(file, int) else str(file)  # noqa: PTH115
            if path.startswith(self.root):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def guarded(self, function, paths):  # type: ignore[no-untyped-def]
        def wrapper(*arguments, **named):  # type: ignore[no-untyped-def]
            for path in arguments[:paths]:
                self.refuse(path)
            return function(*arguments, **named)

        return wrapper

    def guarded_open(self, file, mode="r", *rest, **named):  # type: ignore[no-untyped-def]
        if set(mode) & set("wax+"):
            self.refuse(file)
        return self.open(file, mode, *rest, **named)

    def slow_fsync(self, descriptor: int) -> None:
        words = self.told()
        if words[:1] == ["slow"]:
            time.sleep(float(words[1]))
        self.fsync(descriptor)


class _Patcher(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads `ops.engine` as it is, and then poisons it."""

    def __init__(self, kind: str, letters: str) -> None:
        self.kind, self.letters = kind, letters.encode()

    def find_spec(self, name, path, target=None):  # type: ignore[no-untyped-def]
        if name != "ops.engine":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        self.inner, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec):  # type: ignore[no-untyped-def]
        return self.inner.create_module(spec)

    def exec_module(self, module):  # type: ignore[no-untyped-def]
        self.inner.exec_module(module)
        from ops.esm_tokens import encode
        from ops.nouns import Ragged

        mark = encode(Ragged.from_bytes([self.letters])).data[1:-1].tobytes()
        launch = module.Engine.launch

        def poisoned(engine, batch):  # type: ignore[no-untyped-def]
            hit = [row for row, tokens in enumerate(batch.esm_tokens) if mark in tokens.tobytes()]
            if hit:
                self.strike()
            launched = launch(engine, batch)
            return module.Launched(batch, Spoilt(launched.running, hit)) if hit else launched

        module.Engine.launch = poisoned

    def strike(self) -> None:
        if self.kind == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.kind == "hang":
            time.sleep(3_600)
        if self.kind == "memory":
            import torch

            torch.empty(1 << 50, dtype=torch.uint8)


class Spoilt:
    """A batch under way of which some rows come out as NaN."""

    def __init__(self, running, rows: list[int]) -> None:  # type: ignore[no-untyped-def]
        self.running, self.rows = running, rows
        self.busy_s = 0.0

    def result(self):  # type: ignore[no-untyped-def]
        outputs = self.running.result()
        outputs.esm2[self.rows] = float("nan")
        return outputs


def profile_kernels(after: str, seconds: str, path: str) -> None:
    """In a thread: the union of the intervals in which a kernel ran, over one window."""
    time.sleep(float(after))
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        time.sleep(float(seconds))
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type == DeviceType.CUDA
    )
    busy = gaps = 0.0
    end = spans[0][0]
    for start, stop in spans:
        gaps = max(gaps, start - end)
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    window = end - spans[0][0]
    figures = {"busy": busy / window, "window_us": window, "longest_gap_us": gaps}
    with open(path, "w") as file:
        json.dump({**figures, "kernels": len(spans)}, file)


def role() -> str:
    """Of a worker: the last part of -m workers.ROLE."""
    words = sys.orig_argv
    return words[words.index("-m") + 1].partition("workers.")[2] if "-m" in words else ""


if os.environ.get("TEST_DISK_FAULT") and role() == "writer":
    DiskFaults(os.environ["TEST_DISK_FAULT"], os.environ["TEST_DISK_ROOT"]).install()
if os.environ.get("TEST_POISON") and role() == "gpu":
    sys.meta_path.insert(0, _Patcher(*os.environ["TEST_POISON"].split()))
if os.environ.get("TEST_EVERY_ROW") and role() == "packer":
    import ops.prepare

    ops.prepare.first_alike = ops.prepare.each_alone
if os.environ.get("TEST_PROFILE") and role() == "gpu":
    arguments = os.environ["TEST_PROFILE"].split()
    threading.Thread(target=profile_kernels, args=arguments, daemon=True).start()

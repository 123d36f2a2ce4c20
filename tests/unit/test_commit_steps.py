"""A commit that is cut at every one of its steps: what stands afterwards is all of it or nothing.

The writer runs in a process of its own, whose file layer ends it at the chosen call: before the
call, in its middle (a write that gets half of its bytes out), or after it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ops.manifest import MANIFEST, read_manifest
from ops.output import Output
from tests.unit.output_fixtures import JOB, commit, open_job, run_job
from tests.unit.test_repair import contents

CALLS = ("open", "write", "fsync", "link", "replace", "unlink", "ftruncate", "mkdir")
CUT = 42


class CutLayer:
    """Counts the calls of `os` that change files, and ends the process at number `at`."""

    def __init__(self, at: int, when: str) -> None:
        self.at, self.when, self.count = at, when, 0

    def install(self) -> None:
        for name in CALLS:
            setattr(os, name, self._cut(getattr(os, name), name))

    def _cut(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **named: Any) -> Any:
            self.count += 1
            if self.count == self.at:
                if self.when == "middle" and name == "write":
                    call(arguments[0], arguments[1][: len(arguments[1]) // 2])
                elif self.when == "after":
                    call(*arguments, **named)
                os._exit(CUT)
            return call(*arguments, **named)

        return wrapper


def in_a_process(work: Callable[[], None], layer: CutLayer) -> int:
    """Exit code of a forked process that does the work under the layer."""
    child = os.fork()
    if child == 0:
        layer.install()
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def open_and_commit(out: Path) -> None:
    commit(open_job(out), 0, 1)


def finish(out: Path) -> None:
    run_job(out, JOB)


@pytest.mark.parametrize("work", [open_and_commit, finish])
@pytest.mark.parametrize("when", ["before", "middle", "after"])
def test_cut_at_every_step(tmp_path: Path, work: Callable[[Path], None], when: str) -> None:
    # Given what an undisturbed run gives
    run_job(tmp_path / "undisturbed", JOB)
    undisturbed = contents(tmp_path / "undisturbed")
    step = 0
    while True:
        # When a writer ends at this step
        step += 1
        out = tmp_path / f"out{step}"
        code = in_a_process(lambda out=out: work(out), CutLayer(step, when))
        # Then what it leaves can be opened, twice in a row, and says the same
        state = [reopened(out) for _ in range(2)]
        assert state[0] == state[1]
        # And goes on to the same bytes
        run_job(out, JOB)
        assert contents(out) == undisturbed
        assert [path for path in out.rglob("*") if ".tmp-" in path.name] == []
        if code == 0:
            break
        assert code == CUT
    assert step > 10


def reopened(out: Path) -> tuple[set[int], set[str]]:
    """Committed shards, and the files that are there, after an opening."""
    output: Output = open_job(out)
    output.close()
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert set(read_manifest(out / MANIFEST).shards) == output.committed
    return output.committed, files

"""What the writer holds of a job: its folder, shards being gathered, work under way."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ops.fasta import Alphabet, Piece, read_inputs
from ops.gather import ShardGather
from ops.jobs import JobSpec, Plan
from ops.manifest import ShardLine
from ops.output import Output
from ops.place import is_remote
from ops.tables import Counts


class _ClosingError(Exception):
    """The job is given up, or the process ends; what can be done again is left undone."""


@dataclass
class OpenShard:
    """A shard that is being gathered, and the entries that its commit will acknowledge."""

    gather: ShardGather
    entries: list[str] = field(default_factory=list)
    commit: Future[ShardLine] | None = None


@dataclass
class OpenJob:
    """A job that this writer has taken up; `output` is None until its folder is open."""

    spec: JobSpec
    output: Output | None = None
    opening: Future[Output] | None = None
    ahead: Future[None] | None = None  # tables of what is committed
    finishing: Future[Counts] | None = None
    shards: dict[int, OpenShard] = field(default_factory=dict)
    retry_at: float = 0.0  # time.monotonic(); nothing is begun before
    tried_at: float = 0.0  # when the last opening or end was begun
    waits_for: str = ""
    closing: bool = False

    @property
    def is_remote(self) -> bool:
        return is_remote(self.spec.out)

    def give_back(self) -> None:
        """Gives the folder back, in which nobody works any more."""
        opening = self.opening
        if opening is not None and not opening.cancelled() and opening.exception() is None:
            self.output = opening.result()
        if self.output is not None:
            self.output.close()

    def shard(self, number: int) -> OpenShard:
        """The shard of that number; a new one when nothing of it has come yet."""
        if number not in self.shards:
            self.shards[number] = OpenShard(ShardGather(self.spec.id, number))
        return self.shards[number]

    @property
    def is_complete(self) -> bool:
        return self.output is not None and self.output.is_complete and not self.shards

    def check(self) -> None:
        """For other threads, between two files: raises when their work is not wanted any more."""
        if self.closing:
            raise _ClosingError

    def open(self, plan: Plan, again: bool, node: str, scratch: Path | None) -> Output:
        """Takes its folder, for other threads: see `Output.open`."""
        return Output.open(
            self.spec.out,
            self.spec,
            plan,
            # A forced job clears its folder once; whoever takes it up later goes on from there.
            force=self.spec.force and not again,
            again=again,
            node=node,
            check=self.check,
            scratch=scratch,
        )

    def read_input(self, roots: tuple[str, ...]) -> Iterator[Piece]:
        """The job's records once more, for other threads; raises as `check` does."""
        alphabet: Alphabet = "protein" if self.spec.pipeline == "protein" else "nucleotide"
        paths = [Path(source.path) for source in self.spec.inputs]
        for piece in read_inputs(paths, alphabet, roots=roots):
            self.check()
            yield piece

    @property
    def has_tables(self) -> bool:
        """True while tables are begun, with their files open."""
        return self.ahead is not None or (self.output is not None and self.output.writes_ahead)

    @property
    def futures(self) -> list[Future[Any]]:
        """Work of other threads on this job."""
        work = [self.opening, self.ahead, self.finishing]
        return [future for future in work if future is not None] + self.commits

    @property
    def commits(self) -> list[Future[ShardLine]]:
        """Commits under way."""
        return [shard.commit for shard in self.shards.values() if shard.commit is not None]

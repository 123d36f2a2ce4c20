"""A job's output and its one writer: taken, recovered, committed shard by shard, finished.

Where it lies, in a folder or in an object store, is `ops.place`'s. The manifest is the truth; what
it does not name does not exist.
"""

from __future__ import annotations

import hashlib
import math
import os
import socket
import threading
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any

from ops.durable import describe_os_error
from ops.errors import IdentityError, InternalError
from ops.files import RUN
from ops.finish import ReadRecords, Tables, read_nth_shard
from ops.gather import ShardGather
from ops.identity import mismatch, require_same
from ops.jobs import JobSpec, Plan, utc_now
from ops.manifest import EpochLine, HeaderLine, ManifestState, ShardLine
from ops.place import Hold, Place, place_of
from ops.runfile import describe_run, encode_run
from ops.shardfile import build_shard
from ops.tables import Counts
from ops.totals import remarks

#: A job of so many shards is large: its tables are written along, and not at the end alone.
AHEAD_FROM = 16
#: Shards that are added to them at once: other jobs wait for the same threads.
AHEAD_STEP = 8
#: Bytes in the output of a shard, a record, a chunk, a frame, a base called virus; generous means.
_DISK = {"shards": 40_000, "records": 250, "chunks": 130, "frames": 80, "letters": 0.35}


class Output:
    """The one writer of OUT. Made by `open`; `close` gives OUT back."""

    def __init__(
        self, place: Place, hold: Hold, spec: JobSpec, plan: Plan, state: ManifestState
    ) -> None:
        assert state.header is not None
        self.place = place
        self.num_shards = plan.shards
        self._files = {line.shard: line.file for line in state.shards.values()}
        self.numerics = set(state.numerics)
        self._spec, self._plan = spec, plan
        # Shards carry the folder's identity: the same values may go by other model names now.
        self._identity = state.header.identity
        self._epochs = list(state.epochs)
        self._hold = hold
        self._lines = threading.Lock()
        self._ahead: Tables | None = None
        self._gave_up_ahead = False

    @classmethod
    def open(
        cls,
        out: str | os.PathLike[str],
        spec: JobSpec,
        plan: Plan,
        *,
        force: bool = False,
        again: bool = False,
        node: str = "",
        check: Callable[[], None] = lambda: None,
        scratch: Path | None = None,
    ) -> Output:
        """Takes OUT, repairs what a crash has left, and starts a new epoch.

        force: whatever OUT holds of an earlier job is removed first. again: the job has held OUT
        before, so its manifest must be there. check is called between two files; what it raises
        ends the opening. scratch: see `place_of`. Raises OutputError (in use, not writable, too
        little space, away), IdentityError (results of another job; nothing is touched),
        CorruptionError (a committed shard is gone or damaged, the manifest is damaged).
        """
        place = place_of(out, scratch)
        try:
            hold = place.hold(spec.id, again=again)
            try:
                if force:
                    hold.clear()
                state = hold.begin(_header(spec, plan), anew=force)
                return cls._open_held(place, hold, spec, plan, state, node, check)
            except BaseException:
                hold.release()
                raise
        except OSError as error:
            raise describe_os_error(error, out) from error

    @classmethod
    def _open_held(
        cls,
        place: Place,
        hold: Hold,
        spec: JobSpec,
        plan: Plan,
        state: ManifestState,
        node: str,
        check: Callable[[], None],
    ) -> Output:
        assert state.header is not None
        _require_same_job(state.header, _header(spec, plan), place)
        share = 1 - len(state.shards) / plan.shards if plan.shards else 1.0
        hold.require_room(int(share * estimate_bytes(spec, plan)))
        state = hold.start_epoch(state, lambda number: _epoch(number, node, spec.id))
        hold.require_shards(state, check)
        output = cls(place, hold, spec, plan, state)
        hold.write(RUN, encode_run(output._describe()))
        return output

    @property
    def committed(self) -> Set[int]:
        """Numbers of the shards that are committed."""
        return self._files.keys()

    @property
    def epoch(self) -> int:
        """Which writer of this folder this is, from 1."""
        return self._epochs[-1].epoch if self._epochs else 0

    @property
    def is_complete(self) -> bool:
        """True when every shard is committed, so that the job can be finished."""
        return len(self._files) == self.num_shards

    def commit(self, gather: ShardGather) -> ShardLine:
        """Makes a complete shard durable; when this returns, its messages may be forgotten.

        In an object store several threads may do so at once: files go side by side, lines one after
        another.

        Raises OSError when the disk does not take it (nothing is committed; try again later),
        FencedError when OUT is somebody else's by now, IdentityError for rows of other numerics in
        a job with same_numerics.
        """
        account, rows = gather.account, gather.rows()
        assert 0 <= account.shard < self.num_shards, f"the job has no shard {account.shard}"
        assert account.shard not in self._files, "the shard is committed already"
        if account.identity != self._identity.digest:
            raise InternalError(f"shard {account.shard} was computed for another identity")
        self._check_numerics(gather.numerics)
        image = build_shard(account, rows, self._identity)
        line = ShardLine(
            shard=account.shard,
            file=self._hold.publish(account.shard, image),
            rows=len(rows.record),
            records=len(account.record),
            chunks=len(account.chunk),
            bytes=len(image),
            sha256=hashlib.sha256(image).hexdigest(),
            numerics=gather.numerics,
            epoch=self.epoch,
        )
        with self._lines:
            self._check_numerics(gather.numerics)  # again: others may have committed meanwhile
            self._hold.append(line)
            self._files[line.shard] = line.file
            self.numerics.update(gather.numerics)
        return line

    def _check_numerics(self, numerics: tuple[str, ...]) -> None:
        seen = self.numerics | set(numerics)
        if self._spec.same_numerics and len(seen) > 1:
            raise IdentityError(
                f"{self.place} holds values of other numerics ({', '.join(sorted(seen))}); go on "
                "with the same kind of device and versions, or without --same-numerics"
            )

    def finish(
        self,
        read_records: ReadRecords,
        facts: Mapping[str, Any] | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> Counts:
        """Writes the tables, then run.json with state "finished"; returns what they hold.

        read_records reads the input again, for the sequences called virus; facts go into run.json;
        check is called between two shards, and what it raises ends the work, which can be done
        again. Raises CorruptionError, DataError (the input has changed), OutputError, and
        AccountingError (the totals do not add up: the job does not count as finished).
        """
        assert self.is_complete, "some shards are not committed"
        ahead, self._ahead = self._ahead, None
        try:
            with ahead or self._begin_tables(read_records) as tables:
                self._add_committed(tables, check)
                counts, derived = tables.close(self._plan)
            ending = {"state": "finished", "finished": utc_now(), "counts": vars(counts)}
            ending["notes"] = remarks(vars(counts), self._identity.pipeline)
            run = {**self._describe(), **(facts or {}), **ending, "files": derived}
            self._hold.write(RUN, encode_run(run))
            self._hold.sweep(self._files.values())
        except OSError as error:
            raise describe_os_error(error, str(self.place)) from error
        return counts

    def _begin_tables(self, read_records: ReadRecords) -> Tables:
        return Tables(self._hold.results(), self._identity, self._spec.compat, read_records)

    def _add_committed(
        self, tables: Tables, check: Callable[[], None], at_most: float = math.inf
    ) -> None:
        """The next shards, up to the first that is not committed."""
        end = tables.num_shards + at_most
        while (number := tables.num_shards) in self._files and number < end:
            check()
            tables.add(read_nth_shard(self.place, self._files[number], number, self._identity))

    @property
    def can_write_ahead(self) -> bool:
        """True when the next shard of the tables is committed, though not the last of the job."""
        if self.num_shards < AHEAD_FROM or self._gave_up_ahead or self.is_complete:
            return False
        return self.shards_ahead in self._files

    @property
    def writes_ahead(self) -> bool:
        """True while tables are begun, with their files open."""
        return self._ahead is not None

    @property
    def shards_ahead(self) -> int:
        """Shards that are in the tables."""
        return self._ahead.num_shards if self._ahead is not None else 0

    def write_ahead(
        self, read_records: ReadRecords, check: Callable[[], None] = lambda: None
    ) -> None:
        """Writes the rows of a few shards, up to the first that is not committed, so that `finish`
        has less to do; in one thread, beside commits. Arguments: see there.

        What it raises costs nothing but this work: `finish` then does all of it.
        """
        try:
            if self._ahead is None:
                self._ahead = self._begin_tables(read_records)
            self._add_committed(self._ahead, check, AHEAD_STEP)
        except BaseException:
            self._gave_up_ahead = True
            self._drop_ahead()
            raise

    def _drop_ahead(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.drop()

    def _describe(self) -> dict[str, Any]:
        return describe_run(self._spec, self._plan, self._epochs, sorted(self.numerics))

    def close(self) -> None:
        """Gives OUT back; a second call does nothing."""
        self._drop_ahead()
        self._hold.release()


def _header(spec: JobSpec, plan: Plan) -> HeaderLine:
    return HeaderLine(
        identity=spec.identity,
        input_digest=plan.input_digest,
        num_shards=plan.shards,
        num_records=plan.records,
        embeddings=spec.keeps_embeddings,
        shard_bases=plan.shard_bases,
        shard_records=plan.shard_records,
    )


def _epoch(number: int, node: str, job: str) -> EpochLine:
    return EpochLine(
        epoch=number,
        node=node,
        host=socket.gethostname(),
        pid=os.getpid(),
        time=utc_now(),
        job=job,
    )


def _require_same_job(theirs: HeaderLine, ours: HeaderLine, place: Place) -> None:
    require_same(ours.identity, theirs.identity, place)
    names = ("input_digest", "num_shards", "num_records", "embeddings", "shard_bases")
    differences = [
        f"{name} {getattr(theirs, name)}, not {getattr(ours, name)}".replace("_", " ").lower()
        for name in (*names, "shard_records")
        if getattr(theirs, name) != getattr(ours, name)
    ]
    if differences:
        raise mismatch(place, differences)


def estimate_bytes(spec: JobSpec, plan: Plan) -> int:
    """Disk that a job's output takes, roughly: one computed frame per chunk, as genomes have."""
    rows = plan.chunks if spec.pipeline == "virus" else plan.records
    sizes = {
        "shards": plan.shards,
        "records": plan.records,
        "chunks": plan.chunks,
        "frames": rows,
        "letters": plan.letters if spec.pipeline == "virus" else 0,
    }
    width = spec.embedding_width if spec.keeps_embeddings else 0
    return int(sum(_DISK[name] * count for name, count in sizes.items()) + 4 * width * rows)

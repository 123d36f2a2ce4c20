"""An output folder and its one writer: locked, recovered, committed shard by shard, finished.

    OUT/.lock            flock of the writer
    OUT/manifest.jsonl   the truth (`ops.manifest`); what it does not name does not exist
    OUT/shards/*.h5      `ops.shardfile`
    everything else      made from the shards at the end (`ops.finish`)

A shard is committed by the order of four steps: its file is written and fsynced under a temporary
name, renamed, the folder is fsynced, and then its manifest line is appended and fsynced.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ops.durable import (
    FileLock,
    describe_os_error,
    free_bytes,
    fsync_dir,
    make_dir,
    make_subfolder,
    remove_durably,
    remove_temporary,
    write_atomic,
    write_new,
)
from ops.errors import CorruptionError, IdentityError, InternalError, OutputError
from ops.finish import (
    COMPAT,
    DERIVED,
    ReadRecords,
    describe_files,
    is_sound,
    read_shards,
    shard_file,
    write_results,
)
from ops.gather import ShardGather
from ops.identity import mismatch, require_same
from ops.jobs import JobSpec, Plan, utc_now
from ops.manifest import (
    MANIFEST,
    EpochLine,
    HeaderLine,
    ManifestState,
    ManifestWriter,
    ShardLine,
    encode_line,
    read_manifest,
)
from ops.runfile import RUN, describe_run, write_run
from ops.shardfile import ShardData, build_shard
from ops.tables import Counts
from ops.totals import check_totals, remarks

LOCK = ".lock"
#: Bytes in the output of a shard, a record, a chunk, a frame, a base called virus; generous means.
_DISK = {"shards": 40_000, "records": 250, "chunks": 130, "frames": 80, "letters": 0.35}


class Output:
    """The one writer of OUT. Made by `open`; used from one thread; `close` gives OUT back."""

    def __init__(
        self,
        out: Path,
        spec: JobSpec,
        plan: Plan,
        lock: FileLock,
        state: ManifestState,
        manifest: ManifestWriter,
    ) -> None:
        assert state.header is not None
        self.out = out
        self.num_shards = plan.shards
        self.committed = set(state.shards)
        self.numerics = set(state.numerics)
        self._spec, self._plan = spec, plan
        # Shards carry the folder's identity: the same values may go by other model names now.
        self._identity = state.header.identity
        self._epochs = list(state.epochs)
        self._lock = lock
        self._manifest = manifest

    @classmethod
    def open(
        cls,
        out: Path,
        spec: JobSpec,
        plan: Plan,
        *,
        force: bool = False,
        again: bool = False,
        node: str = "",
        check: Callable[[], None] = lambda: None,
    ) -> Output:
        """Takes OUT, repairs what a crash has left, and starts a new epoch.

        force: whatever the folder holds of an earlier job is removed first. again: the job has held
        OUT before, so its manifest must be there. check is called between two files; what it raises
        ends the opening. Raises OutputError (in use, not writable, too little space, away),
        IdentityError (results of another job; nothing is touched), CorruptionError (a committed
        shard is gone or damaged, the manifest is damaged).
        """
        try:
            if again:
                _require_there(out)
            else:
                make_dir(out)
            lock = FileLock(out / LOCK, f"{out} is in use by another run; choose another --out")
            try:
                if force:
                    clear(out)
                return cls._open_locked(out, spec, plan, lock, node, check)
            except BaseException:
                lock.release()
                raise
        except OSError as error:
            raise describe_os_error(error, out) from error

    @classmethod
    def _open_locked(
        cls,
        out: Path,
        spec: JobSpec,
        plan: Plan,
        lock: FileLock,
        node: str,
        check: Callable[[], None],
    ) -> Output:
        state = read_or_begin(out, _header(spec, plan))
        make_subfolder(out / "shards")
        share = 1 - len(state.shards) / plan.shards if plan.shards else 1.0
        require_free_disk(out, int(share * estimate_bytes(spec, plan)))
        manifest, state = start_epoch(out, state, node)
        try:
            with _unless_away(out):
                require_shards(out, state, check)
            for folder in (out, out / "shards", out / COMPAT):
                remove_temporary(folder)
            output = cls(out, spec, plan, lock, state, manifest)
            write_run(out, output._describe())
        except BaseException:
            manifest.close()
            raise
        return output

    @property
    def epoch(self) -> int:
        """Which writer of this folder this is, from 1."""
        return self._epochs[-1].epoch if self._epochs else 0

    @property
    def is_complete(self) -> bool:
        """True when every shard is committed, so that the job can be finished."""
        return len(self.committed) == self.num_shards

    def commit(self, gather: ShardGather) -> ShardLine:
        """Makes a complete shard durable; when this returns, its messages may be forgotten.

        Raises OSError when the disk does not take it (nothing is committed; try again later),
        FencedError when OUT is somebody else's by now, IdentityError for rows of other numerics in
        a job with same_numerics.
        """
        account, rows = gather.account, gather.rows()
        assert 0 <= account.shard < self.num_shards, f"the job has no shard {account.shard}"
        assert account.shard not in self.committed, "the shard is committed already"
        if account.identity != self._identity.digest:
            raise InternalError(f"shard {account.shard} was computed for another identity")
        self._check_numerics(gather.numerics)
        image = build_shard(account, rows, self._identity)
        line = ShardLine(
            shard=account.shard,
            file=shard_file(account.shard),
            rows=len(rows.record),
            records=len(account.record),
            chunks=len(account.chunk),
            bytes=len(image),
            sha256=hashlib.sha256(image).hexdigest(),
            numerics=gather.numerics,
            epoch=self.epoch,
        )
        self._publish(self.out / line.file, image)
        self._manifest.append(line)
        self.committed.add(account.shard)
        self.numerics.update(gather.numerics)
        return line

    def _publish(self, path: Path, image: bytes) -> None:
        """Writes a shard file. One that is there already was left by a writer that has lost OUT; a
        writer that wakes late, in its turn, must not replace what its successor has committed."""
        self._manifest.require_ours()
        if not write_new(path, image):
            self._manifest.require_ours()
            write_atomic(path, image)

    def _check_numerics(self, numerics: tuple[str, ...]) -> None:
        seen = self.numerics | set(numerics)
        if self._spec.same_numerics and len(seen) > 1:
            raise IdentityError(
                f"{self.out} holds values of other numerics ({', '.join(sorted(seen))}); go on "
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
        shards = _checked(read_shards(self.out, self.num_shards, self._identity), check)
        try:
            for folder in (self.out, self.out / "shards", self.out / COMPAT):
                remove_temporary(folder)
            with _unless_away(self.out):
                counts = write_results(
                    self.out,
                    shards,
                    self._identity,
                    self._plan.records,
                    read_records,
                    self._spec.compat,
                )
            check_totals(counts, self._plan, self._identity.pipeline)
            ending = {"state": "finished", "finished": utc_now(), "counts": vars(counts)}
            ending["notes"] = remarks(vars(counts), self._identity.pipeline)
            files = describe_files(self.out)
            write_run(self.out, {**self._describe(), **(facts or {}), **ending, "files": files})
        except OSError as error:
            raise describe_os_error(error, self.out) from error
        return counts

    def _describe(self) -> dict[str, Any]:
        return describe_run(self._spec, self._plan, self._epochs, sorted(self.numerics))

    def close(self) -> None:
        """Gives OUT back; a second call does nothing."""
        self._manifest.close()
        self._lock.release()


def _require_there(out: Path) -> None:
    if not (out / MANIFEST).exists():
        error = OutputError(f"{out} is gone, or away; put it back, or cancel and submit anew")
        error.may_pass = True
        raise error


@contextmanager
def _unless_away(out: Path) -> Iterator[None]:
    """Around reading shards: one that is missing because OUT is away for a while is no damage."""
    try:
        yield
    except CorruptionError:
        _require_there(out)
        lines = read_manifest(out / MANIFEST).shards.values()
        if not all(is_sound(out / line.file, line) for line in lines):
            raise
        error = OutputError(f"{out} was away for a moment; it is read again")
        error.may_pass = True
        raise error from None


def _checked(shards: Iterator[ShardData], check: Callable[[], None]) -> Iterator[ShardData]:
    for shard in shards:
        check()
        yield shard


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


def clear(out: Path) -> None:
    """Removes a job's files and nothing else; interrupted anywhere, what is left is consistent.

    Derived files first, then the manifest: shards that no manifest names do not exist.
    """
    for name in (*DERIVED, RUN):
        (out / name).unlink(missing_ok=True)
    fsync_dir(out)
    remove_durably(out / MANIFEST)
    for path in (out / "shards").glob("shard-*.h5"):
        path.unlink()


def read_or_begin(out: Path, ours: HeaderLine) -> ManifestState:
    """What the manifest of OUT says; a new one when there is none.

    Raises IdentityError for another job's, before anything is touched.
    """
    path = out / MANIFEST
    try:
        state = read_manifest(path)
    except FileNotFoundError:
        _refuse_foreign_files(out)
        write_new(path, encode_line(ours))  # unless somebody else just did, who may have gone on
        state = read_manifest(path)
    if state.header is None:  # not even a header: nothing was ever committed
        write_atomic(path, encode_line(ours))
        state = read_manifest(path)
    assert state.header is not None
    _require_same_job(state.header, ours, out)
    return state


def start_epoch(out: Path, state: ManifestState, node: str) -> tuple[ManifestWriter, ManifestState]:
    """Begins a new epoch, which fences all writers before; returns what the manifest says then.

    Read again, because a torn line may be whole but for its newline, which the epoch's line adds.
    Nothing but temporary files (which are written again) is removed in a folder that is opened: a
    process that stops in the middle, loses its lock and wakes late must not take away what its
    successor has written. Shard files that no line names stay until they are committed over.
    """
    while True:
        manifest = ManifestWriter(out / MANIFEST, state)
        ours = EpochLine(
            epoch=state.epoch + 1,
            node=node,
            host=socket.gethostname(),
            pid=os.getpid(),
            time=utc_now(),
        )
        try:
            manifest.start(ours)
            state = read_manifest(out / MANIFEST)
        except BaseException:
            manifest.close()
            raise
        if state.epochs[-1] == ours:
            return manifest, state
        manifest.close()  # somebody else was faster, with the same number


def _refuse_foreign_files(out: Path) -> None:
    """A folder without a manifest is new; files of our names in it would be somebody else's."""
    found = [name for name in (*DERIVED, RUN) if (out / name).exists()]
    if found:
        raise OutputError(
            f"{out} holds {found[0]} but no {MANIFEST}, so it is no folder of vnp; choose another "
            "--out, or replace it with --force"
        )


def _require_same_job(theirs: HeaderLine, ours: HeaderLine, out: Path) -> None:
    require_same(ours.identity, theirs.identity, out)
    names = ("input_digest", "num_shards", "num_records", "embeddings", "shard_bases")
    differences = [
        f"{name} {getattr(theirs, name)}, not {getattr(ours, name)}".replace("_", " ").lower()
        for name in (*names, "shard_records")
        if getattr(theirs, name) != getattr(ours, name)
    ]
    if differences:
        raise mismatch(out, differences)


def require_shards(out: Path, state: ManifestState, check: Callable[[], None]) -> None:
    """Every committed shard has the bytes that were committed; reading them all is the price."""
    for line in state.shards.values():
        check()
        path = out / line.file
        if not is_sound(path, line):
            raise CorruptionError(
                f"{path} is missing or damaged, though it was committed; restore it, or "
                f"`vnp verify --repair {out}` computes it anew"
            )


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


def require_free_disk(out: Path, need_bytes: int) -> None:
    """Raises OutputError when the file system of `out` has less than need_bytes left."""
    free = free_bytes(out)
    if free < need_bytes:
        error = OutputError(
            f"{out} needs about {size_in_words(need_bytes)} and has {size_in_words(free)} free; "
            "free some, or choose another --out"
        )
        error.may_pass = True
        raise error


def size_in_words(num_bytes: float) -> str:
    """0.1 MB, 2.5 GB."""
    for unit in ("kB", "MB", "GB"):
        num_bytes /= 1_000
        if num_bytes < 1_000:
            return f"{num_bytes:.1f} {unit}"
    return f"{num_bytes / 1_000:.1f} TB"

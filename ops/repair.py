"""`vnp verify --repair`: takes back what is damaged in an output folder, so that its job goes on.

Every whole line of the manifest stays, but for those of shards that are not sound any more; what
was lost of it is told from run.json and from the lines that are left. What is then missing is
computed anew as after any interruption, which gives the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ops.durable import FileLock, describe_os_error, remove_durably, write_atomic
from ops.errors import CorruptionError
from ops.files import RUN, shard_file
from ops.folder import LOCK, Folder
from ops.identity import Identity
from ops.manifest import (
    MANIFEST,
    EpochLine,
    HeaderLine,
    Line,
    ShardLine,
    decode_line,
    encode_line,
)
from ops.runfile import encode_run, read_run
from ops.verify import verify_output


@dataclass(frozen=True)
class Repair:
    """What was taken back. shards: numbers of committed shards that are computed anew."""

    shards: tuple[int, ...]
    lines: int  # of the manifest, that were damaged
    problems: tuple[str, ...]  # as `vnp verify` names them

    @property
    def needed(self) -> bool:
        return bool(self.problems or self.lines)


def repair_output(out: Path) -> Repair:
    """Removes damaged shards and manifest lines; afterwards the job must be run again.

    Doing it twice, or being killed in the middle, harms nothing. Raises OutputError (the folder is
    in use), CorruptionError (the manifest's header and run.json are both damaged).
    """
    try:
        with FileLock(out / LOCK, f"{out} is in use by a run; wait for its end"):
            return _repair(out)
    except OSError as error:
        raise describe_os_error(error, out) from error


def _repair(out: Path) -> Repair:
    before = verify_output(out)
    if before.ok:
        return Repair((), 0, ())
    lines, damaged = salvage((out / MANIFEST).read_bytes())
    told = bool(lines) and isinstance(lines[0], HeaderLine)
    header = lines.pop(0) if told else _header_from_run(out)
    if damaged:
        _write(out, [header, *lines])
    report = verify_output(out) if damaged else before
    bad = set(report.bad_shards)
    if bad:
        _reopen_run(out)
        _write(out, [header, *(line for line in lines if _shard_of(line) not in bad)])
        for shard in sorted(bad):
            remove_durably(out / shard_file(shard))
    elif report.problems:  # tables: they are written again
        _reopen_run(out)
    return Repair(tuple(sorted(bad)), damaged, tuple(before.problems))


def salvage(data: bytes) -> tuple[list[Line], int]:
    """The whole lines of a damaged manifest, and how many were not. A lost epoch line, without
    which the shards after it would not count, is told from them."""
    lines: list[Line] = []
    damaged, epoch = 0, 0
    for raw in data.splitlines(keepends=True):
        line = decode_line(raw[:-1]) if raw.endswith(b"\n") else None
        if line is None:
            damaged += 1
            continue
        if isinstance(line, ShardLine) and line.epoch > epoch:
            lines.append(EpochLine(epoch=line.epoch, node="", host="", pid=0, time=""))
        if isinstance(line, ShardLine | EpochLine):
            epoch = max(epoch, line.epoch)
        lines.append(line)
    return lines, damaged


def _shard_of(line: Line) -> int | None:
    return line.shard if isinstance(line, ShardLine) else None


def _write(out: Path, lines: list[Line]) -> None:
    write_atomic(out / MANIFEST, b"".join(encode_line(line) for line in lines))


def _header_from_run(out: Path) -> HeaderLine:
    run = read_run(Folder(out)) or {}
    try:
        identity = {k: v for k, v in run["identity"].items() if k != "digest"}
        return HeaderLine(
            identity=Identity.from_dict(identity),
            input_digest=run["input_digest"],
            num_shards=run["shards"],
            num_records=run["records"],
            embeddings=run["parameters"]["embeddings"],
            shard_bases=run["shard_bases"],
            shard_records=run["shard_records"],
        )
    except KeyError as error:
        raise CorruptionError(
            f"{out / MANIFEST} has lost its header, and {RUN} does not tell it; compute all anew "
            "with --force"
        ) from error


def _reopen_run(out: Path) -> None:
    """The job is not finished any more."""
    try:
        run: dict[str, Any] | None = read_run(Folder(out))
    except CorruptionError:
        run = None
    if run is None:
        (out / RUN).unlink(missing_ok=True)
    else:
        write_atomic(out / RUN, encode_run({**run, "state": "running"}))

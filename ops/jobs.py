"""Job files: what was asked (ID.json), planned, opened, ended; each written whole or not at all.

The state folder is the only memory of the service: everything in Redis can be made again from it
and from the output folders. Who writes what: the client ID.json and ID.cancel, the planner
ID.plan.json, the writer ID.open.json, the supervisor ID.preempted, whoever ends a job ID.done.json.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from ops.durable import create_exclusive, describe_os_error, make_dir, write_atomic
from ops.errors import CorruptionError, UsageError
from ops.identity import Identity

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # no i, l, o, u: nothing to misread
_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")
T = TypeVar("T")
#: `list[str]`, for a class that has a method of that name.
JobIds = list[str]
QUEUED, PLANNING, RUNNING = "queued", "planning", "running"
FINISHED, FAILED, CANCELLED = "finished", "failed", "cancelled"


def new_job_id(now_ms: int | None = None) -> str:
    """12 letters and digits that sort by time: 9 of milliseconds since 1970, 3 of chance."""
    number = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    digits = [_ALPHABET[(number >> shift) & 31] for shift in range(40, -1, -5)]
    return "".join(digits + [secrets.choice(_ALPHABET) for _ in range(3)])


def utc_now() -> str:
    """This moment as RFC 3339 in UTC, to the millisecond."""
    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"


@dataclass(frozen=True)
class InputFile:
    """An input as it was when the job was submitted; it may not change afterwards."""

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """What was asked. Paths are absolute. `inputs` are read one after another, in order."""

    id: str
    inputs: tuple[InputFile, ...]
    out: str
    identity: Identity
    created: str = field(default_factory=utc_now)
    embeddings: bool = False
    compat: bool = False
    priority: int = 0
    force: bool = False
    allow_chunk_length: bool = False
    same_numerics: bool = False
    strict: bool = False
    user: str = ""
    embedding_width: int = 0  # floats a row that are kept, for the estimate of disk

    @property
    def pipeline(self) -> str:
        return self.identity.pipeline

    @property
    def chunk_length(self) -> int:
        return self.identity.chunk_length

    @property
    def keeps_embeddings(self) -> bool:
        """Protein and dna jobs are there for their embeddings; virus jobs keep them if asked."""
        return self.embeddings or self.pipeline != "virus"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> JobSpec:
        inputs = tuple(InputFile(**source) for source in values["inputs"])
        identity = Identity.from_dict(values["identity"])
        return cls(**{**values, "inputs": inputs, "identity": identity})

    def asks_the_same(self, other: JobSpec) -> bool:
        """True when both would give the same files: ids, times, users and priority aside."""
        return self._question() == other._question()

    def _question(self) -> dict[str, Any]:
        plain = replace(self, id="", created="", priority=0, force=False, user="")
        question = {k: v for k, v in plain.to_dict().items() if k != "identity"}
        return {**question, "identity": self.identity.digest}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the first reading of the input found, and how it is cut."""

    records: int
    letters: int
    chunks: int  # 0 in protein and dna jobs
    shards: int
    input_digest: str  # "sha256:..." of the decompressed input
    huge_lengths: Mapping[int, int] = field(default_factory=dict)  # ordinal: letters
    ambiguous: int = 0
    uracil: int = 0
    shard_bases: int = 1 << 20
    shard_records: int = 8_192

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "huge_lengths": sorted(self.huge_lengths.items())}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        huge = {int(ordinal): int(length) for ordinal, length in values["huge_lengths"]}
        return cls(**{**values, "huge_lengths": huge})


@dataclass(frozen=True)
class Outcome:
    """How a job ended. state: finished, failed or cancelled; exit_code as `vnp wait` returns it."""

    state: str
    exit_code: int
    message: str
    finished: str = field(default_factory=utc_now)


@dataclass(frozen=True)
class Look:
    """How unfinished jobs stood when their folder was listed: all of them, oldest first; those that
    are to be cancelled; those whose output folder a writer has held."""

    unfinished: JobIds
    cancelled: frozenset[str]
    opened: frozenset[str]


class JobStore:
    """The job files of one state folder. Safe for any number of processes at once."""

    def __init__(self, state_dir: Path) -> None:
        self.folder = Path(state_dir) / "jobs"

    # -- what was asked --------------------------------------------------------------------------

    def create(self, spec: JobSpec) -> str:
        """Accepts a job durably; returns its id. Raises PermissionDeniedError, OutputError."""
        self._check_id(spec.id)
        try:
            make_dir(self.folder)
            created = create_exclusive(self._path(spec.id, "json"), _dump(spec.to_dict()))
        except OSError as error:
            raise describe_os_error(error, self.folder) from error
        if not created:
            raise UsageError(f"job {spec.id} exists already; take another id")
        self._note_last(spec)
        return spec.id

    def _note_last(self, spec: JobSpec) -> None:
        """Which job was the last for an output folder; a hint for `runfile.find_same`, no more."""
        path = self._last_path(spec.out)
        with contextlib.suppress(OSError):
            make_dir(path.parent)
            path.write_text(spec.id)

    def _last_path(self, out: str) -> Path:
        name = hashlib.sha256(os.fsencode(out)).hexdigest()[:32]
        return self.folder.parent / "outs" / name

    def spool_path(self, job: str, number: int = 0) -> Path:
        """Where an input that the service cannot read itself (standard input, another user's file)
        is kept until the job has ended; number: its place among the job's inputs."""
        return self.folder.parent / "spool" / f"{job}.{number}.fasta"

    def drop_spool(self, job: str, copies: Iterable[Path]) -> None:
        """Removes what was kept for a job that was not accepted after all."""
        if not self._path(job, "json").exists():
            for path in copies:
                path.unlink(missing_ok=True)

    def clear_spool(self) -> None:
        """Removes what was kept of jobs that have ended."""
        for path in self.spool_path("").parent.glob("*.fasta"):
            if self.outcome(path.name.partition(".")[0]) is not None:
                path.unlink(missing_ok=True)

    def spec(self, job: str) -> JobSpec:
        """Raises UsageError for a job that nobody submitted."""
        self._check_id(job)
        spec = self._read(job, "json", JobSpec.from_dict)
        if spec is None:
            raise UsageError(f"there is no job {job}; `vnp list` shows the jobs that there are")
        return spec

    def list(self) -> JobIds:
        """All job ids, oldest first."""
        return sorted(name[:-5] for name in self._names() if _is_spec(name))

    def last_for(self, out: str) -> str | None:
        """The job that was submitted last for an output folder, as far as is known: others may
        submit to it from other state folders, or be kept from noting it here."""
        try:
            return self._last_path(out).read_text()
        except OSError:
            return None

    # -- what became of it -----------------------------------------------------------------------

    def plan_or_none(self, job: str) -> Plan | None:
        return self._read(job, "plan.json", Plan.from_dict)

    def plan(self, job: str) -> Plan:
        plan = self.plan_or_none(job)
        assert plan is not None, f"job {job} has no plan yet"
        return plan

    def set_plan(self, job: str, plan: Plan) -> None:
        write_atomic(self._path(job, "plan.json"), _dump(plan.to_dict()))

    def opened(self, job: str) -> int | None:
        """The epoch of the writer that holds the job's output folder; None: nobody yet."""
        return self._read(job, "open.json", lambda values: int(values["epoch"]))

    def waits_for(self, job: str) -> str:
        """What an open job waits for (a full disk, a folder that is away); empty: for nothing."""
        return self._read(job, "open.json", lambda values: str(values.get("waits_for", ""))) or ""

    def set_open(self, job: str, epoch: int, waits_for: str = "") -> None:
        facts = {"epoch": epoch, "waits_for": waits_for}
        write_atomic(self._path(job, "open.json"), _dump(facts))

    def outcome(self, job: str) -> Outcome | None:
        return self._read(job, "done.json", lambda values: Outcome(**values))

    def set_outcome(self, job: str, outcome: Outcome) -> bool:
        """Ends a job. The first outcome stands: False when it had one."""
        return create_exclusive(self._path(job, "done.json"), _dump(asdict(outcome)))

    def cancel(self, job: str) -> None:
        """Asks for a job's end; a job that has ended is left alone. Raises UsageError: unknown."""
        self.spec(job)
        if self.outcome(job) is None:
            write_atomic(self._path(job, "cancel"), b"")

    def is_cancelled(self, job: str) -> bool:
        return self._path(job, "cancel").exists()

    def note_preempted(self, job: str) -> None:
        """Counts one more orderly stop in the middle of a job."""
        write_atomic(self._path(job, "preempted"), b"%d" % (self.preemptions(job) + 1))

    def preemptions(self, job: str) -> int:
        """How often the service was told to stop, or its machine about to go, during a job."""
        try:
            return int(self._path(job, "preempted").read_bytes())
        except FileNotFoundError:
            return 0

    def state(self, job: str) -> str:
        """queued, planning, running, finished, failed or cancelled. Raises UsageError: unknown.

        planning: validated and planned, but no writer holds its output folder yet.
        """
        self.spec(job)
        outcome = self.outcome(job)
        if outcome is not None:
            return outcome.state
        if self.is_cancelled(job):
            return CANCELLED
        if self.opened(job) is not None:
            return RUNNING
        return PLANNING if self.plan_or_none(job) is not None else QUEUED

    # -- what is to be done ----------------------------------------------------------------------

    def unfinished(self) -> JobIds:
        """Jobs without an outcome, oldest first."""
        return _unfinished(self._names())

    def look(self) -> Look | None:
        """One request, however many jobs there are. None while the folder is away."""
        try:
            names = self._listed()
        except OSError:
            return None
        jobs = _unfinished(names)
        cancelled = frozenset(job for job in jobs if f"{job}.cancel" in names)
        opened = frozenset(job for job in jobs if f"{job}.open.json" in names)
        return Look(jobs, cancelled, opened)

    def running(self) -> JobIds:
        """Jobs with a plan and without an outcome, oldest first: those that need a writer."""
        names = self._names()
        jobs = (name[:-5] for name in names if _is_spec(name) and f"{name[:-5]}.plan.json" in names)
        return sorted(job for job in jobs if f"{job}.done.json" not in names)

    # -- files -----------------------------------------------------------------------------------

    def _names(self) -> set[str]:
        try:
            return self._listed()
        except FileNotFoundError:
            return set()

    def _listed(self) -> set[str]:
        return set(os.listdir(self.folder))  # noqa: PTH208 - names, many times a second

    def _path(self, job: str, kind: str) -> Path:
        return self.folder / f"{job}.{kind}"

    def _check_id(self, job: str) -> None:
        if not _ID.fullmatch(job):
            raise UsageError(f"{job!r} is no job id; `vnp list` shows the jobs that there are")

    def _read(self, job: str, kind: str, make: Callable[[dict[str, Any]], T]) -> T | None:
        """A job file as a value; None when there is none. Raises CorruptionError: damaged."""
        path = self._path(job, kind)
        try:
            return make(json.loads(path.read_bytes()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CorruptionError(f"{path} is damaged ({error}); remove it") from error


def _dump(values: dict[str, Any]) -> bytes:
    return json.dumps(values, indent=1, sort_keys=True).encode() + b"\n"


def _unfinished(names: set[str]) -> JobIds:
    jobs = (name[:-5] for name in names if _is_spec(name))
    return sorted(job for job in jobs if f"{job}.done.json" not in names)


def _is_spec(name: str) -> bool:
    return name.endswith(".json") and name.count(".") == 1 and not name.startswith(".")

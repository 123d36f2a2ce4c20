"""What users do with jobs: submit, cancel, retry, wait. Works on the state folder's files only."""

from __future__ import annotations

import getpass
import os
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import BinaryIO

from daemon.config import Config
from daemon.served import find_service
from ops.durable import describe_os_error, make_dir
from ops.errors import NoInputError, OutputError, UsageError
from ops.identity import Identity
from ops.jobs import CANCELLED, FAILED, InputFile, JobSpec, JobStore, new_job_id, utc_now
from ops.place import absolute, is_remote
from ops.runfile import find_same
from ops.source import check_readable

WAIT_POLL_S = 0.2
#: What systemd hides from the service (ProtectHome, PrivateTmp), whatever the modes say.
HIDDEN_FOLDERS = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")
#: What another user makes for the service, its group may read.
GROUP_UMASK = 0o027


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """What the command line asks for; paths as the user gave them."""

    inputs: tuple[str, ...]
    out: str | None = None
    pipeline: str = "virus"
    chunk_length: int | None = None
    embeddings: bool = False
    compat: bool = False
    priority: int = 0
    force: bool = False
    allow_chunk_length: bool = False
    same_numerics: bool = False
    min_length: int = 0
    max_ambiguous: int = 100
    strict: bool = False

    @property
    def stem(self) -> str:
        """The first input's name, without what follows a dot."""
        first = Path(self.inputs[0]).name if self.inputs[0] != "-" else "stdin"
        return first.split(".")[0]

    @property
    def out_name(self) -> str:
        """OUT, an absolute path or the URL of an object store; by default STEM.vnp in the current
        folder, after the first input."""
        return absolute(self.out if self.out is not None else f"{self.stem}.vnp")


def list_inputs(named: Sequence[str], files_from: str | None) -> tuple[str, ...]:
    """The inputs of a job: those named, then those of a list. Raises UsageError: there is none."""
    listed: list[str] = []
    if files_from is not None:
        try:
            data = sys.stdin.buffer.read() if files_from == "-" else Path(files_from).read_bytes()
            text = data.decode()
        except OSError as error:
            raise NoInputError(f"{files_from} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError:
            raise UsageError(
                f"{files_from} is no list of files: it is not text; name sequences without "
                "--files-from"
            ) from None
        listed = [line.strip() for line in text.splitlines() if line.strip()]
    inputs = (*named, *listed)
    if not inputs:
        raise UsageError("name FASTA files, or - for standard input, or give --files-from LIST")
    if inputs.count("-") + (files_from == "-") > 1:
        raise UsageError("standard input can be read once; name - only there")
    return inputs


def identity_of(config: Config, request: JobRequest) -> Identity:
    """What decides the values of what is asked. Raises UsageError, ConfigError."""
    if request.compat and request.pipeline != "virus":
        raise UsageError("--compat is for virus jobs; leave it out")
    if request.chunk_length is not None and request.pipeline != "virus":
        raise UsageError("--chunk-length is for virus jobs; leave it out")
    if request.max_ambiguous < 100 and request.pipeline == "protein":
        raise UsageError("--max-ambiguous counts letters of DNA; leave it out of protein jobs")
    return config.identity(
        request.pipeline,
        request.chunk_length,
        allow_chunk_length=request.allow_chunk_length,
        uracil_as_t=not request.compat,
        min_length=request.min_length,
        max_ambiguous=request.max_ambiguous,
    )


def submit(config: Config, request: JobRequest, *, to_other_user: bool = False) -> str:
    """Accepts a job durably and returns its id; the same request again returns the same id.

    to_other_user: the service is not ours. Inputs that it cannot read are copied into its spool,
    and without --out the results lie in its state folder, readable by its group.

    Raises NoInputError, UsageError, ConfigError, OutputError before anything is written.
    """
    identity = identity_of(config, request)
    store = JobStore(config.jobs_dir)
    job = new_job_id()
    out = request.out_name
    if to_other_user:
        os.umask(GROUP_UMASK)
        if request.out is None:
            out = str((config.jobs_dir / "results" / f"{request.stem}-{job}").absolute())
    if not is_remote(out) and Path(out).exists() and not Path(out).is_dir():
        raise OutputError(f"{out} is a file, not a folder; choose another --out")
    for path in request.inputs:  # all, before any is copied
        if path != "-":
            check_readable(Path(path).absolute())
    with _spooled(store, job, request.inputs, to_other_user) as inputs:
        spec = JobSpec(
            id=job,
            inputs=inputs,
            out=out,
            identity=identity,
            embeddings=request.embeddings or request.pipeline != "virus",
            compat=request.compat,
            priority=request.priority,
            force=request.force,
            allow_chunk_length=request.allow_chunk_length,
            same_numerics=request.same_numerics,
            strict=request.strict,
            user=_user(),
            embedding_width=config.embedding_width(request.pipeline),
        )
        same = None if request.force else find_same(store, spec)
        return same or store.create(spec)


@contextmanager
def _spooled(
    store: JobStore, job: str, paths: Sequence[str], to_other_user: bool
) -> Iterator[tuple[InputFile, ...]]:
    """The inputs as the service will read them. Copies go again when the block does not end well:
    nobody else would ever remove them, since no job names them."""
    spool = [store.spool_path(job, number) for number in range(len(paths))]
    try:
        yield tuple(map(_input, paths, spool, repeat(to_other_user)))
    except BaseException:  # Ctrl-C, too, while something large is copied
        with suppress(OSError):
            store.drop_spool(job, spool)
        raise


def _user() -> str:
    """The user's name, or their number where nothing knows the name, as in many containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _input(path: str, spool: Path, to_other_user: bool) -> InputFile:
    """The file itself, or a copy of what the service could not read when the job's turn comes."""
    source = Path(path).absolute()
    if path == "-":
        source = _spool(sys.stdin.buffer, spool.absolute())
    elif to_other_user and not _all_may_read(source):
        with source.open("rb") as stream:
            source = _spool(stream, spool.absolute())
    return _existing_input(source)


def _existing_input(path: Path) -> InputFile:
    """A file as it is now. Raises NoInputError."""
    check_readable(path)
    status = path.stat()
    return InputFile(str(path), status.st_size, status.st_mtime_ns)


def _all_may_read(path: Path) -> bool:
    """True when the modes of a file and its folders let every user read it."""
    real = path.resolve()
    hidden = any(real.is_relative_to(folder) for folder in HIDDEN_FOLDERS)
    try:
        return (
            not hidden
            and bool(real.stat().st_mode & stat.S_IROTH)
            and all(folder.stat().st_mode & stat.S_IXOTH for folder in real.parents)
        )
    except OSError:
        return False


def _spool(source: BinaryIO, path: Path) -> Path:
    """Copies a stream durably beside the job files; returns where."""
    try:
        make_dir(path.parent)
        with path.open("wb") as spool:
            shutil.copyfileobj(source, spool)
            spool.flush()
            os.fsync(spool.fileno())
    except OSError as error:
        raise describe_os_error(error, path) from error
    return path


def cancel(config: Config, jobs: Sequence[str]) -> None:
    """Asks for the end of jobs; says so of one that has ended already."""
    store = JobStore(config.jobs_dir)
    for job in jobs:
        store.spec(job)
    for job in jobs:
        if (outcome := store.outcome(job)) is not None:
            print(f"vnp: {job} has ended already: {outcome.state}", file=sys.stderr)
        store.cancel(job)


def retry(config: Config, job: str) -> str:
    """The same job again, after it failed or was cancelled; returns the new job's id.

    It goes on from what is committed. Raises UsageError for a job in another state, NoInputError
    for an input that is gone.
    """
    store = JobStore(config.jobs_dir)
    spec, state = store.spec(job), store.state(job)
    if state not in (FAILED, CANCELLED):
        raise UsageError(f"{job} is {state}; only failed and cancelled jobs can be retried")
    for source in spec.inputs:
        if Path(source.path).parent == store.spool_path(job).parent.absolute():
            raise NoInputError(f"{job} read a copy of its input that is gone; submit it again")
    inputs = tuple(_existing_input(Path(source.path)) for source in spec.inputs)
    find_service(config)
    force = spec.force and store.opened(job) is None  # what it cleared once stays cleared
    again = replace(
        spec, id=new_job_id(), created=utc_now(), inputs=inputs, user=_user(), force=force
    )
    return store.create(again)


def wait(config: Config, jobs: Sequence[str], tell: Callable[[str], None]) -> int:
    """Returns when all jobs have ended: the largest of their exit codes.

    tell: is told, a line each, which of them have not ended well, and why.

    Raises UnavailableError when the service ends before them.
    """
    store = JobStore(config.jobs_dir)
    for job in jobs:
        store.spec(job)
    codes = []
    for job in jobs:
        while (outcome := store.outcome(job)) is None:
            find_service(config)
            time.sleep(WAIT_POLL_S)
        if outcome.exit_code:
            tell(f"vnp: {job} {outcome.state}: {outcome.message}")
        codes.append(outcome.exit_code)
    return max(codes, default=0)

"""Where results lie that are asked for by a folder, a URL or a job's id; and of an id, whether what
lies there is that job's: its folder may hold an earlier job's files, or by now a later one's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from daemon.config import Config
from ops.errors import NoInputError
from ops.jobs import FINISHED, JobSpec, JobStore
from ops.manifest import MANIFEST
from ops.place import is_remote, place_of
from ops.runfile import is_result_of, read_run


def find_out(config: Config, name: str) -> str:
    """OUT of a job id, or of a folder or URL, whatever it holds. Raises NoInputError."""
    spec = _spec_of_id(config, name)
    return spec.out if spec is not None else name.rstrip("/")


def find_results(config: Config, name: str) -> str:
    """OUT with the results of a finished job; a folder or URL as it stands. Raises NoInputError for
    an id whose results are not there."""
    spec = _spec_of_id(config, name)
    if spec is None:
        return name.rstrip("/")
    store = JobStore(config.jobs_dir)
    outcome, run = store.outcome(spec.id), read_run(place_of(spec.out)) or {}
    # While a job waits, what is there is not what it was submitted for, even if it is alike.
    if (outcome or run.get("job") == spec.id) and is_result_of(
        run, spec, store.plan_or_none(spec.id)
    ):
        return spec.out
    if outcome is None or outcome.state != FINISHED:
        raise NoInputError(
            f"{name} has not finished; `vnp results --partial {name}` shows what is done"
        )
    raise _not_its_results(spec, run)


def find_begun(config: Config, name: str) -> str:
    """The same for a job that need not have finished, but must have begun to write."""
    spec = _spec_of_id(config, name)
    if spec is None:
        return name.rstrip("/")
    store, place = JobStore(config.jobs_dir), place_of(spec.out)
    plan, run = store.plan_or_none(spec.id), read_run(place) or {}
    if is_result_of(run, spec, plan) and store.outcome(spec.id):
        return spec.out
    if plan is None or store.opened(spec.id) is None:
        raise NoInputError(f"{name} has not begun to write; see `vnp status {name}`")
    try:
        header = place.manifest().header
    except FileNotFoundError:
        header = None
    ours = (spec.identity.digest, plan.input_digest)
    if header is None or (header.identity.digest, header.input_digest) != ours:
        raise _not_its_results(spec, run)
    return spec.out


def _not_its_results(spec: JobSpec, run: dict[str, Any]) -> NoInputError:
    if not run:
        return NoInputError(f"the results of {spec.id} are gone from {spec.out}; submit it again")
    return NoInputError(
        f"{spec.out} holds results of {run.get('job', 'another job')} by now; "
        f"submit {spec.id}'s inputs again, with another --out"
    )


def _spec_of_id(config: Config, name: str) -> JobSpec | None:
    """None for a folder or URL. Raises NoInputError for what is neither that nor an id."""
    if is_remote(name) or (Path(name) / MANIFEST).is_file():
        return None
    store = JobStore(config.jobs_dir)
    if name in store.list():
        return store.spec(name)
    raise NoInputError(f"{name} is neither a job nor an output folder; see `vnp list`")

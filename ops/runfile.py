"""OUT/run.json: the story of the run. The only file of a job whose bytes are not promised."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ops import __version__
from ops.errors import CorruptionError, IdentityError, NoInputError, UsageError
from ops.files import RUN
from ops.jobs import CANCELLED, FAILED, FINISHED, JobSpec, JobStore, Plan, utc_now
from ops.manifest import EpochLine
from ops.place import Place, place_of

FORMAT = 1
EX_SOME_FAILED = 1
_PACKAGES = ("torch", "numpy", "h5py", "tokenizers")


def describe_run(
    spec: JobSpec, plan: Plan, epochs: Sequence[EpochLine], numerics: Sequence[str]
) -> dict[str, Any]:
    """What is known of a run while it goes on."""
    identity = spec.identity
    return {
        "format": FORMAT,
        "state": "running",
        "job": spec.id,
        "trained": identity.trained,
        "identity": {**identity.to_dict(), "digest": identity.digest},
        **_question(spec),
        "input_digest": plan.input_digest,
        "records": plan.records,
        "letters": plan.letters,
        "shards": plan.shards,
        "shard_bases": plan.shard_bases,
        "shard_records": plan.shard_records,
        "versions": versions(),
        "submitted": spec.created,
        "started": epochs[0].time if epochs else utc_now(),
        "hosts": sorted({epoch.host for epoch in epochs}),
        "numerics": list(numerics),
        "gpus": [],
        # Every new writer but the first one, whatever had ended the one before.
        "interruptions_survived": max(0, len(epochs) - 1),
    }


def _question(spec: JobSpec) -> dict[str, Any]:
    """What was asked: parameters and inputs."""
    identity = spec.identity
    return {
        "parameters": {
            "pipeline": spec.pipeline,
            "chunk_length": spec.chunk_length,
            "embeddings": spec.keeps_embeddings,
            "compat": spec.compat,
            "allow_chunk_length": spec.allow_chunk_length,
            "same_numerics": spec.same_numerics,
            "strict": spec.strict,
            "min_length": identity.min_length,
            "max_ambiguous": identity.max_ambiguous,
        },
        "inputs": [vars(source) for source in spec.inputs],
    }


def is_finished(spec: JobSpec) -> bool:
    """True when OUT holds all that the job asks for, so that nothing needs to be computed.

    Told from the sizes of files, not from their bytes; `vnp verify` reads those.
    """
    place = place_of(spec.out)
    try:
        run = read_run(place) or {}
        manifest = place.manifest()
    except (CorruptionError, FileNotFoundError):
        return False
    if not _answers(run, spec):
        return False
    sizes = {name: facts["bytes"] for name, facts in run["files"].items()}
    sizes |= {line.file: line.bytes for line in manifest.shards.values()}
    whole = len(manifest.shards) == run["shards"]
    return whole and place.sizes(sizes) == sizes


def _answers(run: Mapping[str, Any], spec: JobSpec) -> bool:
    """True when a run has finished and was asked just what the job asks."""
    if run.get("state") != "finished" or run["identity"]["digest"] != spec.identity.digest:
        return False
    return all(run[key] == asked for key, asked in _question(spec).items())


def find_same(store: JobStore, spec: JobSpec) -> str | None:
    """The job that already does, or did, what is asked; None when it must be done (again).

    Only the last job for an output folder counts, since a later one may have replaced its files;
    and none that failed, was cancelled, or whose files are gone or, by run.json, another's.
    """
    job = store.last_for(spec.out)
    if job is None:
        return None
    try:
        other, state = store.spec(job), store.state(job)
        if state in (FAILED, CANCELLED) or other.out != spec.out or not spec.asks_the_same(other):
            return None
        lost = state == FINISHED and not _answers(read_run(place_of(spec.out)) or {}, spec)
    except (UsageError, CorruptionError, IdentityError, OSError):
        return None  # of another version of vnp, or not ours to read: nothing to rely on
    return None if lost else job


def is_result_of(run: Mapping[str, Any], spec: JobSpec, plan: Plan | None) -> bool:
    """True when a run has finished and its tables are those of the job: it was the job's own, or
    one of the same identity and input."""
    if run.get("state") != "finished":
        return False
    same = run["identity"]["digest"] == spec.identity.digest
    return run["job"] == spec.id or (
        same and plan is not None and run["input_digest"] == plan.input_digest
    )


def finished_run(place: Place) -> dict[str, Any]:
    """run.json of a finished job. Raises NoInputError: not finished, which is to say that its
    tables may be missing though all shards are committed; CorruptionError."""
    run = read_run(place)
    if run is None or run.get("state") != "finished":
        raise NoInputError(
            f"{place} is not finished; `vnp results --partial {place}` shows what is there"
        )
    return run


def exit_code(counts: Mapping[str, Any]) -> int:
    """Of a finished job with these counts: 1 when the models could not compute some records."""
    from ops.nouns import Status  # needs numpy, which clients have no use for

    failed = counts["statuses"].get(Status.FAILED.label, 0)
    return EX_SOME_FAILED if failed else 0


def versions() -> dict[str, str]:
    """Versions of what computes, read from the packages' metadata; nothing is imported."""
    found = {"vnp": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def encode_run(run: Mapping[str, Any]) -> bytes:
    return json.dumps(run, indent=2).encode() + b"\n"


def read_run(place: Place) -> dict[str, Any] | None:
    """run.json as written; None when there is none. Raises CorruptionError: damaged."""
    try:
        run: dict[str, Any] = json.loads(place.read(RUN))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CorruptionError(
            f"{place.path(RUN)} is damaged ({error}); run the job again"
        ) from error
    return run

"""OUT/run.json: the story of the run. The only file of a job whose bytes are not promised."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ops import __version__
from ops.errors import CorruptionError, NoInputError
from ops.files import RUN
from ops.jobs import JobSpec, Plan, utc_now
from ops.manifest import EpochLine
from ops.nouns import Status
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
    if run.get("state") != "finished" or run["identity"]["digest"] != spec.identity.digest:
        return False
    sizes = {name: facts["bytes"] for name, facts in run["files"].items()}
    sizes |= {line.file: line.bytes for line in manifest.shards.values()}
    question = _question(spec)
    same = all(run[key] == asked for key, asked in question.items())
    whole = len(manifest.shards) == run["shards"]
    return same and whole and place.sizes(sizes) == sizes


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

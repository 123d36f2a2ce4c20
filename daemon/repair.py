"""`vnp verify --repair`: what is damaged is taken back, and the job computes it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from daemon.client import JobRequest
from daemon.config import Config
from daemon.find import find_out
from daemon.run import run_foreground
from daemon.show import plural, verify
from ops.errors import CorruptionError, UsageError
from ops.files import RUN
from ops.place import is_remote, place_of
from ops.repair import repair_output
from ops.runfile import EX_SOME_FAILED, read_run


def repair(config: Config, name: str) -> int:
    """Repairs an output folder and checks it; returns the exit code of `vnp verify`."""
    named = find_out(config, name)
    if is_remote(named):
        raise UsageError(f"{named} is no folder; compute it anew with --force")
    out = Path(named)
    found = repair_output(out)
    for problem in found.problems:
        click.echo(f"vnp: {problem}", err=True)
    if found.needed:
        lost = f"{plural(len(found.shards), 'shard')} of {out} to compute again"
        click.echo(f"vnp: {lost}", err=True)
        run = read_run(place_of(out))
        if run is None:
            raise CorruptionError(f"{out / RUN} is lost; run the command of the job again")
        code = run_foreground(
            config_of(config, run), request_of(out, run), Console(stderr=True), Console(), False
        )
        if code not in (0, EX_SOME_FAILED):
            return code
    return verify(config, name)


#: Of runs since they exist.
FILTERS = ("min_length", "max_ambiguous")


def request_of(out: Path, run: dict[str, Any]) -> JobRequest:
    """What was asked of the job that wrote a run.json."""
    asked = run["parameters"]
    virus = asked["pipeline"] == "virus"
    return JobRequest(
        inputs=tuple(source["path"] for source in run["inputs"]),
        out=str(out),
        pipeline=asked["pipeline"],
        chunk_length=asked["chunk_length"] if virus else None,
        embeddings=asked["embeddings"],
        compat=asked["compat"],
        allow_chunk_length=asked["allow_chunk_length"],
        same_numerics=asked["same_numerics"],
        **{name: asked[name] for name in ("strict", *FILTERS) if name in asked},
    )


def config_of(config: Config, run: dict[str, Any]) -> Config:
    """The configuration with the models, limits and cut of that job; the device is ours."""
    identity = run["identity"]
    names = {"esm2": "esm2_name", "dnabert": "dnabert_s_name", "classifier": "classifier_name"}
    models = {kind: identity[key] for kind, key in names.items() if identity.get(key)}
    limits = {name: run[name] for name in ("shard_bases", "shard_records")}
    same = {name: identity[name] for name in ("dtype", "max_tokens")}
    return config.changed(**models, **limits, **same)

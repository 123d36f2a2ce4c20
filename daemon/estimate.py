"""`--dry-run`: what a job would be, counted and estimated before anything is computed.

Records, letters, chunks and shards are counted exactly. Frames and tokens are counted in at most
SAMPLE shards, spread over the input, and scaled by chunks; a smaller job is counted whole. The time
comes from the newest job with these models that this state folder has finished.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from daemon.client import JobRequest, identity_of
from daemon.config import Config
from daemon.show import duration
from ops.cut import CutParams, cut_shards, plan_input
from ops.dna_tokens import DnaTokenizer
from ops.errors import UsageError, VnpError
from ops.identity import Identity
from ops.jobs import FINISHED, InputFile, JobSpec, JobStore, Plan
from ops.modelstore import tokenizer_path
from ops.output import estimate_bytes, size_in_words
from ops.packing import Budgets
from ops.prepare import prepare
from ops.runfile import read_run

SAMPLE = 8


def estimate(config: Config, request: JobRequest) -> dict[str, Any]:
    """Counts and estimates; seconds: None when no job has been measured here.

    Raises what a submit would: UsageError, ConfigError, NoInputError, DataError.
    """
    identity = identity_of(config, request)
    if "-" in request.inputs:
        raise UsageError("standard input can be read once; save it to a file for --dry-run")
    params = CutParams.of(
        identity,
        job="",
        keep_embeddings=request.embeddings,
        shard_bases=config.shard_bases,
        shard_records=config.shard_records,
        strict=request.strict,
    )
    paths = [Path(path) for path in request.inputs]
    scan = plan_input(paths, params)
    for _ in scan:
        pass
    plan = scan.result
    frames, tokens, exact = _count_frames(config, paths, params, plan)
    rate = _measured_rate(config, identity)
    return {
        "records": plan.records,
        "letters": plan.letters,
        "ambiguous_letters": plan.ambiguous,
        "chunks": plan.chunks,
        "shards": plan.shards,
        "frames": frames,
        "tokens": tokens,
        "exact": exact,
        "disk_bytes": _disk_bytes(config, request, identity, plan),
        "frames_per_s": rate,
        "seconds": round(frames / rate, 1) if rate else None,
    }


def _count_frames(
    config: Config, paths: list[Path], params: CutParams, plan: Plan
) -> tuple[int, int, bool]:
    """Frames (records in protein and dna jobs), tokens of both models, and whether all count."""
    step = max(1, -(-plan.shards // SAMPLE))
    tokenizer = None
    if params.pipeline != "protein":
        tokenizer = DnaTokenizer(tokenizer_path(config.cards["dnabert"].path))
    frames = tokens = units = 0
    for task in cut_shards(paths, params, plan.huge_lengths, lambda shard: shard % step != 0):
        budgets = Budgets(*config.budgets, config.max_rows)
        batches, account = prepare(task, tokenizer, budgets, config.max_tokens)
        frames += len(account.row_record)
        units += len(account.chunk)
        for batch in batches:
            both = (batch.esm_tokens, batch.dna_tokens)
            tokens += sum(len(column.data) for column in both if column is not None)
    total = plan.chunks if params.pipeline == "virus" else plan.records
    scale = total / units if step > 1 and units else 1.0
    return round(frames * scale), round(tokens * scale), step == 1


def _disk_bytes(config: Config, request: JobRequest, identity: Identity, plan: Plan) -> int:
    spec = JobSpec(
        id="dry-run",
        inputs=(InputFile("", 0, 0),),
        out=str(request.out_path),
        identity=identity,
        embeddings=request.embeddings,
        embedding_width=config.embedding_width(request.pipeline),
    )
    return estimate_bytes(spec, plan)


def _measured_rate(config: Config, identity: Identity) -> float | None:
    """Frames a second, from start to end, of the newest finished job with these models."""
    store = JobStore(config.jobs_dir)
    for job in reversed(store.list()):
        try:
            spec = store.spec(job)
            if store.state(job) != FINISHED or not spec.identity.served_by(identity):
                continue
            run = read_run(Path(spec.out)) or {}
            start, end = (datetime.fromisoformat(run[key]) for key in ("started", "finished"))
            seconds = (end - start).total_seconds()
            frames: int = run["counts"]["frames"]
            if frames and seconds > 0:
                return round(frames / seconds, 1)
        except (VnpError, KeyError, ValueError):  # of another version, or its folder is gone
            continue
    return None


def show_estimate(config: Config, request: JobRequest, as_json: bool) -> None:
    """Prints it; the exact counts and what is estimated are told apart."""
    facts = estimate(config, request)
    if as_json:
        click.echo(json.dumps(facts))
        return
    about = "" if facts["exact"] else "about "
    virus = request.pipeline == "virus"
    lines = {
        "records": f"{facts['records']:,}",
        "letters": f"{facts['letters']:,}, of which {facts['ambiguous_letters']:,} ambiguous",
        "chunks": f"{facts['chunks']:,}" if virus else "",
        "shards": f"{facts['shards']:,}",
        "frames" if virus else "rows": f"{about}{facts['frames']:,}",
        "tokens": f"{about}{facts['tokens']:,}",
        "disk": f"about {size_in_words(facts['disk_bytes'])}",
        "time": _time_in_words(facts),
    }
    for name, text in lines.items():
        if text:
            click.echo(f"{name:<10} {text}")


def _time_in_words(facts: dict[str, Any]) -> str:
    if facts["seconds"] is None:
        return "unknown: no job with these models has finished here"
    rate = f"{facts['frames_per_s']:,.0f}"
    return f"about {duration(facts['seconds'])}, at the {rate} frames a second of the last job"

"""`vnp verify --recompute N`: some shards of a finished job, computed again and compared.

On the same kind of device and versions (the same numerics hash) a shard must come out byte for
byte. Elsewhere its numbers are compared, and how far they are apart is said.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np

from daemon.config import Config
from daemon.find import find_out
from daemon.repair import config_of
from ops.cut import CutParams, cut_shards, plan_input
from ops.dna_tokens import DnaTokenizer
from ops.engine import Engine
from ops.errors import CorruptionError
from ops.files import RUN
from ops.finish import read_shard_of
from ops.gather import ShardGather
from ops.identity import Identity
from ops.manifest import ManifestState
from ops.modelstore import TOKENIZER
from ops.nouns import ShardTask
from ops.packing import Budgets
from ops.place import Place, place_of
from ops.prepare import prepare
from ops.runfile import read_run
from ops.shardfile import build_shard
from workers.gpu import engine_spec
from workers.settings import WorkerSettings

EX_IOERR = 74


class Found(NamedTuple):
    """A shard that was computed again. difference: largest of any score or embedding; 0.0 for the
    same bytes."""

    shard: int
    is_promised: bool
    difference: float


def recompute(config: Config, name: str, count: int) -> int:
    """Computes `count` shards of an output folder again, evenly spread; returns the exit code."""
    out = find_out(config, name)
    place = place_of(out)
    run, state = read_run(place), place.manifest()
    if run is None or state.header is None:
        raise CorruptionError(f"{place.path(RUN)} is lost; `vnp verify` checks the rest")
    settings = config_of(config, run).worker_settings("")
    numbers = sorted(state.shards)
    picked = np.linspace(0, len(numbers) - 1, min(count, len(numbers))).round().astype(int)
    sample = {numbers[i] for i in picked.tolist()}
    engine = Engine(engine_spec(settings))
    identity = state.header.identity
    compute = shard_computer(engine, settings, identity)
    bad = 0
    for task in _tasks(run, identity, settings, sample):
        found = compare(place, state, compute(task), identity, engine.numerics)
        bad += found.is_promised and found.difference != 0
        same = "the same bytes" if found.difference == 0 else f"up to {found.difference:.2g} apart"
        numerics = "the same numerics" if found.is_promised else "other numerics"
        click.echo(f"shard {found.shard}: {same}, {numerics}")
    return EX_IOERR if bad else 0


def shard_computer(
    engine: Engine, settings: WorkerSettings, identity: Identity
) -> Callable[[ShardTask], ShardGather]:
    """Packer, gpu worker and writer in one, without Redis and without a disk."""
    needs_dna = identity.pipeline != "protein"
    folder = settings.dnabert
    tokenizer = DnaTokenizer(Path(folder) / TOKENIZER) if needs_dna and folder else None
    budgets = Budgets(settings.esm_budget, settings.dna_budget, settings.max_rows)

    def compute(task: ShardTask) -> ShardGather:
        batches, account = prepare(task, tokenizer, budgets, settings.max_tokens)
        gather = ShardGather(task.job, task.shard)
        gather.add(account)
        for batch in batches:
            gather.add(engine.compute(batch))
        return gather

    return compute


def compare(
    place: Place, state: ManifestState, gather: ShardGather, identity: Identity, numerics: str
) -> Found:
    """A computed shard beside the committed one."""
    line = state.shards[gather.shard]
    is_promised = line.numerics in ((numerics,), ())
    image = build_shard(gather.account, gather.rows(), identity)
    if hashlib.sha256(image).hexdigest() == line.sha256:
        return Found(line.shard, is_promised, 0.0)
    theirs, ours = read_shard_of(place, line.file).rows, gather.rows()
    differences = [
        float(np.nanmax(np.abs(a - b), initial=0.0))
        for a, b in (
            (getattr(theirs, n), getattr(ours, n)) for n in ("scores", "esm2", "dnabert_s")
        )
        if a is not None and b is not None
    ]
    return Found(line.shard, is_promised, max(differences, default=0.0) or float("inf"))


def _tasks(
    run: dict[str, object], identity: Identity, settings: WorkerSettings, sample: set[int]
) -> Iterator[ShardTask]:
    asked = run["parameters"]
    sources = run["inputs"]
    assert isinstance(asked, dict)
    assert isinstance(sources, list)
    params = CutParams.of(
        identity,
        job="",
        keep_embeddings=bool(asked["embeddings"]) or identity.pipeline != "virus",
        shard_bases=settings.shard_bases,
        shard_records=settings.shard_records,
    )
    paths = [Path(source["path"]) for source in sources]
    scan = plan_input(paths, params)
    for _ in scan:
        pass
    skip = set(range(scan.result.shards)) - sample
    yield from cut_shards(paths, params, scan.result.huge_lengths, skip.__contains__)

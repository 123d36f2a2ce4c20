"""The commands about models: `vnp bench`, `vnp train`, `vnp models`."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import click

from daemon.options import Commands, OneOf, config_option, json_option, load_config


@click.group(cls=Commands)
def bench() -> None:
    """Measures what this machine gives."""


@bench.command("gpu")
@click.argument("genomes", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--sizes", default="3B,650M", show_default=True, help="ESM-2 sizes, with commas.")
@click.option("--dtypes", default="bf16,fp8", show_default=True)
@click.option(
    "--arms",
    default="original,transformers,products,model,varlen,engine,service,dnabert",
    show_default=True,
)
@click.option("--fragments", default=150_000, show_default=True, help="Of 500 bp, for the service.")
@click.option("--seconds", default=20.0, show_default=True, help="Roughly, per arm.")
@click.option(
    "--devices",
    default="1",
    show_default=True,
    help="Numbers of GPUs for the service, in turn: 1,2.",
)
@click.option("--folder", type=click.Path(path_type=Path), default=Path("vnp-bench"))
def bench_gpu(
    genomes: tuple[Path, ...],
    sizes: str,
    dtypes: str,
    arms: str,
    fragments: int,
    seconds: float,
    devices: str,
    folder: Path,
) -> None:
    """Compares, with random weights of true shapes, the original's way, others, and ours.

    GENOMES are FASTA files that fragments are sampled from. Figures go to standard output as JSON,
    a line per arm to standard error.
    """
    from daemon.bench import run as run_bench

    chosen = sizes.split(","), dtypes.split(","), arms.split(",")
    say = partial(click.echo, err=True)
    counts = _numbers(devices)
    rows = run_bench(folder, genomes, *chosen, fragments, seconds, say, counts)
    click.echo(json.dumps(rows, indent=1))


def _numbers(text: str) -> list[int]:
    """--devices: "1,2" -> [1, 2]."""
    numbers = [int(part) for part in text.split(",") if part.isdigit() and int(part) > 0]
    if len(numbers) != text.count(",") + 1:
        raise click.BadParameter("give numbers from 1, with commas", param_hint="--devices")
    return numbers


@click.group(cls=Commands)
def train() -> None:
    """Trains models of your own."""


class ManyValues(click.Command):
    """Lets --virus and --other take several files: --virus A.fa B.fa, as a shell expands *.fa."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        expanded: list[str] = []
        many = ""
        for value in args:
            if value.startswith("-"):
                many = value if value in ("--virus", "--other") else ""
            elif many and expanded[-1] != many:
                expanded.append(many)
            expanded.append(value)
        return super().parse_args(ctx, expanded)


@train.command("classifier", cls=ManyValues)
@click.option(
    "--virus",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="FASTA files of viruses, one or more.",
)
@click.option(
    "--other",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="FASTA files of everything else.",
)
@click.option("--name", required=True, help="What to call the classifier.")
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    help="Table of id, group (family, phylum) and, if you have them, split (train, valid, test).",
)
@click.option("--models", "encoders", help="esm2=NAME,dnabert-s=NAME; default: those in use.")
@click.option("--chunk-length", type=click.IntRange(min=150), default=500, show_default=True)
@click.option("--fragments", type=click.IntRange(min=100), default=40_000, show_default=True)
@click.option(
    "--test-fragments",
    type=click.IntRange(min=1),
    default=300,
    show_default=True,
    help="Of each group and length.",
)
@click.option("--width", type=click.IntRange(min=1), default=512, show_default=True)
@click.option(
    "--rate",
    type=click.FloatRange(0, 1, True),
    default=1e-3,
    show_default=True,
    help="Learning rate.",
)
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True)
@click.option("--device", help="cpu, cuda or cuda:N.")
@click.option("--dtype", type=OneOf(["fp32", "fp16", "bf16"]))
@config_option
def train_classifier(
    config_file: Path | None,
    state_dir: Path | None,
    encoders: str | None,
    device: str | None,
    dtype: str | None,
    **options: Any,
) -> int:
    """Trains a classifier on genomes, and measures it on groups that it has not seen."""
    from rich.console import Console

    flags = {"device": device, "dtype": dtype, "state_dir": state_dir, **_encoders(encoders)}
    config = load_config(config_file, **flags)
    from daemon.train import run_training

    return run_training(config, options, Console(stderr=True))


def _encoders(text: str | None) -> dict[str, str]:
    """--models as settings: "esm2=A,dnabert-s=B" -> {"esm2": "A", "dnabert": "B"}."""
    settings = {}
    for part in text.split(",") if text else ():
        kind, _, name = part.partition("=")
        if kind not in ("esm2", "dnabert-s") or not name:
            raise click.BadParameter("give esm2=NAME,dnabert-s=NAME", param_hint="--models")
        settings[kind.removesuffix("-s")] = name
    return settings


@click.group(cls=Commands)
def models() -> None:
    """Lists, downloads, imports and checks models."""


@models.command("list")
@json_option
@config_option
def list_models(as_json: bool, config_file: Path | None, state_dir: Path | None) -> None:
    """Lists the models that can be named."""
    from daemon import show

    show.models(load_config(config_file, state_dir=state_dir), as_json)


@models.command("import")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="What to call it.")
@click.option(
    "--chunk-length", type=click.IntRange(min=3), help="Of a classifier: bases it was trained for."
)
@config_option
def import_model(
    path: Path,
    name: str,
    chunk_length: int | None,
    config_file: Path | None,
    state_dir: Path | None,
) -> None:
    """Imports published weights: fair-esm .pt, a Hugging Face folder, a classifier .pth."""
    from ops.weights import import_model as do_import

    config = load_config(config_file, state_dir=state_dir)
    card = do_import(path, name, config.models_dir, chunk_length=chunk_length)
    click.echo(f"{card.name}\t{card.kind}\t{card.digest}")


@models.command("download")
@click.argument("model", metavar="MODEL")
@click.option("--name", help="What to call it (default: MODEL, when that is a short name).")
@click.option("--revision", default="", help="A commit, tag or branch (default: as published).")
@config_option
def download_model(
    model: str, name: str | None, revision: str, config_file: Path | None, state_dir: Path | None
) -> None:
    """Downloads a published model from the Hugging Face hub and imports it.

    MODEL: esm2-3B, esm2-650M, ..., dnabert-s, or OWNER/REPOSITORY. An interrupted download goes on.
    HF_HUB_OFFLINE=1 uses what is in the cache.
    """
    from ops.download import download_model as fetch

    config = load_config(config_file, state_dir=state_dir)
    called = name or model.rpartition("/")[2].lower()
    card = fetch(model, called, config.models_dir, revision=revision)
    click.echo(f"{card.name}\t{card.kind}\t{card.digest}")


@models.command("verify")
@click.argument("names", nargs=-1)
@click.option("--golden", is_flag=True, help="Compare real weights with the original's embeddings.")
@click.option("--device", default="cpu", show_default=True)
@config_option
def verify_models(
    names: tuple[str, ...],
    golden: bool,
    device: str,
    config_file: Path | None,
    state_dir: Path | None,
) -> int:
    """Reads model files again and checks their digests; without NAMES, of all models."""
    from daemon import show

    return show.verify_models(
        load_config(config_file, state_dir=state_dir), names, device if golden else None
    )


COMMANDS = (bench, train, models)

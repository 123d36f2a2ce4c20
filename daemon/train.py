"""`vnp train classifier`: what is asked, checked and told; `ops.train.training` does the work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from daemon.config import Config
from ops.errors import ConfigError, OutputError
from ops.modelstore import ModelCard, find_model, tokenizer_path
from ops.nouns import I64

try:
    import sklearn  # noqa: F401
except ImportError as error:
    raise ConfigError("training needs scikit-learn; install vnp[train]") from error

from ops.dna_tokens import DnaTokenizer
from ops.engine import Engine, EngineSpec
from ops.train.features import Embedder, Features
from ops.train.fit import Recipe
from ops.train.labelled import read_labelled
from ops.train.overlap import check_overlap
from ops.train.training import (
    Data,
    TrainRequest,
    begin_report,
    fit_best,
    measure_tests,
    write_classifier,
)
from ops.weights import NAME


def run_training(config: Config, options: Mapping[str, Any], console: Console) -> int:
    """The command: its options as they come from the command line; returns the exit code."""
    recipe = Recipe(width=options["width"], rate=options["rate"], seed=options["seed"])
    names = ("virus", "other", "labels", "name", "chunk_length", "fragments")
    given = {name: options[name] for name in names}
    request = TrainRequest(**given, per_group=options["test_fragments"], recipe=recipe)
    return train_classifier(config, request, console)


def train_classifier(config: Config, request: TrainRequest, console: Console) -> int:
    """Trains, measures, and writes the model folder with its report; returns the exit code."""
    folder = config.models_dir / request.name
    _check_request(request, folder)
    names = {"esm2": config.esm2, "dnabert": config.dnabert}
    cards = {kind: find_model(name, kind, [config.models_dir]) for kind, name in names.items()}
    data = Data(read_labelled(request.virus, request.other, request.labels, request.recipe.seed))
    check_overlap(data.genomes)
    _tell(console, f"{len(data.genomes):,} genomes, {sum(map(len, data.letters)):,} bases")
    embedder = _embedder(config, cards)
    with _progress(console) as progress:
        embed = _Embed(data, embedder, request.chunk_length, progress)
        fitted, training = fit_best(data, embed, request)
        report = begin_report(request, cards, data, training, embedder.engine.facts)
        measure_tests(data, embed, request, fitted, report)
    card = write_classifier(folder, request, cards, fitted["both"], report)
    _tell(console, f"{card.name} is in {folder}, its report in {folder / 'report.md'}")
    print(_summary(report))
    return 0


def _check_request(request: TrainRequest, folder: Path) -> None:
    if not NAME.fullmatch(request.name):
        raise ConfigError(
            f"model name {request.name!r}: use letters, digits, dot, dash, underscore"
        )
    if folder.exists():
        raise OutputError(f"{folder} exists already; choose another --name or remove it")


def _tell(console: Console, message: str) -> None:
    console.print(f"vnp: {message}", highlight=False, markup=False, soft_wrap=True)


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console)


def _embedder(config: Config, cards: dict[str, ModelCard]) -> Embedder:
    spec = EngineSpec(
        esm2=cards["esm2"].path,
        dnabert=cards["dnabert"].path,
        device=config.devices[0],
        dtype=config.resolved_dtype,
        attention=config.attention,
        esm_budget=config.budgets[0],
        dna_budget=config.budgets[1],
        max_rows=config.max_rows,
        threads=config.threads,
    )
    tokenizer = DnaTokenizer(tokenizer_path(cards["dnabert"].path))
    return Embedder(Engine(spec), tokenizer, config.max_tokens)


@dataclass(frozen=True, eq=False)
class _Embed:
    """Features of fragments, with a progress bar."""

    data: Data
    embedder: Embedder
    chunk_length: int
    progress: Progress

    def __call__(self, fragments: I64, what: str) -> Features:
        bar = self.progress.add_task(f"{what}, bases", total=int(fragments[:, 2].sum()))
        advance: Callable[[int], None] = lambda bases: self.progress.advance(bar, bases)  # noqa: E731
        return self.embedder.features(self.data.letters, fragments, self.chunk_length, advance)


def _summary(report: dict[str, Any]) -> str:
    lines = ["fragment\tgroups\tauroc\tsensitivity_at_5\tkmer_auroc"]
    for length, cell in report["lengths"].items():
        for side, figures in cell.items():
            both, kmer = figures["both"], figures["kmer"]
            values = [both["auroc"], both["sensitivity_at_5"], kmer["auroc"]] if both else []
            cells = [f"{value[0]:.4f}" for value in values] or ["NA"] * 3
            lines.append("\t".join((length, side.removesuffix("_groups"), *cells)))
    return "\n".join(lines)

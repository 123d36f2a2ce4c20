"""Model folders: what a model is, where it lies, and whether models fit each other.

A model is a folder with `config.json`, `model.safetensors` and, for DNABERT-S, `tokenizer.json`.
This module reads configurations only; it never loads weights and imports no tensor library.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ops.errors import ConfigError, CorruptionError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
FORMAT = "vnp-model-1"
KINDS = ("esm2", "dnabert", "classifier")

#: Small models that ship with the project, trained on public genomes (docs/vnp-small.md).
BUNDLED = Path(__file__).parent / "bundled"
DEFAULT_NAMES = {kind: f"vnp-small-{kind}" for kind in KINDS}

#: What decides values beside the weights; names and provenance stay outside the digest.
DECIDING = (
    "kind",
    "width",
    "layers",
    "heads",
    "ffn",
    "vocab",
    "token_dropout",
    "chunk_length",
    "input_widths",
)


@dataclass(frozen=True)
class ModelCard:
    """What is known of a model without loading it.

    width: of one embedding, or of the classifier's hidden layer. layers and heads: 0 in a
    classifier. chunk_length (bases), input_widths (DNABERT-S, ESM-2) and encoders (digests of the
    models whose embeddings it was trained on, by kind; empty when not known): classifiers only.
    note: what a user should know of it, in a few words.
    """

    name: str
    kind: str  # one of KINDS
    path: Path
    width: int
    layers: int
    heads: int
    digest: str  # "sha256:..." of weights, tokenizer and every setting that decides values
    trained: bool
    source: str
    chunk_length: int | None = None
    input_widths: tuple[int, int] | None = None
    encoders: tuple[tuple[str, str], ...] = ()
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "path": str(self.path)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelCard:
        """From JSON, which knows neither paths nor tuples."""
        widths = values["input_widths"]
        return cls(
            **{
                **values,
                "path": Path(values["path"]),
                "input_widths": None if widths is None else tuple(widths),
                "encoders": tuple((kind, digest) for kind, digest in values["encoders"]),
            }
        )


def find_model(name_or_path: str | Path, kind: str, search: Sequence[Path] = ()) -> ModelCard:
    """The model of that name (first in `search`, then among the bundled) or in that folder.

    Raises ConfigError when there is none, it has no weights, or it is of another kind.
    """
    folder = _find_folder(str(name_or_path), search)
    if folder is None:
        known = ", ".join(c.name for c in list_models(search) if c.kind == kind) or "none"
        raise ConfigError(
            f"no {kind} model named {name_or_path}; known: {known}; "
            "import one with `vnp models import PATH --name NAME`"
        )
    card = read_card(folder)
    if card.kind != kind:
        raise _wrong_kind(card, kind)
    return card


def _wrong_kind(card: ModelCard, kind: str) -> ConfigError:
    return ConfigError(f"{card.path} holds a model of kind {card.kind}, where {kind} is needed")


def _find_folder(name: str, search: Sequence[Path]) -> Path | None:
    if "/" in name or name in (".", ".."):
        return Path(name) if Path(name).is_dir() else None
    candidates = [root / name for root in (*search, BUNDLED)]
    return next((folder for folder in candidates if folder.is_dir()), None)


def list_models(search: Sequence[Path] = ()) -> list[ModelCard]:
    """All usable models: those of `search` in order, then the bundled; a name's first one wins."""
    cards: dict[str, ModelCard] = {}
    for root in (*search, BUNDLED):
        for config in sorted(root.glob(f"*/{CONFIG}")):
            try:
                card = read_card(config.parent)
            except ConfigError:
                continue  # half an import, or another program's model
            cards.setdefault(card.name, card)
    return list(cards.values())


def read_card(folder: Path) -> ModelCard:
    """The card of one model folder; ConfigError when it is not a complete imported model."""
    config = read_config(folder)
    if not (folder / WEIGHTS).is_file():
        raise ConfigError(
            f"model folder {folder} has no weights ({WEIGHTS}); import the model again"
        )
    try:
        return _card(folder, config)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{folder / CONFIG} is not a model configuration ({error!r}); import the model again"
        ) from error


def _card(folder: Path, config: dict[str, Any]) -> ModelCard:
    widths = config.get("input_widths")
    card = ModelCard(
        name=folder.name,
        kind=config["kind"],
        path=folder.resolve(),
        width=int(config["width"]),
        layers=int(config.get("layers", 0)),
        heads=int(config.get("heads", 0)),
        digest=str(config["digest"]),
        trained=bool(config["trained"]),
        source=str(config["source"]),
        chunk_length=config.get("chunk_length"),
        input_widths=None if widths is None else (int(widths[0]), int(widths[1])),
        encoders=tuple(sorted((str(k), str(v)) for k, v in config.get("encoders", {}).items())),
        note=str(config.get("note", "")),
    )
    if card.kind not in KINDS:
        raise ValueError(f"kind {card.kind}")
    return card


def read_config(folder: Path) -> dict[str, Any]:
    """A model folder's config.json; ConfigError when it is missing or not vnp's."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"model folder {folder} has no {CONFIG}, and so no model; import one with "
            "`vnp models import PATH --name NAME`"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / CONFIG} cannot be read: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ConfigError(
            f"{folder} is not an imported model; run `vnp models import {folder} --name NAME` first"
        )
    return config


def tokenizer_path(folder: Path) -> Path:
    """The tokenizer.json of a DNABERT-S model folder; ConfigError when it is missing."""
    path = folder / TOKENIZER
    if not path.is_file():
        raise ConfigError(f"model folder {folder} has no {TOKENIZER}; import the model again")
    return path


def weights_digest(folder: Path, config: dict[str, Any]) -> str:
    """sha256 over all that decides a model's values: settings, tokenizer and weights.

    Each part goes in with its length, so that no two folders share a digest by moving a border.
    """
    settings = json.dumps({k: config[k] for k in DECIDING if k in config}, sort_keys=True).encode()
    total = hashlib.sha256(struct.pack("<Q", len(settings)) + settings)
    for path in (folder / TOKENIZER, folder / WEIGHTS):
        if path.is_file():
            total.update(struct.pack("<Q", path.stat().st_size))
            with path.open("rb") as stream:
                while piece := stream.read(1 << 20):
                    total.update(piece)
    return f"sha256:{total.hexdigest()}"


def verify_model(card: ModelCard) -> None:
    """Reads all of a model's files; CorruptionError when they are not those that were imported."""
    found = weights_digest(card.path, read_config(card.path))
    if found != card.digest:
        raise CorruptionError(
            f"model {card.name} in {card.path} is damaged: its digest is {found}, "
            f"its card says {card.digest}; import it again"
        )


def check_fit(
    classifier: ModelCard, dnabert: ModelCard, esm2: ModelCard, chunk_length: int | None = None
) -> None:
    """ConfigError unless the classifier was made for these models (and chunks of that length)."""
    for kind, card in (("esm2", esm2), ("dnabert", dnabert), ("classifier", classifier)):
        if card.kind != kind:
            raise _wrong_kind(card, kind)
    if classifier.input_widths != (dnabert.width, esm2.width):
        wanted = classifier.input_widths or ("?", "?")
        raise ConfigError(
            f"classifier {classifier.name} takes embeddings of widths {wanted[0]} (DNABERT-S) and "
            f"{wanted[1]} (ESM-2), but {dnabert.name} gives {dnabert.width} and {esm2.name} gives "
            f"{esm2.width}; choose models that belong together"
        )
    for kind, digest in classifier.encoders:
        given = {"esm2": esm2, "dnabert": dnabert}[kind]
        if given.digest != digest:
            raise ConfigError(
                f"classifier {classifier.name} was trained with another {kind} model "
                f"({digest[:19]}) than {given.name} ({given.digest[:19]}); choose models that "
                "belong together"
            )
    if chunk_length is not None and classifier.chunk_length not in (None, chunk_length):
        raise ConfigError(
            f"classifier {classifier.name} was made for chunks of {classifier.chunk_length} bases, "
            f"not {chunk_length}; use --chunk-length {classifier.chunk_length}, or "
            "--allow-chunk-length if you know what you do"
        )

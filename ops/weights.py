"""Importing published weights: every known format becomes one folder of safetensors.

Nothing from outside is executed: pickles are read with `torch.load(weights_only=True)` or, for the
original's pickled classifier, by `ops.inert_pickle`, which rebuilds tensors and runs nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import shutil
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ops import checkpoints
from ops.errors import ConfigError, NoInputError, OutputError
from ops.inert_pickle import load_inert
from ops.modelstore import CONFIG, FORMAT, WEIGHTS, ModelCard, read_card, weights_digest

Tensors = Mapping[str, Tensor]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
INDEX = "model.safetensors.index.json"
#: ESM-2 3B is published in two pickles, and in no other form.
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


def import_model(
    path: Path,
    name: str,
    dest: Path,
    *,
    chunk_length: int | None = None,
    source: str | None = None,
) -> ModelCard:
    """Converts the model at `path` into the folder dest/name and returns its card.

    Takes a fair-esm `.pt`, a Hugging Face folder of ESM-2, a DNABERT-2 or DNABERT-S folder, and an
    original VirNucPro classifier `.pth`, whose chunk length is read from its name (500_model.pth)
    unless given. source: where it comes from (default: the path's name). The new folder appears
    whole or not at all. Raises NoInputError, ConfigError when the format is not known or the
    weights are not complete, OutputError when the name is taken.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(f"model name {name!r}: use letters, digits, dot, dash and underscore")
    if (dest / name).exists():
        raise OutputError(f"{dest / name} exists already; choose another --name or remove it")
    if not path.exists():
        raise NoInputError(f"{path} does not exist")
    settings, tensors, files = _convert(path, chunk_length)
    settings |= {"trained": True, "source": source or path.name}
    return write_model(dest / name, settings, tensors, files)


def _convert(
    path: Path, chunk_length: int | None
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, bytes]]:
    if path.is_dir():
        return checkpoints.from_folder(_folder_config(path), _folder_tensors(path), path)
    if path.suffix == ".pth":
        return (*checkpoints.from_classifier(load_inert(path), path, chunk_length), {})
    if path.suffix == ".pt":
        return (*checkpoints.from_fair_esm(_load_pickle(path), path), {})
    raise ConfigError(
        f"{path} is no known model: give a fair-esm .pt, a classifier .pth, or a folder with "
        "config.json and weights"
    )


def write_model(
    folder: Path, settings: Mapping[str, Any], tensors: Tensors, files: Mapping[str, bytes]
) -> ModelCard:
    """Writes a model folder durably: beside its place, synced, then renamed into it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.parent / f".{folder.name}.tmp-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        _write_files(partial, settings, tensors, files)
        read_card(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        _sync(folder.parent)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return read_card(folder)


def _write_files(
    partial: Path, settings: Mapping[str, Any], tensors: Tensors, files: Mapping[str, bytes]
) -> None:
    save_file({name: t.contiguous() for name, t in tensors.items()}, partial / WEIGHTS)
    for name, content in files.items():
        (partial / name).write_bytes(content)
    config = {"format": FORMAT, **settings}
    config["digest"] = weights_digest(partial, json.loads(json.dumps(config)))
    (partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for path in (*partial.iterdir(), partial):
        path.chmod(0o755 if path.is_dir() else 0o644)
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _folder_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{folder} has no {CONFIG}, and so no model; download it again, and name its folder"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / CONFIG} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{folder / CONFIG} is not a model configuration")
    return config


def _folder_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a Hugging Face folder: safetensors, else pickles, whole or sharded."""
    if (folder / WEIGHTS).is_file():
        return dict(_read_safetensors(folder / WEIGHTS))
    if (folder / INDEX).is_file():
        shards = map(_read_safetensors, _shards(folder, INDEX))
        return dict(chain.from_iterable(shards))
    if (folder / PICKLE).is_file():
        return dict(_load_pickle(folder / PICKLE))
    if (folder / PICKLE_INDEX).is_file():
        pickles = map(_load_pickle, _shards(folder, PICKLE_INDEX))
        return dict(chain.from_iterable(tensors.items() for tensors in pickles))
    raise ConfigError(
        f"model folder {folder} has no weights: no {WEIGHTS}, {INDEX}, {PICKLE} or {PICKLE_INDEX}"
    )


def _read_safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; download it again") from error


def _shards(folder: Path, index: str) -> list[Path]:
    """The files that an index names."""
    try:
        names = set(json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{folder / index} cannot be read: {error!r}") from error
    for name in names:
        if Path(name).name != name:
            raise ConfigError(f"{folder / index} names a file outside its folder: {name}")
    return [folder / name for name in sorted(names)]


def _load_pickle(path: Path) -> Any:
    """A pickled checkpoint; fair-esm's hold one class beside tensors, an argparse.Namespace."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ConfigError(
            f"{path} is not a checkpoint that can be read safely: {reason}"
        ) from error

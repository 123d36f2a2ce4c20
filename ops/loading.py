"""Imported model folders into modules: straight from safetensors to the device, no copy between."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ops.attention import Attend, absent
from ops.classifier import Classifier, ClassifierConfig
from ops.dnabert import Dnabert, DnabertConfig
from ops.errors import ConfigError
from ops.esm2 import Esm2, Esm2Config
from ops.modelstore import WEIGHTS, read_card, read_config

Model = TypeVar("Model", bound=nn.Module)


def load_esm2(
    folder: Path, attend: Attend | None, device: torch.device, dtype: torch.dtype
) -> Esm2:
    """The ESM-2 model of that folder; ConfigError when its weights do not fit its configuration.

    attend: None for a model whose own forward is not called.
    """
    config = Esm2Config(**_dimensions(folder, "esm2", Esm2Config))
    with torch.device("meta"):
        model = Esm2(config, attend or absent)
    return _filled(model, folder, device, dtype)


def load_dnabert(
    folder: Path, attend: Attend | None, device: torch.device, dtype: torch.dtype
) -> Dnabert:
    """The DNABERT-S model of that folder; ConfigError as above."""
    config = DnabertConfig(**_dimensions(folder, "dnabert", DnabertConfig))
    with torch.device("meta"):
        model = Dnabert(config, attend or absent)
    return _filled(model, folder, device, dtype)


def load_classifier(folder: Path, device: torch.device) -> Classifier:
    """The classifier of that folder, always fp32; ConfigError as above."""
    card = read_card(folder)
    _dimensions(folder, "classifier", ClassifierConfig)
    assert card.input_widths is not None
    with torch.device("meta"):
        model = Classifier(ClassifierConfig(card.input_widths, card.width))
    return _filled(model, folder, device, torch.float32)


def num_parameters(folder: Path) -> int:
    """Numbers in the weights of that folder, read off the file's header. Raises ConfigError."""
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{folder / WEIGHTS} cannot be read; import the model again") from error
    return sum(math.prod(shape) for shape in shapes)


def _dimensions(folder: Path, kind: str, config_class: type) -> dict[str, Any]:
    """The settings of config.json that the model's configuration class takes."""
    card = read_card(folder)
    if card.kind != kind:
        raise ConfigError(f"{folder} holds a model of kind {card.kind}, where {kind} is needed")
    config = read_config(folder)
    names = inspect.signature(config_class).parameters
    missing = [n for n, p in names.items() if p.default is p.empty and n not in config]
    if missing:
        raise ConfigError(f"{folder} lacks the settings {', '.join(missing)}; import it again")
    return {name: config[name] for name in names if name in config}


def _filled(model: Model, folder: Path, device: torch.device, dtype: torch.dtype) -> Model:
    path = folder / WEIGHTS
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            tensors = {name: _cast(file.get_tensor(name), dtype) for name in file.keys()}  # noqa: SIM118
        model.load_state_dict(tensors, strict=True, assign=True)
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} cannot be loaded: {reason}; import the model again") from error
    return model.eval().requires_grad_(False)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor

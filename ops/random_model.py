"""Models of published shapes with random weights: what speed is measured with, and tests use."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ops.attention import absent
from ops.classifier import Classifier, ClassifierConfig
from ops.dnabert import Dnabert, DnabertConfig
from ops.esm2 import Esm2, Esm2Config
from ops.modelstore import CONFIG, FORMAT, WEIGHTS

#: ESM-2 as published (Lin et al. 2023), and DNABERT-S (Zhou et al. 2024).
ESM2_SIZES = {
    "8M": Esm2Config(320, 6, 20, 1_280),
    "35M": Esm2Config(480, 12, 20, 1_920),
    "150M": Esm2Config(640, 30, 20, 2_560),
    "650M": Esm2Config(1_280, 33, 20, 5_120),
    "3B": Esm2Config(2_560, 36, 40, 10_240),
}
DNABERT_S = DnabertConfig(768, 12, 12, 3_072, 4_096)


def write_random_model(
    folder: Path,
    config: Esm2Config | DnabertConfig | ClassifierConfig,
    device: str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> Path:
    """A model folder as `vnp models import` leaves one, but random; returns it.

    Weights have a trained network's size: products keep the size of what they multiply, norms
    stand around one. The classifier is fp32 whatever the dtype. A DNABERT-S folder lacks its
    tokenizer.
    """
    with torch.device("meta"):
        model, kind = _model(config)
    generator = torch.Generator(device).manual_seed(seed)
    kept = torch.float32 if kind == "classifier" else dtype
    tensors = {
        name: _random(name, tensor, generator).to(kept).cpu()
        for name, tensor in model.state_dict().items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS)
    settings = {
        **asdict(config),
        "format": FORMAT,
        "kind": kind,
        "trained": False,
        "source": f"random weights, seed {seed}",
        "digest": f"sha256:{seed:064x}",
    }
    if kind == "classifier":
        settings["chunk_length"] = 500
    (folder / CONFIG).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    return folder


def _model(config: Esm2Config | DnabertConfig | ClassifierConfig) -> tuple[nn.Module, str]:
    if isinstance(config, Esm2Config):
        return Esm2(config, absent), "esm2"
    if isinstance(config, DnabertConfig):
        return Dnabert(config, absent), "dnabert"
    return Classifier(config), "classifier"


def _random(name: str, tensor: Tensor, generator: torch.Generator) -> Tensor:
    if not tensor.is_floating_point():
        return torch.zeros(tensor.shape, dtype=tensor.dtype)
    noise = torch.randn(tensor.shape, generator=generator, device=generator.device)
    if name.endswith("running_var"):
        return noise.abs() + 0.5
    if tensor.ndim >= 2:
        return noise if "embed" in name else noise / math.sqrt(tensor.shape[-1])
    is_scale = ("norm" in name or "bn" in name) and name.endswith("weight")
    return 0.1 * noise + (1.0 if is_scale else 0.0)

"""Published checkpoints in vnp's names: pure renaming, checked to be complete.

Each function gives the settings of config.json and the tensors of model.safetensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ops.errors import ConfigError
from ops.inert_pickle import Inert
from ops.modelstore import TOKENIZER

Tensors = Mapping[str, Tensor]
Converted = tuple[dict[str, Any], dict[str, Tensor]]

#: Our name of a layer's part, in the names of each source; {} stands for weight or bias.
FAIR_ESM_LAYER = {
    "norm1": "self_attn_layer_norm",
    "out": "self_attn.out_proj",
    "norm2": "final_layer_norm",
    "fc1": "fc1",
    "fc2": "fc2",
}
FAIR_ESM_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
HF_ESM_LAYER = {
    "norm1": "attention.LayerNorm",
    "out": "attention.output.dense",
    "norm2": "LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
}
HF_ESM_QKV = ("attention.self.query", "attention.self.key", "attention.self.value")
DNABERT_LAYER = {
    "qkv": "attention.self.Wqkv",
    "out": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "gated": "mlp.gated_layers",
    "wo": "mlp.wo",
    "norm2": "mlp.layernorm",
}
#: The DNABERT-S embedding's width: how the original's classifier splits its input.
DNABERT_S_WIDTH = 768
FAIR_ESM_VOCAB = 33


def from_fair_esm(data: Any, path: Path) -> Converted:
    """A fair-esm `esm2_*.pt`: {"cfg": {"model": Namespace}, "model": tensors}."""
    try:
        arguments = data["cfg"]["model"]
        arguments = arguments if isinstance(arguments, dict) else vars(arguments)
        layers, heads = arguments["encoder_layers"], arguments["encoder_attention_heads"]
        token_dropout = bool(arguments["token_dropout"])
        tensors = {
            re.sub(r"^encoder\.(sentence_encoder\.)?", "", k): t for k, t in data["model"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is not an ESM-2 checkpoint of fair-esm ({error!r})") from error
    take = _Taker(tensors, path)
    converted = _esm_layers(take, "layers.{}.", layers, FAIR_ESM_LAYER, FAIR_ESM_QKV)
    converted["embed_tokens.weight"] = take("embed_tokens.weight")
    converted |= take.pair("norm_after", "emb_layer_norm_after")
    return _esm_settings(converted, layers, heads, token_dropout, path), converted


def from_folder(
    config: Mapping[str, Any], tensors: Tensors, folder: Path
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, bytes]]:
    """A Hugging Face folder, told apart by its tensors; third: further files of the model."""
    if any(name.endswith("attention.self.Wqkv.weight") for name in tensors):
        tokenizer = folder / TOKENIZER
        if not tokenizer.is_file():
            raise ConfigError(f"{folder} has no {TOKENIZER}; put the model's tokenizer beside it")
        return (*_from_dnabert(config, tensors, folder), {TOKENIZER: tokenizer.read_bytes()})
    if config.get("model_type") == "esm":
        return (*_from_hf_esm(config, tensors, folder), {})
    raise ConfigError(f"{folder} holds neither ESM-2 nor DNABERT-2 or DNABERT-S")


def _from_hf_esm(config: Mapping[str, Any], tensors: Tensors, folder: Path) -> Converted:
    if config.get("position_embedding_type") != "rotary" or config.get("emb_layer_norm_before"):
        raise ConfigError(f"{folder} is an ESM-1 model; ESM-2 is needed")
    if config.get("rope_theta", 1e4) != 1e4 or config.get("layer_norm_eps", 1e-5) != 1e-5:
        raise ConfigError(
            f"{folder} is no published ESM-2: its rope_theta or layer_norm_eps differ"
        )
    layers, heads = _sizes(config, folder)
    take = _Taker({_modern(name.removeprefix("esm.")): t for name, t in tensors.items()}, folder)
    converted = _esm_layers(take, "encoder.layer.{}.", layers, HF_ESM_LAYER, HF_ESM_QKV)
    converted["embed_tokens.weight"] = take("embeddings.word_embeddings.weight")
    converted |= take.pair("norm_after", "encoder.emb_layer_norm_after")
    token_dropout = bool(config.get("token_dropout", True))
    return _esm_settings(converted, layers, heads, token_dropout, folder), converted


def _sizes(config: Mapping[str, Any], folder: Path) -> tuple[int, int]:
    """Layers and heads: what tensors alone do not tell."""
    try:
        return int(config["num_hidden_layers"]), int(config["num_attention_heads"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{folder}/config.json lacks its dimensions ({error!r})") from error


def _modern(name: str) -> str:
    """The name with LayerNorm's parameters as torch calls them; transformers writes both ways."""
    return re.sub(r"\.beta$", ".bias", re.sub(r"\.gamma$", ".weight", name))


def _esm_layers(
    take: _Taker, prefix: str, layers: int, names: Mapping[str, str], qkv: tuple[str, ...]
) -> dict[str, Tensor]:
    converted: dict[str, Tensor] = {}
    for layer in range(layers):
        theirs = prefix.format(layer)
        for our_name, name in names.items():
            converted |= take.pair(f"layers.{layer}.{our_name}", theirs + name)
        for part in ("weight", "bias"):
            parts = [take(f"{theirs}{name}.{part}") for name in qkv]
            converted[f"layers.{layer}.qkv.{part}"] = torch.cat(parts)
    return converted


def _esm_settings(
    converted: Tensors, layers: int, heads: int, token_dropout: bool, path: Path
) -> dict[str, Any]:
    vocab, width = converted["embed_tokens.weight"].shape
    if vocab != FAIR_ESM_VOCAB:
        raise ConfigError(f"{path} has {vocab} tokens, where ESM-2 has {FAIR_ESM_VOCAB}")
    return {
        "kind": "esm2",
        "width": width,
        "layers": layers,
        "heads": heads,
        "ffn": converted["layers.0.fc1.weight"].shape[0],
        "vocab": vocab,
        "token_dropout": token_dropout,
    }


def _from_dnabert(config: Mapping[str, Any], tensors: Tensors, folder: Path) -> Converted:
    layers, heads = _sizes(config, folder)
    take = _Taker({_modern(name.removeprefix("bert.")): t for name, t in tensors.items()}, folder)
    converted = {
        "embed_tokens.weight": take("embeddings.word_embeddings.weight"),
        "token_type": take("embeddings.token_type_embeddings.weight")[0].clone(),
        **take.pair("norm", "embeddings.LayerNorm"),
    }
    for layer in range(layers):
        for ours, theirs in DNABERT_LAYER.items():
            names = (f"layers.{layer}.{ours}", f"encoder.layer.{layer}.{theirs}")
            converted |= take.pair(*names, bias=ours != "gated")
    vocab, width = converted["embed_tokens.weight"].shape
    settings = {
        "kind": "dnabert",
        "width": width,
        "layers": layers,
        "heads": heads,
        "ffn": converted["layers.0.wo.weight"].shape[1],
        "vocab": vocab,
    }
    return settings, converted


def from_classifier(module: Inert, path: Path, chunk_length: int | None) -> Converted:
    """The original's MLPClassifier, as `ops.inert_pickle` reads it."""
    if chunk_length is None:
        number = re.match(r"(\d+)_", path.name)
        if number is None:
            raise ConfigError(f"{path} does not tell its chunk length; name it like 500_model.pth")
        chunk_length = int(number[1])
    modules = getattr(module, "_modules", {})
    tensors: dict[str, Tensor] = {}
    for name, child in modules.items():
        parts = {**getattr(child, "_parameters", {}), **getattr(child, "_buffers", {})}
        tensors |= {f"{name}.{part}": t for part, t in parts.items() if isinstance(t, Tensor)}
    take = _Taker(tensors, path)
    converted = {
        **take.pair("hidden_layer", "hidden_layer"),
        **take.pair("bn1", "bn1"),
        **take.pair("output_layer", "output_layer"),
        **{
            f"bn1.{n}": take(f"bn1.{n}")
            for n in ("running_mean", "running_var", "num_batches_tracked")
        },
    }
    hidden, inputs = converted["hidden_layer.weight"].shape
    if inputs <= DNABERT_S_WIDTH:
        raise ConfigError(
            f"{path} takes {inputs} values; VirNucPro's classifiers take more than 768"
        )
    widths = (DNABERT_S_WIDTH, inputs - DNABERT_S_WIDTH)
    settings = {
        "kind": "classifier",
        "width": hidden,
        "input_widths": widths,
        "chunk_length": chunk_length,
    }
    return settings, converted


class _Taker:
    """Tensors by name; one that is missing is a ConfigError that names it and its source."""

    def __init__(self, tensors: Tensors, source: Path) -> None:
        self._tensors = tensors
        self._source = source

    def __call__(self, name: str) -> Tensor:
        tensor = self._tensors.get(name)
        if not isinstance(tensor, Tensor):
            raise ConfigError(f"{self._source} lacks the weights {name}; download it again")
        return tensor

    def pair(self, ours: str, theirs: str, bias: bool = True) -> dict[str, Tensor]:
        parts = ("weight", "bias") if bias else ("weight",)
        return {f"{ours}.{part}": self(f"{theirs}.{part}") for part in parts}

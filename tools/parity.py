"""How far embeddings and calls are from the references, by model, dtype and length: docs/parity.md.

    python -m tools.parity tests/data/fixtures/*.fa --device cuda --models small,650M,3B

ESM-2 is compared with fair-esm in fp32, DNABERT-S with the float64 version of the tests, one
sequence at a time; calls with those of the plain modules in fp32. Figures go to standard output as
a Markdown table.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from esm.data import Alphabet
from esm.model.esm2 import ESM2
from safetensors.torch import load_file
from torch import Tensor

from daemon.bench import tasks, write_fragments
from ops.checkpoints import DNABERT_LAYER, FAIR_ESM_LAYER, FAIR_ESM_QKV
from ops.classifier import ClassifierConfig
from ops.dna_tokens import DnaTokenizer
from ops.encoders import PADS, SPANS, TORCH_DTYPES, Encoders, PlainEncoders, bucket_sizes
from ops.engine import Engine, EngineSpec
from ops.layers import Layout
from ops.loading import load_esm2
from ops.modelstore import BUNDLED, DEFAULT_NAMES, WEIGHTS, read_config, tokenizer_path
from ops.nouns import Ragged
from ops.packing import Budgets
from ops.prepare import prepare
from ops.random_model import DNABERT_S, ESM2_SIZES, write_random_model
from tests.unit.dnabert_textbook import forward

#: Tokens of a sequence, the two ends included.
BINS = {"3 to 50": (3, 50), "51 to 170": (51, 170), "171 to 500": (171, 500)}
LONG = {"501 to 1,002": (501, 1_002)}
SEQUENCES = 6
NAMES = {"esm2": "ESM-2", "dnabert": "DNABERT-S"}


class Models(NamedTuple):
    """Folders."""

    esm2: Path
    dnabert: Path
    classifier: Path


def fair_esm(folder: Path, device: torch.device) -> ESM2:
    """fair-esm's module with the weights of a model folder, fp32."""
    config = load_esm2(folder, None, torch.device("cpu"), torch.float32).config
    with torch.device(device):
        model = ESM2(
            config.layers, config.width, config.heads, Alphabet.from_architecture("ESM-1b")
        )
    ours = load_file(folder / WEIGHTS, device=str(device))
    theirs = {"embed_tokens.weight": ours["embed_tokens.weight"]}
    for part in ("weight", "bias"):
        theirs[f"emb_layer_norm_after.{part}"] = ours[f"norm_after.{part}"]
        for layer in range(config.layers):
            prefix = f"layers.{layer}."
            for name, other in FAIR_ESM_LAYER.items():
                theirs[f"{prefix}{other}.{part}"] = ours[f"{prefix}{name}.{part}"]
            split = ours[f"{prefix}qkv.{part}"].chunk(3)
            theirs |= {f"{prefix}{n}.{part}": t for n, t in zip(FAIR_ESM_QKV, split, strict=True)}
    missing = model.load_state_dict({k: t.float() for k, t in theirs.items()}, strict=False)
    assert not missing.unexpected_keys, missing
    return model.eval().requires_grad_(False)


def published_dnabert(folder: Path, device: torch.device) -> dict[str, Tensor]:
    """The tensors of a model folder in the published names."""
    ours = load_file(folder / WEIGHTS, device=str(device))
    theirs = {
        "embeddings.word_embeddings.weight": ours["embed_tokens.weight"],
        "embeddings.token_type_embeddings.weight": ours["token_type"][None],
    }
    theirs |= {f"embeddings.LayerNorm.{part}": ours[f"norm.{part}"] for part in ("weight", "bias")}
    for name, tensor in ours.items():
        if name.startswith("layers."):
            _, layer, own, part = name.split(".")
            theirs[f"encoder.layer.{layer}.{DNABERT_LAYER[own]}.{part}"] = tensor
    return theirs


@torch.inference_mode()
def reference(kind: str, folder: Path, tokens: Ragged, device: torch.device) -> list[Tensor]:
    """Hidden states (length, width) float64 of every sequence, on the host."""
    rows = [torch.from_numpy(np.array(row, np.int64)) for row in tokens]
    config = read_config(folder)
    if kind == "esm2":
        model, last = fair_esm(folder, device), int(config["layers"])
        return [
            model(row[None].to(device), repr_layers=[last])["representations"][last][0]
            .double()
            .cpu()
            for row in rows
        ]
    state = published_dnabert(folder, torch.device("cpu"))
    layers, heads = int(config["layers"]), int(config["heads"])
    return [forward(state, row, layers, heads) for row in rows]


@torch.inference_mode()
def hidden(encoders: Encoders, name: str, tokens: Ragged) -> list[Tensor]:
    """Hidden states of the encoders under test, in the order of the sequences."""
    total = len(tokens.data)
    rows = next(size for size in bucket_sizes(1 << 20, "cuda") if size >= total)
    if isinstance(encoders, PlainEncoders):
        layout = Layout.of(tokens.lengths, rows)
        flat = np.full(rows, PADS[name], np.int64)
        flat[:total] = tokens.take(layout.order).data
        out = encoders.models[name](torch.from_numpy(flat).to(encoders.device), layout)
    else:
        from ops.staging import stage

        device: torch.device = encoders.device  # type: ignore[attr-defined]
        packed = stage(tokens, rows, len(tokens), SPANS[name], PADS[name], device)
        layout = packed.layout
        out = encoders._models[name](packed)  # type: ignore[attr-defined]
    parts = out[:total].double().cpu().split(layout.lengths.tolist())
    found: list[Tensor] = [parts[0]] * len(parts)
    for place, row in enumerate(layout.order.tolist()):
        found[row] = parts[place]
    return found


def distances(kind: str, ours: list[Tensor], theirs: list[Tensor]) -> dict[str, float]:
    """Relative L2 of tokens (worst, median) and of means (worst), and the means' worst cosine."""
    per_token = torch.cat(
        [(a - b).norm(dim=1) / b.norm(dim=1) for a, b in zip(ours, theirs, strict=True)]
    )
    pairs = []
    for a, b in zip(ours, theirs, strict=True):
        first, stop = SPANS[kind](len(b))
        pairs.append((a[first:stop].mean(0), b[first:stop].mean(0)))
    pooled = max(float((a - b).norm() / b.norm()) for a, b in pairs)
    cosine = min(float(torch.cosine_similarity(a, b, dim=0)) for a, b in pairs)
    return {
        "token worst": float(per_token.max()),
        "token median": float(per_token.median()),
        "mean worst": pooled,
        "1 - cosine": 1 - cosine,
    }


def calls(spec: EngineSpec, fasta: Path, chunks: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Of every scored chunk of the fragments: is it called virus?"""
    assert spec.dnabert is not None
    engine = Engine(spec)
    tokenizer = DnaTokenizer(tokenizer_path(spec.dnabert))
    budgets = Budgets(spec.esm_budget, spec.dna_budget, spec.max_rows)
    found: list[bool] = []
    for task in tasks(fasta, 1_000):
        best: dict[int, np.ndarray[Any, Any]] = {}
        for batch in prepare(task, tokenizer, budgets, 8_192, every_row=True)[0]:
            scores = engine.compute(batch).scores
            assert scores is not None
            for record, row in zip(batch.record.tolist(), scores, strict=True):
                best[record] = np.maximum(best.get(record, row), row)
        found += [bool(best[record][1] >= best[record][0]) for record in sorted(best)]
        if len(found) >= chunks:
            break
    return np.array(found[:chunks])


def model_sets(names: list[str], folder: Path, device: str) -> Iterator[tuple[str, Models]]:
    for name in names:
        if name == "small":
            yield (
                "vnp-small, trained",
                Models(*(BUNDLED / DEFAULT_NAMES[n] for n in Models._fields)),
            )
            continue
        config = ESM2_SIZES[name]
        made = Models(folder / f"esm2-{name}", folder / "dnabert-s", folder / f"mlp-{name}")
        write_random_model(made.esm2, config, device)
        if not made.dnabert.exists():
            write_random_model(made.dnabert, DNABERT_S, device, seed=1)
            source = tokenizer_path(BUNDLED / DEFAULT_NAMES["dnabert"])
            (made.dnabert / "tokenizer.json").write_bytes(source.read_bytes())
        widths = (DNABERT_S.width, config.width)
        write_random_model(made.classifier, ClassifierConfig(widths), device)
        yield f"ESM-2 {name} and DNABERT-S, random", made


def sequences(kind: str, vocab: int) -> Iterator[tuple[str, Ragged]]:
    rng = np.random.default_rng(0)
    for name, (low, high) in (BINS | (LONG if kind == "esm2" else {})).items():
        lengths = np.linspace(low, high, SEQUENCES).round().astype(np.int64)
        # Whole sequences of letters, and the two ends as the tokenizers write them.
        data = rng.integers(4, 24 if kind == "esm2" else vocab, int(lengths.sum()))
        starts = np.cumsum(lengths) - lengths
        data[starts], data[starts + lengths - 1] = (0, 2) if kind == "esm2" else (1, 2)
        yield name, Ragged.from_lengths(data, lengths)


def compare(title: str, models: Models, args: argparse.Namespace, fasta: Path) -> None:
    device = torch.device(args.device)
    known: dict[tuple[str, str], list[Tensor]] = {}
    spec = EngineSpec(*models, args.device, "fp32")
    plain = replace(spec, compile=False)
    expected = calls(plain, fasta, args.chunks)
    for dtype in args.dtypes.split(","):
        engine = Engine(replace(spec, dtype=dtype))
        for kind in NAMES:
            vocab = engine.encoders.configs[kind].vocab
            for bin_name, tokens in sequences(kind, vocab):
                key = (kind, bin_name)
                if key not in known:
                    known[key] = reference(kind, getattr(models, kind), tokens, device)
                row = distances(kind, hidden(engine.encoders, kind, tokens), known[key])
                figures = " | ".join(f"{value:.1e}" for value in row.values())
                print(f"| {title} | {NAMES[kind]} | {dtype} | {bin_name} | {figures} |", flush=True)
        del engine
        changed = int((calls(replace(spec, dtype=dtype), fasta, args.chunks) != expected).sum())
        rate = 10_000 * changed / len(expected)
        print(
            f"{title}, {dtype}: {changed} of {len(expected)} calls, {rate:.1f} of 10,000",
            file=sys.stderr,
        )
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("genomes", nargs="+", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--models", default="small", help="small, 8M ... 15B, with commas")
    parser.add_argument("--dtypes", default="fp32,bf16", help=", ".join(TORCH_DTYPES))
    parser.add_argument("--chunks", type=int, default=10_000, help="whose calls are compared")
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    print(
        "| models | encoder | dtype | tokens | token, worst | token, median | mean, worst "
        "| 1 - worst cosine |\n|---|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        fasta = Path(folder) / "fragments.fa"
        write_fragments(args.genomes, fasta, 3 * args.chunks)
        for title, models in model_sets(args.models.split(","), Path(folder), args.device):
            compare(title, models, args, fasta)


if __name__ == "__main__":
    main()

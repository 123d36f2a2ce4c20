"""Both encoders on one device: tokens in, mean embeddings and scores out.

Two ways, with one interface. `PlainEncoders` runs the plain modules, on the CPU and, with
compile = false, on a GPU; it is the oracle. `ops.fast_encoders` keeps a GPU busy: what is launched
comes back later, so that the next batch can be launched meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch

from ops.attention import choose
from ops.classifier import Classifier, classify
from ops.dnabert import PAD as DNA_PAD
from ops.dnabert import Dnabert, DnabertConfig
from ops.errors import ConfigError, InternalError
from ops.esm2 import PAD as ESM_PAD
from ops.esm2 import Esm2, Esm2Config
from ops.layers import BLOCK_ROWS, Layout
from ops.loading import load_dnabert, load_esm2
from ops.nouns import F32, Ragged
from ops.pooling import dnabert_span, esm2_span, pool

NAMES = ("esm2", "dnabert")
PADS = {"esm2": ESM_PAD, "dnabert": DNA_PAD}
SPANS = {"esm2": esm2_span, "dnabert": dnabert_span}
TORCH_DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8": torch.bfloat16,  # of everything but ESM-2's products
}
#: Tokens of the probe's sequences; together one block, so that the first bucket has no padding.
PROBE_LENGTHS = (3, 5, 17, 50, 100, 168, 169)


@dataclass(frozen=True)
class Shapes:
    """Tokens of a batch per model, and rows: what batches are padded to, and split at."""

    esm_budget: int
    dna_budget: int
    max_rows: int

    def budget(self, name: str) -> int:
        return self.esm_budget if name == "esm2" else self.dna_budget


class Outputs(NamedTuple):
    """Of the rows of a batch: embeddings (n, width) and scores (n, 2), fp32; None without."""

    esm2: F32 | None
    dnabert_s: F32 | None
    scores: F32 | None


class Running(Protocol):
    """A batch that was launched."""

    @property
    def busy_s(self) -> float:
        """Seconds that the device worked on it; 0.0 where nobody measures. After `result`."""

    def result(self) -> Outputs:
        """Waits for it."""


class Encoders(Protocol):
    """What the engine needs. configs: by name, of the models that are there; facts: what runs."""

    configs: dict[str, Esm2Config | DnabertConfig]
    facts: dict[str, str | int | bool]

    def __init__(
        self,
        esm2: Path | None,
        dnabert: Path | None,
        device: torch.device,
        dtype: str,
        attention: str,
        shapes: Shapes,
    ) -> None: ...

    def launch(
        self, esm: Ragged | None, dna: Ragged | None, classifier: Classifier | None
    ) -> Running:
        """Starts the embedding of a batch, and its scoring where there is a classifier."""

    def probe(self, name: str) -> list[F32]:
        """Embeddings of fixed sequences in every bucket in use; none for a model that is absent."""


def bucket_sizes(budget: int, device_type: str) -> list[int]:
    """Rows that batches are padded to, ascending.

    On the CPU every multiple of a block: its arithmetic is per block, so more buckets cost nothing.
    Elsewhere powers of two, and three quarters of them, up to the budget.
    """
    top = max(BLOCK_ROWS, -(-budget // BLOCK_ROWS) * BLOCK_ROWS)
    if device_type == "cpu":
        return list(range(BLOCK_ROWS, top + 1, BLOCK_ROWS))
    sizes = {BLOCK_ROWS << i for i in range(top.bit_length())}
    sizes |= {size // 4 * 3 for size in sizes if size > 2 * BLOCK_ROWS}
    return [*sorted(size for size in sizes if size < top), top]


def probe_tokens(vocab: int, times: int = 1) -> Ragged:
    """Fixed sequences over the whole vocabulary, by arithmetic: the same on every machine."""
    lengths = np.array(PROBE_LENGTHS, np.int64)
    at = np.arange(lengths.sum(), dtype=np.int64)
    tokens = (at * at * 7919 + at * 31) % (vocab - 4) + 4
    return Ragged.from_lengths(np.tile(tokens, times), np.tile(lengths, times))


def check_tokens(tokens: Ragged, vocab: int, name: str) -> None:
    if len(tokens.data) and tokens.data.max() >= vocab:
        raise InternalError(f"a batch holds tokens that {name} does not know; check tokenizers")


# -- plain -------------------------------------------------------------------------------------


class Done(NamedTuple):
    """A batch that was computed while it was launched."""

    outputs: Outputs
    busy_s: float = 0.0

    def result(self) -> Outputs:
        return self.outputs


class PlainEncoders:
    """The plain modules on any device; synchronous."""

    def __init__(
        self,
        esm2: Path | None,
        dnabert: Path | None,
        device: torch.device,
        dtype: str,
        attention: str,
        shapes: Shapes,
    ) -> None:
        if dtype == "fp8":
            raise ConfigError("dtype fp8 needs a GPU and compile = true; use bf16")
        self.device = device
        self.shapes = shapes
        name, attend = choose(attention, device)
        self.models: dict[str, Esm2 | Dnabert] = {}
        if esm2:
            self.models["esm2"] = load_esm2(esm2, attend, device, TORCH_DTYPES[dtype])
        if dnabert:
            self.models["dnabert"] = load_dnabert(dnabert, attend, device, TORCH_DTYPES[dtype])
        self.configs = {name: model.config for name, model in self.models.items()}
        self.facts: dict[str, str | int | bool] = {"compile": False}
        self.facts |= {f"attention_{model}": name for model in self.models}

    def launch(
        self, esm: Ragged | None, dna: Ragged | None, classifier: Classifier | None
    ) -> Running:
        esm2, dnabert_s = self.embed(esm, "esm2"), self.embed(dna, "dnabert")
        if classifier is None or esm2 is None or dnabert_s is None:
            return Done(Outputs(esm2, dnabert_s, None))
        return Done(Outputs(esm2, dnabert_s, classify(classifier, dnabert_s, esm2)))

    def embed(self, tokens: Ragged | None, name: str, rows: int = 0) -> F32 | None:
        """Mean embeddings (n, width) fp32; in the smallest bucket, or in one of `rows` rows."""
        if tokens is None:
            return None
        model = self.models[name]
        if len(tokens) == 0:
            return np.empty((0, model.config.width), np.float32)
        check_tokens(tokens, model.config.vocab, name)
        layout = Layout.of(tokens.lengths, rows or self._bucket(len(tokens.data), name))
        flat = np.full(layout.rows, PADS[name], np.int64)
        flat[: layout.total] = tokens.take(layout.order).data
        return pool(model(torch.from_numpy(flat).to(self.device), layout), layout, name)

    def _bucket(self, total: int, name: str) -> int:
        buckets = bucket_sizes(self.shapes.budget(name), self.device.type)
        held = next((bucket for bucket in buckets if bucket >= total), None)
        return held or -(-total // BLOCK_ROWS) * BLOCK_ROWS

    def probe(self, name: str) -> list[F32]:
        if name not in self.models:
            return []
        buckets = bucket_sizes(self.shapes.budget(name), self.device.type)
        if self.device.type == "cpu":
            buckets = buckets[:2]  # every further one repeats the same block
        tokens = probe_tokens(self.models[name].config.vocab)
        embedded = [self.embed(tokens, name, rows) for rows in buckets]
        found = [values for values in embedded if values is not None]
        agree = all(np.array_equal(found[0], other) for other in found[1:])
        self.facts["buckets_agree"] = bool(self.facts.get("buckets_agree", True)) and agree
        return found

"""The engine: loaded models of one identity on one device; a packed batch in, its results out.

What is promised of bits is promised within one numerics hash: the digest of what a fixed probe
batch gives through every model and bucket, and of what else decides rounding.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ops.attention import choose
from ops.classifier import Classifier, classify
from ops.dnabert import PAD as DNA_PAD
from ops.dnabert import Dnabert
from ops.errors import ConfigError, InternalError
from ops.esm2 import PAD as ESM_PAD
from ops.esm2 import Esm2
from ops.layers import BLOCK_ROWS, Layout
from ops.loading import load_classifier, load_dnabert, load_esm2
from ops.modelstore import check_fit, read_card
from ops.nouns import F32, Batch, BatchResult, Dtype, Ragged, Status
from ops.pooling import pool

TORCH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
NEEDED = {
    "virus": ("esm2", "dnabert", "classifier"),
    "protein": ("esm2",),
    "dna": ("dnabert",),
}
#: Tokens of the probe's sequences; together one block, so that the first bucket has no padding.
PROBE_LENGTHS = (3, 5, 17, 50, 100, 168, 169)
MAX_THREADS = 64


@dataclass(frozen=True)
class EngineSpec:
    """What an engine is built from; models that no pipeline of the service needs are None.

    Budgets are tokens a batch; threads: intra-op threads on the CPU, a power of two, or 0 for the
    largest that the cores allow. compile: wanted where the device has it; `Engine.facts` says.
    """

    esm2: Path | None = None
    dnabert: Path | None = None
    classifier: Path | None = None
    device: str = "cpu"
    dtype: str = "fp32"
    attention: str = "auto"
    compile: bool = True
    esm_budget: int = 10_752
    dna_budget: int = 10_752
    max_rows: int = 1_024
    threads: int = 0


class Engine:
    """Computes batches; one per process. `numerics` names its bits, `facts` says what runs."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.device = _device(spec.device)
        self.dtype = _dtype(spec.dtype)
        self.threads = _set_threads(spec.threads)
        self.esm2: Esm2 | None = None
        self.dnabert: Dnabert | None = None
        self.classifier: Classifier | None = None
        self.facts = self._basic_facts()
        _check_models(spec)
        self._load()
        self.numerics = self._probe()
        self.facts["numerics"] = self.numerics

    def compute(self, batch: Batch) -> BatchResult:
        """Embeds and, in virus jobs, scores every row of the batch.

        A row with values that are not finite gets Status.FAILED and a reason; the others stand.
        Raises ConfigError when the batch's pipeline needs a model that this engine lacks.
        """
        self._require(batch.pipeline)
        esm2, dnabert_s = self.embed(batch)
        scores = None
        if batch.pipeline == "virus":
            assert self.classifier is not None
            assert esm2 is not None
            assert dnabert_s is not None
            scores = classify(self.classifier, dnabert_s, esm2)
        return self._result(batch, esm2, dnabert_s, scores)

    def embed(self, batch: Batch) -> tuple[F32 | None, F32 | None]:
        """ESM-2 and DNABERT-S embeddings (rows, width) fp32; None where the batch has no tokens."""
        return self._embed(batch.esm_tokens, "esm2"), self._embed(batch.dna_tokens, "dnabert")

    def _result(
        self, batch: Batch, esm2: F32 | None, dnabert_s: F32 | None, scores: F32 | None
    ) -> BatchResult:
        # The next safer dtype for rows that fail here would go in before this line.
        failed, reasons = _failures(len(batch.record), esm2, dnabert_s, scores)
        for values in (esm2, dnabert_s, scores):
            if values is not None:
                values[failed] = np.nan
        keep = batch.keep_embeddings or batch.pipeline != "virus"
        return BatchResult(
            job=batch.job,
            shard=batch.shard,
            number=batch.number,
            identity=batch.identity,
            numerics=self.numerics,
            record=batch.record,
            chunk=batch.chunk,
            frame=batch.frame,
            digest=batch.digest,
            dtype=np.full(len(batch.record), Dtype[self.spec.dtype.upper()], np.uint8),
            status=np.where(failed, Status.FAILED, Status.OK).astype(np.uint8),
            scores=scores,
            esm2=esm2 if keep else None,
            dnabert_s=dnabert_s if keep else None,
            reasons=reasons,
        )

    def _require(self, pipeline: str) -> None:
        missing = [name for name in NEEDED[pipeline] if getattr(self, name) is None]
        if missing:
            raise ConfigError(
                f"a {pipeline} job needs the models {', '.join(NEEDED[pipeline])}, "
                f"but this worker was started without {', '.join(missing)}"
            )

    def _embed(self, tokens: Ragged | None, name: str, rows: int = 0) -> F32 | None:
        """Mean embeddings (n, width) fp32; in the smallest bucket, or in one of `rows` rows."""
        if tokens is None:
            return None
        model: Esm2 | Dnabert | None = self.esm2 if name == "esm2" else self.dnabert
        assert model is not None
        if len(tokens) == 0:
            return np.empty((0, model.config.width), np.float32)
        layout = Layout.of(tokens.lengths, rows or self._bucket(len(tokens.data), name))
        flat = np.full(layout.rows, ESM_PAD if name == "esm2" else DNA_PAD, np.int64)
        flat[: layout.total] = tokens.take(layout.order).data
        if flat.max() >= model.config.vocab:
            raise InternalError(f"a batch holds tokens that {name} does not know; check tokenizers")
        return pool(model(torch.from_numpy(flat).to(self.device), layout), layout, name)

    def _bucket(self, total: int, name: str) -> int:
        budget = self.spec.esm_budget if name == "esm2" else self.spec.dna_budget
        buckets = bucket_sizes(budget, self.device.type)
        held = next((bucket for bucket in buckets if bucket >= total), None)
        return held or -(-total // BLOCK_ROWS) * BLOCK_ROWS

    def _load(self) -> None:
        spec = self.spec
        if spec.esm2:
            name, attend = choose(spec.attention, self.device, self.dtype, alibi=False)
            self.facts["attention_esm2"] = name
            self.esm2 = load_esm2(spec.esm2, attend, self.device, self.dtype)
        if spec.dnabert:
            name, attend = choose(spec.attention, self.device, self.dtype, alibi=True)
            self.facts["attention_dnabert"] = name
            self.dnabert = load_dnabert(spec.dnabert, attend, self.device, self.dtype)
        if spec.classifier:
            self.classifier = load_classifier(spec.classifier, self.device)

    def _basic_facts(self) -> dict[str, str | int | bool]:
        """What runs where, for the log and the record; no kernel is compiled yet on any device."""
        return {
            "device": str(self.device),
            "device_name": _device_name(self.device),
            "dtype": self.spec.dtype,
            "compile": False,
            "threads": self.threads,
            "torch": torch.__version__,
        }

    def _probe(self) -> str:
        """The numerics hash, 16 hex digits; also records whether buckets agree to the bit."""
        total = hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode())
        outputs = {name: self._probe_model(name) for name in ("esm2", "dnabert")}
        agree = all(
            np.array_equal(first, other) for first, *rest in _some(outputs) for other in rest
        )
        self.facts["buckets_agree"] = agree
        for name, embeddings in outputs.items():
            total.update(name.encode())
            for embedding in embeddings:
                total.update(embedding.tobytes())
        if self.classifier and outputs["esm2"] and outputs["dnabert"]:
            scores = classify(self.classifier, outputs["dnabert"][0], outputs["esm2"][0])
            total.update(scores.tobytes())
        return total.hexdigest()[:16]

    def _probe_model(self, name: str) -> list[F32]:
        """The probe's embeddings in every bucket; none for a model that is not loaded."""
        model: Esm2 | Dnabert | None = self.esm2 if name == "esm2" else self.dnabert
        if model is None:
            return []
        budget = self.spec.esm_budget if name == "esm2" else self.spec.dna_budget
        buckets = bucket_sizes(budget, self.device.type)
        if self.device.type == "cpu":
            buckets = buckets[:2]  # every further one repeats the same block
        tokens = probe_tokens(model.config.vocab)
        embedded = (self._embed(tokens, name, rows) for rows in buckets)
        return [values for values in embedded if values is not None]


def bucket_sizes(budget: int, device_type: str) -> list[int]:
    """Rows that batches are padded to, ascending.

    On the CPU every multiple of a block: its arithmetic is per block, so more buckets cost nothing.
    Elsewhere doublings up to the budget, since every size is a set of kernels of its own.
    """
    top = max(BLOCK_ROWS, -(-budget // BLOCK_ROWS) * BLOCK_ROWS)
    if device_type == "cpu":
        return list(range(BLOCK_ROWS, top + 1, BLOCK_ROWS))
    doublings = [BLOCK_ROWS << i for i in range(top.bit_length()) if BLOCK_ROWS << i < top]
    return [*doublings, top]


def probe_tokens(vocab: int) -> Ragged:
    """Fixed sequences over the whole vocabulary, by arithmetic: the same on every machine."""
    lengths = np.array(PROBE_LENGTHS, np.int64)
    at = np.arange(lengths.sum(), dtype=np.int64)
    return Ragged.from_lengths((at * at * 7919 + at * 31) % (vocab - 4) + 4, lengths)


def _some(outputs: dict[str, list[F32]]) -> list[list[F32]]:
    return [embeddings for embeddings in outputs.values() if embeddings]


def _failures(rows: int, *matrices: F32 | None) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """Which rows hold values that are not finite, and why, one reason per such row."""
    names = ("ESM-2 embedding", "DNABERT-S embedding", "score")
    failed = np.zeros(rows, bool)
    first_bad = np.full(rows, -1)
    for number, matrix in enumerate(matrices):
        if matrix is not None:
            bad = ~np.isfinite(matrix).all(axis=1)
            first_bad[bad & ~failed] = number
            failed |= bad
    reasons = tuple(f"non-finite values in the {names[i]}" for i in first_bad[failed].tolist())
    return failed, reasons


def _device(name: str) -> torch.device:
    if name == "cpu":
        return torch.device("cpu")
    if name.split(":")[0] != "cuda":
        raise ConfigError(f"device {name} is unknown; use cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        raise ConfigError(f"device {name} was asked for, but torch finds no CUDA device; use cpu")
    return torch.device(name)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def _dtype(name: str) -> torch.dtype:
    if name == "fp8":
        raise ConfigError("dtype fp8 is not available yet; use bf16, fp16 or fp32")
    if name not in TORCH_DTYPES:
        raise ConfigError(f"dtype {name} is unknown; use fp32, fp16 or bf16")
    return TORCH_DTYPES[name]


def _set_threads(threads: int) -> int:
    """Sets torch's intra-op threads: powers of two only, see `ops.layers.check_widths`."""
    if threads == 0:
        cores = len(os.sched_getaffinity(0))
        threads = min(MAX_THREADS, 1 << (cores.bit_length() - 1))
    if threads < 1 or threads > MAX_THREADS or threads & (threads - 1):
        raise ConfigError(f"threads must be a power of two, at most {MAX_THREADS}, not {threads}")
    torch.set_num_threads(threads)
    return threads


def _check_models(spec: EngineSpec) -> None:
    """Reads the cards before any weights: a misfit is told at once."""
    if spec.classifier is None:
        return
    if spec.esm2 is None or spec.dnabert is None:
        raise ConfigError("a classifier needs both an ESM-2 and a DNABERT-S model")
    check_fit(read_card(spec.classifier), read_card(spec.dnabert), read_card(spec.esm2))

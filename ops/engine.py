"""The engine: loaded models of one identity on one device; a packed batch in, its results out.

What is promised of bits is promised within one numerics hash: the digest of what a fixed probe
batch gives through every model and bucket, and of what else decides rounding.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import resource
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ops.attention import BACKENDS as PLAIN_ATTENTION
from ops.classifier import classify
from ops.encoders import Encoders, Outputs, PlainEncoders, Running, Shapes
from ops.errors import ConfigError
from ops.loading import load_classifier
from ops.modelstore import check_fit, read_card
from ops.nouns import F32, I64, Batch, BatchResult, Dtype, Status

NEEDED = {
    "virus": ("esm2", "dnabert", "classifier"),
    "protein": ("esm2",),
    "dna": ("dnabert",),
}
#: Where a row goes whose values are not finite.
SAFER = {"fp8": "bf16", "bf16": "fp32", "fp16": "fp32"}
#: Compute capability that a dtype needs; Triton's kernels need 8.0.
CAPABILITIES = {"fp32": (8, 0), "fp16": (8, 0), "bf16": (8, 0), "fp8": (9, 0)}
ATTENTION = ("auto", "triton", "varlen", "flash", "grouped", "padded", "plain")
MAX_THREADS = 64


@dataclass(frozen=True)
class EngineSpec:
    """What an engine is built from; models that no pipeline of the service needs are None.

    Budgets are tokens a batch; threads: intra-op threads on the CPU, a power of two, or 0 for the
    largest that the cores allow. compile: our own kernels where there is a GPU; False for the plain
    modules, an emergency. `Engine.facts` says what runs.
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
        _check_spec(spec)
        self.threads = _set_threads(spec.threads)
        _check_models(spec)
        self.encoders = make_encoders(spec, self.device, spec.dtype)
        self.classifier = load_classifier(spec.classifier, self.device) if spec.classifier else None
        self._safer: dict[str, Encoders] = {}
        self.facts = {**self._basic_facts(), **self.encoders.facts}
        self.numerics = self._probe()
        self.facts |= {**self.encoders.facts, "numerics": self.numerics}

    def compute(self, batch: Batch) -> BatchResult:
        """Embeds and, in virus jobs, scores every row of the batch.

        A row with values that are not finite is computed once more, alone, in the next safer dtype;
        one that has none there either gets Status.FAILED and a reason. The others stand.
        Raises ConfigError when the batch's pipeline needs a model that this engine lacks.
        """
        return self.finish(self.launch(batch))

    def launch(self, batch: Batch) -> Launched:
        """Starts computing; on a GPU it returns at once, and one more batch may be launched."""
        self._require(batch.pipeline)
        classifier = self.classifier if batch.pipeline == "virus" else None
        running = self.encoders.launch(batch.esm_tokens, batch.dna_tokens, classifier)
        return Launched(batch, running)

    def finish(self, launched: Launched) -> BatchResult:
        """Waits for what was launched; see `compute`."""
        batch = launched.batch
        outputs = launched.running.result()
        dtypes = np.full(len(batch.record), Dtype[self.spec.dtype.upper()], np.uint8)
        failed, reasons = _failures(outputs, len(batch.record))
        dtype = self.spec.dtype
        while failed.any() and dtype in SAFER:
            dtype = SAFER[dtype]
            self._again(batch, np.flatnonzero(failed), dtype, outputs)
            dtypes[failed] = Dtype[dtype.upper()]
            failed, reasons = _failures(outputs, len(batch.record))
        for values in outputs:
            if values is not None:
                values[failed] = np.nan
        return self._result(batch, outputs, dtypes, failed, reasons)

    def embed(self, batch: Batch) -> tuple[F32 | None, F32 | None]:
        """ESM-2 and DNABERT-S embeddings (rows, width) fp32; None where the batch has no tokens."""
        outputs = self.encoders.launch(batch.esm_tokens, batch.dna_tokens, None).result()
        return outputs.esm2, outputs.dnabert_s

    @property
    def memory_bytes(self) -> int:
        """The largest amount of GPU memory in use so far; on the CPU, of memory."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1_024

    def width(self, name: str) -> int:
        """Of the embeddings of a model that is loaded."""
        return self.encoders.configs[name].width

    def _again(self, batch: Batch, rows: I64, dtype: str, outputs: Outputs) -> None:
        """Computes rows in another dtype, each alone, so that its bits are its own."""
        if dtype not in self._safer:
            self._safer[dtype] = make_encoders(self.spec, self.device, dtype)
        encoders = self._safer[dtype]
        classifier = self.classifier if batch.pipeline == "virus" else None
        for row in rows:
            esm, dna = (
                tokens.take(np.array([row])) if tokens is not None else None
                for tokens in (batch.esm_tokens, batch.dna_tokens)
            )
            for old, new in zip(
                outputs, encoders.launch(esm, dna, classifier).result(), strict=True
            ):
                if old is not None and new is not None:
                    old[row] = new[0]

    def _result(
        self,
        batch: Batch,
        outputs: Outputs,
        dtypes: NDArray[np.uint8],
        failed: NDArray[np.bool_],
        reasons: tuple[str, ...],
    ) -> BatchResult:
        keep = batch.keep_embeddings or batch.pipeline != "virus"
        return BatchResult.of(
            batch,
            self.numerics,
            dtype=dtypes,
            status=np.where(failed, Status.FAILED, Status.OK).astype(np.uint8),
            scores=outputs.scores,
            esm2=outputs.esm2 if keep else None,
            dnabert_s=outputs.dnabert_s if keep else None,
            reasons=reasons,
        )

    def _require(self, pipeline: str) -> None:
        have = {*self.encoders.configs, *(["classifier"] if self.classifier else [])}
        missing = [name for name in NEEDED[pipeline] if name not in have]
        if missing:
            raise ConfigError(
                f"a {pipeline} job needs the models {', '.join(NEEDED[pipeline])}, "
                f"but this worker was started without {', '.join(missing)}"
            )

    def _basic_facts(self) -> dict[str, str | int | bool]:
        """What runs where, for the log and the record."""
        return {
            "device": str(self.device),
            "device_name": _device_name(self.device),
            "dtype": self.spec.dtype,
            "threads": self.threads,
            "torch": torch.__version__,
        }

    def _probe(self) -> str:
        """The numerics hash, 16 hex digits."""
        total = hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode())
        outputs = {name: self.encoders.probe(name) for name in ("esm2", "dnabert")}
        for name, embeddings in outputs.items():
            total.update(name.encode())
            for embedding in embeddings:
                total.update(embedding.tobytes())
        if self.classifier and outputs["esm2"] and outputs["dnabert"]:
            scores = classify(self.classifier, outputs["dnabert"][0], outputs["esm2"][0])
            total.update(scores.tobytes())
        return total.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Launched:
    """A batch under way."""

    batch: Batch
    running: Running


def make_encoders(spec: EngineSpec, device: torch.device, dtype: str) -> Encoders:
    """The encoders of a specification in some dtype: the fast ones where there is a GPU for them.

    Raises ConfigError for what this machine cannot do.
    """
    shapes = Shapes(spec.esm_budget, spec.dna_budget, spec.max_rows)
    is_plain = device.type == "cpu" or not spec.compile or spec.attention in PLAIN_ATTENTION
    if is_plain:
        kind: type[Encoders] = PlainEncoders
    else:
        _require_gpu(device, dtype)
        # Only now: its kernels need Triton, which CPU builds of torch come without.
        from ops.fast_encoders import FastEncoders

        kind = FastEncoders
    return kind(spec.esm2, spec.dnabert, device, dtype, spec.attention, shapes)


def _failures(outputs: Outputs, rows: int) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """Which rows hold values that are not finite, and why, one reason per such row."""
    names = ("ESM-2 embedding", "DNABERT-S embedding", "score")
    failed = np.zeros(rows, bool)
    first_bad = np.full(rows, -1)
    for number, matrix in enumerate(outputs):
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
    device = torch.device(name)
    if device.index is not None:
        if device.index >= torch.cuda.device_count():
            raise ConfigError(
                f"device {name} is not there; torch finds {torch.cuda.device_count()}"
            )
        torch.cuda.set_device(device)  # Triton launches on the current one
    return device


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def _check_spec(spec: EngineSpec) -> None:
    if spec.dtype not in CAPABILITIES:
        raise ConfigError(f"dtype {spec.dtype} is unknown; use {', '.join(CAPABILITIES)}")
    if spec.attention not in ATTENTION:
        raise ConfigError(
            f"attention {spec.attention} is unknown; choose one of {', '.join(ATTENTION)}"
        )


def _require_gpu(device: torch.device, dtype: str) -> None:
    """ConfigError for a GPU that cannot run the kernels, or a torch without Triton."""
    if importlib.util.find_spec("triton") is None:
        raise ConfigError(
            "the GPU's kernels need Triton, which this build of torch lacks; install torch for "
            "CUDA, or set compile = false"
        )
    have, need = torch.cuda.get_device_capability(device), CAPABILITIES[dtype]
    if have < need:
        instead = "use bf16" if dtype == "fp8" else "set compile = false"
        raise ConfigError(
            f"{_device_name(device)} has compute capability {have[0]}.{have[1]}, and {dtype} needs "
            f"{need[0]}.{need[1]}; {instead}"
        )


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

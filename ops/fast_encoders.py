"""A GPU, kept busy: batches are staged, computed and copied back side by side.

What is promised of bits: a row's embedding does not depend on the rows beside it, on its place in
the batch, or on the bucket. The kernels see to the first two; the probe checks all three at every
start, and a bucket with other bits than the largest one's is not used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ops.classifier import CLASSIFIER_ROWS, Classifier
from ops.dnabert import DnabertConfig
from ops.encoders import (
    NAMES,
    PADS,
    PROBE_LENGTHS,
    SPANS,
    TORCH_DTYPES,
    Outputs,
    Running,
    Shapes,
    bucket_sizes,
    check_tokens,
    probe_tokens,
)
from ops.errors import ConfigError
from ops.esm2 import Esm2Config
from ops.fast import FastDnabert, FastEsm2
from ops.fast_attention import check_attention, choose_fast
from ops.kernels import pool_into
from ops.layers import BLOCK_ROWS
from ops.loading import load_dnabert, load_esm2, num_parameters
from ops.nouns import F32, Ragged
from ops.staging import Packed, stage


class FastEncoders:
    """See the module. dtype: fp32, fp16, bf16, or fp8 for ESM-2's products."""

    def __init__(
        self,
        esm2: Path | None,
        dnabert: Path | None,
        device: torch.device,
        dtype: str,
        attention: str,
        shapes: Shapes,
    ) -> None:
        _require_memory([path for path in (esm2, dnabert) if path], device, dtype)
        # Sums of partial products in fp32: in fp16 they would depend on how a product is split.
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        self.device = device
        self.dtype = TORCH_DTYPES[dtype]
        self.shapes = shapes
        self.buckets = {name: bucket_sizes(shapes.budget(name), "cuda") for name in NAMES}
        self.facts: dict[str, str | int | bool] = {"compile": True}
        self.configs: dict[str, Esm2Config | DnabertConfig] = {}
        self._models: dict[str, FastEsm2 | FastDnabert] = {}
        if esm2:
            self._load_esm2(esm2, attention, fp8=dtype == "fp8")
        if dnabert:
            self._load_dnabert(dnabert, attention)
        self._up, self._down = (_stream(device) for _ in range(2))

    def _load_esm2(self, folder: Path, attention: str, fp8: bool) -> None:
        self.facts["attention_esm2"], attend = choose_fast(attention, self.dtype, alibi=False)
        plain = load_esm2(folder, None, self.device, self.dtype)
        self.configs["esm2"] = config = plain.config
        check_attention(attend, self.device, self.dtype, config.heads, config.width, alibi=False)
        self._models["esm2"] = FastEsm2(plain, attend, self.buckets["esm2"][-1], fp8=fp8)

    def _load_dnabert(self, folder: Path, attention: str) -> None:
        self.facts["attention_dnabert"], attend = choose_fast(attention, self.dtype, alibi=True)
        plain = load_dnabert(folder, None, self.device, self.dtype)
        self.configs["dnabert"] = config = plain.config
        check_attention(attend, self.device, self.dtype, config.heads, config.width, alibi=True)
        self._models["dnabert"] = FastDnabert(plain, attend)

    def launch(
        self, esm: Ragged | None, dna: Ragged | None, classifier: Classifier | None
    ) -> Running:
        """Out of memory, it goes on with the next smaller bucket, for good."""
        while True:
            try:
                parts = [self._launch(esm, dna, rows, classifier) for rows in self._split(esm, dna)]
                return _FastRunning(parts)
            except torch.OutOfMemoryError:
                if not self._shrink():
                    raise

    def _shrink(self) -> bool:
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        shrunk = False
        for name, buckets in self.buckets.items():
            if len(buckets) > 1:
                self.buckets[name] = buckets[:-1]
                shrunk = True
        return shrunk

    def _split(self, esm: Ragged | None, dna: Ragged | None) -> Iterator[slice]:
        """Runs of rows that fit into the largest bucket; a longer sequence goes alone."""
        sides = [
            (tokens.lengths, self.buckets[name][-1])
            for name, tokens in (("esm2", esm), ("dnabert", dna))
            if tokens is not None
        ]
        rows = len(sides[0][0])
        first = 0
        left = [limit for _, limit in sides]
        for row in range(rows):
            need = [int(lengths[row]) for lengths, _ in sides]
            full = any(n > have for n, have in zip(need, left, strict=True))
            if row > first and (full or row - first >= self.shapes.max_rows):
                yield slice(first, row)
                first, left = row, [limit for _, limit in sides]
            left = [have - n for have, n in zip(left, need, strict=True)]
        yield slice(first, rows)

    def _launch(
        self, esm: Ragged | None, dna: Ragged | None, rows: slice, classifier: Classifier | None
    ) -> _Part:
        # In the order in which the classifier joins them.
        sides = {n: t for n, t in (("dnabert", dna), ("esm2", esm)) if t is not None}
        main = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._up):
            packed = {name: self._stage(tokens, rows, name) for name, tokens in sides.items()}
        main.wait_stream(self._up)
        begun, done = _event(timing=True), _event(timing=True)
        begun.record(main)
        count = rows.stop - rows.start
        places, width = {}, 0
        for name in sides:
            places[name] = slice(width, width + self.configs[name].width)
            width = places[name].stop
        # Rows for whole calls of the classifier; two columns for scores, and two to keep rows
        # aligned.
        held = -(-self.shapes.max_rows // CLASSIFIER_ROWS) * CLASSIFIER_ROWS
        out = torch.zeros(held, width + 4, device=self.device)
        for name, staged in packed.items():
            if staged is not None:
                staged.tokens.record_stream(main)
                pool_into(out[:, places[name]], self._models[name](staged), staged.spans)
        if classifier is not None and len(sides) == len(NAMES):
            places["scores"] = slice(width, width + 2)
            for first in range(0, count, CLASSIFIER_ROWS):
                part = slice(first, first + CLASSIFIER_ROWS)
                out[part, places["scores"]] = classifier(out[part, :width])
        done.record(main)
        return _Part(*self._copy_back(out[:count], done), places, begun, done)

    def _stage(self, tokens: Ragged, rows: slice, name: str) -> Packed | None:
        if rows.stop == rows.start:
            return None
        mine = tokens.take(np.arange(rows.start, rows.stop))
        check_tokens(mine, self.configs[name].vocab, name)
        bucket = self._bucket(len(mine.data), name)
        return stage(mine, bucket, self.shapes.max_rows, SPANS[name], PADS[name], self.device)

    def _copy_back(self, out: Tensor, done: torch.cuda.Event) -> tuple[Tensor, torch.cuda.Event]:
        copied = _event(timing=False)
        with torch.cuda.stream(self._down):
            self._down.wait_event(done)
            host = torch.empty(out.shape, pin_memory=True)
            host.copy_(out, non_blocking=True)
            out.record_stream(self._down)
            copied.record(self._down)
        return host, copied

    def _bucket(self, total: int, name: str) -> int:
        held = next((bucket for bucket in self.buckets[name] if bucket >= total), None)
        return held or -(-total // BLOCK_ROWS) * BLOCK_ROWS

    def probe(self, name: str) -> list[F32]:
        """Fills every bucket with repetitions: all must give the same bits, wherever they lie.

        Buckets that give others than the largest are not used from here on.
        """
        if name not in self._models:
            return []
        found = {rows: self._probe(name, rows) for rows in self.buckets[name]}
        top = found[self.buckets[name][-1]]
        if top is None:
            raise ConfigError(
                f"{name} gives other bits at other places of a batch on this machine; set "
                "compile = false, and report the versions of `vnp doctor`"
            )
        agree = [
            r for r, bits in found.items() if bits is not None and bits.tobytes() == top.tobytes()
        ]
        known = bool(self.facts.get("buckets_agree", True))
        self.facts["buckets_agree"] = known and len(agree) == len(found)
        self.buckets[name] = agree
        return [top]

    def _probe(self, name: str, rows: int) -> F32 | None:
        """The probe's embeddings; None when repetitions differ."""
        repetitions = min(rows // BLOCK_ROWS, self.shapes.max_rows // len(PROBE_LENGTHS)) or 1
        tokens = probe_tokens(self.configs[name].vocab, repetitions)
        many = max(self.shapes.max_rows, len(PROBE_LENGTHS))
        packed = stage(tokens, rows, many, SPANS[name], PADS[name], self.device)
        out = torch.zeros(many, self.configs[name].width, device=self.device)
        pool_into(out, self._models[name](packed), packed.spans)
        values: F32 = out[: len(tokens)].cpu().numpy()
        values = values.reshape(repetitions, len(PROBE_LENGTHS), -1)
        bits = values.view(np.uint32)  # a model may overflow on the probe: NaN is itself, too
        return values[0] if (bits == bits[:1]).all() else None


@dataclass(frozen=True, eq=False)
class _Part:
    """One launch: its pinned result, what lies in which columns of it, and its events."""

    host: Tensor
    copied: torch.cuda.Event
    places: dict[str, slice]
    begun: torch.cuda.Event
    done: torch.cuda.Event

    def outputs(self) -> Outputs:
        self.copied.synchronize()
        values: F32 = self.host.numpy()
        columns = {name: values[:, place] for name, place in self.places.items()}
        return Outputs(columns.get("esm2"), columns.get("dnabert"), columns.get("scores"))


class _FastRunning:
    def __init__(self, parts: list[_Part]) -> None:
        self._parts = parts

    @property
    def busy_s(self) -> float:
        return sum(float(part.begun.elapsed_time(part.done)) for part in self._parts) / 1_000

    def result(self) -> Outputs:
        found = [part.outputs() for part in self._parts]
        esm2, dnabert_s, scores = (_joined(column) for column in zip(*found, strict=True))
        return Outputs(esm2, dnabert_s, scores)


def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _event(timing: bool) -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=timing)  # type: ignore[no-untyped-call]


def _joined(parts: tuple[F32 | None, ...]) -> F32 | None:
    there = [part for part in parts if part is not None]
    return np.concatenate(there) if there else None


def _require_memory(folders: list[Path], device: torch.device, dtype: str) -> None:
    """ConfigError, before any weights are read, where they do not fit."""
    size = torch.finfo(TORCH_DTYPES[dtype]).bits // 8
    need = sum(num_parameters(folder) for folder in folders) * size
    free, _ = torch.cuda.mem_get_info(device)
    if need > free:
        raise ConfigError(
            f"the models take {need / 1e9:.1f} GB of GPU memory at {dtype}, and {free / 1e9:.1f} "
            "GB are free; choose a smaller model or another device"
        )

"""`vnp bench gpu`: what a GPU gives, side by side in one run, with random weights of true shapes.

The arms, in ESM-2 tokens a second (real ones; padding never counts):

| arm | what runs |
|---|---|
| fair-esm fp32 | the original's way: 2,048 tokens a batch, padded |
| fair-esm fp16 | padded, sorted by length |
| transformers | EsmModel, bf16, SDPA, padded, sorted by length; eager and compiled |
| products | the matrix products of a layer alone, at the same shapes: the ceiling |
| model | our encoder alone, packed |
| engine | what a gpu worker does: both encoders, classifier, copies, two batches in hand |
| service | FASTA to tables: `vnpd` with Redis and packers on this machine |
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby, islice, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ops.classifier import ClassifierConfig
from ops.dna_tokens import DnaTokenizer
from ops.engine import Engine, EngineSpec
from ops.errors import ConfigError
from ops.fasta import read_inputs
from ops.frames import num_chunks
from ops.modelstore import BUNDLED, DEFAULT_NAMES, TOKENIZER, tokenizer_path
from ops.nouns import I64, Batch, Ragged, ShardTask
from ops.packing import Budgets, pack
from ops.prepare import prepare
from ops.random_model import DNABERT_S, ESM2_SIZES, write_random_model

#: Tokens of a frame of 500 bp: 166 residues and the two ends.
FRAME_TOKENS = 168
PADDED_TOKENS = 32_768
ORIGINAL_TOKENS = 2_048
FRAGMENT = 500
WARM = 2
Say = Callable[[str], None]


class Bench:
    """One run; `rows` collects a line of figures per arm."""

    def __init__(self, folder: Path, sizes: Sequence[str], seconds: float, say: Say) -> None:
        if not torch.cuda.is_available():
            raise ConfigError("vnp bench gpu needs a CUDA device, and torch finds none")
        self.folder = folder
        self.sizes = sizes
        self.seconds = seconds
        self.rows: list[dict[str, Any]] = []
        self._say = say
        self._rng = np.random.default_rng(0)
        self.lengths = {
            "166 aa": np.full(2_000, FRAME_TOKENS),
            "30..1000 aa": natural_lengths(self._rng, 2_000),
        }

    def models(self, size: str) -> EngineSpec:
        """Folders of random models, written once."""
        esm2 = self.folder / f"esm2-{size}"
        dnabert, classifier = self.folder / "dnabert-s", self.folder / f"classifier-{size}"
        widths = (DNABERT_S.width, ESM2_SIZES[size].width)
        if not classifier.exists():
            write_random_model(esm2, ESM2_SIZES[size], "cuda")
            write_random_model(dnabert, DNABERT_S, "cuda", seed=1)
            shutil.copy(tokenizer_path(BUNDLED / DEFAULT_NAMES["dnabert"]), dnabert / TOKENIZER)
            write_random_model(classifier, ClassifierConfig(widths), "cuda")
        return EngineSpec(
            esm2, dnabert, classifier, "cuda", "bf16", esm_budget=32_768, dna_budget=24_576
        )

    # -- arms --------------------------------------------------------------------------------

    def original(self, size: str) -> None:
        """fair-esm: fp32 in small batches as the original does it, and fp16 at its best."""
        from esm.data import Alphabet
        from esm.model.esm2 import ESM2

        config = ESM2_SIZES[size]
        with torch.device("cuda"):
            model = ESM2(
                config.layers, config.width, config.heads, Alphabet.from_architecture("ESM-1b")
            )
        model.eval().requires_grad_(False)
        layer = config.layers

        def run(tokens: Tensor) -> None:
            model(tokens, repr_layers=[layer])

        for name, lengths in self.lengths.items():
            self._padded(f"fair-esm fp32, {name}", size, run, lengths, ORIGINAL_TOKENS)
        model.half()
        for name, lengths in self.lengths.items():
            self._padded(f"fair-esm fp16, {name}", size, run, lengths, PADDED_TOKENS)

    def transformers(self, size: str) -> None:
        """transformers' EsmModel, eager and with the whole model compiled."""
        from transformers import EsmConfig, EsmModel

        config = ESM2_SIZES[size]
        settings = EsmConfig(
            vocab_size=33,
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.ffn,
            position_embedding_type="rotary",
            token_dropout=True,
            mask_token_id=32,
            pad_token_id=1,
        )
        settings._attn_implementation = "sdpa"
        with torch.device("cuda"):
            model: nn.Module = EsmModel(settings, add_pooling_layer=False)
        model = model.to(torch.bfloat16).eval().requires_grad_(False)

        def run(tokens: Tensor) -> None:
            model(input_ids=tokens, attention_mask=(tokens != 1).long())

        for name, lengths in self.lengths.items():
            self._padded(f"transformers bf16, {name}", size, run, lengths, PADDED_TOKENS)
        model.compile(dynamic=False)
        frames = self.lengths["166 aa"]
        self._padded("transformers bf16 compiled, 166 aa", size, run, frames, PADDED_TOKENS)

    def products(self, size: str, dtype: str) -> None:
        """The matrix products of one layer, of as many tokens as a batch holds."""
        from ops import kernels
        from ops.fast import linear_fp8, to_fp8

        config = ESM2_SIZES[size]
        shapes = (
            (config.width, 3 * config.width),
            (config.width, config.width),
            (config.width, config.ffn),
            (config.ffn, config.width),
        )
        with torch.device("cuda"):
            layers = [
                nn.Linear(*shape).to(torch.bfloat16).requires_grad_(False) for shape in shapes
            ]
            inputs = [torch.randn(PADDED_TOKENS, k, dtype=torch.bfloat16) for k, _ in shapes]
        calls: list[Callable[[], object]] = []
        for layer, values in zip(layers, inputs, strict=True):
            if dtype == "fp8":
                weight, (small, scales) = to_fp8(layer), kernels.quantise(values)
                calls.append(lambda w=weight, a=small, s=scales: linear_fp8(a, s, w))  # type: ignore[misc]
            else:
                calls.append(lambda m=layer, a=values: m(a))  # type: ignore[misc]

        def run() -> None:
            for _ in range(config.layers):
                for call in calls:
                    call()

        took = self._time(run)
        self._add("products", size, dtype, PADDED_TOKENS / took)

    def model(self, size: str, dtype: str, attention: str = "auto") -> None:
        """Our encoder alone on full packed batches, embeddings left on the device."""
        from ops.fast_encoders import FastEncoders

        spec = replace(self.models(size), dtype=dtype, attention=attention, classifier=None)
        engine = Engine(replace(spec, dnabert=None))
        encoders = engine.encoders
        assert isinstance(encoders, FastEncoders)
        for name, lengths in self.lengths.items():
            batches = [self._tokens(lengths[rows]) for rows in packed_rows(lengths)][:4]

            def run(batches: list[Ragged] = batches) -> None:
                for tokens in batches:
                    encoders.launch(tokens, None, None)

            tokens = sum(len(batch.data) for batch in batches)
            self._add(f"model {attention}, {name}", size, dtype, tokens / self._time(run))

    def dnabert(self) -> None:
        """DNABERT-S alone, in its own tokens."""
        engine = Engine(
            replace(self.models(self.sizes[0]), esm2=None, classifier=None, dna_budget=32_768)
        )
        for length in (110, 512):
            tokens = self._tokens(np.full(PADDED_TOKENS // length, length))

            def run(tokens: Ragged = tokens) -> None:
                engine.encoders.launch(None, tokens, None)

            self._add(
                f"model, {length} tokens", "DNABERT-S", "bf16", len(tokens.data) / self._time(run)
            )

    def engine(self, size: str, dtype: str, fasta: Path) -> None:
        """Everything that a gpu worker does between taking a batch and publishing its result."""
        began = time.monotonic()
        engine = Engine(replace(self.models(size), dtype=dtype))
        start_s = time.monotonic() - began
        tokenizer = DnaTokenizer(tokenizer_path(self.folder / "dnabert-s"))
        torch.cuda.reset_peak_memory_stats()
        batches: list[Batch] = []
        for task in tasks(fasta, 12):
            budgets = Budgets(engine.spec.esm_budget, engine.spec.dna_budget, engine.spec.max_rows)
            batches += prepare(task, tokenizer, budgets, 8_192)[0]

        def run() -> float:
            busy = 0.0
            launched = [engine.launch(batches[0])]
            for batch in [*batches[1:], None]:
                if batch is not None:
                    launched.append(engine.launch(batch))
                oldest = launched.pop(0)
                engine.finish(oldest)
                busy += oldest.running.busy_s
            return busy

        run()
        began = time.monotonic()
        busy = rounds = 0.0
        while time.monotonic() - began < self.seconds / 2:
            busy += run()
            rounds += 1
        took = time.monotonic() - began
        tokens = rounds * sum(len(b.esm_tokens.data) for b in batches if b.esm_tokens is not None)
        frames = rounds * sum(len(batch.record) for batch in batches)
        self._add(
            "engine",
            size,
            dtype,
            tokens / took,
            frames_per_s=round(frames / took, 1),
            busy=round(busy / took, 4),
            peak_gb=round(torch.cuda.max_memory_allocated() / 1e9, 1),
            start_s=round(start_s, 1),
        )

    def service(self, size: str, dtype: str, fasta: Path) -> None:
        """`vnpd` and `vnp-submit --wait`, from FASTA to tables."""
        spec = self.models(size)
        state, out = self.folder / "state", self.folder / "out"
        for folder in (state, out):
            shutil.rmtree(folder, ignore_errors=True)
        settings = {
            "STATE_DIR": state,
            "DEVICE": "cuda:0",
            "DTYPE": dtype,
            "ESM2": spec.esm2,
            "DNABERT": spec.dnabert,
            "CLASSIFIER": spec.classifier,
            "HEARTBEAT_S": 5,
        }
        environment = {**os.environ, **{f"VNP_{k}": str(v) for k, v in settings.items()}}
        python = [sys.executable, "-m"]
        began = time.monotonic()
        with subprocess.Popen(
            [*python, "daemon.vnpd"], env=environment, stderr=subprocess.DEVNULL
        ) as vnpd:
            try:
                submit = [*python, "daemon.cli", "submit", str(fasta), "--out", str(out), "--wait"]
                while b"service.ready" not in _content(state / "vnp.log"):
                    time.sleep(0.2)
                ready_s = time.monotonic() - began
                began = time.monotonic()
                subprocess.run(submit, env=environment, check=True, capture_output=True)
                took = time.monotonic() - began
            finally:
                vnpd.terminate()
        lines = [json.loads(line) for line in (state / "vnp.log").read_text().splitlines()]
        busy = [line for line in lines if line["event.name"] == "gpu.busy"]
        steady = busy[1:-1] or busy
        seconds = sum(line["seconds"] for line in steady)
        counts = json.loads((out / "run.json").read_text())["counts"]
        tokens = sum(line["esm_tokens"] for line in steady)
        self._add(
            "service",
            size,
            dtype,
            tokens / seconds,
            frames_per_s=round(sum(line["rows"] for line in steady) / seconds, 1),
            busy=round(sum(line["busy"] * line["seconds"] for line in steady) / seconds, 4),
            gpu_s=round(sum(line["busy"] * line["seconds"] for line in busy), 1),
            ready_s=round(ready_s, 1),
            wall_s=round(took, 1),
            counts=counts,
        )

    # -- what arms share ---------------------------------------------------------------------

    def _padded(
        self, arm: str, size: str, run: Callable[[Tensor], None], lengths: I64, budget: int
    ) -> None:
        """Batches sorted by length, padded to their longest, of at most `budget` tokens."""
        batches = list(padded_rows(np.sort(lengths)[::-1], budget))
        keep = batches[:: max(1, len(batches) // 4)][:4]
        tensors = [self._padded_tokens(batch) for batch in keep]

        def all_of_them() -> None:
            with torch.inference_mode():
                for tensor in tensors:
                    run(tensor)

        real = sum(int(batch.sum()) for batch in keep)
        self._add(arm, size, "", real / self._time(all_of_them))

    def _padded_tokens(self, lengths: I64) -> Tensor:
        tokens = torch.full((len(lengths), int(lengths.max())), 1)
        for row, length in enumerate(lengths.tolist()):
            tokens[row, :length] = torch.from_numpy(self._rng.integers(4, 24, length))
        return tokens.cuda()

    def _tokens(self, lengths: I64) -> Ragged:
        return Ragged.from_lengths(self._rng.integers(4, 24, int(lengths.sum())), lengths)

    def _time(self, run: Callable[[], object]) -> float:
        """Seconds of one call, the mean over about `seconds` / 4."""
        for _ in range(WARM):
            run()
        torch.cuda.synchronize()
        began = time.monotonic()
        rounds = 0
        while time.monotonic() - began < self.seconds / 4:
            run()
            torch.cuda.synchronize()
            rounds += 1
        return (time.monotonic() - began) / rounds

    def _add(self, arm: str, size: str, dtype: str, tokens_per_s: float, **more: Any) -> None:
        self.rows.append(
            {"arm": arm, "model": size, "dtype": dtype, "tokens_per_s": round(tokens_per_s), **more}
        )
        extra = "  ".join(f"{k} {v}" for k, v in more.items() if k != "counts")
        self._say(f"{size:10} {dtype:5} {arm:38} {tokens_per_s:12,.0f} tokens/s  {extra}")
        gc.collect()
        torch.cuda.empty_cache()


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def natural_lengths(rng: np.random.Generator, count: int) -> I64:
    """Tokens of proteins of 30 to 1,000 residues: log-normal, median 290, sigma 0.75."""
    residues = np.exp(rng.normal(np.log(290), 0.75, count * 2))
    inside = residues[(residues >= 30) & (residues <= 1_000)][:count]
    return inside.astype(np.int64) + 2


def packed_rows(lengths: I64) -> list[I64]:
    """Full batches of PADDED_TOKENS."""
    return pack(lengths, None, Budgets(PADDED_TOKENS, 0, 1_024))


def padded_rows(lengths: I64, budget: int) -> Iterator[I64]:
    """Runs of lengths, longest first, whose padded size is at most the budget."""
    first = 0
    while first < len(lengths):
        many = max(1, budget // int(lengths[first]))
        yield lengths[first : first + many]
        first += many


def write_fragments(genomes: Sequence[Path], target: Path, count: int) -> None:
    """FASTA of `count` fragments of FRAGMENT bp from random places of the genomes."""
    long = [sequence for sequence in whole_records(genomes) if len(sequence) >= FRAGMENT]
    if not long:
        raise ConfigError(f"the genomes hold no record of {FRAGMENT} bp")
    rng = np.random.default_rng(0)
    weights = np.array([len(sequence) for sequence in long], float)
    which = rng.choice(len(long), count, p=weights / weights.sum())
    with target.open("wb") as file:
        for number, genome in enumerate(which.tolist()):
            start = int(rng.integers(0, len(long[genome]) - FRAGMENT + 1))
            file.write(b">fragment_%d\n%s\n" % (number, long[genome][start : start + FRAGMENT]))


def whole_records(paths: Sequence[Path]) -> Iterator[bytes]:
    """The letters of every record."""
    for _, pieces in groupby(read_inputs(paths, "nucleotide"), key=lambda piece: piece.ordinal):
        yield b"".join(piece.letters for piece in pieces)


def tasks(fasta: Path, count: int) -> Iterable[ShardTask]:
    """Shards of 2,000 fragments each, as the planner would cut them."""
    records = whole_records([fasta])
    for shard in range(count):
        own = list(islice(records, 2_000))
        lengths = np.array([len(letters) for letters in own], np.int64)
        chunks = num_chunks(lengths, FRAGMENT).astype(np.uint32)
        yield ShardTask(
            job="bench",
            shard=shard,
            identity="bench",
            pipeline="virus",
            chunk_length=FRAGMENT,
            keep_embeddings=False,
            uracil_as_t=True,
            record=np.arange(len(own), dtype=np.uint64),
            name=Ragged.from_bytes([b""] * len(own)),
            length=lengths.astype(np.uint64),
            num_chunks=chunks,
            first_chunk=np.zeros(len(own), np.uint32),
            stop_chunk=chunks,
            offset=np.zeros(len(own), np.uint64),
            sequence=Ragged.from_bytes(own),
        )


def run(
    folder: Path,
    genomes: Sequence[Path],
    sizes: Sequence[str],
    dtypes: Sequence[str],
    arms: Sequence[str],
    fragments: int,
    seconds: float,
    say: Say,
) -> list[dict[str, Any]]:
    """The arms that were asked for, side by side; returns their lines of figures."""
    bench = Bench(folder, sizes, seconds, say)
    fasta = folder / "fragments.fa"
    folder.mkdir(parents=True, exist_ok=True)
    write_fragments(genomes, fasta, fragments)
    of_a_size: dict[str, Callable[[str], None]] = {
        "original": bench.original,
        "transformers": bench.transformers,
    }
    of_a_dtype: dict[str, Callable[[str, str], None]] = {
        "products": bench.products,
        "model": bench.model,
        "varlen": partial(bench.model, attention="varlen"),
        "engine": partial(bench.engine, fasta=fasta),
        "service": partial(bench.service, fasta=fasta),
    }
    for size in sizes:
        bench.models(size)
        for name in (name for name in of_a_size if name in arms):
            of_a_size[name](size)
        for dtype, name in product(dtypes, of_a_dtype):
            if name in arms:
                of_a_dtype[name](size, dtype)
    if "dnabert" in arms:
        bench.dnabert()
    return bench.rows

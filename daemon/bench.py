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
| service | FASTA to tables: `vnpd` with Redis and packers on this machine, on one device or more |
"""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from daemon.bench_input import tasks, write_fragments
from daemon.bench_service import compare, in_line, measure_service
from ops.classifier import ClassifierConfig
from ops.dna_tokens import DnaTokenizer
from ops.engine import Engine, EngineSpec
from ops.errors import ConfigError
from ops.modelstore import BUNDLED, DEFAULT_NAMES, TOKENIZER, tokenizer_path
from ops.nouns import I64, Batch, Ragged
from ops.packing import Budgets, pack
from ops.prepare import prepare
from ops.random_model import DNABERT_S, ESM2_SIZES, write_random_model

#: Tokens of a frame of 500 bp: 166 residues and the two ends.
FRAME_TOKENS = 168
PADDED_TOKENS = 32_768
ORIGINAL_TOKENS = 2_048
WARM = 2
#: Figures of a row that its line on the screen leaves out.
NOT_IN_A_LINE = {"counts", "by_device", "bytes"}
Say = Callable[[str], None]


class Bench:
    """One run; `rows` collects a line of figures per arm.

    devices: how many the service runs on, one after another; every other arm has the first.
    """

    def __init__(
        self,
        folder: Path,
        sizes: Sequence[str],
        seconds: float,
        say: Say,
        devices: Sequence[int] = (1,),
    ) -> None:
        _require_devices(max(devices))
        self.folder = folder
        self.sizes = sizes
        self.seconds = seconds
        self.devices = devices
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
        """The same fragments through `vnpd` on as many devices as were asked for, in turn."""
        spec = self.models(size)
        settings = {
            "DTYPE": dtype,
            "ESM2": spec.esm2,
            "DNABERT": spec.dnabert,
            "CLASSIFIER": spec.classifier,
            "HEARTBEAT_S": 5,
        }
        first: dict[str, Any] | None = None
        for count in self.devices:
            devices = [f"cuda:{number}" for number in range(count)]
            figures = measure_service(self.folder, settings, devices, fasta)
            first = first or figures
            for device in figures["by_device"]:
                self._say(f"  {in_line(device)}")
            name = "service" if count == 1 else f"service, {count} devices"
            compared = compare(figures, first) if len(self.devices) > 1 else {}
            self._add(name, size, dtype, figures.pop("tokens_per_s"), **compared, **figures)

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
        extra = "  ".join(f"{k} {v}" for k, v in more.items() if k not in NOT_IN_A_LINE)
        self._say(f"{size:10} {dtype:5} {arm:38} {tokens_per_s:12,.0f} tokens/s  {extra}")
        gc.collect()
        torch.cuda.empty_cache()


def _require_devices(count: int) -> None:
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found < count:
        needed = "a CUDA device" if count == 1 else f"{count} CUDA devices"
        raise ConfigError(f"vnp bench gpu needs {needed}, and torch finds {found or 'none'}")


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


def run(
    folder: Path,
    genomes: Sequence[Path],
    sizes: Sequence[str],
    dtypes: Sequence[str],
    arms: Sequence[str],
    fragments: int,
    seconds: float,
    say: Say,
    devices: Sequence[int] = (1,),
) -> list[dict[str, Any]]:
    """The arms that were asked for, side by side; returns their lines of figures."""
    bench = Bench(folder, sizes, seconds, say, devices)
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

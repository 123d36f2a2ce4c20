"""The fast path on a real GPU: against the plain one, bit by bit against itself, and in trouble."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ops.classifier import ClassifierConfig
from ops.dnabert import DnabertConfig
from ops.engine import Engine, EngineSpec
from ops.errors import ConfigError
from ops.esm2 import Esm2Config
from ops.nouns import BatchResult, Dtype, Ragged, Status
from ops.random_model import DNABERT_S, ESM2_SIZES, write_random_model
from tests.unit.model_fixtures import make_batch, random_tokens, relative_l2

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

#: Head widths 16, 24, 32 and 64, as the published sizes have.
ESM2 = {
    "16": Esm2Config(64, 3, 4, 256),
    "24": Esm2Config(96, 3, 4, 384),
    "32": Esm2Config(128, 3, 4, 512),
    "64": Esm2Config(256, 3, 4, 1_024),
}
DNABERT = DnabertConfig(256, 3, 4, 512, 512)
COLUMNS = ("scores", "esm2", "dnabert_s")


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> EngineSpec:
    root = tmp_path_factory.mktemp("models")
    return EngineSpec(
        write_random_model(root / "esm2", ESM2["64"]),
        write_random_model(root / "dnabert", DNABERT),
        write_random_model(root / "classifier", ClassifierConfig((256, 256), 64)),
        device="cuda",
        dtype="bf16",
        esm_budget=8_192,
        dna_budget=6_144,
    )


@pytest.fixture(autouse=True)
def _memory_back() -> Iterator[None]:
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def frames(rows: int = 300, seed: int = 0) -> tuple[Ragged, Ragged]:
    rng = np.random.default_rng(seed)
    esm_tokens = random_tokens(rng.integers(3, 400, rows).tolist(), seed=seed)
    dna_tokens = random_tokens(rng.integers(3, 120, rows).tolist(), vocab=512, seed=seed + 1)
    return esm_tokens, dna_tokens


def same_bits(part: BatchResult, whole: BatchResult, rows: np.ndarray) -> None:
    for name in COLUMNS:
        assert getattr(part, name).tobytes() == getattr(whole, name)[rows].tobytes(), name


BACKENDS = [
    ("bf16", "triton"),
    ("fp16", "triton"),
    ("fp8", "triton"),
    ("fp32", "triton"),
    ("bf16", "varlen"),
    ("fp16", "varlen"),
]


@pytest.mark.parametrize(("dtype", "attention"), BACKENDS)
def test_bits_do_not_depend_on_batches(spec: EngineSpec, dtype: str, attention: str) -> None:
    # Given 300 rows in one batch, larger than the budget
    engine = Engine(replace(spec, dtype=dtype, attention=attention))
    esm, dna = frames()
    whole = engine.compute(make_batch("virus", esm, dna))
    # When they are computed alone, permuted, in other company, and in other buckets
    order = np.random.default_rng(5).permutation(300)
    for rows in (order[:1], order[1:2], order[2:30], order[30:], order[::-1]):
        part = engine.compute(make_batch("virus", esm.take(rows), dna.take(rows)))
        # Then each has the same bits
        same_bits(part, whole, rows)
    # And in another process' engine, with other budgets
    other = Engine(
        replace(spec, dtype=dtype, attention=attention, esm_budget=32_768, dna_budget=24_576)
    )
    same_bits(other.compute(make_batch("virus", esm, dna)), whole, np.arange(300))
    if engine.facts["buckets_agree"] and other.facts["buckets_agree"]:
        assert other.numerics == engine.numerics


#: Largest relative L2 of any pooled row from fp32: some roundings of 2**-9 (bf16), 2**-12 (fp16)
#: and 2**-4 (fp8) a layer.
LIMITS = {"fp32": 2e-5, "fp16": 5e-3, "bf16": 4e-2, "fp8": 0.2}


@pytest.mark.parametrize("dtype", list(LIMITS))
@pytest.mark.parametrize("heads", list(ESM2))
def test_fast_and_plain_agree(spec: EngineSpec, tmp_path: Path, heads: str, dtype: str) -> None:
    # Given the plain modules in fp32 on the CPU, and the fast ones
    esm2 = write_random_model(tmp_path / "esm2", ESM2[heads])
    fast = Engine(replace(spec, esm2=esm2, classifier=None, dtype=dtype))
    plain = Engine(replace(spec, esm2=esm2, classifier=None, device="cpu", dtype="fp32"))
    esm, dna = frames(40)
    # When both embed the same rows
    for ours, theirs in zip(
        fast.embed(make_batch("virus", esm, dna)),
        plain.embed(make_batch("virus", esm, dna)),
        strict=True,
    ):
        # Then no row is further away than rounding takes it
        assert ours is not None
        assert theirs is not None
        assert relative_l2(torch.from_numpy(ours), torch.from_numpy(theirs)) < LIMITS[dtype]


def test_the_next_batch_may_be_launched_before_the_first_is_finished(spec: EngineSpec) -> None:
    # Given batches computed one by one
    engine = Engine(spec)
    batches = [make_batch("virus", *frames(200, seed)) for seed in range(6)]
    alone = [engine.compute(batch) for batch in batches]
    # When all are launched before any is finished
    launched = [engine.launch(batch) for batch in batches]
    # Then results are the same
    for result, expected in zip(map(engine.finish, launched), alone, strict=True):
        same_bits(result, expected, np.arange(200))
    assert all(each.running.busy_s > 0 for each in launched)


def test_nothing_is_compiled_after_the_start(spec: EngineSpec) -> None:
    # Given an engine that has run its probe
    from ops.kernels import compiled

    engine = Engine(spec)
    engine.compute(make_batch("virus", *frames(20)))
    before = compiled()
    # When batches of all shapes follow
    for rows in (0, 1, 7, 150, 900):
        engine.compute(make_batch("virus", *frames(rows, rows)))
    engine.compute(make_batch("virus", random_tokens([9_000]), random_tokens([3], vocab=512)))
    # Then every kernel is there already
    assert compiled() == before


def test_a_row_that_overflows_goes_up_the_ladder(spec: EngineSpec, tmp_path: Path) -> None:
    # Given a model in which one amino acid overflows fp16, in one layer's inside
    from safetensors.torch import load_file, save_file

    esm2 = write_random_model(tmp_path / "esm2", ESM2["64"], dtype=torch.float32)
    tensors = load_file(esm2 / "model.safetensors")
    tensors["embed_tokens.weight"][20] *= 1e5
    save_file(tensors, esm2 / "model.safetensors")
    engine = Engine(replace(spec, esm2=esm2, dtype="fp16"))
    esm, dna = frames(30)
    clean = Ragged(np.where(esm.data == 20, 19, esm.data), esm.offsets)
    mixed = Ragged(clean.data.copy(), clean.offsets)
    for row in (4, 17):
        mixed[row][1] = 20
    # When it computes a batch with it in two rows
    result = engine.compute(make_batch("virus", mixed, dna))
    expected = engine.compute(make_batch("virus", clean, dna))
    # Then those two are computed in fp32, alone, and say so; the others stand
    assert result.status.tolist() == [Status.OK] * 30
    safer = np.flatnonzero(result.dtype == Dtype.FP32)
    assert safer.tolist() == [4, 17]
    exact = Engine(replace(spec, esm2=esm2, dtype="fp32"))
    again = exact.compute(make_batch("virus", mixed.take(safer), dna.take(safer)))
    assert np.allclose(result.esm2[safer], again.esm2, rtol=1e-4, atol=1e-5)
    others = np.flatnonzero(result.dtype == Dtype.FP16)
    same_bits(
        engine.compute(make_batch("virus", clean.take(others), dna.take(others))), expected, others
    )
    for name in COLUMNS:
        ours, theirs = getattr(result, name), getattr(expected, name)
        assert ours[others].tobytes() == theirs[others].tobytes()


def test_out_of_memory_goes_on_with_smaller_batches(spec: EngineSpec, tmp_path: Path) -> None:
    # Given a model whose largest batches need about 3 GB, and the results with enough memory
    esm2 = write_random_model(tmp_path / "esm2", Esm2Config(1_280, 2, 20, 5_120))
    large = replace(spec, esm2=esm2, classifier=None, dnabert=None, esm_budget=65_536)
    engine = Engine(large)
    batch = make_batch("protein", random_tokens([300] * 210))
    expected = engine.compute(batch)
    # When another process takes all but a gigabyte
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    used = torch.cuda.memory_reserved()
    torch.cuda.set_per_process_memory_fraction((used + (600 << 20)) / total)
    result = engine.compute(batch)
    # Then results are the same, in smaller batches
    assert engine.encoders.buckets["esm2"][-1] < 65_536
    assert result.esm2.tobytes() == expected.esm2.tobytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": "fp8", "compile": False}, "fp8 needs a GPU and compile = true"),
        ({"dtype": "fp32", "attention": "varlen"}, "needs --dtype bf16"),
        ({"attention": "flash"}, "needs the flash-attn package"),
        ({"attention": "varlen", "compile": False}, "varlen needs a GPU and compile = true"),
    ],
)
def test_what_cannot_be_had_is_said(
    spec: EngineSpec, change: dict[str, object], words: str
) -> None:
    if "flash" in change.values() and importlib.util.find_spec("flash_attn"):
        pytest.skip("flash-attn is installed")
    with pytest.raises(ConfigError, match=words):
        Engine(replace(spec, **change))  # type: ignore[arg-type]


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(
    spec: EngineSpec, tmp_path: Path
) -> None:
    # Given a GPU that somebody else has filled
    esm2 = write_random_model(tmp_path / "esm2", ESM2_SIZES["650M"], device="cuda")
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    ballast = torch.empty(free - (1 << 30), dtype=torch.uint8, device="cuda")
    # When a model of 1.3 GB is wanted, then the error names both figures
    with pytest.raises(ConfigError, match=r"1\.3 GB of GPU memory at bf16, and 1\.\d GB are free"):
        Engine(replace(spec, esm2=esm2, classifier=None, dnabert=None))
    del ballast


def test_published_shapes(spec: EngineSpec, tmp_path: Path) -> None:
    # Given models of published shapes, random
    esm2 = write_random_model(tmp_path / "esm2", ESM2_SIZES["150M"], device="cuda")
    dnabert = write_random_model(tmp_path / "dnabert", DNABERT_S, device="cuda")
    fast = replace(spec, esm2=esm2, dnabert=dnabert, classifier=None)
    batch = make_batch("virus", *frames(40))
    # When the fast and the plain way embed the same rows in bf16, and the plain one in fp32
    exact = Engine(replace(fast, compile=False, dtype="fp32")).embed(batch)
    ours, theirs = (Engine(replace(fast, compile=c)).embed(batch) for c in (True, False))
    # Then the fast way is no further from fp32 than the plain one, but for chance
    for fast_rows, plain_rows, exact_rows in zip(ours, theirs, exact, strict=True):
        assert fast_rows is not None
        assert plain_rows is not None
        assert exact_rows is not None
        distances = [np.linalg.norm(rows - exact_rows, axis=1) for rows in (fast_rows, plain_rows)]
        assert distances[0].mean() < 1.1 * distances[1].mean()

"""The engine with the bundled models: batches in, results out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ops.encoders import bucket_sizes
from ops.engine import Engine, EngineSpec
from ops.errors import ConfigError
from ops.modelstore import BUNDLED, CONFIG, DEFAULT_NAMES, WEIGHTS
from ops.nouns import Dtype, Ragged, Status
from tests.unit.model_fixtures import make_batch, random_tokens

ESM2, DNABERT, CLASSIFIER = (BUNDLED / DEFAULT_NAMES[k] for k in ("esm2", "dnabert", "classifier"))
ALL = EngineSpec(esm2=ESM2, dnabert=DNABERT, classifier=CLASSIFIER, threads=2)


@pytest.fixture(scope="module", autouse=True)
def _threads_back() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(ALL)


def frames(rows: int = 40, seed: int = 0) -> tuple[Ragged, Ragged]:
    rng = np.random.default_rng(seed)
    esm_tokens = random_tokens(rng.integers(3, 169, rows).tolist(), seed=seed)
    dna_tokens = random_tokens(rng.integers(3, 120, rows).tolist(), vocab=512, seed=seed + 1)
    return esm_tokens, dna_tokens


def test_a_virus_batch_is_scored_and_keeps_its_keys(engine: Engine) -> None:
    # Given a batch of frames that keeps its embeddings
    batch = make_batch("virus", *frames())
    # When it is computed
    result = engine.compute(batch)
    # Then every row has its key, digest, score and embeddings
    for column in ("record", "chunk", "frame", "digest"):
        assert np.array_equal(getattr(result, column), getattr(batch, column))
    assert (result.job, result.shard, result.number) == ("job", 3, 1)
    assert (result.identity, result.numerics) == (batch.identity, engine.numerics)
    assert result.status.tolist() == [Status.OK] * 40
    assert result.dtype.tolist() == [Dtype.FP32] * 40
    assert result.scores is not None
    assert result.esm2 is not None
    assert result.dnabert_s is not None
    assert result.scores.shape == (40, 2)
    assert result.esm2.shape == result.dnabert_s.shape == (40, 64)
    assert {a.dtype for a in (result.scores, result.esm2, result.dnabert_s)} == {np.dtype("f4")}
    assert all(a.flags.c_contiguous for a in (result.scores, result.esm2, result.dnabert_s))
    assert result.reasons == ()
    # And the classifier tells rows apart
    assert 0 < (result.scores[:, 1] > 0.5).sum() < 40


def test_embeddings_are_left_out_unless_kept(engine: Engine) -> None:
    # Given a virus batch that keeps no embeddings; When computed; Then only scores come out
    result = engine.compute(make_batch("virus", *frames(), keep_embeddings=False))
    assert result.esm2 is None
    assert result.dnabert_s is None
    assert result.scores is not None


@pytest.mark.parametrize("pipeline", ["protein", "dna"])
def test_embedding_jobs_need_one_model_and_keep_embeddings(pipeline: str) -> None:
    # Given an engine with the one model that the pipeline needs
    protein = pipeline == "protein"
    engine = Engine(EngineSpec(esm2=ESM2) if protein else EngineSpec(dnabert=DNABERT))
    esm_tokens, dna_tokens = frames()
    # When a batch is computed that asks to keep nothing
    pair = (esm_tokens, None) if protein else (None, dna_tokens)
    result = engine.compute(make_batch(pipeline, pair[0], pair[1], keep_embeddings=False))
    # Then its embeddings come out all the same, and no scores
    kept, other = (result.esm2, result.dnabert_s) if protein else (result.dnabert_s, result.esm2)
    assert kept is not None
    assert np.isfinite(kept).all()
    assert other is None
    assert result.scores is None
    # And a pipeline whose models are absent is refused
    with pytest.raises(ConfigError, match="a virus job needs the models esm2, dnabert, classifier"):
        engine.compute(make_batch("virus", *frames()))


def test_batches_do_not_change_bits(engine: Engine) -> None:
    # Given frames computed in one batch
    esm_tokens, dna_tokens = frames(60)
    whole = engine.compute(make_batch("virus", esm_tokens, dna_tokens))
    # When they are computed in other batches, in another order
    order = np.random.default_rng(5).permutation(60)
    for rows in (order[:1], order[1:20], order[20:]):
        part = engine.compute(make_batch("virus", esm_tokens.take(rows), dna_tokens.take(rows)))
        # Then scores and embeddings have the same bytes
        for name in ("scores", "esm2", "dnabert_s"):
            assert getattr(part, name).tobytes() == getattr(whole, name)[rows].tobytes()


def test_an_empty_batch_and_a_long_sequence(engine: Engine) -> None:
    # Given a batch without rows, and one whose only sequence is longer than any bucket
    empty = engine.compute(make_batch("virus", *frames(0)))
    long = engine.compute(make_batch("virus", random_tokens([12_000]), random_tokens([3])))
    # When computed; Then shapes hold
    assert empty.scores is not None
    assert empty.scores.shape == (0, 2)
    assert long.status.tolist() == [Status.OK]


def test_a_row_that_is_not_finite_fails_alone(tmp_path: Path) -> None:
    # Given an ESM-2 model in which one amino acid is poisoned
    folder = Path(shutil.copytree(ESM2, tmp_path / "poisoned"))
    tensors = load_file(folder / WEIGHTS)
    tensors["embed_tokens.weight"][20] = torch.inf
    save_file(tensors, folder / WEIGHTS)
    engine = Engine(EngineSpec(esm2=folder, dnabert=DNABERT, classifier=CLASSIFIER))
    esm_tokens, dna_tokens = frames(30)
    clean = Ragged(np.where(esm_tokens.data == 20, 19, esm_tokens.data), esm_tokens.offsets)
    poisoned = Ragged(clean.data.copy(), clean.offsets)
    for row in (4, 17):
        poisoned[row][1] = 20
    # When a batch with that amino acid in two rows is computed
    result = engine.compute(make_batch("virus", poisoned, dna_tokens))
    expected = engine.compute(make_batch("virus", clean, dna_tokens))
    # Then those two fail with a reason and hold no numbers
    assert np.flatnonzero(result.status == Status.FAILED).tolist() == [4, 17]
    assert result.reasons == ("non-finite values in the ESM-2 embedding",) * 2
    assert result.scores is not None
    assert expected.scores is not None
    assert np.isnan(result.scores[[4, 17]]).all()
    # And every other row is what it is without them
    others = result.status == Status.OK
    assert result.scores[others].tobytes() == expected.scores[others].tobytes()


def test_numerics_name_the_bits(engine: Engine) -> None:
    # Given the same specification, another thread count, another dtype and another attention
    again = Engine(ALL)
    one_thread = Engine(EngineSpec(ESM2, DNABERT, CLASSIFIER, threads=1))
    bf16 = Engine(EngineSpec(ESM2, DNABERT, CLASSIFIER, threads=2, dtype="bf16"))
    plain = Engine(EngineSpec(ESM2, DNABERT, CLASSIFIER, threads=2, attention="plain"))
    # When their numerics hashes are compared; Then only the same gives the same
    assert again.numerics == engine.numerics
    assert len(engine.numerics) == 16
    hashes = {e.numerics for e in (engine, one_thread, bf16, plain)}
    assert len(hashes) == 4


def test_facts_say_what_runs(engine: Engine) -> None:
    # Given an engine; When its facts are asked; Then they are plain values for a log line
    facts = json.loads(json.dumps(engine.facts))
    assert facts["device"] == "cpu"
    assert facts["dtype"] == "fp32"
    assert facts["attention_esm2"] == facts["attention_dnabert"] == "grouped"
    assert facts["compile"] is False
    assert facts["threads"] == 2
    assert facts["buckets_agree"] is True
    assert facts["torch"] == torch.__version__


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_stays_near(engine: Engine, dtype: str) -> None:
    # Given the same batch in a 16-bit format
    half = Engine(EngineSpec(ESM2, DNABERT, CLASSIFIER, threads=2, dtype=dtype))
    batch = make_batch("virus", *frames())
    ours, exact = half.compute(batch), engine.compute(batch)
    # When computed; Then rows say so, and embeddings stay within a few roundings of 2**-8 each
    assert ours.dtype.tolist() == [Dtype[dtype.upper()]] * 40
    for a, b in ((ours.esm2, exact.esm2), (ours.dnabert_s, exact.dnabert_s)):
        assert a is not None
        assert b is not None
        assert (np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)).max() < 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "fp8"}, "fp8 needs a GPU"),
        ({"dtype": "fp64"}, "dtype fp64 is unknown"),
        ({"device": "tpu"}, "device tpu is unknown"),
        (
            {"attention": "varlen"},
            "varlen needs a GPU and compile = true; on cpu choose one of auto",
        ),
        ({"attention": "magic"}, "attention magic is unknown; choose one of auto"),
        ({"threads": 3}, "power of two"),
        ({"esm2": None}, "classifier needs both"),
        ({"esm2": DNABERT}, "kind dnabert, where esm2 is needed"),
    ],
)
def test_what_cannot_be_had_is_an_error(change: dict[str, object], message: str) -> None:
    # Given a specification with one thing that this machine or vnp cannot do
    spec = EngineSpec(**(vars(ALL) | change))
    # When an engine is built of it; Then it says which, and falls back to nothing
    with pytest.raises(ConfigError, match=message):
        Engine(spec)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_that_is_not_there_is_an_error() -> None:
    # Given no CUDA device; When it is asked for; Then there is no silent fallback
    with pytest.raises(ConfigError, match="finds no CUDA device"):
        Engine(EngineSpec(esm2=ESM2, device="cuda"))


def test_a_classifier_that_does_not_fit_is_refused_before_loading(tmp_path: Path) -> None:
    # Given a classifier for embeddings of other widths
    folder = Path(shutil.copytree(CLASSIFIER, tmp_path / "other"))
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"input_widths": [768, 2560]}))
    # When an engine is built with it; Then the error names both sides
    with pytest.raises(ConfigError, match="takes embeddings of widths 768"):
        Engine(EngineSpec(ESM2, DNABERT, folder))


def test_weights_that_do_not_fit_their_configuration_are_refused(tmp_path: Path) -> None:
    # Given a model whose settings promise another number of layers
    folder = Path(shutil.copytree(ESM2, tmp_path / "other"))
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"layers": 5}))
    # When it is loaded; Then it is one line that names the file
    with pytest.raises(ConfigError, match=r"model\.safetensors cannot be loaded") as caught:
        Engine(EngineSpec(esm2=folder))
    assert "\n" not in str(caught.value)


def test_buckets() -> None:
    # Given a budget; When buckets are listed; Then they are blocks on the CPU, and few elsewhere
    assert bucket_sizes(2048, "cpu") == [512, 1024, 1536, 2048]
    assert bucket_sizes(10_752, "cuda") == [
        *(512, 1024, 1536, 2048, 3072, 4096, 6144, 8192),
        10_752,
    ]
    assert bucket_sizes(1, "cuda") == [512]

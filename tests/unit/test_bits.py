"""On the CPU a sequence's bits are its own: not its company's, its order's or its bucket's.

Every test computes the same sequences in two ways and compares bytes. They run with 1 and 2 threads
apart: a thread count is part of the numerics hash, so bits may differ between the two.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from ops.classifier import CLASSIFIER_ROWS, Classifier, ClassifierConfig, classify
from ops.dnabert import Dnabert
from ops.esm2 import Esm2
from ops.layers import Layout
from ops.nouns import F32, Ragged
from ops.pooling import pool
from tests.unit.model_fixtures import (
    random_dnabert,
    random_esm2,
    random_tokens,
    randomised,
    rows_for,
)

MIXED = [1, 2, 3, 5, 17, 33, 49, 50, 50, 50, 110, 166, 168, 168, 191, 192, 193, 400, 513, 1500]

SHAPES = [(4, 16), (2, 24), (5, 32), (2, 64), (20, 16)]
MODELS = [pytest.param(random_esm2, s, id=f"esm2-{s[0]}x{s[1]}") for s in SHAPES]
MODELS += [pytest.param(random_dnabert, s, id=f"dnabert-{s[0]}x{s[1]}") for s in (*SHAPES, (12, 8))]


@pytest.fixture(params=[1, 2], ids=["1-thread", "2-threads"], autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def embeddings(model: Esm2 | Dnabert, tokens: Ragged, rows: int = 0) -> F32:
    layout = Layout.of(tokens.lengths, rows or rows_for(len(tokens.data)))
    flat = np.ones(layout.rows, np.int64)
    flat[: layout.total] = tokens.take(layout.order).data
    kind = "esm2" if isinstance(model, Esm2) else "dnabert"
    hidden = model(torch.from_numpy(flat), layout)
    # The whole hidden state, bit by bit, stands behind a sequence's mean: check both at once.
    sums = [
        hidden[a:b].numpy().tobytes()
        for a, b in zip(layout.starts, layout.starts[1:], strict=False)
    ]
    marks = np.array([hash(part) for part in sums], np.int64)[np.argsort(layout.order)]
    pooled = pool(hidden, layout, kind)
    return np.concatenate([pooled, marks.view(np.float32).reshape(-1, 2)], axis=1)


def assert_same_bits(ours: F32, theirs: F32) -> None:
    assert ours.shape == theirs.shape
    different = np.flatnonzero((ours.view(np.uint32) != theirs.view(np.uint32)).any(axis=1))
    assert different.tolist() == []


@pytest.mark.parametrize(("make", "shape"), MODELS)
def test_alone_and_in_company(make: object, shape: tuple[int, int]) -> None:
    # Given sequences of lengths 1 to 1,500 and a model
    model = make(*shape)  # type: ignore[operator]
    tokens = random_tokens(MIXED)
    together = embeddings(model, tokens)
    # When each is computed alone
    alone = [embeddings(model, tokens.take(np.array([row]))) for row in range(len(tokens))]
    # Then its bits are those it had in company
    assert_same_bits(together, np.concatenate(alone))


@pytest.mark.parametrize(("make", "shape"), MODELS)
def test_other_order_company_and_position(make: object, shape: tuple[int, int]) -> None:
    # Given sequences whose bits are known
    model = make(*shape)  # type: ignore[operator]
    tokens = random_tokens(MIXED)
    together = embeddings(model, tokens)
    rng = np.random.default_rng(1)
    for trial in range(3):
        # When a random half of them is computed in another order, among strangers of lengths that
        # shift every row to another place of its block
        chosen = rng.permutation(len(tokens))[:10]
        strangers = random_tokens(rng.integers(1, 300, 9).tolist(), seed=trial + 5)
        mixed = joined(tokens.take(chosen), strangers)
        computed = embeddings(model, mixed)[: len(chosen)]
        # Then their bits are the same
        assert_same_bits(computed, together[chosen])


@pytest.mark.parametrize(("make", "shape"), MODELS)
def test_other_bucket(make: object, shape: tuple[int, int]) -> None:
    # Given sequences in the smallest bucket that holds them
    model = make(*shape)  # type: ignore[operator]
    tokens = random_tokens([7, 50, 50, 168, 300])
    smallest = embeddings(model, tokens)
    for rows in (1536, 10752):
        # When they are computed in a larger one
        computed = embeddings(model, tokens, rows)
        # Then their bits are the same
        assert_same_bits(computed, smallest)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64])
def test_number_of_equal_lengths(count: int) -> None:
    # Given frames of one length, which share their attention calls
    model = random_esm2(4, 16)
    tokens = random_tokens([168] * 64)
    together = embeddings(model, tokens)
    # When only some of them are computed
    some = np.arange(64)[-count:]
    # Then their bits are the same
    assert_same_bits(embeddings(model, tokens.take(some)), together[some])


def test_classifier_rows() -> None:
    # Given scores of more rows than one call takes
    classifier = randomised(Classifier(ClassifierConfig((96, 320), 512)))
    rng = np.random.default_rng(0)
    dna = rng.standard_normal((CLASSIFIER_ROWS + 45, 96)).astype(np.float32)
    protein = rng.standard_normal((CLASSIFIER_ROWS + 45, 320)).astype(np.float32)
    scores = classify(classifier, dna, protein)
    assert len(np.unique(scores)) > CLASSIFIER_ROWS  # rows that differ give scores that differ
    # When rows are scored alone, in another order and in another number
    alone = [classify(classifier, dna[i : i + 1], protein[i : i + 1]) for i in range(len(dna))]
    order = rng.permutation(len(dna))
    shuffled = classify(classifier, dna[order], protein[order])
    # Then each row's score has the same bits
    assert_same_bits(np.concatenate(alone), scores)
    assert_same_bits(shuffled, scores[order])


def joined(first: Ragged, second: Ragged) -> Ragged:
    data = np.concatenate([first.data, second.data])
    return Ragged.from_lengths(data, np.concatenate([first.lengths, second.lengths]))

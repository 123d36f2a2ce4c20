"""The classifier against torch's own modules."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ops.classifier import CLASSIFIER_ROWS, Classifier, ClassifierConfig, classify
from tests.unit.model_fixtures import randomised


def test_equals_the_originals_network() -> None:
    # Given the original's network with random weights and running statistics, and ours with them
    generator = torch.Generator().manual_seed(1)
    ours = randomised(Classifier(ClassifierConfig((768, 2560), 512)))
    ours.bn1.running_mean = torch.randn(512, generator=generator) * 0.2
    ours.bn1.running_var = torch.rand(512, generator=generator) + 0.5
    theirs = nn.Sequential(
        nn.Linear(3328, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, 2)
    )
    state = {
        f"{index}.{part}": tensor
        for index, name in ((0, "hidden_layer"), (1, "bn1"), (4, "output_layer"))
        for part, tensor in getattr(ours, name).state_dict().items()
    }
    theirs.load_state_dict(state)
    theirs.double().eval()
    # When both score 300 rows: DNABERT-S first, then ESM-2
    rows = torch.randn(300, 3328, generator=generator)
    scores = classify(ours, rows[:, :768].numpy(), rows[:, 768:].numpy())
    with torch.no_grad():
        expected = torch.softmax(theirs(rows.double()), dim=1)
    # Then probabilities agree to float32 rounding of a sum of 3,328 terms, and sum to one
    np.testing.assert_allclose(scores, expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-6)
    assert scores.dtype == np.float32


def test_no_rows_give_no_scores() -> None:
    # Given no rows; When scored; Then there are none, and the shape is kept
    classifier = randomised(Classifier(ClassifierConfig((8, 8), 16)))
    empty = np.empty((0, 8), np.float32)
    assert classify(classifier, empty, empty).shape == (0, 2)
    assert classify(classifier, *[np.ones((CLASSIFIER_ROWS, 8), np.float32)] * 2).shape == (256, 2)

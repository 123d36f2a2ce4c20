"""VirNucPro's classifier: two linear layers around a batch norm, always fp32 (semantics 1.7)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ops.nouns import F32

#: Rows of every call: the shape of a matrix product decides its rounding.
CLASSIFIER_ROWS = 256


@dataclass(frozen=True)
class ClassifierConfig:
    """input_widths: of the DNABERT-S and the ESM-2 embedding, which are joined in this order."""

    input_widths: tuple[int, int]
    width: int = 512


class Classifier(nn.Module):
    """(CLASSIFIER_ROWS, both widths) fp32 -> probabilities (CLASSIFIER_ROWS, 2): others, virus."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.hidden_layer = nn.Linear(sum(config.input_widths), config.width)
        self.bn1 = nn.BatchNorm1d(config.width)
        self.output_layer = nn.Linear(config.width, 2)

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.hidden_layer(x)))
        probabilities: Tensor = torch.softmax(self.output_layer(x), dim=1)
        return probabilities


def classify(classifier: Classifier, dnabert_s: F32, esm2: F32) -> F32:
    """Scores (n, 2) fp32 of n rows, in calls of a constant number of rows."""
    rows = len(esm2)
    padded_rows = -(-rows // CLASSIFIER_ROWS) * CLASSIFIER_ROWS
    joined = np.zeros((padded_rows, dnabert_s.shape[1] + esm2.shape[1]), np.float32)
    joined[:rows, : dnabert_s.shape[1]] = dnabert_s
    joined[:rows, dnabert_s.shape[1] :] = esm2
    device = classifier.output_layer.weight.device
    scores = np.empty((padded_rows, 2), np.float32)
    for first in range(0, padded_rows, CLASSIFIER_ROWS):
        part = slice(first, first + CLASSIFIER_ROWS)
        scores[part] = classifier(torch.from_numpy(joined[part]).to(device)).cpu().numpy()
    return scores[:rows]

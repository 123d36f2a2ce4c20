"""Fits the classifier, the same bits for the same seed: VirNucPro's MLP, or a linear one.

Candidates are the MLP (class-balanced, stopped early) and logistic regressions of several
strengths; what ranks validation rows best is kept. Validation rows come from groups that training
rows are not of, where a model that says less often says it better. A linear candidate is written as
an MLP of two hidden units, so that one architecture serves all. Everything runs on one CPU thread:
the sums of a matrix product depend on the number of threads.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ops.classifier import Classifier, ClassifierConfig
from ops.errors import DataError
from ops.nouns import F32
from ops.train.metrics import auroc

#: L2 penalties of the linear candidates, on standardised features and the mean loss.
PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)


@dataclass(frozen=True)
class Recipe:
    """How to fit. patience: epochs without a better validation loss before the MLP's end."""

    width: int = 512
    seed: int = 1
    epochs: int = 60
    patience: int = 8
    rows: int = 512
    rate: float = 1e-3
    weight_decay: float = 1e-2
    dropout: float = 0.5


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows to fit to: features (rows, width) fp32, virus (rows,) bool, weight (rows,) fp32."""

    features: F32
    virus: NDArray[np.bool_]
    weight: F32

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Rows:
        """Some of the rows, their weights balanced anew."""
        return Rows(self.features[rows], self.virus[rows], balanced(self.virus[rows]))


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted classifier and how it came about.

    candidates: validation AUROC by name; kept: the name of the best. curve: the MLP's losses, one
    entry per epoch. The calibrated log-odds are scale * log-odds + shift.
    """

    classifier: Classifier
    kept: str
    candidates: dict[str, float]
    curve: list[dict[str, float]]
    scale: float
    shift: float

    @property
    def valid_auroc(self) -> float:
        return self.candidates[self.kept]


def balanced(virus: NDArray[np.bool_]) -> F32:
    """Weights (rows,) under which both classes weigh the same, and a row 1 on average."""
    share = np.where(virus, virus.mean(), (~virus).mean())
    weights: F32 = (0.5 / share).astype(np.float32)
    return weights


def fit(train: Rows, valid: Rows, input_widths: tuple[int, int], recipe: Recipe) -> Fit:
    """The best candidate, calibrated on the validation rows.

    Raises DataError when a loss is not finite.
    """
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        mean, spread = train.features.mean(0), train.features.std(0) + np.float32(1e-6)
        scaled = [_scaled(rows, mean, spread) for rows in (train, valid)]
        mlp = Classifier(ClassifierConfig(input_widths, recipe.width))
        curve = _train(mlp, scaled[0], scaled[1], recipe)
        models = {"mlp": mlp}
        for penalty in PENALTIES:
            name = f"linear, penalty {penalty:g}"
            models[name] = _linear(scaled[0], input_widths, penalty)
        found = {name: _ranking(model, scaled[1], valid.virus) for name, model in models.items()}
        kept = max(found, key=lambda name: found[name])
        model = models[kept]
        _fold_scaling(model, mean, spread)
        scale, shift = _calibrate(model, valid)
        return Fit(model.eval().requires_grad_(False), kept, found, curve, scale, shift)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True, eq=False)
class _Scaled:
    """Rows as tensors, their features standardised."""

    features: Tensor
    virus: Tensor  # int64
    weight: Tensor

    def take(self, index: Tensor) -> _Scaled:
        return _Scaled(self.features[index], self.virus[index], self.weight[index])


def _scaled(rows: Rows, mean: F32, spread: F32) -> _Scaled:
    features = torch.from_numpy((rows.features - mean) / spread)
    return _Scaled(
        features, torch.from_numpy(rows.virus.astype(np.int64)), torch.from_numpy(rows.weight)
    )


# -- the MLP -----------------------------------------------------------------------------------


def _train(
    model: Classifier, train: _Scaled, valid: _Scaled, recipe: Recipe
) -> list[dict[str, float]]:
    """Trains until validation stops getting better, goes back to the best epoch; losses."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.rate, weight_decay=recipe.weight_decay
    )
    curve: list[dict[str, float]] = []
    best, best_epoch, kept = float("inf"), 0, copy.deepcopy(model.state_dict())
    for epoch in range(1, recipe.epochs + 1):
        loss = _epoch(model, train, optimizer, recipe)
        with torch.no_grad():
            held_out = float(_loss(model.eval(), valid))
        if not np.isfinite([loss, held_out]).all():
            raise DataError(f"the loss is not finite in epoch {epoch}; choose a lower --rate")
        curve.append({"epoch": epoch, "train": loss, "valid": held_out})
        if held_out < best:
            best, best_epoch, kept = held_out, epoch, copy.deepcopy(model.state_dict())
        elif epoch - best_epoch >= recipe.patience:
            break
    model.load_state_dict(kept)
    model.eval()
    return curve


def _epoch(
    model: Classifier, train: _Scaled, optimizer: torch.optim.Optimizer, recipe: Recipe
) -> float:
    """One pass over the rows in random order, an incomplete last batch left out; mean loss."""
    model.train()
    total, batches = 0.0, 0
    rows = min(recipe.rows, len(train.virus))
    order = torch.randperm(len(train.virus))
    for first in range(0, len(order) - rows + 1, rows):
        loss = _loss(model, train.take(order[first : first + rows]), recipe.dropout)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total, batches = total + float(loss.detach()), batches + 1
    return total / batches


def _loss(model: Classifier, rows: _Scaled, dropout: float = 0.0) -> Tensor:
    losses = F.cross_entropy(logits(model, rows.features, dropout), rows.virus, reduction="none")
    return (losses * rows.weight).sum() / rows.weight.sum()


def logits(model: Classifier, features: Tensor, dropout: float = 0.0) -> Tensor:
    """(rows, 2) before the softmax; the same arithmetic as `Classifier.forward`, with gradients."""
    hidden = torch.relu(model.bn1(model.hidden_layer(features)))
    result: Tensor = model.output_layer(F.dropout(hidden, dropout) if dropout else hidden)
    return result


# -- the linear candidates ---------------------------------------------------------------------


def _linear(train: _Scaled, input_widths: tuple[int, int], penalty: float) -> Classifier:
    """Logistic regression with an L2 penalty, as an MLP."""
    features = train.features.double()
    target, weight = train.virus.double(), train.weight.double()
    parameters = torch.zeros(features.shape[1] + 1, dtype=torch.float64, requires_grad=True)

    def objective() -> Tensor:
        odds = features @ parameters[:-1] + parameters[-1]
        loss = F.binary_cross_entropy_with_logits(odds, target, weight)
        return loss + penalty / 2 * parameters[:-1].square().sum()

    _minimise(objective, parameters)
    return _as_mlp(parameters.detach(), input_widths)


def _minimise(objective: Callable[[], Tensor], parameters: Tensor) -> None:
    optimizer = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]


@torch.no_grad()
def _as_mlp(parameters: Tensor, input_widths: tuple[int, int]) -> Classifier:
    """relu(z) - relu(-z) = z: two hidden units, and a batch norm that does nothing."""
    model = Classifier(ClassifierConfig(input_widths, 2)).eval()
    signs = torch.tensor([1.0, -1.0])
    model.hidden_layer.weight.copy_(signs[:, None] * parameters[None, :-1].float())
    model.hidden_layer.bias.copy_(signs * parameters[-1].float())
    assert model.bn1.running_var is not None
    model.bn1.running_var.fill_(1 - model.bn1.eps)
    model.output_layer.weight.copy_(signs[None, :] * torch.tensor([[-0.5], [0.5]]))
    model.output_layer.bias.zero_()
    return model


# -- choosing and calibrating ------------------------------------------------------------------


@torch.no_grad()
def _ranking(model: Classifier, valid: _Scaled, virus: NDArray[np.bool_]) -> float:
    found = logits(model.eval(), valid.features)
    odds = (found[:, 1] - found[:, 0]).double().numpy()
    if not np.isfinite(odds).all():
        raise DataError("the classifier gives values that are not finite; check the encoders")
    value = auroc(virus, odds)
    assert value is not None
    return value


@torch.no_grad()
def _fold_scaling(model: Classifier, mean: F32, spread: F32) -> None:
    """Moves the scaling of the features into the first layer: W(x - m)/s = (W/s)x - (W/s)m."""
    layer = model.hidden_layer
    layer.weight.div_(torch.from_numpy(spread))
    layer.bias.sub_(layer.weight @ torch.from_numpy(mean))


def _calibrate(model: Classifier, valid: Rows) -> tuple[float, float]:
    """Platt scaling (Platt 1999) of the log-odds on validation rows, moved into the last layer."""
    with torch.no_grad():
        found = logits(model.eval(), torch.from_numpy(valid.features)).double()
    odds = found[:, 1] - found[:, 0]
    # In units of their spread: a strong penalty leaves log-odds of a hundredth.
    unit = float(odds.std()) or 1.0
    target, weight = (torch.from_numpy(values).double() for values in (valid.virus, valid.weight))
    parameters = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)

    def objective() -> Tensor:
        predicted = parameters[0] * odds / unit + parameters[1]
        return F.binary_cross_entropy_with_logits(predicted, target, weight)

    _minimise(objective, parameters)
    scale, shift = (float(value) for value in parameters.detach())
    scale /= unit
    with torch.no_grad():
        layer = model.output_layer
        layer.weight.mul_(scale)
        layer.bias.mul_(scale).add_(torch.tensor([-shift / 2, shift / 2]))
    return scale, shift

"""Rows as a training sees them: in random order, with places masked and tokens replaced."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tools.encoder_recipe import VOCABULARY
from tools.fragment_pool import FIRST_DNA, FIRST_ESM, STOP_ESM

#: The mask's token, and how many places of a masked row it takes.
MASK = {"esm": 32, "dna": 4}
MASKED = {"esm": 20, "dna": 12}


class Feed:
    """Row numbers in random order, each once before any comes again."""

    def __init__(self, rows: int, rng: np.random.Generator) -> None:
        self.rows, self.rng = rows, rng
        self.order, self.at = rng.permutation(rows), 0

    def take(self, count: int) -> np.ndarray:
        if self.at + count > self.rows:
            self.order, self.at = self.rng.permutation(self.rows), 0
        self.at += count
        return self.order[self.at - count : self.at]


def bases_of(key: str) -> tuple[int, int]:
    """First token that stands for letters, and one past the last."""
    return (FIRST_ESM, STOP_ESM) if key == "esm" else (FIRST_DNA, VOCABULARY)


def masked(tokens: Tensor, lengths: Tensor, rows: int, key: str) -> tuple[Tensor, Tensor]:
    """Hides MASKED[key] inner tokens of each of the first rows: 80 % masked, 10 % random, 10 % as
    they are. Returns their places (rows, count) and the new tokens of all rows."""
    head = tokens[:rows]
    scores = torch.rand(head.shape, device=tokens.device)
    scores = scores.masked_fill(~inner(head, lengths[:rows]), -1.0)
    where = scores.topk(MASKED[key], dim=1).indices
    kind = torch.rand(where.shape, device=tokens.device)
    random = torch.randint(*bases_of(key), where.shape, device=tokens.device)
    old = head.gather(1, where)
    new = torch.where(kind < 0.8, MASK[key], torch.where(kind < 0.9, random, old))
    return where, torch.cat([head.scatter(1, where, new), tokens[rows:]])


def mask_loss(head: torch.nn.Linear, hidden: Tensor, where: Tensor, tokens: Tensor) -> Tensor:
    """Cross entropy at the masked places (rows, count) of the first rows."""
    hidden, tokens = hidden[: len(where)], tokens[: len(where)]
    picked = hidden.gather(1, where[..., None].expand(-1, -1, hidden.shape[-1]))
    return F.cross_entropy(head(picked).flatten(0, 1).float(), tokens.gather(1, where).flatten())


def noisy(tokens: Tensor, lengths: Tensor, rate: float, key: str) -> Tensor:
    """Replaces that share of the inner tokens by random ones."""
    hit = (torch.rand(tokens.shape, device=tokens.device) < rate) & inner(tokens, lengths)
    return torch.where(hit, torch.randint_like(tokens, *bases_of(key)), tokens)


def inner(tokens: Tensor, lengths: Tensor) -> Tensor:
    """(rows, tokens) bool: tokens of the sequence without its first and last, which are marks."""
    at = torch.arange(tokens.shape[1], device=tokens.device)[None, :]
    return (at >= 1) & (at < lengths[:, None] - 1)

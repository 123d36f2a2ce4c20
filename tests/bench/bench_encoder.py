"""ESM-2 8M, packed, against fair-esm and transformers with length-sorted padding, on the CPU.

    python -m tests.bench.bench_encoder

All three take turns in one process, with the same random weights' shape, threads and proteins of
30 to 1,000 residues, and give mean embeddings. Prints residues per second and ratios.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import esm
import numpy as np
import torch
from esm.model.esm2 import ESM2
from transformers import EsmConfig, EsmModel

from ops.attention import grouped
from ops.esm2 import PAD, Esm2, Esm2Config
from ops.layers import BLOCK_ROWS, Layout
from ops.nouns import Ragged
from ops.pooling import pool

LAYERS, WIDTH, HEADS = 6, 320, 20
BUDGET = 10_752
#: Smaller batches for the padded ways: sorted by length, they then hold little padding.
PADDED_BUDGET = 4_096
PROTEINS = 28
ROUNDS = 2


def main() -> None:
    torch.set_num_threads(1 << (torch.get_num_threads().bit_length() - 1))
    rng = np.random.default_rng(0)
    lengths = rng.integers(30, 1001, PROTEINS) + 2
    tokens = rng.integers(4, 24, lengths.sum())
    edges = np.cumsum(lengths)
    tokens[edges - lengths], tokens[edges - 1] = 0, 2
    proteins = Ragged.from_lengths(tokens, lengths)
    ways = {
        "vnp, packed": packed_way(),
        "fair-esm, padded, sorted": fair_esm_way(),
        "transformers, padded, sorted": transformers_way(),
    }
    best = dict.fromkeys(ways, float("inf"))
    for way in ways.values():
        way(proteins.take(np.arange(3)))  # warms up
    for _ in range(ROUNDS):
        for name, way in ways.items():
            start = time.perf_counter()
            way(proteins)
            best[name] = min(best[name], time.perf_counter() - start)
    report(best, int(lengths.sum() - 2 * PROTEINS))


def report(best: dict[str, float], residues: int) -> None:
    ours = next(iter(best.values()))
    print(f"ESM-2 8M, {PROTEINS} proteins, {residues} residues, {torch.get_num_threads()} threads")
    print(f"{'way':30} {'residues/s':>10} {'vnp is':>8}")
    for name, seconds in best.items():
        print(f"{name:30} {residues / seconds:10.0f} {seconds / ours:7.2f}x")


def packed_way() -> Callable[[Ragged], None]:
    model = Esm2(Esm2Config(WIDTH, LAYERS, HEADS, 4 * WIDTH), grouped).eval()

    def way(proteins: Ragged) -> None:
        for rows in budgeted(proteins.lengths, padded=False):
            batch = proteins.take(rows)
            total = len(batch.data)
            layout = Layout.of(batch.lengths, -(-total // BLOCK_ROWS) * BLOCK_ROWS)
            flat = np.full(layout.rows, PAD, np.int64)
            flat[:total] = batch.take(layout.order).data
            pool(model(torch.from_numpy(flat), layout), layout, "esm2")

    return way


def padded_way(forward: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Ragged], None]:
    def way(proteins: Ragged) -> None:
        for rows in budgeted(proteins.lengths, padded=True):
            lengths = proteins.lengths[rows]
            tokens = np.full((len(rows), lengths.max()), PAD, np.int64)
            for row, sequence in zip(tokens, proteins.take(rows), strict=True):
                row[: len(sequence)] = sequence
            with torch.inference_mode():
                hidden = forward(torch.from_numpy(tokens))
                torch.stack([h[1 : n - 1].mean(0) for h, n in zip(hidden, lengths, strict=True)])

    return way


def fair_esm_way() -> Callable[[Ragged], None]:
    model = ESM2(LAYERS, WIDTH, HEADS, esm.data.Alphabet.from_architecture("ESM-1b")).eval()
    return padded_way(lambda x: model(x, repr_layers=[LAYERS])["representations"][LAYERS])


def transformers_way() -> Callable[[Ragged], None]:
    config = EsmConfig(
        vocab_size=33,
        mask_token_id=32,
        pad_token_id=PAD,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        position_embedding_type="rotary",
        token_dropout=True,
    )
    model = EsmModel(config, add_pooling_layer=False).eval()
    return padded_way(lambda x: model(x, attention_mask=x.ne(PAD).long()).last_hidden_state)


def budgeted(lengths: np.ndarray, padded: bool) -> Iterator[np.ndarray]:
    """Rows of each batch within its budget of tokens, padding counted; ascending by length."""
    budget = PADDED_BUDGET if padded else BUDGET
    chosen: list[int] = []
    total = 0
    for row in np.argsort(lengths, kind="stable").tolist():
        grown = (len(chosen) + 1) * lengths[row] if padded else total + lengths[row]
        if chosen and grown > budget:
            yield np.array(chosen)
            chosen, total = [], 0
        chosen.append(row)
        total += lengths[row]
    yield np.array(chosen)


if __name__ == "__main__":
    main()

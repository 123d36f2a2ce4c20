"""Makes the small untrained models of ops/bundled, the same bytes every time.

    python tools/make_untrained.py GENOME.fa... [--out ops/bundled]

The genomes train the BPE tokenizer and centre the classifier, so that its (meaningless) scores fall
on both sides of 0.5 and the plumbing shows. Weights are seeded normal numbers.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from tokenizers import Tokenizer

from ops.attention import plain
from ops.classifier import Classifier, ClassifierConfig
from ops.dna_tokens import train_bpe
from ops.dnabert import Dnabert, DnabertConfig
from ops.esm2 import Esm2, Esm2Config
from ops.esm_tokens import TABLE
from ops.frames_plain import translate
from ops.layers import BLOCK_ROWS, Layout
from ops.modelstore import BUNDLED, DEFAULT_NAMES, TOKENIZER
from ops.nouns import F32, Ragged
from ops.pooling import pool
from ops.weights import write_model

M = TypeVar("M", bound=torch.nn.Module)

ESM2 = Esm2Config(width=64, layers=4, heads=4, ffn=256)
DNABERT = DnabertConfig(width=64, layers=2, heads=4, ffn=256, vocab=512)
CLASSIFIER = ClassifierConfig(input_widths=(DNABERT.width, ESM2.width), width=256)
CHUNK_LENGTH = 500
SOURCE = "seeded random numbers, tools/make_untrained.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("genomes", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=BUNDLED)
    arguments = parser.parse_args()
    pieces = [piece for path in sorted(arguments.genomes) for piece in windows(path)]
    tokenizer = train_bpe(pieces, DNABERT.vocab)
    assert tokenizer.get_vocab_size() == DNABERT.vocab
    esm2 = seeded(Esm2(ESM2, plain), 1)
    dnabert = seeded(Dnabert(DNABERT, plain), 2)
    classifier = seeded(Classifier(CLASSIFIER), 3)
    centre(classifier, embed_dna(dnabert, tokenizer, pieces), embed_proteins(esm2, pieces))
    write(arguments.out, esm2, dnabert, classifier, tokenizer)


def windows(path: Path) -> Iterator[str]:
    """Non-overlapping pieces of CHUNK_LENGTH unambiguous bases of a FASTA file."""
    for record in path.read_text().split(">")[1:]:
        bases = "".join(record.splitlines()[1:]).upper()
        for start in range(0, len(bases) - CHUNK_LENGTH + 1, CHUNK_LENGTH):
            piece = bases[start : start + CHUNK_LENGTH]
            if set(piece) <= set("ACGT"):
                yield piece


def seeded(model: M, seed: int) -> M:
    """Normal weights of variance 1 / inputs, norms at their identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                scale = 1.0 if "embed" in name else parameter.shape[1] ** -0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            elif name.endswith("bias") or name == "token_type":
                parameter.zero_()
    return model.eval()


def embed_dna(model: Dnabert, tokenizer: Tokenizer, pieces: list[str]) -> F32:
    return embed(model, [np.array(e.ids) for e in tokenizer.encode_batch(pieces)], "dnabert")


def embed_proteins(model: Esm2, pieces: list[str]) -> F32:
    return embed(model, [np.array([0, *residues(piece), 2]) for piece in pieces], "esm2")


def residues(piece: str) -> list[int]:
    """ESM-2 tokens of the first forward frame, stops left out."""
    return [TABLE[ord(letter)] for letter in translate(piece, 0) if letter != "*"]


def embed(model: Esm2 | Dnabert, rows: list[np.ndarray], kind: str) -> F32:
    ragged = Ragged.from_lengths(np.concatenate(rows), np.array([len(row) for row in rows]))
    layout = Layout.of(ragged.lengths, -(-len(ragged.data) // BLOCK_ROWS) * BLOCK_ROWS)
    flat = np.zeros(layout.rows, np.int64)
    flat[: layout.total] = ragged.take(layout.order).data
    return pool(model(torch.from_numpy(flat), layout), layout, kind)


@torch.no_grad()
def centre(classifier: Classifier, dnabert_s: F32, esm2: F32) -> None:
    """Sets batch norm and output so that scores spread evenly about 0.5 over these frames.

    Rounded to 1/64, so that another machine's last bits do not reach the file.
    """
    joined = torch.from_numpy(np.concatenate([dnabert_s, esm2], axis=1))
    hidden = classifier.hidden_layer(joined)
    classifier.bn1.running_mean = rounded(hidden.mean(0))
    classifier.bn1.running_var = rounded(hidden.var(0)).clamp(min=1 / 64)
    logits = classifier.output_layer(torch.relu(classifier.bn1(hidden)))
    margin = logits[:, 1] - logits[:, 0]
    classifier.output_layer.weight.mul_(rounded(2 / margin.std()))
    logits = classifier.output_layer(torch.relu(classifier.bn1(hidden)))
    classifier.output_layer.bias[1] = -rounded((logits[:, 1] - logits[:, 0]).median())


def rounded(values: torch.Tensor) -> torch.Tensor:
    return (values * 64).round() / 64


def write(
    out: Path, esm2: Esm2, dnabert: Dnabert, classifier: Classifier, tokenizer: Tokenizer
) -> None:
    common = {"trained": False, "source": SOURCE}
    text = {TOKENIZER: tokenizer.to_str(pretty=True).encode()}
    scorer = {"kind": "classifier", **vars(CLASSIFIER), "chunk_length": CHUNK_LENGTH}
    folders: tuple[tuple[dict[str, object], torch.nn.Module, dict[str, bytes]], ...] = (
        ({"kind": "esm2", **vars(ESM2)}, esm2, {}),
        ({"kind": "dnabert", **vars(DNABERT)}, dnabert, text),
        (scorer, classifier, {}),
    )
    for settings, model, files in folders:
        folder = out / DEFAULT_NAMES[str(settings["kind"])]
        write_model(folder, settings | common, model.state_dict(), files)


if __name__ == "__main__":
    main()

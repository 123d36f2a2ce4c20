"""`vnp models verify --golden`: real weights against embeddings that the original program made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ops import esm_tokens
from ops.dna_tokens import DnaTokenizer
from ops.engine import Engine, EngineSpec
from ops.modelstore import ModelCard, tokenizer_path
from ops.nouns import F32, Batch, BatchResult, Ragged

GOLDEN = Path(__file__).parent / "golden" / "vanilla_500.npz"
#: The original ran in fp32 on a GPU whose kernels are not recorded. Two fp32 implementations of
#: these depths differ by about 1e-6 to 1e-5; a wrong layer, token or scale by far more than this.
LIMIT = 1e-4


@dataclass(frozen=True)
class GoldenResult:
    """Largest relative L2 distance of the eight frames, of one model's embeddings."""

    model: str
    worst: float

    @property
    def ok(self) -> bool:
        return self.worst <= LIMIT


def has_golden(card: ModelCard) -> bool:
    """True for models of the shape of ESM-2 3B (36 layers) and DNABERT-S."""
    return (card.kind, card.width, card.layers) in (("esm2", 2560, 36), ("dnabert", 768, 12))


def check_golden(card: ModelCard, device: str = "cpu") -> GoldenResult:
    """Embeds the golden frames with ESM-2 3B or DNABERT-S in fp32 and compares."""
    assert has_golden(card)
    with np.load(GOLDEN) as golden:
        expected = golden["esm2_t36_3B" if card.kind == "esm2" else "dnabert_s"]
        proteins, nucleotides = golden["protein"].tolist(), golden["nucleotide"].tolist()
    if card.kind == "esm2":
        found = _embed_proteins(card, device, proteins)
    else:
        found = _embed_nucleotides(card, device, nucleotides)
    return GoldenResult(card.name, float(relative_l2(found, expected).max()))


def relative_l2(found: F32, expected: F32) -> F32:
    """(rows,) |found - expected| / |expected|."""
    distance: F32 = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    return distance


def _embed_proteins(card: ModelCard, device: str, proteins: list[str]) -> F32:
    tokens = esm_tokens.encode(Ragged.from_bytes(text.encode() for text in proteins))
    engine = Engine(EngineSpec(esm2=card.path, device=device))
    embedded = engine.compute(_batch("protein", esm=tokens)).esm2
    assert embedded is not None
    return embedded


def _embed_nucleotides(card: ModelCard, device: str, nucleotides: list[str]) -> F32:
    tokenizer = DnaTokenizer(tokenizer_path(card.path))
    tokens = tokenizer.encode(Ragged.from_bytes(text.encode() for text in nucleotides))
    engine = Engine(EngineSpec(dnabert=card.path, device=device))
    result: BatchResult = engine.compute(_batch("dna", dna=tokens))
    assert result.dnabert_s is not None
    return result.dnabert_s


def _batch(pipeline: str, esm: Ragged | None = None, dna: Ragged | None = None) -> Batch:
    rows = len(esm if esm is not None else dna or ())
    return Batch(
        job="golden",
        shard=0,
        number=0,
        identity="",
        pipeline=pipeline,
        keep_embeddings=True,
        attempts=0,
        record=np.arange(rows, dtype=np.uint64),
        chunk=np.zeros(rows, np.uint32),
        frame=np.zeros(rows, np.uint8),
        digest=np.zeros(rows, np.uint64),
        esm_tokens=esm,
        dna_tokens=dna,
    )

"""A known answer: the bundled models on one short genome, against scores recorded with them.

python -m ops.known_answer GENOME.fa       records it anew, after the bundled models changed
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ops.classifier import classify
from ops.dna_tokens import DnaTokenizer
from ops.engine import Engine, EngineSpec
from ops.errors import CorruptionError
from ops.fasta import read_inputs
from ops.modelstore import BUNDLED, DEFAULT_NAMES, KINDS, ModelCard, read_card, tokenizer_path
from ops.train.features import Embedder, Features

RECORDED = Path(__file__).parent / "golden" / "known_answer.json"
#: What fp32 on any device may differ by; a wrong token, weight or scale shows far above it.
LIMIT = 1e-4
MAX_TOKENS = 8_192


def largest_difference(device: str = "cpu") -> tuple[int, float]:
    """Number of frames, and the largest difference of a virus score from the recorded one.

    Raises CorruptionError when the bundled models are not those that the scores are of, or other
    frames come out.
    """
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    cards = _cards()
    for kind, card in cards.items():
        if card.digest != recorded["models"][kind]:
            raise CorruptionError(
                f"{card.name} is not the model of the known answer; reinstall vnp"
            )
    features, scores = _compute(cards, recorded["sequence"].encode(), device)
    rows = [[int(c), int(f)] for c, f in zip(features.chunk, features.frame, strict=True)]
    if rows != [row[:2] for row in recorded["rows"]]:
        raise CorruptionError("the known answer has other frames than were found; reinstall vnp")
    expected = np.array([row[2] for row in recorded["rows"]])
    return len(rows), float(np.abs(scores - expected).max())


def _cards() -> dict[str, ModelCard]:
    return {kind: read_card(BUNDLED / DEFAULT_NAMES[kind]) for kind in KINDS}


def _compute(
    cards: dict[str, ModelCard], letters: bytes, device: str
) -> tuple[Features, np.ndarray[Any, np.dtype[np.float32]]]:
    paths = {kind: card.path for kind, card in cards.items()}
    spec = EngineSpec(paths["esm2"], paths["dnabert"], paths["classifier"], device, "fp32")
    engine = Engine(spec)
    assert engine.classifier is not None
    assert cards["classifier"].chunk_length is not None
    embedder = Embedder(engine, DnaTokenizer(tokenizer_path(paths["dnabert"])), MAX_TOKENS)
    whole = np.array([[0, 0, len(letters)]])
    features = embedder.features([letters], whole, cards["classifier"].chunk_length)
    return features, classify(engine.classifier, features.dnabert_s, features.esm2)[:, 1]


def record(genome: Path) -> None:
    """Writes RECORDED from the first record of a FASTA file."""
    pieces = [piece for piece in read_inputs([genome], "nucleotide") if piece.ordinal == 0]
    letters = b"".join(piece.letters for piece in pieces)
    cards = _cards()
    features, scores = _compute(cards, letters, "cpu")
    columns = (features.chunk.tolist(), features.frame.tolist(), scores.tolist())
    answer = {
        "record": f"{pieces[0].name} {pieces[0].description}",
        "models": {kind: card.digest for kind, card in cards.items()},
        "rows": [[c, f, round(s, 7)] for c, f, s in zip(*columns, strict=True)],
        "sequence": letters.decode(),
    }
    RECORDED.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    record(Path(sys.argv[1]))

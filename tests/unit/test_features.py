"""Features of training: every frame of every fragment, also where fragments are alike."""

from __future__ import annotations

import random

import numpy as np

from ops.dna_tokens import DnaTokenizer
from ops.engine import Engine, EngineSpec
from ops.modelstore import BUNDLED, DEFAULT_NAMES, TOKENIZER
from ops.train.features import Embedder


def test_alike_fragments_each_have_their_rows() -> None:
    # Given two fragments of the same letters, one of another genome
    dnabert = BUNDLED / DEFAULT_NAMES["dnabert"]
    engine = Engine(EngineSpec(esm2=BUNDLED / DEFAULT_NAMES["esm2"], dnabert=dnabert, threads=1))
    embedder = Embedder(engine, DnaTokenizer(dnabert / TOKENIZER), 8_192)
    genome = "".join(random.Random(1).choices(["GCT", "AAA", "GAC"], k=100)).encode()
    fragments = np.array([[0, 0, 300], [1, 0, 300]], np.int64)
    # When their features are made
    features = embedder.features([genome, genome], fragments, 300)
    # Then both have all their frames, with the same values
    first, second = (features.fragment == number for number in (0, 1))
    assert first.sum() == second.sum() > 0
    assert features.frame[first].tolist() == features.frame[second].tolist()
    assert features.joined()[first].tobytes() == features.joined()[second].tobytes()

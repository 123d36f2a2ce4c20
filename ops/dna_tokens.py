"""DNABERT-S' tokens: byte-pair encoding by the `tokenizers` library, [CLS] pieces [SEP].

Three traps of the published tokenizer.json (models-and-kernels 2.4): it switches on truncation to
and padding to 2,000 tokens, which are switched off here; its [PAD] is 3 although the model's
configuration says 0; and it has no normalizer, so every letter other than A, C, G, T is an [UNK].
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from ops.errors import ConfigError
from ops.nouns import Ragged

SPECIAL_TOKENS = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
MAX_VOCABULARY = 1 << 16


class DnaTokenizer:
    """One tokenizer.json, without truncation and padding. Deterministic; holds no state."""

    def __init__(self, path: Path) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise ConfigError(
                f"{path} is not a tokenizer ({error}); import the model again"
            ) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.vocabulary = self._tokenizer.get_vocab_size()
        if self.vocabulary > MAX_VOCABULARY:
            raise ConfigError(f"{path} has {self.vocabulary} tokens; at most {MAX_VOCABULARY} fit")

    def encode(self, sequences: Ragged) -> Ragged:
        """Tokens of each sequence (uint8 letters), uint16, [CLS] and [SEP] included."""
        texts = [text.decode("latin-1") for text in sequences.to_bytes()]
        rows = [encoded.ids for encoded in self._tokenizer.encode_batch_fast(texts)]
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        data = np.fromiter(chain.from_iterable(rows), np.uint16, int(lengths.sum()))
        return Ragged.from_lengths(data, lengths)


def train_bpe(sequences: Iterable[str], vocabulary: int) -> Tokenizer:
    """A tokenizer of DNABERT-2's shape: BPE over A, C, G, T, split at white space, [CLS] A [SEP].

    Deterministic given the sequences and their order.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=list("ACGT"),
        limit_alphabet=4,
        show_progress=False,
    )
    tokenizer.train_from_iterator(sequences, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(name, SPECIAL_TOKENS.index(name)) for name in ("[CLS]", "[SEP]")],
    )
    return tokenizer

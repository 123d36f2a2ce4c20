"""Tokenizers: equal to the reference implementations, with the traps of the published files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from esm.data import Alphabet
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from ops import esm_tokens
from ops.dna_tokens import SPECIAL_TOKENS, DnaTokenizer, train_bpe
from ops.errors import ConfigError
from ops.fasta import read_inputs
from ops.nouns import Ragged

DATA = Path(__file__).parents[1] / "data"
PUBLISHED = DATA / "dnabert-s" / "tokenizer.json"
#: As the original program loads it: the folder, with its configuration.
REFERENCE = PreTrainedTokenizerFast.from_pretrained(str(PUBLISHED.parent))
OURS = DnaTokenizer(PUBLISHED)


def real_sequences() -> list[str]:
    """Pieces of genomes, odd lengths, and letters that the vocabulary lacks."""
    genomes = ["virus_lambda.fa", "virus_SARS-CoV-2.fa", "cell_yeast_chrXII_300kb.fa"]
    rng = np.random.default_rng(0)
    pieces = ["A", "ACG", "N", "ACGTNNNNACGT", "acgtACGT", "RYSWKM", "", "U" * 9]
    for name in genomes:
        letters = next(read_inputs([DATA / "fixtures" / name], "nucleotide")).letters.decode()
        for length in (1, 2, 7, 150, 299, 499, 500, 3000):
            start = int(rng.integers(len(letters) - length))
            pieces.append(letters[start : start + length])
    return pieces


def encoded(tokenizer: DnaTokenizer, sequences: list[str]) -> list[list[int]]:
    tokens = tokenizer.encode(Ragged.from_bytes(text.encode() for text in sequences))
    assert tokens.data.dtype == np.uint16
    return [row.tolist() for row in tokens]


def test_esm2_table_is_fair_esms_alphabet_for_every_byte() -> None:
    alphabet = Alphabet.from_architecture("ESM-1b")
    for byte in range(256):
        assert esm_tokens.TABLE[byte] == alphabet.get_idx(chr(byte)), chr(byte)
    special = (esm_tokens.CLS, esm_tokens.PAD, esm_tokens.EOS, esm_tokens.UNK)
    assert special == tuple(alphabet.get_idx(name) for name in ("<cls>", "<pad>", "<eos>", "<unk>"))


def test_esm2_rows_are_those_of_fair_esms_batch_converter() -> None:
    proteins = ["MKLV", "", "A", "ACDEFGHIKLMNPQRSTVWYXBUZO.-", "M" * 300]
    convert = Alphabet.from_architecture("ESM-1b").get_batch_converter()
    _, _, expected = convert([(str(i), protein) for i, protein in enumerate(proteins)])
    tokens = esm_tokens.encode(Ragged.from_bytes(protein.encode() for protein in proteins))
    for row, protein, reference in zip(tokens, proteins, expected, strict=True):
        assert row.tolist() == reference[: len(protein) + 2].tolist()


def test_dnabert_tokens_are_those_of_transformers() -> None:
    reference = PreTrainedTokenizerFast(tokenizer_file=str(PUBLISHED))
    sequences = real_sequences()
    # Truncation and padding of the file do nothing in transformers unless asked for.
    expected = [reference(text)["input_ids"] for text in sequences]
    assert encoded(DnaTokenizer(PUBLISHED), sequences) == expected


def test_tokens_of_a_bpe_of_our_own_are_those_of_transformers(tmp_path: Path) -> None:
    # Given a small BPE trained here
    genome = next(read_inputs([DATA / "fixtures" / "virus_lambda.fa"], "nucleotide")).letters
    tokenizer = train_bpe((genome[i : i + 500].decode() for i in range(0, 20_000, 500)), 200)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    # Then its special tokens have the published numbers
    assert [tokenizer.token_to_id(name) for name in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    # And we and transformers agree on every token
    reference = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    sequences = real_sequences()
    expected = [reference(text)["input_ids"] for text in sequences]
    assert encoded(DnaTokenizer(tmp_path / "tokenizer.json"), sequences) == expected


def test_traps_of_the_published_file() -> None:
    # Given what the file says
    content = json.loads(PUBLISHED.read_text())
    assert content["truncation"]["max_length"] == 2000
    assert content["padding"]["strategy"] == {"Fixed": 2000}
    model = json.loads((DATA / "dnabert-s" / "config.json").read_text())
    tokenizer = DnaTokenizer(PUBLISHED)
    short, long, lower, unknown, empty = encoded(
        tokenizer, ["ACGT", "ACGTTGCAAC" * 2500, "acgt", "NNN", ""]
    )
    # Then nothing is padded, and nothing cut at 2,000 tokens
    assert len(short) < 6
    assert len(long) > 2_002
    # And the pad of the model's configuration is no pad but [UNK]
    assert (model["pad_token_id"], content["model"]["vocab"]["[PAD]"]) == (0, 3)
    # And whatever is not A, C, G, T is one [UNK] per letter, lower case too
    assert lower == [1, 0, 0, 0, 0, 2]
    assert unknown == [1, 0, 0, 0, 2]
    assert empty == [1, 2]


def test_broken_tokenizer_is_told(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="import the model again"):
        DnaTokenizer(tmp_path / "tokenizer.json")


@settings(max_examples=200)
@given(st.text("ACGT", max_size=600) | st.text("ACGTNRYUacgtn", max_size=80))
def test_dnabert_tokens_are_those_of_transformers_on_any_letters(letters: str) -> None:
    assert encoded(OURS, [letters]) == [REFERENCE(letters)["input_ids"]]


def test_the_published_file_pads_and_cuts_when_used_as_it_is() -> None:
    # Given the same file without our care
    careless = Tokenizer.from_file(str(PUBLISHED))
    # Then four bases have 2,000 tokens, nearly all [PAD], and a long sequence has no more
    assert (len(careless.encode("ACGT").ids), careless.encode("ACGT").ids[-1]) == (2_000, 3)
    assert len(careless.encode("ACGTTGCAAC" * 2_500).ids) == 2_000


def test_training_is_deterministic(tmp_path: Path) -> None:
    genome = next(read_inputs([DATA / "fixtures" / "virus_phiX174.fa"], "nucleotide")).letters
    pieces = [genome[i : i + 400].decode() for i in range(0, 5_200, 400)]
    first, second = (train_bpe(pieces, 150).to_str() for _ in range(2))
    assert first == second

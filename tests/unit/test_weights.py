"""Imports: files in the formats in which weights are published, small and random."""

from __future__ import annotations

import argparse
import json
import os
import sys
import types
from pathlib import Path

import esm
import numpy as np
import pytest
import torch
from esm.model.esm2 import ESM2
from safetensors.torch import save_file
from torch import nn
from transformers import EsmConfig, EsmModel

from ops.attention import grouped
from ops.errors import ConfigError, NoInputError, OutputError
from ops.loading import load_classifier, load_dnabert, load_esm2
from ops.modelstore import BUNDLED, CONFIG, DEFAULT_NAMES, ModelCard, verify_model
from ops.weights import import_model
from tests.unit import dnabert_textbook as textbook
from tests.unit.model_fixtures import per_token, random_tokens, randomised, relative_l2

CPU = torch.device("cpu")
TOKENIZER = BUNDLED / DEFAULT_NAMES["dnabert"] / "tokenizer.json"
TOLERANCE = 1e-5  # fp32 rounding over a few layers, as in test_esm2
LAYERS, WIDTH, HEADS = 2, 64, 4


def fair_esm_model() -> ESM2:
    return randomised(ESM2(LAYERS, WIDTH, HEADS, esm.data.Alphabet.from_architecture("ESM-1b")))


def fair_esm_file(path: Path, model: ESM2) -> Path:
    """A checkpoint with the keys of the published ones, rotary tables and LM head included."""
    prefixed = {}
    for name, tensor in model.state_dict().items():
        if not name.startswith("contact_head"):
            prefix = "encoder." if name.startswith("lm_head") else "encoder.sentence_encoder."
            prefixed[prefix + name] = tensor
    arguments = argparse.Namespace(
        arch="esm2",
        encoder_layers=LAYERS,
        encoder_embed_dim=WIDTH,
        encoder_attention_heads=HEADS,
        token_dropout=True,
    )
    torch.save({"args": None, "cfg": {"model": arguments}, "model": prefixed}, path)
    return path


def hf_esm_config() -> EsmConfig:
    return EsmConfig(
        vocab_size=33,
        mask_token_id=32,
        pad_token_id=1,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        position_embedding_type="rotary",
        token_dropout=True,
        layer_norm_eps=1e-5,
    )


def dnabert_folder(
    folder: Path, prefix: str = "", safetensors: bool = False
) -> dict[str, torch.Tensor]:
    folder.mkdir()
    state = textbook.random_state(WIDTH, LAYERS, HEADS, 2 * WIDTH, 512, seed=4)
    config = {"num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "hidden_size": WIDTH}
    (folder / CONFIG).write_text(json.dumps(config))
    (folder / "tokenizer.json").write_bytes(TOKENIZER.read_bytes())
    named = {prefix + name: tensor for name, tensor in state.items()}
    if safetensors:
        save_file(named, folder / "model.safetensors")
    else:
        torch.save(named, folder / "pytorch_model.bin")
    return state


def assert_same_model(card: ModelCard, reference: list[torch.Tensor]) -> None:
    tokens = random_tokens([3, 20, 7])
    load = load_esm2 if card.kind == "esm2" else load_dnabert
    ours = per_token(load(card.path, grouped, CPU, torch.float32), tokens)
    assert max(relative_l2(a, b) for a, b in zip(ours, reference, strict=True)) <= TOLERANCE


def test_fair_esm_checkpoint(tmp_path: Path) -> None:
    # Given a fair-esm checkpoint without its regression file
    model = fair_esm_model()
    path = fair_esm_file(tmp_path / "esm2_t2_test.pt", model)
    # When it is imported
    card = import_model(path, "esm2-t2", tmp_path / "models")
    # Then the card tells its dimensions, the folder is whole, and it computes what fair-esm does
    assert (card.name, card.kind, card.width, card.layers, card.heads) == (
        "esm2-t2",
        "esm2",
        64,
        2,
        4,
    )
    assert card.trained
    assert card.source == "esm2_t2_test.pt"
    verify_model(card)
    with torch.no_grad():
        reference = [
            model(torch.from_numpy(row)[None], repr_layers=[LAYERS])["representations"][LAYERS][0]
            for row in random_tokens([3, 20, 7])
        ]
    assert_same_model(card, reference)
    # And nothing else is left beside it
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["esm2-t2"]


def pickle_in_shards(folder: Path, state: dict[str, torch.Tensor]) -> None:
    """As ESM-2 3B is published: two pickles and their index."""
    names = sorted(state)
    halves = {"00001-of-00002": names[::2], "00002-of-00002": names[1::2]}
    places = {}
    for number, half in halves.items():
        torch.save({name: state[name] for name in half}, folder / f"pytorch_model-{number}.bin")
        places |= dict.fromkeys(half, f"pytorch_model-{number}.bin")
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("form", ["whole", "sharded", "pickled", "prefixed", "pickled in shards"])
def test_hugging_face_esm_folder(tmp_path: Path, form: str) -> None:
    # Given a folder that transformers wrote: whole, in shards, as a pickle, or with the prefix that
    # a model with its language-model head has
    model = randomised(EsmModel(hf_esm_config(), add_pooling_layer=False))
    folder = tmp_path / "hf"
    model.save_pretrained(folder, max_shard_size="60KB" if form == "sharded" else "1GB")
    if form in ("pickled", "prefixed"):
        (folder / "model.safetensors").unlink()
        prefix = "esm." if form == "prefixed" else ""
        state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
        torch.save(state, folder / "pytorch_model.bin")
    if form == "pickled in shards":
        (folder / "model.safetensors").unlink()
        pickle_in_shards(folder, model.state_dict())
    assert (len(list(folder.glob("model-*.safetensors"))) > 1) == (form == "sharded")
    # When it is imported
    card = import_model(folder, "hf-esm", tmp_path / "models")
    # Then it computes what transformers does
    with torch.no_grad():
        reference = [
            model(torch.from_numpy(row)[None]).last_hidden_state[0]
            for row in random_tokens([3, 20, 7])
        ]
    assert_same_model(card, reference)


@pytest.mark.parametrize("prefix", ["", "bert."])
@pytest.mark.parametrize("safetensors", [False, True])
def test_dnabert_folder(tmp_path: Path, prefix: str, safetensors: bool) -> None:
    # Given a DNABERT-S folder, as a pickle or safetensors, with DNABERT-2's prefix or without
    state = dnabert_folder(tmp_path / "hf", prefix, safetensors)
    # When it is imported
    card = import_model(tmp_path / "hf", "dnabert", tmp_path / "models")
    # Then it computes what the textbook does, and brings its tokenizer
    reference = [
        textbook.forward(state, torch.from_numpy(row), LAYERS, HEADS)
        for row in random_tokens([3, 20, 7])
    ]
    assert_same_model(card, reference)
    assert (card.path / "tokenizer.json").read_bytes() == TOKENIZER.read_bytes()


def original_classifier() -> nn.Module:
    """An instance of a class named __main__.MLPClassifier, as the original pickles it."""

    class MLPClassifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden_layer = nn.Linear(768 + 64, 512)
            self.bn1 = nn.BatchNorm1d(512)
            self.relu = nn.ReLU()
            self.dropout = nn.Dropout(0.5)
            self.output_layer = nn.Linear(512, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.dropout(self.relu(self.bn1(self.hidden_layer(x))))
            logits: torch.Tensor = self.output_layer(hidden)
            return logits

    MLPClassifier.__module__, MLPClassifier.__qualname__ = "__main__", "MLPClassifier"
    model = randomised(MLPClassifier())
    model.bn1.running_mean = torch.rand(512)
    model.bn1.running_var = torch.rand(512) + 0.5
    return model


def save_as_main(model: object, path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch.save with the object's class looked up in __main__, where the original's stood."""
    main = types.ModuleType("__main__")
    setattr(main, type(model).__name__, type(model))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "__main__", main)
        torch.save(model, path)
    return path


def test_original_pickled_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given the original's pickled module, whose class does not exist here
    model = original_classifier()
    path = save_as_main(model, tmp_path / "500_model.pth", monkeypatch)
    # When it is imported
    card = import_model(path, "original", tmp_path / "models")
    # Then its chunk length comes from its name, its widths from its weights
    assert (card.chunk_length, card.input_widths, card.width) == (500, (768, 64), 512)
    # And its scores are those of the module
    rows = torch.randn(256, 832, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = torch.softmax(model(rows), dim=1)
    scores = load_classifier(card.path, CPU)(rows)
    # The same operations in the same shapes: a last bit at most.
    np.testing.assert_allclose(scores.numpy(), expected.numpy(), atol=1e-6)


def test_a_classifier_needs_its_chunk_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a classifier whose file name tells no chunk length
    path = save_as_main(original_classifier(), tmp_path / "best.pth", monkeypatch)
    # When it is imported; Then the chunk length has to be given
    with pytest.raises(ConfigError, match="chunk length"):
        import_model(path, "original", tmp_path / "models")
    assert import_model(path, "c", tmp_path / "models", chunk_length=300).chunk_length == 300


class Malicious:
    """Pickles as a call of a function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[object, ...]:
        return self.call


@pytest.mark.parametrize("suffix", [".pth", ".pt", "folder"])
@pytest.mark.parametrize("function", [os.system, eval, exec, getattr])
def test_a_malicious_pickle_is_refused_and_not_run(
    tmp_path: Path, suffix: str, function: object
) -> None:
    # Given a file in a pickled format that would run a command, hidden among tensors
    proof = tmp_path / "proof"
    command = f"touch {proof}" if function is os.system else f"open({str(proof)!r}, 'w')"
    evil = {"hidden_layer.weight": torch.ones(2), "cfg": Malicious(function, command)}
    if suffix == "folder":
        path = tmp_path / "hf"
        path.mkdir()
        (path / CONFIG).write_text("{}")
        torch.save(evil, path / "pytorch_model.bin")
    else:
        path = tmp_path / f"500_model{suffix}"
        torch.save(evil, path)
    # When it is imported; Then it is refused in one line, and the command has not run
    with pytest.raises(ConfigError) as caught:
        import_model(path, "evil", tmp_path / "models")
    assert "\n" not in str(caught.value)
    assert not proof.exists()
    assert not (tmp_path / "models" / "evil").exists()


@pytest.mark.parametrize("content", [b"", b"not a model", b"PK\x03\x04 torn", b"\x80\x02."])
@pytest.mark.parametrize("name", ["x.pt", "500_model.pth"])
def test_files_that_are_no_checkpoints_are_refused(
    tmp_path: Path, name: str, content: bytes
) -> None:
    # Given a file of another kind with a model's suffix
    (tmp_path / name).write_bytes(content)
    # When it is imported; Then it is one line
    with pytest.raises(ConfigError) as caught:
        import_model(tmp_path / name, "x", tmp_path / "models")
    assert "\n" not in str(caught.value)


def test_incomplete_models_are_refused(tmp_path: Path) -> None:
    # Given a checkpoint without one weight, a folder without weights, one without a tokenizer, and
    # names that cannot be used
    model = fair_esm_model()
    path = fair_esm_file(tmp_path / "esm2.pt", model)
    data = torch.load(path, weights_only=False)
    del data["model"]["encoder.sentence_encoder.layers.1.fc2.bias"]
    torch.save(data, tmp_path / "torn.pt")
    EsmModel(hf_esm_config(), add_pooling_layer=False).save_pretrained(tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").unlink()
    dnabert_folder(tmp_path / "mute")
    (tmp_path / "mute" / "tokenizer.json").unlink()
    models = tmp_path / "models"
    # When they are imported; Then each is told what it lacks, and nothing is written
    with pytest.raises(ConfigError, match=r"torn\.pt lacks the weights layers\.1\.fc2\.bias"):
        import_model(tmp_path / "torn.pt", "m", models)
    with pytest.raises(ConfigError, match="bare has no weights"):
        import_model(tmp_path / "bare", "m", models)
    with pytest.raises(ConfigError, match=r"no tokenizer\.json"):
        import_model(tmp_path / "mute", "m", models)
    with pytest.raises(ConfigError, match="model name"):
        import_model(path, "../m", models)
    with pytest.raises(NoInputError, match="does not exist"):
        import_model(tmp_path / "nope.pt", "m", models)
    assert not models.exists()


def test_a_name_that_is_taken_is_not_overwritten(tmp_path: Path) -> None:
    # Given an imported model
    path = fair_esm_file(tmp_path / "esm2.pt", fair_esm_model())
    card = import_model(path, "m", tmp_path)
    # When another is imported under its name; Then the first stays
    with pytest.raises(OutputError, match="exists already"):
        import_model(path, "m", tmp_path)
    verify_model(card)


def test_the_same_weights_give_the_same_digest(tmp_path: Path) -> None:
    # Given one checkpoint; When imported twice under two names; Then the digests agree
    path = fair_esm_file(tmp_path / "esm2.pt", fair_esm_model())
    first, second = (import_model(path, name, tmp_path) for name in ("one", "two"))
    assert first.digest == second.digest
    # And another model's differs
    other = fair_esm_file(tmp_path / "b.pt", randomised(fair_esm_model(), seed=9))
    assert import_model(other, "three", tmp_path).digest != first.digest

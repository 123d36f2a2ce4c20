"""Model cards, without tensors."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ops.errors import ConfigError, CorruptionError
from ops.modelstore import (
    BUNDLED,
    CONFIG,
    DEFAULT_NAMES,
    KINDS,
    WEIGHTS,
    check_fit,
    find_model,
    list_models,
    read_card,
    tokenizer_path,
    verify_model,
)


def copy_bundled(kind: str, folder: Path) -> Path:
    return Path(shutil.copytree(BUNDLED / DEFAULT_NAMES[kind], folder))


@pytest.mark.parametrize("kind", KINDS)
def test_bundled_models_are_whole_and_trained(kind: str) -> None:
    # Given a bundled model
    card = find_model(DEFAULT_NAMES[kind], kind)
    # When its files are read
    verify_model(card)
    # Then they are those of its card, which says that they were trained
    assert card.kind == kind
    assert card.trained
    assert card.digest.startswith("sha256:")
    assert len(card.digest) == 71


def test_all_bundled_models_together_are_small() -> None:
    # Given the bundled models; When counted; Then they stay under 12 MB
    assert sum(p.stat().st_size for p in BUNDLED.rglob("*") if p.is_file()) < 12_000_000


def test_bundled_models_fit_each_other() -> None:
    # Given the bundled three
    esm2, dnabert, classifier = (find_model(DEFAULT_NAMES[k], k) for k in KINDS)
    # When they are combined at their chunk length
    # Then nothing is wrong, and the tokenizer is there
    check_fit(classifier, dnabert, esm2, 500)
    assert tokenizer_path(dnabert.path).is_file()
    # And another chunk length, or another model's width, is refused with both named
    with pytest.raises(ConfigError, match="500 bases, not 300; use --chunk-length 500"):
        check_fit(classifier, dnabert, esm2, 300)
    with pytest.raises(ConfigError, match=r"widths 64 .*and 64 .*gives 64 and .* gives 2560"):
        check_fit(classifier, dnabert, replace(esm2, width=2560))
    # And so are weights of the right width that the classifier was not trained with
    with pytest.raises(
        ConfigError, match=r"was trained with another esm2 model .* than vnp-small-e"
    ):
        check_fit(classifier, dnabert, replace(esm2, digest="sha256:" + 64 * "0"))


def test_a_search_folder_comes_before_the_bundled(tmp_path: Path) -> None:
    # Given a folder that holds a model of a bundled name
    mine = copy_bundled("esm2", tmp_path / DEFAULT_NAMES["esm2"])
    # When the name is looked up there
    card = find_model(DEFAULT_NAMES["esm2"], "esm2", [tmp_path])
    # Then the folder's model is found; by path it is the same; and a list names it once
    assert card.path == mine.resolve()
    assert find_model(mine, "esm2") == card
    assert [c.path for c in list_models([tmp_path]) if c.name == card.name] == [card.path]


def test_unknown_names_and_wrong_kinds_are_told(tmp_path: Path) -> None:
    # Given names that are not there, or are another kind's
    # When looked up; Then the error says what is known and what to do
    with pytest.raises(ConfigError, match=r"no esm2 model named nope; known: vnp-small-esm2; imp"):
        find_model("nope", "esm2")
    with pytest.raises(ConfigError, match="no esm2 model named"):
        find_model(tmp_path / "nope", "esm2")
    with pytest.raises(ConfigError, match="kind dnabert, where esm2 is needed"):
        find_model(DEFAULT_NAMES["dnabert"], "esm2")


def test_a_model_folder_without_weights_is_refused(tmp_path: Path) -> None:
    # Given a model folder that lost its weights
    folder = copy_bundled("esm2", tmp_path / "m")
    (folder / WEIGHTS).unlink()
    # When it is named; Then one line says so, and a list passes over it
    with pytest.raises(ConfigError, match=r"has no weights \(model.safetensors\)") as caught:
        find_model(folder, "esm2")
    assert "\n" not in str(caught.value)
    assert "m" not in {card.name for card in list_models([tmp_path])}


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"model_type": "esm"}', '{"format": "vnp-model-1"}']
)
def test_foreign_configurations_are_refused(tmp_path: Path, content: str) -> None:
    # Given a folder whose config.json is not vnp's
    folder = copy_bundled("esm2", tmp_path / "m")
    (folder / CONFIG).write_text(content)
    # When its card is read; Then it is a configuration error of one line
    with pytest.raises(ConfigError) as caught:
        read_card(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", [WEIGHTS, "tokenizer.json", CONFIG])
def test_damage_is_found(tmp_path: Path, file: str) -> None:
    # Given a model with one value changed, in its weights, tokenizer or settings
    folder = copy_bundled("dnabert", tmp_path / "m")
    if file == CONFIG:
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(config | {"heads": 8}))
    else:
        content = bytearray((folder / file).read_bytes())
        content[-3] ^= 1
        (folder / file).write_bytes(content)
    # When it is verified; Then the damage is found
    with pytest.raises(CorruptionError, match="digest"):
        verify_model(read_card(folder))


def test_cards_need_no_tensors() -> None:
    # Given a fresh interpreter
    code = "import sys, ops.modelstore as m; m.list_models(); print(*sys.modules)"
    # When models are listed in it
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    # Then neither torch nor numpy is loaded
    assert not {"torch", "numpy", "transformers", "esm"} & set(loaded.stdout.split())

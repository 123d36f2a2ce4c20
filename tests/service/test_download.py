"""`vnp models download` against a server on loopback that speaks as the hub does."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from safetensors.torch import load_file

from ops.download import PINNED, PUBLISHED
from ops.modelstore import read_card
from tests.service.shell import Shell
from tests.unit.hub import COMMIT, Hub
from tests.unit.test_weights import hf_esm_config, pickle_in_shards

REPOSITORY = "somebody/tiny-esm2"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ESM-2 of transformers, as it is published."""
    from transformers import EsmForMaskedLM

    folder = tmp_path_factory.mktemp("published")
    EsmForMaskedLM(hf_esm_config()).save_pretrained(folder)
    (folder / "README.md").write_text("not needed")
    return folder


@pytest.fixture
def hub(published: Path) -> Iterator[Hub]:
    hub = Hub(published, REPOSITORY)
    yield hub
    hub.close()


@pytest.fixture
def download(shell: Shell, hub: Hub, tmp_path: Path) -> Any:
    variables = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": tmp_path / "hf",
        "HF_HUB_DISABLE_XET": 1,
        "HF_HUB_DISABLE_PROGRESS_BARS": 1,
    }

    def run(model: str, *options: object, **more: object) -> CompletedProcess[str]:
        return shell("vnp", "models", "download", model, *options, **{**variables, **more})

    return run


def card_path(tmp_path: Path, name: str) -> Path:
    return tmp_path / "data" / "vnp" / "models" / name


def test_download(download: Any, hub: Hub, tmp_path: Path) -> None:
    # Given a model on the hub; When it is downloaded
    done = download(REPOSITORY)
    assert done.returncode == 0, done.stderr
    # Then it is a model of ours, which knows the commit that it comes from
    name, kind, digest = done.stdout.split()
    assert (name, kind) == ("tiny-esm2", "esm2")
    card = read_card(card_path(tmp_path, name))
    assert card.digest == digest
    assert f'"{REPOSITORY}@{COMMIT}"' in (card.path / "config.json").read_text()
    # And what is of no use was not fetched
    assert not [path for _, path, _ in hub.asked if path.endswith("README.md")]
    # And again, it is there already; and by its commit, under another name, from the cache
    assert download(REPOSITORY).returncode == 78
    again = download(REPOSITORY, "--name", "b", "--revision", COMMIT, HF_HUB_OFFLINE=1)
    assert again.returncode == 0, again.stderr
    assert again.stdout.split()[2] == digest


def test_published_model_comes_at_its_pinned_commit(
    download: Any, published: Path, tmp_path: Path
) -> None:
    # Given a hub with a model of the papers, in two pickles as ESM-2 3B has them
    folder = tmp_path / "pickled"
    shutil.copytree(published, folder)
    pickle_in_shards(folder, load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    repository = PUBLISHED["esm2-3B"]
    hub = Hub(folder, repository, PINNED[repository])
    try:
        # When it is downloaded by its short name
        done = download("esm2-3b", HF_ENDPOINT=hub.url)
    finally:
        hub.close()
    # Then the pinned commit was asked for, and nothing else
    assert done.returncode == 0, done.stderr
    asked = [path for _, path, _ in hub.asked if repository in path]
    assert asked
    assert all(PINNED[repository] in path for path in asked), asked
    assert (
        f"{repository}@{PINNED[repository]}"
        in (card_path(tmp_path, "esm2-3b") / "config.json").read_text()
    )


def test_every_published_model_is_pinned() -> None:
    assert set(PINNED) == set(PUBLISHED.values())


def test_offline_and_missing(download: Any, hub: Hub) -> None:
    # Given no network by choice; When a model is not in the cache
    done = download(REPOSITORY, HF_HUB_OFFLINE=1)
    # Then nobody is asked, and the command to run elsewhere is named
    assert (done.returncode, done.stderr.count("\n")) == (66, 1)
    assert f"hf download {REPOSITORY}" in done.stderr
    assert "vnp models import DIR --name tiny-esm2" in done.stderr
    assert hub.asked == []


def test_damaged_on_the_way(download: Any, hub: Hub, tmp_path: Path) -> None:
    # Given a transfer that changes a byte; When the model is downloaded
    hub.damage = True
    done = download(REPOSITORY)
    # Then it is refused, and there is no model
    assert done.returncode == 74, done.stderr
    assert "did not arrive as the hub has it; download it again" in done.stderr
    assert not card_path(tmp_path, "tiny-esm2").exists()
    # And once more, all is well
    hub.damage = False
    done = download(REPOSITORY)
    assert done.returncode == 0, done.stderr


def test_cut_off_and_resumed(download: Any, hub: Hub, published: Path) -> None:
    # Given a transfer that breaks off behind the client's first block of 10 MB
    large = published / "vocab.txt"
    large.write_bytes(bytes(24_000_000))
    hub.cut_after = 12_000_000
    # When the model is downloaded, again if need be
    try:
        done = download(REPOSITORY)
        if done.returncode:
            assert done.returncode == 69, done.stderr
            done = download(REPOSITORY)
    finally:
        large.unlink()
    # Then the rest was asked for, and not the whole again
    assert done.returncode == 0, done.stderr
    wanted = [span for kind, path, span in hub.asked if kind == "GET" and path.endswith(large.name)]
    assert wanted[0] == ""
    assert [int(span[6:-1]) >= 10_000_000 for span in wanted[1:]] == [True]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nobody/nothing"], "the hub has no nobody/nothing"),
        ([REPOSITORY, "--revision", "v9"], f"{REPOSITORY} has no revision v9"),
        (["esm2-4B"], "no published model 'esm2-4B'; give OWNER/REPOSITORY, or one of esm2-8M"),
    ],
)
def test_what_is_not_there(download: Any, arguments: list[str], words: str) -> None:
    done = download(*arguments)
    assert (done.returncode, done.stderr.count("\n")) == (78, 1)
    assert words in done.stderr


def test_no_network(download: Any) -> None:
    done = download(REPOSITORY, HF_ENDPOINT="http://127.0.0.1:9")
    assert (done.returncode, done.stderr.count("\n")) == (69, 1)
    assert "the same command goes on later" in done.stderr

"""`vnp train classifier` and `vnp doctor` from the command line, on made-up genomes."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from broker.client import connect
from broker.server import PrivateServer
from ops.modelstore import BUNDLED, WEIGHTS, read_card, verify_model
from tests.service.shell import Shell, refused
from tests.unit.genome_fixtures import open_letters

GENOME = Path(__file__).parents[1] / "data" / "fixtures" / "virus_phiX174.fa"
SPLITS = ("train", "train", "train", "valid", "test", "test")


@pytest.fixture
def genomes(shell: Shell) -> list[object]:
    """The arguments that name six genomes of each class, with groups and splits."""
    labels = ["id\tgroup\tsplit"]
    for kind in ("virus", "other"):
        lines = []
        for number, split in enumerate(SPLITS):
            letters = open_letters(6_000, kind == "virus", number).decode()
            lines += [f">{kind}{number} made up", letters]
            labels.append(f"{kind}{number}\t{kind}-group{number}\t{split}")
        (shell.folder / f"{kind}.fa").write_text("\n".join(lines) + "\n")
    (shell.folder / "labels.tsv").write_text("\n".join(labels) + "\n")
    return ["--virus", "virus.fa", "--other", "other.fa", "--labels", "labels.tsv"]


def train(
    shell: Shell, genomes: list[object], name: str, *more: object
) -> subprocess.CompletedProcess[str]:
    few = ("--fragments", 400, "--test-fragments", 10, "--width", 16)
    models = shell.folder / "models"
    arguments = (*genomes, "--name", name, *few, *more)
    return shell("vnp", "train", "classifier", *arguments, VNP_MODELS_DIR=models)


def test_a_classifier_is_trained_reported_and_used(shell: Shell, genomes: list[object]) -> None:
    # Given genomes of two classes; When a classifier is trained on them
    done = train(shell, genomes, "mine")
    assert done.returncode == 0, done.stderr
    # Then it is a whole model that names its encoders, data and figures
    folder = shell.folder / "models" / "mine"
    card = read_card(folder)
    verify_model(card)
    assert dict(card.encoders) == {
        kind: read_card(BUNDLED / f"vnp-small-{kind}").digest for kind in ("esm2", "dnabert")
    }
    config = json.loads((folder / "config.json").read_text())
    assert config["data"].startswith("sha256:")
    assert config["metrics"]["auroc_500_unseen_groups"] > 0.95  # codons tell the classes apart
    value = config["metrics"]["auroc_500_unseen_groups"]
    assert card.note == f"AUROC {value:.2f} for 500 bp of unseen groups"
    # And standard output is a table, the report says the same in JSON and Markdown
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert lines[0] == ["fragment", "groups", "auroc", "sensitivity_at_5", "kmer_auroc"]
    assert [line[:2] for line in lines[1:]] == [
        [length, "unseen"] for length in ("150", "300", "500", "1000", "whole")
    ]
    report = json.loads((folder / "report.json").read_text())
    cell = report["lengths"]["500"]["unseen_groups"]
    assert {"both", "dna", "protein", "kmer", "kmer_all", "reliability"} <= set(cell)
    assert len(cell["both"]["auroc"]) == 3
    assert {row["group"] for row in report["groups"]["500"]} == {
        f"{kind}-group{n}" for kind in ("virus", "other") for n in (4, 5)
    }
    assert set(report["training"]["frames"]) == {"all", "longest"}
    text = (folder / "report.md").read_text()
    assert "## Groups never seen" in text
    assert f"{cell['both']['auroc'][0]:.3f}" in text
    # And it can be used with its encoders, and with no others
    out = shell.folder / "out"
    run = shell("vnp", "run", GENOME, "--classifier", folder, "--out", out)
    assert run.returncode == 0, run.stderr
    foreign = Path(shutil.copytree(BUNDLED / "vnp-small-esm2", shell.folder / "foreign"))
    config = json.loads((foreign / "config.json").read_text())
    (foreign / "config.json").write_text(json.dumps({**config, "digest": "sha256:" + 64 * "0"}))
    misfit = shell("vnp", "run", GENOME, "--classifier", folder, "--esm2", foreign)
    refused(misfit, 78, "was trained with another esm2 model", "choose models that belong together")


def test_the_same_seed_gives_the_same_bytes(shell: Shell, genomes: list[object]) -> None:
    # Given genomes; When trained twice with one seed, and with another
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        done = train(shell, genomes, name, "--seed", seed, "--fragments", 100)
        assert done.returncode == 0, done.stderr
    a, b, c = ((shell.folder / "models" / name / WEIGHTS).read_bytes() for name in "abc")
    # Then the first two are the same file, the third is not
    assert a == b
    assert a != c


def test_bad_trainings_are_refused_before_any_work(shell: Shell, genomes: list[object]) -> None:
    def told(
        code: int, *words: str, given: list[object] = genomes, more: tuple[object, ...] = ()
    ) -> None:
        refused(train(shell, given, "x", *more), code, *words)
        assert not (shell.folder / "models").exists()

    # Given too few genomes, a genome on both sides, unknown ids, encoders missing, no chunk
    labels = shell.folder / "labels.tsv"
    text = labels.read_text()
    labels.write_text(text.replace("test", "train"))
    told(64, "0 genomes of class virus for test", "give more --virus records")
    labels.write_text(text + "ghost\tg\ttest\n")
    told(65, "names 1 ids that no FASTA record has, such as ghost")
    labels.write_text(text)
    twin = (shell.folder / "virus.fa").read_text().splitlines()
    twin[9] = twin[1]  # virus4, for the test, is now virus0, for training
    (shell.folder / "twin.fa").write_text("\n".join(twin))
    swapped = ["--virus", "twin.fa", *genomes[2:]]
    told(65, "virus0 (virus, train) and virus4 (virus, test) are the same genome", given=swapped)
    told(78, "no esm2 model named nope", more=("--models", "esm2=nope"))
    told(64, "give esm2=NAME,dnabert-s=NAME", more=("--models", "bert=x"))
    told(64, "--chunk-length", "100 is not in the range x>=150", more=("--chunk-length", 100))
    told(66, "gone.fa cannot be read", given=["--virus", "gone.fa", *genomes[2:]])
    told(78, "use letters, digits", more=("--name", "a/b"))


def test_a_name_in_use_is_refused(shell: Shell, genomes: list[object]) -> None:
    (shell.folder / "models" / "taken").mkdir(parents=True)
    refused(train(shell, genomes, "taken"), 73, "exists already; choose another --name")


def test_doctor_gives_a_known_answer(shell: Shell) -> None:
    # Given a sound machine; When it is examined
    done = shell("vnp", "doctor")
    # Then every line is ok
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line[0] for line in lines] == ["ok"] * len(lines)
    names = ["python", "driver", "device", "redis", "folders", "units", "clock", "models"]
    assert [line[1] for line in lines] == [*names, "known answer"]
    # And programs get the same as JSON
    found = json.loads(shell("vnp", "doctor", "--json").stdout)
    assert [(line["check"], line["ok"]) for line in found] == [(n, True) for n in names] + [
        ("known answer", True)
    ]


def test_doctor_names_what_is_wrong(shell: Shell) -> None:
    # Given a Redis that is not there, and a model whose weights were changed
    models = shell.folder / "models"
    shutil.copytree(BUNDLED / "vnp-small-classifier", models / "vnp-small-classifier")
    weights = models / "vnp-small-classifier" / WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    # When examined; Then those two have failed, and say why
    gone = f"unix://{shell.folder}/gone.sock"
    done = shell("vnp", "doctor", VNP_MODELS_DIR=models, VNP_REDIS_URL=gone)
    assert done.returncode == 78
    failed = {
        line.split("\t")[1]: line for line in done.stdout.splitlines() if line.startswith("FAILED")
    }
    assert set(failed) == {"redis", "models"}
    assert "does not answer" in failed["redis"]
    assert "is damaged" in failed["models"]


def test_doctor_warns_of_a_redis_that_forgets(shell: Shell, fresh_server: PrivateServer) -> None:
    # Given a Redis that may drop what it was given
    connect(fresh_server.url, "command").config_set("maxmemory-policy", "allkeys-lru")
    # When examined; Then that line says what to do
    done = shell("vnp", "doctor", VNP_REDIS_URL=fresh_server.url)
    assert done.returncode == 78
    assert "FAILED\tredis\tmaxmemory-policy is allkeys-lru; set it to noeviction" in done.stdout

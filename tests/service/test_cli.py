"""The command line without a service: what is printed where, and with which exit code."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.config import Config
from daemon.served import describe_service
from ops import __version__
from ops.jobs import JobStore
from ops.modelstore import BUNDLED, KINDS
from tests.crash.harness import shards_done, until
from tests.service.shell import Shell, command, names, refused

FIXTURES = Path(__file__).parents[1] / "data" / "fixtures"
GENOME = FIXTURES / "virus_phiX174.fa"
LARGER = FIXTURES / "virus_SAOMS1.fa"


def run_script(script: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    started = [sys.executable, "-c", script]
    return subprocess.run(started, env=environment, capture_output=True, text=True)


# -- what is wrong before anything starts ----------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("run missing.fa", 66, ["missing.fa cannot be read: No such file"]),
        ("run .", 66, ["is a folder; name the FASTA files in it"]),
        ("run pipe", 66, ["pipe is not a regular file; use -"]),
        ("run", 64, ["name FASTA files, or - for standard input"]),
        ("rnu g.fa", 64, ["no command 'rnu'; did you mean run?"]),
        ("xyzzy", 64, ["no command 'xyzzy'", "--help"]),
        (
            "run g.fa --pipeline vrius",
            64,
            ["--pipeline': there is no 'vrius'; did you mean virus?"],
        ),
        ("run g.fa --pipeline x", 64, ["there is no 'x'; choose virus, protein, dna"]),
        ("run g.fa --dtype bf61", 64, ["--dtype': there is no 'bf61'; did you mean bf16?"]),
        ("list --state fialed", 64, ["--state': there is no 'fialed'; did you mean failed?"]),
        ("export x --to parquett", 64, ["--to': there is no 'parquett'; did you mean parquet?"]),
        ("completion ksh", 64, ["there is no 'ksh'; did you mean zsh?"]),
        ("list --stat failed", 64, ["'--stat'", "Did you mean", "'--state'"]),
        ("run g.fa --embedings", 64, ["--embedings", "--embeddings"]),
        ("run g.fa --chunk-length 2", 64, ["--chunk-length"]),
        ("run g.fa --chunk-length 300", 78, ["made for chunks of 500 bases, not 300"]),
        ("run g.fa --chunk-length 300 --pipeline dna", 64, ["--chunk-length is for virus jobs"]),
        ("run g.fa --compat --pipeline protein", 64, ["--compat is for virus jobs"]),
        ("run g.fa --out g.fa", 73, ["g.fa is a file, not a folder; choose another --out"]),
        ("run g.fa --device cudafoo", 78, ["'cudafoo' is not cpu, cuda or cuda:N"]),
        ("run g.fa --device gpu", 78, ["'gpu' is not cpu, cuda or cuda:N"]),
        ("run g.fa --dtype fp8", 78, ["dtype fp8 needs a GPU"]),
        ("run g.fa --esm2 esm2-3b", 78, ["no esm2 model named esm2-3b", "vnp models import"]),
        ("run g.fa --config none.toml", 78, ["none.toml does not exist"]),
        ("run g.fa --config odd.toml", 78, ["unknown setting 'packer'; did you mean packers?"]),
        ("run g.fa --config latin1.toml", 78, ["latin1.toml cannot be read", "utf-8"]),
        ("run --files-from g.fa.gz", 64, ["g.fa.gz is no list of files", "--files-from"]),
        ("run --files-from none.txt", 66, ["none.txt cannot be read"]),
        ("submit g.fa", 69, ["no vnpd runs on", "`vnpd`", "vnp run"]),
        ("status nosuchjob", 64, ["there is no job nosuchjob", "vnp list"]),
        ("status ../jobs/x", 64, ["is no job id"]),
        ("wait nosuchjob", 64, ["there is no job nosuchjob"]),
        ("cancel nosuchjob", 64, ["there is no job nosuchjob"]),
        ("logs nosuchjob", 64, ["there is no job nosuchjob"]),
        ("results nosuchjob", 66, ["neither a job nor an output folder"]),
        ("verify nosuchjob", 66, ["neither a job nor an output folder"]),
        ("models imprt x", 64, ["no command 'imprt'; did you mean import?"]),
        ("models import empty --name mine", 78, ["empty"]),
        ("frames missing.fa --nucleotide n --protein p", 66, ["missing.fa cannot be read"]),
    ],
)
def test_mistake_is_told_in_one_line(
    shell: Shell, command: str, code: int, words: list[str]
) -> None:
    # Given a genome, a pipe, an empty folder and a configuration with a mistyped key
    shutil.copy(GENOME, shell.folder / "g.fa")
    os.mkfifo(shell.folder / "pipe")
    (shell.folder / "empty").mkdir()
    (shell.folder / "odd.toml").write_text("packer = 3\n")
    (shell.folder / "latin1.toml").write_bytes(b'node = "k\xf6ln"\n')
    (shell.folder / "g.fa.gz").write_bytes(gzip.compress(GENOME.read_bytes()))
    before = names(shell.folder)
    # When / Then
    refused(shell("vnp", *command.split()), code, *words)
    # And nothing was made
    assert names(shell.folder) == before


def test_model_that_does_not_fit(shell: Shell) -> None:
    # Given a model folder without weights, and a classifier for other widths
    models = shell.folder / "models"
    shutil.copytree(BUNDLED, models)
    (models / "vnp-small-esm2" / "model.safetensors").unlink()
    classifier = models / "vnp-small-classifier"
    config = json.loads((classifier / "config.json").read_text())
    (classifier / "config.json").write_text(json.dumps({**config, "input_widths": [768, 2560]}))
    # When they are used, one after the other
    bare = shell("vnp", "run", GENOME, "--esm2", models / "vnp-small-esm2")
    wide = shell("vnp", "run", GENOME, "--classifier", classifier)
    # Then
    refused(bare, 78, "has no weights (model.safetensors)", "import the model again")
    refused(wide, 78, "768 (DNABERT-S)", "2560 (ESM-2)", "choose models that belong together")


def test_no_redis(shell: Shell) -> None:
    # Given nothing that listens; When the service is told to use it
    gone = f"unix://{shell.folder}/gone.sock"
    # Then
    refused(shell("vnpd", "--redis-url", gone), 69, gone, "is it running?")
    refused(shell("vnpd", "--redis-url", "http://x"), 78, "redis://HOST:PORT")


def test_unknown_variable(shell: Shell) -> None:
    done = shell("vnp", "list", VNP_DEVISE="cpu")
    refused(done, 78, "unknown variable VNP_DEVISE; did you mean VNP_DEVICE?")


def test_settings_that_the_service_cannot_share(shell: Shell) -> None:
    # Given a service on a GPU in fp8, as its own words tell, and a client that insists on a CPU
    serves = {"dtype": "fp8", "device": "cuda"}
    facts = {"pid": os.getpid(), "ready": True, "identity": {}, "serves": serves}
    (shell.folder / "state").mkdir()
    (shell.folder / "state" / "service.json").write_text(json.dumps(facts))
    # When it submits; Then it is told in one line
    done = shell("vnp", "submit", GENOME, VNP_DEVICE="cpu")
    refused(done, 78, "dtype fp8 needs a GPU")


def test_models_that_only_the_service_sees(shell: Shell) -> None:
    # Given a service of another machine, as its own words tell, whose models do not lie here
    models, shared = shell.folder / "models", shell.folder / "shared"
    shutil.copytree(BUNDLED, models)
    config = Config(**{k: str(models / f"vnp-small-{k}") for k in KINDS})
    (shared / "services").mkdir(parents=True)
    words = describe_service(config, "", ready=True)
    (shared / "services" / "other.json").write_text(json.dumps(words))
    shutil.rmtree(models)
    # When a client submits; Then it is a job for those models
    done = shell("vnp-submit", GENOME, "--out", "out", VNP_SHARED_DIR=shared)
    assert done.returncode == 0, done.stderr
    spec = JobStore(shared).spec(done.stdout.strip())
    assert spec.identity.to_dict() == words["identity"]
    assert spec.embedding_width == config.embedding_width("virus")
    # And one that names models of its own is held to them
    done = shell("vnp-submit", GENOME, VNP_SHARED_DIR=shared, VNP_ESM2="nosuch")
    refused(done, 78, "no esm2 model named nosuch")
    done = shell("vnp-submit", GENOME, "--chunk-length", 300, VNP_SHARED_DIR=shared)
    refused(done, 78, "made for chunks of 500 bases, not 300")


def test_a_name_for_the_user_is_not_needed(shell: Shell) -> None:
    # Given a process of a user without a name, as in many containers
    script = "import daemon.client as c, os; os.setuid(54321); print(c._user())"
    if os.getuid() != 0:
        pytest.skip("only root can become a user without a name")
    variables = ("LOGNAME", "USER", "LNAME", "USERNAME")
    environment = {k: v for k, v in shell.environment.items() if k not in variables}
    # When / Then the number stands for it
    done = run_script(script, environment)
    assert done.stdout == "54321\n"


# -- a bug is not hidden ---------------------------------------------------------------------------


def test_bug_shows_where_it_is(shell: Shell) -> None:
    # Given a command with a bug
    script = (
        "import sys, click\nfrom daemon.cli import run_command\n"
        "@click.command()\ndef broken(): raise LookupError('no such thing')\n"
        "sys.exit(run_command(broken, []))\n"
    )
    # When it runs
    done = run_script(script, shell.environment)
    # Then its place is told, and the exit code is EX_SOFTWARE
    assert done.returncode == 70
    assert "in broken" in done.stderr
    assert done.stderr.endswith("LookupError: no such thing\n")


# -- what needs no service -------------------------------------------------------------------------


def test_version(shell: Shell) -> None:
    # When / Then a bare number can be cut from it, and logs say the same
    assert shell("vnp", "--version").stdout == f"vnp {__version__}\n"


def test_nothing_to_show(shell: Shell) -> None:
    # Given a state folder that does not exist; When it is looked at
    status, jobs = shell("vnp", "status", "--json"), shell("vnp", "list", "--json")
    # Then there is nothing, which is no error, and looking makes nothing
    assert json.loads(status.stdout) == {"service": {}, "jobs": []}
    assert json.loads(jobs.stdout) == []
    assert status.stderr == jobs.stderr == ""
    assert not (shell.folder / "state").exists()


def test_bundled_models_are_listed(shell: Shell) -> None:
    cards = json.loads(shell("vnp", "models", "list", "--json").stdout)
    assert {card["kind"] for card in cards} == {"esm2", "dnabert", "classifier"}
    table = shell("vnp", "models", "list").stdout.splitlines()
    assert table[0].split() == ["name", "kind", "width", "layers", "weights", "digest", "note"]
    assert len(table) == 1 + len(cards)
    for card in cards:
        word = "trained" if card["trained"] else "UNTRAINED"
        assert any(line.split()[0] == card["name"] and word in line.split() for line in table)


def test_frames_are_written(shell: Shell) -> None:
    # When the frames of a genome are written
    arguments = ("--chunk-length", 500, "--nucleotide", "n.fna", "--protein", "p.faa")
    done = shell("vnp", "frames", GENOME, *arguments)
    # Then there are 5 of them, as the original finds, under the same ids in both files
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "vnp: 5 frames\n")
    ids = [
        [line for line in (shell.folder / name).read_text().splitlines() if line[0] == ">"]
        for name in ("n.fna", "p.faa")
    ]
    assert ids[0] == ids[1]
    assert len(ids[0]) == 5
    assert all(re.fullmatch(r">NC_001422\.1_chunk_\d+[FR][123]", id_) for id_ in ids[0])


# -- vnp run ---------------------------------------------------------------------------------------


def test_untrained_models_are_told(shell: Shell) -> None:
    # Given a copy of a model whose card says that nobody trained it
    model = Path(shutil.copytree(BUNDLED / "vnp-small-esm2", shell.folder / "m" / "raw"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "trained": False}))
    # When a genome is run with it; Then the result says what its values are worth
    done = shell("vnp", "run", GENOME, "--esm2", model, "--out", shell.folder / "out")
    assert done.returncode == 0, done.stderr
    assert "UNTRAINED models" in done.stdout


def test_run_prints_calls_and_says_done_the_second_time(shell: Shell) -> None:
    # Given a genome; When it is run in the current folder
    shutil.copy(GENOME, shell.folder / "phi.x.fa")
    done = shell("vnp", "run", "phi.x.fa")
    out = shell.folder / "phi.vnp"
    # Then the table and the files are on standard output, and nothing of untrained models
    assert done.returncode == 0, done.stderr
    assert "NC_001422.1" in done.stdout
    assert "1 record: " in done.stdout
    assert "UNTRAINED" not in done.stdout
    assert "calls by vnp-small-classifier: AUROC 0.85 for 500 bp of unseen groups" in done.stdout
    assert "virus" in next(line for line in done.stdout.splitlines() if "NC_001422.1" in line)
    for name in ("sequences.tsv", "chunks.tsv", "run.json", "shards"):
        assert f"  {name} " in done.stdout
        assert (out / name).exists()
    assert max(map(len, done.stdout.splitlines())) <= max(80, len(str(out)) + 4)
    # And the same again computes nothing: not a file is touched
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = shell("vnp", "run", "phi.x.fa")
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert again.stderr == "vnp: finished already; --force computes it anew\n"
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    # And nothing else is left anywhere
    assert names(shell.folder) == ["phi.vnp", "phi.x.fa", "tmp"]
    assert [path for path in (shell.folder / "tmp").rglob("*") if path.is_file()] == []


def test_run_of_what_is_wrong_inside(shell: Shell) -> None:
    # Given a file whose second record has a digit
    (shell.folder / "bad.fa").write_bytes(b">one\nACGT\n>two\nAC1GT\n")
    # When / Then it is refused with its place, and no folder is made
    refused(shell("vnp", "run", "bad.fa"), 65, "bad.fa", "line 4", "two", "'1'")
    assert not (shell.folder / "bad.vnp").exists()


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_stopped_run_says_how_to_go_on(shell: Shell, sig: signal.Signals) -> None:
    # Given a run in small shards, one of which is committed
    out = shell.folder / "out"
    process = subprocess.Popen(
        command("vnp", "run", LARGER, "--out", out),
        env={**shell.environment, "VNP_SHARD_BASES": "5000"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: shards_done(out) >= 1, "a shard")
    # When it is asked to stop
    process.send_signal(sig)
    printed, told = process.communicate(timeout=300)
    # Then it says how to go on, has called nothing, and its exit code is the signal's
    assert process.returncode == 128 + sig
    assert printed == ""
    assert told.endswith(f"vnp: stopped; the same command goes on from {out}\n")
    assert not (out / "sequences.tsv").exists()

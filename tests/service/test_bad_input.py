"""Bad input: one line that says what to do, the exit code of sysexits(3), and no half result.

Valid but odd input: every record has its row.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemon.runtime import runtime_folder
from ops.durable import FileLock
from ops.modelstore import BUNDLED
from tests.crash.harness import Service, digests
from tests.service.conftest import FIXTURES, ODD
from tests.service.shell import command, refused

EX_DATAERR, EX_NOINPUT, EX_UNAVAILABLE, EX_CANTCREAT, EX_CONFIG = 65, 66, 69, 73, 78
GENOME = (FIXTURES / "virus_phiX174.fa").read_bytes()
BUILT_FOR = "was made for chunks of 500 bases, not 300"

Finished = tuple[str, Path]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def assert_no_half_result(out: Path) -> None:
    names = [path.name for path in out.rglob("*")] if out.exists() else []
    assert set(names) <= {".lock", "shards", "manifest.jsonl"}


# -- the input -------------------------------------------------------------------------------------

BAD_CONTENT = {
    "fastq": (b"@read\nACGT\n+\nIII\n", ["line 2", "4 letters, but 3 quality marks"]),
    "late text": (b"\nMy notes of today\n", ["line 2", "not FASTA", "there is no >"]),
    "protein": (
        b">good\nACGT\n>p53 human\nMEEPQSDPSV\n",
        ["line 4", "record 'p53'", "is this protein? then use --pipeline protein"],
    ),
    "digits after a blank line": (b">a\nAC\n\n>b\nACGT\n10 AC\n", ["line 6", "record 'b'", "'1'"]),
    "NUL": (b">a\nAC\0GT\n", ["line 2", "record 'a'", "'\\x00'"]),
    "damaged gzip": (gzip.compress(GENOME)[:-9] + b"\0" * 9, ["damaged", "fetch the file again"]),
}


@pytest.mark.parametrize("kind", BAD_CONTENT)
def test_bad_content_fails_its_job(service: Service, tmp_path: Path, out: Path, kind: str) -> None:
    # Given a file whose content is wrong
    content, words = BAD_CONTENT[kind]
    fasta = tmp_path / "input.fa"
    fasta.write_bytes(content)
    # When its job is waited for; Then file, line and record are named, and nothing was begun
    job = service.submit(fasta, out)
    refused(service.vnp("wait", job), EX_DATAERR, f"{job} failed: {fasta}", *words)
    assert not out.exists()


@pytest.mark.parametrize("name", ["missing.fa", "folder"])
def test_bad_file_is_refused_by_submit(
    service: Service, fasta: Path, tmp_path: Path, out: Path, name: str
) -> None:
    # Given a good file, and one that cannot be read
    (tmp_path / "folder").mkdir()
    # When both are submitted; Then the second is named, and there is no job
    before = service.vnp("list").stdout
    refused(service.vnp("submit", fasta, tmp_path / name, "--out", out), EX_NOINPUT, name)
    assert service.vnp("list").stdout == before


@pytest.mark.skipif(os.getuid() == 0, reason="root may read every file")
def test_unreadable_file(service: Service, tmp_path: Path, out: Path) -> None:
    fasta = tmp_path / "secret.fa"
    fasta.write_bytes(GENOME)
    fasta.chmod(0)
    refused(service.vnp("submit", fasta, "--out", out), EX_NOINPUT, "Permission denied")


def replace_it(fasta: Path) -> None:
    fasta.write_bytes(GENOME + GENOME)


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (replace_it, EX_DATAERR, "has changed since it was submitted; submit it again"),
        (Path.unlink, EX_NOINPUT, "cannot be read: No such file"),
    ],
)
def test_input_that_changes_after_submit(
    service: Service,
    tmp_path: Path,
    out: Path,
    change: Callable[[Path], None],
    code: int,
    words: str,
) -> None:
    # Given a job that nobody has begun, since the planner stands still
    fasta = tmp_path / "input.fa"
    fasta.write_bytes(GENOME)
    (planner,) = service.processes("planner")
    service.kill_role("planner", signal.SIGSTOP)
    try:
        job = service.submit(fasta, out)
        # When the file changes, or goes away
        change(fasta)
    finally:
        service.kill_role("planner", signal.SIGCONT)
    # Then the job fails rather than mix two files, and the planner lives on
    refused(service.vnp("wait", job), code, f"{fasta} {words}")
    assert not out.exists()
    assert service.processes("planner") == [planner]


def test_frames_of_protein(service: Service, tmp_path: Path) -> None:
    # Given protein; When its frames are asked for
    fasta, nucleotide, protein = (tmp_path / name for name in ("x.fa", "n.fa", "p.fa"))
    fasta.write_text(">x\nMEEPQSDPSV\n")
    done = service.vnp("frames", fasta, "--nucleotide", nucleotide, "--protein", protein)
    # Then neither file was begun
    refused(done, EX_DATAERR, f"{fasta}, line 2, record 'x'")
    assert sorted(tmp_path.iterdir()) == [fasta]


# -- the output folder -----------------------------------------------------------------------------


def test_output_of_other_chunks(service: Service, fasta: Path, finished: Finished) -> None:
    # Given a folder that holds a result
    _, out = finished
    before = digests(out)
    # When the same input is to go there with other chunks
    job = service.submit(fasta, out, "--chunk-length", 300, "--allow-chunk-length")
    # Then both sides and the ways out are named, and the result is as it was
    words = ("results of another job (chunk_length 500, not 300)", "another --out", "--force")
    refused(service.vnp("wait", job), EX_CANTCREAT, str(out), *words)
    assert digests(out) == before


def test_output_in_use_by_another_run(service: Service, fasta: Path, out: Path) -> None:
    # Given another `vnp run` for the same folder, which has only just begun
    folder = runtime_folder(out)
    with FileLock(folder / "lock"):
        done = service.vnp("run", fasta, "--out", out)
    shutil.rmtree(folder)
    # Then it is named, and nothing was begun
    holder = f"held by pid {os.getpid()}"
    refused(done, EX_CANTCREAT, f"{out} is in use by another vnp run; wait for it", holder)
    assert not out.exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 KB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root can make a small file system; test_output has the estimate")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_too_little_disk(service: Service, fasta: Path, small_disk: Path) -> None:
    # Given a disk on which the result has no room; When a job is to write there
    out = small_disk / "out"
    job = service.submit(fasta, out, "--embeddings")
    # Then it ends before it begins
    words = ("needs about", " kB free; free some, or choose another --out")
    refused(service.vnp("wait", job), EX_CANTCREAT, f"{out} ", *words)
    assert_no_half_result(out)


# -- models and services ---------------------------------------------------------------------------


def test_folder_that_is_no_model(service: Service, tmp_path: Path, fasta: Path, out: Path) -> None:
    refused(
        service.vnp("run", fasta, "--dnabert", tmp_path, "--out", out),
        EX_CONFIG,
        f"{tmp_path} has no config.json",
        "vnp models import PATH --name NAME",
    )
    refused(
        service.vnp("models", "import", tmp_path, "--name", "x"),
        EX_CONFIG,
        f"{tmp_path} has no config.json",
    )


def test_model_of_another_kind(service: Service, fasta: Path, out: Path) -> None:
    done = service.vnp("run", fasta, "--esm2", "vnp-small-dnabert", "--out", out)
    refused(done, EX_CONFIG, "holds a model of kind dnabert, where esm2 is needed")


def test_model_without_weights_in_the_service(tmp_path: Path) -> None:
    # Given a service whose models folder has half an import; When it starts; Then it ends
    models = tmp_path / "models"
    shutil.copytree(BUNDLED / "vnp-small-esm2", models / "half")
    (models / "half" / "model.safetensors").unlink()
    done = vnpd(tmp_path, models_dir=models, esm2="half")
    refused(done, EX_CONFIG, "half has no weights (model.safetensors); import the model again")


@pytest.mark.parametrize("command", ["run", "submit"])
def test_classifier_of_other_chunks(service: Service, fasta: Path, out: Path, command: str) -> None:
    done = service.vnp(command, fasta, "--chunk-length", 300, "--out", out)
    refused(done, EX_CONFIG, BUILT_FOR, "use --chunk-length 500")
    assert not out.exists()


def test_no_service(fasta: Path, tmp_path: Path, out: Path) -> None:
    # Given a state folder that nobody serves; When it is used
    nobody = Service(tmp_path)
    done = nobody.vnp("submit", fasta, "--out", out)
    # Then submitting is refused, and looking is not
    refused(done, EX_UNAVAILABLE, "no vnpd runs on", "start it with `vnpd`, or use `vnp run`")
    assert nobody.vnp("status").stdout == "service: not running, 0 unfinished jobs\n"


def test_service_that_is_gone_while_somebody_waits(
    service: Service, fasta: Path, tmp_path: Path, out: Path
) -> None:
    # Given a job file, and a service that left its word behind when it was killed
    service.kill_role("planner", signal.SIGSTOP)
    try:
        job = service.submit(fasta, out)
        shutil.copytree(service.state / "jobs", tmp_path / "state" / "jobs")
        service.vnp("cancel", job)
    finally:
        service.kill_role("planner", signal.SIGCONT)
    gone = subprocess.Popen(["true"])
    gone.wait()
    facts = {**service.facts, "pid": gone.pid}
    (tmp_path / "state" / "service.json").write_text(json.dumps(facts))
    # When it is waited for; Then there is nobody to wait for
    done = Service(tmp_path).vnp("wait", job)
    refused(done, EX_UNAVAILABLE, "no vnpd runs on", "start it with `vnpd`")


def vnpd(folder: Path, **settings: object) -> subprocess.CompletedProcess[str]:
    """`vnpd`, which is expected to end by itself."""
    environment = Service(folder, **settings).environment
    return subprocess.run(
        command("vnpd"), env=environment, capture_output=True, text=True, timeout=300
    )


def test_no_redis_leaves_no_word_of_a_service(tmp_path: Path) -> None:
    # Given a Redis that nobody serves; When vnpd starts; Then nobody takes it for a service
    done = vnpd(tmp_path, redis_url="redis://127.0.0.1:1")
    refused(done, EX_UNAVAILABLE, "redis://127.0.0.1:1 does not answer", "is it running?")
    assert not (tmp_path / "state" / "service.json").exists()


def test_second_service_on_a_state_folder(service: Service) -> None:
    # Given a running service; When another starts on its folder
    facts = service.facts
    done = vnpd(service.folder)
    # Then it ends, and the first one goes on
    words = (
        f"another vnpd serves {service.state} as planner; stop it first",
        f"held by pid {facts['pid']}",
    )
    refused(done, EX_CANTCREAT, *words)
    assert service.facts == facts


def test_state_folder_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("mine")
    refused(vnpd(tmp_path), EX_CANTCREAT, str(tmp_path / "state"))


# -- valid, if odd ---------------------------------------------------------------------------------


def table(out: Path, name: str) -> list[dict[str, str]]:
    with (out / name).open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_odd_records_have_their_rows(finished: Finished) -> None:
    # Given a finished job with records of every odd kind
    _, out = finished
    rows = table(out, "sequences.tsv")
    # Then each has its row, in the order of the input, with its status
    assert [(row["seq_name"], int(row["length"]), row["status"]) for row in rows] == [
        ("empty", 0, "empty"),
        ("short", 2, "too_short"),
        ("unknown", 700, "ambiguous"),
        ("twice", 10, "ok"),
        ("twice", 20, "ok"),
        ("rna", 180, "ok"),
        ("[bold]", 13, "ok"),
        ("", 3, "ok"),
        ("last", 0, "empty"),
        ("NC_001422.1", 5386, "ok"),
    ]
    # And a call where there was something to score, else none
    for row in rows:
        assert (row["prediction"] == "NA") is (row["status"] != "ok")
        assert (row["virus_score"] == "NA") is (row["status"] != "ok")
    # And letters that were read in their own way are told
    assert rows[2]["note"] == "700 ambiguous letters"
    assert rows[5]["note"] == "50 U read as T"
    # And every record with letters has its chunks
    names = [row["seq_name"] for row in table(out, "chunks.tsv")]
    assert names[:8] == ["short", "unknown", "unknown", "twice", "twice", "rna", "[bold]", ""]
    assert names[8:] == ["NC_001422.1"] * 11


@pytest.mark.parametrize(("content", "records"), [(b"\n\n", 0), (b">only\n", 1)])
def test_input_without_letters(
    service: Service, tmp_path: Path, out: Path, content: bytes, records: int
) -> None:
    # Given a file without records, or without letters; When its job is done
    fasta = tmp_path / "input.fa"
    fasta.write_bytes(content)
    service.wait(service.submit(fasta, out))
    # Then the tables are there, and hold what there is
    assert [row["status"] for row in table(out, "sequences.tsv")] == ["empty"] * records
    assert table(out, "chunks.tsv") == []
    assert gzip.decompress((out / "virus.fasta.gz").read_bytes()) == b""


def test_run_of_an_empty_file(service: Service, tmp_path: Path, out: Path) -> None:
    # Given an empty file; When it is run; Then that is no error
    (tmp_path / "empty.fa").touch()
    done = service.vnp("run", tmp_path / "empty.fa", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "0 records: 0 virus, 0 others, 0 without a call" in done.stdout


def test_gzip_under_any_name(service: Service, tmp_path: Path, finished: Finished) -> None:
    # Given the same records, compressed in two members under a name that does not say so
    fasta, out = tmp_path / "input.txt", tmp_path / "out"
    odd = "".join(f">{header}\n{sequence}\n" for header, sequence in ODD).encode()
    fasta.write_bytes(gzip.compress(odd) + gzip.compress(GENOME))
    # When its job is done; Then it gave what the plain file gives
    service.wait(service.submit(fasta, out))
    assert digests(out) == digests(finished[1])

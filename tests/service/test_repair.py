"""`vnp verify --repair` as a user meets it: named, computed again, the same bytes."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from ops.files import shard_file
from ops.manifest import encode_line, read_manifest
from ops.shardfile import build_shard, read_shard
from tests.crash.harness import Service, digests
from tests.crash.test_kill import FIXTURES

EX_IOERR, EX_CANTCREAT = 74, 73


@pytest.fixture
def shell(tmp_path: Path) -> Service:
    """A job of three shards, finished."""
    shell = Service(tmp_path)
    fasta = FIXTURES / "virus_influenzaA_PR8.fa"
    done = shell.vnp("run", fasta, FIXTURES / "virus_lambda.fa", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    return shell


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_damage_is_named_and_repaired(shell: Service, tmp_path: Path) -> None:
    out = tmp_path / "out"
    undisturbed = digests(out)
    shards = sorted(out.glob("shards/*"))
    assert len(shards) >= 3
    # Given one flipped bit in a shard, and one in the manifest's header
    flip(shards[1], 5_000)
    flip(out / "manifest.jsonl", 30)
    # Then verify names both, and changes nothing
    done = shell.vnp("verify", out)
    assert done.returncode == EX_IOERR
    assert "manifest.jsonl is damaged at byte 0" in done.stderr
    # And the repair computes just that shard, and ends with the same bytes
    kept = {path: path.stat().st_mtime_ns for path in shards if path != shards[1]}
    done = shell.vnp("verify", out, "--repair")
    assert done.returncode == 0, done.stderr
    assert "1 shard of " in done.stderr
    assert "all as committed" in done.stdout
    assert digests(out) == undisturbed
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    # And again there is nothing to do
    done = shell.vnp("verify", out, "--repair")
    assert (done.returncode, done.stderr) == (0, "")


def test_resume_names_what_is_damaged(shell: Service, tmp_path: Path) -> None:
    # Given an unfinished job with a flipped bit in a committed shard
    out = tmp_path / "out"
    flip(sorted(out.glob("shards/*"))[0], 5_000)
    (out / "run.json").unlink()
    (out / "sequences.tsv").unlink()
    # When it is resumed
    fasta = FIXTURES / "virus_influenzaA_PR8.fa"
    done = shell.vnp("run", fasta, FIXTURES / "virus_lambda.fa", "--out", out)
    # Then it does not go on over it
    assert done.returncode == EX_IOERR
    assert "shard-000000.h5 is missing or damaged" in done.stderr
    assert f"vnp verify --repair {out}" in done.stderr


def test_shards_are_computed_again_and_compared(shell: Service, tmp_path: Path) -> None:
    # Given a finished job; When two of its shards are computed again, then they are the same
    out = tmp_path / "out"
    done = shell.vnp("verify", out, "--recompute", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": the same bytes, the same numerics") == 2
    # But when a shard holds another score, and manifest and tables vouch for it
    forge(out, 0)
    done = shell.vnp("verify", out, "--recompute", "1")
    # Then it is named, with how far it is off
    assert done.returncode == EX_IOERR, done.stdout + done.stderr
    assert "shard 0: up to 0.25 apart, the same numerics" in done.stdout


def forge(out: Path, number: int) -> None:
    """Lowers the first score of a shard by 0.25, and makes its manifest line fit."""
    manifest = out / "manifest.jsonl"
    state = read_manifest(manifest)
    assert state.header is not None
    line = state.shards[number]
    path = out / shard_file(number)
    data = read_shard(path)
    assert data.rows.scores is not None
    data.rows.scores[0, 0] -= 0.25
    image = build_shard(data.account, data.rows, state.header.identity)
    path.write_bytes(image)
    honest = encode_line(line)
    forged = encode_line(replace(line, sha256=hashlib.sha256(image).hexdigest(), bytes=len(image)))
    manifest.write_bytes(manifest.read_bytes().replace(honest, forged))


def test_filtered_job_is_repaired_as_it_was_asked(tmp_path: Path) -> None:
    # Given a job with filters, and a shard of it that is lost
    shell, out = Service(tmp_path), tmp_path / "out"
    options = ("--min-length", 1_500, "--max-ambiguous", 10, "--strict")
    done = shell.vnp("run", FIXTURES / "virus_influenzaA_PR8.fa", "--out", out, *options)
    assert done.returncode == 0, done.stderr
    undisturbed = digests(out)
    (out / shard_file(0)).unlink()
    # When it is repaired; Then it is the same again
    done = shell.vnp("verify", out, "--repair")
    assert done.returncode == 0, done.stderr
    assert digests(out) == undisturbed
    assert "filtered" in (out / "sequences.tsv").read_text()

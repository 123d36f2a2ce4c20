"""What comes from outside stays data: names, paths, messages, passwords."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
import redis

from broker.acl import ROLES, rules
from broker.server import PrivateServer
from tests.crash.harness import Service, digests

NAMES = [
    "../../escape",
    "/etc/passwd",
    "a/b/c",
    "..",
    ".",
    "shard-000000.h5",
    "=cmd()",
    "$(touch${IFS}x)",
]
PASSWORD = "n0body-may-read-this"
READ = "ATGGCTAAA" * 12
EX_NOPERM = 77


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "names.fa"
    path.write_text("".join(f">{name}\n{READ}\n" for name in NAMES))
    return path


def h5_names(path: Path) -> set[str]:
    names: set[str] = set()
    with h5py.File(path) as file:
        file.visit(names.add)
    return names


def test_names_are_neither_paths_nor_keys(tmp_path: Path, fasta: Path) -> None:
    # Given records with the names of files, and others with plain ones
    plain = tmp_path / "plain.fa"
    plain.write_text("".join(f">r{n}\n{READ}\n" for n in range(len(NAMES))))
    shell = Service(tmp_path)
    before = {path for path in tmp_path.iterdir() if path.suffix != ".log"}
    found = []
    for source in (fasta, plain):
        out = tmp_path / f"out-{source.stem}"
        done = shell.vnp("run", source, "--out", out, "--compat", "--embeddings")
        assert done.returncode == 0, done.stderr
        files = {str(path.relative_to(out)) for path in out.rglob("*")}
        found.append((files, h5_names(out / "shards" / "shard-000000.h5")))
    # Then both leave the same files with the same keys, and nothing elsewhere
    assert found[0] == found[1]
    new = {path.name for path in tmp_path.iterdir()} - {path.name for path in before}
    assert new <= {"out-names", "out-plain", "run.log", "service.log"}
    table = (tmp_path / "out-names" / "sequences.tsv").read_text().splitlines()[1:]
    assert [line.split("\t")[0] for line in table] == NAMES


def test_passwords_and_foreign_inputs(tmp_path: Path, fasta: Path) -> None:
    # Given a service on a Redis with a password, whose inputs have to lie in one folder
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    (allowed / "good.fa").write_text(fasta.read_text())
    (allowed / "link.fa").symlink_to(fasta)
    server = PrivateServer(tmp_path / "redis")
    server.start()
    admin = redis.Redis.from_url(server.url)
    words = ("reset", "on", f">{PASSWORD}", *rules(ROLES[:4]))
    admin.execute_command("ACL", "SETUSER", "vnp", *words)
    admin.execute_command("ACL", "SETUSER", "default", "off")
    url = f"unix://vnp:{PASSWORD}@{server.socket}"
    service = Service(tmp_path, redis_url=url, input_roots=allowed, log_level="debug")
    try:
        service.start()
        # When jobs come with inputs here and elsewhere
        good = service.submit(allowed / "good.fa", tmp_path / "good")
        service.wait(good)
        for source in (fasta, allowed / "link.fa"):
            done = service.vnp("submit", source, "--out", tmp_path / source.stem, "--wait")
            assert done.returncode == EX_NOPERM
            assert "none of the folders of input_roots" in done.stderr
        # And one comes from standard input
        done = subprocess.run(
            [sys.executable, "-m", "daemon.cli", "submit", "-", "--out", tmp_path / "in", "--wait"],
            env=service.environment,
            input=fasta.read_bytes(),
            capture_output=True,
            check=True,
        )
        assert {k: v for k, v in digests(tmp_path / "in").items() if k.endswith("tsv")} == {
            k: v for k, v in digests(tmp_path / "good").items() if k.endswith("tsv")
        }
        said = service.vnp("status", "--json").stdout + service.vnp("status", good).stdout
    finally:
        service.end()
        admin.close()
        server.stop()
    # Then no file and no answer holds the password
    assert json.loads(said.splitlines()[0])
    assert PASSWORD not in said
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert PASSWORD.encode() not in path.read_bytes(), path

"""The Dockerfile: linted; what it copies is enough to install vnp; its probe sees well and ill."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client.core import Metric

from daemon.health import HealthServer, Metrics
from tests.deploy.tools import DEPLOY, ROOT, on_path, shellcheck

DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROBE = DEPLOY / "docker" / "vnp-probe"


def instructions(name: str) -> list[list[str]]:
    """Words of each instruction of this name, lines joined."""
    joined = re.sub(r"\\\n\s*", " ", DOCKERFILE)
    return [shlex.split(line)[1:] for line in joined.splitlines() if line.startswith(f"{name} ")]


def copied() -> list[str]:
    """What comes from the checkout."""
    sources = [words[:-1] for words in instructions("COPY") if not words[0].startswith("--from")]
    return [source for words in sources for source in words]


def test_hadolint() -> None:
    done = subprocess.run(
        [on_path("hadolint"), str(ROOT / "Dockerfile")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_shellcheck() -> None:
    shellcheck(PROBE)
    assert os.access(PROBE, os.X_OK)


def test_the_context_is_what_is_copied_and_no_more() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[1] == "*"
    assert sorted(line[1:] for line in lines if line.startswith("!")) == sorted(copied())


def test_what_is_copied_is_vnp_whole(tmp_path: Path) -> None:
    # Given only what the Dockerfile copies; When it is installed (its dependencies are here)
    source, site = tmp_path / "src", tmp_path / "site"
    source.mkdir()
    for name in copied():
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        elif "/" not in name:
            shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    options = ["--disable-pip-version-check", "--target", str(site), str(source)]
    subprocess.run([*pip, *options], check=True, capture_output=True)
    # Then the commands run from there, with scripts and models at hand
    script = (
        "import broker.scripts as s, ops.modelstore as m; assert list(s.FOLDER.glob('*.lua'));"
        "assert (m.BUNDLED / 'vnp-small-esm2' / 'config.json').exists(); print(s.__file__);"
        "from daemon.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "--version"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(site), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    where, version = done.stdout.splitlines()
    assert where.startswith(str(site))
    assert re.fullmatch(r"(vnp|-c) \d+\.\d+\.\d+\S*", version)


def test_the_image_runs_as_the_user_of_the_manifests() -> None:
    [[user]] = instructions("USER")
    gpu = yaml.safe_load((DEPLOY / "kubernetes" / "base" / "gpu.yaml").read_text())
    security = gpu["spec"]["template"]["spec"]["securityContext"]
    assert user == f"{security['runAsUser']}:{security['runAsGroup']}"
    assert instructions("ENTRYPOINT") == []  # workflow managers start a shell


class NoMetrics(Metrics):
    def __init__(self) -> None:
        pass

    def collect(self) -> Iterator[Metric]:
        yield from ()


@pytest.fixture
def address() -> Iterator[str]:
    """The health address of a service that is alive, and not ready."""
    server = HealthServer("127.0.0.1:0", lambda: "", lambda: "not ready: gpu:0", NoMetrics())
    yield f"127.0.0.1:{server.port}"
    server.close()


def probe(page: str, address: str) -> tuple[bool, str]:
    environment = {"VNP_LISTEN": address, "PATH": os.environ["PATH"]}
    done = subprocess.run([PROBE, page], env=environment, capture_output=True, text=True)
    return done.returncode == 0, done.stdout


def test_the_probe(address: str) -> None:
    assert probe("healthz", address) == (True, "ok\n")
    assert probe("readyz", address) == (False, "not ready: gpu:0\n")
    assert probe("healthz", "127.0.0.1:1") == (False, "")


def test_the_probe_asks_where_the_manifests_listen() -> None:
    settings = (DEPLOY / "kubernetes" / "base" / "vnp.toml").read_text()
    [asked] = re.findall(r"VNP_LISTEN:-([\d.:]+)", PROBE.read_text())
    assert f'listen = "{asked}"' in settings

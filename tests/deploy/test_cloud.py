"""User data of spot instances: valid, its scripts clean, its settings those of the program."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.tools import DEPLOY, ROOT, accepted, shellcheck

FILES = [DEPLOY / "cloud" / "aws-spot.yaml", DEPLOY / "cloud" / "gcp-mig.yaml"]
each = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def user_data(path: Path) -> dict[str, Any]:
    text = path.read_text()
    assert text.startswith("#cloud-config\n")
    assert len(text) < 16_384  # what AWS takes, before base64
    data: dict[str, Any] = yaml.safe_load(text)
    return data


def written(path: Path, name: str) -> str:
    """The content of the one written file whose path ends so."""
    [found] = [file for file in user_data(path)["write_files"] if file["path"].endswith(name)]
    content: str = found["content"]
    return content


@each
def test_schema(path: Path, tmp_path: Path) -> None:
    if shutil.which("cloud-init") is None:
        pytest.skip("cloud-init is not installed (apt-get install cloud-init)")
    command = ["cloud-init", "schema", "--config-file", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@each
def test_shape(path: Path) -> None:
    data = user_data(path)
    assert set(data) == {"package_update", "packages", "write_files", "runcmd"}
    files = {file["path"]: file["permissions"] for file in data["write_files"]}
    for [command] in data["runcmd"]:
        assert files[command] == "0755"


@each
def test_settings_are_accepted(path: Path, tmp_path: Path) -> None:
    config = accepted(written(path, "vnp.toml"), tmp_path)
    assert config.preemption == path.stem.partition("-")[0]
    assert config.devices == ["cuda:0"]


@each
def test_scripts(path: Path) -> None:
    script = written(path, "vnp-bootstrap")
    shellcheck(script)
    assert "set -euo pipefail" in script


@each
def test_no_secret_stands_in_user_data(path: Path) -> None:
    for url in re.findall(r"rediss?://\S+", path.read_text()):
        assert re.match(r"rediss://vnp-worker:\.\.\.@redis\.example\.org:", url)


@each
def test_the_drop_in_is_of_a_unit_that_there_is(path: Path) -> None:
    [drop_in] = [f["path"] for f in user_data(path)["write_files"] if f["path"].endswith(".conf")]
    assert (ROOT / "systemd" / Path(drop_in).parent.name.removesuffix(".d")).exists()
    assert "/opt/vnp/bin/vnpd --roles packer,gpu" in written(path, "cloud.conf")
    script = written(path, "vnp-bootstrap")
    for started in re.findall(r"systemctl \w+ (?:--\S+ )*(vnp\S+)", script):
        assert (ROOT / "systemd" / started).exists()


def test_both_are_the_same_but_for_the_cloud() -> None:
    aws, gcp = (written(path, "cloud.conf") for path in FILES)
    assert aws == gcp
    lines = [set(written(path, "vnp-bootstrap").splitlines()) for path in FILES]
    assert len(lines[0] ^ lines[1]) <= 14

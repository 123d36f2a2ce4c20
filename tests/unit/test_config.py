"""The configuration: file < VNP_* < flags, no unknowns, and what the command line loads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from daemon.config import Config
from daemon.config_load import load
from ops.errors import ConfigError

HEAVY = ("torch", "h5py", "tokenizers", "transformers", "numpy", "redis", "esm", "safetensors")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of the caller reaches a test, and no file of the machine."""
    for name in [name for name in os.environ if name.startswith("VNP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("VNP_STATE_DIR", str(tmp_path / "state"))


def write(folder: Path, text: str) -> Path:
    path = folder / "vnp.toml"
    path.write_text(text)
    return path


def refusal(path: Path | None = None, **flags: object) -> str:
    """The one line with which the configuration is refused, with EX_CONFIG."""
    with pytest.raises(ConfigError) as caught:
        load(flags, path)
    assert caught.value.exit_code == 78
    message = str(caught.value)
    assert "\n" not in message
    return message


# -- where a value comes from ----------------------------------------------------------------------


def test_defaults_are_whole(tmp_path: Path) -> None:
    # Given no file, no variable, no flag; When the configuration is loaded
    config = load({})
    # Then everything has a value, and every role has a process
    assert config.resolved_dtype == "fp32"
    assert set(config.role_counts) == {"planner", "packer", "gpu", "writer"}
    assert min(config.role_counts.values()) >= 1
    assert config.log_path == tmp_path / "state" / "vnp.log"


def test_file_then_variable_then_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a file that sets three things, and a variable for two of them
    path = write(tmp_path, 'packers = 3\nmax_rows = 100\nlog_level = "error"\n')
    monkeypatch.setenv("VNP_MAX_ROWS", "200")
    monkeypatch.setenv("VNP_LOG_LEVEL", "warning")
    # When it is loaded with a flag for one
    config = load({"log_level": "debug", "packers": None}, path)
    # Then the later source is the stronger one, and a flag that was not given is none
    assert (config.packers, config.max_rows, config.log_level) == (3, 200, "debug")


def test_file_named_by_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given VNP_CONFIG
    monkeypatch.setenv("VNP_CONFIG", str(write(tmp_path, "packers = 5\n")))
    # When / Then
    assert load({}).packers == 5


def test_state_directory_of_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given what systemd sets for StateDirectory=, and nothing of ours
    monkeypatch.delenv("VNP_STATE_DIR")
    monkeypatch.setenv("STATE_DIRECTORY", f"{tmp_path}/vnp:{tmp_path}/other")
    # When / Then
    assert load({}).state_dir == tmp_path / "vnp"
    assert load({}).models_dir == tmp_path / "vnp" / "models"


def test_empty_variable_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a file that sets something, and an empty variable for the same
    monkeypatch.setenv("VNP_PACKERS", "")
    # When / Then the file counts
    assert load({}, write(tmp_path, "packers = 3\n")).packers == 3


def test_configuration_is_frozen() -> None:
    # Given a loaded configuration
    config = load({})
    # When / Then nothing can change it, and a changed copy is another one
    with pytest.raises(ValidationError):
        config.packers = 3
    assert config.changed(packers=3).packers == 3
    assert config.packers == 0
    # And what does not go together is told in one line, as when it is loaded
    with pytest.raises(ConfigError, match=r"^dtype fp8 needs a GPU"):
        config.changed(device="cpu", dtype="fp8")
    with pytest.raises(ConfigError, match=r"^max_tokens \(20000\) must fit"):
        config.changed(device="cpu", max_tokens=20_000)


def test_workers_are_told_every_switch() -> None:
    # Given every switch away from its default
    flags = {
        "packing": False,
        "compile": False,
        "attention": "plain",
        "dtype": "bf16",
        "esm_budget": 9_000,
        "heartbeat_s": 2.5,
    }
    # When the workers' settings are made
    settings = load(flags).worker_settings("unix:///tmp/none.sock")
    # Then they carry it
    assert {name: getattr(settings, name) for name in flags} == flags


def test_dtype_belongs_to_the_identity() -> None:
    # Given two dtypes; When / Then their results never mix; how they are computed is not identity
    plain = load({}).identity("virus", None)
    assert load({"dtype": "bf16"}).identity("virus", None).digest != plain.digest
    assert load({"packing": False, "attention": "plain"}).identity("virus", None) == plain


# -- what is refused -------------------------------------------------------------------------------


def test_unknown_key_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    # Given a mistyped key, and one that resembles nothing
    typo = refusal(write(tmp_path, "packer = 3\n"))
    stray = refusal(write(tmp_path, "zzz = 3\n"))
    # Then
    assert typo == f"{tmp_path}/vnp.toml: unknown setting 'packer'; did you mean packers?"
    assert stray == f"{tmp_path}/vnp.toml: unknown setting 'zzz'; remove it"


def test_unknown_variable_is_refused_with_a_suggestion(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a mistyped variable
    monkeypatch.setenv("VNP_DTYP", "fp32")
    # When / Then
    assert refusal() == "unknown variable VNP_DTYP; did you mean VNP_DTYPE?"
    # And one that resembles nothing
    monkeypatch.delenv("VNP_DTYP")
    monkeypatch.setenv("VNP_ZZZ", "1")
    assert refusal() == "unknown variable VNP_ZZZ; unset it"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"dtype": "fp64"}, "setting dtype: input should be 'auto', 'fp32', 'fp16', 'bf16'"),
        ({"attention": "plane"}, "setting attention: input should be 'auto', 'triton'"),
        ({"packers": "many"}, "setting packers: input should be a valid integer"),
        (
            {"shard_bases": 1 << 25},
            "setting shard_bases: input should be less than or equal to 16777",
        ),
        (
            {"shard_records": 1 << 20},
            "setting shard_records: input should be less than or equal to 6",
        ),
        ({"packers": -1}, "setting packers: input should be greater than or equal to 0, not '-1'"),
        ({"device": "gpu"}, "setting device: 'gpu' is not cpu, cuda or cuda:N"),
        ({"device": "cuda:"}, "setting device: 'cuda:' is not cpu, cuda or cuda:N"),
        ({"device": "cuda:0,cuda:0"}, "several devices must be different cuda:N"),
        ({"roles": "gpu,painter"}, "'painter' is not one of planner, packer, gpu, writer"),
        ({"dtype": "fp8"}, "dtype fp8 needs a GPU; use --device cuda, or fp32"),
        ({"max_tokens": 9_000, "esm_budget": 8_000}, "max_tokens (9000) must fit into esm_budget"),
    ],
)
def test_bad_value_is_refused_by_name(flags: dict[str, object], words: str) -> None:
    assert words in refusal(**flags)


def test_file_that_cannot_be_used(tmp_path: Path) -> None:
    # Given a file that is missing, one that is no TOML, and a folder; When / Then
    assert refusal(tmp_path / "none.toml").endswith("none.toml does not exist")
    assert "cannot be read" in refusal(write(tmp_path, "packers = = 3\n"))
    assert "cannot be read" in refusal(tmp_path)


def test_unknown_model_names_the_known_ones() -> None:
    # Given a model that nobody has
    config = load({"esm2": "esm2_t99"})
    # When / Then
    with pytest.raises(ConfigError, match="no esm2 model named esm2_t99; known: vnp-small-"):
        config.cards  # noqa: B018 - the property is what is tested


def test_several_devices_are_several_workers() -> None:
    # Given two GPUs; When / Then there is one gpu worker for each
    config = load({"device": "cuda:0,cuda:1"})
    assert config.role_counts["gpu"] == 2
    assert config.devices == ["cuda:0", "cuda:1"]
    assert config.resolved_dtype == "bf16"


def test_roles_can_be_chosen() -> None:
    assert load({"roles": "gpu,writer"}).role_counts == {"gpu": 1, "writer": 1}


def test_every_setting_is_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given every setting's own default as a variable
    defaults = load({}).model_dump()
    for name, value in defaults.items():
        if value is not None:
            monkeypatch.setenv(f"VNP_{name.upper()}", str(value))
    # When / Then the configuration is the same
    assert load({}).model_dump() == defaults
    assert set(defaults) == set(Config.model_fields)


# -- what starting the command line loads ----------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    ["--help", "--version", "list", "status", "submit missing.fa", "wait", "run --help"],
)
def test_command_line_starts_light(arguments: str) -> None:
    # Given a fresh process; When a command has run
    script = (
        "import sys\nfrom daemon.cli import vnp, run_command\n"
        "code = run_command(vnp, sys.argv[1:])\n"
        f"print('loaded', code, *sorted(set({HEAVY!r}) & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *arguments.split()],
        capture_output=True,
        text=True,
    )
    # Then it ended on purpose, and nothing heavy is in its memory
    last = done.stdout.splitlines()[-1].split()
    assert last[0] == "loaded", done.stderr
    assert last[1] in ("0", "64", "69")
    assert last[2:] == []


def test_looking_at_jobs_loads_no_screen_library() -> None:
    # Given a fresh process; When the jobs are listed; Then rich, which draws bars, is not loaded
    script = (
        "import sys\nfrom daemon.cli import vnp, run_command\n"
        "assert run_command(vnp, ['list']) == 0\nassert 'rich' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)


def test_defaults_of_a_unit_are_the_weakest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given defaults as a unit gives them, a file and a variable
    defaults = ["preemption=auto", "listen=127.0.0.1:1", "packers=2", "lease_s=9"]
    path = write(tmp_path, 'preemption = "aws"\n')
    monkeypatch.setenv("VNP_LISTEN", "127.0.0.1:2")
    # Then each is overruled by whatever else says something
    config = load({"packers": 3}, path, defaults)
    assert (config.preemption, config.listen) == ("aws", "127.0.0.1:2")
    assert (config.packers, config.lease_s) == (3, 9.0)
    # And an unknown one is refused
    with pytest.raises(ConfigError, match=r"--default: unknown setting 'packer'; did you mean"):
        load({}, path, ["packer=3"])
    with pytest.raises(ConfigError, match="--default packers: write NAME=VALUE"):
        load({}, path, ["packers"])


@pytest.mark.parametrize(
    ("cores", "device", "packers"),
    [
        (1, "cpu", 1),
        (2, "cpu", 1),
        (32, "cpu", 4),
        (32, "cuda:0", 4),
        (32, "cuda:0,cuda:1", 8),
        (6, "cuda:0,cuda:1", 5),
    ],
)
def test_packers_by_devices_and_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, device: str, packers: int
) -> None:
    monkeypatch.setattr("daemon.config.cores", lambda: cores)
    assert load({"device": device}).role_counts["packer"] == packers
    assert load({"device": device, "packers": 31}).role_counts["packer"] == 31


def test_several_gpu_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.config.cores", lambda: 7)
    config = load({"device": "cpu,cpu"})
    assert config.role_counts["gpu"] == 2
    assert config.resolved_dtype == "fp32"
    assert config.worker_settings("unix:///x").threads == 2
    with pytest.raises(ConfigError, match="different cuda:N, or cpu as often"):
        load({"device": "cpu,cuda:0"})

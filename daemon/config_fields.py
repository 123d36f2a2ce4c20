"""The settings one by one: names, defaults, limits, and what each is for (docs/configuration.md is
made of it)."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Literal

import platformdirs
from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from ops.modelstore import DEFAULT_NAMES

PREFIX = "VNP_"
ROLES = ("planner", "packer", "gpu", "writer")


def service_state_dir() -> Path | None:
    """STATE_DIRECTORY, which systemd sets for a service; None elsewhere."""
    given = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    return Path(given) if given else None


def default_state_dir() -> Path:
    """The service's, else the user's XDG state folder."""
    return service_state_dir() or Path(platformdirs.user_state_path("vnp"))


def default_models_dir() -> Path:
    """In the service's state folder, else in the user's XDG data folder."""
    return (service_state_dir() or Path(platformdirs.user_data_path("vnp"))) / "models"


class Settings(BaseSettings):
    """What can be set, and nothing that follows from it."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        extra="forbid",
        frozen=True,
        env_ignore_empty=True,
        use_attribute_docstrings=True,  # they are docs/configuration.md
    )

    state_dir: Path = Field(default_factory=default_state_dir)
    """Jobs, logs, sockets; under systemd STATE_DIRECTORY, else the user's XDG state folder."""
    shared_dir: Path | None = None
    """Jobs and spool, on a file system that all nodes and clients see; None: state_dir."""
    node: str = Field(default_factory=socket.gethostname, pattern=r"^[A-Za-z0-9_.-]{1,253}$")
    """How this machine is called in consumer names, epochs and run.json; nodes that share a Redis
    need different names. By default the host name."""
    redis_url: str | None = None
    """None: a private server that lives and dies with the service."""
    namespace: str = "vnp"
    """Start of every key in Redis; services that share a Redis and a namespace share their work."""
    scratch_dir: Path | None = None
    """For one shard, and the tables of a job, on their way to or from an object store; None:
    state_dir/scratch."""
    models_dir: Path = Field(default_factory=default_models_dir)
    """Imported models; STATE_DIRECTORY/models, else the user's XDG data folder."""
    esm2: str = DEFAULT_NAMES["esm2"]
    """ESM-2 model, by name (`vnp models list`) or folder."""
    dnabert: str = DEFAULT_NAMES["dnabert"]
    """DNABERT-S model."""
    classifier: str = DEFAULT_NAMES["classifier"]
    """Classifier; it remembers its encoders, and is refused with others."""
    device: str = "cpu"
    """cpu, cuda:N, or several with commas: one gpu worker each."""
    dtype: Literal["auto", "fp32", "fp16", "bf16", "fp8"] = "auto"
    """Number format; auto: bf16 on a GPU, fp32 on the CPU."""
    attention: Literal["auto", "triton", "varlen", "flash", "grouped", "padded", "plain"] = "auto"
    """Attention kernel; one that cannot be had is refused."""
    compile: bool = True
    """Our own kernels on a GPU. False: the plain modules, several times slower."""
    packing: bool = True
    """False: one sequence a batch, to find out whether packing is to blame."""
    roles: str = ",".join(ROLES)
    """What this service does, with commas."""
    packers: int = Field(default=0, ge=0)
    """0: four for each device, and at most as many as cores, less one. Without gpu workers, too,
    `device` is what counts."""
    threads: int = Field(default=0, ge=0)
    """Of a gpu worker on the CPU; 0: its share of the cores."""
    esm_budget: int = Field(default=0, ge=0)
    """ESM-2 tokens of a batch; 0: 10,752 on the CPU, 32,768 on a GPU. No value depends on it."""
    dna_budget: int = Field(default=0, ge=0)
    """The same for DNABERT-S; 0: 10,752, or 24,576."""
    max_rows: int = Field(default=1_024, ge=1)
    """Most sequences of a batch."""
    max_tokens: int = Field(default=8_192, ge=16, le=32_768)
    """A sequence with more tokens gets the status too_long; part of the identity."""
    shard_bases: int = Field(default=1 << 20, ge=1_000, le=1 << 24)
    """Letters of a shard, the unit of commit: what an interruption may cost. At most 16777216: it
    has to fit in a message."""
    shard_records: int = Field(default=8_192, ge=1, le=65_536)
    """Most records of a shard; at most 65536."""
    lease_s: float = Field(default=30.0, ge=1.0)
    """How long work stays with a process that does not renew it: what a lost node costs."""
    batch_deadline_s: float = Field(default=0.0, ge=0)
    """A batch that takes longer hangs; 0: 3,600 on the CPU, 120 on a GPU."""
    stuck_s: float = Field(default=120.0, ge=5)
    """A process that makes no step for so long is replaced."""
    window_shards: int = Field(default=0, ge=0)
    """Full shards under way at once, or more small ones; bounds Redis. 0: 8, or 4 a gpu worker."""
    window_bytes: int = Field(default=1 << 30, ge=1 << 20)
    """Bytes in Redis that they may take."""
    heartbeat_s: float = Field(default=10.0, gt=0)
    """Between two job.progress lines in the log."""
    listen: str = ""
    """HOST:PORT of /healthz, /readyz and /metrics; empty: nowhere. Loopback only."""
    preemption: Literal["off", "auto", "aws", "gcp", "azure"] = "off"
    """Whose notices are watched for; auto asks each cloud once."""
    preemption_url: str | None = None
    """Another address of the metadata service (tests)."""
    preemption_file: Path | None = None
    """A file that somebody makes when the machine is about to go."""
    preemption_command: str = ""
    """A shell command, asked every 5 s, that ends with 0 then."""
    stop_limit_s: float = Field(default=20.0, ge=2)
    """What a stop may take until the last process is killed."""
    input_roots: str = ""
    """Folders that inputs of jobs may lie in, with colons; empty: anywhere."""
    log_file: Path | None = None
    """STATE/vnp.log by default; under systemd none, the journal has it."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level that is logged."""

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        names = value.split(",")
        for name in names:
            if not re.fullmatch(r"cpu|cuda(:[0-9]+)?", name):
                raise ValueError(f"{name!r} is not cpu, cuda or cuda:N")
        of_gpus = "cpu" not in names and len(set(names)) == len(names)
        if len(names) > 1 and set(names) != {"cpu"} and not of_gpus:
            raise ValueError("several devices must be different cuda:N, or cpu as often as wanted")
        return value

    @field_validator("listen")
    @classmethod
    def _loopback(cls, value: str) -> str:
        if value and not re.fullmatch(r"(127\.[0-9.]+|localhost|\[::1\]):[0-9]+", value):
            raise ValueError(f"{value!r} is not a loopback address like 127.0.0.1:9477")
        return value

    @field_validator("roles")
    @classmethod
    def _known_roles(cls, value: str) -> str:
        for role in value.split(","):
            if role not in ROLES:
                raise ValueError(f"{role!r} is not one of {', '.join(ROLES)}")
        return value

"""The configuration: a TOML file, then VNP_* variables, then flags; frozen, validated, no unknowns.

One configuration is one identity: models, dtype and limits that decide values. What is asked of a
running service and differs from it is refused.
"""

from __future__ import annotations

import difflib
import os
import re
import socket
import tomllib
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import platformdirs
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from ops.errors import ConfigError
from ops.identity import Identity
from ops.modelstore import DEFAULT_NAMES, ModelCard, check_fit, find_model
from workers.settings import WorkerSettings

PREFIX = "VNP_"
#: Variables with the prefix that are not settings.
OTHER_VARIABLES = {
    "VNP_CONFIG",
    "VNP_SLOT",
    "VNP_READY_FD",
    "VNP_PULSE_FD",
    "VNP_PREDECESSOR_SIGNAL",
    "VNP_WORKER_SETTINGS",
    "VNP_LOG_FILE_ONLY",
}
SYSTEM_FILE = Path("/etc/vnp/vnp.toml")
ROLES = ("planner", "packer", "gpu", "writer")
#: ESM-2 and DNABERT-S tokens of a batch, by kind of device. On a GPU 16,384 to 65,536 are within
#: 2 % of each other (docs/log.md); frames of 500 bp have about 0.65 DNABERT-S tokens per ESM-2
#: token.
BUDGETS = {"cpu": (10_752, 10_752), "cuda": (32_768, 24_576)}
#: A GPU computes a batch in a second or two, the CPU one of the 15B in an hour.
BATCH_DEADLINE_S = {"cpu": 3_600.0, "cuda": 120.0}
Role = Literal["planner", "packer", "gpu", "writer"]


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


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


class Config(BaseSettings):
    """All settings. `load` is how to get one."""

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
    """0: as many as cores, less one."""
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
    shard_bases: int = Field(default=1 << 20, ge=1_000)
    """Letters of a shard, the unit of commit: what an interruption may cost."""
    shard_records: int = Field(default=8_192, ge=1)
    """Most records of a shard."""
    lease_s: float = Field(default=30.0, ge=1.0)
    """How long work stays with a process that does not renew it: what a lost node costs."""
    batch_deadline_s: float = Field(default=0.0, ge=0)
    """A batch that takes longer hangs; 0: 3,600 on the CPU, 120 on a GPU."""
    stuck_s: float = Field(default=120.0, ge=5)
    """A process that makes no step for so long is replaced."""
    window_shards: int = Field(default=0, ge=0)
    """Shards that are under way at once; bounds Redis. 0: 8, or 4 for each gpu worker."""
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

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if min(self.budgets) < 512:
            raise ValueError("esm_budget and dna_budget must be 512 at least, or 0")
        if self.max_tokens > min(self.budgets):
            raise ValueError("max_tokens must fit into esm_budget and dna_budget")
        if self.dtype == "fp8" and self.devices[0] == "cpu":
            raise ValueError("dtype fp8 needs a GPU; use fp32 on the cpu")
        return self

    # -- models and identity ---------------------------------------------------------------------

    @cached_property
    def cards(self) -> dict[str, ModelCard]:
        """The models in use, by kind. Raises ConfigError for one that is missing or broken."""
        names = {"esm2": self.esm2, "dnabert": self.dnabert, "classifier": self.classifier}
        return {kind: find_model(name, kind, [self.models_dir]) for kind, name in names.items()}

    @property
    def resolved_dtype(self) -> str:
        if self.dtype != "auto":
            return self.dtype
        return "fp32" if self.devices[0] == "cpu" else "bf16"

    def identity(
        self,
        pipeline: str,
        chunk_length: int | None,
        *,
        allow_chunk_length: bool = False,
        uracil_as_t: bool = True,
        min_length: int = 0,
        max_ambiguous: int = 100,
    ) -> Identity:
        """What decides the values of a job. Raises ConfigError for models that do not fit.

        chunk_length: None for the one that the classifier was made for.
        """
        esm2, dnabert, classifier = (self.cards[k] for k in ("esm2", "dnabert", "classifier"))
        virus = pipeline == "virus"
        if virus:
            chunk_length = chunk_length or classifier.chunk_length or 500
            check_fit(classifier, dnabert, esm2, None if allow_chunk_length else chunk_length)
        used = {"virus": {"esm2", "dnabert", "classifier"}, "protein": {"esm2"}, "dna": {"dnabert"}}
        cards = {k: c for k, c in self.cards.items() if k in used[pipeline]}
        digest = {kind: card.digest for kind, card in cards.items()}
        name = {kind: card.name for kind, card in cards.items()}
        return Identity(
            pipeline=pipeline,
            chunk_length=(chunk_length or 0) if virus else 0,
            esm2=digest.get("esm2"),
            dnabert_s=digest.get("dnabert"),
            classifier=digest.get("classifier"),
            esm2_name=name.get("esm2"),
            dnabert_s_name=name.get("dnabert"),
            classifier_name=name.get("classifier"),
            trained=all(card.trained for card in cards.values()),
            dtype=self.resolved_dtype,
            max_tokens=self.max_tokens,
            uracil_as_t=uracil_as_t,
            min_length=min_length,
            max_ambiguous=max_ambiguous,
        )

    def embedding_width(self, pipeline: str) -> int:
        """Floats a row that are kept when embeddings are."""
        widths = {
            "virus": self.cards["esm2"].width + self.cards["dnabert"].width,
            "protein": self.cards["esm2"].width,
            "dna": self.cards["dnabert"].width,
        }
        return widths[pipeline]

    # -- what the processes are told -------------------------------------------------------------

    @property
    def devices(self) -> list[str]:
        return self.device.split(",")

    @property
    def batch_limit_s(self) -> float:
        """Seconds that a batch may take."""
        kind = "cpu" if self.devices[0] == "cpu" else "cuda"
        return self.batch_deadline_s or BATCH_DEADLINE_S[kind]

    @property
    def stuck_limits(self) -> dict[str, float]:
        """By role. A gpu worker's step is as long as its batches, at most two of them."""
        return {**dict.fromkeys(ROLES, self.stuck_s), "gpu": self.stuck_s + 2 * self.batch_limit_s}

    @property
    def budgets(self) -> tuple[int, int]:
        """ESM-2 and DNABERT-S tokens of a batch."""
        esm, dna = BUDGETS["cpu" if self.devices[0] == "cpu" else "cuda"]
        return self.esm_budget or esm, self.dna_budget or dna

    @property
    def role_counts(self) -> dict[str, int]:
        """Number of processes of each role that this service runs."""
        packers = self.packers or max(1, cores() - 1)
        counts = {"planner": 1, "packer": packers, "gpu": len(self.devices), "writer": 1}
        return {role: counts[role] for role in self.roles.split(",")}

    @property
    def log_path(self) -> Path | None:
        """The log file; None where the journal takes the lines (JOURNAL_STREAM) and no file was
        asked for."""
        if self.log_file is None and os.environ.get("JOURNAL_STREAM"):
            return None
        return self.log_file or self.state_dir / "vnp.log"

    @property
    def jobs_dir(self) -> Path:
        """Where job files and spool lie: shared_dir, or with one node its state_dir."""
        return self.shared_dir or self.state_dir

    def worker_settings(self, redis_url: str) -> WorkerSettings:
        """The same settings as worker processes see them."""
        return WorkerSettings(
            state_dir=str(self.state_dir.absolute()),
            shared_dir=str(self.jobs_dir.absolute()),
            redis_url=redis_url,
            identity=self.identity("virus", None, allow_chunk_length=True).to_dict(),
            node=self.node,
            namespace=self.namespace,
            esm2=str(self.cards["esm2"].path),
            dnabert=str(self.cards["dnabert"].path),
            classifier=str(self.cards["classifier"].path),
            device=self.devices[0],
            dtype=self.resolved_dtype,
            attention=self.attention,
            compile=self.compile,
            packing=self.packing,
            esm_budget=self.budgets[0],
            dna_budget=self.budgets[1],
            max_rows=self.max_rows,
            max_tokens=self.max_tokens,
            embedding_width=self.embedding_width("virus"),
            shard_bases=self.shard_bases,
            shard_records=self.shard_records,
            lease_s=self.lease_s,
            batch_deadline_s=self.batch_limit_s,
            window_shards=self.window_shards,
            window_bytes=self.window_bytes,
            heartbeat_s=self.heartbeat_s,
            threads=self.threads or self._threads_of_one,
            input_roots=self._input_roots,
            log_file=str(self.log_path.absolute()) if self.log_path else None,
            log_level=self.log_level,
        )

    @property
    def _input_roots(self) -> tuple[str, ...]:
        """The folders, and the spool, where standard input waits; none when inputs may be
        anywhere."""
        roots = [root for root in self.input_roots.split(":") if root]
        return (*roots, str(self.jobs_dir.absolute() / "spool")) if roots else ()

    @property
    def _threads_of_one(self) -> int:
        """Of one of several gpu workers on the CPU: a power of two; 0, its own choice, else."""
        workers = len(self.devices)
        if workers == 1 or self.devices[0] != "cpu":
            return 0
        return 1 << (max(1, cores() // workers).bit_length() - 1)

    @property
    def served_settings(self) -> dict[str, Any]:
        """What a client has to take over from the service that computes its jobs."""
        models = {kind: str(card.path) for kind, card in self.cards.items()}
        settings = {"max_tokens": self.max_tokens, "device": self.device}
        budgets = {"esm_budget": self.budgets[0], "dna_budget": self.budgets[1]}
        return {**settings, **budgets, **models, "dtype": self.resolved_dtype}

    def changed(self, **settings: Any) -> Config:
        """The same configuration with other values of some settings."""
        return Config(**{**self.model_dump(), **settings})


def load(flags: Mapping[str, Any], path: Path | None = None) -> Config:
    """The configuration from file, environment and flags, the later the stronger.

    path: the file of --config; else VNP_CONFIG, else /etc/vnp/vnp.toml where that exists. Flags
    that are None count as not given. Raises ConfigError, one line.
    """
    _refuse_unknown_variables()
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        # In this order: keyword arguments are stronger than the environment in pydantic-settings,
        # so of the file's values only those without a variable may be passed.
        values = _read_file(path)
        from_file = {k: v for k, v in values.items() if not os.environ.get(PREFIX + k.upper())}
        return Config(**{**from_file, **given})
    except ValidationError as error:
        raise ConfigError(_first_problem(error)) from error


def _read_file(path: Path | None) -> dict[str, Any]:
    named = path or (Path(os.environ["VNP_CONFIG"]) if os.environ.get("VNP_CONFIG") else None)
    source = named or SYSTEM_FILE
    try:
        values = tomllib.loads(source.read_text())
    except FileNotFoundError:
        if named is None:
            return {}
        raise ConfigError(f"configuration file {source} does not exist") from None
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"configuration file {source} cannot be read: {error}") from error
    for key in values:
        if key not in Config.model_fields:
            raise ConfigError(f"{source}: unknown setting {key!r}; {_meant(key) or 'remove it'}")
    return values


def _refuse_unknown_variables() -> None:
    for name in os.environ:
        key = name.removeprefix(PREFIX).lower()
        known = key in Config.model_fields or name in OTHER_VARIABLES
        if name.startswith(PREFIX) and not known:
            hint = _meant(key, lambda setting: PREFIX + setting.upper())
            raise ConfigError(f"unknown variable {name}; {hint or 'unset it'}")


def _meant(key: str, spelt: Callable[[str], str] = str) -> str:
    close = difflib.get_close_matches(key, Config.model_fields, 1)
    return f"did you mean {spelt(close[0])}?" if close else ""


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    where = ".".join(map(str, problem["loc"])) or "configuration"
    if problem["type"] == "value_error":  # a validator of ours, which names the value
        reason = problem["msg"].removeprefix("Value error, ")
        return f"setting {where}: {reason}" if problem["loc"] else reason
    reason = problem["msg"][0].lower() + problem["msg"][1:]
    return f"setting {where}: {reason}, not {str(problem['input'])!r}"

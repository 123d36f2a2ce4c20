"""The configuration: frozen and validated settings, and what processes and clients draw from them.

One configuration is one identity: models, dtype and limits that decide values. What is asked of a
running service and differs from it is refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import PrivateAttr, ValidationError, model_validator

from daemon.config_fields import ROLES, Settings
from ops.errors import ConfigError
from ops.identity import Identity
from ops.modelstore import ModelCard, check_fit, find_model
from workers.settings import WorkerSettings

#: ESM-2 and DNABERT-S tokens of a batch, by kind of device. On a GPU 16,384 to 65,536 are within
#: 2 % of each other (docs/log.md); frames of 500 bp have about 0.65 DNABERT-S tokens per ESM-2
#: token.
BUDGETS = {"cpu": (10_752, 10_752), "cuda": (32_768, 24_576)}
#: A GPU computes a batch in a second or two, the CPU one of the 15B in an hour.
BATCH_DEADLINE_S = {"cpu": 3_600.0, "cuda": 120.0}
#: Two are ample for a GPU with published models (docs/scaling.md); the bundled ones, the smallest
#: there are, kept 3.5 busy.
PACKERS_OF_DEVICE = 4


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


class Config(Settings):
    """All settings, and what follows from them. `config_load.load` is how to get one."""

    _taken: dict[str, ModelCard] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if min(self.budgets) < 512:
            raise ValueError("esm_budget and dna_budget must be 512 at least, or 0")
        if self.max_tokens > min(self.budgets):
            raise ValueError(
                f"max_tokens ({self.max_tokens}) must fit into esm_budget and dna_budget "
                f"({min(self.budgets)}); raise them, or choose another device"
            )
        if self.dtype == "fp8" and self.devices[0] == "cpu":
            raise ValueError("dtype fp8 needs a GPU; use --device cuda, or fp32 on the cpu")
        return self

    # -- models and identity ---------------------------------------------------------------------

    @cached_property
    def cards(self) -> dict[str, ModelCard]:
        """The models in use, by kind. Raises ConfigError for one that is missing or broken."""
        names = {"esm2": self.esm2, "dnabert": self.dnabert, "classifier": self.classifier}
        return {
            kind: self._taken.get(kind) or find_model(name, kind, [self.models_dir])
            for kind, name in names.items()
        }

    def take_cards(self, cards: Mapping[str, ModelCard]) -> None:
        """Cards by kind as the service tells them, whose models may lie where only it sees them;
        before the first look at `cards`."""
        self._taken.update(cards)

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
        few = min(cores() - 1, PACKERS_OF_DEVICE * len(self.devices))
        packers = self.packers or max(1, few)
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
            stuck_s=self.stuck_s,
            window_shards=self.window_shards,
            window_bytes=self.window_bytes,
            heartbeat_s=self.heartbeat_s,
            threads=self.threads or self._threads_of_one,
            input_roots=self._input_roots,
            scratch_dir=str((self.scratch_dir or self.state_dir / "scratch").absolute()),
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
        """The same configuration with other values of some settings. Raises ConfigError for those
        that do not go together, as those of a service on GPUs and a client that says cpu."""
        try:
            return Config(**{**self.model_dump(), **settings})
        except ValidationError as error:
            raise ConfigError(first_problem(error)) from error


def first_problem(error: ValidationError) -> str:
    """The first thing that is wrong with settings, in one line."""
    problem = error.errors()[0]
    where = ".".join(map(str, problem["loc"])) or "configuration"
    if problem["type"] == "value_error":  # a validator of ours, which names the value
        reason = problem["msg"].removeprefix("Value error, ")
        return f"setting {where}: {reason}" if problem["loc"] else reason
    reason = problem["msg"][0].lower() + problem["msg"][1:]
    return f"setting {where}: {reason}, not {str(problem['input'])!r}"

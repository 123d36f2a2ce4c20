"""What a worker process is told at its start: one frozen value, as JSON in its environment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ENVIRONMENT_KEY = "VNP_WORKER_SETTINGS"


@dataclass(frozen=True)
class WorkerSettings:
    """The service's settings as its workers see them; `daemon.config` is where users set them.

    Paths are absolute strings. esm2, dnabert and classifier are model folders, None where the
    configured identity does not use the model.
    """

    state_dir: str  # of this node
    shared_dir: str  # job files and spool, which all nodes see
    redis_url: str
    identity: dict[str, Any]  # of the service's virus jobs, as ops.identity writes it
    node: str  # names this service among those that share a Redis; part of consumer names
    namespace: str = "vnp"
    esm2: str | None = None
    dnabert: str | None = None
    classifier: str | None = None
    device: str = "cpu"  # "cpu" or "cuda:N" as the user counts the devices
    dtype: str = "fp32"
    attention: str = "auto"
    compile: bool = True
    packing: bool = True  # False: one sequence a batch, for an emergency
    esm_budget: int = 10_752  # tokens a batch; 64 frames of 168 tokens
    dna_budget: int = 10_752
    max_rows: int = 1_024  # a batch
    max_tokens: int = 8_192  # of one sequence; longer ones are too_long
    embedding_width: int = 0  # floats a row when embeddings are kept, at most
    shard_bases: int = 1 << 20
    shard_records: int = 8_192
    lease_s: float = 30.0
    batch_deadline_s: float = 3_600.0
    stuck_s: float = 120.0  # without a step; the supervisor kills a process then
    window_shards: int = 0  # 0: as many as the gpu workers need
    window_bytes: int = 1 << 30
    heartbeat_s: float = 10.0
    threads: int = 0  # of one cpu gpu-worker; 0: the largest power of two that the cores allow
    input_roots: tuple[str, ...] = ()  # folders that inputs may lie in; none: anywhere
    scratch_dir: str | None = None  # for what is on its way to or from an object store
    log_file: str | None = None
    log_level: str = "info"

    @property
    def scratch(self) -> Path | None:
        """The writer's own part of the scratch folder."""
        if self.scratch_dir is None:
            return None
        return Path(self.scratch_dir) / f"writer-{self.namespace}-{self.node}"

    def to_environment(self) -> dict[str, str]:
        return {ENVIRONMENT_KEY: json.dumps(asdict(self))}

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> WorkerSettings:
        values = json.loads(environment[ENVIRONMENT_KEY])
        return cls(**{**values, "input_roots": tuple(values["input_roots"])})

"""Workers of several nodes in one process, on one Redis and one shared folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from broker.queue import Broker, Entry
from ops.jobs import InputFile, JobSpec, JobStore
from ops.manifest import EpochLine, ManifestWriter, ShardLine, read_manifest
from ops.output import Output
from tests.unit.output_fixtures import IDENTITY, PLAN, make_spec
from workers.loop import Worker
from workers.planner import Planner
from workers.settings import WorkerSettings
from workers.writer import Writer

W = TypeVar("W", bound=Worker)
#: Of a job, unless a test wants more.
SHARDS = 4


class Nodes:
    """A shared folder, and the workers that were begun on it."""

    def __init__(self, folder: Path, url: str, namespace: str) -> None:
        self.folder, self._url, self._namespace = folder, url, namespace
        self.store = JobStore(folder / "shared")
        self._workers: list[Worker] = []

    def begin(
        self, role: str, make: Callable[[WorkerSettings, str], W], node: str, **settings: Any
    ) -> W:
        """A worker of a node, with a state folder of its own."""
        state = self.folder / f"{node}-{len(self._workers)}"
        state.mkdir()
        common = {"shared_dir": str(self.folder / "shared"), "identity": IDENTITY.to_dict()}
        worker = make(
            WorkerSettings(
                state_dir=str(state),
                redis_url=self._url,
                namespace=self._namespace,
                node=node,
                **{**common, **settings},
            ),
            f"{node}:{role}:0",
        )
        self._workers.append(worker)
        return worker

    def close(self) -> None:
        for worker in self._workers:
            worker.close()


class Writers(Nodes):
    """Writers of several nodes, and jobs for them."""

    LEASE_S = 3.0

    def writer(self, node: str) -> Writer:
        return self.begin("writer", Writer, node, lease_s=self.LEASE_S)

    def plan(self, job: str) -> None:
        self.store.create(make_spec(self.folder / f"{job}.out", id=job))
        self.store.set_plan(job, PLAN)


class Bench(Nodes):
    """A shared folder, and planners of several nodes on one Redis."""

    def planner(self, node: str = "a", shard_bases: int = 1_000, window_shards: int = 0) -> Planner:
        mount = self.mount(node)
        if not mount.is_symlink():
            mount.symlink_to(self.folder / "shared")
        return self.begin(
            "planner",
            Planner,
            node,
            shared_dir=str(mount),
            shard_bases=shard_bases,
            shard_records=1,
            window_shards=window_shards,
        )

    def mount(self, node: str) -> Path:
        """Where a node sees the shared folder."""
        return self.folder / f"mount-{node}"

    def submit(self, job: str, shards: int = SHARDS, out: str = "") -> JobSpec:
        """A job of as many records as shards."""
        text = "".join(f">r{number}\n{'ACGT' * 100}\n" for number in range(shards))
        return self.submit_text(job, text, out)

    def submit_text(self, job: str, text: str, out: str = "") -> JobSpec:
        path = self.folder / f"{job}.fa"
        path.write_text(text)
        facts = path.stat()
        inputs = (InputFile(str(path), facts.st_size, facts.st_mtime_ns),)
        spec = make_spec(out or self.folder / f"{job}.out", id=job, inputs=inputs)
        self.store.create(spec)
        return spec

    def open(self, spec: JobSpec) -> None:
        """As the writer does."""
        output = Output.open(spec.out, spec, self.store.plan(spec.id))
        self.store.set_open(spec.id, output.epoch)
        output.close()

    def commit(self, spec: JobSpec, *shards: int) -> None:
        """Writes lines; the planner reads nothing else."""
        path = Path(spec.out) / "manifest.jsonl"
        state = read_manifest(path)
        writer = ManifestWriter(path, state)
        number = state.epoch + 1
        writer.start(EpochLine(epoch=number, node="", host="", pid=0, time=""))
        for shard in shards:
            file = f"shards/shard-{shard:06d}.h5"
            nothing: dict[str, Any] = {"rows": 0, "records": 0, "chunks": 0, "bytes": 0}
            writer.append(
                ShardLine(shard=shard, file=file, sha256="", numerics=(), epoch=number, **nothing)
            )
        writer.close()

    def begun(self, planner: Planner, job: str, shards: int = SHARDS, out: str = "") -> JobSpec:
        """A job that is planned and open."""
        spec = self.submit(job, shards, out)
        steps(planner, lambda: self.store.plan_or_none(job) is not None)
        self.open(spec)
        return spec


def steps(worker: Worker, done: Callable[[], bool], limit: int = 200) -> None:
    """Steps until something is done."""
    for _ in range(limit):
        if done():
            return
        worker.step()
    raise AssertionError(f"not done after {limit} steps")


def take_until_some(broker: Broker, stream: str, count: int) -> list[Entry]:
    """Takes until entries come; the suite's own time limit ends it if they never do."""
    while not (entries := broker.take(stream, count, 20)):
        pass
    return entries

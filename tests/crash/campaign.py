"""The crash campaign: a real service works through mixed input while faults land at seeded moments.

    python -m tests.crash.campaign --faults 200 --seed 1 [--redis 7.0] [--json FILE]

Jobs follow each other until the faults have landed. After each: every key exactly once, tables and
shards byte-identical to an undisturbed run, nothing pending, no stray files; at the end no process
is left, and memory, consumer names and recomputed work were bounded. Prints a table, exits 1 when
anything of that does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import psutil

from broker.keys import GROUPS
from broker.server import PrivateServer
from ops.verify import verify_output
from tests.crash.faults import FAULTS, WORKER_DEATHS, World, take_snapshot
from tests.crash.harness import Service, digests, shards_done, until
from tests.crash.servers import VERSIONS, binary
from tests.looking import Looking
from tests.redis.proxy import CuttingProxy

FIXTURES = Path(__file__).parents[1] / "data" / "fixtures"
HOOKS = Path(__file__).parents[1] / "hooks"
GENOMES = ("virus_lambda.fa", "virus_SARS-CoV-2.fa", "virus_influenzaA_PR8.fa", "virus_HIV-1.fa")
SETTINGS = {
    "device": "cpu,cpu",
    "packers": 2,
    "threads": 1,
    "shard_records": 400,
    "window_shards": 8,
    "heartbeat_s": 2,
}
#: The window, and a batch in the hands of each gpu worker.
WINDOW_SHARDS = 8 + 2
#: Of faults that do not wait until the one before is mended.
OVERLAPPING = 0.25
LONGEST_PAUSE_S = 1.5
RECOVERY_LIMIT_S = 60.0
JOB_LIMIT_S = 300.0
DISK_BYTES = 96 << 20
MIB = 1 << 20


def write_input(path: Path, reads: int, seed: int) -> None:
    """Genomes, a record twice, an empty one, a short one, one of N only, and many short reads cut
    from the genomes, some of them twice."""
    random = Random(seed)
    texts = [(FIXTURES / name).read_text() for name in GENOMES]
    lines = "".join(texts).split("\n")
    letters = "".join(line for line in lines if not line.startswith(">"))
    with path.open("w") as fasta:
        fasta.write(">twice\nACGTACGTAC\n>empty\n>twice\nAC\n>unknown\n" + "N" * 700 + "\n")
        for number in range(reads):
            if number == reads // 2:
                fasta.writelines(texts)
            start, length = random.randrange(len(letters) - 200), random.randrange(60, 151)
            fasta.write(
                f">read{number % (reads - reads // 10)}\n{letters[start : start + length]}\n"
            )


@dataclass
class Landed:
    """One fault that has landed. recovery_s: from its end to the next committed shard; None when
    another fault, or the end of the job, came first."""

    fault: str
    took_s: float
    recovery_s: float | None = None


@dataclass
class Report:
    """What a campaign has seen; `problems` is empty when all promises held."""

    redis: str
    seed: int
    landed: list[Landed] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    jobs: int = 0
    rows: int = 0
    recomputed_rows: int = 0
    memory_mib: dict[str, int] = field(default_factory=dict)
    consumers: int = 0
    wall_s: float = 0.0

    def recoveries(self, *faults: str) -> list[float]:
        return [
            landed.recovery_s
            for landed in self.landed
            if landed.recovery_s is not None and (not faults or landed.fault in faults)
        ]


class Campaign:
    """One campaign in a folder of its own; `run` does all of it."""

    def __init__(self, folder: Path, version: str, faults: int, seed: int, reads: int) -> None:
        self.folder, self.num_faults = folder, faults
        self.random = Random(seed)
        self.report = Report(version, seed)
        self.fasta = folder / "mixed.fa"
        write_input(self.fasta, reads, seed)
        self.binary = binary(version)
        self.deck: list[str] = []

    def run(self) -> Report:
        started = time.monotonic()
        expected, rows = self._undisturbed()
        with self._world() as world, _Watch(world, self.report) as watch:
            while len(self.report.landed) < self.num_faults and not self.report.problems:
                self._one_job(world, expected)
                self.report.rows += rows
            self._end(world)
        self.report.recomputed_rows = max(0, watch.rows_computed - self.report.rows)
        self._check_bounds(rows)
        self.report.wall_s = time.monotonic() - started
        return self.report

    def _undisturbed(self) -> tuple[dict[str, str], int]:
        folder = self.folder / "undisturbed"
        folder.mkdir()
        service = Service(folder, **SETTINGS)
        try:
            service.start()
            service.wait(service.submit(self.fasta, folder / "out", "--embeddings"), JOB_LIMIT_S)
        finally:
            service.end()
        counts = json.loads((folder / "out" / "run.json").read_text())["counts"]
        return digests(folder / "out"), counts["frames"]

    @contextmanager
    def _world(self) -> Iterator[World]:
        """Redis, the proxy before it, the small disk and the service; all gone afterwards."""
        control = self.folder / "disk-fault"
        control.write_text("")
        with (
            tempfile.TemporaryDirectory(prefix="vnp-") as short,
            small_disk(self.folder / "disk") as disk,
        ):
            server = PrivateServer(Path(short) / "redis", binary=self.binary)
            server.start()
            proxy = CuttingProxy(Path(short), server.socket)
            service = Service(self.folder, **SETTINGS, redis_url=proxy.url)
            service.environment |= {
                "PYTHONPATH": str(HOOKS),
                "TEST_DISK_FAULT": str(control),
                "TEST_DISK_ROOT": str(disk),
            }
            try:
                service.start()
                yield World(
                    service, server, proxy, disk, control, self.fasta, self.random, disk / "out"
                )
            finally:
                service.end()
                proxy.close()
                server.stop()

    # -- one job -----------------------------------------------------------------------------------

    def _one_job(self, world: World, expected: dict[str, str]) -> None:
        self.report.jobs += 1
        world.out = world.disk / f"out-{self.report.jobs}"
        job = world.service.submit(world.fasta, world.out, "--embeddings")
        while not self._has_ended(world, job):
            if len(self.report.landed) < self.num_faults and shards_done(world.out):
                self._strike(world, job)
            time.sleep(self.random.uniform(0, LONGEST_PAUSE_S))
        outcome = json.loads((world.service.state / "jobs" / f"{job}.done.json").read_text())
        if outcome["exit_code"] != 0:
            self._note(f"job {job} {outcome['state']}: {outcome['message']}")
            return
        self._check_job(world, expected)
        shutil.rmtree(world.out)

    def _has_ended(self, world: World, job: str) -> bool:
        return (world.service.state / "jobs" / f"{job}.done.json").exists()

    def _strike(self, world: World, job: str) -> None:
        """One fault, and, unless it is one that overlaps, the wait for the next commit."""
        name = self._draw()
        if self.random.random() < 0.2:
            with suppress(OSError):
                take_snapshot(world)
        started = time.monotonic()
        before = shards_done(world.out)
        try:
            FAULTS[name](world)
        except NotImplementedError as error:
            self.report.skipped[name] = str(error)
            return
        except AssertionError as error:
            self._note(f"{name}: {error}")
        ended = time.monotonic()
        landed = Landed(name, ended - started)
        self.report.landed.append(landed)
        instant = name in WORKER_DEATHS
        if not instant:
            before = shards_done(world.out)
        if self.random.random() >= OVERLAPPING:
            landed.recovery_s = self._recovery(world, job, before, ended)
        print(f"{len(self.report.landed):4} {name:30} {_seconds(landed.recovery_s)}", flush=True)

    def _draw(self) -> str:
        """Every fault once, in seeded order, before any comes again."""
        if not self.deck:
            self.deck = self.random.sample(list(FAULTS), len(FAULTS))
        return self.deck.pop()

    def _recovery(self, world: World, job: str, before: int, ended: float) -> float | None:
        while shards_done(world.out) <= before:
            if self._has_ended(world, job):
                return None
            if time.monotonic() - ended > RECOVERY_LIMIT_S:
                self._note(f"{self.report.landed[-1].fault}: no commit for {RECOVERY_LIMIT_S} s")
                return None
            time.sleep(0.01)
        return time.monotonic() - ended

    # -- what must hold ----------------------------------------------------------------------------

    def _note(self, problem: str) -> None:
        print(f"PROBLEM: {problem}", flush=True)
        self.report.problems.append(problem)

    def _check_job(self, world: World, expected: dict[str, str]) -> None:
        found = digests(world.out)
        for name in sorted(found.keys() | expected.keys()):
            if found.get(name) != expected.get(name):
                self._note(f"{world.out / name} is not as in the undisturbed run")
        for problem in verify_output(world.out).problems:
            self._note(problem)
        strays = [path for path in world.disk.rglob("*") if ".tmp-" in path.name]
        if strays:
            self._note(f"stray files: {strays}")
        with world.redis() as client:
            try:
                until(lambda: left_in(client) == {}, "empty streams", 20)
            except AssertionError:
                self._note(f"left in Redis: {left_in(client)}")

    def _end(self, world: World) -> None:
        with world.redis() as client:
            names = {
                consumer["name"]
                for stream in GROUPS
                for consumer in client.xinfo_consumers(f"{{vnp}}:{stream}", GROUPS[stream])
            }
        self.report.consumers = len(names)
        children = world.service.children()
        code = world.service.stop()
        if code != 0:
            self._note(f"the service ended with {code}")
        _, alive = psutil.wait_procs(children, timeout=10)
        if alive:
            self._note(f"processes left: {alive}")

    def _check_bounds(self, rows: int) -> None:
        report = self.report
        shards = len(list((self.folder / "undisturbed" / "out").glob("shards/*")))
        bound = len(report.landed) * WINDOW_SHARDS * rows // shards * 2
        if report.recomputed_rows > bound:
            self._note(f"{report.recomputed_rows} rows computed again, more than {bound}")
        if report.consumers > 10:
            self._note(f"{report.consumers} consumer names")
        for role, mib in report.memory_mib.items():
            if mib > 1_024:
                self._note(f"{role} took {mib} MiB")


@contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    """A file system of DISK_BYTES where we may mount one, a folder elsewhere."""
    path.mkdir()
    mounted = (
        os.geteuid() == 0
        and subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", path], capture_output=True
        ).returncode
        == 0
    )
    try:
        yield path
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", path], check=True)


def left_in(client: object) -> dict[str, int]:
    """Streams that still hold entries."""
    streams = {name: f"{{vnp}}:{name}" for name in GROUPS}
    lengths = {name: client.xlen(key) for name, key in streams.items()}  # type: ignore[attr-defined]
    return {name: length for name, length in lengths.items() if length}


class _Watch(Looking):
    """Looks ten times a second at memory and at the counter of computed rows."""

    def __init__(self, world: World, report: Report) -> None:
        super().__init__(every_s=0.1)
        self.world, self.report = world, report
        self.rows_computed = 0
        self._last: dict[bytes, int] = defaultdict(int)

    def look(self) -> None:
        with suppress(Exception):  # whatever is down just now
            self._look_at_memory()
        with suppress(Exception), self.world.redis() as client:
            self._count_rows(client)

    def _look_at_memory(self) -> None:
        for role in ("planner", "packer", "gpu", "writer"):
            for process in self.world.service.processes(role):
                with suppress(psutil.Error):
                    self._note_memory(role, process)
        assert self.world.service.process is not None
        self._note_memory("supervisor", psutil.Process(self.world.service.process.pid))
        if self.world.server.pid is not None:
            self._note_memory("redis", psutil.Process(self.world.server.pid))

    def _note_memory(self, role: str, process: psutil.Process) -> None:
        mib = process.memory_info().rss // MIB
        self.report.memory_mib[role] = max(mib, self.report.memory_mib.get(role, 0))

    def _count_rows(self, client: object) -> None:
        for key in client.keys("{vnp}:progress:*"):  # type: ignore[attr-defined]
            count = int(client.hget(key, "rows_computed") or 0)  # type: ignore[attr-defined]
            gone_back = count < self._last[key]
            self.rows_computed += count if gone_back else count - self._last[key]
            self._last[key] = count


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"


def table(report: Report) -> str:
    """Markdown: recovery by kind of fault, and the totals."""
    lines = ["| fault | landed | median s | worst s |", "|---|---|---|---|"]
    for name in FAULTS:
        times = report.recoveries(name)
        count = sum(landed.fault == name for landed in report.landed)
        middle = f"{statistics.median(times):.2f}" if times else "-"
        worst = f"{max(times):.2f}" if times else "-"
        lines.append(f"| {name} | {count} | {middle} | {worst} |")
    deaths = report.recoveries(*WORKER_DEATHS)
    lines.append("")
    lines.append(
        f"Redis {report.redis}, seed {report.seed}: {len(report.landed)} faults in {report.jobs} "
        f"jobs of together {report.rows} rows, {report.wall_s:.0f} s; "
        f"{len(report.problems)} problems; {report.recomputed_rows} rows computed again; "
        f"median {statistics.median(deaths) if deaths else float('nan'):.2f} s from a worker's "
        f"death to the next commit (n = {len(deaths)}); consumer names {report.consumers}; "
        f"MiB at most: {report.memory_mib}"
    )
    lines += [f"not done: {name}: {why}" for name, why in report.skipped.items()]
    lines += [f"PROBLEM: {problem}" for problem in report.problems]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--reads", type=int, default=20_000)
    parser.add_argument("--redis", choices=VERSIONS, default=VERSIONS[0])
    parser.add_argument("--folder", type=Path, help="new; kept for a look afterwards")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vnp-crash-") as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        campaign = Campaign(
            folder, arguments.redis, arguments.faults, arguments.seed, arguments.reads
        )
        report = campaign.run()
    print(table(report))
    raise SystemExit(1 if report.problems else 0)


if __name__ == "__main__":
    main()

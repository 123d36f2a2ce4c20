"""The planner's work on one core: the first reading; then cutting and issuing into a real Redis.

    python -m tests.bench.bench_planner

Once with long records (all test genomes, ten times over), once with reads of 300 bp.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from broker.codec import encode
from broker.keys import TASKS
from broker.queue import Broker
from broker.server import PrivateServer
from ops.cut import CutParams, cut_shards, plan_input
from ops.jobs import Plan
from tests.cluster.load_jobs import GENOMES, write_reads

CUT = CutParams("bench", "", "virus", 500, False, True)
READS, READ_BASES, COPIES = 100_000, 300, 20
#: Tasks after which the stream is emptied, as packers would.
KEPT = 32


def write_genomes(path: Path) -> None:
    text = b"".join(genome.read_bytes().strip() + b"\n" for genome in sorted(GENOMES.glob("*.fa")))
    path.write_bytes(text * COPIES)


def first_reading(fasta: Path) -> tuple[float, Plan]:
    began = time.perf_counter()
    scan = plan_input([fasta], CUT)
    for _ in scan:
        pass
    return time.perf_counter() - began, scan.result


def issuing(fasta: Path, plan: Plan, broker: Broker) -> tuple[float, int]:
    """Seconds from the second reading to the last issued task, and bytes of all tasks."""
    num_bytes, spent, began = 0, 0.0, time.perf_counter()
    for task in cut_shards([fasta], CUT, plan.huge_lengths, plan=plan):
        payload = encode(task)
        broker.issue(payload, "bench", task.shard, len(payload))
        num_bytes += len(payload)
        if task.shard % KEPT == KEPT - 1:
            spent += time.perf_counter() - began
            broker._commands.xtrim(broker.keys.stream(TASKS), maxlen=0)
            began = time.perf_counter()
    return spent + time.perf_counter() - began, num_bytes


def bench(name: str, fasta: Path, broker: Broker) -> None:
    seconds, plan = first_reading(fasta)
    print(f"{name}: {plan.records:,} records, {plan.letters / 1e6:.0f} Mbp, {plan.shards} shards")
    print(f"  first reading   {rates(plan, seconds)}")
    seconds, num_bytes = issuing(fasta, plan, broker)
    megabytes = num_bytes / seconds / 1e6
    print(f"  cut and issued  {rates(plan, seconds)} {megabytes:>7,.0f} MB/s")


def rates(plan: Plan, seconds: float) -> str:
    mbp, records, shards = (n / seconds for n in (plan.letters / 1e6, plan.records, plan.shards))
    return f"{mbp:>7.1f} Mbp/s {records:>12,.0f} records/s {shards:>7.1f} shards/s"


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="vnp-") as folder:
        server = PrivateServer(Path(folder) / "redis")
        server.start()
        broker = Broker(server.url, "bench", "bench:planner:0")
        broker.ensure_groups()
        fasta = Path(folder) / "input.fa"
        write_genomes(fasta)
        bench("genomes", fasta, broker)
        write_reads(fasta, READS, READ_BASES, seed=1)
        bench("reads of 300 bp", fasta, broker)
        broker.close()
        server.stop()


if __name__ == "__main__":
    main()

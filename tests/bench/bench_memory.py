"""Peak memory of every process above its size when ready, on inputs of 20 MB and 200 MB.

    python -m tests.bench.bench_memory [MEGABYTES ...]

The input is a plant BAC over and over (few open frames, so that the time goes into reading, cutting
and packing and not into the models), each copy under its own name. Goal: the same within 10 % for
both sizes, and under 400 MB.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from tests.crash.harness import Service

BAC = Path(__file__).parents[1] / "data" / "fixtures" / "cell_arabidopsis_BAC_T25K16.fa"
SIZES_MB = (20, 200)
#: One hour: the bench is bounded, the harness's own limit is for tests.
LIMIT_S = 3600.0


def write_input(path: Path, megabytes: int) -> None:
    """Copies of the BAC until the file has the size."""
    lines = BAC.read_text().split("\n", 1)[1]
    with path.open("w") as out:
        copy = 0
        while out.tell() < megabytes * 1_000_000:
            out.write(f">copy_{copy}\n{lines}")
            copy += 1


def memory_mb(pid: int, field: str) -> float:
    """A line of /proc/PID/status (VmRSS, VmHWM) in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1000
    raise KeyError(field)


def role_of(words: list[str]) -> str:
    """Role of a child of the service from its command line."""
    roles = ("planner", "packer", "gpu", "writer")
    return next((role for role in roles if f"workers.{role}" in words), "redis")


def names(service: Service) -> dict[int, str]:
    """Role of every child by process id."""
    found = {child.pid: role_of(child.cmdline()) for child in service.children()}
    assert service.process is not None
    found[service.process.pid] = "supervisor"
    return found


def measure(megabytes: int, folder: Path) -> dict[str, float]:
    """Peak above the size when ready, MB, by role; the largest where a role has several."""
    fasta = folder / "input.fa"
    write_input(fasta, megabytes)
    service = Service(folder, shard_bases=1 << 20, lease_s=30)
    service.start()
    roles = names(service)
    ready = {pid: memory_mb(pid, "VmRSS") for pid in roles}
    job = service.submit(fasta, folder / "out")
    done = service.vnp("wait", job, limit_s=LIMIT_S)
    assert done.returncode == 0, done.stderr
    peak: dict[str, float] = {}
    for pid, role in roles.items():
        above = memory_mb(pid, "VmHWM") - ready[pid]
        peak[role] = max(peak.get(role, 0.0), above)
    service.stop()
    return peak


def main() -> None:
    sizes = [int(word) for word in sys.argv[1:]] or list(SIZES_MB)
    results = {}
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            results[size] = measure(size, Path(folder))
    print(f"peak memory above the size when ready, MB ({os.cpu_count()} cores)")
    print("role        " + "".join(f"{size:>8} MB" for size in sizes))
    for role in results[sizes[0]]:
        print(f"{role:<12}" + "".join(f"{results[size][role]:>11.0f}" for size in sizes))


if __name__ == "__main__":
    main()

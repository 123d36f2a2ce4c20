"""Peak memory of every process of `vnp run` on one record of 300 million bases.

    python -m tests.bench.bench_record [MEGABASES]

Above the peak of the same command on a record of 5,386 bases, which is models and modules. The
large record repeats stop codons of all six frames, so that nearly no chunk has an open frame and
the models have little to do, with stretches of a viral genome in between. Once on lines of 100
bases, once on a single line. Goal: under 400 MB.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

from tests.bench.bench_memory import memory_mb, role_of
from tests.crash.harness import command_line
from tests.service.shell import command, plain_environment

FIXTURES = Path(__file__).parents[1] / "data" / "fixtures"
MEGABASES = 300
#: Stop codons in all six frames.
STOPS = "TTAATTAATTAA"
#: Real bases of each block, bases of a block, bases of a line.
REAL, BLOCK, LINE = 2_000, 1_000_000, 100
POLL_S = 0.05


def write_record(path: Path, megabases: int, line: int) -> None:
    genome = "".join((FIXTURES / "virus_lambda.fa").read_text().splitlines()[1:])
    with path.open("w") as out:
        out.write(">record\n")
        for number in range(megabases):
            start = number * REAL % (len(genome) - REAL)
            block = (genome[start : start + REAL] + STOPS * (BLOCK // len(STOPS)))[:BLOCK]
            if line:
                block = "\n".join(block[at : at + line] for at in range(0, BLOCK, line)) + "\n"
            out.write(block)


def measure(fasta: Path, folder: Path) -> tuple[dict[str, float], dict[str, int], float]:
    """Peak MB by role (the largest where a role has several), counts, seconds."""
    folder.mkdir()
    began = time.monotonic()
    run = subprocess.Popen(
        command("vnp", "run", fasta, "--out", folder / "out", "--quiet"),
        env=plain_environment(folder),
    )
    peak: dict[str, float] = {}
    while run.poll() is None:
        with suppress(psutil.Error):
            processes = psutil.Process(run.pid).children(recursive=True)
            roles = {p.pid: role_of(command_line(p)) for p in processes} | {run.pid: "vnp run"}
            for pid, role in roles.items():
                with suppress(OSError, KeyError):  # it has just ended
                    peak[role] = max(peak.get(role, 0.0), memory_mb(pid, "VmHWM"))
        time.sleep(POLL_S)
    assert run.returncode == 0
    seconds = time.monotonic() - began
    return peak, json.loads((folder / "out" / "run.json").read_text())["counts"], seconds


def main() -> None:
    megabases = int(sys.argv[1]) if len(sys.argv) > 1 else MEGABASES
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small, _, _ = measure(FIXTURES / "virus_phiX174.fa", folder / "small")
        for words, line in (("lines of 100", LINE), ("a single line", 0)):
            write_record(folder / "large.fa", megabases, line)
            large, counts, seconds = measure(folder / "large.fa", folder / f"large-{line}")
            print(
                f"one record of {counts['letters']:,} bases on {words}, {counts['chunks']:,} "
                f"chunks, {counts['frames']:,} frames, {seconds:.0f} s ({os.cpu_count()} cores); MB"
            )
            print(f"{'role':<12}{'small':>8}{'large':>8}{'above':>8}")
            for role in large:
                above = large[role] - small.get(role, 0.0)
                print(f"{role:<12}{small.get(role, 0.0):>8.0f}{large[role]:>8.0f}{above:>8.0f}")


if __name__ == "__main__":
    main()

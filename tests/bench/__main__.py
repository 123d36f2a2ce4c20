"""All benchmarks, one after another: `make bench`, or `python -m tests.bench [NAME ...]`.

Absolute figures belong to the machine; what is to be compared is printed side by side.
"""

from __future__ import annotations

import importlib
import platform
import sys
from importlib.metadata import version

NAMES = (
    *("packer", "encoder", "broker", "writer", "memory", "record", "alike"),
    *("planner", "results"),
)


def main() -> None:
    names = sys.argv[1:] or NAMES
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "redis", "h5py"))
    print(f"{platform.platform()}, Python {platform.python_version()}, {versions}")
    for name in names:
        print(f"\n== {name}", flush=True)
        sys.argv = [name]
        importlib.import_module(f"tests.bench.bench_{name}").main()


if __name__ == "__main__":
    main()

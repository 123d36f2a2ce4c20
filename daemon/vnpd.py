"""`vnpd`, the command."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from daemon.cli import run_command
from daemon.config_load import load
from daemon.options import config_option
from daemon.service import serve


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@config_option
@click.option("--roles", help="Only these, with commas: planner,packer,gpu,writer.")
@click.option("--redis-url", help="A Redis that runs already (default: a private one).")
@click.option("--device", help="cpu, or cuda:N, several with commas.")
@click.option("--dtype", type=click.Choice(["fp32", "fp16", "bf16", "fp8"]))
@click.option("--packers", type=click.IntRange(min=1), help="Number of packer processes.")
@click.option(
    "--default",
    "defaults",
    multiple=True,
    metavar="NAME=VALUE",
    help="A setting, where neither file nor variable says anything (for units).",
)
def vnpd(config_file: Path | None, defaults: tuple[str, ...], **flags: Any) -> int:
    """The resident service: keeps the models loaded and computes the jobs of vnp-submit.

    Ends in order on SIGTERM; unfinished jobs go on at the next start. SIGHUP reads the
    configuration again.
    """
    read_config = partial(load, flags, config_file, defaults)
    return serve(read_config(), read_config)


def main() -> None:
    sys.exit(run_command(vnpd))


if __name__ == "__main__":
    main()

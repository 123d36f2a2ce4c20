"""What commands share: groups that suggest, options of jobs and of the service."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from daemon.config import Config

PIPELINES = ("virus", "protein", "dna")


class Commands(click.Group):
    """Suggests the command that was probably meant."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            close = difflib.get_close_matches(args[0], self.list_commands(ctx), 1)
            hint = f"; did you mean {close[0]}?" if close else f"; see {ctx.info_name} --help"
            raise click.UsageError(f"no command {args[0]!r}{hint}", ctx) from error


class OneOf(click.Choice[str]):
    """A choice that suggests the word that was probably meant."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in self.choices:
            close = difflib.get_close_matches(str(value), self.choices, 1)
            hint = f"did you mean {close[0]}?" if close else f"choose {', '.join(self.choices)}"
            self.fail(f"there is no {value!r}; {hint}", param, ctx)
        return str(value)


class Pipeline(OneOf):
    def __init__(self) -> None:
        super().__init__(PIPELINES)


file_option = click.option(
    "--config", "config_file", type=click.Path(path_type=Path), help="Configuration file (TOML)."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
verbose_option = click.option(
    "--verbose", "-v", is_flag=True, help="Show what the log says, on standard error."
)


def config_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--config and --state-dir, which all commands share that deal with a service."""
    state_dir = click.Path(path_type=Path)
    option = click.option("--state-dir", type=state_dir, help="The service's state folder.")
    return file_option(option(command))


def job_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What describes a job, in `vnp run` and `vnp submit` alike."""
    options = [
        click.argument("fasta", nargs=-1),
        click.option("--out", help="Output folder (default: STEM.vnp here)."),
        click.option("--pipeline", type=Pipeline(), default="virus", show_default=True),
        click.option(
            "--chunk-length", type=click.IntRange(min=3), help="Bases; default: the classifier's."
        ),
        click.option(
            "--allow-chunk-length",
            is_flag=True,
            help="Even if the classifier was made for another.",
        ),
        click.option("--embeddings", is_flag=True, help="Keep the embeddings of every row."),
        click.option("--compat", is_flag=True, help="Also write the original program's two files."),
        click.option(
            "--priority", type=int, default=0, show_default=True, help="Higher goes first."
        ),
        click.option(
            "--min-length",
            type=click.IntRange(min=0),
            default=0,
            help="Shorter records get the status filtered.",
        ),
        click.option(
            "--max-ambiguous",
            type=click.IntRange(0, 100),
            default=100,
            metavar="PERCENT",
            help="Chunks with a larger share of N and the like get the status ambiguous.",
        ),
        click.option("--strict", is_flag=True, help="Refuse two records of the same name."),
        click.option(
            "--files-from",
            metavar="LIST",
            help="A file that names inputs, one a line; - for standard input.",
        ),
        click.option("--force", is_flag=True, help="Compute anew; replaces what OUT holds."),
        click.option("--same-numerics", is_flag=True, help="Refuse to go on with other rounding."),
        click.option("--dry-run", "-n", is_flag=True, help="Count and estimate; compute nothing."),
        json_option,
    ]
    for option in reversed(options):
        command = option(command)
    return command


def load_config(config_file: Path | None, **flags: Any) -> Config:
    from daemon.config_load import load

    return load(flags, config_file)

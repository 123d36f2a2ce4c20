"""The command line: `vnp`, `vnp-submit`. Data goes to standard output, everything else to standard
error; exit codes are those of sysexits(3). Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import difflib
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ops.errors import VnpError

if TYPE_CHECKING:
    from daemon.client import JobRequest
    from daemon.config import Config

EX_USAGE, EX_SOFTWARE, EX_IOERR = 64, 70, 74
INTERRUPTED = 130
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


class Pipeline(click.Choice[str]):
    """--pipeline, with a suggestion for what is mistyped."""

    def __init__(self) -> None:
        super().__init__(PIPELINES)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in PIPELINES:
            close = difflib.get_close_matches(str(value), PIPELINES, 1)
            hint = f"did you mean {close[0]}?" if close else f"choose {', '.join(PIPELINES)}"
            self.fail(f"no pipeline {value!r}; {hint}", param, ctx)
        return str(value)


file_option = click.option(
    "--config", "config_file", type=click.Path(path_type=Path), help="Configuration file (TOML)."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


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
        json_option,
    ]
    for option in reversed(options):
        command = option(command)
    return command


def load_config(config_file: Path | None, **flags: Any) -> Config:
    from daemon.config import load

    return load(flags, config_file)


def make_request(fasta: tuple[str, ...], options: dict[str, Any]) -> JobRequest:
    from daemon.client import JobRequest, list_inputs

    return JobRequest(inputs=list_inputs(fasta, options.pop("files_from")), **options)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vnp", message="vnp %(version)s")
def vnp() -> None:
    """Identifies viral sequences in FASTA files.

    \b
    vnp run genomes.fa.gz --out results     everything in one command; the same again resumes
    vnpd                                    the service; then:
    vnp submit genomes.fa.gz                enqueue, prints the job's id
    vnp status ID; vnp wait ID; vnp results ID
    """


@vnp.command()
@job_options
@file_option
@click.option("--esm2", help="ESM-2 model: a name or a folder.")
@click.option("--dnabert", help="DNABERT-S model.")
@click.option("--classifier", help="Classifier.")
@click.option("--device", help="cpu, cuda or cuda:N.")
@click.option("--dtype", type=click.Choice(["fp32", "fp16", "bf16", "fp8"]))
def run(fasta: tuple[str, ...], config_file: Path | None, as_json: bool, **options: Any) -> int:
    """Computes FASTA files here and now, with a private Redis and private workers.

    The same command again goes on where it was interrupted. - reads standard input.
    """
    from rich.console import Console

    from daemon.run import run_foreground

    names = ("esm2", "dnabert", "classifier", "device", "dtype")
    flags = {name: options.pop(name) for name in names}
    config = load_config(config_file, **flags)
    return run_foreground(config, make_request(fasta, options), Console(stderr=True), as_json)


@vnp.command()
@job_options
@click.option(
    "--wait", "wait_for_it", is_flag=True, help="Return when it has ended, with its code."
)
@config_option
def submit(
    fasta: tuple[str, ...],
    config_file: Path | None,
    state_dir: Path | None,
    as_json: bool,
    wait_for_it: bool,
    **options: Any,
) -> int:
    """Enqueues FASTA files for the service and prints the job's id."""
    from daemon import client

    config = client.served_config(load_config(config_file, state_dir=state_dir))
    of_other = client.is_other_users(client.find_service(config))
    job = client.submit(config, make_request(fasta, options), to_other_user=of_other)
    click.echo(json.dumps({"id": job}) if as_json else job)
    return client.wait(config, [job]) if wait_for_it else 0


@vnp.command()
@click.argument("job", required=False)
@click.option("--watch", is_flag=True, help="Again every 2 s, until Ctrl-C or the job's end.")
@json_option
@config_option
def status(
    job: str | None,
    watch: bool,
    as_json: bool,
    config_file: Path | None,
    state_dir: Path | None,
) -> None:
    """Shows one JOB, or the service and its unfinished jobs."""
    from daemon import show

    config = load_config(config_file, state_dir=state_dir)
    show.status(config, job, as_json)
    while watch and show.is_unfinished(config, job):
        time.sleep(show.WATCH_EVERY_S)
        show.status(config, job, as_json)


@vnp.command()
@click.option("--once", is_flag=True, help="One look, also on a terminal.")
@click.option("--redis-url", help="Where to look (default: the running service's).")
@config_option
def top(
    once: bool, redis_url: str | None, config_file: Path | None, state_dir: Path | None
) -> None:
    """Shows queue, jobs and GPUs live; needs nothing but Redis."""
    from daemon.top import top as show_top

    show_top(load_config(config_file, state_dir=state_dir, redis_url=redis_url), once)


@vnp.command("list")
@json_option
@config_option
def list_jobs(as_json: bool, config_file: Path | None, state_dir: Path | None) -> None:
    """Lists all jobs, oldest first."""
    from daemon import show

    show.jobs(load_config(config_file, state_dir=state_dir), as_json)


@vnp.command()
@click.argument("jobs", nargs=-1, required=True)
@config_option
def wait(jobs: tuple[str, ...], config_file: Path | None, state_dir: Path | None) -> int:
    """Returns when the jobs have ended, with the largest of their exit codes."""
    from daemon import client

    return client.wait(load_config(config_file, state_dir=state_dir), jobs)


@vnp.command()
@click.argument("jobs", nargs=-1, required=True)
@config_option
def cancel(jobs: tuple[str, ...], config_file: Path | None, state_dir: Path | None) -> None:
    """Ends jobs; what is committed stays, and the same submit goes on from it."""
    from daemon import client

    client.cancel(load_config(config_file, state_dir=state_dir), jobs)


@vnp.command()
@click.argument("job")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job has ended.")
@config_option
def logs(job: str, follow: bool, config_file: Path | None, state_dir: Path | None) -> None:
    """Prints the log lines of a job (JSON)."""
    from daemon import show

    show.logs(load_config(config_file, state_dir=state_dir), job, follow)


@vnp.command()
@click.argument("job")
@config_option
def results(job: str, config_file: Path | None, state_dir: Path | None) -> None:
    """Prints sequences.tsv of a job or output folder."""
    from daemon import show

    show.results(load_config(config_file, state_dir=state_dir), job)


@vnp.command()
@click.argument("fasta", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--chunk-length", type=click.IntRange(min=3), default=500, show_default=True)
@click.option("--nucleotide", type=click.Path(path_type=Path), required=True)
@click.option("--protein", type=click.Path(path_type=Path), required=True)
def frames(fasta: tuple[Path, ...], chunk_length: int, nucleotide: Path, protein: Path) -> None:
    """Writes all stop-free frames, in the original's order and with its ids."""
    from ops.frames_export import write_frames

    count = write_frames(fasta, chunk_length, nucleotide, protein)
    click.echo(f"vnp: {count} frames", err=True)


@vnp.command()
@click.argument("name", metavar="OUT_OR_ID")
@click.option("--repair", is_flag=True, help="Compute anew what is damaged, and nothing else.")
@click.option("--recompute", type=click.IntRange(min=1), help="Compute so many shards again, too.")
@click.option("--device", help="For --repair and --recompute: cpu, cuda or cuda:N.")
@config_option
def verify(
    name: str,
    repair: bool,
    recompute: int | None,
    device: str | None,
    config_file: Path | None,
    state_dir: Path | None,
) -> int:
    """Reads everything in an output folder again and checks it."""
    config = load_config(config_file, state_dir=state_dir, device=device)
    if repair:
        from daemon.repair import repair as repair_folder

        return repair_folder(config, name)
    from daemon import show

    code = show.verify(config, name)
    if recompute and not code:
        from daemon.recompute import recompute as recompute_shards

        code = recompute_shards(config, name, recompute)
    return code


@vnp.command()
@click.option("--device", help="cpu, cuda or cuda:N.")
@json_option
@config_option
def doctor(
    device: str | None, as_json: bool, config_file: Path | None, state_dir: Path | None
) -> int:
    """Checks this machine: device, Redis, folders, units, models, and a known answer."""
    from daemon.doctor import doctor as examine

    return examine(load_config(config_file, state_dir=state_dir, device=device), as_json)


@vnp.group(cls=Commands)
def bench() -> None:
    """Measures what this machine gives."""


@bench.command("gpu")
@click.argument("genomes", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--sizes", default="3B,650M", show_default=True, help="ESM-2 sizes, with commas.")
@click.option("--dtypes", default="bf16,fp8", show_default=True)
@click.option(
    "--arms",
    default="original,transformers,products,model,varlen,engine,service,dnabert",
    show_default=True,
)
@click.option("--fragments", default=150_000, show_default=True, help="Of 500 bp, for the service.")
@click.option("--seconds", default=20.0, show_default=True, help="Roughly, per arm.")
@click.option("--folder", type=click.Path(path_type=Path), default=Path("vnp-bench"))
def bench_gpu(
    genomes: tuple[Path, ...],
    sizes: str,
    dtypes: str,
    arms: str,
    fragments: int,
    seconds: float,
    folder: Path,
) -> None:
    """Compares, with random weights of true shapes, the original's way, others, and ours.

    GENOMES are FASTA files that fragments are sampled from. Figures go to standard output as JSON,
    a line per arm to standard error.
    """
    from daemon.bench import run as run_bench

    chosen = sizes.split(","), dtypes.split(","), arms.split(",")
    say = partial(click.echo, err=True)
    click.echo(json.dumps(run_bench(folder, genomes, *chosen, fragments, seconds, say), indent=1))


@vnp.group(cls=Commands)
def train() -> None:
    """Trains models of your own."""


class ManyValues(click.Command):
    """Lets --virus and --other take several files: --virus A.fa B.fa, as a shell expands *.fa."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        expanded: list[str] = []
        many = ""
        for value in args:
            if value.startswith("-"):
                many = value if value in ("--virus", "--other") else ""
            elif many and expanded[-1] != many:
                expanded.append(many)
            expanded.append(value)
        return super().parse_args(ctx, expanded)


@train.command("classifier", cls=ManyValues)
@click.option(
    "--virus",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="FASTA files of viruses, one or more.",
)
@click.option(
    "--other",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="FASTA files of everything else.",
)
@click.option("--name", required=True, help="What to call the classifier.")
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    help="Table of id, group (family, phylum) and, if you have them, split (train, valid, test).",
)
@click.option("--models", "encoders", help="esm2=NAME,dnabert-s=NAME; default: those in use.")
@click.option("--chunk-length", type=click.IntRange(min=150), default=500, show_default=True)
@click.option("--fragments", type=click.IntRange(min=100), default=40_000, show_default=True)
@click.option(
    "--test-fragments",
    type=click.IntRange(min=1),
    default=300,
    show_default=True,
    help="Of each group and length.",
)
@click.option("--width", type=click.IntRange(min=1), default=512, show_default=True)
@click.option(
    "--rate",
    type=click.FloatRange(0, 1, True),
    default=1e-3,
    show_default=True,
    help="Learning rate.",
)
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True)
@click.option("--device", help="cpu, cuda or cuda:N.")
@click.option("--dtype", type=click.Choice(["fp32", "fp16", "bf16"]))
@config_option
def train_classifier(
    config_file: Path | None,
    state_dir: Path | None,
    encoders: str | None,
    device: str | None,
    dtype: str | None,
    **options: Any,
) -> int:
    """Trains a classifier on genomes, and measures it on groups that it has not seen."""
    from rich.console import Console

    flags = {"device": device, "dtype": dtype, "state_dir": state_dir, **_encoders(encoders)}
    config = load_config(config_file, **flags)
    from daemon.train import run_training

    return run_training(config, options, Console(stderr=True))


def _encoders(text: str | None) -> dict[str, str]:
    """--models as settings: "esm2=A,dnabert-s=B" -> {"esm2": "A", "dnabert": "B"}."""
    settings = {}
    for part in text.split(",") if text else ():
        kind, _, name = part.partition("=")
        if kind not in ("esm2", "dnabert-s") or not name:
            raise click.BadParameter("give esm2=NAME,dnabert-s=NAME", param_hint="--models")
        settings[kind.removesuffix("-s")] = name
    return settings


@vnp.group(cls=Commands)
def models() -> None:
    """Lists and imports models."""


@models.command("list")
@json_option
@config_option
def list_models(as_json: bool, config_file: Path | None, state_dir: Path | None) -> None:
    """Lists the models that can be named."""
    from daemon import show

    show.models(load_config(config_file, state_dir=state_dir), as_json)


@models.command("import")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="What to call it.")
@click.option(
    "--chunk-length", type=click.IntRange(min=3), help="Of a classifier: bases it was trained for."
)
@config_option
def import_model(
    path: Path,
    name: str,
    chunk_length: int | None,
    config_file: Path | None,
    state_dir: Path | None,
) -> None:
    """Imports published weights: fair-esm .pt, a Hugging Face folder, a classifier .pth."""
    from ops.weights import import_model as do_import

    config = load_config(config_file, state_dir=state_dir)
    card = do_import(path, name, config.models_dir, chunk_length=chunk_length)
    click.echo(f"{card.name}\t{card.kind}\t{card.digest}")


@models.command("verify")
@click.argument("names", nargs=-1)
@click.option("--golden", is_flag=True, help="Compare real weights with the original's embeddings.")
@click.option("--device", default="cpu", show_default=True)
@config_option
def verify_models(
    names: tuple[str, ...],
    golden: bool,
    device: str,
    config_file: Path | None,
    state_dir: Path | None,
) -> int:
    """Reads model files again and checks their digests; without NAMES, of all models."""
    from daemon import show

    return show.verify_models(
        load_config(config_file, state_dir=state_dir), names, device if golden else None
    )


def run_command(command: click.Command, arguments: list[str] | None = None) -> int:
    """Runs a command; every error on purpose becomes one line and its exit code."""
    try:
        return int(command.main(args=arguments, standalone_mode=False) or 0)
    except VnpError as error:
        click.echo(f"vnp: {error}", err=True)
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return EX_USAGE
    except click.ClickException as error:
        click.echo(f"vnp: {_usage_message(error)}", err=True)
        return EX_USAGE
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except OSError as error:
        click.echo(f"vnp: {error.filename or 'file'}: {error.strerror or error}", err=True)
        return EX_IOERR
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except Exception:  # a bug: what a report of it needs, and the exit code for one
        sys.excepthook(*sys.exc_info())
        return EX_SOFTWARE


def _usage_message(error: click.ClickException) -> str:
    """click's words, and where to look when they do not say what was meant."""
    message = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    if context is None or "did you mean" in message.lower():
        return message
    return f"{message}; see `{context.command_path} --help`"


def main() -> None:
    sys.exit(run_command(vnp))


def submit_main() -> None:
    sys.exit(run_command(submit))


if __name__ == "__main__":
    main()

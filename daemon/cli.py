"""The command line: `vnp`, `vnp-submit`. Data goes to standard output, everything else to standard
error; exit codes are those of sysexits(3). Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daemon import cli_models, cli_results
from daemon.options import (
    Commands,
    OneOf,
    config_option,
    file_option,
    job_options,
    json_option,
    load_config,
    verbose_option,
)
from ops.errors import UsageError, VnpError

if TYPE_CHECKING:
    from daemon.client import JobRequest
    from daemon.config import Config

EX_USAGE, EX_SOFTWARE, EX_IOERR = 64, 70, 74
INTERRUPTED = 130
STATES = ("queued", "planning", "running", "finished", "failed", "cancelled")


def make_request(fasta: tuple[str, ...], options: dict[str, Any]) -> JobRequest:
    from daemon.client import JobRequest, list_inputs

    return JobRequest(inputs=list_inputs(fasta, options.pop("files_from")), **options)


def show_estimate(config: Config, request: JobRequest, as_json: bool) -> int:
    from daemon import estimate

    estimate.show_estimate(config, request, as_json)
    return 0


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
@click.option("--dtype", type=OneOf(["fp32", "fp16", "bf16", "fp8"]))
@click.option("--quiet", "-q", is_flag=True, help="Print errors only.")
@verbose_option
def run(
    fasta: tuple[str, ...],
    config_file: Path | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> int:
    """Computes FASTA files here and now, with a private Redis and private workers.

    The same command again goes on where it was interrupted. - reads standard input.
    """
    from rich.console import Console

    from daemon.run import run_foreground

    if quiet and verbose:
        raise UsageError("--quiet and --verbose do not go together; leave one out")
    names = ("esm2", "dnabert", "classifier", "device", "dtype")
    flags = {name: options.pop(name) for name in names}
    config = load_config(config_file, **flags)
    dry_run, request = options.pop("dry_run"), make_request(fasta, options)
    if dry_run:
        return show_estimate(config, request, as_json)
    errors, results = Console(stderr=True, quiet=quiet), Console(quiet=quiet)
    return run_foreground(config, request, errors, results, as_json, verbose)


@vnp.command()
@job_options
@click.option(
    "--wait", "wait_for_it", is_flag=True, help="Return when it has ended, with its code."
)
@verbose_option
@config_option
def submit(
    fasta: tuple[str, ...],
    config_file: Path | None,
    state_dir: Path | None,
    as_json: bool,
    wait_for_it: bool,
    verbose: bool,
    **options: Any,
) -> int:
    """Enqueues FASTA files for the service and prints the job's id."""
    from daemon import client, served

    if verbose and not wait_for_it:
        raise UsageError("--verbose shows what happens while one waits; add --wait")
    config = served.served_config(load_config(config_file, state_dir=state_dir))
    dry_run, request = options.pop("dry_run"), make_request(fasta, options)
    if dry_run:
        return show_estimate(config, request, as_json)
    of_other = served.is_other_users(served.find_service(config))
    job = client.submit(config, request, to_other_user=of_other)
    click.echo(json.dumps({"id": job}) if as_json else job)
    return wait_for(config, [job], verbose) if wait_for_it else 0


def wait_for(config: Config, jobs: Sequence[str], verbose: bool) -> int:
    """The largest exit code of some jobs; verbose: their events meanwhile."""
    from daemon import client

    echo = partial(click.echo, err=True)
    if not verbose:
        return client.wait(config, jobs, echo)
    from daemon.events import told_of_jobs

    last: list[str] = []  # after the events, which a thread tells
    try:
        with told_of_jobs(config, jobs, echo):
            return client.wait(config, jobs, last.append)
    finally:
        for line in last:
            echo(line)


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
    goes_on = True
    while goes_on:
        # Asked before the look, so that the last one shows the end.
        goes_on = watch and show.is_unfinished(config, job)
        show.status(config, job, as_json)
        if goes_on:
            time.sleep(show.WATCH_EVERY_S)


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
@click.option("--state", "states", multiple=True, type=OneOf(STATES), help="Only these.")
@click.option("--user", help="Only this user's.")
@click.option("--last", type=click.IntRange(min=1), help="Only so many, the newest.")
@json_option
@config_option
def list_jobs(
    states: tuple[str, ...],
    user: str | None,
    last: int | None,
    as_json: bool,
    config_file: Path | None,
    state_dir: Path | None,
) -> None:
    """Lists jobs, oldest first."""
    from daemon import show

    config = load_config(config_file, state_dir=state_dir)
    show.jobs(config, as_json, states=states, user=user, last=last)


@vnp.command()
@click.argument("jobs", nargs=-1, required=True)
@verbose_option
@config_option
def wait(
    jobs: tuple[str, ...], verbose: bool, config_file: Path | None, state_dir: Path | None
) -> int:
    """Returns when the jobs have ended, with the largest of their exit codes."""
    return wait_for(load_config(config_file, state_dir=state_dir), jobs, verbose)


@vnp.command()
@click.argument("jobs", nargs=-1, required=True)
@config_option
def cancel(jobs: tuple[str, ...], config_file: Path | None, state_dir: Path | None) -> None:
    """Ends jobs; what is committed stays, and the same submit goes on from it."""
    from daemon import client

    client.cancel(load_config(config_file, state_dir=state_dir), jobs)


@vnp.command()
@click.argument("jobs", nargs=-1, required=True)
@config_option
def retry(jobs: tuple[str, ...], config_file: Path | None, state_dir: Path | None) -> None:
    """Submits failed or cancelled jobs again, and prints the new ids; goes on where they were."""
    from daemon import client

    config = load_config(config_file, state_dir=state_dir)
    for job in jobs:
        click.echo(client.retry(config, job))


@vnp.command()
@click.argument("job")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job has ended.")
@config_option
def logs(job: str, follow: bool, config_file: Path | None, state_dir: Path | None) -> None:
    """Prints the log lines of a job (JSON)."""
    from daemon import show

    show.logs(load_config(config_file, state_dir=state_dir), job, follow)


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


@vnp.command()
@click.argument("shell", type=OneOf(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Prints what makes a shell complete vnp: eval "$(vnp completion bash)"."""
    from click.shell_completion import get_completion_class

    complete = get_completion_class(shell)
    assert complete is not None
    click.echo(complete(vnp, {}, "vnp", "_VNP_COMPLETE").source())


for command in (*cli_models.COMMANDS, *cli_results.COMMANDS):
    vnp.add_command(command)


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
    if "_VNP_COMPLETE" in os.environ:  # a shell asks what could follow
        vnp.main(prog_name="vnp")
    sys.exit(run_command(vnp))


def submit_main() -> None:
    sys.exit(run_command(submit))


if __name__ == "__main__":
    main()

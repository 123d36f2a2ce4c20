"""What the looking commands print: status, list, logs, results, verify, models."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from daemon.config import Config
from daemon.find import find_begun, find_out, find_results
from daemon.served import find_service
from daemon.watch import JobView, JobWatch, view_of
from ops.errors import (
    ConfigError,
    NoInputError,
    PermissionDeniedError,
    UnavailableError,
    VnpError,
)
from ops.jobs import JobStore
from ops.modelstore import ModelCard
from ops.place import place_of

FOLLOW_POLL_S, JOURNAL_POLL_S = 0.2, 1.0
WATCH_EVERY_S = 2.0
EX_DATAERR, EX_IOERR = 65, 74


def status(config: Config, job: str | None, as_json: bool) -> None:
    """One job, or the service and what it has to do."""
    facts = service_facts(config)
    url = config.redis_url or facts.get("redis_url")
    if job is not None:
        view = JobWatch(config, job, url).view()
        click.echo(json.dumps(vars(view)) if as_json else _block(view))
        return
    store = JobStore(config.jobs_dir)
    views = [view_of(config, id_, url) for id_ in store.unfinished()]
    if as_json:
        click.echo(json.dumps({"service": facts, "jobs": [vars(view) for view in views]}))
        return
    word = ("ready" if facts["ready"] else "loading models") if facts else "not running"
    click.echo(f"service: {word}, {plural(len(views), 'unfinished job')}")
    if views:
        _print_jobs(views)


def is_unfinished(config: Config, job: str | None) -> bool:
    """True while there is something to watch: always, for the service itself."""
    return job is None or JobStore(config.jobs_dir).outcome(job) is None


def service_facts(config: Config) -> dict[str, Any]:
    """What the running service says of itself; empty when none runs."""
    try:
        return find_service(config)
    except UnavailableError:
        return {}


def _block(view: JobView) -> str:
    rows = {
        "job": view.id,
        "state": f"{view.state} {view.share:.0%}" if view.state == "running" else view.state,
        "progress": "" if view.message else describe(view),
        "message": view.message,
        "models": "" if view.trained else "UNTRAINED: these calls mean nothing",
        "out": view.out,
        "submitted": view.created,
    }
    return "\n".join(f"{name:<10} {value}" for name, value in rows.items() if value)


def describe(view: JobView) -> str:
    """The figures of a running job in a few words."""
    if not view.shards:
        return "reading the input" if view.state in ("queued", "planning") else ""
    words = [plural(view.records, "record"), f"shard {view.shards_done}/{view.shards}"]
    if view.rows_computed:
        words.append(f"{view.rows_computed:,} rows")
    if view.eta_s is not None and view.state == "running":
        words.append(f"{duration(view.eta_s)} left")
    return ", ".join(words)


def duration(seconds: float) -> str:
    """3:07, or 1:02:07 from an hour on."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def plural(count: int, noun: str) -> str:
    """1 record, 2 records, 1,000 records."""
    return f"{count:,} {noun}" + ("s" if count != 1 else "")


_HEADINGS = ("id", "state", "done", "submitted", "out")


def _cells(view: JobView) -> tuple[str, ...]:
    return (view.id, view.state, f"{view.share:.0%}", view.created, view.out)


def print_columns(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns for people; programs ask for --json."""
    table = [headings, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(line.rstrip())


def jobs(
    config: Config,
    as_json: bool,
    *,
    states: Sequence[str] = (),
    user: str | None = None,
    last: int | None = None,
) -> None:
    """Jobs, oldest first; in one of these states (none given: any), of this user, the newest."""
    store = JobStore(config.jobs_dir)
    ids = [job for job in store.list() if _is_asked_for(store, job, states, user)]
    views = [view_of(config, job, None) for job in ids[-last if last else 0 :]]
    if as_json:
        click.echo(json.dumps([vars(view) for view in views]))
        return
    _print_jobs(views)


def _is_asked_for(store: JobStore, job: str, states: Sequence[str], user: str | None) -> bool:
    """False for a job that does not tell what is asked of it."""
    try:
        of_state = not states or store.state(job) in states
        return of_state and (user is None or store.spec(job).user == user)
    except VnpError:
        return False


def _print_jobs(views: Sequence[JobView]) -> None:
    print_columns(_HEADINGS, [_cells(view) for view in views])
    for view in views:
        if view.is_damaged:
            click.echo(f"vnp: {view.id}: {view.message}", err=True)


def logs(config: Config, job: str, follow: bool) -> None:
    """The job's lines of the service's log file, or where there is none, of the journal."""
    store = JobStore(config.jobs_dir)
    store.spec(job)
    for line in job_lines(config, [job], follow, lambda: store.outcome(job) is not None):
        click.echo(line, nl=False)


def job_lines(
    config: Config, jobs: Sequence[str], follow: bool, ended: Callable[[], bool]
) -> Iterator[str]:
    """The lines of some jobs, those to come included if one follows, until it has ended."""
    marks = [f'"job.id": "{job}"' for job in jobs]
    path = config.log_path
    if path is not None and (path.exists() or not shutil.which("journalctl")):
        lines = file_lines(path, follow, ended)
    else:
        lines = _journal_lines(follow, ended)
    return (line for line in lines if any(mark in line for mark in marks))


def file_lines(path: Path, follow: bool, ended: Callable[[], bool]) -> Iterator[str]:
    """All lines; with follow also those to come, until it has ended."""
    try:
        stream = path.open()
    except OSError as error:
        raise NoInputError(f"log file {path} cannot be read: {error.strerror}") from error
    with stream:
        last = not follow
        while True:
            yield from stream
            if last:
                return
            last = ended()
            time.sleep(FOLLOW_POLL_S)


def _journal_lines(follow: bool, ended: Callable[[], bool]) -> Iterator[str]:
    """Those of vnp's units. Raises PermissionDeniedError for a journal that may not be read."""
    command = ["journalctl", "--output=cat", "--no-pager", "--unit=vnp*"]
    seen = 0
    last = not follow
    while True:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = done.stderr.strip().splitlines()
            raise PermissionDeniedError(
                f"the journal cannot be read ({reason[-1] if reason else 'journalctl failed'}); "
                "ask to be put into the group systemd-journal"
            )
        lines = done.stdout.splitlines(keepends=True)
        yield from lines[seen:]
        seen = len(lines)
        if last:
            return
        last = ended()
        time.sleep(JOURNAL_POLL_S)


def results(config: Config, name: str, partial: bool) -> None:
    """sequences.tsv of a finished job; partial: the rows of the records that are committed."""
    out = (find_begun if partial else find_results)(config, name)
    place, table = place_of(out), "sequences.tsv"
    if partial and place.sizes([table])[table] < 0:
        from ops.partial import write_partial

        done, total = write_partial(place, sys.stdout.buffer)
        click.echo(f"vnp: {done:,} of {plural(total, 'record')}", err=True)
        return
    try:
        with place.local(table) as path, path.open("rb") as stream:
            shutil.copyfileobj(stream, sys.stdout.buffer)
    except FileNotFoundError:
        raise NoInputError(
            f"{name} has not finished; `vnp results --partial {name}` shows what is done"
        ) from None
    from ops.runfile import read_run

    for note in (read_run(place) or {}).get("notes", []):
        click.echo(f"vnp: {note}", err=True)


def verify(config: Config, name: str) -> int:
    """Everything in an output folder, read again."""
    from ops.verify import verify_output

    out = find_out(config, name)
    report = verify_output(out)
    for problem in report.problems:
        click.echo(f"vnp: {problem}", err=True)
    click.echo(
        f"{out}: {report.shards} of {plural(report.num_shards, 'shard')}, "
        f"{plural(report.rows, 'row')}, {plural(report.records, 'record')}, "
        f"{plural(report.files, 'other file')}: "
        + ("all as committed" if report.ok else plural(len(report.problems), "problem"))
    )
    return 0 if report.ok else EX_IOERR


def verify_models(config: Config, names: Sequence[str], golden_device: str | None) -> int:
    """Digests of models, and with a golden_device the values that they give on it."""
    from ops.modelstore import list_models, verify_model

    known = {card.name: card for card in list_models([config.models_dir])}
    for name in names or known:
        if name not in known:
            raise ConfigError(f"no model named {name}; see `vnp models list`")
        verify_model(known[name])
        click.echo(f"{name}\tdigest\tok")
    if golden_device is None:
        return 0
    return _verify_golden([known[name] for name in names or known], golden_device)


def _verify_golden(cards: Sequence[ModelCard], device: str) -> int:
    from ops.golden_check import check_golden, has_golden

    checked = [check_golden(card, device) for card in cards if has_golden(card)]
    if not checked:
        raise ConfigError("none of these models has golden embeddings: ESM-2 3B and DNABERT-S do")
    for result in checked:
        word = "ok" if result.ok else "DIFFERS"
        click.echo(f"{result.model}\tgolden\t{word}\trelative L2 {result.worst:.1e}")
    return 0 if all(result.ok for result in checked) else EX_DATAERR


def models(config: Config, as_json: bool) -> None:
    """All models that can be named, with what is known of them."""
    from ops.modelstore import list_models

    cards = list_models([config.models_dir])
    if as_json:
        click.echo(json.dumps([card.to_dict() for card in cards]))
        return
    headings = ("name", "kind", "width", "layers", "weights", "digest", "note")
    print_columns(headings, [_model_cells(card) for card in cards])


def _model_cells(card: ModelCard) -> tuple[str, ...]:
    weights = "trained" if card.trained else "UNTRAINED"
    layers = str(card.layers or "NA")
    digest = card.digest[:19]
    return (card.name, card.kind, str(card.width), layers, weights, digest, card.note)

"""What a person sees while a job runs (on standard error) and at its end (on standard output)."""

from __future__ import annotations

import csv
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

from daemon.client import JobView

#: Between two lines where there is no terminal.
LINE_EVERY_S = 10.0
#: Rows of sequences.tsv that are shown at the end.
MAX_ROWS = 20
FILES = (
    ("sequences.tsv", "one row per record"),
    ("chunks.tsv", "one row per chunk"),
    ("virus.fasta.gz", "the records called virus"),
    ("compat", "the original program's files"),
    ("shards", "every row with its scores"),
    ("run.json", "identity, versions, counts"),
)


class Progress:
    """A bar with the time left on a terminal; elsewhere one line now and then."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._next_line = 0.0
        self._bar: RichProgress | None = None
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[detail]}"),
            )
            self._bar = RichProgress(*columns, console=console, transient=True)
            self._task = self._bar.add_task("starting", total=1.0, detail="loading models")

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, view: JobView | None) -> None:
        """The job as it stands; None: the service is still loading its models."""
        state = view.state if view is not None else "starting"
        detail = describe(view) if view is not None else "loading models"
        share = view.share if view is not None else 0.0
        if self._bar is not None:
            self._bar.update(self._task, completed=share, description=state, detail=detail)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_EVERY_S
            self.console.print(f"vnp: {state} {share:.0%} {detail}", highlight=False)


def describe(view: JobView) -> str:
    """The figures of a running job in a few words."""
    if not view.shards:
        return "reading the input" if view.state in ("queued", "planning") else ""
    words = [f"{view.records:,} records", f"shard {view.shards_done}/{view.shards}"]
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


def print_result(out: Path, console: Console, trained: bool) -> None:
    """The calls (at most MAX_ROWS), their totals, and the files written."""
    with (out / "sequences.tsv").open(newline="") as stream:
        rows = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        shown: list[dict[str, str]] = []
        totals = {"virus": 0, "others": 0, "NA": 0}
        for row in rows:
            totals[row["prediction"]] = totals.get(row["prediction"], 0) + 1
            if len(shown) < MAX_ROWS:
                shown.append(row)
    console.print(_table(shown, trained))
    hidden = sum(totals.values()) - len(shown)
    if hidden:
        console.print(f"... and {hidden:,} more in {out / 'sequences.tsv'}", highlight=False)
    console.print(
        f"{sum(totals.values()):,} records: {totals['virus']:,} virus, "
        f"{totals['others']:,} others, {totals['NA']:,} without a call",
        highlight=False,
    )
    if not trained:
        console.print(
            "UNTRAINED models: their weights are random, these calls mean nothing. "
            "Import trained ones with `vnp models import`.",
            style="bold red",
        )
    console.print(f"\nin {out}:", highlight=False)
    for name, what in FILES:
        if (out / name).exists():
            console.print(f"  {name:<16} {what}", highlight=False)


def _table(rows: list[dict[str, str]], trained: bool) -> Table:
    table = Table(title=None if trained else "calls of UNTRAINED models", title_justify="left")
    columns = ("seq_name", "length", "prediction", "virus_score", "n_chunks", "n_chunks_scored")
    for name in (*columns, "status"):
        table.add_column(name, justify="left" if name in ("seq_name", "status") else "right")
    for row in rows:
        score = row["virus_score"]
        cells = {**row, "virus_score": score if score == "NA" else f"{float(score):.3f}"}
        style = "bold" if row["prediction"] == "virus" else None
        table.add_row(*(cells[name] for name in (*columns, "status")), style=style)
    return table

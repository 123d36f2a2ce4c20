"""What a person sees while a job runs (on standard error) and at its end (on standard output)."""

from __future__ import annotations

import csv
import time
from collections import Counter

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

from daemon.show import describe, plural
from daemon.watch import JobView
from ops.place import place_of
from ops.runfile import read_run

#: Between two lines where there is no terminal.
LINE_EVERY_S = 10.0
#: Rows of sequences.tsv that are shown at the end.
MAX_ROWS = 20
#: What a job has left, and what it is.
FILES = (
    ("sequences.tsv", "one row per record"),
    ("chunks.tsv", "one row per chunk"),
    ("virus.fasta.gz", "the records called virus"),
    ("compat", "the original program's files"),
    ("shards", "every row: scores, embeddings if kept"),
    ("run.json", "identity, versions, counts"),
)
#: Folders are there when a file of theirs is.
_TOLD_BY = {"compat": "compat/prediction_results.txt", "shards": "run.json"}


class Progress:
    """A bar with the time left on a terminal; elsewhere one line now and then."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._next_line = time.monotonic() + LINE_EVERY_S
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
            line = f"{state} {share:.0%}, {detail}" if share else detail or state
            self.console.print(f"vnp: {line}", highlight=False, soft_wrap=True)


def print_result(out: str, console: Console, trained: bool, worth: str = "") -> None:
    """What became of the records (at most MAX_ROWS of them), and the files written.

    worth: what is known of the classifier, in one line.
    """
    place = place_of(out)
    sizes = place.sizes(_TOLD_BY.get(name, name) for name, _ in FILES)
    is_virus_job = sizes["chunks.tsv"] >= 0
    with place.local("sequences.tsv") as path, path.open(newline="", encoding="utf-8") as stream:
        rows = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        shown: list[dict[str, str]] = []
        counts: Counter[str] = Counter()
        for row in rows:
            counts[row["prediction"] if is_virus_job else row["status"]] += 1
            if len(shown) < MAX_ROWS:
                shown.append(row)
    console.print(_table(shown, is_virus_job, trained))
    if hidden := counts.total() - len(shown):
        _print(console, f"... and {hidden:,} more in {place.path('sequences.tsv')}")
    _print(console, _totals(counts, is_virus_job))
    for note in (read_run(place) or {}).get("notes", []):
        _print(console, note)
    if worth:
        _print(console, worth)
    if not trained:
        _print(
            console,
            "UNTRAINED models: their weights are random, and these values mean nothing.\n"
            "Import trained ones with `vnp models import`.",
            style="bold red",
        )
    _print(console, f"\nin {out}:")
    for name, what in FILES:
        if sizes[_TOLD_BY.get(name, name)] >= 0:
            _print(console, f"  {name:<16} {what}")


def _print(console: Console, text: str, style: str | None = None) -> None:
    """Text as it is: names of records and folders may hold what rich would take for markup."""
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def _totals(counts: Counter[str], is_virus_job: bool) -> str:
    total = plural(counts.total(), "record")
    if is_virus_job:
        viruses, others, none = (counts[word] for word in ("virus", "others", "NA"))
        return f"{total}: {viruses:,} virus, {others:,} others, {none:,} without a call"
    return f"{total}: {counts['ok']:,} embedded, {counts.total() - counts['ok']:,} not"


def _table(rows: list[dict[str, str]], is_virus_job: bool, trained: bool) -> Table:
    """Few and short columns: names are long, and terminals have 80 characters."""
    title = None if trained else "results of UNTRAINED models"
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    calls = ("call", "score", "chunks scored") if is_virus_job else ()
    for name in ("sequence", "length", *calls, "status"):
        left = name in ("sequence", "call", "status")
        table.add_column(name, justify="left" if left else "right", overflow="fold")
    for row in rows:
        table.add_row(
            escape(row["seq_name"]),
            f"{int(row['length']):,}",
            *(_call_cells(row) if is_virus_job else ()),
            row["status"],
            style="bold" if row["prediction"] == "virus" else None,
        )
    return table


def _call_cells(row: dict[str, str]) -> tuple[str, str, str]:
    score = row["virus_score"]
    score = score if score == "NA" else f"{float(score):.3f}"
    return row["prediction"], score, f"{row['n_chunks_scored']} of {row['n_chunks']}"

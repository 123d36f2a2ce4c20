"""report.html: one page that needs nothing else, no script and no network; and a MultiQC table.

Charts are SVG inside the page. Names of records come from outside and are escaped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from ops.citations import citations
from ops.report import BINS_PER_DECADE, LENGTH_BINS, SCORE_BINS, SHORTEST_LOG10, Report, Track

WIDTH, HEIGHT, LEFT, BOTTOM = 640, 200, 64, 36
LONGEST_NAME = 44  # letters of a name above its track
VIRUS, OTHERS, GRID = "#b3312c", "#3b6ea5", "#d7dbe0"
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1d2430;max-width:62rem;
margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin-bottom:.2rem} h2{font-size:1.15rem;margin:2rem 0 .5rem}
table{border-collapse:collapse;margin:.5rem 0} td,th{padding:.2rem .9rem .2rem 0;text-align:left;
border-bottom:1px solid #d7dbe0;vertical-align:top} td.n{text-align:right}
td:last-child:not(.n),p{overflow-wrap:anywhere}
.warn{background:#fdf0d5;border-left:4px solid #c98a00;padding:.5rem .8rem}
.note{color:#555f6d} svg{max-width:100%;height:auto;display:block;margin:.4rem 0}
svg text{font:11px system-ui,sans-serif;fill:#555f6d}
@media(max-width:42rem){body{margin:1rem auto} svg text{font-size:16px}}
"""


def render(report: Report) -> bytes:
    """The page, UTF-8."""
    run = report.run
    title = f"vnp: {run['job']}"
    parts = [
        "<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width'>",
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        *_summary(run),
    ]
    if run["parameters"]["pipeline"] == "virus":
        parts += _calls(report)
    parts += [*_throughput(report), *_identity(run), "</body></html>\n"]
    return "\n".join(parts).encode("utf-8", "backslashreplace")


def _summary(run: dict[str, Any]) -> list[str]:
    counts = run["counts"]
    rows = [("records", counts["records"]), ("letters", counts["letters"])]
    if run["parameters"]["pipeline"] == "virus":
        rows += [("called virus", counts["viruses"]), ("chunks", counts["chunks"])]
        rows += [("chunks scored", counts["chunks_scored"])]
    rows += [("rows embedded", counts["frames"])]
    rows += [(f"status {name}", number) for name, number in sorted(counts["statuses"].items())]
    warning = (
        []
        if run["trained"]
        else ["<p class='warn'>UNTRAINED models: these calls mean nothing.</p>"]
    )
    inputs = ", ".join(escape(source["path"]) for source in run["inputs"][:5])
    more = f" and {len(run['inputs']) - 5} more" if len(run["inputs"]) > 5 else ""
    return [
        f"<p class='note'>{inputs}{more}<br>{run['started']} to {run['finished']}</p>",
        *warning,
        "<h2>Counts</h2>",
        _table((name, f"{number:,}") for name, number in rows),
        *(f"<p class='note'>{escape(note)}</p>" for note in run.get("notes", [])),
    ]


def _table(rows: Iterable[tuple[str, str]], numbers: bool = True) -> str:
    kind = " class='n'" if numbers else ""
    cells = (f"<tr><td>{escape(a)}</td><td{kind}>{escape(b)}</td></tr>" for a, b in rows)
    return f"<table>{''.join(cells)}</table>"


def _calls(report: Report) -> list[str]:
    return [
        "<h2 id='records'>Scores of records</h2>",
        _histogram(report.records, "virus score of a record"),
        "<h2 id='chunks'>Scores of chunks</h2>",
        _histogram(report.chunks, "virus score of a chunk"),
        "<p class='note'>A score is no probability: 0.9 does not mean nine in ten. A chunk is "
        "virus when its best virus frame is at least as sure as its best other frame (0.5); a "
        "record's score is the mean of its scored chunks. Below 300 bp calls are near chance. Set "
        "a threshold on sequences of your own whose origin you know.</p>",
        "<h2 id='lengths'>Length and score</h2>",
        _heat(report.heat),
        "<h2 id='largest'>The largest records</h2>",
        "<p class='note'>Chunk scores from the first base to the last; gaps are not scored.</p>",
        *(_track(track) for track in report.tracks),
    ]


def _svg(height: int, body: Iterable[str], label: str) -> str:
    box = f"viewBox='0 0 {WIDTH} {height}' width='{WIDTH}' height='{height}'"
    return f"<svg {box} role='img' aria-label='{escape(label)}'>{''.join(body)}</svg>"


def _text(x: float, y: float, words: str, anchor: str = "middle") -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}'>{escape(words)}</text>"


def _rect(x: float, y: float, width: float, height: float, colour: str, more: str = "") -> str:
    place = f"x='{x:.1f}' y='{y:.1f}' width='{width:.1f}' height='{height:.1f}'"
    return f"<rect {place} fill='{colour}'{more}/>"


def _axes(x_label: str, y_max: str) -> list[str]:
    bottom = HEIGHT - BOTTOM
    return [
        f"<path d='M{LEFT} 8V{bottom}H{WIDTH - 8}' fill='none' stroke='{GRID}'/>",
        _text((LEFT + WIDTH) / 2, HEIGHT - 4, x_label),
        _text(LEFT - 6, 16, y_max, "end"),
        _text(LEFT - 6, bottom, "0", "end"),
    ]


def _histogram(counts: Sequence[int], label: str) -> str:
    top, step = max(*counts, 1), (WIDTH - LEFT - 8) / SCORE_BINS
    bottom, room = HEIGHT - BOTTOM, HEIGHT - BOTTOM - 8
    bars = [
        _rect(
            LEFT + at * step,
            bottom - room * count / top,
            step - 1,
            room * count / top,
            VIRUS if at >= SCORE_BINS // 2 else OTHERS,
        )
        for at, count in enumerate(counts)
        if count
    ]
    return _svg(HEIGHT, [*_axes(label, f"{top:,}"), *bars, *_score_ticks()], label)


def _score_ticks() -> list[str]:
    room = WIDTH - LEFT - 8
    return [_text(LEFT + room * t, HEIGHT - BOTTOM + 15, f"{t:g}") for t in (0, 0.25, 0.5, 0.75, 1)]


def _heat(heat: Sequence[Sequence[int]]) -> str:
    """Records by length (up) and score (right); darker is more, by the root of the count."""
    top = max(max(row) for row in heat) or 1
    step, room = (WIDTH - LEFT - 8) / SCORE_BINS, HEIGHT - BOTTOM - 8
    tall = room / LENGTH_BINS
    cells = [
        _rect(
            LEFT + at * step,
            HEIGHT - BOTTOM - (place + 1) * tall,
            step,
            tall,
            VIRUS if at >= SCORE_BINS // 2 else OTHERS,
            f" fill-opacity='{0.15 + 0.85 * (count / top) ** 0.5:.2f}'",
        )
        for place, row in enumerate(heat)
        for at, count in enumerate(row)
        if count
    ]
    ticks = [
        _text(
            LEFT - 6,
            HEIGHT - BOTTOM - BINS_PER_DECADE * (d - SHORTEST_LOG10) * tall + 4,
            word,
            "end",
        )
        for d, word in ((2, "100 bp"), (3, "1 kb"), (4, "10 kb"), (5, "100 kb"), (6, "1 Mb"))
    ]
    frame = f"<path d='M{LEFT} 8V{HEIGHT - BOTTOM}H{WIDTH - 8}' fill='none' stroke='{GRID}'/>"
    label = "virus score of a record"
    words = _text((LEFT + WIDTH) / 2, HEIGHT - 4, label)
    return _svg(HEIGHT, [frame, *cells, *ticks, *_score_ticks(), words], "length by score")


def _track(track: Track) -> str:
    high, step = 40, (WIDTH - 16) / max(len(track.scores), 1)
    bars = [
        _rect(
            8 + at * step,
            58 - high * score,
            max(step - 0.3, 0.5),
            high * score,
            VIRUS if score >= 0.5 else OTHERS,
        )
        for at, score in enumerate(track.scores)
        if score is not None
    ]
    long = len(track.name) > LONGEST_NAME
    name = track.name[: LONGEST_NAME - 1] + "…" if long else track.name
    words = f"{name}  {track.length:,} bp, {track.prediction} {track.virus_score:.3f}"
    half = f"<path d='M8 {58 - high / 2}H{WIDTH - 8}M8 58H{WIDTH - 8}' stroke='{GRID}'/>"
    return _svg(64, [_text(8, 12, words, "start"), half, *bars], words)


def _throughput(report: Report) -> list[str]:
    points = report.progress
    if len(points) < 2 or points[-1][0] <= 0:
        return []
    seconds, rows = points[-1]
    bottom, room = HEIGHT - BOTTOM, HEIGHT - BOTTOM - 8
    wide = WIDTH - LEFT - 8
    path = " ".join(
        f"{LEFT + wide * at / seconds:.1f},{bottom - room * total / rows if rows else bottom:.1f}"
        for at, total in points
    )
    line = f"<polyline points='{path}' fill='none' stroke='{OTHERS}' stroke-width='2'/>"
    label = f"seconds since the first commit, {seconds:,.0f} in all"
    return [
        "<h2 id='rows'>Rows committed over time</h2>",
        _svg(HEIGHT, [*_axes(label, f"{rows:,}"), line], "rows committed over time"),
        "<p class='note'>Told from the times of the shard files; flat while it stood still.</p>",
    ]


def _identity(run: dict[str, Any]) -> list[str]:
    shown = {**run["identity"], **run["versions"], "input": run["input_digest"]}
    rows = [(name, str(value)) for name, value in shown.items() if value is not None]
    devices = ", ".join(sorted({json.dumps(gpu) for gpu in run["gpus"]}))
    return [
        "<h2>Identity</h2>",
        _table([*rows, *([("devices", devices)] if devices else [])], numbers=False),
        "<h2>To cite</h2>",
        *(f"<p>{escape(text)}</p>" for text in citations(run["parameters"]["pipeline"])),
    ]


def multiqc(report: Report) -> bytes:
    """A table that MultiQC finds by its name (*_mqc.tsv) and takes as it is."""
    run, counts = report.run, report.run["counts"]
    columns = {
        "Sample": run["job"],
        "records": counts["records"],
        "virus": counts["viruses"],
        "chunks": counts["chunks"],
        "chunks_scored": counts["chunks_scored"],
        "frames": counts["frames"],
        "failed": counts["statuses"].get("failed", 0),
    }
    head = ["# id: vnp", "# section_name: vnp", "# plot_type: table", "# description: calls of vnp"]
    table = ["\t".join(columns), "\t".join(str(value) for value in columns.values())]
    return ("\n".join([*head, *table]) + "\n").encode()

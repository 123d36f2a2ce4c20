"""`vnp top`: queue, jobs and GPUs as they stand, from Redis alone."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from broker.state import SharedState
from daemon.config import Config
from daemon.observer import STALE_S, Snapshot, look
from daemon.show import duration, plural, service_facts
from ops.errors import UnavailableError

REFRESH_S = 1.0
BAR = 20


def top(config: Config, once: bool) -> None:
    """Redraws every second on a terminal until Ctrl-C; elsewhere, or once, one look."""
    url = config.redis_url or service_facts(config).get("redis_url")
    if not url:
        raise UnavailableError(
            f"no vnpd runs on {config.state_dir}; start it with `vnpd`, or give --redis-url"
        )
    state = SharedState(url, config.namespace, "top")
    console = Console()
    if once or not console.is_terminal:
        snapshot = look(state)
        if snapshot.error:
            raise UnavailableError(snapshot.error)
        console.print(draw(snapshot))
        return
    with Live(draw(look(state)), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(REFRESH_S)
            live.update(draw(look(state)), refresh=True)


def draw(snapshot: Snapshot) -> RenderableType:
    """Everything on one screen."""
    return Group(_head(snapshot), Text(), _jobs(snapshot), Text(), _gpus(snapshot))


def _head(snapshot: Snapshot) -> RenderableType:
    text = Text(f"vnp  {snapshot.in_words}", style="red" if snapshot.error else "bold")
    planner = snapshot.planner
    if not planner:
        return text if snapshot.error else text.append("  (no planner speaks)", style="red")
    streams = "  ".join(
        f"{name} {stream['length']} ({stream['pending']} in work)"
        for name, stream in planner["streams"].items()
    )
    most = planner["redis_max_memory_bytes"]
    limit = f" of {_mebibytes(most)}" if most else ""
    memory = f"{_mebibytes(planner['redis_memory_bytes'])}{limit}"
    return Group(
        text,
        Text(f"queue  {streams}"),
        Text(
            f"redis  {planner['redis_version']}, {memory}; "
            f"window {planner['shards_open']} of {planner['window_shards']} shards; "
            f"last commit {duration(planner['progress_age_s'])} ago"
        ),
    )


def _jobs(snapshot: Snapshot) -> RenderableType:
    if not snapshot.jobs:
        return Text("no unfinished jobs")
    table = _table("job", "state", "prio", "done", "shards", "open", "left", "out")
    for job in snapshot.jobs:
        done, total = job["shards_done"], job["shards_total"]
        filled = round(BAR * done / total) if total else 0
        table.add_row(
            job["id"],
            job["state"],
            str(job["priority"]),
            "#" * filled + "." * (BAR - filled),
            f"{done}/{total}" if total else "-",
            str(job["shards_open"]),
            duration(job["eta_s"]) if job["eta_s"] is not None else "-",
            job["out"],
        )
    more = snapshot.planner["jobs_total"] - len(snapshot.jobs)
    return Group(table, Text(f"and {plural(more, 'job')} more")) if more > 0 else table


def _gpus(snapshot: Snapshot) -> RenderableType:
    if not snapshot.gpus:
        return Text("no gpu worker speaks")
    table = _table("gpu worker", "device", "dtype", "busy", "frames/s", "fill", "memory", "seen")
    for name, said in sorted(snapshot.gpus.items()):
        table.add_row(
            name,
            str(said.get("device_name", "-")),
            str(said.get("dtype", "-")),
            *_figures(said),
            f"{said['seen_s']} s ago",
        )
    return table


def _figures(said: dict[str, Any]) -> tuple[str, str, str, str]:
    """busy, frames/s, fill and memory; - for what is unknown, or too old to be true."""
    if "frames_per_s" not in said or said["seen_s"] > STALE_S:
        return ("-", "-", "-", "-")
    # The CPU has no events to tell how long it computed.
    busy = f"{said['busy']:.0%}" if said["busy"] else "-"
    fill = f"{said['fill']:.1%}" if said.get("fill") else "-"
    return busy, f"{said['frames_per_s']:,.0f}", fill, _mebibytes(said["memory_bytes"])


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings[:-1]:
        table.add_column(heading, no_wrap=True)
    table.add_column(headings[-1], overflow="fold")  # what is too long is so at the expense of this
    return table


def _mebibytes(count: int) -> str:
    return f"{count / (1 << 20):,.0f} MiB"

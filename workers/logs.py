"""Structured logs: one JSON object a line, on standard error and, if asked for, in a shared file.

Field names follow ECS and OpenTelemetry where those have one (`@timestamp`, `log.level`,
`event.name`, `service.name`, `error.type`); plain numbers carry their unit in the name
(`duration_s`). One event name per kind of event; one line per shard and none per batch.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any

import structlog

from ops import __version__

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class _Lines:
    """Writes each line with one `write` call, so that processes can share a file (O_APPEND)."""

    def __init__(self, log_file: str | None) -> None:
        self._descriptors = [sys.stderr.fileno()]
        if log_file is not None:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            descriptor = os.open(log_file, flags, 0o640)
            self._descriptors = (
                [descriptor] if log_file_only() else [*self._descriptors, descriptor]
            )

    def msg(self, event: MutableMapping[str, Any]) -> None:
        line = json.dumps(event, default=str, ensure_ascii=False)
        for descriptor in self._descriptors:
            text = _for_people(event) if os.isatty(descriptor) else line
            with suppress(OSError):  # a log that cannot be written must not stop the work
                os.write(descriptor, text.encode(errors="backslashreplace") + b"\n")

    debug = info = warning = error = critical = msg


def log_file_only() -> bool:
    """True in a foreground run, whose terminal belongs to the progress bar."""
    return os.environ.get("VNP_LOG_FILE_ONLY") == "1"


def configure_logs(
    role: str, *, worker: str = "", level: str = "info", log_file: str | None = None
) -> None:
    """Called once per process, before the first line. worker: which of its role it is, "gpu-1"."""
    lines = _Lines(log_file)
    common = {"service.name": "vnp", "service.version": __version__, "vnp.role": role}
    if worker:
        common["worker"] = worker

    # Not by structlog.contextvars: what is bound there, other threads do not see.
    def add_common(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {**common, **event}

    structlog.configure(
        processors=[
            add_common,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="@timestamp"),
            structlog.processors.format_exc_info,
            _to_fields,
            _hand_over,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS.get(level, logging.INFO)),
        logger_factory=lambda *_: lines,
        cache_logger_on_first_use=False,
    )


def get_log(role: str) -> Any:
    """The logger of a role: log.info("job.started", message="...", **{"job.id": job})."""
    return structlog.get_logger(role)


def _to_fields(_: Any, __: str, event: MutableMapping[str, Any]) -> dict[str, Any]:
    """structlog's own keys under the names that the fields have."""
    stamp = event.pop("@timestamp")
    fields = {
        "@timestamp": stamp[:23] + "Z",
        "log.level": event.pop("level"),
        "event.name": event.pop("event"),
        "message": event.pop("message", ""),
        "process.pid": os.getpid(),
    }
    if "exception" in event:
        event["error.stack_trace"] = event.pop("exception")
    return {**fields, **event}


def _hand_over(
    _: Any, __: str, event: MutableMapping[str, Any]
) -> tuple[tuple[MutableMapping[str, Any]], dict[str, Any]]:
    """The fields as they are: `_Lines` knows who reads them."""
    return (event,), {}


#: On every line, or said by the line's place already.
_NOT_FOR_PEOPLE = {
    *("@timestamp", "log.level", "event.name", "message", "process.pid"),
    *("service.name", "service.version", "vnp.role", "job.id", "error.stack_trace"),
}


def _for_people(event: MutableMapping[str, Any]) -> str:
    """The same line at a terminal: time, level where it matters, role, job, sentence, the rest."""
    level = event["log.level"]
    words = [
        str(event["@timestamp"])[11:19],
        *([level.upper()] if level != "info" else []),
        f"{event.get('vnp.role', '-')}:",
        *([f"[{event['job.id']}]"] if "job.id" in event else []),
        str(event["event.name"]),
        str(event["message"]),
        *(f"{name}={value}" for name, value in event.items() if name not in _NOT_FOR_PEOPLE),
    ]
    trace = event.get("error.stack_trace")
    return " ".join(words) + (f"\n{trace}" if trace else "")

"""Marks: files with an id that is made once, by which a folder is known again."""

from __future__ import annotations

import secrets
from pathlib import Path

from ops.durable import describe_os_error, make_dir, write_new


def make_mark(path: Path) -> str:
    """The id in a file; of several that make it at once, the first one's. Its folder is made, too.

    Raises OutputError, PermissionDeniedError.
    """
    try:
        if not path.exists():
            make_dir(path.parent)
            write_new(path, f"{secrets.token_hex(16)}\n".encode())
        return path.read_text().strip()
    except OSError as error:
        raise describe_os_error(error, path) from error

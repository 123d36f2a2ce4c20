"""Where a foreground run keeps its job file, log and socket: a private folder that ends with it."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path

from ops.errors import PermissionDeniedError
from ops.place import is_remote


def runtime_folder(out: str) -> Path:
    """A folder (mode 0700, ours) for the run that writes into `out`; made if need be.

    Under $XDG_RUNTIME_DIR, else under the shared temporary folder, where somebody else could have
    made it first: a folder that is not ours alone is refused.
    """
    name = hashlib.sha256(os.fsencode(out if is_remote(out) else Path(out).resolve())).hexdigest()[
        :16
    ]
    base = os.environ.get("XDG_RUNTIME_DIR")
    parent = Path(base) / "vnp" if base else Path(tempfile.gettempdir()) / f"vnp-{os.getuid()}"
    for folder in (parent, parent / name):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
        private = stat.S_ISDIR(status.st_mode) and not stat.S_IMODE(status.st_mode) & 0o077
        if not private or status.st_uid != os.getuid():
            raise PermissionDeniedError(f"{folder} is not a private folder of yours; remove it")
    return parent / name

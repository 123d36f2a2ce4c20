"""The Lua scripts of `broker/lua`, each run under its file's name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import redis

FOLDER = Path(__file__).parent / "lua"


class Scripts:
    """Scripts by name; a server that does not know one (it was restarted) is sent it again."""

    def __init__(self, client: redis.Redis) -> None:
        self._scripts = {
            path.stem: client.register_script(path.read_text()) for path in FOLDER.glob("*.lua")
        }

    def run(
        self,
        name: str,
        keys: list[str],
        arguments: Iterable[str | bytes | int],
        client: redis.Redis | None = None,
    ) -> Any:
        """The script's reply; `client` replaces the one that this object was made with."""
        return self._scripts[name](keys=keys, args=list(arguments), client=client)

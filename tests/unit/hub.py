"""A small server that speaks as the Hugging Face hub does, on loopback, and can be made to fail."""

from __future__ import annotations

import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
#: Larger files are kept apart from git, and known by their sha256.
LARGE_FROM = 10_000


class Hub:
    """Serves the files of a folder as one repository. `cut_after`: bytes until a body breaks off,
    once; `damage`: a byte of each large file is another; `asked`: (method, path, range) so far."""

    def __init__(self, folder: Path, repository: str, commit: str = COMMIT) -> None:
        self.folder, self.repository, self.commit = folder, repository, commit
        self.cut_after: int | None = None
        self.damage = False
        self.asked: list[tuple[str, str, str]] = []
        hub = self

        class Handler(_Handler):
            owner = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.folder.iterdir())}


def etag(data: bytes) -> str:
    """What the hub calls a file: git's digest of small ones, sha256 of large ones."""
    if len(data) >= LARGE_FROM:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        hub, path = self.owner, unquote(urlsplit(self.path).path)
        hub.asked.append((self.command, path, self.headers.get("Range", "")))
        api = f"/api/models/{hub.repository}"
        files = hub.files()
        resolve = re.fullmatch(rf"/{hub.repository}/resolve/([^/]+)/(.+)", path)
        if path in (f"{api}/revision/main", f"{api}/revision/{hub.commit}"):
            siblings = [{"rfilename": name} for name in files]
            self._json({"id": hub.repository, "sha": hub.commit, "siblings": siblings})
        elif path == f"{api}/tree/{hub.commit}":
            self._json([self._tree_entry(name, data) for name, data in files.items()])
        elif resolve and resolve[1] in ("main", hub.commit) and resolve[2] in files:
            self._file(files[resolve[2]], body)
        elif path.startswith((api, f"/{hub.repository}")):
            self._error(404, "RevisionNotFound" if "revision" in path else "EntryNotFound")
        else:
            self._error(404, "RepoNotFound")

    @staticmethod
    def _tree_entry(name: str, data: bytes) -> dict[str, Any]:
        entry = {"type": "file", "path": name, "size": len(data), "oid": etag(data)}
        if len(data) >= LARGE_FROM:
            entry["lfs"] = {"oid": etag(data), "size": len(data), "pointerSize": 130}
        return entry

    def _error(self, code: int, kind: str) -> None:
        self.send_response(code)
        self.send_header("X-Error-Code", kind)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _json(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _file(self, data: bytes, body: bool) -> None:
        name, hub = etag(data), self.owner
        if hub.damage and len(data) >= LARGE_FROM:
            data = data[:-1] + bytes([data[-1] ^ 1])
        start = int((self.headers.get("Range") or "bytes=0-")[6:].partition("-")[0])
        part = data[start:]
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{name}"')
        self.send_header("X-Repo-Commit", self.owner.commit)
        self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if not body:
            return
        if hub.cut_after is not None and len(part) > hub.cut_after:
            part, hub.cut_after = part[: hub.cut_after], None
            self.close_connection = True
        self.wfile.write(part)

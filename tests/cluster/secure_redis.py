"""A Redis as nodes share one: TLS only, a user per role, nobody else."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from urllib.parse import quote

import redis

from broker.acl import rules
from tests.crash.harness import until

PORT = 6380
PASSWORD = "s3cret/with:odd@letters"


def why_not() -> str:
    """Why there is no such server here; nothing where it can be had."""
    binary = shutil.which("redis-server") or shutil.which("valkey-server")
    if binary is None:
        return "needs a redis-server with TLS on PATH (Debian: redis-server)"
    if not shutil.which("openssl"):
        return "needs the command openssl"
    # It stops at the first option that it does not know, and names it.
    words = [binary, "--tls-port", "0", "--no-such-option", "1"]
    said = subprocess.run(words, capture_output=True, text=True)
    return "" if "no-such-option" in said.stderr + said.stdout else f"{binary} has no TLS"


def make_certificates(folder: Path, address: str) -> None:
    """ca.pem, and server.pem with server.key for one address; of one day."""
    subject = ("-nodes", "-days", "1", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")
    authority = ("-subj", "/CN=vnp test", "-keyout", "ca.key", "-out", "ca.pem")
    server = ("-subj", f"/CN={address}", "-addext", f"subjectAltName=IP:{address}")
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-keyout", "server.key", "-out", "server.pem")
    for words in (authority, (*server, *signed)):
        subprocess.run(
            ["openssl", "req", "-x509", *subject, *words],
            cwd=folder, check=True, capture_output=True,
        )  # fmt: skip


class SecureRedis:
    """Started by the words in front (`network.inside`) on an address of its host."""

    def __init__(self, folder: Path, inside: list[str], address: str, namespace: str) -> None:
        self.folder, self._inside, self._address = folder, inside, address
        make_certificates(folder, address)
        roles = {
            "node": ("planner", "packer", "gpu", "writer"),
            **{role: (role,) for role in ("planner", "packer", "gpu", "writer", "client")},
        }
        lines = ["user default off"]
        for user, its in roles.items():
            lines.append(f"user {user} on >{PASSWORD} {' '.join(rules(its, namespace))}")
        lines.append(f"user admin on >{PASSWORD} ~* &* +@all")
        (folder / "users.acl").write_text("\n".join(lines) + "\n")
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, user: str) -> str:
        ca = quote(str(self.folder / "ca.pem"), safe="")
        password = quote(PASSWORD, safe="")
        return f"rediss://{user}:{password}@{self._address}:{PORT}?ssl_ca_certs={ca}"

    @property
    def socket(self) -> Path:
        return self.folder / "r.sock"

    def admin(self) -> redis.Redis:
        """Past the network: namespaces share the file system."""
        return redis.Redis(
            unix_socket_path=str(self.socket), username="admin", password=PASSWORD, protocol=2
        )

    def start(self) -> None:
        binary = shutil.which("redis-server") or shutil.which("valkey-server") or ""
        options = {
            "port": "0",
            "tls-port": str(PORT),
            "bind": self._address,
            "unixsocket": str(self.socket),
            "tls-cert-file": "server.pem",
            "tls-key-file": "server.key",
            "tls-ca-cert-file": "ca.pem",
            "tls-auth-clients": "no",
            "aclfile": "users.acl",
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        with (self.folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._inside, binary, *words], cwd=self.folder, stdout=log, stderr=log
            )
        until(self._answers, "the shared Redis to answer", 20)

    def _answers(self) -> bool:
        try:
            return bool(self.admin().ping())
        except redis.ConnectionError:
            return False

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            time.sleep(0.1)

"""The Redis of the manifests, as a real server: its configuration, users and TLS are what the pods
and KEDA come with."""

from __future__ import annotations

import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
import redis
import yaml

from broker.acl import ROLES, rules
from broker.keys import BATCHES, GROUPS, RESULTS, TASKS, Keys
from broker.queue import Broker
from broker.server import find_server
from ops.errors import UnavailableError
from tests.crash.harness import until
from tests.deploy.tools import DEPLOY, on_path

BASE = DEPLOY / "kubernetes" / "base"


def of_kind(path: Path, kind: str) -> list[dict]:
    return [doc for doc in yaml.safe_load_all(path.read_text()) if doc and doc["kind"] == kind]


def free_port() -> int:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def certificate(folder: Path) -> None:
    """tls.crt, tls.key and ca.crt for localhost, signed by itself."""
    files = ["-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.crt")]
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = [on_path("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    subprocess.run([*command, *files, *name], check=True, capture_output=True)
    (folder / "ca.crt").write_bytes((folder / "tls.crt").read_bytes())


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Path, int]]:
    """(folder with ca.crt, port) of a server with the configuration of redis.yaml."""
    [config] = of_kind(BASE / "redis.yaml", "ConfigMap")
    with tempfile.TemporaryDirectory(prefix="vnp-") as name:
        folder, port = Path(name), free_port()
        certificate(folder)
        lines = [f"user vnp-{role} on >PASSWORD {' '.join(rules([role]))}" for role in ROLES]
        (folder / "users.acl").write_text("\n".join(["user default off", *lines]) + "\n")
        text = config["data"]["redis.conf"].replace("tls-port 6380", f"tls-port {port}")
        for path in ("/etc/redis-tls", "/etc/redis-acl"):
            text = text.replace(path, name)
        (folder / "redis.conf").write_text(text + f"dir {name}\nbind 127.0.0.1\n")
        process = subprocess.Popen(
            [find_server(), str(folder / "redis.conf")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        until(lambda: process.poll() is not None or listens(port), "the server to listen")
        if process.poll() is not None:
            said = process.communicate()[0]
            assert "tls-port" in said, said
            pytest.skip(f"{find_server()} is built without TLS")
        yield folder, port
        process.terminate()
        process.communicate(timeout=10)


def listens(port: int) -> bool:
    with closing(socket.socket()) as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def url(server: tuple[Path, int]) -> Callable[[str], str]:
    """url(role) of secrets.example.yaml, but for the server's place."""
    folder, port = server
    secrets = {
        doc["metadata"]["name"]: doc["stringData"]
        for doc in of_kind(BASE / "secrets.example.yaml", "Secret")
    }

    def of(role: str) -> str:
        parts = urlsplit(secrets["vnp-redis-urls"][role])
        there = parts.netloc.rpartition("@")[0] + f"@localhost:{port}"
        query = parts.query.replace("/etc/vnp-tls", str(folder))
        return urlunsplit(parts._replace(netloc=there, query=query))

    return of


def test_a_shard_goes_through_the_pods_hands(url: Callable[[str], str]) -> None:
    planner, packer, gpu, writer = (
        Broker(url(role), "vnp", f"pod-{role}:{role}:0")
        for role in ("planner", "packer", "gpu", "writer")
    )
    planner.ensure_groups()
    planner.establish_incarnation()
    planner.issue(b"task", "job", 0, charge=1)
    [task] = packer.take(TASKS, 1, 50)
    packer.hand_off(TASKS, task.id, [(BATCHES, b"b"), (RESULTS, b"a")], None, "job")
    [batch] = gpu.take(BATCHES, 1, 50)
    gpu.hand_off(BATCHES, batch.id, [(RESULTS, b"r")], None, "job")
    entries = writer.take(RESULTS, 9, 50)
    assert writer.acknowledge(RESULTS, [entry.id for entry in entries]) == 2
    assert planner.stats().max_memory_bytes == 3 << 30
    for broker in (planner, packer, gpu, writer):
        broker.close()


def test_the_scaler_looks_over_tls(server: tuple[Path, int], url: Callable[[str], str]) -> None:
    folder, port = server
    planner = Broker(url("planner"), "vnp", "pod:planner:0")
    planner.ensure_groups()
    planner.close()
    client = redis.Redis(
        host="localhost",
        port=port,
        username="vnp-scaler",
        password="PASSWORD",
        ssl=True,
        ssl_ca_certs=str(folder / "ca.crt"),
    )
    keys = Keys("vnp")
    assert client.info()["maxmemory_policy"] == "noeviction"
    [group] = client.xinfo_groups(keys.stream(BATCHES))
    assert group["name"] == GROUPS[BATCHES].encode()
    assert client.xpending(keys.stream(BATCHES), GROUPS[BATCHES])["pending"] == 0
    client.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("vnp-gpu", "default"), "refuses this user"),
        (("ssl_ca_certs=", "ssl_ca_path="), "does not answer"),
        (("rediss://", "redis://"), "does not answer"),
    ],
    ids=["no user", "no authority", "no TLS"],
)
def test_others_stay_outside(
    url: Callable[[str], str], change: tuple[str, str], words: str
) -> None:
    wrong = url("gpu").replace(*change)
    if wrong.startswith("redis://"):
        wrong = wrong.partition("?")[0]
    broker = Broker(wrong, "vnp", "pod:gpu:0")
    with pytest.raises(UnavailableError, match=words):
        broker.outstanding()
    broker.close()

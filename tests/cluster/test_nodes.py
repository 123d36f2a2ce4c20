"""Three nodes share a Redis over TLS and a folder of jobs; nodes and Redis come and go.

Whatever happens, tables and shards are byte for byte those of one undisturbed node.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import network, secure_redis
from tests.cluster.network import Network
from tests.cluster.secure_redis import SecureRedis
from tests.crash.harness import Service, digests, shards_done, undisturbed_run, until

FIXTURES = Path(__file__).parents[1] / "data" / "fixtures"
GENOMES = ["virus_lambda.fa", "virus_SARS-CoV-2.fa", "virus_influenzaA_PR8.fa", "virus_HIV-1.fa"]
NODES = ("n1", "n2", "n3")
NAMESPACE = "shared"
LEASE_S = 2.0
#: A takeover waits for the lease, and a node that is cut off for its own time-outs.
TAKEOVER_LIMIT_S = 240.0

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(network.why_not()), reason=network.why_not()),
    pytest.mark.skipif(bool(secure_redis.why_not()), reason=secure_redis.why_not()),
]


class Node(Service):
    """`vnpd` with all roles on a host of its own."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        folder = cluster.folder / name
        folder.mkdir()
        self.name, self._inside = name, cluster.network.inside(name)
        super().__init__(
            folder,
            node=name,
            shared_dir=cluster.folder / "shared",
            redis_url=cluster.redis.url("node"),
            namespace=NAMESPACE,
            lease_s=LEASE_S,
            packers=1,
            threads=1,
        )

    def start(self) -> None:
        self.begin()
        until(lambda: bool(self.facts.get("ready")), f"{self.name} to be ready")

    def begin(self) -> None:
        with (self.folder / "service.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self._inside, sys.executable, "-m", "daemon.vnpd"],
                env=self.environment,
                stderr=log,
            )

    def said(self, event: str) -> int:
        """How often an event stands in the node's log."""
        path = self.state / "vnp.log"
        return path.read_text().count(f'"event.name": "{event}"') if path.exists() else 0


class Cluster:
    """The hosts, their Redis and their services."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.network = Network()
        (folder / "redis").mkdir()
        address = self.network.add_host("redis")
        inside = self.network.inside("redis")
        self.redis = SecureRedis(folder / "redis", inside, address, NAMESPACE)
        for name in NODES:
            self.network.add_host(name)
        self.nodes = {name: Node(self, name) for name in NODES}

    def start(self) -> None:
        self.redis.start()
        for node in self.nodes.values():
            node.begin()
        for node in self.nodes.values():
            until(lambda node=node: bool(node.facts.get("ready")), f"{node.name} to be ready")

    def holder(self, role: str) -> Node:
        """The node whose planner or writer works."""
        key = f"{{{NAMESPACE}}}:role:{role}"
        consumer = until(lambda: self.redis.admin().get(key), f"a {role} to work")
        assert isinstance(consumer, bytes)
        return self.nodes[consumer.decode().split(":")[0]]

    def client(self) -> Service:
        """Somebody on a machine that runs no service and cannot reach Redis."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        return Service(folder, shared_dir=self.folder / "shared", namespace=NAMESPACE)

    def close(self) -> None:
        for node in self.nodes.values():
            node.end()
        self.redis.stop()
        self.network.close()


@pytest.fixture(scope="module")
def fasta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("input") / "mixed.fa"
    genomes = "".join((FIXTURES / name).read_text() for name in GENOMES)
    path.write_text(">twice\nACGTACGTAC\n>empty\n>twice\nAC\n" + genomes)
    return path


@pytest.fixture(scope="module")
def undisturbed(fasta: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What one node gives, which nobody disturbs."""
    return digests(undisturbed_run(tmp_path_factory.mktemp("plain"), fasta, "--embeddings"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="vnp-") as folder:
        cluster = Cluster(Path(folder))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.close()


def begin(cluster: Cluster, fasta: Path, name: str) -> tuple[str, Path]:
    """A job of which some shards are committed and some are not."""
    out = cluster.folder / name
    job = cluster.client().submit(fasta, out, "--embeddings")
    until(lambda: shards_done(out) >= 1, "the first shard")
    return job, out


def finish(cluster: Cluster, job: str, out: Path, expected: dict[str, str]) -> None:
    cluster.client().wait(job, TAKEOVER_LIMIT_S)
    assert digests(out) == expected
    checked = cluster.client().vnp("verify", out)
    assert checked.returncode == 0, checked.stderr
    assert cluster.redis.admin().xlen(f"{{{NAMESPACE}}}:results") == 0


def test_three_nodes_give_what_one_gives(
    cluster: Cluster, fasta: Path, undisturbed: dict[str, str]
) -> None:
    job, out = begin(cluster, fasta, "together")
    finish(cluster, job, out, undisturbed)
    # And only one planner and one writer worked
    for role in ("planner", "writer"):
        assert sum(node is cluster.holder(role) for node in cluster.nodes.values()) == 1
    assert sum(node.said("job.planned") for node in cluster.nodes.values()) == 1
    assert sum(node.said("job.finished") for node in cluster.nodes.values()) == 1


def test_killed_node_is_replaced_by_the_others(
    cluster: Cluster, fasta: Path, undisturbed: dict[str, str]
) -> None:
    job, out = begin(cluster, fasta, "killed")
    victim = cluster.holder("writer")
    victim.kill()
    finish(cluster, job, out, undisturbed)
    assert cluster.holder("writer") is not victim
    victim.start()  # and it joins again


def test_node_that_is_cut_off_and_healed(
    cluster: Cluster, fasta: Path, undisturbed: dict[str, str]
) -> None:
    job, out = begin(cluster, fasta, "cut")
    victim = cluster.holder("writer")
    stood_by = victim.said("writer.stands_by")
    cluster.network.cut_off(victim.name)
    try:
        finish(cluster, job, out, undisturbed)
        assert cluster.holder("writer") is not victim
        assert victim.said("writer.stands_by") == stood_by + 1
    finally:
        cluster.network.heal(victim.name)
    # When it is healed it works again: here as the only one with a gpu worker
    for node in cluster.nodes.values():
        if node is not victim:
            node.kill_role("gpu", signal.SIGSTOP)
    try:
        job, out = begin(cluster, fasta, "healed")
        finish(cluster, job, out, undisturbed)
    finally:
        for node in cluster.nodes.values():
            node.kill_role("gpu", signal.SIGCONT)


def test_redis_that_is_cut_off_and_healed(
    cluster: Cluster, fasta: Path, undisturbed: dict[str, str]
) -> None:
    job, out = begin(cluster, fasta, "dark")
    cluster.network.cut_off("redis")
    before = {node.name: node.said("redis.unavailable") for node in cluster.nodes.values()}
    until(
        lambda: all(n.said("redis.unavailable") > before[n.name] for n in cluster.nodes.values()),
        "every node to miss Redis",
    )
    cluster.network.heal("redis")
    finish(cluster, job, out, undisturbed)


def test_redis_that_is_replaced_by_an_empty_one(
    cluster: Cluster, fasta: Path, undisturbed: dict[str, str]
) -> None:
    job, out = begin(cluster, fasta, "fresh")
    cluster.redis.stop()
    cluster.redis.start()
    finish(cluster, job, out, undisturbed)


def test_node_leaves_in_order_and_its_roles_move_at_once(
    cluster: Cluster, fasta: Path, undisturbed: dict[str, str]
) -> None:
    job, out = begin(cluster, fasta, "left")
    leaver = cluster.holder("planner")
    assert leaver.stop() == 0
    finish(cluster, job, out, undisturbed)
    assert cluster.holder("planner") is not leaver
    leaver.start()

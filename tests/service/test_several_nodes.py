"""Nodes that must not work together, each a real vnpd on one Redis: equal names, other models,
another shared folder."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.server import PrivateServer
from daemon import membership
from daemon.config_load import load
from ops.errors import ConfigError
from tests.crash.harness import Service, until

EX_CONFIG = 78
#: A lease that no test waits for: nodes that come back must not wait, others must be refused.
LONG_S = 3_600


class Node(Service):
    """A packer's `vnpd`, which is ready in a moment."""

    def begin(self) -> None:
        with (self.folder / "service.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "daemon.vnpd"], env=self.environment, stderr=log
            )

    @property
    def said(self) -> str:
        return (self.folder / "service.log").read_text()

    def start(self) -> None:
        times = self.said.count('"service.ready"') if self.process else 0
        self.begin()
        until(lambda: self.said.count('"service.ready"') > times, "the node to be ready", 120)

    def refused(self) -> str:
        """The last line of a start that is refused."""
        self.begin()
        assert self.process is not None
        assert self.process.wait(120) == EX_CONFIG, self.said
        line = self.said.splitlines()[-1]
        assert "Traceback" not in self.said
        return line


MakeNode = Callable[..., Node]


@pytest.fixture
def make_node(tmp_path: Path, fresh_server: PrivateServer) -> Iterator[MakeNode]:
    """make_node(folder, setting=...): with a state folder of its own."""
    made: list[Node] = []

    def make(folder: str, **settings: object) -> Node:
        path = tmp_path / folder
        path.mkdir()
        usual: dict[str, object] = {"roles": "packer", "packers": 1, "lease_s": LONG_S}
        made.append(Node(path, **{**usual, "redis_url": fresh_server.url, **settings}))
        return made[-1]

    yield make
    for node in made:
        node.end()


def test_second_node_of_one_name_is_refused(make_node: MakeNode) -> None:
    # Given a node, as it came back after a kill -9
    first = make_node("a", node="same")
    first.start()
    first.kill()
    first.start()
    # When another one of its name starts
    line = make_node("b", node="same").refused()
    # Then it is refused, and told what to do; and the first one works on
    assert "'same'" in line
    assert "set `node` to another name" in line
    assert first.process is not None
    assert first.process.poll() is None
    # And when the first one has ended in order its name is free
    assert first.stop() == 0
    make_node("c", node="same").start()


def test_units_of_one_state_folder_are_one_node(make_node: MakeNode) -> None:
    # Given a unit of a node, and another one with its state folder, as vnp-cpu and vnp-gpu
    first, second = make_node("a", node="same"), make_node("b", node="same", roles="writer")
    second.state = first.state
    second.environment["VNP_STATE_DIR"] = str(first.state)
    first.start()
    second.start()
    # Then either of them may come and go
    assert second.process is not None
    second.process.send_signal(signal.SIGTERM)
    assert second.process.wait(60) == 0
    second.start()


def test_cloned_state_folder_on_another_machine_is_another_node(
    tmp_path: Path, fresh_server: PrivateServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a machine whose node is at work, and one that was cloned from it, state folder and all
    folders, machines = [tmp_path / "a", tmp_path / "b"], [tmp_path / "id-a", tmp_path / "id-b"]
    for folder, machine in zip(folders, machines, strict=True):
        folder.mkdir()
        (folder / "node.id").write_text("0123456789abcdef\n")
        machine.write_text(f"{machine.name}\n")
    claims = []
    for folder, machine in zip(folders, machines, strict=True):
        monkeypatch.setattr(membership, "MACHINE_ID", machine)
        config = load({"state_dir": folder, "node": "same", "lease_s": 1.0})
        claims.append(membership.claims_of(config, fresh_server.url))
    first, second = claims
    first.enter()
    # When the clone starts; Then it is refused
    with pytest.raises(ConfigError, match="set `node` to another name"):
        second.enter()
    first.close()
    second.close()


def test_node_with_other_models_is_refused(make_node: MakeNode) -> None:
    # Given a node; When one comes that would compute something else in its place
    make_node("a", node="a").start()
    line = make_node("b", node="b", max_tokens=4_096).refused()
    # Then it is refused before it can plan or compute anything, and both sides are named
    assert line.count("vnp-small") >= 2
    assert "namespace" in line
    # And one that has the same joins in
    make_node("c", node="c").start()


def test_node_whose_share_is_not_mounted_is_refused(make_node: MakeNode, tmp_path: Path) -> None:
    # Given nodes with a shared folder, and one where nothing is mounted in its place
    shared = tmp_path / "shared"
    first = make_node("a", node="a", roles="writer", shared_dir=shared)
    first.start()
    away = make_node("b", node="b", roles="planner", shared_dir=tmp_path / "mount")
    # When it starts
    line = away.refused()
    # Then it says so, and what to do, and has made no folder in place of the one that is away
    assert f"{tmp_path / 'mount'} is not the folder" in line
    assert "mount it" in line
    assert "{vnp}:share" in line
    assert not (tmp_path / "mount").exists()
    # And once it is mounted it starts
    (tmp_path / "mount").symlink_to(shared)
    away.start()


def test_node_without_the_others_share_is_refused(make_node: MakeNode, tmp_path: Path) -> None:
    # Given a node with a shared folder; When one comes that keeps its jobs to itself
    make_node("a", node="a", roles="writer", shared_dir=tmp_path / "shared").start()
    line = make_node("b", node="b", roles="planner").refused()
    # Then it is refused, for its clients would wait for ever
    assert "shared_dir" in line
    # And one that neither plans nor writes needs no such folder
    make_node("c", node="c", roles="packer", shared_dir=tmp_path / "none").start()
    assert not (tmp_path / "none").exists()


def test_share_is_known_again_after_redis_has_lost_everything(
    make_node: MakeNode, tmp_path: Path, fresh_server: PrivateServer, raw: Any
) -> None:
    # Given a node that runs, and a Redis that has lost its memory
    node = make_node("a", node="a", roles="writer", shared_dir=tmp_path / "shared", lease_s=1)
    node.start()
    known = raw(fresh_server).get("{vnp}:share")
    raw(fresh_server).flushall()
    # Then it is told again, and not by way of a new mark
    until(lambda: raw(fresh_server).get("{vnp}:share") == known, "the mark to be back", 60)
    # And a new folder on purpose is a matter of one key
    assert node.stop() == 0
    shared = tmp_path / "new"
    fresh = make_node("b", node="b", roles="writer", shared_dir=shared)
    assert "is not the folder" in fresh.refused()
    raw(fresh_server).delete("{vnp}:share")
    fresh.start()
    assert raw(fresh_server).get("{vnp}:share") != known

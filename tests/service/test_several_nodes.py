"""Nodes that must not work together, each a real vnpd on one Redis: equal names, other models."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker.server import PrivateServer
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


def test_node_with_other_models_is_refused(make_node: MakeNode) -> None:
    # Given a node; When one comes that would compute something else in its place
    make_node("a", node="a").start()
    line = make_node("b", node="b", max_tokens=4_096).refused()
    # Then it is refused before it can plan or compute anything, and both sides are named
    assert line.count("vnp-small") >= 2
    assert "namespace" in line
    # And one that has the same joins in
    make_node("c", node="c").start()

"""The planner on a real Redis: what it makes of manifests, of its predecessor's books, and of
inputs that it reads for the second time."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.keys import TASKS
from broker.queue import Broker
from broker.role import STAND_BY_S
from broker.server import PrivateServer
from ops.errors import VnpError
from ops.jobs import Outcome
from ops.marks import make_mark
from ops.share import MARK
from tests.redis.nodes import SHARDS, Bench, steps
from workers import job_plan
from workers import planner as planner_module

MakeBroker = Callable[..., Broker]


@pytest.fixture
def bench(tmp_path: Path, redis_server: PrivateServer, namespace: str) -> Iterator[Bench]:
    bench = Bench(tmp_path, redis_server.url, namespace)
    yield bench
    bench.close()


class Requests:
    """Counts what is asked of the shared folder; a file server would be asked as often."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num = 0
        for module, name in ((os, "listdir"), (os, "stat"), (io, "open")):
            monkeypatch.setattr(module, name, self._counted(getattr(module, name)))

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(path: Any, *arguments: Any, **options: Any) -> Any:
            self.num += "mount-" in str(path)
            return call(path, *arguments, **options)

        return counted


def test_jobs_that_wait_cost_no_request_each(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given many jobs that are planned, and no writer
    planner = bench.planner()
    for number in range(30):
        bench.submit(f"job{number}")
    steps(planner, lambda: len(bench.store.running()) == 30)
    # When the planner goes on
    requests = Requests(monkeypatch)
    for _ in range(10):
        planner.step()
    # Then it has listed the folder at most once a step, and looked at its mark (two requests)
    assert 1 <= requests.num <= 10 * 3


def test_idle_planner_looks_now_and_then(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given an idle planner, and no time that would pass between two looks
    assert planner_module.IDLE_LOOK_S + planner_module.PAUSE_S <= 0.2 + 1e-9
    monkeypatch.setattr(planner_module, "IDLE_LOOK_S", 3_600.0)
    monkeypatch.setattr(planner_module, "SLICE_S", 60.0)  # one reading, also on a slow machine
    (bench.folder / "shared" / "jobs").mkdir(parents=True)
    planner = bench.planner()
    requests = Requests(monkeypatch)
    # When it goes on; Then it looks once, and between two looks at the mark alone
    for _ in range(10):
        planner.step()
    assert requests.num == 1 + 10 * 2
    # And with the next look it has a new job
    bench.submit("job1")
    planner.next_look = 0.0
    steps(planner, lambda: bench.store.plan_or_none("job1") is not None, limit=2)


def test_damaged_manifest_fails_its_job_and_no_other(bench: Bench, make_broker: MakeBroker) -> None:
    # Given two jobs under way, and a manifest that is damaged while the planner is away
    first = bench.planner()
    damaged, sound = bench.begun(first, "damaged"), bench.begun(first, "sound")
    steps(first, lambda: bool(first.jobs["damaged"].open and first.jobs["sound"].open))
    bench.commit(damaged, 0, 1)
    path = Path(damaged.out) / "manifest.jsonl"
    data = bytearray(path.read_bytes())
    data[len(data) - 300] ^= 1
    path.write_bytes(bytes(data))
    # When its successor begins
    planner = bench.planner()
    planner.step()
    # Then that job has failed, and the other one goes on
    outcome = bench.store.outcome("damaged")
    assert outcome is not None
    assert "is damaged at byte" in outcome.message
    bench.commit(sound, *range(SHARDS))
    steps(planner, lambda: len(planner.jobs["sound"].committed) == SHARDS)


def test_job_whose_names_fit_in_no_message_fails_alone(bench: Bench) -> None:
    # Given a job of names that no message holds, and another one
    planner = bench.planner()
    text = "".join(f">{number}{'n' * 1_000_000}\nACGT\n" for number in range(70))
    bench.submit_text("huge", text)
    spec = bench.begun(planner, "sound")
    # Then it is refused, and the other one goes on
    outcome = bench.store.outcome("huge")
    assert outcome is not None
    assert (outcome.exit_code, "line 1: a name of" in outcome.message) == (65, True)
    steps(planner, lambda: len(planner.jobs["sound"].open) == SHARDS)
    bench.commit(spec, *range(SHARDS))
    steps(planner, lambda: len(planner.jobs["sound"].committed) == SHARDS)


def test_job_with_a_shard_that_fits_in_no_message_fails_alone(bench: Bench) -> None:
    # Given shards that are larger than a message may be, which no configuration allows
    planner = bench.planner(shard_bases=80 << 20)
    letters = "ACGT" * 100
    bench.submit_text("huge", ">a\n" + "ACGT" * (70 << 18) + "\n")
    steps(planner, lambda: bench.store.plan_or_none("huge") is not None)
    bench.open(bench.store.spec("huge"))
    bench.submit_text("sound", f">b\n{letters}\n")
    steps(planner, lambda: bench.store.plan_or_none("sound") is not None)
    bench.open(bench.store.spec("sound"))
    # When they are issued; Then that job fails, and the other one goes on
    steps(planner, lambda: bench.store.outcome("huge") is not None)
    outcome = bench.store.outcome("huge")
    assert outcome is not None
    assert "shard 0 cannot be sent: message of" in outcome.message
    steps(planner, lambda: bool("sound" in planner.jobs and planner.jobs["sound"].open))


def test_successor_forgets_what_ended_while_nobody_planned(
    bench: Bench, make_broker: MakeBroker
) -> None:
    # Given a job with open shards that ends while no planner works
    first = bench.planner()
    bench.begun(first, "job1")
    steps(first, lambda: len(first.jobs["job1"].open) == SHARDS)
    first.close()
    bench.store.set_outcome("job1", Outcome("failed", 70, "why not"))
    # When another one begins
    planner = bench.planner("b")
    planner.step()
    # Then nothing of it is left in the books, and what is left of it in the streams is dropped
    broker = make_broker()
    assert broker.open_shards() == {}
    assert broker.is_cancelled("job1")


def test_shards_that_a_manifest_does_not_name_any_more_are_issued_again(
    bench: Bench, make_broker: MakeBroker
) -> None:
    # Given a job all of whose shards are issued, and two committed
    planner = bench.planner()
    spec = bench.begun(planner, "job1")
    before = (Path(spec.out) / "manifest.jsonl").read_bytes()
    bench.commit(spec, 0, 1)
    steps(planner, lambda: len(planner.jobs["job1"].open) == SHARDS - 2)
    # When its manifest is replaced by an older one
    (Path(spec.out) / "older").write_bytes(before)
    (Path(spec.out) / "older").replace(Path(spec.out) / "manifest.jsonl")
    # Then what it has lost is issued again
    steps(planner, lambda: len(planner.jobs["job1"].open) == SHARDS)
    assert make_broker().outstanding() == SHARDS


@pytest.mark.parametrize("ends", [False, True])
def test_books_are_closed_though_redis_refuses_it_once(
    tmp_path: Path,
    fresh_server: PrivateServer,
    namespace: str,
    raw: Callable[[PrivateServer], Any],
    ends: bool,
) -> None:
    # Given a job under way, of which some shards, or all that it will ever have, are committed
    bench, client = Bench(tmp_path, fresh_server.url, namespace), raw(fresh_server)
    planner = bench.planner()
    spec = bench.begun(planner, "job1")
    steps(planner, lambda: len(planner.jobs["job1"].open) == SHARDS)
    progress = planner.broker.keys.progress("job1")
    client.hset(progress, "tokens", 1)
    if ends:
        bench.store.set_outcome("job1", Outcome("cancelled", 130, "as a test wants it"))
    bench.commit(spec, 0, 1)
    # When Redis refuses to take them off the books
    client.acl_setuser("default", commands=["-hdel"])
    with pytest.raises(VnpError):
        steps(planner, lambda: False)
    client.acl_setuser("default", commands=["+hdel"])
    # Then that is done with the next step
    planner.step()
    left = {shard for _, shard in planner.broker.open_shards()}
    assert left == (set() if ends else {2, 3})
    assert client.exists(progress) == (not ends)
    bench.close()


def test_no_step_reads_past_all_committed_shards(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planner that is silent for long loses its role, or is replaced, and would begin again."""
    # Given a job whose last shard alone is missing, and reading that takes its time
    planner = bench.planner()
    spec = bench.begun(planner, "job1", 40)
    monkeypatch.setattr(planner_module, "SLICE_S", 0.01)
    bench.commit(spec, *range(39))
    tasks = make_slow(monkeypatch, 0.02)
    # Then the planner makes many steps until it has found it
    most = 0
    while not planner.jobs["job1"].open:
        before = len(tasks)
        planner.step()
        most = max(most, len(tasks) - before)
    assert planner.jobs["job1"].open.keys() == {39}
    assert len(tasks) == 41
    # And reads in each no more than one, which takes as long as a slice, or longer
    assert most == 1


def make_slow(monkeypatch: pytest.MonkeyPatch, pause_s: float) -> list[object]:
    """Every shard takes a while to be read; returns what has been read so far."""
    seen: list[object] = []
    plain = job_plan.cut_in_steps

    def slowly(*words: Any, **options: Any) -> Iterator[object]:
        for task in plain(*words, **options):
            time.sleep(pause_s)
            seen.append(task)
            yield task

    monkeypatch.setattr(job_plan, "cut_in_steps", slowly)
    return seen


def test_nothing_is_lost_that_cannot_be_seen(bench: Bench, make_broker: MakeBroker) -> None:
    # Given shards that are all committed and acknowledged, and a manifest that is away just now
    planner, broker = bench.planner(), make_broker()
    spec = bench.begun(planner, "job1")
    steps(planner, lambda: len(planner.jobs["job1"].open) == SHARDS)
    bench.commit(spec, *range(SHARDS))
    Path(spec.out).rename(bench.folder / "away")
    broker.acknowledge(TASKS, [entry.id for entry in broker.take(TASKS, SHARDS, 50)])
    # Then nothing is computed anew for that
    planner.ask_at = 0.0
    for _ in range(3):
        planner.step()
    assert broker.outstanding() == 0
    # And when it is back, all is known
    (bench.folder / "away").rename(spec.out)
    planner.step()
    assert planner.jobs["job1"].open == {}
    assert len(planner.jobs["job1"].committed) == SHARDS


def test_node_whose_shared_folder_is_away_leaves_the_role_to_others(
    bench: Bench, make_broker: MakeBroker
) -> None:
    # Given a planner at work, and one that stands by
    first, second = bench.planner("a"), bench.planner("b")
    bench.begun(first, "job1")
    steps(first, lambda: len(first.jobs["job1"].open) == SHARDS)
    second.step()
    assert second.jobs == {}
    # When the folder is away on the first one's node alone
    bench.mount("a").unlink()
    first.step()
    first.step()
    # Then the other one has the role at once, and nothing of the job was given up
    second.role.held()
    steps(second, lambda: "job1" in second.jobs and len(second.jobs["job1"].open) == SHARDS)
    assert first.jobs == {}
    broker = make_broker()
    assert broker.role_holder("planner") == "b:planner:0"
    assert not broker.is_cancelled("job1")
    assert broker.outstanding() == SHARDS


def test_node_that_sees_another_folder_leaves_the_role_to_others(
    bench: Bench, make_broker: MakeBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given a planner at work on a marked folder, and one that stands by
    make_mark(bench.folder / "shared" / MARK)
    first, second = bench.planner("a"), bench.planner("b")
    bench.begun(first, "job1")
    steps(first, lambda: len(first.jobs["job1"].open) == SHARDS)
    # When on the first one's node alone the folder is another one, with a mark of its own or none
    other = bench.folder / "other"
    (other / "jobs").mkdir(parents=True)
    bench.mount("a").unlink()
    bench.mount("a").symlink_to(other)
    first.step()
    time.sleep(STAND_BY_S)
    first.step()
    # Then the other one has the role at once, and nothing of the job was given up
    steps(second, lambda: "job1" in second.jobs and len(second.jobs["job1"].open) == SHARDS)
    make_mark(other / MARK)
    time.sleep(STAND_BY_S)
    first.step()
    assert first.jobs == {}
    broker = make_broker()
    assert broker.role_holder("planner") == "b:planner:0"
    assert not broker.is_cancelled("job1")
    assert broker.outstanding() == SHARDS
    # And it was said once
    assert "".join(capsys.readouterr()).count("share.differs") == 1

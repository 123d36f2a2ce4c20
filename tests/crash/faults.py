"""What a campaign does to a running service: each fault is one function, named in FAULTS.

A fault returns what it found, for the table; it leaves the world as it was, but for what the
service itself has to mend.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import psutil
import redis

from broker.keys import GROUPS
from broker.server import PrivateServer
from tests.crash.harness import LEASE_S, Service, until
from tests.redis.proxy import CuttingProxy

ROLES = ("planner", "packer", "gpu", "writer")
#: How long a disk or a memory stays full, a folder away, a proxy silent.
SPELL_S = 3.0
EX_CANTCREAT = 73


@dataclass
class World:
    """The service, its Redis with the proxy before it, and the disk with the job's folder."""

    service: Service
    server: PrivateServer
    proxy: CuttingProxy
    disk: Path  # a small file system, or just a folder where we may not mount one
    control: Path  # what tests/hooks reads
    fasta: Path
    random: Random
    out: Path
    snapshot: Path | None = None

    @contextmanager
    def redis(self) -> Iterator[redis.Redis]:
        client = redis.Redis.from_url(self.server.url, protocol=2, socket_timeout=20)
        try:
            yield client
        finally:
            client.close()


Fault = Callable[[World], None]


# -- processes -------------------------------------------------------------------------------------


def kill_worker(world: World, role: str, sig: signal.Signals) -> None:
    victim = _pick(world, role)
    with suppress(psutil.NoSuchProcess):
        victim.send_signal(sig)


def stop_worker(world: World, role: str) -> None:
    victim = _pick(world, role)
    with suppress(psutil.NoSuchProcess):
        victim.suspend()
        time.sleep(2 * LEASE_S)
        victim.resume()


def _pick(world: World, role: str) -> psutil.Process:
    return world.random.choice(
        until(lambda: world.service.processes(role), f"a process of role {role}")
    )


def end_supervisor(world: World, sig: signal.Signals) -> None:
    """The service goes, and comes again, as systemd has it."""
    process, children = world.service.process, world.service.children()
    assert process is not None
    process.send_signal(sig)
    code = process.wait(30)
    assert code == (0 if sig == signal.SIGTERM else -sig), code
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == [], f"outlived the supervisor: {alive}"
    world.service.start()


def stop_supervisor(world: World) -> None:
    assert world.service.process is not None
    supervisor = psutil.Process(world.service.process.pid)
    supervisor.suspend()
    time.sleep(2 * LEASE_S)
    supervisor.resume()


# -- Redis -----------------------------------------------------------------------------------------


def end_redis(world: World, sig: signal.Signals, with_snapshot: bool = False) -> None:
    """The server goes, and comes again: empty, or as it was a while ago."""
    pid = world.server.pid
    assert pid is not None
    os.kill(pid, sig)
    world.server.stop()
    memory = world.server.directory / "dump.rdb"
    memory.unlink(missing_ok=True)
    if with_snapshot and world.snapshot is not None:
        shutil.copy(world.snapshot, memory)
    time.sleep(world.random.uniform(0, 1))
    world.server.start()


def stop_redis(world: World) -> None:
    pid = world.server.pid
    assert pid is not None
    psutil.Process(pid).suspend()
    time.sleep(2 * LEASE_S)
    psutil.Process(pid).resume()


def take_snapshot(world: World) -> None:
    """Not a fault: what `restore_snapshot` goes back to, later."""
    with world.redis() as client:
        client.save()
    world.snapshot = world.server.directory / "snapshot"
    (world.server.directory / "dump.rdb").replace(world.snapshot)


def restore_snapshot(world: World) -> None:
    end_redis(world, signal.SIGKILL, with_snapshot=True)


def flush(world: World) -> None:
    with world.redis() as client:
        client.flushall()


def evict(world: World) -> None:
    """Somebody deletes one stream, as an eviction policy would."""
    with world.redis() as client:
        client.delete(f"{{vnp}}:{world.random.choice(list(GROUPS))}")


def fill_redis(world: World) -> None:
    """No memory for anything new, for a while."""
    with world.redis() as client:
        used = int(client.info("memory")["used_memory"])  # type: ignore[index]
        client.config_set("maxmemory", max(used // 2, 1))
        time.sleep(SPELL_S)
        client.config_set("maxmemory", 0)


def cut_replies(world: World) -> None:
    world.proxy.cut_replies()


def stall_replies(world: World) -> None:
    world.proxy.stall(SPELL_S)
    time.sleep(SPELL_S)


# -- the disk --------------------------------------------------------------------------------------


def fill_disk(world: World) -> None:
    """Writes the small file system full, to the last byte, for a while."""
    if not world.disk.is_mount():
        raise NotImplementedError("needs root, to mount a small file system")
    filler = world.disk / "filler"
    with filler.open("wb", buffering=0) as stream, suppress(OSError):
        while True:
            stream.write(bytes(1 << 16))
    time.sleep(SPELL_S)
    filler.unlink()


def tell_disk(world: World, words: str) -> None:
    world.control.write_text(words)
    time.sleep(SPELL_S)
    world.control.write_text("")


def move_away(world: World) -> None:
    away = world.out.with_name(world.out.name + ".away")
    world.out.rename(away)
    time.sleep(SPELL_S)
    away.rename(world.out)


# -- rivals ----------------------------------------------------------------------------------------


def second_service(world: World) -> None:
    """On the same state folder: refused."""
    done = subprocess.run(
        [sys.executable, "-m", "daemon.vnpd"],
        env=world.service.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, "another vnpd serves" in done.stderr) == (EX_CANTCREAT, True), done


def second_run(world: World) -> None:
    """Into the same output folder, from elsewhere: refused, unless the first has just ended."""
    command = ["run", world.fasta, "--out", world.out, "--embeddings"]
    own = {"VNP_STATE_DIR": str(world.service.folder / "rival"), "VNP_REDIS_URL": ""}
    done = world.service.vnp(*command, environment=own)
    refused = done.returncode == EX_CANTCREAT and "is in use" in done.stderr
    assert refused or (world.out / "sequences.tsv").exists(), (done.returncode, done.stderr)


def wake_zombie_writer(world: World) -> None:
    """A writer stops for so long that its locks are taken from it (as a network file system does)
    and a successor works; then it wakes, into a world where nothing of it counts."""
    zombie = _pick(world, "writer")
    try:
        environment = zombie.environ()
        zombie.suspend()
    except psutil.Error:
        return
    (Path(world.service.state) / "writer.lock").unlink()
    with suppress(FileNotFoundError):
        (world.out / ".lock").unlink()
    environment["VNP_SLOT"] = "1"
    for descriptor in ("VNP_READY_FD", "VNP_PULSE_FD"):  # the supervisor's, not inherited
        environment.pop(descriptor, None)
    epoch = _epochs(world.out)
    with (world.service.folder / "service.log").open("ab") as log:
        successor = subprocess.Popen(
            [sys.executable, "-m", "workers.writer"], env=environment, stderr=log
        )
    until(lambda: _epochs(world.out) > epoch or not _unfinished(world), "the successor", 30)
    time.sleep(world.random.uniform(0.5, 3))
    with suppress(psutil.NoSuchProcess):
        zombie.resume()
    time.sleep(world.random.uniform(0.5, 2))
    successor.kill()
    successor.wait()


def _epochs(out: Path) -> int:
    with suppress(FileNotFoundError):
        return (out / "manifest.jsonl").read_text().count('"kind":"epoch"')
    return 0


def _unfinished(world: World) -> bool:
    run = json.loads((world.out / "run.json").read_text())
    return bool(run["state"] != "finished")


# -- all of them -----------------------------------------------------------------------------------

KILL, TERM = signal.SIGKILL, signal.SIGTERM
FAULTS: dict[str, Fault] = {
    **{f"{role} SIGKILL": partial(kill_worker, role=role, sig=KILL) for role in ROLES},
    **{f"{role} SIGTERM": partial(kill_worker, role=role, sig=TERM) for role in ROLES},
    **{f"{role} SIGSTOP": partial(stop_worker, role=role) for role in ROLES},
    "supervisor SIGKILL": partial(end_supervisor, sig=KILL),
    "supervisor SIGTERM": partial(end_supervisor, sig=TERM),
    "supervisor SIGSTOP": stop_supervisor,
    "redis SIGKILL, empty again": partial(end_redis, sig=KILL),
    "redis SIGTERM, empty again": partial(end_redis, sig=TERM),
    "redis SIGSTOP": stop_redis,
    "redis FLUSHALL": flush,
    "redis stream evicted": evict,
    "redis old snapshot": restore_snapshot,
    "redis maxmemory": fill_redis,
    "proxy cuts replies": cut_replies,
    "proxy stalls": stall_replies,
    "disk full": fill_disk,
    "disk read-only": partial(tell_disk, words="readonly"),
    "disk slow fsync": partial(tell_disk, words="slow 0.5"),
    "output moved away": move_away,
    "second service": second_service,
    "second run": second_run,
    "zombie writer": wake_zombie_writer,
}
#: What kills a worker, for the recovery time that is promised.
WORKER_DEATHS = tuple(f"{role} {sig}" for role in ROLES for sig in ("SIGKILL", "SIGTERM"))

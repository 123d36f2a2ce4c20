"""`vnpd`: the resident service. Starts the supervisor, says when it is ready, ends in order."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

from broker.acl import ONCE
from broker.claims import Claims
from broker.client import require_redis, without_password
from broker.queue import Broker
from broker.server import PrivateServer
from broker.state import SharedState
from daemon.config import Config
from daemon.health import LATEST_TICK_S, HealthServer, Metrics
from daemon.membership import claims_of, require_share
from daemon.notify import Notifier
from daemon.observer import Observer
from daemon.preemption import Watcher
from daemon.served import describe_service, service_words
from daemon.supervisor import START_LIMIT_S, Supervisor, make_children
from ops.durable import FileLock, describe_os_error, make_dir, write_atomic
from ops.errors import ConfigError, UnavailableError
from ops.jobs import JobStore
from workers.logs import configure_logs, get_log
from workers.loop import StopFlag

TICK_S = 0.05
#: Between two words to clients on other machines (`served.SILENT_S`).
SAY_AGAIN_S = 10.0
#: What is left of a notice for the end itself, after the last commit.
NOTICE_RESERVE_S = 5.0
LEAST_STOP_S = 2.0
#: Settings that a reload may change, and the roles that are replaced for it. The gpu workers keep
#: their models; they take such settings up at their next start.
LIVE_SETTINGS = {
    "log_level",
    "heartbeat_s",
    "window_shards",
    "window_bytes",
    "input_roots",
    "stop_limit_s",
    "stuck_s",
}
LIVE_ROLES = ("planner", "packer", "writer")


class Service:
    """The processes of one state folder; a context manager, so that nothing outlives an error.

    At most one per state folder and role (locks say so). STATE/service.json tells clients where
    Redis is, which identity is served, and whether the models are loaded; where nodes share jobs,
    SHARED/services/NODE.json tells the same to clients on other machines.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.state = Path(config.state_dir)
        config.cards  # noqa: B018 - a missing model is told before anything starts
        make_state_dir(self.state)
        self.words = _words(config)
        self.locks = _lock_roles(config)
        server = None if config.redis_url else PrivateServer(self.state.absolute() / "redis")
        self.redis_url = config.redis_url or (server.url if server else "")
        settings = config.worker_settings(self.redis_url)
        children = make_children(
            config.role_counts, settings.to_environment(), config.devices, config.stuck_limits
        )
        self.supervisor = Supervisor(children, server)
        self.claims = None if server else claims_of(config, self.redis_url)
        self.stop_limit_s = config.stop_limit_s
        self.ready = False
        self.ticked_at = time.monotonic()
        self.say_again_at = 0.0

    def __enter__(self) -> Service:
        try:
            if self.claims is not None:
                self._join(self.claims)
            self._make_folders()
            if self.supervisor.server is not None:
                self.supervisor.server.start()
        except BaseException:
            if self.claims is not None:
                self.claims.close()
            self._unlock()
            raise
        self._publish()
        return self

    def _join(self, claims: Claims) -> None:
        """Works beside others from here on, or raises ConfigError."""
        require_redis(self.redis_url)
        claims.enter(_tell_wait)
        if self.has_jobs:
            require_share(self.config, self.redis_url)

    def _make_folders(self) -> None:
        """After it is known that we may: in place of a folder that is away there must be none."""
        if self.has_jobs:
            make_state_dir(JobStore(self.config.jobs_dir).folder)  # the roles wait for it
        for path in self.words:
            make_state_dir(path.parent)

    @property
    def has_jobs(self) -> bool:
        """True when a process of ours needs the folder of jobs."""
        return bool(self.config.role_counts.keys() & set(ONCE))

    def __exit__(self, *_: object) -> None:
        self.supervisor.stop(self.stop_limit_s)
        if self.claims is not None:
            self._give_back()
            self.claims.close()
        for path in self.words:
            path.unlink(missing_ok=True)
        self._unlock()

    def _give_back(self) -> None:
        """On a Redis that others share: what our processes have left undone, anyone may take now,
        and need not wait for the leases."""
        for child in self.supervisor.children:
            consumer = f"{self.config.node}:{child.role}:{child.slot}"
            broker = Broker(self.redis_url, self.config.namespace, consumer)
            with suppress(UnavailableError):
                broker.give_back_all()
            broker.close()

    def _unlock(self) -> None:
        for lock in self.locks:
            lock.release()

    def tick(self) -> None:
        """Tends the children; publishes readiness when it comes and when it goes."""
        if self.claims is not None:
            self.claims.require()
        self.supervisor.tick()
        self.ticked_at = time.monotonic()
        changed = self.supervisor.ready != self.ready
        self.ready = self.supervisor.ready
        if changed or self.ticked_at > self.say_again_at:
            self._publish()
        if changed and self.ready:
            get_log("supervisor").info("service.ready", message="every role takes work")

    def _publish(self) -> None:
        """Again and again, because clients on other machines can only tell by its age."""
        self.say_again_at = time.monotonic() + SAY_AGAIN_S
        url = without_password(self.redis_url)  # any user may read this file
        words = json.dumps(describe_service(self.config, url, self.ready)).encode() + b"\n"
        for path in self.words:
            with suppress(OSError):  # a full disk; said again soon
                write_atomic(path, words)

    @property
    def writes(self) -> bool:
        """True when the writer that works, and does not stand by, is a process of ours."""
        state = SharedState(self.redis_url, self.config.namespace, "service")
        try:
            holder = state.role_holder("writer") or ""
        except UnavailableError:
            holder = ""
        finally:
            state.close()
        return holder.startswith(f"{self.config.node}:")

    def reload(self, fresh: Config) -> None:
        """Takes up what can be changed while it runs; raises ConfigError for anything else."""
        changed = {
            name
            for name in Config.model_fields
            if getattr(fresh, name) != getattr(self.config, name)
        }
        if fixed := sorted(changed - LIVE_SETTINGS):
            raise ConfigError(f"{', '.join(fixed)} cannot be changed by a reload; restart vnpd")
        self.config, self.stop_limit_s = fresh, fresh.stop_limit_s
        for child in self.supervisor.children:
            child.stuck_s = fresh.stuck_limits[child.role]
        if changed:
            environment = fresh.worker_settings(self.redis_url).to_environment()
            self.supervisor.renew(environment, LIVE_ROLES)

    def why_not_alive(self) -> str:
        """What is wrong, or nothing."""
        age_s = time.monotonic() - self.ticked_at
        if age_s > LATEST_TICK_S:
            return f"the supervisor has not moved for {age_s:.0f} s"
        return "" if self.supervisor.moves else "a process is stuck and cannot be replaced"

    def why_not_ready(self) -> str:
        waits = [child.name for child in self.supervisor.children if not child.ready]
        return f"not ready: {', '.join(waits)}" if waits else self.why_not_alive()


def _words(config: Config) -> list[Path]:
    """The files that speak for this service; of several on one state folder the planner's does."""
    if "planner" not in config.role_counts:
        return []
    words = [config.state_dir / "service.json"]
    if config.shared_dir is not None:
        words.append(service_words(config.shared_dir) / f"{config.node}.json")
    return words


def _lock_roles(config: Config) -> list[FileLock]:
    """One lock per role, so that units of different roles may share a state folder."""
    locks: list[FileLock] = []
    try:
        for role in config.role_counts:
            busy = f"another vnpd serves {config.state_dir} as {role}; stop it first"
            locks.append(FileLock(config.state_dir / f"service-{role}.lock", busy))
    except BaseException:
        for lock in locks:
            lock.release()
        raise
    return locks


def _tell_wait(line: str) -> None:
    get_log("supervisor").info("service.waits", message=line)


def make_state_dir(path: Path) -> None:
    try:
        make_dir(path)
    except OSError as error:
        raise describe_os_error(error, path) from error


class _Flag:
    """Raised by a signal."""

    def __init__(self, signum: int) -> None:
        self.raised = False
        signal.signal(signum, self._raise)

    def _raise(self, signum: int, frame: FrameType | None) -> None:
        self.raised = True


def serve(config: Config, read_config: Callable[[], Config]) -> int:
    """Runs until SIGTERM, SIGINT or a preemption notice; returns the exit code.

    read_config: reads the configuration again, for SIGHUP.
    """
    notifier = Notifier()  # first, so that no child inherits its variables
    make_state_dir(config.state_dir)
    log_file = str(config.log_path) if config.log_path else None
    configure_logs("supervisor", level=config.log_level, log_file=log_file)
    stop, hang_up = StopFlag(), _Flag(signal.SIGHUP)
    watcher = Watcher(
        config.preemption,
        config.preemption_url,
        config.preemption_file,
        config.preemption_command,
    )
    with Service(config) as service:
        front = _Front(service, notifier)
        try:
            hinted = False
            while not stop.raised and watcher.preempted is None:
                service.tick()
                front.tell()
                if hang_up.raised:
                    hang_up.raised = False
                    _reload(service, notifier, read_config)
                if watcher.hinted and not hinted:
                    service.supervisor.signal_role("gpu", signal.SIGUSR1)
                hinted = watcher.hinted
                time.sleep(TICK_S)
        finally:
            front.close()
            watcher.close()
        _begin_stop(service, notifier, watcher, stop)
    watcher.drained()
    get_log("supervisor").info("service.stopped", message="everything that counts is on disk")
    notifier.close()
    return 0


def _begin_stop(service: Service, notifier: Notifier, watcher: Watcher, stop: StopFlag) -> None:
    """Says why and for how long; the stop itself is the service's exit."""
    notice = watcher.preempted
    if notice is not None:
        left_s = max(LEAST_STOP_S, notice.budget_s - NOTICE_RESERVE_S)
        service.stop_limit_s = min(service.stop_limit_s, left_s)
    source = notice.source if notice else signal.Signals(stop.signal).name
    limit_s = service.stop_limit_s
    notifier.send(
        "STOPPING=1",
        f"STATUS=stopping ({source}), at most {limit_s:.0f} s",
        f"EXTEND_TIMEOUT_USEC={int((limit_s + NOTICE_RESERVE_S) * 1e6)}",
    )
    log = get_log("supervisor")
    log.info("service.stopping", message=f"{source}; at most {limit_s:.0f} s", source=source)
    if service.writes:
        _note_preempted(JobStore(service.config.jobs_dir), source)


def _note_preempted(store: JobStore, source: str) -> None:
    """Said by the service whose writer works: elsewhere others go on with the job."""
    for job in store.running():
        message = "stops here; what is committed stays, and it goes on at the next start"
        get_log("supervisor").warning(
            "job.preempted", message=message, source=source, **{"job.id": job}
        )
        with suppress(OSError):  # a full disk must not keep the machine from going
            store.note_preempted(job)


def _reload(service: Service, notifier: Notifier, read_config: Callable[[], Config]) -> None:
    """A configuration that cannot be taken up changes nothing."""
    usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000
    notifier.send("RELOADING=1", f"MONOTONIC_USEC={usec}")
    log = get_log("supervisor")
    try:
        service.reload(read_config())
        log.info("config.reloaded", message="the configuration was read again")
    except ConfigError as error:
        log.error("config.refused", message=f"nothing has changed: {error}")
    notifier.send("READY=1")


class _Front:
    """What the service shows of itself: to systemd, and on its health address."""

    def __init__(self, service: Service, notifier: Notifier) -> None:
        self._service, self._notifier = service, notifier
        self._observer = Observer(service.redis_url, service.config.namespace)
        self._started_at = time.monotonic()
        self._told_ready = False
        self._health: HealthServer | None = None
        if service.config.listen:
            metrics = Metrics(lambda: self._observer.latest, service)
            self._health = HealthServer(
                service.config.listen, service.why_not_alive, service.why_not_ready, metrics
            )

    def tell(self) -> None:
        """Called at every tick."""
        service, notifier = self._service, self._notifier
        if service.ready and not self._told_ready:
            self._told_ready = True
            notifier.send("READY=1")
        if not self._told_ready:
            notifier.status(service.why_not_ready())
            if time.monotonic() - self._started_at < START_LIMIT_S:
                notifier.extend()
        else:
            notifier.status(self._observer.latest.in_words)
        if service.supervisor.moves:
            notifier.ping()

    def close(self) -> None:
        self._observer.close()
        if self._health is not None:
            self._health.close()

"""The two kinds of Redis client, with their time-outs and retries set on purpose.

A *reader* delivers entries (XREADGROUP, claims). It never retries: a delivery whose reply is lost
must not be asked for again blindly, the retry would bring the next entry. Its socket time-out is
longer than its longest BLOCK, and finite: a half-open connection would hang for ever.

A *command* client retries, because everything that it sends is idempotent: reads, deletions,
settings, and scripts whose acknowledgement (or nonce) makes a second run do nothing. What is not
idempotent does not exist outside of such a script; MULTI is never used (on a full Redis 7.0 it
refuses even what would free memory).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, Literal, ParamSpec, Protocol, TypeVar

import redis
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError
from redis.retry import Retry

from ops.errors import ConfigError, FullError, UnavailableError

#: Longest BLOCK that a reader may ask for.
MAX_BLOCK_MS = 5_000
READER_TIMEOUT_S = 2 * MAX_BLOCK_MS / 1_000
COMMAND_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 5.0
COMMAND_RETRIES = 3
#: Results with embeddings have megabytes.
READ_BYTES = 1 << 20

Role = Literal["reader", "command"]


def connect(url: str, role: Role) -> redis.Redis:
    """A client of the given kind; contacts nobody yet. Raises ConfigError for a malformed URL."""
    timeout = READER_TIMEOUT_S if role == "reader" else COMMAND_TIMEOUT_S
    retry = Retry(NoBackoff(), 0)
    if role == "command":
        retry = Retry(ExponentialWithJitterBackoff(base=0.01, cap=0.5), COMMAND_RETRIES)
    try:
        return redis.Redis.from_url(
            url,
            protocol=2,  # pinned: shapes of results differ between protocols
            decode_responses=False,
            driver_info=None,  # no CLIENT SETINFO: Redis 7.0 knows no such rule for its users
            socket_timeout=timeout,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            socket_read_size=READ_BYTES,
            retry=retry,
        )
    except ValueError as error:
        raise ConfigError(
            f"redis_url {without_password(url)!r} must be unix:///PATH, redis://HOST:PORT "
            f"or rediss://HOST:PORT"
        ) from error


def require_redis(url: str) -> None:
    """Raises UnavailableError when nothing answers there; later a Redis may come and go."""
    client = connect(url, "command")
    try:
        client.ping()
    except (RedisError, OSError) as error:
        raise UnavailableError(describe(error, url)) from error
    finally:
        client.close()


def without_password(url: str) -> str:
    """The URL as it may stand in a log."""
    scheme, separator, rest = url.partition("?")[0].partition("://")
    authority, slash, path = rest.partition("/")
    user, at, host = authority.rpartition("@")
    return f"{scheme}{separator}{user.partition(':')[0]}{at}{host}{slash}{path}"


def describe(error: Exception, url: str) -> str:
    """One line: what is wrong with Redis and what to do."""
    where = f"Redis at {without_password(url)}"
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, AuthenticationError | NoPermissionError) or "NOPERM" in text:
        return f"{where} refuses this user ({text}); check user and password in redis_url"
    if is_full(error):
        return f"{where} is full; raise its maxmemory or lower window_bytes"
    if isinstance(error, redis.ConnectionError | redis.TimeoutError | OSError):
        return f"{where} does not answer ({text}); is it running?"
    return f"{where} refused a command ({text})"


def is_full(error: Exception) -> bool:
    """True when Redis refused a command for want of memory."""
    return "used memory > 'maxmemory'" in str(error)


def lost_group(error: redis.ResponseError) -> bool:
    """True when Redis does not know the group: it was flushed, or started empty."""
    return "NOGROUP" in str(error)


class _HasUrl(Protocol):
    url: str

    def on_unavailable(self) -> None: ...


S = TypeVar("S", bound=_HasUrl)
P = ParamSpec("P")
R = TypeVar("R")


def translated(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """The border: Redis' exceptions leave the decorated method as UnavailableError only."""

    @wraps(method)
    def wrapper(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(self, *args, **kwargs)
        except (RedisError, OSError) as error:
            self.on_unavailable()
            kind = FullError if is_full(error) else UnavailableError
            raise kind(describe(error, self.url)) from error

    return wrapper

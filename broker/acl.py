"""Redis users, one per role, each with no more than the role needs.

    python -m broker.acl NAMESPACE            a line per role for the server's aclfile
    python -m broker.acl NAMESPACE ROLE,ROLE  one line, for a node with these roles

The passwords have to be set.

Nobody needs CONFIG, DEBUG, FLUSHALL or another namespace. A user of vnp (role "client") reads the
progress of jobs, and neither sequences nor results. What scales workers by the length of their
queue (role "scaler": KEDA) sees counts and no entry. A process with several roles needs a user with
all their rules.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from broker.keys import BATCHES, RESULTS, TASKS, Keys
from ops.errors import UsageError

#: Streams that a role reads or writes. Whoever takes makes lost groups again, of all streams.
STREAMS = (TASKS, BATCHES, RESULTS)
ROLES = ("planner", "packer", "gpu", "writer", "client", "scaler")
#: Roles that one process of all nodes fills at a time.
ONCE = ("planner", "writer")
#: Of every process that works: groups, leases, hand-offs, and looking at the queue.
_GROUPS = ("xgroup|create", "xgroup|delconsumer", "xinfo|groups", "xinfo|consumers", "xlen")
_TAKE = ("xreadgroup", "xack", "xdel", "xclaim", "xpending")
_BOOKS = (
    "get",
    "set",
    "del",
    "pttl",
    "exists",
    "incr",
    "hget",
    "hset",
    "hdel",
    "hgetall",
    "hincrby",
)
_SCRIPTS = ("eval", "evalsha", "script|load")
#: Not CLIENT SETINFO, which clients send and do without: Redis 7.0 does not know it, and refuses a
#: rule that names it, and with it the whole aclfile.
_CONNECTION = ("ping", "time", "select", "client|setname")
_COMMANDS = {
    "planner": (*_CONNECTION, *_GROUPS, "xadd", "info", *_BOOKS, *_SCRIPTS),
    "packer": (*_CONNECTION, *_GROUPS, *_TAKE, "xadd", *_BOOKS, *_SCRIPTS),
    "gpu": (*_CONNECTION, *_GROUPS, *_TAKE, "xadd", *_BOOKS, *_SCRIPTS),
    "writer": (*_CONNECTION, *_GROUPS, *_TAKE, *_BOOKS, *_SCRIPTS),
    "client": (*_CONNECTION, "hgetall"),
    # What KEDA's redis-streams scaler sends: INFO for the server's version, XINFO GROUPS for the
    # lag, XPENDING for what is in hand, XLEN where there is no group yet. XPENDING names ids and
    # consumers, no payload.
    "scaler": ("ping", "select", "info", "xinfo|groups", "xpending", "xlen"),
}


def _patterns(role: str, keys: Keys) -> set[str]:
    """The keys that a role may name."""
    if role == "client":
        return {keys.progress("*"), keys.workers}
    if role == "scaler":
        return {keys.stream(TASKS), keys.stream(BATCHES)}
    streams = {keys.stream(name) for name in STREAMS}
    books = {keys.open, keys.incarnation, keys.activity, keys.workers}
    books |= {keys.node("*"), keys.models}
    leases = {keys.role(role), keys.share} if role in ONCE else set()
    return streams | books | leases | {keys.dropped("*"), keys.progress("*")}


def rules(roles: Iterable[str], namespace: str = "vnp") -> list[str]:
    """ACL rules, as ACL SETUSER takes them, of one user with these roles."""
    roles = list(roles)
    keys = Keys(namespace)
    patterns = {pattern for role in roles for pattern in _patterns(role, keys)}
    commands = {command for role in roles for command in _COMMANDS[role]}
    return [
        *("resetkeys", "resetchannels", "-@all"),
        *(f"~{pattern}" for pattern in sorted(patterns)),
        *(f"+{command}" for command in sorted(commands)),
    ]


def main() -> None:
    namespace, *named = sys.argv[1:] or ["vnp"]
    users = {"node": named[0].split(",")} if named else {role: [role] for role in ROLES}
    if odd := sorted({role for roles in users.values() for role in roles} - set(ROLES)):
        print(f"broker.acl: no role {', '.join(odd)}; choose {', '.join(ROLES)}", file=sys.stderr)
        sys.exit(UsageError.exit_code)
    for user, roles in users.items():
        print(f"user {namespace}-{user} on >PASSWORD {' '.join(rules(roles, namespace))}")


if __name__ == "__main__":
    main()

"""Redis users, one per role, each with no more than the role needs.

    python -m broker.acl NAMESPACE      lines for the server's aclfile; set the passwords

Nobody needs CONFIG, DEBUG, FLUSHALL or another namespace. A user of vnp (role "client") reads the
progress of jobs, and neither sequences nor results. A process with several roles needs a user with
all their rules.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from broker.keys import BATCHES, RESULTS, TASKS, Keys

#: Streams that a role reads or writes. Whoever takes makes lost groups again, of all streams.
STREAMS = (TASKS, BATCHES, RESULTS)
ROLES = ("planner", "packer", "gpu", "writer", "client")
#: Roles that one process of all nodes fills at a time.
ONCE = ("planner", "writer")
#: Of every process that works: groups, leases, hand-offs, and looking at the queue.
_GROUPS = ("xgroup|create", "xgroup|delconsumer", "xinfo|groups", "xinfo|consumers", "xlen")
_TAKE = ("xreadgroup", "xack", "xdel", "xclaim", "xpending")
_BOOKS = ("get", "set", "del", "exists", "incr", "hget", "hset", "hdel", "hgetall", "hincrby")
_SCRIPTS = ("eval", "evalsha", "script|load")
_CONNECTION = ("ping", "time", "select", "client|setname")
_COMMANDS = {
    "planner": (*_GROUPS, "xadd", "info", *_BOOKS, *_SCRIPTS),
    "packer": (*_GROUPS, *_TAKE, "xadd", *_BOOKS, *_SCRIPTS),
    "gpu": (*_GROUPS, *_TAKE, "xadd", *_BOOKS, *_SCRIPTS),
    "writer": (*_GROUPS, *_TAKE, *_BOOKS, *_SCRIPTS),
    "client": ("hgetall",),
}


def rules(roles: Iterable[str], namespace: str = "vnp") -> list[str]:
    """ACL rules, as ACL SETUSER takes them, of one user with these roles."""
    roles = list(roles)
    keys = Keys(namespace)
    patterns = {keys.progress("*"), keys.workers}
    patterns |= {keys.role(role) for role in roles if role in ONCE}
    if roles != ["client"]:
        patterns |= {keys.stream(name) for name in STREAMS}
        patterns |= {keys.open, keys.incarnation, keys.activity, keys.dropped("*")}
    commands = {command for role in roles for command in _COMMANDS[role]} | set(_CONNECTION)
    return [
        *("resetkeys", "resetchannels", "-@all"),
        *(f"~{pattern}" for pattern in sorted(patterns)),
        *(f"+{command}" for command in sorted(commands)),
    ]


def main() -> None:
    namespace = sys.argv[1] if len(sys.argv) > 1 else "vnp"
    for role in ROLES:
        print(f"user {namespace}-{role} on >PASSWORD {' '.join(rules([role], namespace))}")


if __name__ == "__main__":
    main()

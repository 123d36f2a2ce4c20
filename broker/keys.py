"""Every Redis key that vnp uses. All of one namespace share a hash tag, so that a script may name
several of them on a cluster too.

| key                    | type   | what                                                         |
| ---------------------- | ------ | ------------------------------------------------------------ |
| {ns}:tasks             | stream | shard tasks, group packers; entries have one field, m        |
| {ns}:batches           | stream | packed batches, group gpus                                   |
| {ns}:results           | stream | accounts and results, group writers                          |
| {ns}:open              | hash   | "JOB/SHARD" -> "CHARGE NONCE" of issued, uncommitted shards  |
| {ns}:incarnation       | string | mark of the last issue: tells lost or older memory of Redis   |
| {ns}:activity          | string | counter of acknowledgements: somebody is getting on          |
| {ns}:workers           | hash   | consumer -> "SECONDS JSON": when it said what of itself      |
| {ns}:role:ROLE         | string | consumer that fills a role which must be filled once         |
| {ns}:node:NAME         | string | "WHO HOST": which installation has a node's name              |
| {ns}:models            | string | "DIGEST WORDS": what all nodes compute with                  |
| {ns}:share             | string | mark of the folder of jobs that the nodes share              |
| {ns}:dropped:JOB       | string | exists: what is left of the job is not worth doing           |
| {ns}:progress:JOB      | hash   | counters for the display, nothing rests on them              |

Entries are acknowledged and deleted together, so a stream's length is the outstanding work. Nothing
is trimmed by length, and groups start at 0: both would lose entries silently.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ops.errors import ConfigError

TASKS, BATCHES, RESULTS = "tasks", "batches", "results"
#: The consumer group of each stream.
GROUPS = {TASKS: "packers", BATCHES: "gpus", RESULTS: "writers"}
#: The only field of an entry.
FIELD = b"m"
#: Owner of entries that were given back: nobody works on them, anyone may claim them at once.
NOBODY = "nobody"

_NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")


@dataclass(frozen=True)
class Keys:
    """The keys of one namespace. Raises ConfigError for a namespace that cannot be a hash tag."""

    namespace: str

    def __post_init__(self) -> None:
        if not _NAMESPACE.fullmatch(self.namespace):
            raise ConfigError(
                f"Redis namespace {self.namespace!r} must be 1 to 64 letters, digits or _ . @ -"
            )

    def _key(self, *parts: str) -> str:
        return ":".join((f"{{{self.namespace}}}", *parts))

    def stream(self, name: str) -> str:
        assert name in GROUPS, name
        return self._key(name)

    @property
    def open(self) -> str:
        return self._key("open")

    @property
    def incarnation(self) -> str:
        return self._key("incarnation")

    @property
    def activity(self) -> str:
        return self._key("activity")

    @property
    def workers(self) -> str:
        return self._key("workers")

    def role(self, role: str) -> str:
        return self._key("role", role)

    def node(self, name: str) -> str:
        return self._key("node", name)

    @property
    def models(self) -> str:
        return self._key("models")

    @property
    def share(self) -> str:
        return self._key("share")

    def dropped(self, job: str) -> str:
        return self._key("dropped", job)

    def progress(self, job: str) -> str:
        return self._key("progress", job)

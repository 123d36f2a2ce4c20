"""How jobs have ended, said in their files as soon as the disk takes it."""

from __future__ import annotations

import time

from ops.jobs import FINISHED, JobStore, Outcome
from ops.nouns import Status
from ops.runfile import exit_code
from ops.tables import Counts
from workers.logs import get_log

#: After something that the file system did not take (a full disk, say) and before the next try.
RETRY_S = 2.0


class Outcomes:
    """Ends of jobs; what is not said yet is lost with the process, and found out again."""

    def __init__(self, store: JobStore) -> None:
        self.unsaid: dict[str, Outcome] = {}
        self._store = store
        self._log = get_log("writer")
        self._retry_at = 0.0

    def say(self, job: str, outcome: Outcome) -> None:
        self.unsaid[job] = outcome
        self._write(job)

    def say_again(self) -> None:
        """What could not be said before."""
        if self.unsaid and time.monotonic() >= self._retry_at:
            for job in list(self.unsaid):
                self._write(job)

    def _write(self, job: str) -> None:
        try:
            is_ours = self._store.set_outcome(job, self.unsaid[job])
        except OSError as error:
            self._retry_at = time.monotonic() + RETRY_S
            message = f"its end cannot be written; it is tried again ({error})"
            self._log.error("job.waiting", message=message, **{"job.id": job})
            return
        outcome = self.unsaid.pop(job)
        # Otherwise it had ended before: it was cancelled, say, or this is a second try, after the
        # disk took the file and refused the rest.
        if is_ours or self._store.outcome(job) == outcome:
            event = self._log.info if outcome.exit_code == 0 else self._log.error
            event(f"job.{outcome.state}", message=outcome.message, **{"job.id": job})


def outcome_of(counts: Counts) -> Outcome:
    """How a job ends that holds this."""
    message = f"{counts.records} records, {counts.viruses} called virus"
    code = exit_code(vars(counts))
    if code:
        failed = counts.statuses[Status.FAILED.label]
        message += f"; {failed} failed, see their note in sequences.tsv"
    return Outcome(FINISHED, code, message)

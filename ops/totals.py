"""The totals of a finished job: do they add up, and what had a reader better know of them?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ops.errors import AccountingError
from ops.jobs import Plan
from ops.nouns import Status
from ops.tables import SHORT, Counts


def check_totals(counts: Counts, plan: Plan, pipeline: str) -> None:
    """What the first reading has counted must all be in the tables, with a status and a call or
    none. Raises AccountingError, which names every sum that is wrong."""
    sums: dict[str, tuple[int, int]] = {
        "records of the input and of the tables": (plan.records, counts.records),
        "letters of the input and of the tables": (plan.letters, counts.letters),
        "records and their statuses": (counts.records, sum(counts.statuses.values())),
    }
    if pipeline == "virus":
        called = counts.viruses + counts.others + counts.without_call
        sums |= {
            "chunks of the input and of the tables": (plan.chunks, counts.chunks),
            "chunks and their statuses": (counts.chunks, sum(counts.chunk_statuses.values())),
            "records and their calls": (counts.records, called),
            "scored chunks and those with status ok": (
                counts.chunks_scored,
                counts.chunk_statuses.get(Status.OK.label, 0),
            ),
        }
    wrong = [f"{what}: {a:,} and {b:,}" for what, (a, b) in sums.items() if a != b]
    if wrong:
        raise AccountingError(
            f"the totals do not add up ({'; '.join(wrong)}): this is a bug in vnp, please report "
            "it; the shards are sound, the tables are not to be trusted"
        )


def remarks(counts: Mapping[str, Any], pipeline: str) -> list[str]:
    """What a reader of the results should know, one sentence each; none: an empty list."""
    found = []
    if short := counts["scored_below_300"]:
        called = counts["viruses"] + counts["others"]
        found.append(
            f"{short:,} of {called:,} scored records {_are(short)} shorter than {SHORT} bases: "
            "published classifiers are near chance there"
        )
    if saved := counts["frames"] - counts["frames_computed"]:
        noun = "frames" if pipeline == "virus" else "sequences"
        found.append(
            f"{saved:,} of {counts['frames']:,} {noun} {_are(saved, 'was', 'were')} identical to "
            "an earlier one of their shard and computed once"
        )
    return found


def _are(count: int, one: str = "is", many: str = "are") -> str:
    return one if count == 1 else many

"""Costs of each step in operations on a metadata server.

Counted, not estimated: ``tests/budget/test_metadata_operations.py`` counts them in the real code, and fails at any
difference. The kinds are those of :mod:`benchmarks.trace`.
"""

from __future__ import annotations

from collections.abc import Mapping

Costs = Mapping[str, int]
"""Operations by kind."""

SUBMIT: Costs = {"create": 1, "rename": 1}
"""Submission of a task."""

CLAIM: Costs = {"open": 1, "rename": 1}
"""Claim of a listed task: open, lock and rename."""

PUBLISH: Costs = {"create": 1, "rename": 1}
"""Outcome and commit."""

COLLECT: Costs = {"open": 1, "unlink": 2}
"""Read of an outcome, and removal of both files."""

TASK = (SUBMIT, CLAIM, PUBLISH, COLLECT)
"""All steps of a plain task, without the listings of worker and submitter."""

LOOK: Costs = {"list": 3}
"""Scan of a group for tasks: the lanes, the buckets of the served lane, the names in one bucket."""

BUCKET: Costs = {"list": 1}
"""Each further bucket of these lanes in a scan without tasks; there is one for each active submitter."""

AGAIN: Costs = {"list": 1}
"""Less than a second after a scan: the bucket of the last task, which is part of a following scan."""

WANTED: Costs = {"list": 1}
"""Check of a group for a stop request: at each scan while it is idle, at most twice a second."""

MARKS: Costs = {"list": 1}
"""Listing of cancel requests by a group: at most once a second, and every few seconds while a call runs."""

POLL: Costs = {"list": 1}
"""Poll of a submitter for outcomes."""

PRESENCE: Costs = {"open": 1, "list": 1}
"""Check of a group, once a lease, that its spool is there with all its directories."""

CHECK: Costs = {"open": 4, "list": 2, "directory": 4}
"""Check of a submitter, five seconds after the last outcome and every five seconds: its spool and its directories are
there, no task was set aside, and a group that serves its tasks is alive."""

BEAT: Costs = {"set": 1}
"""Heartbeat of a group."""

CLAIMS_AND_GROUPS: Costs = {"list": 3}
"""Round of recovery, also by a waiting submitter: the claims, the groups and the open packs."""

HELD: Costs = {"list": 1}
"""Listing of delayed tasks by a group: in each round, four times a lease."""

SELF_CHECK: Costs = {"list": 1}
"""Check for its own claims, at the end of the round of an idle group."""

WATCHED: Costs = {"open": 1}
"""Read of the heartbeat of each watched group in a round."""

MET: Costs = {"open": 1}
"""Read of the entry of a group, when it is watched for the first time."""


def operations(*steps: Costs) -> int:
    """Return the number of all operations of these steps."""
    return sum(sum(step.values()) for step in steps)

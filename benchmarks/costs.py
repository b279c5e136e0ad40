"""What each step costs in operations that a metadata server sees.

Counted, not estimated: ``tests/budget/test_metadata_operations.py`` counts them on the real thing, and fails where one
is more or less. The kinds are those of :mod:`benchmarks.trace`.
"""

from __future__ import annotations

from collections.abc import Mapping

Costs = Mapping[str, int]
"""Operations by kind."""

SUBMIT: Costs = {"create": 1, "rename": 1}
"""One task put into the spool."""

CLAIM: Costs = {"open": 1, "rename": 1}
"""A name that was listed: opened, locked, and renamed."""

PUBLISH: Costs = {"create": 1, "rename": 1}
"""The outcome, and the commit."""

COLLECT: Costs = {"open": 1, "unlink": 2}
"""The outcome read, and both files removed."""

TASK = (SUBMIT, CLAIM, PUBLISH, COLLECT)
"""The way of a plain task, without the looks by which the two sides find each other."""

LOOK: Costs = {"list": 3}
"""A group looks for tasks: the lanes, the buckets of the one that it serves, the names in one bucket."""

BUCKET: Costs = {"list": 1}
"""Of a look that finds nothing, each further bucket of those lanes; it has one for each submitter that is at work."""

AGAIN: Costs = {"list": 1}
"""Less than a second after a look: the bucket that gave the last task, which is part of a look that follows."""

WANTED: Costs = {"list": 1}
"""A group looks whether it is to end: at each look while it is idle, and twice a second at most."""

MARKS: Costs = {"list": 1}
"""A group looks which tasks are to be cancelled: once a second at most, and every few seconds while a call runs."""

POLL: Costs = {"list": 1}
"""A submitter looks for outcomes."""

BEAT: Costs = {"set": 1}
"""A group's sign of life."""

CLAIMS_AND_GROUPS: Costs = {"list": 2}
"""A round, also a submitter's that waits: who claims what, and who is there."""

HELD: Costs = {"list": 1}
"""A group looks for what is held back: four times a lease, as it goes round."""

SELF_CHECK: Costs = {"list": 1}
"""An idle group's round ends with a look for claims of its own."""

WATCHED: Costs = {"open": 1}
"""Of a round, the sign of life of each group that is watched."""

MET: Costs = {"open": 1}
"""Who a group is, when it is watched for the first time."""


def operations(*steps: Costs) -> int:
    """All operations of these steps together."""
    return sum(sum(step.values()) for step in steps)

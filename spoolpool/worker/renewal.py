"""Rule when a group is replaced because of what its tasks have left."""

from __future__ import annotations

import time

from spoolpool.calls.leftovers import Severity

_FIRST_PAUSE, _LAST_PAUSE = 10.0, 600.0  # seconds of a group after a renewal, doubled with each one in a row


def pause(renewals: int) -> float:
    """Return the seconds for which a group stays, after so many renewals in a row."""
    return 0.0 if renewals <= 0 else min(_FIRST_PAUSE * 2.0 ** min(renewals - 1, 10), _LAST_PAUSE)


class Renewal:
    """Decision whether a group is to be replaced.

    A start takes longer than many tasks. So the first replacement comes at once, and each further one after a longer
    pause, unless the next task would fail. A group that nothing replaces ends only in that case.
    """

    def __init__(self, renewals: int, *, replaced: bool) -> None:
        self._due = time.monotonic() + pause(renewals)
        self._replaced = replaced

    def is_due(self, severity: Severity) -> bool:
        """Return whether a group in which this is left is to be replaced now."""
        if severity is not Severity.LEFTOVER:
            return severity is Severity.URGENT
        return self._replaced and time.monotonic() >= self._due

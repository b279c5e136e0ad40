"""Demand for worker groups: number of groups that the calls of one function keep busy. No I/O."""

from __future__ import annotations

import math
import time

from spoolpool.client.durations import Durations

_PAUSE = 0.001  # seconds between two submissions from which on the submitter had something else to do
_SHARE = 1 / 16  # of the last interval in the mean
_RECENT = 0.05  # seconds after the end of a task in which the measured duration is taken for that of the next calls


class Demand:
    """Demand of the calls of one function, by the rate of their submission and by their duration.

    Calls of a few microseconds are run by one or two groups as fast as they are submitted. More groups would only get
    smaller tasks, each of which costs as much as many of these calls.
    """

    def __init__(self) -> None:
        self._interval = 0.0  # mean seconds between two submissions; 0: unknown
        self._submitted = -math.inf
        self.ended = -math.inf
        """Time of the last end of a task of the function, by the monotonic clock."""

    def note_submission(self) -> None:
        """Note the submission of a call."""
        now = time.monotonic()
        interval, self._submitted = now - self._submitted, now
        if interval < _PAUSE:
            self._interval += (interval - self._interval) * (_SHARE if self._interval else 1.0)

    def note_end(self) -> None:
        """Note that a task of the function has ended."""
        self.ended = time.monotonic()

    def groups(self, durations: Durations) -> float:
        """Return the number of groups that run the calls as fast as they are submitted.

        Infinite if it is unknown: one of the two measures is missing, or the last task has ended long ago, so that the
        running ones may take longer than the measured ones.
        """
        seconds = durations.shortest
        if not self._interval or seconds is None or time.monotonic() - self.ended > _RECENT:
            return math.inf
        return max(1.0, seconds / self._interval)

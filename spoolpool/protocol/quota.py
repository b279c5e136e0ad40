"""How many tasks of one user may wait in a spool: a courtesy between users, and no security boundary.

Submitters count by themselves, and each counts on its own: several of one user may together go past the bound by what
they found free at the same time. Who wants to can do without counting.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from spoolpool.errors import TooManyWaiting
from spoolpool.format.names import is_bucket, parse_lane
from spoolpool.protocol.spool import Spool
from spoolpool.system import files
from spoolpool.system.backoff import Backoff

_AT_ONCE = 100  # free places that are spent after one count in any case; of more, half
_VALID = 60.0  # seconds for which a count is believed
_LEAST = 0.05  # seconds between two counts, and in any case so many times as long as one takes
_TIMES = 5.0


class WaitingLimit:
    """What one submitter may still put into a spool; may be used from several threads.

    A count lists the buckets of the user, so there is not one for each task: what was found free is spent first.
    """

    def __init__(self, spool: Spool, limit: int) -> None:
        self._spool = spool
        self.limit = limit
        self._lock = threading.Lock()
        self._free = 0
        self._counted = -_VALID
        self._due = 0.0

    def take(self, go_on: Callable[[], None] | None = None) -> None:
        """Take a place for one task; raises :class:`TooManyWaiting` where none is free, as far as is known.

        With ``go_on`` it waits for one instead, and calls that now and then: what it raises ends the waiting.
        """
        backoff = Backoff(0.05, 2.0)
        while not self._take():
            if go_on is None:
                raise TooManyWaiting(
                    f"Cannot submit to {self._spool.path}: {self.limit} tasks of this user wait there, as many as "
                    "may. Wait until some have begun (as Submission(wait_for_room=True) does), or cancel some."
                )
            go_on()
            backoff.sleep()

    def _take(self) -> bool:
        with self._lock:
            now = time.monotonic()
            if (self._free <= 0 or now - self._counted > _VALID) and now >= self._due:
                free = self.limit - self.count()
                self._free = min(free, max(_AT_ONCE, free // 2))
                self._counted = time.monotonic()
                # what is spent next is all that was free: then there is no use in counting again at once
                self._due = self._counted + max(_LEAST, _TIMES * (self._counted - now)) if self._free == free else 0.0
            if self._free <= 0:
                return False
            self._free -= 1
            return True

    def count(self) -> int:
        """How many tasks of this user wait; no more are counted than may."""
        where = self._spool.layout
        count = 0
        for name in files.list_names(where.ready):
            lane = parse_lane(name)
            if lane is None or lane.user not in (None, os.geteuid()):
                continue
            for bucket in filter(is_bucket, files.list_names(where.lane(name))):
                count += len(files.list_names(where.bucket(name, bucket)))
                if count >= self.limit:
                    return count
        return count

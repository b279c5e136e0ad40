"""Into which bucket of its lane a submitter puts a task."""

from __future__ import annotations

import contextlib
import threading

from spoolpool import settings
from spoolpool.errors import NotTrusted
from spoolpool.format.names import bucket_name, is_bucket, series_of
from spoolpool.protocol.spool import Spool
from spoolpool.system import files


class BucketAllocator:
    """The buckets of one submitter. :meth:`next` may be called from any thread.

    One that ``came_back`` goes on with what an earlier process of it left.
    """

    def __init__(self, spool: Spool, submitter: str, *, came_back: bool) -> None:
        self._spool = spool
        self._submitter = submitter
        self._came_back = came_back
        self._lock = threading.Lock()
        self._used: dict[tuple[str, str], tuple[str, int]] = {}

    def next(self, lane: str, task_id: str) -> str:
        """The bucket for a new task of a lane."""
        key = (lane, task_id[:3])
        with self._lock:
            bucket, used = self._used.get(key) or self._last(*key)
            if used >= settings.BUCKET_SIZE:
                bucket, used = bucket_name(task_id, self._submitter), 0
            self._used[key] = (bucket, used + 1)
        return bucket

    def _last(self, lane: str, priority: str) -> tuple[str, int]:
        """The bucket that an earlier process of the same submitter left, if something waits in it, and how much.

        So a thousand processes that put in one task each leave no thousand buckets. Two that run at once may fill one
        to twice its size.
        """
        where = self._spool.layout
        names = filter(is_bucket, files.list_names(where.lane(lane)) if self._came_back else [])
        last = max((name for name in names if series_of(name) == (priority, self._submitter)), default="")
        used = len(files.list_names(where.bucket(lane, last))) if last else 0
        return (last, used) if used else ("", settings.BUCKET_SIZE)

    def remove(self) -> None:
        """Remove the last ones, where they are empty: nothing more is submitted."""
        for (lane, _), (bucket, _) in self._used.items():
            with contextlib.suppress(OSError, NotTrusted):
                place = self._spool.held(self._spool.layout.lane(lane), self._spool.account)
                files.remove_directory(f"{place}/{bucket}")

"""Put tasks into a spool: a submitter's side of the protocol."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable

from spoolpool import settings
from spoolpool.errors import BrokenSpool, NotTrusted, SpoolpoolError, TaskVanished, TooManyWaiting
from spoolpool.format.envelope import Buffer
from spoolpool.format.headers import TaskHeader
from spoolpool.format.names import TaskFile, bucket_name, is_bucket, new_submitter_id, parse_lane, series_of
from spoolpool.protocol.dependencies import add_links, remove_links
from spoolpool.protocol.search import PASSES, Wanted, find_places, search_interval
from spoolpool.protocol.spool import Spool
from spoolpool.security.signing import task_label
from spoolpool.system import files
from spoolpool.system.backoff import Backoff

_TRIES = 8  # of an operation that fails for an unknown reason: about two seconds

_AT_ONCE = 100  # free places that are used after one count, at least; of more, half
_VALID = 60.0  # seconds until a count expires
_LEAST = 0.05  # seconds between two counts, and at least so many times as long as one takes:
_TIMES = 5.0


class Submitter:
    """One submitter of a spool, with its buckets. May be used from several threads.

    A process that reopens a session passes the ``submitter`` id of the earlier one, and continues its buckets.
    """

    def __init__(self, spool: Spool, submitter: str = "") -> None:
        self._spool = spool
        self.id = submitter or new_submitter_id()
        self._reopened = bool(submitter)
        self._limit = None if spool.config.max_waiting is None else WaitingLimit(spool, spool.config.max_waiting)
        self._lock = threading.Lock()
        self._buckets: dict[tuple[str, str], tuple[str, int]] = {}  # by lane and priority: the last one, and its tasks

    def await_room(self, may_wait: Callable[[], None] | None) -> None:
        """Wait for room for one task, if the spool bounds the waiting tasks of a user.

        ``may_wait`` is called now and then, and may raise an exception to end the wait. Without it, raises
        :class:`TooManyWaiting` if there is no room now.
        """
        if self._limit is not None:
            self._limit.take(may_wait)

    def bucket(self, lane: str, task: str) -> str:
        """Return the bucket for a new task of a lane."""
        key = (lane, task[:3])
        with self._lock:
            bucket, used = self._buckets.get(key) or self._last_bucket(*key)
            if used >= settings.BUCKET_SIZE:
                bucket, used = bucket_name(task, self.id), 0
            self._buckets[key] = (bucket, used + 1)
        return bucket

    def _last_bucket(self, lane: str, priority: str) -> tuple[str, int]:
        """Return the bucket that an earlier process of this submitter left, if tasks wait in it, and their number.

        It is used further, because a thousand processes that submit one task each would leave a thousand buckets. Two
        that run at once may fill one to twice its size.
        """
        where = self._spool.layout
        names = filter(is_bucket, files.list_names(where.lane(lane)) if self._reopened else [])
        last = max((name for name in names if series_of(name) == (priority, self.id)), default="")
        used = len(files.list_names(where.bucket(lane, last))) if last else 0
        return (last, used) if used else ("", settings.BUCKET_SIZE)

    def submit(self, header: TaskHeader, parts: list[Buffer]) -> TaskFile:
        """Put a task file into its bucket; when this returns, the task is in the spool.

        A task with dependencies or with a start time goes to ``waiting/`` (:mod:`spoolpool.protocol.delayed_tasks`).
        Its dependency links are made first, so that the outcomes that it needs are not removed.

        Raises :class:`SpoolFull`, :class:`SpoolDenied` or another :class:`SpoolpoolError`; then nothing of the task
        is left in the spool. :class:`BrokenSpool` says that another spool is at its path. After :class:`TaskVanished`
        this is so as far as listings show.
        """
        spool = self._spool
        task_file = header.first_file()
        source = f"{spool.layout.tmp}/{header.task}"
        with files.translate_errors(f"submit a task to {spool.path}"):
            if header.calls:  # each record has its signature
                spool.in_directory(spool.layout.tmp, lambda: spool.write_signed(source, parts))
            else:
                spool.in_directory(spool.layout.tmp, lambda: spool.write(source, task_label(header.task), parts))
            if header.needs:
                try:
                    add_links(spool, header)
                except BaseException:
                    remove_links(spool, header)
                    files.remove(source)
                    raise
            try:
                self._publish(source, header, task_file)
            except BaseException as error:
                if isinstance(error, (NotTrusted, BrokenSpool)):
                    files.remove(source)
                remove_links(spool, header)
                raise
        return task_file

    def _publish(self, source: str, header: TaskHeader, task_file: TaskFile) -> None:
        spool = self._spool
        directory = spool.layout.waiting if header.delayed else spool.layout.bucket(header.lane, header.bucket)
        target = f"{directory}/{task_file.name}"
        backoff: Backoff | None = None
        for left in range(_TRIES - 1, -1, -1):
            try:
                if spool.shared and not header.delayed:
                    target = f"{spool.bucket(header.lane, header.bucket)}/{task_file.name}"
                files.move(source, target, durability=spool.config.durability)
                return
            except OSError as error:
                # not the error itself: its frames would keep the task's data until garbage is collected
                reason = error.errno or 0
                try:
                    if not files.exists(source):  # the rename was done, and the error answered its repetition; or not
                        if not self._is_submitted(header, target):
                            raise self._vanished(header)
                        return
                    if error.errno in files.GONE:  # the bucket is not made yet, or was removed as empty
                        spool.make_directories(directory)
                        continue
                except OSError as refused:
                    reason = refused.errno or 0
                if left and reason not in files.FULL | files.DENIED:
                    backoff = backoff or Backoff(0.005, 1.0, 2.0)
                    backoff.sleep()
                    continue
                # gone before it was removed: moved after all, perhaps; a repeated request says so too
                if files.remove(source) or not self._is_submitted(header, target):
                    raise OSError(reason, os.strerror(reason), target) from None
                return
        files.remove(source)
        raise SpoolpoolError(
            f"Cannot submit to {spool.path}: {directory} vanishes as often as it is made. "
            "Look for a process that removes directories there."
        )

    def _is_submitted(self, header: TaskHeader, target: str) -> bool:
        """Return whether a task is in the spool whose file in ``tmp/`` is gone.

        A purge of old files removes it there, if this process was stopped for long before the rename. The task may have
        moved on from ``target`` since. Raises :class:`NotASpool` or :class:`BrokenSpool` if the spool itself is gone.
        """
        spool = self._spool
        spool.check_presence()
        wanted = [Wanted.of(spool, header)]
        pause = search_interval(spool)
        backoff = Backoff(pause, pause)
        for left in range(PASSES - 1, -1, -1):
            # exists(): a look-up besides the listing, which may be stale
            if files.exists(target) or find_places(spool, wanted):
                return True
            if left:
                backoff.sleep()
        return False

    def _vanished(self, header: TaskHeader) -> TaskVanished:
        spool = self._spool
        return TaskVanished(
            f"Cannot submit to {spool.path}: the file of task {header.task} was removed from {spool.layout.tmp} before "
            "the task was in the queue, by a purge of old files after this process was stopped for long, or by hand. "
            "The task is not in the spool; submit it again."
        )

    def close(self) -> None:
        """Remove the last buckets where they are empty: nothing more is submitted."""
        for (lane, _), (bucket, _) in self._buckets.items():
            with contextlib.suppress(OSError, NotTrusted):
                place = self._spool.directory(self._spool.layout.lane(lane), self._spool.account)
                files.remove_directory(f"{place}/{bucket}")


class WaitingLimit:
    """Bound on the waiting tasks of one user, as one submitter sees it. May be used from several threads.

    It is a courtesy between users and no security boundary: submitters count by themselves, and several of one user
    may together exceed the bound by the room that each found at the same time. A count lists the user's buckets; the
    room that it found is used up before the next one, so that there is not one for each task.
    """

    def __init__(self, spool: Spool, limit: int) -> None:
        self._spool = spool
        self.limit = limit
        self._lock = threading.Lock()
        self._free = 0
        self._counted = -_VALID
        self._due = 0.0

    def take(self, may_wait: Callable[[], None] | None = None) -> None:
        """Take a place for one task, or wait for it; as :meth:`Submitter.await_room`."""
        backoff = Backoff(0.05, 2.0)
        while not self._take():
            if may_wait is None:
                raise TooManyWaiting(
                    f"Cannot submit to {self._spool.path}: {self.limit} tasks of this user wait there, as many as "
                    "may. Wait until some have begun (an Executor does with wait_for_room=True), or cancel some."
                )
            may_wait()
            backoff.sleep()

    def _take(self) -> bool:
        with self._lock:
            now = time.monotonic()
            if (self._free <= 0 or now - self._counted > _VALID) and now >= self._due:
                free = self.limit - self.count()
                self._free = min(free, max(_AT_ONCE, free // 2))
                self._counted = time.monotonic()
                # if all that is free is used next, there is no use in counting again at once
                self._due = self._counted + max(_LEAST, _TIMES * (self._counted - now)) if self._free == free else 0.0
            if self._free <= 0:
                return False
            self._free -= 1
            return True

    def count(self) -> int:
        """Return how many tasks of this user wait; counting ends at the bound."""
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

"""Wait of an idle worker for the next task."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping

from spoolpool.system import files
from spoolpool.system.backoff import Backoff
from spoolpool.system.watch import DirectoryWatcher

_FIRST_LOOK, _LAST_LOOK = 0.0005, 2.0
_FIRST_TOLD = 0.05  # seconds until the first listing where the filesystem tells of new tasks
_LOOKS = 1000  # listings per second by all idle workers of a spool together; beyond that each one lists less often
_PAUSE = 0.001  # seconds after a task in which the next one may announce itself: cheaper than a listing
_FIRST_RESERVE, _LAST_RESERVE = 0.0005, 0.008  # seconds for which a worker in reserve leaves tasks to the others
_MOST_RESERVE = 0.05  # seconds, at most, with many workers
_RESERVE_LOOKS = 500  # per second by all workers in reserve together
_QUIET = 0.02  # seconds without a new task, after which the reserve begins with its shortest time again
_SHORT = 0.001  # seconds per task; workers that claim tasks as fast need no help
_BACKLOG = 32  # tasks with which also those need help
_LATE = 4  # looks at which a task was there, likewise

_Tasks = dict[str, set[str]]
"""Names of task files, by bucket."""


class IdleWait:
    """Wait for changes in the directories in which a task may appear, with backoff.

    A worker that was told of new tasks, and found that others had claimed them, is *in reserve* until it claims one
    itself. In reserve it leaves each new task to the others for a moment. Then it lists the bucket of the task; the
    wait ends if the task is still there and the others do not seem to cope. So one worker reacts to a new task, and
    the others claim none of its next ones. No worker relies on another one: it looks for each task itself.

    ``tells`` says whether the filesystem tells of all changes, so that polls are a precaution.
    """

    def __init__(self, watch: DirectoryWatcher, *, tells: bool = False) -> None:
        self._watch = watch
        self._tells = tells
        self._watched: set[str] = set()
        self._buckets: set[str] = set()
        self._backoff = Backoff(_FIRST_LOOK, _LAST_LOOK)
        self._reserve_backoff = Backoff(_FIRST_RESERVE, _LAST_RESERVE, 2.0)
        self._since = time.monotonic()
        self._after_task = False
        self._paused = False  # whether the changes of the last pause are still to be read
        self._was_told = False  # of new tasks, since the last task
        self._left: Mapping[str, set[str]] = {}
        self.in_reserve = False
        """Whether new tasks are left to other workers for a moment."""
        self.event_pending = False
        """Whether there was a change that no task explains; it may be a request to stop."""

    @property
    def seconds(self) -> float:
        """Seconds since the last task."""
        return time.monotonic() - self._since

    def reset(self, seconds: float) -> None:
        """Begin anew after a task that took so many seconds."""
        self._backoff.reset()
        if seconds > _SHORT:  # the next tasks may be as long, so that more workers are needed soon
            self._reserve_backoff.reset()
        self._since = time.monotonic()
        self._after_task = True
        self._paused = self._was_told = self.in_reserve = False

    def take_after_task(self) -> bool:
        """Return whether a task was run since the last call."""
        after_task, self._after_task = self._after_task, False
        return after_task

    def pause(self, *, after_task: bool) -> None:
        """Forget the changes that the next listing will show; after a task, leave the next one a moment to appear."""
        self.has_event()
        self._paused = self._watch.pause(_PAUSE if after_task else 0.0)

    def has_event(self) -> bool:
        """Return :attr:`event_pending`, also for the changes of the last pause."""
        if self._paused:
            self._paused = False
            self._read_tasks()
        return self.event_pending

    def _read_tasks(self) -> _Tasks:
        """Return the tasks of which the last wait was told, and note whether there were other changes."""
        names = self._watch.new_names()
        if names is None or not self._buckets.issuperset(names):
            self.event_pending = True
        return names or {}

    def watch(self, directories: set[str], buckets: set[str]) -> bool:
        """Watch these directories; return whether they were watched before.

        If not, another listing must show the changes that came before the watch. ``buckets`` are directories among
        them in which nothing but tasks appears; empty if tasks may appear elsewhere.
        """
        self._buckets = buckets
        known = directories == self._watched
        if known and self._watch.covers(directories):
            return True
        self._watch.keep(directories)
        self._watched = directories
        if known and not self._watch.covers(directories):  # one cannot be watched; otherwise it was made again
            return True
        self.event_pending = True
        return False

    def wait(self, due: float | None, workers: int, left: Mapping[str, set[str]]) -> None:
        """Wait for a change, at most until ``due`` by the monotonic clock; ``workers`` share the spool.

        ``left`` are tasks that this worker has left to others, which were claiming them.
        """
        told = self._tells and bool(self._buckets) and self._watch.covers(self._watched)
        self._backoff.first = _FIRST_TOLD if told else _FIRST_LOOK
        self._backoff.last = max(_LAST_LOOK, workers / _LOOKS)
        self._reserve_backoff.last = min(_MOST_RESERVE, max(_LAST_RESERVE, workers / _RESERVE_LOOKS))
        seconds = max(self._backoff.next(), self._backoff.first)
        if due is not None:
            seconds = min(seconds, max(0.0, due - time.monotonic()))
        # a task that was left before is not looked for again: an earlier attempt of it may hold its lock for long
        new = {bucket: names - self._left.get(bucket, set()) for bucket, names in left.items()}
        self._left = left
        if any(new.values()) or (self._was_told and workers > 1):
            self.in_reserve = True
        if self.in_reserve:
            changed = self._wait_in_reserve(seconds, new)
        else:
            changed = self._watch.wait(seconds)
            self._was_told = changed and bool(self._read_tasks())
        if changed and not told:
            self._backoff.reset()

    def _wait_in_reserve(self, seconds: float, tasks: _Tasks) -> bool:
        """Wait until the other workers do not cope with the tasks, new ones included; return False if they do.

        Ends also after another change, and after so many seconds, since the worker has other duties.
        """
        end = time.monotonic() + seconds
        looks: Counter[str] = Counter()  # at which each task was there
        while True:
            if not any(tasks.values()):
                begun = time.monotonic()
                if not self._watch.wait(end - begun):
                    return False
                if time.monotonic() - begun > _QUIET:
                    self._reserve_backoff.reset()
                tasks = self._read_tasks()
            if self.event_pending:
                return True
            begun = time.monotonic()
            planned = self._reserve_backoff.sleep()
            passed = time.monotonic() - begun
            new = self._read_tasks() if self._watch.wait(0.0) else {}
            if self.has_event():  # it is read now, so that no further wait would end by it
                return True
            try:
                there = {bucket: names.intersection(files.list_names(bucket)) for bucket, names in tasks.items()}
            except OSError:  # the listing that follows raises it again
                return True
            waiting = set().union(*there.values())
            claimed = sum(map(len, tasks.values())) - len(waiting)
            looks = Counter({name: looks[name] + 1 for name in waiting})
            # after a sleep that took far too long the cores are busy, and more workers would not make it better
            slow = bool(waiting) and claimed * _SHORT < passed < 2 * planned + _SHORT
            if slow:
                self._reserve_backoff.reset()
            if slow or len(waiting) >= _BACKLOG or _LATE in looks.values():
                return True
            if time.monotonic() >= end:  # new tasks may come without a pause
                return False
            tasks = {bucket: new.get(bucket, set()) | there.get(bucket, set()) for bucket in {*new, *there}}

    def wait_after_error(self) -> None:
        """Wait before the next try."""
        self._watch.wait(self._backoff.next())

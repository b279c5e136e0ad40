"""Wait of an idle worker for the next task."""

from __future__ import annotations

import time

from spoolpool.system.backoff import Backoff
from spoolpool.system.watch import DirectoryWatcher

_FIRST_LOOK, _LAST_LOOK = 0.0005, 2.0
_LOOKS = 1000  # listings per second by all idle workers of a spool together; beyond that each one lists less often
_PAUSE = 0.001  # seconds after a task in which the next one may announce itself: cheaper than a listing
_FIRST_LOSS, _LAST_LOSS = 0.001, 0.008  # seconds of rest after a lost race for a task, longer for each one in a row


class IdleWait:
    """Wait for changes in the directories in which a task may appear, with backoff."""

    def __init__(self, watch: DirectoryWatcher) -> None:
        self._watch = watch
        self._watched: set[str] = set()
        self._backoff = Backoff(_FIRST_LOOK, _LAST_LOOK)
        self._loss_backoff = Backoff(_FIRST_LOSS, _LAST_LOSS, 2.0)
        self._since = time.monotonic()
        self._after_task = False
        self.woken = False
        """Whether a change has ended the last wait."""
        self.event_pending = False
        """Whether there was a change that no task explains; it may be a request to stop."""

    @property
    def seconds(self) -> float:
        """Seconds since the last task."""
        return time.monotonic() - self._since

    def reset(self) -> None:
        """Begin anew after a task."""
        self._backoff.reset()
        self._loss_backoff.reset()
        self._since = time.monotonic()
        self._after_task = True
        self.woken = False

    def take_after_task(self) -> bool:
        """Return whether a task was run since the last call."""
        after_task, self._after_task = self._after_task, False
        return after_task

    def pause(self, *, after_task: bool) -> None:
        """Forget the changes that the next listing will show; after a task, leave the next one a moment to appear."""
        self.event_pending |= self._watch.pause(_PAUSE if after_task else 0.0)

    def watch(self, directories: set[str]) -> bool:
        """Watch these directories; return whether they were watched before.

        If not, another listing must show the changes that came before the watch.
        """
        if directories == self._watched:
            return True
        self._watch.keep(directories)
        self._watched = directories
        self.event_pending = True
        return False

    def wait(self, due: float | None, workers: int) -> None:
        """Wait for a change, at most until ``due`` by the monotonic clock; ``workers`` share the spool."""
        if self.woken:  # another worker won the race; back off to avoid a thundering herd at the next task
            self._loss_backoff.sleep()
        self._backoff.last = max(_LAST_LOOK, workers / _LOOKS)
        seconds = self._backoff.next()
        if due is not None:
            seconds = min(seconds, max(0.0, due - time.monotonic()))
        self.woken = self._watch.wait(seconds)
        if self.woken:
            self._backoff.reset()

    def wait_after_error(self) -> None:
        """Wait before the next try."""
        self._watch.wait(self._backoff.next())

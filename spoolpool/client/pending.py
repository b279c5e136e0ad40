"""The futures of one session that have no outcome yet, and what follows when one gets it."""

from __future__ import annotations

import threading
from collections.abc import Container
from weakref import WeakValueDictionary

from spoolpool.client.futures import TaskFuture
from spoolpool.client.references import CallReferences
from spoolpool.client.retention import Retention
from spoolpool.format.headers import Kind
from spoolpool.format.names import TaskFile
from spoolpool.monitor.graph import Graph
from spoolpool.protocol import cancel
from spoolpool.protocol.journal import Journal, submitters_journal
from spoolpool.protocol.spool import Spool


class PendingTasks:
    """What a session waits for. All methods may be called from any thread; ``lock`` is the session's own."""

    def __init__(self, spool: Spool, session: str, *, keeps_all: bool) -> None:
        self.spool = spool
        self.session = session
        # reentrant: garbage is collected in any thread at any moment, and may end in Session.close()
        self.lock = threading.RLock()
        self.retention = Retention(spool, session, self.lock, keeps_all=keeps_all)
        self.graph = Graph()
        """Of the tasks that need others, and those."""
        self._futures: dict[str, TaskFuture] = {}
        self._known: WeakValueDictionary[str, TaskFuture] = WeakValueDictionary()
        self._none_left = threading.Condition(self.lock)
        self._marked: set[str] = set()
        self.lost = False
        """Whether a task was lost with its workers, and is kept in ``failed/``."""
        # a temporary spool is one executor's alone, and goes with it: nobody will ask what happened there
        self._journal = None if spool.config.temporary else Journal(spool, submitters_journal(), session)

    def __len__(self) -> int:
        return len(self._futures)

    def get(self, task: str) -> TaskFuture | None:
        """The future of a task, if it has no outcome yet."""
        return self._futures.get(task)

    def tasks(self) -> Container[str]:
        """Ids of the tasks without an outcome, as they are at any moment."""
        return self._futures.keys()

    def futures(self, lane: str | None = None) -> list[TaskFuture]:
        """Futures without an outcome (of a lane; of any if None), in the order of their submission."""
        with self.lock:
            return [future for future in self._futures.values() if lane in (None, future.header.lane)]

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until nothing is awaited; whether that is so."""
        with self._none_left:
            return self._none_left.wait_for(lambda: not self._futures, seconds)

    # -- what is added, and taken out without an outcome

    def add(self, future: TaskFuture, needs: CallReferences | None = None) -> None:
        """A task is about to be in the spool."""
        with self.lock:
            self._futures[future.task] = future
            if self.retention.keeps_all:
                self._known[future.task] = future
            if future.header.needs and needs is not None:
                self.retention.add(future.task, needs)
                self.graph.add(future.header, [each.header for each in needs.futures()])

    def known(self, task: str) -> TaskFuture | None:
        """The future of a task of a session that keeps its outcomes, done or not, as long as somebody holds it."""
        return self._known.get(task)

    def withdraw(self, task: str) -> None:
        """It was not put in after all."""
        with self.lock:
            self.retention.withdraw(task)
            self._forget(task)

    def forget(self, lane: str | None = None) -> list[TaskFuture]:
        """Wait for nothing any more (of a lane; of any if None); returns what was awaited."""
        with self.lock:
            forgotten = self.futures(lane)
            for future in forgotten:
                self._forget(future.task)
        return forgotten

    def _forget(self, task: str) -> None:
        self._futures.pop(task, None)
        if not self._futures:
            self._none_left.notify_all()

    def mark(self, task: str) -> None:
        """Ask whoever runs a task to end it, and take the mark away once the task is over."""
        with self.lock:
            if task in self._futures:
                self._marked.add(task)
                cancel.request(self.spool, task)

    # -- outcomes

    def ended(self, future: TaskFuture, task_file: TaskFile, kind: Kind) -> None:
        """A future has the outcome that this token stands for, which can be taken away."""
        self.lost = self.lost or kind == "lost"
        self.retention.delivered(task_file, kind, future.header, here=future.here)
        self.over(future)
        self.graph.finish(future.task, kind)  # after that nobody says any more that it is expected

    def over(self, future: TaskFuture) -> None:
        """Nothing is awaited of a task any more; what waits for it may go."""
        with self.lock:
            if future.task in self._marked:
                self._marked.remove(future.task)
                cancel.withdraw_request(self.spool, future.task)
            self._forget(future.task)
            holders = self.retention.holders(future.task)
        for needs in holders:
            needs.ended(self.session, future.task)

    # -- the journal

    def note(self, event: str, future: TaskFuture, **fields: object) -> None:
        """Write into the journal what became of a task."""
        if self._journal is not None:
            with self.lock:
                self._journal.write(event, task=future.task, session=self.session, lane=future.header.lane, **fields)

    def flush(self, age: float) -> bool:
        """Write what the journal gathered, if that is so old (in seconds); whether something is left to write."""
        with self.lock:
            return self._journal is not None and self._journal.flush(age)

    def close(self) -> None:
        """Close the journal; harmless when repeated."""
        with self.lock:
            if self._journal is not None:
                self._journal.close()

    def after_fork(self) -> list[TaskFuture]:
        """In a forked child: everything is the parent's. Returns what was awaited there."""
        self.lock = threading.RLock()
        self._none_left = threading.Condition(self.lock)
        self._journal = None  # what it has gathered is the parent's to write
        futures, self._futures = list(self._futures.values()), {}
        return futures

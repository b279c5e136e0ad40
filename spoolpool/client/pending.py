"""Futures of one session without an outcome, and the consequences of an outcome."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Container
from typing import Literal
from weakref import WeakValueDictionary

from spoolpool.client.futures import DeferredFuture, TaskFuture
from spoolpool.client.references import CallReferences
from spoolpool.client.retention import OutcomeState, Retention
from spoolpool.format.headers import Kind
from spoolpool.format.names import TaskFile, parse_task_file
from spoolpool.monitor.graph import Graph, Node
from spoolpool.monitor.states import STATE_OF_OUTCOME, End, State
from spoolpool.protocol import cancel
from spoolpool.protocol.journal import Journal, submitters_journal
from spoolpool.protocol.object_references import objects_of
from spoolpool.protocol.spool import Spool
from spoolpool.system import files


class PendingTasks:
    """Pending tasks of a session. The methods may be called from any thread; ``lock`` is the lock of the session."""

    def __init__(self, spool: Spool, session: str, *, keeps_all: bool) -> None:
        self.spool = spool
        self.session = session
        # reentrant: a garbage collection may run in any thread at any moment, and close the session
        self.lock = threading.RLock()
        self.retention = Retention(spool, session, self.lock, keeps_all=keeps_all)
        self.needed_objects: set[str] = set()
        """Objects, by the names of their files, of tasks that ended here and may still run: they were lost and can be
        retried, or their outcome could not be read, or the session stopped waiting for them."""
        self.ends: Counter[State | End] = Counter()
        """Number of the calls that have ended for this session, by their ends."""
        self._graph = Graph()  # of the tasks with dependencies or dependents
        self._futures: dict[str, TaskFuture] = {}
        self._lanes: Counter[str] = Counter()  # numbers of the pending tasks that may start at once
        self._scheduled: dict[str, TaskFuture] = {}  # those with an earliest start
        self.packs: dict[str, TaskFuture] = {}
        """Pending packs whose outcomes are delivered while they run, by task."""
        self._deferred: dict[DeferredFuture, None] = {}  # calls that get a task later, in the order of their submission
        self._known: WeakValueDictionary[str, TaskFuture] = WeakValueDictionary()
        self._empty = threading.Condition(self.lock)
        self._cancel_requested: set[str] = set()
        # a temporary spool belongs to one executor and is removed with it: its journal would not be read
        self.journal = None if spool.temporary else Journal(spool, submitters_journal(), session)
        """Journal of the session, if it has one."""

    def __len__(self) -> int:
        return len(self._futures)

    def __bool__(self) -> bool:
        """Return whether a task is pending, or a call that gets one later."""
        return bool(self._futures or self._deferred)

    def count_calls(self) -> int:
        """Return the number of calls without an outcome that have a task, or get one later."""
        with self.lock:
            calls = sum(each.packed or 1 for each in self._futures.values())
            return calls + sum(each.task_future is None for each in self._deferred)

    def get(self, task: str) -> TaskFuture | None:
        """Return the future of a task that has no outcome yet."""
        return self._futures.get(task)

    def is_alone(self, future: TaskFuture) -> bool:
        """Return whether a task is the only pending one, and nothing but its result is to be delivered, to threads."""
        alone = len(self._futures) == 1 and future.task in self._futures
        return alone and future.pack is None and not future.is_observed

    def ids(self) -> Container[str]:
        """Return a live view of the ids of the pending tasks."""
        return self._futures.keys()

    def futures(self, lane: str | None = None) -> list[TaskFuture]:
        """Return the pending futures (of a lane; of all lanes if None), in the order of their submission."""
        with self.lock:
            return [future for future in self._futures.values() if lane in (None, future.header.lane)]

    def lanes(self, now: float) -> set[str]:
        """Return the lanes of the pending tasks that may start by a time; does not look at each task."""
        with self.lock:
            headers = [future.header for future in self._scheduled.values()]
            return {*self._lanes, *(header.lane for header in headers if header.not_before <= now)}

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until no task is pending and no call is deferred; returns whether this is so."""
        with self._empty:
            return self._empty.wait_for(lambda: not self, seconds)

    def is_unclaimed(self, future: TaskFuture) -> bool:
        """Return whether the task has no claim, or none any more after the death of its worker; lists the spool."""
        header = future.header
        # in this order: a task moves from waiting/ to its bucket
        names = files.list_names(self.spool.layout.waiting) if header.delayed or header.entry else []
        names += files.list_names(self.spool.layout.bucket(header.lane, header.bucket))
        listed = map(parse_task_file, names)
        return any(task_file is not None and task_file.task == header.task for task_file in listed)

    def count_unclaimed(self) -> int:
        """Return the number of pending calls whose task has no claim; lists the spool."""
        futures = self.futures()
        headers = {future.task: future.header for future in futures}
        directories = {self.spool.layout.bucket(each.lane, each.bucket) for each in headers.values()}
        if any(each.delayed or each.entry for each in headers.values()):
            directories.add(self.spool.layout.waiting)
        listed = {
            task_file.task
            for directory in directories
            for task_file in map(parse_task_file, files.list_names(directory))
            if task_file
        }
        return sum(future.packed or 1 for future in futures if future.task in listed)

    # -- dependencies

    def retain(self, task: str, references: CallReferences) -> OutcomeState:
        """Retain the outcome of a task in the spool for a call, unless it was removed already."""
        with self.lock:
            future = self._futures.get(task)
            if future is not None:
                self._graph.expect(future.header)
            return self.retention.retain(task, references, pending=future is not None)

    def dependents(self, task: str) -> list[TaskFuture]:
        """Return the futures of this process that depend on a task."""
        return [each.future for each in self.retention.dependents(task) if each.future is not None]

    def unwatched_dependencies(self, future: TaskFuture) -> list[tuple[str, str]]:
        """Return the sessions and ids of the dependencies of a task for which no session of this process waits."""
        references = self.retention.references(future.task)
        known = references.dependencies() if references is not None else []
        watched = {(each.session.name, each.task) for each in known if not each.done()}
        return [each for each in future.header.dependencies() if each not in watched and self.get(each[1]) is None]

    def nodes(self) -> list[Node]:
        """Return the pending tasks, and all with dependencies or dependents, for :mod:`spoolpool.monitor.graph`."""
        return self._graph.nodes(future.header for future in self.futures())

    # -- additions, and removals without an outcome

    def add(self, future: TaskFuture, references: CallReferences | None = None) -> None:
        """Add a task that is about to be written into the spool."""
        with self.lock:
            if future.task not in self._futures:
                self._count(future, 1)
            self._futures[future.task] = future
            if future.pack is not None:
                self.packs[future.task] = future
            if self.retention.keeps_all:
                self._known[future.task] = future
            if future.header.needs and references is not None:
                self.retention.add(future.task, references)
                self._graph.add(future.header, [each.header for each in references.dependencies()])

    def add_deferred(self, future: DeferredFuture) -> None:
        """Add a call that gets a task later."""
        with self.lock:
            self._deferred[future] = None

    def remove_deferred(self, future: DeferredFuture) -> None:
        """Remove a call that has its task now, or gets none. May be repeated."""
        with self.lock:
            self._deferred.pop(future, None)
            if not self:
                self._empty.notify_all()

    def deferred(self) -> list[DeferredFuture]:
        """Return the futures of the calls that get a task later."""
        with self.lock:
            return list(self._deferred)

    def known(self, task: str) -> TaskFuture | None:
        """Return the existing future of a task, done or not, of a session that keeps its outcomes."""
        return self._known.get(task)

    def withdraw(self, task: str) -> None:
        """Remove a task whose submission failed."""
        with self.lock:
            self.retention.withdraw(task)
            self._remove(task)

    def forget(self, lane: str | None = None) -> list[TaskFuture]:
        """Remove and return all pending futures (of a lane; of all lanes if None)."""
        with self.lock:
            forgotten = self.futures(lane)
            for future in forgotten:
                self._remove(future.task)
        return forgotten

    def _remove(self, task: str, *, needs_objects: bool = True) -> None:
        future = self._futures.pop(task, None)
        self.packs.pop(task, None)
        if future is not None:
            self._count(future, -1)
            if needs_objects:
                self.needed_objects |= objects_of(self.spool, future.header)
        if not self:
            self._empty.notify_all()

    def _count(self, future: TaskFuture, change: Literal[1, -1]) -> None:
        """Count a task that was added or removed, by its lane."""
        header = future.header
        if header.not_before:
            if change > 0:
                self._scheduled[header.task] = future
            else:
                self._scheduled.pop(header.task, None)
            return
        left = self._lanes[header.lane] = self._lanes[header.lane] + change
        if not left:
            del self._lanes[header.lane]

    def request_cancel(self, task: str) -> None:
        """Request that the worker interrupts a task; the request is withdrawn once the task has ended."""
        with self.lock:
            if task in self._futures:
                self._cancel_requested.add(task)
                cancel.request(self.spool, task)

    # -- outcomes

    def mark_delivered(self, future: TaskFuture, task_file: TaskFile, kind: Kind) -> None:
        """Remove a task whose future got the outcome of this attempt, so that the outcome can be removed too."""
        here = future.submitted_by_this_run
        self.retention.add_delivered(task_file, kind, future.header, submitted_by_this_run=here)
        self.mark_ended(future, STATE_OF_OUTCOME[kind], needs_objects=kind == "lost")
        self._graph.finish(future.task, kind)  # last: retain() calls expect() only for a pending task

    def mark_ended(self, future: TaskFuture, end: State | End | None, *, needs_objects: bool = True) -> None:
        """Remove a task that gets no further outcome, and make the tasks ready that depend on it alone.

        ``end`` is counted, unless it is None, or the task was removed before. ``needs_objects`` says that the task may
        run all the same, as after a retry.
        """
        with self.lock:
            if future.task in self._cancel_requested:
                self._cancel_requested.remove(future.task)
                cancel.withdraw_request(self.spool, future.task)
            # the ends of packed calls are counted one by one; race: two threads may find out that a task has ended
            if end is not None and not future.packed and future.task in self._futures:
                self.ends[end] += 1
            self._remove(future.task, needs_objects=needs_objects)
            dependents = self.retention.dependents(future.task)
        for references in dependents:
            references.mark_ended(self.session, future.task)

    # -- the journal

    def record_event(self, event: str, future: TaskFuture, **fields: object) -> None:
        """Add an event of a task to the journal."""
        if self.journal is not None:
            with self.lock:
                self.journal.write(event, task=future.task, session=self.session, lane=future.header.lane, **fields)

    def flush(self, age: float) -> bool:
        """Write the journal's buffer if it is older than ``age`` seconds; returns whether lines are left."""
        with self.lock:
            return self.journal is not None and self.journal.flush(age)

    def close(self) -> None:
        """Close the journal. May be repeated."""
        with self.lock:
            if self.journal is not None:
                self.journal.close()

    def after_fork(self) -> list[TaskFuture | DeferredFuture]:
        """Drop the parent's state in a forked child; returns the futures that were pending in the parent."""
        self.lock = threading.RLock()
        self._empty = threading.Condition(self.lock)
        self.journal = None  # only the parent writes its buffer
        pending: list[TaskFuture | DeferredFuture] = [*self._futures.values(), *self._deferred]
        self._futures, self._deferred, self._scheduled, self.packs = {}, {}, {}, {}
        self._lanes.clear()
        return pending

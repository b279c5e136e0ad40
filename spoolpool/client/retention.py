"""Decision when a delivered outcome is removed from the spool.

A session that keeps its outcomes for a later process moves and removes none. In any other session an outcome is
retained as long as a dependent needs it. The dependents that this process submitted are known in memory. Those of an
earlier run of the session are found as dependency links in ``needs/``, listed when the session begins and once more
after the lifetime of file system caches; until then the outcomes delivered for the earlier run are retained.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Literal, NamedTuple

from spoolpool.client.references import CallReferences
from spoolpool.errors import NotTrusted
from spoolpool.format.headers import Kind, TaskHeader
from spoolpool.format.names import CANCELLED, DependencyLink, TaskFile, parse_link, parse_task_file
from spoolpool.protocol.dependencies import remove_links
from spoolpool.protocol.spool import Spool
from spoolpool.security.signing import outcome_label, task_label
from spoolpool.system import files

_TIMES = 5.0  # seconds from one listing of links to the next, for each second that it takes

OutcomeState = Literal["pending", "retained", "removed"]


class _Delivered(NamedTuple):
    kind: Kind
    header: TaskHeader
    submitted_by_this_run: bool


class Retention:
    """Delivered outcomes of one session that are still in the spool, and their dependents.

    The methods may be called from any thread; ``lock`` belongs to the session.
    """

    def __init__(self, spool: Spool, session: str, lock: threading.RLock, *, keeps_all: bool) -> None:
        self._spool = spool
        self._session = session
        self._lock = lock
        self.keeps_all = keeps_all
        self._references: dict[str, CallReferences] = {}  # by task of this session, if it has dependencies
        self._dependents: dict[str, dict[str, CallReferences | None]] = {}
        """By task and dependent; None for a dependent of an earlier run."""
        self._earlier: set[DependencyLink] = set()  # the links of dependents of an earlier run
        self._delivered: dict[str, _Delivered] = {}  # by name of the task file
        self._retained: dict[str, TaskFile] = {}  # by task
        self._links_final_at: float | None = None
        """Monotonic time of the last listing of an earlier run's links; None if there are no links, or after it."""
        self._links_listed = False
        self._links_due = 0.0  # monotonic time of the next listing

    # -- dependents

    def add(self, task: str, references: CallReferences) -> None:
        """Add the references of a task of this session, to be released with the removal of its own outcome."""
        with self._lock:
            self._references[task] = references

    def withdraw(self, task: str) -> None:
        """Undo :meth:`add` for a task whose submission failed; the caller releases its references."""
        with self._lock:
            self._references.pop(task, None)

    def references(self, task: str) -> CallReferences | None:
        """Return the references of a task that this process submitted, if it has dependencies."""
        return self._references.get(task)

    def retain(self, task: str, references: CallReferences, *, pending: bool) -> OutcomeState:
        """Retain the outcome of a task for a call, unless the outcome was removed already."""
        with self._lock:
            if not pending and task not in self._dependents:
                return "removed"
            self._dependents.setdefault(task, {})[references.task] = references
            return "pending" if pending else "retained"

    def release(self, task: str, dependent: str) -> None:
        """Release an outcome that was retained for a call; after its last dependent it is removed."""
        with self._lock:
            dependents = self._dependents.get(task, {})
            dependents.pop(dependent, None)
            if self._earlier:
                self._earlier.discard(DependencyLink(task, dependent))
            if dependents:
                return
            self._dependents.pop(task, None)
            retained = self._retained.pop(task, None)
        if retained is not None:
            with contextlib.suppress(OSError, NotTrusted):  # the collector tries again
                self.discard_if_unneeded(retained)

    def dependents(self, task: str) -> list[CallReferences]:
        """Return the references of the calls of this process that depend on a task."""
        if not self._dependents:  # the common case
            return []
        with self._lock:
            return [references for references in self._dependents.get(task, {}).values() if references is not None]

    def is_retained(self, task: str) -> bool:
        """Return whether the outcome of a task was delivered and is retained now."""
        return task in self._retained

    # -- delivered outcomes

    def add_delivered(
        self, task_file: TaskFile, kind: Kind, header: TaskHeader, *, submitted_by_this_run: bool
    ) -> None:
        """Note that an outcome was delivered, so that it can be removed."""
        self._delivered[task_file.name] = _Delivered(kind, header, submitted_by_this_run)

    def was_delivered(self, task_file: TaskFile) -> bool:
        """Return whether the outcome of this attempt was delivered and not removed since."""
        return task_file.name in self._delivered

    def discard_if_unneeded(self, task_file: TaskFile) -> bool:
        """Remove a delivered outcome unless it has dependents; returns whether it was removed. May be repeated.

        The links of the task go first, since the task needs no dependency any more; then its task file; and then the
        outcome, only if this call removed the task file. A lost task keeps its links in ``failed/``: a retry needs the
        outcomes that they retain.
        """
        name = task_file.name
        found = self._delivered.get(name)
        if found is None:
            return False
        if found.header.needs and found.kind != "lost":
            self.release_dependencies(found.header)
        with self._lock:
            if self.keeps_all:
                self._delivered.pop(name, None)
                return False
            links_final = found.submitted_by_this_run or self._links_final_at is None
            if task_file.task in self._dependents or not links_final:
                self._retained[task_file.task] = task_file
                return False
        results = self._spool.results(self._session, self._spool.account)
        outgoing = self._spool.outgoing(self._session, self._spool.account)
        marker, path = f"{results}/{name}", f"{outgoing}/{name}"
        if found.kind == "lost":
            failed = self._spool.layout.failed
            self._spool.in_directory(failed, lambda: files.move(marker, f"{failed}/{name}"))
            files.remove(path)
        elif files.remove(marker) and task_file.worker != CANCELLED:
            files.remove(path)
        if self._spool.overflow is not None and found.kind != "lost":
            self._spool.overflow.remove(task_label(task_file.task), outcome_label(self._session, name))
        if task_file.calls and task_file.claim > 1:  # earlier claims have left their logs
            for earlier in map(parse_task_file, files.list_names(str(outgoing))):
                if earlier is not None and earlier.task == task_file.task and earlier.claim < task_file.claim:
                    files.remove(f"{outgoing}/{earlier.name}")
        self._delivered.pop(name, None)
        return True

    def release_dependencies(self, header: TaskHeader) -> None:
        """Release the outcomes that a task of this session needs: it will not run any more. May be repeated."""
        remove_links(self._spool, header)
        with self._lock:
            references = self._references.pop(header.task, None)
        if references is not None:
            references.release()
        for dependency in header.needs.get(self._session, ()):
            self.release(dependency, header.task)

    # -- earlier runs of the session

    def list_links(self) -> None:
        """List the dependency links of an earlier run: call it before the first outcome is collected, and then often.

        It reads the spool only as long as a listing can change the result.
        """
        now = time.monotonic()
        if now < self._links_due:
            return
        directory = f"{self._spool.layout.needs}/{self._session}"
        if not self._links_listed:
            if files.exists(directory):
                self._links_final_at = now + max(self._spool.config.lease, self._spool.config.caches)
                self._compare_links(directory)
            self._links_listed = True
        elif (self._links_final_at is not None and now > self._links_final_at) or self._earlier:
            self._compare_links(directory)
            if self._links_final_at is not None and now > self._links_final_at:
                self._links_final_at = None
                unneeded = [file for task, file in self._retained.items() if task not in self._dependents]
                for task_file in unneeded:
                    self._retained.pop(task_file.task, None)
                    self.discard_if_unneeded(task_file)

    def _compare_links(self, directory: str) -> None:
        """Add dependents of new links, and release the outcomes whose links were removed."""
        began = time.monotonic()
        links = {link for link in map(parse_link, files.list_names(directory)) if link is not None}
        with self._lock:
            for link in links:
                dependents = self._dependents.setdefault(link.task, {})
                if link.needed_by not in dependents:
                    dependents[link.needed_by] = None
                    self._earlier.add(link)
            removed = self._earlier - links
        for link in removed:
            self.release(link.task, link.needed_by)
        # there may be many links, and a call of this function for each outcome
        self._links_due = began + _TIMES * (time.monotonic() - began)

"""Outcomes that were delivered and are still in the spool: what keeps them there, and how they go.

A session that keeps its outcomes for a later process moves and removes none. In any other one an outcome stays as long
as a call needs it. Which calls do, this process knows of those that it submitted. Of the earlier life of a session the
edges in ``needs/`` tell, which are listed when it begins and again later than caches last; until then what was
delivered of that life stays.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Literal, NamedTuple

from spoolpool.client.references import CallReferences
from spoolpool.errors import NotTrusted
from spoolpool.format.headers import Kind, TaskHeader
from spoolpool.format.names import CANCELLED, DependencyLink, TaskFile, parse_link
from spoolpool.protocol.dependencies import remove_links
from spoolpool.protocol.spool import Spool
from spoolpool.system import files

Held = Literal["pending", "there", "gone"]


class _Delivered(NamedTuple):
    kind: Kind
    header: TaskHeader
    here: bool
    """Whether it was submitted in this life of its session."""


class Retention:
    """The delivered outcomes of one session. Its methods may be called from any thread; ``lock`` is the session's."""

    def __init__(self, spool: Spool, session: str, lock: threading.RLock, *, keeps_all: bool) -> None:
        self._spool = spool
        self._session = session
        self._lock = lock
        self.keeps_all = keeps_all
        self._needs: dict[str, CallReferences] = {}  # by the tasks of this session that need something
        self._holders: dict[str, dict[str, CallReferences | None]] = {}  # by what is needed; None: of an earlier life
        self._delivered: dict[str, _Delivered] = {}  # by the names of tokens
        self._kept: dict[str, TaskFile] = {}
        self._sure: float | None = None
        self._looked = False

    # -- what is needed

    def add(self, task: str, needs: CallReferences) -> None:
        """A task of this session needs others."""
        with self._lock:
            self._needs[task] = needs

    def withdraw(self, task: str) -> None:
        """It was not submitted after all; whoever made its needs drops them."""
        with self._lock:
            self._needs.pop(task, None)

    def hold(self, task: str, needs: CallReferences, *, pending: bool) -> Held:
        """Keep the outcome of a task for a call, if it is not gone."""
        with self._lock:
            if not pending and task not in self._holders:
                return "gone"
            self._holders.setdefault(task, {})[needs.task] = needs
            return "pending" if pending else "there"

    def drop(self, task: str, needed_by: str) -> None:
        """A call needs an outcome no longer; where it was the last one, the outcome goes."""
        with self._lock:
            holders = self._holders.get(task, {})
            holders.pop(needed_by, None)
            if holders:
                return
            self._holders.pop(task, None)
            kept = self._kept.pop(task, None)
        if kept is not None:
            with contextlib.suppress(OSError, NotTrusted):  # the collector tries again
                self.settle(kept)

    def holders(self, task: str) -> list[CallReferences]:
        """The calls of this process that need a task."""
        if not self._holders:  # as nearly always
            return []
        with self._lock:
            return [needs for needs in self._holders.get(task, {}).values() if needs is not None]

    def keeps(self, task: str) -> bool:
        """Whether the outcome of a task was delivered and stays for now."""
        return task in self._kept

    # -- what was delivered

    def delivered(self, task_file: TaskFile, kind: Kind, header: TaskHeader, *, here: bool) -> None:
        """An outcome was delivered, and can be taken away."""
        self._delivered[task_file.name] = _Delivered(kind, header, here)

    def knows(self, task_file: TaskFile) -> bool:
        """Whether the outcome that this token stands for was delivered."""
        return task_file.name in self._delivered

    def settle(self, task_file: TaskFile) -> bool:
        """Take a delivered outcome away, unless something needs it; whether it went. Harmless when repeated.

        First its edges: nothing is needed for it any more. Then the token, and only if that was ours to do, the
        outcome. A task that was lost keeps its edges in ``failed/``, because a retry needs what they hold.
        """
        name = task_file.name
        found = self._delivered.get(name)
        if found is None:
            return False
        if found.header.needs and found.kind != "lost":
            remove_links(self._spool, found.header)
            with self._lock:
                needs = self._needs.pop(task_file.task, None)
            if needs is not None:
                needs.drop()
            for needed in found.header.needs.get(self._session, ()):
                self.drop(needed, task_file.task)
        with self._lock:
            if self.keeps_all:
                self._delivered.pop(name, None)
                return False
            if task_file.task in self._holders or not (found.here or self._sure is None):
                self._kept[task_file.task] = task_file
                return False
        results = self._spool.results(self._session, self._spool.account)
        outgoing = self._spool.outgoing(self._session, self._spool.account)
        marker, path = f"{results}/{name}", f"{outgoing}/{name}"
        if found.kind == "lost":
            files.move(marker, f"{self._spool.layout.failed}/{name}")
            files.remove(path)
        elif files.remove(marker) and task_file.worker != CANCELLED:
            files.remove(path)
        self._delivered.pop(name, None)
        return True

    # -- an earlier life

    def look(self) -> None:
        """Learn from the disk what is needed of this session: call it before anything is collected, and then often.

        It lists only as long as there is something to learn.
        """
        now = time.monotonic()
        where = f"{self._spool.layout.needs}/{self._session}"
        if not self._looked:
            if files.exists(where):
                self._sure = now + max(self._spool.config.lease, self._spool.config.caches)
                self._take(where)
            self._looked = True
        elif (self._sure is not None and now > self._sure) or any(None in by.values() for by in self._others()):
            self._take(where)
            if self._sure is not None and now > self._sure:
                self._sure = None
                for kept in [task_file for task, task_file in self._kept.items() if task not in self._holders]:
                    self._kept.pop(kept.task, None)
                    self.settle(kept)

    def _others(self) -> list[dict[str, CallReferences | None]]:
        with self._lock:
            return list(self._holders.values())

    def _take(self, where: str) -> None:
        """Compare what the edges say with what is known."""
        edges = {edge for edge in map(parse_link, files.list_names(where)) if edge is not None}
        with self._lock:
            for edge in edges:
                self._holders.setdefault(edge.task, {}).setdefault(edge.needed_by, None)
            known = [(task, by) for task, each in self._holders.items() for by, needs in each.items() if needs is None]
        for task, by in known:
            if DependencyLink(task, by) not in edges:
                self.drop(task, by)

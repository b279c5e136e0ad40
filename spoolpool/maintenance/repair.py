"""Repair of the inconsistencies that a check of a spool found, as far as that is safe while the spool is in use."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from functools import partial

from spoolpool.errors import SpoolpoolError
from spoolpool.format.names import DependencyLink, TaskFile, parse_link, parse_task_file
from spoolpool.maintenance import garbage
from spoolpool.maintenance.check import Finding
from spoolpool.maintenance.garbage_item import GarbageItem
from spoolpool.maintenance.submitters import AbsentTasks
from spoolpool.protocol.delayed_tasks import make_ready
from spoolpool.protocol.journal import Journal, submitters_journal
from spoolpool.protocol.recovery import Recovery
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.tasks import move_to_bucket, read_task
from spoolpool.system import files
from spoolpool.system.backoff import Backoff

log = logging.getLogger(__name__)


def repair(spool: Spool, found: list[Finding], *, seconds: float | None = None) -> list[str]:
    """Repair the findings; return a line of text for each action.

    A repair may take some time: a worker is observed for a lease before it counts as dead, and an orphan or missing
    outcome is looked for twice, further apart than the lifetime of client caches. ``seconds`` limits that time; the
    rest is left for another call. A failed repair is logged and left as well.
    """
    done: list[str] = []
    removable = {each.path: each for each in _removable(spool, found)}
    for finding in found:
        try:
            done += _repair_at_once(spool, finding, removable.get(finding.path))
        except (OSError, SpoolpoolError) as error:
            log.warning("Cannot repair %s: %s", finding.path, error)
    pending = _DelayedRepairs(spool, found, done)
    end = time.monotonic() + (pending.seconds if seconds is None else min(pending.seconds, seconds))
    backoff = Backoff(0.05, max(0.05, spool.config.lease / 4))
    while pending:
        try:
            pending.proceed()
        except (OSError, SpoolpoolError) as error:  # the file server does not answer, or an unknown file is in the way
            log.warning("A repair was postponed: %s", error)
        if time.monotonic() > end:
            break
        if pending:
            backoff.sleep()
    return done


def _removable(spool: Spool, found: list[Finding]) -> Iterator[GarbageItem]:
    """Yield items for the findings that are repaired by a removal; each is examined again directly before it."""
    unfinished = {each.path for each in found if each.kind == "unfinished"}
    if unfinished and (now := spool.find_server_time()) is not None:
        yield from (each for each in garbage.unfinished_writes(spool, now) if each.path in unfinished)
    requests = {each.path: each.path.partition("/")[2] for each in found if each.kind == "stale request"}
    links = {each.path: _link(each.path).needed_by for each in found if each.kind == "stale link"}
    ended = AbsentTasks(spool, requests.values(), ("held", "waiting", "running"))
    nowhere = AbsentTasks(spool, links.values())
    for tasks, absent in ((requests, ended), (links, nowhere)):
        for path, task in tasks.items():
            is_garbage = partial(absent.__contains__, task)
            yield GarbageItem(path=path, reason="its task has ended", is_garbage=is_garbage)


def _repair_at_once(spool: Spool, finding: Finding, removable: GarbageItem | None) -> list[str]:
    path = f"{spool.layout.root}/{finding.path}"
    if finding.kind == "missing":
        spool.make_directories(path)
        return [f"made {finding.path}"]
    if removable is not None and garbage.remove(spool, [removable], _log_kept):
        return [f"removed {finding.path}"]
    if finding.kind == "no dependency":
        task_file = _task_file(finding.path)
        if make_ready(spool, read_task(spool, path, task_file), task_file):
            return [f"made {finding.path} ready"]
    return []


def _log_kept(path: str, reason: str) -> None:
    log.warning("Cannot repair %s: %s", path, reason)


class _DelayedRepairs:
    """Repairs that need a second observation after a delay. False once none is left."""

    def __init__(self, spool: Spool, found: list[Finding], done: list[str]) -> None:
        self._spool = spool
        self._done = done
        self._recovery = Recovery(spool, Journal(spool, submitters_journal(), "spool"), all_workers=True)
        self._dead = {each.path for each in found if each.kind in ("dead claim", "dead worker")}
        self._orphans = {each.path: _task_file(each.path) for each in found if each.kind == "orphan outcome"}
        self._incomplete = {each.path: _task_file(each.path) for each in found if each.kind == "no outcome"}
        self._caches = max(spool.config.lease, spool.config.caches)
        self._begin = time.monotonic()
        self.seconds = max(
            spool.config.lease * 1.5 if self._dead else 0.0,
            self._caches * 1.1 if self._orphans or self._incomplete else 0.0,
        )

    def __bool__(self) -> bool:
        return bool(self._dead or self._orphans or self._incomplete)

    def proceed(self) -> None:
        """Do the repairs that are possible by now."""
        root = self._spool.layout.root
        self._done += self._recovery.round()
        self._dead = {path for path in self._dead if os.path.lexists(f"{root}/{path}")}
        for path, task_file in list(self._orphans.items()):
            self._recovery.discard(path.split("/")[1], task_file)
            if not os.path.lexists(f"{root}/{path}"):
                self._done.append(f"removed {path}")
                del self._orphans[path]
        for path, task_file in list(self._incomplete.items()):
            if files.exists(self._spool.layout.outcome(path.split("/")[1], task_file)):  # it was only late
                del self._incomplete[path]
            elif time.monotonic() - self._begin >= self._caches and not files.exists(
                self._spool.layout.worker(task_file.worker)
            ):
                del self._incomplete[path]
                header = read_task(self._spool, f"{root}/{path}", task_file)
                if move_to_bucket(self._spool, f"{root}/{path}", header, task_file.released()):
                    self._done.append(f"requeued {path}")


def _link(path: str) -> DependencyLink:
    link = parse_link(os.path.basename(path))
    assert link is not None  # the scan parsed this name
    return link


def _task_file(path: str) -> TaskFile:
    task_file = parse_task_file(os.path.basename(path))
    assert task_file is not None  # the scan parsed this name
    return task_file

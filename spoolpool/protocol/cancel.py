"""Cancel tasks: a ready task by a rename, a claimed task by a request to its worker."""

from __future__ import annotations

import contextlib
import logging
import math
import time

from spoolpool.format.headers import TaskHeader
from spoolpool.format.names import CANCELLED, TaskFile
from spoolpool.protocol.spool import Spool
from spoolpool.system import files
from spoolpool.system.accounts import account_name
from spoolpool.system.limited_log import LimitedLog

_reported = LimitedLog(logging.getLogger(__name__))

_LIST_EVERY = 1.0  # seconds


def cancel_task(spool: Spool, header: TaskHeader, task_file: TaskFile, *, delayed: bool = False) -> bool:
    """Cancel a ready or delayed task; return True if no worker had claimed it, and none can any more.

    Its task file moves to the results of its session, under a name that says that it was cancelled: it is the outcome.
    """
    inbox = spool.results(header.session, spool.account)
    target = f"{inbox}/{task_file.claimed_by(CANCELLED).name}"
    # in this order: a task file moves from waiting/ to its bucket
    for where in (spool.layout.waiting, "") if delayed or header.delayed else ("",):
        try:
            place = where or spool.bucket(header.lane, header.bucket)
            files.move(f"{place}/{task_file.name}", target)
            return True
        except OSError as error:
            if files.exists(target):  # the rename was done; the error answered its repetition
                return True
            if error.errno not in files.GONE:  # GONE: it was made ready, or a worker was first
                raise
    return False


def is_requested(spool: Spool, task_file: TaskFile) -> bool:
    """Return whether an account that may cancel a claimed task has requested it; ``OSError`` if that is unknown."""
    if task_file.task not in files.list_names(spool.layout.cancel):
        return False
    if not spool.shared:
        return True
    requester = files.owner(f"{spool.layout.cancel}/{task_file.task}")
    return requester is not None and requester in (files.owner(spool.layout.claimed_task(task_file)), spool.owner)


def withdraw_request(spool: Spool, task: str) -> None:
    """Remove a request: the task has ended."""
    with contextlib.suppress(OSError):  # 'spool gc' removes it later
        files.remove(f"{spool.layout.cancel}/{task}")


def revoke_request(spool: Spool, task: str, owner: int) -> None:
    """Remove a request for a task of the account ``owner``, so that the next claim runs the task.

    Raises ``OSError`` if there may still be one. A request of an account that may not cancel the task stays.
    """
    path = f"{spool.layout.cancel}/{task}"
    try:
        files.remove(path)
    except OSError as error:
        ignored = spool.shared and files.owner(path) not in (owner, spool.owner)
        if error.errno not in files.DENIED or not ignored:
            raise


def request(spool: Spool, task: str) -> None:
    """Request the worker that runs a task, or claims it next, to cancel it; harmless when repeated."""
    path = f"{spool.layout.cancel}/{task}"
    with files.translate_errors(f"cancel {task} in {spool.path}"):
        try:
            spool.in_directory(spool.layout.cancel, lambda: files.create(path, []))
        except FileExistsError:
            with contextlib.suppress(OSError):  # of another account, which asked before; or withdrawn just now
                files.touch(path)  # 'spool gc' goes by its age


class CancelRequests:
    """Cancel requests as one worker sees them; they are listed at most once a second, as they promise nothing."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._names: set[str] = set()
        self._listed = -math.inf

    def apply_to(self, task_file: TaskFile, owner: int) -> bool:
        """Return whether a task of the account ``owner`` is not to be run."""
        now = time.monotonic()
        if now - self._listed > _LIST_EVERY:
            self._names = set(files.list_names(self._spool.layout.cancel))
            self._listed = now
        if task_file.task not in self._names or not self._spool.shared:
            return task_file.task in self._names
        requester = files.owner(f"{self._spool.layout.cancel}/{task_file.task}")
        if requester not in (None, owner, self._spool.owner):
            accounts = account_name(requester), account_name(owner)
            _reported.warning(task_file.task, "{} asks to cancel a task of {}: it runs.".format(*accounts))
        return requester in (owner, self._spool.owner)

    def withdraw(self, task: str) -> None:
        """Remove the request for a task that has its outcome: no worker claims it any more."""
        if task in self._names:
            withdraw_request(self._spool, task)

"""Cancel tasks: a ready task by a rename, a claimed task by a request to its worker."""

from __future__ import annotations

import contextlib
import logging
import math
import time

from spoolpool.format.cancel_requests import request_name, task_of
from spoolpool.format.headers import TaskHeader
from spoolpool.format.names import CANCELLED, TaskFile
from spoolpool.protocol.spool import Spool
from spoolpool.system import files
from spoolpool.system.accounts import account_name
from spoolpool.system.limited_log import LimitedLog

_reported = LimitedLog(logging.getLogger(__name__))

_LIST_EVERY = 1.0  # seconds

IN_PACK = 0.05
"""Seconds for which a listing of the requests holds between the calls of a pack."""


def cancel_task(spool: Spool, header: TaskHeader, task_file: TaskFile, *, delayed: bool = False) -> bool:
    """Cancel a ready or delayed task; return True if no worker had claimed it, and none can any more.

    Its task file moves to the results of its session, under a name that says that it was cancelled: it is the outcome.
    """
    if task_file.is_open:  # its submitter may append further calls; a worker looks for the request
        return False
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


def is_requested(spool: Spool, task_file: TaskFile, call: int | None = None) -> bool:
    """Return whether an account that may cancel a claimed task has requested it; ``OSError`` if that is unknown.

    The ``call`` of a pack with a number may be cancelled alone or with its pack.
    """
    names = {request_name(task_file.task), request_name(task_file.task, call)}
    requested = names.intersection(files.list_names(spool.layout.cancel))
    if not requested or not spool.shared:
        return bool(requested)
    allowed = files.owner(spool.layout.claimed_task(task_file)), spool.owner
    requesters = {files.owner(f"{spool.layout.cancel}/{each}") for each in requested}
    return not (requesters - {None}).isdisjoint(allowed)


def withdraw_request(spool: Spool, task: str, call: int | None = None) -> None:
    """Remove a request: the task, or the call of a pack, has ended."""
    with contextlib.suppress(OSError):  # 'spool gc' removes it later
        files.remove(f"{spool.layout.cancel}/{request_name(task, call)}")


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


def request(spool: Spool, task: str, call: int | None = None) -> None:
    """Request the worker that runs a task, or claims it next, to cancel it; harmless when repeated.

    ``call`` is the number of one call of a pack.
    """
    name = request_name(task, call)
    path = f"{spool.layout.cancel}/{name}"
    with files.translate_errors(f"cancel {name} in {spool.path}"):
        try:
            spool.in_directory(spool.layout.cancel, lambda: files.create(path, []))
        except FileExistsError:
            with contextlib.suppress(OSError):  # of another account, which asked before; or withdrawn just now
                files.touch(path)  # 'spool gc' goes by its age


class CancelRequests:
    """Cancel requests as one worker sees them, up to a second late, as they promise nothing."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._names: set[str] = set()
        self._listed = -math.inf

    def apply_to(self, task: str, owner: int, call: int | None = None, *, age: float = _LIST_EVERY) -> bool:
        """Return whether a task of the account ``owner``, or one call of a pack, is not to be run.

        A listing that is not older than ``age`` seconds is not repeated.
        """
        now = time.monotonic()
        if now - self._listed > age:
            self._names = set(files.list_names(self._spool.layout.cancel))
            self._listed = now
        if not self._names:
            return False
        name = request_name(task, call)
        if name not in self._names or not self._spool.shared:
            return name in self._names
        requester = files.owner(f"{self._spool.layout.cancel}/{name}")
        if requester not in (None, owner, self._spool.owner):
            accounts = account_name(requester), account_name(owner)
            _reported.warning(name, "{} asks to cancel a task of {}: it runs.".format(*accounts))
        return requester in (owner, self._spool.owner)

    def list_again(self) -> None:
        """List the requests anew at the next look: a call was interrupted by one of them."""
        self._listed = -math.inf

    def withdraw(self, task_file: TaskFile) -> None:
        """Remove the requests for a task, and for its calls, that has its outcome: no worker claims it any more."""
        if task_file.task in self._names:
            withdraw_request(self._spool, task_file.task)
        for name in self._names if task_file.calls else ():
            if name != task_file.task and task_of(name) == task_file.task:
                with contextlib.suppress(OSError):  # 'spool gc' removes it later
                    files.remove(f"{self._spool.layout.cancel}/{name}")

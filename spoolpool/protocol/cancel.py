"""Taking tasks back: one that waits by a rename, one that is claimed by a mark that asks whoever runs it."""

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

log = logging.getLogger(__name__)

_LOOK_EVERY = 1.0  # seconds


def cancel_task(spool: Spool, header: TaskHeader, task_file: TaskFile, *, held: bool = False) -> bool:
    """Take a waiting task back, or one that is held back; True if nobody had claimed it, and now nobody will.

    Its token stands in the results of its session, named as cancelled: it is the outcome.
    """
    inbox = spool.results(header.session, spool.account)
    target = f"{inbox}/{task_file.claimed_by(CANCELLED).name}"
    # in this order: it goes from the one to the other
    for where in (spool.layout.waiting, "") if held or header.held else ("",):
        try:
            place = where or spool.bucket(header.lane, header.bucket)
            files.move(f"{place}/{task_file.name}", target)
            return True
        except OSError as error:
            if files.exists(target):  # it happened; the answer was for a repeated request
                return True
            if error.errno not in files.GONE:  # else it was let go, or a worker was first
                raise
    return False


def is_requested(spool: Spool, task_file: TaskFile) -> bool:
    """Whether :func:`ask` was called for a claimed task, by who may; raises ``OSError`` where unknown."""
    if task_file.task not in files.list_names(spool.layout.cancel):
        return False
    if not spool.shared:
        return True
    who = files.owner(f"{spool.layout.cancel}/{task_file.task}")
    return who is not None and who in (files.owner(spool.layout.claimed_task(task_file)), spool.owner)


def withdraw_request(spool: Spool, task: str) -> None:
    """Take such a mark away: the task is over."""
    with contextlib.suppress(OSError):  # 'spool gc' finds what is left
        files.remove(f"{spool.layout.cancel}/{task}")


def request(spool: Spool, task: str) -> None:
    """Leave a mark for whoever has a task in hand, or claims it next; harmless when repeated."""
    with files.translate_errors(f"cancel {task} in {spool.path}"), contextlib.suppress(FileExistsError):
        files.create(f"{spool.layout.cancel}/{task}", [])


class CancelRequests:
    """The marks as one worker sees them, who looks once a second at most: a mark asks politely."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._names: set[str] = set()
        self._listed = -math.inf

    def cover(self, task_file: TaskFile, owner: int) -> bool:
        """Whether the task of this account is not to be run."""
        now = time.monotonic()
        if now - self._listed > _LOOK_EVERY:
            self._names = set(files.list_names(self._spool.layout.cancel))
            self._listed = now
        if task_file.task not in self._names or not self._spool.shared:
            return task_file.task in self._names
        who = files.owner(f"{self._spool.layout.cancel}/{task_file.task}")
        if who not in (None, owner, self._spool.owner):
            log.warning("%s asks to cancel a task of %s: it runs.", account_name(who), account_name(owner))
        return who in (owner, self._spool.owner)

    def over(self, task: str) -> None:
        """A task has its outcome: nobody claims it any more, and a mark of it has no purpose."""
        if task in self._names:
            withdraw_request(self._spool, task)

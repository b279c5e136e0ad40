"""Taking tasks back: one that waits by a rename, one that is claimed by a mark that asks whoever runs it."""

from __future__ import annotations

import contextlib
import logging
import math
import time

from spoolpool import fsio, layout
from spoolpool.explanation import explained
from spoolpool.layout import Token
from spoolpool.spool import Spool
from spoolpool.task import TaskHeader
from spoolpool.trust import account

log = logging.getLogger(__name__)

_LOOK_EVERY = 1.0  # seconds


def cancel(spool: Spool, header: TaskHeader, token: Token, *, held: bool = False) -> bool:
    """Take a waiting task back, or one that is held back; True if nobody had claimed it, and now nobody will.

    Its token stands in the results of its session, named as cancelled: it is the outcome.
    """
    inbox = spool.results(header.session, spool.account)
    target = f"{inbox}/{token.claimed_by(layout.CANCELLED).name}"
    # in this order: it goes from the one to the other
    for where in (spool.layout.waiting, "") if held or header.held else ("",):
        try:
            place = where or spool.bucket(header.lane, header.bucket)
            fsio.move(f"{place}/{token.name}", target)
            return True
        except OSError as error:
            if fsio.there(target):  # it happened; the answer was for a repeated request
                return True
            if error.errno not in fsio.GONE:  # else it was let go, or a worker was first
                raise
    return False


def is_asked(spool: Spool, token: Token) -> bool:
    """Whether :func:`ask` was called for a claimed task, by who may; raises ``OSError`` where unknown."""
    if token.task not in fsio.names(spool.layout.cancel):
        return False
    if not spool.shared:
        return True
    who = fsio.owner(f"{spool.layout.cancel}/{token.task}")
    return who is not None and who in (fsio.owner(spool.layout.claimed_token(token)), spool.owner)


def withdraw(spool: Spool, task: str) -> None:
    """Take such a mark away: the task is over."""
    with contextlib.suppress(OSError):  # 'spool gc' finds what is left
        fsio.remove(f"{spool.layout.cancel}/{task}")


def ask(spool: Spool, task: str) -> None:
    """Leave a mark for whoever has a task in hand, or claims it next; harmless when repeated."""
    with explained(f"cancel {task} in {spool.path}"), contextlib.suppress(FileExistsError):
        fsio.create(f"{spool.layout.cancel}/{task}", [])


class Marks:
    """The marks as one worker sees them, who looks once a second at most: a mark asks politely."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._names: set[str] = set()
        self._listed = -math.inf

    def cover(self, token: Token, owner: int) -> bool:
        """Whether the task of this account is not to be run."""
        now = time.monotonic()
        if now - self._listed > _LOOK_EVERY:
            self._names = set(fsio.names(self._spool.layout.cancel))
            self._listed = now
        if token.task not in self._names or not self._spool.shared:
            return token.task in self._names
        who = fsio.owner(f"{self._spool.layout.cancel}/{token.task}")
        if who not in (None, owner, self._spool.owner):
            log.warning("%s asks to cancel a task of %s: it runs.", account(who), account(owner))
        return who in (owner, self._spool.owner)

    def over(self, task: str) -> None:
        """A task has its outcome: nobody claims it any more, and a mark of it has no purpose."""
        if task in self._names:
            withdraw(self._spool, task)

"""Tasks that are held back: for a while after they raised, for others that they need, or until a time.

How long a delay is measured by each observer with its own monotonic clock, from the moment at which it first saw the
task in ``waiting/``; the worker that put it there saw it first. So no clocks are compared, and the death of that
worker only makes the wait longer. A time is compared with the clock that dates the spool's files, which is one for all.
"""

from __future__ import annotations

import contextlib
import logging
import time

from spoolpool import fsio, layout
from spoolpool.claim import read_task
from spoolpool.dependencies import Ended
from spoolpool.errors import SpoolpoolError
from spoolpool.layout import Token
from spoolpool.spool import Spool
from spoolpool.task import TaskHeader

log = logging.getLogger(__name__)

_LONGEST = 300.0
_PUT_OFF = 1.0  # seconds after which something that failed is tried again


def delay(header: TaskHeader, attempt: int) -> float:
    """Seconds before this attempt: twice as long each time, five minutes at most."""
    return min(_LONGEST, header.retry_delay * 2.0 ** max(0, attempt - 2))


def hold_back(spool: Spool, token: Token) -> None:
    """Put a claimed task that raised into ``waiting/``; it costs an attempt.

    An error is left to recovery: the claim, if it still stands, is this worker's.
    """
    fsio.move(spool.layout.claimed_token(token), f"{spool.layout.waiting}/{token.requeued().name}")


def release(spool: Spool, header: TaskHeader, token: Token) -> bool:
    """Let a task from ``waiting/`` go on; whether this call did it.

    Anybody may, whenever it may go, and nothing is concluded from the answer: whoever loses stops.
    """
    source = f"{spool.layout.waiting}/{token.name}"
    for _ in range(2):
        try:
            bucket = spool.bucket(header.lane, header.bucket)
            fsio.move(source, f"{bucket}/{token.name}")
            return True
        except OSError as error:
            if error.errno not in fsio.GONE:
                raise
            if fsio.gone(source):  # another one was first, or it was cancelled
                break
            spool.make_directories(spool.layout.bucket(header.lane, header.bucket))  # it was removed as empty
    return False


class Releaser:
    """Lets tasks from ``waiting/`` go on when their time has come. Any number of them may do so at once.

    Those that raised wait for a delay, and those that need others for their outcomes: the edges in ``needs/`` say
    for which, as far as this process has to look; their own headers have the last word, and may name a time.
    """

    def __init__(self, spool: Spool, ended: Ended | None = None) -> None:
        self._spool = spool
        self._ended = ended or Ended(spool)
        self._due: dict[Token, float] = {}
        self._headers: dict[Token, TaskHeader] = {}
        self._missing: dict[Token, set[tuple[str, str]]] = {}
        self._needed_by: dict[tuple[str, str], set[Token]] = {}
        self._again = 0.0
        self._asked = False

    @property
    def due(self) -> float | None:
        """When there is something to be done here, by this process's monotonic clock; None if nothing is known."""
        if not (self._due or self._asked):
            return None
        return min([*self._due.values(), *([self._again] if self._asked else [])])

    def look(self, *, woken: bool) -> bool:
        """Look, for an idle worker that has a reason to; whether a task went on.

        It has if something happened, or if tasks wait for others. It takes a fifth of its time for it at most.
        """
        if not (woken or self._missing or self._asked):
            return False
        if time.monotonic() < self._again:
            self._asked = True
            return False
        return self.round() > 0

    def round(self) -> int:
        """Look at ``waiting/`` once; returns how many tasks went on.

        Nothing is raised: what cannot be done now is done a while later.
        """
        began = time.monotonic()
        waiting = self._spool.layout.waiting
        try:
            tokens = {token for token in map(layout.parse_token, fsio.names(waiting)) if token and not token.worker}
        except OSError as error:  # the server is away for a moment
            log.info("Looking for tasks that are held back was put off: %s", error)
            tokens = self._due.keys() | self._missing.keys()
        for gone in self._due.keys() - tokens:
            del self._due[gone], self._headers[gone]
        for gone in self._missing.keys() - tokens:
            self._forget(gone)
        new = tokens - self._due.keys() - self._missing.keys()
        for token in new:
            if token.attempt > 1:  # it ran, so that what it needs has ended
                self._notice(token)
        released = self._let_go() + self._let_go_dependents({token for token in new if token.attempt == 1})
        now = time.monotonic()
        self._asked, self._again = False, now + 4 * (now - began)
        return released

    def _let_go(self) -> int:
        now = time.monotonic()
        released = 0
        for token in [token for token, due in self._due.items() if due <= now]:
            header = self._headers[token]
            try:
                if token.attempt == 1 and self._is_early(token, header):
                    continue
                released += release(self._spool, header, token)
            except (OSError, SpoolpoolError) as error:
                log.info("%s is held back for longer: %s", token.task, error)
                self._due[token] = now + _PUT_OFF
            else:
                del self._due[token], self._headers[token]
        return released

    def _is_early(self, token: Token, header: TaskHeader) -> bool:
        """Whether a task is not to start yet; then it is looked at again when its time has come."""
        left = header.not_before - self._spool.server_time() if header.not_before else 0.0
        if left > 0:
            self._headers[token] = header
            self._due[token] = time.monotonic() + left
        return left > 0

    def _notice(self, token: Token) -> None:
        with contextlib.suppress(OSError, SpoolpoolError):  # gone, or unreadable: 'spool check' tells
            header = read_task(self._spool, f"{self._spool.layout.waiting}/{token.name}", token)
            if header.task == token.task:
                self._headers[token] = header
                self._due[token] = time.monotonic() + delay(header, token.attempt)

    # -- those that need others

    def committed(self, session: str, token: Token) -> None:
        """This worker has committed a task: what waited for nothing else, as far as it is known here, goes on."""
        self._ended.note(session, token)
        if (session, token.task) in self._needed_by:
            for dependent in self._miss_no_more((session, token.task)):
                self._try(dependent)

    def _miss_no_more(self, needed: tuple[str, str]) -> list[Token]:
        """Something has ended; returns the tasks that wait for nothing else, as far as it is known here."""
        free = []
        for dependent in sorted(self._needed_by.pop(needed)):
            self._missing[dependent].discard(needed)
            if not self._missing[dependent]:
                free.append(dependent)
        return free

    def _let_go_dependents(self, new: set[Token]) -> int:
        try:
            if new:
                self._read_edges(new)
            for session in {session for session, _ in self._needed_by}:
                self._ended.look(session)
        except OSError as error:
            log.info("Looking for what tasks need was put off: %s", error)
            return 0
        free = {token for token in new if not self._missing[token]}
        for needed in [each for each in self._needed_by if self._ended.token(*each)]:
            free.update(self._miss_no_more(needed))
        return sum(map(self._try, sorted(free)))

    def _read_edges(self, new: set[Token]) -> None:
        """Learn from names alone what tasks need: they may be thousands."""
        by_task = {token.task: token for token in new}
        for token in new:
            self._missing[token] = set()
        for session in filter(layout.is_session, fsio.names(self._spool.layout.needs)):
            for edge in map(layout.parse_edge, fsio.names(f"{self._spool.layout.needs}/{session}")):
                if edge is not None and edge.needed_by in by_task:
                    self._wait_for(by_task[edge.needed_by], session, edge.task)

    def _wait_for(self, token: Token, session: str, task: str) -> None:
        self._missing[token].add((session, task))
        self._needed_by.setdefault((session, task), set()).add(token)

    def _try(self, token: Token) -> bool:
        """Let a task go that needs nothing more, if its header says so too; whether it went."""
        try:
            header = read_task(self._spool, f"{self._spool.layout.waiting}/{token.name}", token)
            if missing := [each for each in header.needed() if not self._ended.token(*each)]:
                for each in missing:  # its edges were not seen, or are gone
                    self._wait_for(token, *each)
                return False
            went = not self._is_early(token, header) and release(self._spool, header, token)
        except (OSError, SpoolpoolError) as error:  # gone, or unreadable: 'spool check' tells; or later
            log.debug("%s waits for longer: %s", token.task, error)
            return False
        self._forget(token)
        return went

    def _forget(self, token: Token) -> None:
        for needed in self._missing.pop(token, ()):
            others = self._needed_by[needed]
            others.discard(token)
            if not others:
                del self._needed_by[needed]

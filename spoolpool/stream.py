"""Prints what a session's tasks print, as it comes, where their submitter is."""

from __future__ import annotations

import contextlib
import logging
import queue
import sys
import threading
from queue import SimpleQueue

from spoolpool import fsio, layout
from spoolpool.backoff import Backoff
from spoolpool.errors import SpoolpoolError
from spoolpool.layout import Token
from spoolpool.logs import Following, Lines, Printed, for_terminal
from spoolpool.session import Session
from spoolpool.task import TaskHeader
from spoolpool.trust import Trust

log = logging.getLogger(__name__)


class Stream:
    """Follows a session's tasks in a thread, and prints whole lines, each with the name of its task.

    It goes to what ``sys.stdout`` is at that moment, a notebook's too. The lines of one rank keep their order.
    """

    def __init__(self, session: Session, trust: Trust) -> None:
        self._session = session
        self._following = Following(session.spool, trust)
        self._ended: SimpleQueue[tuple[TaskHeader, Token] | None] = SimpleQueue()
        self._headers: dict[Token, TaskHeader] = {}
        self._over: set[Token] = set()
        self._lines: dict[tuple[Token, int], Lines] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"spoolpool-output-{session.name}", daemon=True)
        session.on_outcome(self.ended)
        self._thread.start()

    def submitted(self) -> None:
        """There is something to wait for."""
        self._ended.put(None)

    def ended(self, header: TaskHeader, token: Token) -> None:
        """A task's outcome has come, before its future has it."""
        self._ended.put((header, token))

    def close(self) -> None:
        """End once nothing is pending and everything was printed; harmless when repeated."""
        self._closed = True
        self._ended.put(None)

    def join(self) -> None:
        """Wait for that, after :meth:`close`."""
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        rhythm = Backoff(0.01, 0.5)
        while True:
            pending = {future.task: future.header for future in self._session.pending()}
            try:
                new = self._look(pending)
            except OSError as error:  # the server is away for a moment
                log.info("What tasks print is looked for later: %s", error)
                new = False
            except (SpoolpoolError, ValueError) as error:  # somebody else's logs; or standard output was closed
                log.warning("What tasks print is not shown any more: %s", error)
                return
            idle = not pending and not len(self._following)
            if self._closed and idle and self._ended.empty():
                return
            if new:
                rhythm.reset()
            with contextlib.suppress(queue.Empty):
                self._take(self._ended.get(timeout=None if idle else rhythm.next()))

    def _take(self, ended: tuple[TaskHeader, Token] | None) -> None:
        if ended is None:
            return
        header, token = ended
        if token not in self._headers:  # it ran between two looks
            self._headers[token] = header
            self._following.add(token)
        self._following.over(token)
        self._over.add(token)

    def _look(self, pending: dict[str, TaskHeader]) -> bool:
        """Print what is new; whether something was."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._take(self._ended.get_nowait())
        where = self._session.spool.layout
        claimed = {
            token
            for token in map(layout.parse_token, fsio.names(where.claimed) if pending else ())
            if token is not None and token.task in pending
        }
        for token in claimed - self._headers.keys():
            self._headers[token] = pending[token.task]
            self._following.add(token)
        for token in set(self._following.running()) - claimed:
            self._following.over(token)
        new = False
        for printed in self._following.look():
            self._print(printed)
            new = True
        for token in [token for token in self._over if token not in self._following]:
            self._over.discard(token)
            del self._headers[token]
        return new

    def _print(self, printed: Printed) -> None:
        header = self._headers[printed.token]
        lines = self._lines.setdefault((printed.token, printed.rank), Lines())
        lane = layout.parse_lane(header.lane)
        rank = f":{printed.rank}" if lane is not None and lane.ranks > 1 else ""
        prefix = f"[{header.name.rpartition('.')[2]} {header.task[-10:]}{rank}] "
        text = "".join(f"{prefix}{for_terminal(line)}\n" for line in lines.feed(printed.data))
        if not printed.data:
            del self._lines[printed.token, printed.rank]
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()

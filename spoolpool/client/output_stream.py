"""Prints what a session's tasks print, as it comes, where their submitter is."""

from __future__ import annotations

import contextlib
import logging
import queue
import sys
import threading
from queue import SimpleQueue

from spoolpool.client.session import Session
from spoolpool.errors import SpoolpoolError
from spoolpool.format.headers import TaskHeader
from spoolpool.format.names import TaskFile, parse_lane, parse_task_file
from spoolpool.monitor.logs import Lines, OutputFollower, Printed, for_terminal
from spoolpool.security.trust import Trust
from spoolpool.system import files
from spoolpool.system.backoff import Backoff

log = logging.getLogger(__name__)


class OutputStream:
    """Follows a session's tasks in a thread, and prints whole lines, each with the name of its task.

    It goes to what ``sys.stdout`` is at that moment, a notebook's too. The lines of one rank keep their order.
    """

    def __init__(self, session: Session, trust: Trust) -> None:
        self._session = session
        self._following = OutputFollower(session.spool, trust)
        self._ended: SimpleQueue[tuple[TaskHeader, TaskFile] | None] = SimpleQueue()
        self._headers: dict[TaskFile, TaskHeader] = {}
        self._over: set[TaskFile] = set()
        self._lines: dict[tuple[TaskFile, int], Lines] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"spoolpool-output-{session.name}", daemon=True)
        session.on_outcome(self.ended)
        self._thread.start()

    def submitted(self) -> None:
        """There is something to wait for."""
        self._ended.put(None)

    def ended(self, header: TaskHeader, task_file: TaskFile) -> None:
        """A task's outcome has come, before its future has it."""
        self._ended.put((header, task_file))

    def close(self) -> None:
        """End once nothing is pending and everything was printed; harmless when repeated."""
        self._closed = True
        self._ended.put(None)

    def join(self) -> None:
        """Wait for that, after :meth:`close`."""
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        backoff = Backoff(0.01, 0.5)
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
                backoff.reset()
            with contextlib.suppress(queue.Empty):
                self._take(self._ended.get(timeout=None if idle else backoff.next()))

    def _take(self, ended: tuple[TaskHeader, TaskFile] | None) -> None:
        if ended is None:
            return
        header, task_file = ended
        if task_file not in self._headers:  # it ran between two looks
            self._headers[task_file] = header
            self._following.add(task_file)
        self._following.finish(task_file)
        self._over.add(task_file)

    def _look(self, pending: dict[str, TaskHeader]) -> bool:
        """Print what is new; whether something was."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._take(self._ended.get_nowait())
        where = self._session.spool.layout
        claimed = {
            task_file
            for task_file in map(parse_task_file, files.list_names(where.claimed) if pending else ())
            if task_file is not None and task_file.task in pending
        }
        for task_file in claimed - self._headers.keys():
            self._headers[task_file] = pending[task_file.task]
            self._following.add(task_file)
        for task_file in set(self._following.running()) - claimed:
            self._following.finish(task_file)
        new = False
        for printed in self._following.poll():
            self._print(printed)
            new = True
        for task_file in [task_file for task_file in self._over if task_file not in self._following]:
            self._over.discard(task_file)
            del self._headers[task_file]
        return new

    def _print(self, printed: Printed) -> None:
        header = self._headers[printed.task_file]
        lines = self._lines.setdefault((printed.task_file, printed.rank), Lines())
        lane = parse_lane(header.lane)
        rank = f":{printed.rank}" if lane is not None and lane.ranks > 1 else ""
        prefix = f"[{header.name.rpartition('.')[2]} {header.task[-10:]}{rank}] "
        text = "".join(f"{prefix}{for_terminal(line)}\n" for line in lines.feed(printed.data))
        if not printed.data:
            del self._lines[printed.task_file, printed.rank]
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()

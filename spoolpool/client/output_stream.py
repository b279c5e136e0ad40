"""Printer of the output of a session's tasks in the submitter's process, as it comes."""

from __future__ import annotations

import contextlib
import logging
import queue
import sys
import threading
from queue import SimpleQueue

from spoolpool.client.session import SubmitterSession
from spoolpool.format.headers import TaskHeader
from spoolpool.format.names import TaskFile, parse_lane, parse_task_file
from spoolpool.monitor.logs import Lines, OutputFollower, Printed, for_terminal
from spoolpool.security.trust import Trust
from spoolpool.system import files
from spoolpool.system.backoff import Backoff
from spoolpool.system.user_code import describe_error

log = logging.getLogger(__name__)


class OutputStream:
    """Thread that follows a session's tasks and prints whole lines, each with the name of its task.

    It prints to the current ``sys.stdout``, also a notebook's. The lines of one rank keep their order.
    """

    def __init__(self, session: SubmitterSession, trust: Trust) -> None:
        self._session = session
        self._follower = OutputFollower(session.spool, trust)
        self._wake_ups: SimpleQueue[tuple[TaskHeader, TaskFile] | None] = SimpleQueue()  # with a finished task, if any
        self._headers: dict[TaskFile, TaskHeader] = {}
        self._finished: set[TaskFile] = set()
        self._lines: dict[tuple[TaskFile, int], Lines] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"spoolpool-output-{session.name}", daemon=True)
        session.collector.delivery.on_outcome = self.ended
        self._thread.start()

    def submitted(self) -> None:
        """Wake the thread after a submission."""
        self._wake_ups.put(None)

    def ended(self, header: TaskHeader, task_file: TaskFile) -> None:
        """Wake the thread with a task whose outcome has come; to be called before its future is done."""
        self._wake_ups.put((header, task_file))

    def close(self) -> None:
        """End once nothing is pending and all output is printed; may be repeated."""
        self._closed = True
        self._wake_ups.put(None)

    def join(self) -> None:
        """Wait for the end of the thread, after :meth:`close`."""
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        backoff = Backoff(0.01, 0.5)
        while True:
            has_pending = len(self._session.pending) > 0  # before the listing
            try:
                printed = self._print_new(has_pending)
            except OSError as error:  # the file server is unreachable for a moment
                log.info("Cannot read the output of the tasks now; trying again: %s", error)
                printed = False
            except BaseException as error:  # noqa: BLE001  another account's logs, or a stream of the user that raises
                log.warning("The output of the tasks is no longer printed: %s", describe_error(error))
                return
            idle = not has_pending and not len(self._follower)
            if self._closed and idle and self._wake_ups.empty():
                return
            if printed:
                backoff.reset()
            with contextlib.suppress(queue.Empty):
                self._finish(self._wake_ups.get(timeout=None if idle else backoff.next()))

    def _finish(self, ended: tuple[TaskHeader, TaskFile] | None) -> None:
        """Follow a finished task to the end of its output."""
        if ended is None:
            return
        header, task_file = ended
        if task_file not in self._headers:  # it was claimed and ended between two listings
            self._headers[task_file] = header
            self._follower.add(task_file)
        self._follower.finish(task_file)
        self._finished.add(task_file)

    def _print_new(self, has_pending: bool) -> bool:
        """Print new output; returns whether there was any."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._finish(self._wake_ups.get_nowait())
        pending = self._session.pending
        names = files.list_names(self._session.spool.layout.claimed) if has_pending else ()
        claimed = {
            task_file: future.header
            for task_file in map(parse_task_file, names)
            if task_file is not None and (future := pending.get(task_file.task)) is not None
        }
        for task_file in claimed.keys() - self._headers.keys():
            self._headers[task_file] = claimed[task_file]
            self._follower.add(task_file)
        for task_file in set(self._follower.running()) - claimed.keys():
            self._follower.finish(task_file)
        any_output = False
        for printed in self._follower.poll():
            self._print(printed)
            any_output = True
        for task_file in [task_file for task_file in self._finished if task_file not in self._follower]:
            self._finished.discard(task_file)
            del self._headers[task_file]
        return any_output

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

"""Progress of running tasks: a small file in the worker's entry, overwritten in place."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from spoolpool.errors import SpoolpoolError
from spoolpool.protocol.spool import Spool
from spoolpool.system import file_content, files, records
from spoolpool.system.bounds import Seconds, Word
from spoolpool.system.records import BadRecord
from spoolpool.system.user_code import describe_value

log = logging.getLogger(__name__)

_EVERY = 0.5  # least seconds between two writes, however often a function reports
_TEXT = 120  # characters
_SIZE = 1024  # bytes of the file: always the same, so that nothing of a longer text remains


class TaskProgress(msgspec.Struct, frozen=True, kw_only=True):
    """Last progress report of a task. Its text may hold any character: escape it for a terminal."""

    task: Word
    """Task id; the worker may run another one by now."""
    fraction: Annotated[float, Meta(ge=0, le=1)] | None
    """From 0 to 1; None if unknown."""
    text: Annotated[str, Meta(max_length=_SIZE)]
    """Text of the function."""
    told: Seconds
    """Time of the report: seconds since the epoch, by its host's clock."""


_decoder = msgspec.json.Decoder(TaskProgress)


class Progress:
    """Writer of the progress of one worker's tasks, on its rank 0. Never raises."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._fd = -1
        self._last: TaskProgress | None = None
        self._written = 0.0
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()
        self._warned = False

    def report(self, worker: str, task: str, fraction: float | None, text: str) -> None:
        """Report the progress of a task. Of reports that come faster than they are written, the last is written."""
        if fraction is not None:
            fraction = self._fraction(fraction)
        text = str(text)[:_TEXT].encode(errors="replace").decode()
        self._last = TaskProgress(task=task, fraction=fraction, text=text, told=time.time())
        if self._timer is not None:
            return
        with self._lock:
            left = self._written + _EVERY - time.monotonic()
            if left <= 0:
                self._write(worker)
            elif self._timer is None:
                self._timer = threading.Timer(left, self._later, (worker,))
                self._timer.daemon = True
                self._timer.start()

    def _fraction(self, given: Any) -> float | None:
        """Return the nearest number from 0 to 1; None if it is no number. The first other value is logged."""
        try:
            number = float(given)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not (-0.01 < number < 1.01 or self._warned):  # rounding errors
            self._warned = True
            log.warning("progress() was given %s: it is a fraction from 0 to 1; 50 %% is 0.5.", describe_value(given))
        return None if math.isnan(number) else min(max(number, 0.0), 1.0)

    def finish(self) -> None:
        """Forget the last report, as its task has ended."""
        self._last = None

    def _later(self, worker: str) -> None:
        with self._lock:
            self._timer = None
            self._write(worker)

    def _write(self, worker: str) -> None:
        last = self._last
        if last is None:
            return
        self._written = time.monotonic()
        data = msgspec.json.encode(last)
        with contextlib.suppress(OSError, SpoolpoolError):  # nothing depends on it
            if self._fd < 0:
                spool = Spool(self._directory)
                self._fd = files.open_edit(f"{spool.layout.worker(worker)}/progress", spool.rights.file)
            file_content.write_at(self._fd, data.ljust(_SIZE), 0)


def load_progress(spool: Spool, worker: str) -> TaskProgress:
    """Return the last progress report of a worker's task.

    Raises ``OSError`` as open(2), and :class:`BadRecord` for an invalid one.
    """
    path = f"{spool.layout.worker(worker)}/progress"
    try:
        return records.load(path, _decoder)
    except BadRecord:  # race: it is overwritten in place, and may have been read half written
        return records.load(path, _decoder)


def progress_of(spool: Spool, worker: str) -> TaskProgress | None:
    """Return the last progress report of a worker's task; None if it is missing, or invalid, which is reported."""
    try:
        return load_progress(spool, worker)
    except (OSError, BadRecord) as error:
        records.report(f"{spool.layout.worker(worker)}/progress", error)
        return None

"""The batch job around this process, of which its supervisor records the end."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator

from spoolpool import settings
from spoolpool.errors import BadNode, SpoolpoolError
from spoolpool.format.names import is_job_name, new_job_name
from spoolpool.pool import batch_jobs, job_ends
from spoolpool.pool.job_ends import EndKind, JobEnd
from spoolpool.protocol.spool import Spool
from spoolpool.system.job_ids import job_id
from spoolpool.system.text import escape_line

_ELEMENT = re.compile(r"_\d|\[\d|\.\d+$", re.ASCII)  # in the id of an element of an array, of any batch system
_WHY = 4000  # characters of an error


class OwnJob:
    """Recorder of the end of the job around this process; does nothing outside of batch jobs.

    A script that was not submitted through the spool has no name there, and gets one if it fails. An element of an
    array records its failure alone: its name is that of all elements.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        name = os.environ.get(settings.ENV_JOB, "")
        self._name = name if is_job_name(name) else ""
        self._id = job_id()
        self.has_groups_left: Callable[[], bool] = lambda: False
        """Function that returns whether no shape of groups was given up; set by the supervisor's caller."""
        if self._name and not self._is_element():
            job_ends.forget_requeued(spool, self._name)

    def _is_element(self) -> bool:
        return _ELEMENT.search(self._id) is not None

    @contextlib.contextmanager
    def recording(self) -> Iterator[OwnJob]:
        """Record the end of the job when the block ends; its exception is the error of the supervisor.

        A job has not failed if it gave up some nodes (:class:`BadNode`), and groups worked on others.
        """
        try:
            yield self
        except Exception as error:
            if isinstance(error, BadNode) and self.has_groups_left():
                self._record_order()
            else:
                self._write("failed", error)
            raise
        self._record_order()

    def _record_order(self) -> None:
        """Record that the job ends in order, possibly on request before one of its groups had started."""
        if self._name and not self._is_element():
            self._write("done" if job_ends.has_started(self._spool, self._name) else "cancelled")

    def _write(self, kind: EndKind, error: BaseException | None = None) -> None:
        if not self._name and (not self._id or sys.stderr.isatty()):  # a person sees the error
            return
        record = batch_jobs.read_record(self._spool, self._name) if self._name else None
        text = "" if error is None else escape_line(str(error) or type(error).__name__)
        with contextlib.suppress(OSError, SpoolpoolError):  # the error itself is more important
            if not self._name:
                self._spool.make_directories(self._spool.layout.jobs)
            end = JobEnd(
                name=self._name or new_job_name(),
                kind=kind,
                why=text[:_WHY],
                job=escape_line(self._id),
                lane=record.lane if record else "",
                session=record.session if record else "",
                output=_last_lines() if kind == "failed" else (),
            )
            job_ends.write_end(self._spool, end)


def _last_lines() -> tuple[str, ...]:
    """Return the last lines in the file to which this process prints; none if it prints elsewhere."""
    try:
        path = os.readlink("/proc/self/fd/2")
    except OSError:  # no /proc, or closed
        return ()
    return job_ends.last_lines(path) if os.path.isabs(path) else ()

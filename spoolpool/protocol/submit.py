"""Put a task into the spool: a submitter's side of the protocol."""

from __future__ import annotations

import os

from spoolpool.errors import NotTrusted, SpoolpoolError
from spoolpool.format.envelope import Buffer
from spoolpool.format.headers import TaskHeader
from spoolpool.format.names import TaskFile
from spoolpool.protocol import links
from spoolpool.protocol.spool import Spool
from spoolpool.security.signing import task_label
from spoolpool.system import files
from spoolpool.system.backoff import Backoff

_TRIES = 8  # of an operation that fails for no reason that we know: about two seconds


def submit_task(spool: Spool, header: TaskHeader, parts: list[Buffer]) -> TaskFile:
    """Put a task file into its lane; when this returns, the task is in the spool.

    One that needs others, or is not to start yet, is held back until somebody lets it go
    (:mod:`spoolpool.protocol.delay`): first its edges are made, so that whoever collects what it needs leaves that
    there.

    Raises :class:`SpoolFull`, :class:`SpoolDenied` or another :class:`SpoolpoolError`; then nothing
    of the task is left in the spool.
    """
    task_file = TaskFile(header.task, 1, 1)
    source = f"{spool.layout.tmp}/{header.task}"
    with files.translate_errors(f"submit a task to {spool.path}"):
        spool.write(source, task_label(header.task), parts)
        if header.needs:
            try:
                links.add_link(spool, header)
            except BaseException:
                links.remove_link(spool, header)
                files.remove(source)
                raise
        try:
            _publish(spool, source, header, task_file)
        except BaseException as error:
            if isinstance(error, NotTrusted):
                files.remove(source)
            links.remove_link(spool, header)
            raise
    return task_file


def _publish(spool: Spool, source: str, header: TaskHeader, task_file: TaskFile) -> None:
    held = header.held
    plain = spool.layout.waiting if held else spool.layout.bucket(header.lane, header.bucket)
    target = f"{plain}/{task_file.name}"
    backoff: Backoff | None = None
    for left in range(_TRIES - 1, -1, -1):
        try:
            if spool.shared and not held:
                target = f"{spool.bucket(header.lane, header.bucket)}/{task_file.name}"
            files.move(source, target, durability=spool.config.durability)
            return
        except OSError as error:
            # not the error: its frames would keep the task's data until garbage is collected
            reason = error.errno or 0
            try:
                if not files.exists(source):  # it happened; the answer was for a repeated request
                    return
                if error.errno in files.GONE:  # the bucket is not made yet, or was removed as empty
                    spool.make_directories(plain)
                    continue
            except OSError as refused:
                reason = refused.errno or 0
            if left and reason not in files.FULL | files.DENIED:
                backoff = backoff or Backoff(0.005, 1.0, 2.0)
                backoff.sleep()
                continue
            # gone before it was removed: moved after all, if it stands there; a repeated request says so as well
            if files.remove(source) or not files.exists(target):
                raise OSError(reason, os.strerror(reason), target) from None
            return
    files.remove(source)
    raise SpoolpoolError(
        f"Cannot submit to {spool.path}: {plain} vanishes as often as it is made. "
        "Look for what removes directories there."
    )

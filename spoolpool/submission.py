"""Put a task into the spool: a submitter's side of the protocol."""

from __future__ import annotations

import os

from spoolpool import edges, fsio
from spoolpool.backoff import Backoff
from spoolpool.envelope import Buffer
from spoolpool.errors import NotTrusted, SpoolpoolError
from spoolpool.explanation import explained
from spoolpool.layout import Token
from spoolpool.signature import task_label
from spoolpool.spool import Spool
from spoolpool.task import TaskHeader

_TRIES = 8  # of an operation that fails for no reason that we know: about two seconds


def submit(spool: Spool, header: TaskHeader, parts: list[Buffer]) -> Token:
    """Put a task file into its lane; when this returns, the task is in the spool.

    One that needs others, or is not to start yet, is held back until somebody lets it go
    (:mod:`spoolpool.waiting`): first its edges are made, so that whoever collects what it needs leaves that there.

    Raises :class:`SpoolFull`, :class:`SpoolDenied` or another :class:`SpoolpoolError`; then nothing
    of the task is left in the spool.
    """
    token = Token(header.task, 1, 1)
    source = f"{spool.layout.tmp}/{header.task}"
    with explained(f"submit a task to {spool.path}"):
        spool.write(source, task_label(header.task), parts)
        if header.needs:
            try:
                edges.make(spool, header)
            except BaseException:
                edges.remove(spool, header)
                fsio.remove(source)
                raise
        try:
            _publish(spool, source, header, token)
        except BaseException as error:
            if isinstance(error, NotTrusted):
                fsio.remove(source)
            edges.remove(spool, header)
            raise
    return token


def _publish(spool: Spool, source: str, header: TaskHeader, token: Token) -> None:
    held = header.held
    plain = spool.layout.waiting if held else spool.layout.bucket(header.lane, header.bucket)
    target = f"{plain}/{token.name}"
    rhythm: Backoff | None = None
    for left in range(_TRIES - 1, -1, -1):
        try:
            if spool.shared and not held:
                target = f"{spool.bucket(header.lane, header.bucket)}/{token.name}"
            fsio.move(source, target, durability=spool.config.durability)
            return
        except OSError as error:
            # not the error: its frames would keep the task's data until garbage is collected
            reason = error.errno or 0
            try:
                if not fsio.there(source):  # it happened; the answer was for a repeated request
                    return
                if error.errno in fsio.GONE:  # the bucket is not made yet, or was removed as empty
                    spool.make_directories(plain)
                    continue
            except OSError as refused:
                reason = refused.errno or 0
            if left and reason not in fsio.FULL | fsio.DENIED:
                rhythm = rhythm or Backoff(0.005, 1.0, 2.0)
                rhythm.sleep()
                continue
            # gone before it was removed: moved after all, if it stands there; a repeated request says so as well
            if fsio.remove(source) or not fsio.there(target):
                raise OSError(reason, os.strerror(reason), target) from None
            return
    fsio.remove(source)
    raise SpoolpoolError(
        f"Cannot submit to {spool.path}: {plain} vanishes as often as it is made. "
        "Look for what removes directories there."
    )

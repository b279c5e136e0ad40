"""Command of a user that runs when all tasks that were waited for have ended, such as one that sends mail."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from spoolpool import settings
from spoolpool.errors import TaskCancelled, WorkerLost

log = logging.getLogger(__name__)

_COUNTED = ("done", "raised", "lost", "cancelled", "failed")


def end_of(future: Future[Any]) -> str:
    """Return the end of a task by its future, which is done: ``done``, ``raised``, ``lost`` or ``cancelled``."""
    if future.cancelled():
        return "cancelled"
    error = future.exception()
    if isinstance(error, TaskCancelled):
        return "cancelled"
    return "done" if error is None else "lost" if isinstance(error, WorkerLost) else "raised"


def run_end_command(command: str, counts: Mapping[str, int], *, spool: str, session: str = "") -> None:
    """Run a command by ``sh``, and wait for it; if it fails, this is logged and nothing else.

    It finds in its environment the spool in ``SPOOLPOOL_DIR``, the session, if there is one, in ``SPOOLPOOL_SESSION``,
    and the numbers of tasks by their ends in ``SPOOLPOOL_DONE``, ``SPOOLPOOL_RAISED``, ``SPOOLPOOL_LOST``,
    ``SPOOLPOOL_CANCELLED`` and ``SPOOLPOOL_FAILED``. ``SPOOLPOOL_ENDED`` is the number of all tasks.
    """
    import subprocess  # late: few programs have such a command

    variables = {f"SPOOLPOOL_{end.upper()}": str(counts.get(end, 0)) for end in _COUNTED}
    variables |= {"SPOOLPOOL_ENDED": str(sum(counts.values())), settings.ENV_SPOOL: spool, "SPOOLPOOL_SESSION": session}
    try:
        code = subprocess.run(
            ["sh", "-c", command], stdin=subprocess.DEVNULL, env={**os.environ, **variables}, check=False
        ).returncode
    except OSError as error:
        log.warning("The command %r for the end of the tasks cannot be run: %s", command, error)
        return
    if code:
        log.warning("The command %r for the end of the tasks ended with exit code %d", command, code)

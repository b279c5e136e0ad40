"""End of executors and sessions at the exit of the process.

This module is imported with the executor, and registers its function then: functions that a script registers later run
earlier, and may still submit calls.
"""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

from spoolpool.system import fork

if TYPE_CHECKING:
    from spoolpool.client.executor_runtime import ExecutorRuntime
    from spoolpool.client.session import SubmitterSession

_at_work: weakref.WeakSet[ExecutorRuntime | SubmitterSession] = weakref.WeakSet()
"""Objects whose threads keep them alive when their executor is gone; the exit of the process waits for them."""


def close_at_exit(each: ExecutorRuntime | SubmitterSession) -> None:
    """Let the exit of this process close an object and wait for its threads; that of a forked child does not."""
    _at_work.add(each)
    fork.call_in_child(each, _at_work.discard)


def _at_exit() -> None:
    if not _at_work:
        return
    from spoolpool.client import ctrl_c
    from spoolpool.client.session import SubmitterSession

    # a runtime first flushes into its session
    working = sorted(_at_work, key=lambda each: isinstance(each, SubmitterSession))
    try:
        if not ctrl_c.ended_by_ctrl_c():
            _wait_at_exit(working)
            return
    except KeyboardInterrupt:  # the script has ended, and the user does not wait for its calls
        pass
    again = False
    for each in working:
        try:
            (ctrl_c.kill if again else ctrl_c.end_interrupted)(each)
        except KeyboardInterrupt:
            again = True


def _wait_at_exit(working: Sequence[ExecutorRuntime | SubmitterSession]) -> None:
    from spoolpool.client.session import SubmitterSession

    for each in working:
        if isinstance(each, SubmitterSession) and each.may_be_left:
            each.detach()
        else:
            each.close()
    for each in working:
        each.join()


atexit.register(_at_exit)

"""Many groups of one executor: none of them starves when calls take long, also after many short ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from spoolpool import Executor, Submission, current_task
from spoolpool.monitor.status import StatusCollector
from tests.support import tasks
from tests.support.waiting import wait_until

GROUPS = 16


def group() -> str:
    """Return the id of the group that runs the call."""
    return current_task().worker


def wait_for(mark: Path, end: Path) -> str:
    """Mark a file, wait for another one, and return the id of the group."""
    tasks.mark_and_wait(mark, end)
    return current_task().worker


def busy_groups(status: StatusCollector) -> int:
    return sum(bool(each.task) for each in status.collect().groups)


@pytest.mark.slow
@pytest.mark.parametrize("pack", [None, False])
def test_every_group_gets_a_call_when_calls_take_long(pack: bool | None, tmp_path: Path) -> None:
    end = tmp_path / "end"
    marks = [tmp_path / str(number) for number in range(GROUPS)]
    with Executor(max_workers=GROUPS, backend="local", submission=Submission(pack=pack)) as executor:
        assert executor._runtime is not None
        status = StatusCollector(executor._runtime.spool)
        wait_until(lambda: len(status.collect().groups) == GROUPS, "all groups are there", timeout=300.0)
        # afterwards most groups leave new tasks to others for a moment
        assert all(call.result() for call in [executor.submit(group) for _ in range(500)])
        try:
            calls = [executor.submit(wait_for, mark, end) for mark in marks]
            wait_until(lambda: all(mark.exists() for mark in marks), "all run at once", timeout=300.0)
            wait_until(lambda: busy_groups(status) == GROUPS, "the status shows a task of each group")
        finally:
            end.touch()
        assert len({call.result() for call in calls}) == GROUPS

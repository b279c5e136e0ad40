"""Table of the pending tasks of a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from spoolpool.client.futures import TaskFuture
from spoolpool.format.headers import TaskHeader
from spoolpool.format.names import new_task_id
from tests.support.fake_worker import LANE, Clock, Inbox, Stage

OTHER = LANE.replace("default", "other")


@pytest.fixture
def inbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Inbox:
    return Stage(tmp_path / "stage", Clock.installed(monkeypatch)).inbox()


def add(inbox: Inbox, lane: str, not_before: float = 0.0) -> TaskFuture:
    task = new_task_id()
    header = TaskHeader(task=task, session=inbox.name, lane=lane, bucket="", not_before=not_before)
    future = TaskFuture(inbox, header)
    inbox.pending.add(future)
    return future


def test_lanes_of_pending_tasks_are_those_that_may_start(inbox: Inbox) -> None:
    pending = inbox.pending
    assert pending.lanes(100.0) == set()
    first, second = add(inbox, LANE), add(inbox, LANE)
    pending.add(first)  # once more
    third, later = add(inbox, OTHER), add(inbox, "later" + LANE, not_before=50.0)
    assert pending.lanes(49.0) == {LANE, OTHER}
    assert pending.lanes(50.0) == {LANE, OTHER, later.header.lane}
    pending.mark_ended(first, "done")
    pending.withdraw(third.task)
    assert pending.lanes(49.0) == {LANE}
    pending.mark_ended(second, "done")
    pending.mark_ended(second, "done")
    assert pending.lanes(49.0) == set()
    assert pending.forget() == [later]
    assert pending.lanes(50.0) == set()


def test_lanes_are_found_without_a_look_at_each_task(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(10):
        add(inbox, LANE)
    monkeypatch.setattr(inbox.pending, "_futures", None)
    assert inbox.pending.lanes(0.0) == {LANE}


def test_lanes_of_a_forked_child_are_its_own(inbox: Inbox) -> None:
    pending = [add(inbox, LANE), add(inbox, OTHER, not_before=1.0)]
    assert inbox.pending.after_fork() == pending
    assert inbox.pending.lanes(2.0) == set()


def test_failed_lane_leaves_the_tasks_of_the_others(inbox: Inbox) -> None:
    first, other = add(inbox, LANE), add(inbox, OTHER)
    assert inbox.pending.forget(LANE) == [first]
    assert inbox.pending.lanes(0.0) == {OTHER}
    assert inbox.pending.futures() == [other]

"""Demand of short calls for worker groups, and packs of calls that a few groups run as fast as they are submitted."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from spoolpool import Executor
from spoolpool.client import demand
from spoolpool.client.demand import Demand
from spoolpool.client.durations import Durations
from spoolpool.client.function_stats import FunctionStats
from spoolpool.client.map import ChunkSize
from spoolpool.client.packs import PackedFuture
from tests.support import tasks
from tests.support.fake_worker import Clock
from tests.support.waiting import wait_until


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(demand, "time", found)
    return found


def lasting(seconds: float) -> Durations:
    found = Durations()
    found.add(1, seconds)
    return found


def submitted(clock: Clock, count: int, interval: float) -> Demand:
    found = Demand()
    for _ in range(count):
        clock.now += interval
        found.note_submission()
    found.note_end()
    return found


def test_calls_keep_as_many_groups_busy_as_they_take_longer_than_their_submission(clock: Clock) -> None:
    calls = submitted(clock, 20, 0.0001)
    assert calls.groups(lasting(0.00001)) == 1
    assert calls.groups(lasting(0.001)) == pytest.approx(10)
    assert calls.groups(lasting(0.1)) == pytest.approx(1000)


def test_demand_is_unknown_without_a_measure_of_both_times(clock: Clock) -> None:
    calls = submitted(clock, 1, 0.0001)
    assert calls.groups(lasting(0.00001)) == math.inf
    assert submitted(clock, 20, 1.0).groups(lasting(0.00001)) == math.inf  # the submitter has other things to do
    assert submitted(clock, 20, 0.0001).groups(Durations()) == math.inf


def test_demand_is_unknown_if_no_task_has_ended_for_a_while(clock: Clock) -> None:
    calls = submitted(clock, 20, 0.0001)
    clock.now += 1.0
    assert calls.groups(lasting(0.00001)) == math.inf
    calls.note_end()
    assert calls.groups(lasting(0.00001)) == 1


def test_pauses_of_the_submitter_do_not_change_the_demand(clock: Clock) -> None:
    calls = submitted(clock, 20, 0.0001)
    clock.now += 10.0
    calls.note_submission()
    calls.note_end()
    assert calls.groups(lasting(0.001)) == pytest.approx(10)


def test_duration_of_a_call_is_that_of_larger_tasks_and_of_tasks_that_need_not_wait_for_a_core() -> None:
    size = ChunkSize(None)
    size.add(100, 0.01)
    for seconds in (0.0005, 0.02, 0.0005):
        size.add(1, seconds)
    assert size.durations.shortest == pytest.approx(0.0001)
    assert size.next() > 100  # tasks of one call do not hide that a large one was measured
    for _ in range(8):
        size.add(1, 0.02)
    assert size.durations.shortest == pytest.approx(0.02)


class OneGroup(Demand):
    """Demand of calls that seem to be so short that one group is enough for them."""

    def groups(self, durations: Durations) -> float:
        return 1.0


def stats_of(executor: Executor, function: Any) -> FunctionStats:
    """Return the statistics of a function whose calls seem to be short."""
    packer = executor._submission.find_packer()
    assert packer is not None
    stats = packer.functions.of(function)
    stats.size.add(1000, 0.001)
    stats.demand = OneGroup()
    return stats


def test_calls_are_gathered_if_fewer_groups_are_enough_for_them(tmp_path: Path) -> None:
    end = tmp_path / "end"
    with Executor(max_workers=4, backend="local") as executor:
        stats_of(executor, tasks.mark_and_wait)
        # the first one is submitted while no other one is pending, so that the packer does not count it
        calls = [executor.submit(tasks.mark_and_wait, tmp_path / str(number), end) for number in range(4)]
        gathered = [isinstance(each, PackedFuture) for each in calls]
        end.touch()
        assert gathered == [False, False, False, True]
        for each in calls:
            each.result()


def test_gathered_calls_that_take_longer_than_measured_get_the_idle_groups(tmp_path: Path) -> None:
    end, groups = tmp_path / "end", 5
    marks = [tmp_path / str(number) for number in range(groups)]
    with Executor(max_workers=groups, backend="local") as executor:
        stats = stats_of(executor, tasks.mark_and_wait)
        calls = [executor.submit(tasks.mark_and_wait, mark, end) for mark in marks]
        try:
            # every group runs one of them: the gathered ones neither wait for the others nor for each other
            wait_until(lambda: all(mark.exists() for mark in marks), "all run at once")
            assert not stats.open_packs and isinstance(calls[-2], PackedFuture) and isinstance(calls[-1], PackedFuture)
        finally:
            end.touch()
        for each in calls:
            each.result()

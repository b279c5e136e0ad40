"""A spool on every shared filesystem: a submitter on client A, worker groups on B and C, each with its own caches."""

from __future__ import annotations

import numpy as np
import pytest

from tests.sharedfs import tasks
from tests.sharedfs.place import PATIENCE, Place
from tests.waiting import wait_until

pytestmark = pytest.mark.sharedfs

SIZES = (0, 1, 4095, 100_000, 3_000_000)


class TestTasks:
    def test_values_of_all_sizes_go_there_and_back(self, place: Place) -> None:
        spool = place.spool()
        place.serve(spool, "B")
        numbers = [place.hand.do("submit", spool, tasks.echo, bytes(size)) for size in SIZES]
        array = np.arange(600_000, dtype=float)
        arrays = place.hand.do("submit", spool, tasks.twice, array)
        assert [len(place.result(number)) for number in numbers] == list(SIZES)
        assert np.array_equal(place.result(arrays), array * 2)
        place.await_clean(spool)
        place.hand.do("close", spool)

    def test_an_exception_comes_back_and_a_cancelled_task_does_not_run(self, place: Place) -> None:
        spool = place.spool()
        cancelled = place.hand.do("submit", spool, tasks.run, place.marks, place.unused("never"))
        assert place.hand.do("cancel", cancelled)
        failing = place.hand.do("submit", spool, tasks.fail, "on purpose")
        place.serve(spool, "C")
        with pytest.raises(ValueError, match="on purpose"):
            place.result(failing)
        place.await_clean(spool)
        place.hand.do("close", spool)
        assert place.runs("never") == []

    def test_two_groups_share_the_tasks_and_each_runs_once(self, place: Place) -> None:
        spool = place.spool()
        name = place.unused("share")
        together = [place.hand.do("submit", spool, tasks.meet, place.marks, f"{name}-meet", 2) for _ in range(2)]
        alone = [place.hand.do("submit", spool, tasks.run, place.marks, f"{name}-{number}") for number in range(40)]
        place.serve(spool, "B", "C")
        assert sorted(place.result(number) for number in together) == ["B", "C"]
        hosts = [place.result(number) for number in alone]
        assert [place.runs(f"{name}-{number}") for number in range(40)] == [[host] for host in hosts]
        place.await_clean(spool)
        place.hand.do("close", spool)


class TestDeath:
    def test_the_task_of_a_killed_group_runs_elsewhere(self, place: Place) -> None:
        spool = place.spool()
        name = place.unused("killed")
        doomed = place.start("B", spool)
        number = place.hand.do("submit", spool, tasks.linger, place.marks, name)
        place.await_run(name)
        place.serve(spool, "C")
        doomed.kill()
        assert place.result(number) == (2, "C")
        assert place.runs(name) == ["B", "C"]
        place.await_clean(spool)
        place.hand.do("close", spool)


@pytest.mark.slow
class TestFailures:
    def test_tasks_flow_on_when_the_server_was_away(self, place: Place) -> None:
        if not place.kind.network:
            pytest.skip("there is no server that could be restarted")
        spool = place.spool()
        place.serve(spool, "B", "C")
        seed = int(place.unused("6"))
        place.hand.begin("flow", spool, place.marks, 10.0, seed)
        wait_until(lambda: place.runs(f"{seed}-9"), "some tasks have run", PATIENCE)
        place.fs.restart_server()
        outcomes = place.hand.end()
        place.judge(outcomes)
        place.await_clean(spool)

    def test_tasks_of_nodes_without_power_or_network_run_elsewhere_and_late_outcomes_are_dropped(
        self, place: Place
    ) -> None:
        spool = place.spool()
        name = place.unused("node")
        tasks_of: dict[str, int] = {}
        groups = {}
        for client in ("B", "C") if place.kind.network else ("B",):
            groups[client] = place.start(client, spool)
            tasks_of[client] = place.hand.do("submit", spool, tasks.linger, place.marks, f"{name}-{client}")
            place.await_run(f"{name}-{client}")
            assert place.runs(f"{name}-{client}") == [client]
        groups["B"].doomed = True
        place.fs.kill("B")
        if place.kind.network:
            place.fs.cut("C")
        place.serve(spool, "A")
        try:
            for client, number in tasks_of.items():
                assert place.result(number) == (2, "A")
                assert place.runs(f"{name}-{client}") == ["A", client]
            place.allow(f"{name}-C")
        finally:
            if place.kind.network:
                place.fs.mend("C")
            place.fs.restart("B")
        if place.kind.network:
            dropped = "was taken from this worker"
            wait_until(lambda: dropped in groups["C"].said(), "C drops its late outcome", PATIENCE)
        place.await_clean(spool)
        place.hand.do("close", spool)

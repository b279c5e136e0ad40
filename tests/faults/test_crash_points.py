"""A process may die at any moment: nothing is lost, and nothing is done twice.

A process that dies leaves the files as they are, and neither locks nor descriptors. So its death is tested once for
each *state of the files*, not once for each operation: a child process runs the scenario to its end, and each state
that it passes through is copied. Other processes then recover, run and collect from each copy.

SPOOLPOOL_FAULT_SEEDS=1000 runs as many random sequences instead of a few, here and in ``test_failing_disk.py``.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
from pathlib import Path

import pytest

from spoolpool.system.processes import ProcessId
from tests.faults.disk import CHANGES, CRASHED, OPERATIONS, Disk, Fault, at, digest, in_child
from tests.faults.scenarios import SCENARIOS, Runner, Scenario, by_name, collect, enqueue, recover_outcomes, seeds, work


@by_name(*SCENARIOS)
def test_process_that_dies_in_any_state_of_the_files_loses_and_doubles_nothing(
    scenario: Scenario, runner: Runner
) -> None:
    with runner.prepared(scenario) as (stage, body):
        copies = runner.record(stage, body)
        assert len(copies) > 1
        for copy in copies:
            stage.restore(copy)
            runner.check(scenario, stage)


KILLS = {
    "before each operation": (Fault("before"), OPERATIONS),
    "after each change": (Fault("after"), CHANGES),
    "in the middle of each write": (Fault("half"), frozenset({"writev"})),
}


@by_name(enqueue, work, collect)
def test_recorded_states_are_those_that_killed_processes_leave(
    scenario: Scenario, runner: Runner, monkeypatch: pytest.MonkeyPatch, memory: Path
) -> None:
    here = ProcessId.of(os.getpid())
    monkeypatch.setattr(ProcessId, "of", lambda _pid: here)  # files of different processes are compared
    with runner.prepared(scenario) as (stage, body):
        start, again = memory / f"start of {scenario.__name__}", memory / "again"
        shutil.copytree(stage.directory, start)

        def state() -> str:
            return digest(stage.directory, without=stage.struck.name)

        recorded = set()
        for copy in runner.record(stage, body):
            stage.restore(copy)
            recorded.add(state())
        left = set()
        for fault, only in KILLS.values():
            for number in itertools.count(1):
                shutil.copytree(start, again)
                stage.restore(again)
                code = in_child(Disk(at(number, fault), only=only), body)  # each child has the same ids
                assert code in (0, CRASHED)
                left.add(state())
                if code == 0:
                    break
    assert recorded == left


@pytest.mark.parametrize("seed", seeds(8))
def test_processes_that_die_one_after_the_other_lose_and_double_nothing(seed: int, runner: Runner) -> None:
    chance = random.Random(seed)
    with runner.run(recover_outcomes, seed) as (stage, recover_once):
        for _ in range(6):
            body = chance.choice([recover_once, stage.work, stage.submit])
            fault = Fault(chance.choice(["before", "after"]))
            code = runner.fork(Disk(at(chance.randrange(1, 60), fault), report=stage.struck), body)
            assert code in (0, CRASHED)
            stage.check()

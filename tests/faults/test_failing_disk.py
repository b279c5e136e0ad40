"""File operations may fail, answer wrongly or lag behind: nothing is lost, and nothing is done twice.

Each file operation of each scenario fails once with one error of each class that the package distinguishes. Then the
other processes recover, run and collect. Most faults lead to the same few states of the files, and each state is
checked once.
"""

from __future__ import annotations

import errno
import random

import pytest

from spoolpool.errors import SpoolDenied, SpoolFull
from spoolpool.format.names import CANCELLED, TaskFile
from spoolpool.protocol.cancel import cancel_task
from spoolpool.protocol.claim import Claim
from tests.faults.disk import LOOKS, NAME_CHANGES, OPERATIONS, SPACE, Disk, Fault, at, digest, during
from tests.faults.scenarios import (
    REPEATABLE,
    SCENARIOS,
    Body,
    Runner,
    Scenario,
    abandon,
    by_name,
    forgiven,
    live,
    recover_last_attempt,
    run_with_faults,
    seeds,
    work_after_close,
)
from tests.support.fake_worker import Stage, outcome_of, unknown_process

FAILURES = (
    (Fault("before", errno.EIO), OPERATIONS),
    (Fault("before", errno.ESTALE), OPERATIONS),
    (Fault("before", errno.EACCES), OPERATIONS),
    (Fault("before", errno.ENOSPC), SPACE),
    (Fault("half", errno.ENOSPC), frozenset({"writev"})),
    (Fault("after", errno.ENOENT), OPERATIONS - {"stat"}),  # stat(2) looks for the spool itself: its absence ends all
    (Fault("after", errno.EEXIST), NAME_CHANGES),
    (Fault("after", errno.EIO), NAME_CHANGES),
)
"""Faults of single operations, and the operations that can have them."""


@by_name(*REPEATABLE)
def test_scenario_that_is_repeated_leaves_the_same_files(scenario: Scenario, runner: Runner) -> None:
    left = []
    for _ in range(2):
        with runner.prepared(scenario) as (stage, body):
            body()
            left.append(digest(stage.directory, without=stage.struck.name))
    assert left[0] == left[1]


@by_name(*SCENARIOS)
def test_single_failed_operation_loses_and_doubles_nothing(scenario: Scenario, runner: Runner) -> None:
    for number, name in enumerate(runner.operations(scenario), 1):
        for fault, only in FAILURES:
            if name in only:
                with runner.run(scenario, once=True, atomic=True) as (stage, body):
                    disk = Disk(at(number, fault), report=stage.struck)
                    run_with_faults(disk, body)
                    assert disk.struck


@by_name(live, work_after_close, recover_last_attempt)
def test_full_disk_loses_and_doubles_nothing(scenario: Scenario, runner: Runner) -> None:
    for number in range(1, len(runner.operations(scenario, only=SPACE)) + 1):
        with runner.run(scenario, once=True, atomic=True) as (stage, body):
            stage.may_come += (SpoolFull,)  # it lasts for longer than a lease
            fault = Fault("before", errno.ENOSPC)
            run_with_faults(Disk(during(range(number, number + 25), fault), only=SPACE, report=stage.struck), body)


@by_name(live, work_after_close, recover_last_attempt)
@pytest.mark.parametrize("error", [errno.ESTALE, errno.ENOTCONN])
def test_unreachable_server_loses_and_doubles_nothing(scenario: Scenario, error: int, runner: Runner) -> None:
    for number in range(1, len(runner.operations(scenario)) + 1, 3):
        with runner.run(scenario, once=True) as (stage, body):
            stage.may_come += (SpoolFull,)
            run_with_faults(Disk(during(range(number, number + 40), Fault("before", error)), report=stage.struck), body)


@by_name(*SCENARIOS, live)
@pytest.mark.parametrize(("lag", "unit"), [(2, "operations"), (20, "operations"), (2, "seconds")])
def test_stale_listings_lose_and_double_nothing(scenario: Scenario, lag: int, unit: str, runner: Runner) -> None:
    now = runner.clock.monotonic if unit == "seconds" else None
    fault = Fault("after", errno.ENOENT)  # a request that was repeated: it was done, and answers that it was not
    for number, name in enumerate(runner.operations(scenario, lag=lag, clock=now), 1):
        if name in NAME_CHANGES:
            with runner.run(scenario) as (stage, body):
                disk = Disk(at(number, fault), lag=lag, clock=now, report=stage.struck)
                run_with_faults(disk, body)
                assert disk.struck


@pytest.mark.parametrize("seed", seeds(20))
def test_any_mixture_of_faults_loses_and_doubles_nothing(seed: int, runner: Runner) -> None:
    chance = random.Random(seed)
    errors = [errno.EIO, errno.ESTALE, errno.EACCES, errno.EINTR, errno.ENOENT, errno.EEXIST]

    def plan(_count: int, name: str) -> Fault | None:
        if chance.random() > 0.05:
            return None
        if name in LOOKS:  # it may fail, but not answer wrongly: the protocol does not survive two wrong looks at once
            return Fault("before", errno.EIO)
        if name in SPACE and chance.random() < 0.3:
            return Fault("before", errno.ENOSPC)
        return Fault(chance.choice(["before", "after"]), chance.choice(errors))

    scenario = chance.choice([*SCENARIOS, live])
    with runner.run(scenario, seed) as (stage, body):
        stage.may_come += (SpoolFull,)
        run_with_faults(Disk(plan, lag=chance.choice([0, 0, 1, 5])), body)
        for step in (stage.submit, stage.work, stage.recover):
            stage.check(forgiven=forgiven(scenario, stage))
            run_with_faults(Disk(plan, lag=chance.choice([0, 0, 1, 5])), step)


def empty(stage: Stage) -> Body:
    """Prepare nothing."""
    return stage.check


def test_submit_that_cannot_tell_whether_its_task_exists_raises(runner: Runner) -> None:
    def plan(_count: int, name: str) -> Fault | None:
        """Refuse the bucket, and let each unlink(2) answer that the name did not exist."""
        if name == "rename":
            return Fault("before", errno.EACCES)
        return Fault("after", errno.ENOENT) if name == "unlink" else None

    with runner.prepared(empty) as (stage, _):
        inbox = stage.inbox()
        with Disk(plan).installed(), pytest.raises(SpoolDenied, match="submit a task"):
            inbox.put(pow, 2, 5)
        assert not stage.places()
        assert not inbox.pending.futures()


def test_cancel_that_was_done_but_raised_enoent_is_a_cancel(runner: Runner) -> None:
    with runner.prepared(empty) as (stage, _):
        header = stage.submit()
        with Disk(at(1, Fault("after", errno.ENOENT)), only=frozenset({"rename"})).installed():
            assert cancel_task(stage.spool, header, TaskFile(header.task, 1, 1))
        assert [task_file.worker for task_file in stage.seen().results.values()] == [CANCELLED]


def test_commit_that_was_done_but_raised_enoent_is_a_commit(runner: Runner) -> None:
    with runner.prepared(empty) as (stage, _):
        header = stage.submit()
        task_file = abandon(stage, header, unknown_process())
        claim = Claim(stage.spool, header, task_file)
        claim.write_outcome(outcome_of(header, task_file))
        with Disk(at(1, Fault("after", errno.ENOENT)), only=frozenset({"rename"})).installed():
            assert claim.commit()
        assert list(stage.seen().results.values()) == [task_file]

"""Whichever process ends at whichever file operation, and whatever the disk answers: nothing is lost or done twice.

Each scenario is what one process does. In the first half of the tests a child does it, and ends before, in the
middle of, and after its k-th file operation, for every k; in the second half this process does it, and the k-th
operation fails or lies. Then the others recover, work and collect, and the invariants must hold all the way.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spoolpool.errors import DependencyFailed, SpoolDenied, SpoolFull, SpoolpoolError
from spoolpool.format.headers import TaskHeader
from spoolpool.format.names import CANCELLED, TaskFile, new_task_id
from spoolpool.protocol.cancel import cancel_task
from spoolpool.protocol.claim import Claim
from spoolpool.protocol.claimer import Claimer
from spoolpool.protocol.retry import retry_task
from spoolpool.security.trust import Trust
from spoolpool.system.processes import ProcessId
from tests.faults.disk import CHANGES, CRASHED, LOOKS, OPERATIONS, SPACE, Disk, Fault, at, during, in_child
from tests.support.fake_worker import (
    Clock,
    Inbox,
    Stage,
    announce,
    dead_process,
    leave_trace,
    leave_trace_and_be_fenced_at_first,
    leave_trace_and_raise_at_first,
    outcome_of,
    unknown_process,
)

Body = Callable[[], object]
Scenario = Callable[[Stage], Body]
"""Sets a stage, and returns what the process does that meets the faults."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock.installed(monkeypatch)


# -- what a process does


def enqueue(stage: Stage) -> Body:
    """A submitter."""
    return stage.submit


def work(stage: Stage) -> Body:
    """A worker: it announces itself, claims, runs, writes the outcome, commits, and takes its entry away."""
    stage.submit()
    return lambda: stage.work(tasks=1)


def work_after_close(stage: Stage) -> Body:
    """A worker whose submitter closed its session meanwhile: the directories of the results are gone."""
    stage.submit()
    stage.spool.close_session(stage.session)
    return lambda: stage.work(tasks=1)


def work_again(stage: Stage) -> Body:
    """A worker whose task raises, is held back, and succeeds the next time."""
    stage.may_come += (ValueError,)  # where it cannot be held back
    stage.submit(None, leave_trace_and_raise_at_first, retries=1, retry_delay=0.0)
    return lambda: stage.work(tasks=2)


def work_when_fenced(stage: Stage) -> Body:
    """A worker that others take for dead while it runs, and that comes back."""
    stage.submit(None, leave_trace_and_be_fenced_at_first, stage.spool.path)
    return lambda: stage.work(tasks=2)


def collect(stage: Stage) -> Body:
    """A submitter that gets a result, and hears of a cancelled and of a lost task."""
    headers = [stage.submit() for _ in range(2)]
    stage.work(tasks=1)
    [waiting] = stage.headers(stage.seen().ready)
    assert cancel_task(stage.spool, waiting, TaskFile(waiting.task, 1, 1))
    lost = stage.submit(max_attempts=1)
    abandon(stage, lost, dead_process())
    stage.recover()
    inbox = stage.inbox()
    return lambda: stage.collect(inbox, [*headers, lost])


def collect_kept(stage: Stage) -> Body:
    """A submitter of a session that keeps its outcomes; what stays is collected again by one that does not."""
    inbox = stage.inbox(keeps=True)
    headers = [*pair(stage, inbox), stage.submit(inbox), stage.submit(inbox, max_attempts=1)]
    stage.work(tasks=1)
    abandon(stage, headers[3], dead_process())
    stage.recover()
    stage.work(tasks=1)
    inbox.given[headers[2].task].cancel()
    stage.note("delivered", headers[2].task)
    return lambda: stage.collect(inbox, [headers[0], headers[1], headers[3]])


def come_back(stage: Stage) -> Body:
    """A later process of such a session, which looks for its tasks: some done and delivered, one that waits."""
    inbox = stage.inbox(keeps=True)
    headers = pair(stage, inbox)
    for _ in headers:
        stage.work(tasks=1)
    stage.collect(inbox, headers)
    stage.submit(inbox)

    def body() -> None:
        again = stage.inbox(keeps=True)
        stage.collect(again, [future.header for future in again.futures()])

    return body


def retry_kept(stage: Stage) -> Body:
    """Somebody who lets a lost task run again that its session keeps."""
    header = stage.submit(stage.inbox(keeps=True), max_attempts=1)
    abandon(stage, header, dead_process())
    stage.recover()
    [task_file] = stage.seen().results.values()
    return lambda: retry_task(stage.spool, task_file.name, stage.session)


def cancel(stage: Stage) -> Body:
    """A submitter that takes a task back."""
    future = stage.inbox().expect(stage.submit())

    def body() -> None:
        if future.cancel():
            stage.note("delivered", future.task)

    return body


def give_back_claim(stage: Stage) -> Body:
    """A worker that may not go on, and lets its task wait again."""
    stage.submit()

    def body() -> None:
        claim = Claimer(stage.spool, announce(stage.spool, ProcessId.of(os.getpid())), lambda _: True, Trust()).next()
        if claim is not None:
            with claim:
                claim.release()

    return body


def recover_outcomes(stage: Stage) -> Body:
    """A recoverer of workers that died after, during and before the writing of an outcome; one outcome is nobody's."""
    headers = [stage.submit(max_attempts=2) for _ in range(3)]
    task_files = [abandon(stage, header, dead_process()) for header in headers]
    whole = b"".join(outcome_of(headers[0], task_files[0]))
    Claim(stage.spool, headers[0], task_files[0]).write_outcome([whole])
    Claim(stage.spool, headers[1], task_files[1]).write_outcome([whole[: len(whole) // 2]])
    nobodys = TaskFile(new_task_id(), 1, 1, task_files[2].worker)
    Claim(stage.spool, headers[2], nobodys).write_outcome([whole])
    return lambda: stage.recover(rounds=3)


def recover_silent(stage: Stage) -> Body:
    """A recoverer of a worker on another host, which it does not hear of for a lease."""
    abandon(stage, stage.submit(), unknown_process())
    return stage.recover


def recover_last_attempt(stage: Stage) -> Body:
    """A recoverer that has to report a task as lost."""
    abandon(stage, stage.submit(max_attempts=1), dead_process())
    return lambda: stage.recover(rounds=2)


def enqueue_dependent(stage: Stage) -> Body:
    """A submitter of a task that needs another one."""
    inbox = stage.inbox()
    first = inbox.given[stage.submit(inbox).task]
    return lambda: stage.submit(inbox, leave_trace, first)


def work_dependent(stage: Stage) -> Body:
    """A worker of a task that waits, and whose need has ended."""
    pair(stage, stage.inbox())
    stage.work(tasks=1)
    return lambda: stage.work(tasks=1)


def fail_dependent(stage: Stage) -> Body:
    """The same, where what it needs has failed."""
    stage.may_come += (ValueError, DependencyFailed)
    pair(stage, stage.inbox(), leave_trace_and_raise_at_first)
    stage.work(tasks=1)
    return lambda: stage.work(tasks=1)


def collect_dependent(stage: Stage) -> Body:
    """A submitter that gets a result while it is needed, and then that of the task that needs it."""
    inbox = stage.inbox()
    headers = pair(stage, inbox)
    stage.work(tasks=1)
    stage.collect(inbox, headers[:1])
    stage.work(tasks=1)
    return lambda: stage.collect(inbox, headers[1:])


def cancel_dependent(stage: Stage) -> Body:
    """A submitter that takes a task back, and with it the one that needs it."""
    inbox = stage.inbox()
    futures = [inbox.given[header.task] for header in pair(stage, inbox)]

    def body() -> None:
        futures[0].cancel()
        for future in futures:
            if future.cancelled():
                stage.note("delivered", future.task)

    return body


def pair(stage: Stage, inbox: Inbox, function: Callable[..., str] = leave_trace) -> list[TaskHeader]:
    """Two tasks, the second of which needs the first."""
    first = stage.submit(inbox, function)
    return [first, stage.submit(inbox, leave_trace, inbox.given[first.task])]


def live(stage: Stage) -> Body:
    """All of it, one after the other."""

    def body() -> None:
        inbox = stage.inbox()
        headers = [stage.submit(inbox) for _ in range(2)]
        stage.work(tasks=2)
        stage.collect(inbox, headers)
        inbox.close()

    return body


def abandon(stage: Stage, header: TaskHeader, process: ProcessId) -> TaskFile:
    """Let a worker claim a task and end without a word."""
    task_file = TaskFile(header.task, 1, 1)
    mine = task_file.claimed_by(announce(stage.spool, process))
    os.rename(
        f"{stage.spool.layout.bucket(header.lane, header.bucket)}/{task_file.name}",
        stage.spool.layout.claimed_task(mine),
    )
    return mine


SCENARIOS = (
    enqueue,
    work,
    work_after_close,
    work_again,
    work_when_fenced,
    collect,
    collect_kept,
    come_back,
    retry_kept,
    cancel,
    give_back_claim,
    recover_outcomes,
    recover_silent,
    recover_last_attempt,
    enqueue_dependent,
    work_dependent,
    collect_dependent,
    fail_dependent,
    cancel_dependent,
)
scenarios = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)


# -- how it is played


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """Where hundreds of spools are made and removed: in memory, where there is such a place."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="spoolpool-test-", dir=memory) as directory:
        yield Path(directory)


@contextlib.contextmanager
def played(directory: Path, clock: Clock, scenario: Scenario, *, once: bool = False) -> Iterator[tuple[Stage, Body]]:
    """A stage, set for a scenario whose process syncs whatever can be synced; then the others settle it.

    ``once``: nobody died, so that no task may run twice.
    """
    random.seed(directory.name)
    stage = Stage(directory, clock)
    body = scenario(stage)
    stage.durability("full")
    try:
        yield stage, body
        stage.durability("none")
        complete, before = stage.complete(), stage.runs()
        stage.settle(forgiven=forgiven(scenario, stage))
        after = stage.runs()
        for task in complete:
            assert after[task] == before[task], f"{task} ran again, although its outcome was complete"
        assert not once or max(after.values(), default=1) == 1, "a task ran twice"
    except AssertionError as error:
        raise AssertionError(f"{stage.story()}\n{error}") from error
    shutil.rmtree(directory)


def forgiven(scenario: Scenario, stage: Stage) -> frozenset[str]:
    """Tasks that may be nowhere: whoever took them back ended before it could say so."""
    return frozenset(stage.notes("submitted") if scenario in (cancel, cancel_dependent) else ())


CRASHES = {
    "before it": (Fault("before"), OPERATIONS),
    "after it": (Fault("after"), CHANGES | {"writev"}),  # after any other the disk is as it was before it
    "amid a write": (Fault("half"), frozenset({"writev"})),
}
FAILURES = {
    "EIO": (Fault("before", errno.EIO), OPERATIONS),
    "ESTALE": (Fault("before", errno.ESTALE), OPERATIONS),
    "EACCES": (Fault("before", errno.EACCES), OPERATIONS),
    "EINTR": (Fault("before", errno.EINTR), SPACE | {"read", "pread", "rename", "unlink"}),
    "ENOSPC": (Fault("before", errno.ENOSPC), SPACE),
    "ENOSPC amid a write": (Fault("half", errno.ENOSPC), frozenset({"writev"})),
    "EDQUOT": (Fault("before", errno.EDQUOT), SPACE),
    # but of the spool itself: who does not find that ends
    "done, but ENOENT": (Fault("after", errno.ENOENT), OPERATIONS - {"stat"}),
    "done, but EEXIST": (Fault("after", errno.EEXIST), CHANGES),
    "done, but EIO": (Fault("after", errno.EIO), CHANGES),
}


@scenarios
@pytest.mark.parametrize("crash", CRASHES)
def test_a_process_that_ends_at_any_file_operation_loses_and_doubles_nothing(
    scenario: Scenario, crash: str, scratch: Path, clock: Clock
) -> None:
    fault, only = CRASHES[crash]
    for k in itertools.count(1):
        with played(scratch / str(k), clock, scenario) as (stage, body):
            code = in_child(Disk(at(k, fault), only=only, report=stage.struck), body)
            assert code in (0, CRASHED)
        if code == 0:
            break


@pytest.mark.parametrize("seed", range(20))
def test_processes_that_end_one_after_the_other_lose_and_double_nothing(seed: int, scratch: Path, clock: Clock) -> None:
    chance = random.Random(seed)
    with played(scratch / str(seed), clock, recover_outcomes) as (stage, recover_once):
        for _ in range(6):
            body = chance.choice([recover_once, stage.work, stage.submit])
            fault = Fault(chance.choice(["before", "after"]))
            code = in_child(Disk(at(chance.randrange(1, 60), fault), report=stage.struck), body)
            assert code in (0, CRASHED)
            stage.check()


@scenarios
@pytest.mark.parametrize("failure", FAILURES)
def test_any_file_operation_that_fails_once_loses_and_doubles_nothing(
    scenario: Scenario, failure: str, scratch: Path, clock: Clock
) -> None:
    fault, only = FAILURES[failure]
    for k in itertools.count(1):
        with played(scratch / str(k), clock, scenario, once=True) as (stage, body):
            disk = Disk(at(k, fault), only=only, report=stage.struck)
            fails(disk, body)
            assert len(stage.places()) <= len(stage.notes("submitted")), "submit raised, and left its task there"
        if disk.count < k:
            break


def fails(disk: Disk, body: Body) -> None:
    """Play a body on a disk with faults: it may end early, with an error that says why."""
    with disk.installed(), contextlib.suppress(SpoolpoolError, OSError):
        body()


long_scenarios = pytest.mark.parametrize(
    "scenario", [live, work_after_close, recover_last_attempt], ids=lambda each: each.__name__
)


@long_scenarios
def test_a_disk_that_is_full_for_a_while_loses_and_doubles_nothing(
    scenario: Scenario, scratch: Path, clock: Clock
) -> None:
    for k in itertools.count(1):
        with played(scratch / str(k), clock, scenario, once=True) as (stage, body):
            stage.may_come += (SpoolFull,)  # it lasts for longer than a lease
            disk = Disk(during(range(k, k + 25), Fault("before", errno.ENOSPC)), only=SPACE)
            fails(disk, body)
            assert len(stage.places()) <= len(stage.notes("submitted")), "submit raised, and left its task there"
        if disk.count < k:
            break


@long_scenarios
@pytest.mark.parametrize("error", [errno.ESTALE, errno.ENOTCONN])
def test_a_server_that_is_away_for_a_while_loses_and_doubles_nothing(
    scenario: Scenario, error: int, scratch: Path, clock: Clock
) -> None:
    for k in itertools.count(1, 3):
        with played(scratch / str(k), clock, scenario, once=True) as (stage, body):
            stage.may_come += (SpoolFull,)
            disk = Disk(during(range(k, k + 40), Fault("before", error)))
            fails(disk, body)
        if disk.count < k:
            break


@pytest.mark.parametrize("scenario", [*SCENARIOS, live], ids=lambda each: each.__name__)
@pytest.mark.parametrize(("lag", "unit"), [(2, "operations"), (20, "operations"), (2, "seconds")])
def test_listings_that_are_old_lose_and_double_nothing(
    scenario: Scenario, lag: int, unit: str, scratch: Path, clock: Clock
) -> None:
    now = clock.monotonic if unit == "seconds" else None
    with played(scratch / "0", clock, scenario) as (stage, body):
        fails(Disk(lag=lag, clock=now), body)
    for k in itertools.count(1):  # and a request that was done answers that it was not
        with played(scratch / str(k), clock, scenario) as (stage, body):
            lie = Fault("after", errno.ENOENT)
            disk = Disk(at(k, lie), only=CHANGES, lag=lag, clock=now, report=stage.struck)
            fails(disk, body)
        if disk.count < k:
            break


@pytest.mark.parametrize("seed", range(60))
def test_any_mixture_of_faults_loses_and_doubles_nothing(seed: int, scratch: Path, clock: Clock) -> None:
    chance = random.Random(seed)
    errors = [errno.EIO, errno.ESTALE, errno.EACCES, errno.EINTR, errno.ENOENT, errno.EEXIST]

    def plan(_count: int, name: str) -> Fault | None:
        if chance.random() > 0.05:
            return None
        if name in LOOKS:  # it fails, but does not lie: two looks that lie at once are more than anybody can withstand
            return Fault("before", errno.EIO)
        if name in SPACE and chance.random() < 0.3:
            return Fault("before", errno.ENOSPC)
        return Fault(chance.choice(["before", "after"]), chance.choice(errors))

    scenario = chance.choice([*SCENARIOS, live])
    with played(scratch / str(seed), clock, scenario) as (stage, body):
        stage.may_come += (SpoolFull,)
        fails(Disk(plan, lag=chance.choice([0, 0, 1, 5])), body)
        for step in (stage.submit, stage.work, stage.recover):
            stage.check(forgiven=forgiven(scenario, stage))
            fails(Disk(plan, lag=chance.choice([0, 0, 1, 5])), step)


def test_a_submit_that_cannot_tell_whether_its_task_is_there_raises(scratch: Path, clock: Clock) -> None:
    stage = Stage(scratch / "stage", clock)
    inbox = stage.inbox()

    def plan(_count: int, name: str) -> Fault | None:
        """The bucket is forbidden, and what is removed answers that it was not there."""
        if name == "rename":
            return Fault("before", errno.EACCES)
        return Fault("after", errno.ENOENT) if name == "unlink" else None

    with Disk(plan).installed(), pytest.raises(SpoolDenied, match="submit a task"):
        inbox.put(pow, 2, 5)
    assert not stage.places()
    assert not inbox.pending()


def test_a_cancel_that_was_done_but_answers_that_it_was_not_is_a_cancel(scratch: Path, clock: Clock) -> None:
    stage = Stage(scratch / "stage", clock)
    header = stage.submit()
    lie = Fault("after", errno.ENOENT)
    with Disk(at(1, lie), only=frozenset({"rename"})).installed():
        assert cancel_task(stage.spool, header, TaskFile(header.task, 1, 1))
    assert [task_file.worker for task_file in stage.seen().results.values()] == [CANCELLED]


def test_a_commit_that_was_done_but_answers_that_it_was_not_is_a_commit(scratch: Path, clock: Clock) -> None:
    stage = Stage(scratch / "stage", clock)
    header = stage.submit()
    task_file = abandon(stage, header, unknown_process())
    claim = Claim(stage.spool, header, task_file)
    claim.write_outcome(outcome_of(header, task_file))
    with Disk(at(1, Fault("after", errno.ENOENT)), only=frozenset({"rename"})).installed():
        assert claim.commit()
    assert list(stage.seen().results.values()) == [task_file]

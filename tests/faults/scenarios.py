"""Scenarios: one process of each kind at work in a spool, and the checks of the spool that it leaves behind.

A scenario prepares a spool and returns the body of the process that meets the faults. Whatever the faults, the
invariants hold afterwards, and other processes can recover, run and collect all tasks.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from spoolpool.calls import pickling
from spoolpool.calls.run import RankResult, failure_report
from spoolpool.errors import DependencyFailed, SpoolpoolError, TaskCancelled
from spoolpool.format.cancel_requests import request_name
from spoolpool.format.headers import TaskHeader
from spoolpool.format.names import TaskFile, new_task_id
from spoolpool.protocol.cancel import cancel_task, request
from spoolpool.protocol.claim import Claim, GiveBack
from spoolpool.protocol.claimer import Claimer
from spoolpool.protocol.failed_tasks import retry_task
from spoolpool.protocol.outcome_log import OutcomeLog
from spoolpool.protocol.recovery import Recovery
from spoolpool.security.trust import Trust
from spoolpool.system.processes import ProcessId
from spoolpool.worker.publish import EmergencyPublisher, outcome_parts
from tests.faults.disk import Disk, Recorder, digest, in_child
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

NOW = time.time()
"""Date of everything that the scenarios write."""


def enqueue(stage: Stage) -> Body:
    """Submit a task."""
    return stage.submit


def work(stage: Stage) -> Body:
    """Run a worker: register, claim, run, write the outcome, commit, unregister."""
    stage.submit()
    return lambda: stage.work(tasks=1)


def work_after_close(stage: Stage) -> Body:
    """Run a worker after the session was closed, and the directories of its results were removed."""
    stage.submit()
    stage.spool.close_session(stage.session)
    return lambda: stage.work(tasks=1)


def work_again(stage: Stage) -> Body:
    """Run a worker for a task that raises, is delayed, and succeeds in the second attempt."""
    stage.may_come += (ValueError,)  # if it cannot be delayed
    stage.submit(None, leave_trace_and_raise_at_first, retries=1, retry_delay=0.0)
    return lambda: stage.work(tasks=2)


def work_when_fenced(stage: Stage) -> Body:
    """Run a worker that is fenced during its task: another process requeues the task."""
    stage.submit(None, leave_trace_and_be_fenced_at_first, stage.spool.path)
    return lambda: stage.work(tasks=2)


def collect(stage: Stage) -> Body:
    """Collect a result, a cancelled task and a lost task."""
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
    """Collect in a session that keeps its outcomes. :meth:`Runner.check` collects them again without keeping them."""
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
    """Reopen a session that keeps its outcomes: two tasks are done and delivered, one waits."""
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
    """Retry a lost task that was to be cancelled; its session keeps the outcome."""
    header = stage.submit(stage.inbox(keeps=True), max_attempts=1)
    abandon(stage, header, dead_process())
    stage.recover()
    [task_file] = stage.seen().results.values()
    request(stage.spool, header.task)
    return lambda: retry_task(stage.spool, task_file.name, stage.session)


def cancel(stage: Stage) -> Body:
    """Cancel a waiting task."""
    future = stage.inbox().expect(stage.submit())

    def body() -> None:
        if future.cancel():
            stage.note("delivered", future.task)

    return body


def release_claim(stage: Stage) -> Body:
    """Claim a task and release it."""
    stage.submit()

    def body() -> None:
        claim = Claimer(stage.spool, announce(stage.spool, unknown_process()), lambda _: True, Trust()).next()
        if claim is not None:
            with claim:
                claim.release()

    return body


def give_back_at_walltime(stage: Stage) -> Body:
    """Give two tasks back at the end of a walltime: one waits for a longer group, the other is reported."""
    headers = [stage.submit(max_attempts=2), stage.submit(max_attempts=1)]
    worker = announce(stage.spool, unknown_process())
    why = GiveBack(reason="tested", ran=0.5, at_walltime=True)

    def body() -> None:
        claimer = Claimer(stage.spool, worker, lambda _: True, Trust())
        for _ in headers:
            claim = claimer.next()
            if claim is not None:
                with claim:
                    claim.give_back(why, None)

    return body


def end_group_at_walltime(stage: Stage) -> Body:
    """End a group at the end of its walltime, as its supervisor does: one task is reported, and one waits again."""
    headers = [stage.submit(max_attempts=2), stage.submit(max_attempts=1)]
    worker = abandon(stage, headers[0], dead_process()).worker
    [path] = [path for path, task_file in stage.seen().ready.items() if task_file.task == headers[1].task]
    mine = headers[1].first_file().claimed_by(worker)
    os.rename(f"{stage.spool.path}/{path}", stage.spool.layout.claimed_task(mine))
    Claim(stage.spool, headers[1], mine).write_outcome([b"a part of it"])

    def body() -> None:
        supervisor = Recovery(stage.spool)
        supervisor.release(supervisor.take_over(worker, "tested", over=1e9))

    return body


def recover_outcomes(stage: Stage) -> Body:
    """Recover from workers that died after, during and before the write of an outcome; one outcome has no claim."""
    headers = [stage.submit(max_attempts=2) for _ in range(3)]
    task_files = [abandon(stage, header, dead_process()) for header in headers]
    whole = b"".join(outcome_of(headers[0], task_files[0]))
    Claim(stage.spool, headers[0], task_files[0]).write_outcome([whole])
    Claim(stage.spool, headers[1], task_files[1]).write_outcome([whole[: len(whole) // 2]])
    orphan = TaskFile(new_task_id(), 1, 1, task_files[2].worker)
    Claim(stage.spool, headers[2], orphan).write_outcome([whole])
    return lambda: stage.recover(rounds=3)


def recover_silent(stage: Stage) -> Body:
    """Recover from a worker on another host after its heartbeat stopped for a lease."""
    abandon(stage, stage.submit(), unknown_process())
    return stage.recover


def recover_last_attempt(stage: Stage) -> Body:
    """Recover from the death of a worker in the last attempt: the task is reported as lost."""
    abandon(stage, stage.submit(max_attempts=1), dead_process())
    return lambda: stage.recover(rounds=2)


def enqueue_dependent(stage: Stage) -> Body:
    """Submit a task with a dependency."""
    inbox = stage.inbox()
    first = inbox.given[stage.submit(inbox).task]
    return lambda: stage.submit(inbox, leave_trace, first)


def work_dependent(stage: Stage) -> Body:
    """Run a worker for a waiting task after its dependency has finished."""
    pair(stage, stage.inbox())
    stage.work(tasks=1)
    return lambda: stage.work(tasks=1)


def fail_dependent(stage: Stage) -> Body:
    """Run a worker for a waiting task after its dependency has failed."""
    stage.may_come += (ValueError, DependencyFailed)
    pair(stage, stage.inbox(), leave_trace_and_raise_at_first)
    stage.work(tasks=1)
    return lambda: stage.work(tasks=1)


def collect_dependent(stage: Stage) -> Body:
    """Collect a task whose outcome was delivered while it was a dependency, and the task that depended on it."""
    inbox = stage.inbox()
    headers = pair(stage, inbox)
    stage.work(tasks=1)
    stage.collect(inbox, headers[:1])
    stage.work(tasks=1)
    return lambda: stage.collect(inbox, headers[1:])


def cancel_dependent(stage: Stage) -> Body:
    """Cancel a task, and with it the task that depends on it."""
    inbox = stage.inbox()
    futures = [inbox.given[header.task] for header in pair(stage, inbox)]

    def body() -> None:
        futures[0].cancel()
        for future in futures:
            if future.cancelled():
                stage.note("delivered", future.task)

    return body


def enqueue_pack(stage: Stage) -> Body:
    """Submit a pack."""
    return stage.submit_pack


def append_to_pack(stage: Stage) -> Body:
    """Append calls to an open pack, and seal it."""

    def body() -> None:
        pack = stage.open_pack()
        for _ in range(3):
            if not stage.append_call(pack):
                break
        pack.seal()

    return body


def append_after_a_silence(stage: Stage) -> Body:
    """Append to an open pack, be silent for a lease while a call is written, and begin a new pack."""

    def body() -> None:
        pack = stage.open_pack()
        stage.append_call(pack)
        stage.clock.sleep(stage.spool.config.lease)
        assert not pack.may_append
        if not stage.append_call(pack):
            pack = stage.open_pack()
            stage.append_call(pack)
        pack.seal()

    return body


def seal_for_others(stage: Stage) -> Body:
    """Seal the open packs of a submitter that died, of which one has a torn record."""
    for calls, rest in ((2, b""), (1, b"torn")):
        inbox = stage.inbox()
        pack = stage.open_pack(inbox)
        for _ in range(calls):
            assert stage.append_call(pack)
        with open(f"{stage.spool.layout.waiting}/{inbox.given[pack.header.task].task_file.name}", "ab") as file:
            file.write(rest)
        pack.after_fork()  # as its death
    return lambda: stage.recover(rounds=8)


def work_pack(stage: Stage) -> Body:
    """Run a worker for a pack: each call has its outcome in the log before the next one begins."""
    stage.submit_pack()
    return lambda: stage.work(tasks=1)


def work_pack_again(stage: Stage) -> Body:
    """Run a worker for a pack of which an earlier worker has run the first call, and died in the second."""
    left = die_in_pack(stage, stage.submit_pack(calls=3), outcomes=1)
    Claim(stage.spool, left.header, left.task_file).requeue()
    return lambda: stage.work(tasks=1)


def work_pack_after_last_attempt(stage: Stage) -> Body:
    """Run a worker for a pack whose second call has ended a worker in each of its attempts: that call is lost."""
    left = die_in_pack(stage, stage.submit_pack(calls=3), outcomes=1)
    Claim(stage.spool, left.header, left.task_file).requeue()
    [path] = stage.seen().ready
    ready = f"{stage.spool.path}/{path}"
    os.rename(ready, ready.replace(".000002.02", ".000002.03"))
    return lambda: stage.work(tasks=1)


def recover_packs(stage: Stage) -> Body:
    """Recover from workers that died in the first and in a further call of a pack, and after the last one."""
    for outcomes in (0, 1, 2):
        die_in_pack(stage, stage.submit_pack(), outcomes)
    return lambda: stage.recover(rounds=2)


def collect_pack(stage: Stage) -> Body:
    """Collect a pack of which two workers have run a part each, and both have left a log."""
    header = stage.submit_pack()
    left = die_in_pack(stage, header, outcomes=1)
    Claim(stage.spool, left.header, left.task_file).requeue()
    stage.work(tasks=1)
    inbox = stage.inbox()
    return lambda: stage.collect(inbox, [header])


def work_pack_with_cancelled_call(stage: Stage) -> Body:
    """Run a worker for a pack of which one call was cancelled before it began."""
    stage.may_come += (TaskCancelled,)
    pack = stage.submit_pack()
    request(stage.spool, pack.task, 1)
    stage.may_be_left = (f"cancel/{request_name(pack.task, 1)}",)  # by a worker that dies before its end
    return lambda: stage.work(tasks=1)


def end_call_that_hangs(stage: Stage) -> Body:
    """End a worker whose call does not end when it is cancelled: the other calls of its pack are given back."""
    stage.may_come += (TaskCancelled,)
    header = stage.submit_pack(calls=3)
    mine = abandon(stage, header, dead_process())
    append_outcomes(stage, header, mine, 1)
    report = failure_report(TaskCancelled(), 0)
    return lambda: EmergencyPublisher(stage.spool)(header, mine, report, 1)


class DeadClaim(NamedTuple):
    """Claim of a pack whose worker has died."""

    header: TaskHeader
    task_file: TaskFile


def die_in_pack(stage: Stage, header: TaskHeader, outcomes: int) -> DeadClaim:
    """Claim a pack for a worker that dies after so many outcomes, in the write of the next one."""
    mine = abandon(stage, header, dead_process())
    append_outcomes(stage, header, mine, outcomes, torn=True)
    return DeadClaim(header, mine)


def append_outcomes(stage: Stage, header: TaskHeader, mine: TaskFile, outcomes: int, *, torn: bool = False) -> None:
    """Append so many outcomes to the log of a claim, and half of a further one if ``torn``."""
    payload, buffers = pickling.dumps("value")
    log = OutcomeLog(stage.spool, header.session, mine, None)
    with log:
        for number in range(outcomes + torn):
            parts = outcome_parts(header, mine, RankResult(payload, buffers, None), 1, 0.0, call=number)
            if number == outcomes:
                whole = b"".join(parts)
                parts = [whole[: len(whole) // 2]]
            log.append(parts)


def pair(stage: Stage, inbox: Inbox, function: Callable[..., str] = leave_trace) -> list[TaskHeader]:
    """Submit two tasks, the second of which depends on the first."""
    first = stage.submit(inbox, function)
    return [first, stage.submit(inbox, leave_trace, inbox.given[first.task])]


def live(stage: Stage) -> Body:
    """Submit, run and collect two tasks, and close the session."""

    def body() -> None:
        inbox = stage.inbox()
        headers = [stage.submit(inbox) for _ in range(2)]
        stage.work(tasks=2)
        stage.collect(inbox, headers)
        inbox.close()

    return body


def abandon(stage: Stage, header: TaskHeader, process: ProcessId) -> TaskFile:
    """Claim a task for a worker that writes nothing more."""
    task_file = header.first_file()
    mine = task_file.claimed_by(announce(stage.spool, process))
    # its time would be in the record of the lost attempt, and differ in each run
    os.unlink(f"{stage.spool.layout.worker(mine.worker)}/beat")
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
    release_claim,
    give_back_at_walltime,
    end_group_at_walltime,
    recover_outcomes,
    recover_silent,
    recover_last_attempt,
    enqueue_dependent,
    work_dependent,
    collect_dependent,
    fail_dependent,
    cancel_dependent,
    enqueue_pack,
    work_pack,
    work_pack_again,
    work_pack_after_last_attempt,
    recover_packs,
    collect_pack,
    work_pack_with_cancelled_call,
    end_call_that_hangs,
    append_to_pack,
    append_after_a_silence,
    seal_for_others,
)
_WITH_SESSIONS = frozenset(
    {collect, collect_kept, cancel, enqueue_dependent, collect_dependent, cancel_dependent, collect_pack}
)

REPEATABLE = (*(scenario for scenario in SCENARIOS if scenario not in _WITH_SESSIONS), live)
"""Scenarios whose bodies use only files of the preparation: no session and no future. They need no new preparation."""


def by_name(*scenarios: Scenario) -> pytest.MarkDecorator:
    """Parametrize a test by scenarios."""
    return pytest.mark.parametrize("scenario", scenarios, ids=lambda scenario: scenario.__name__)


def seeds(usual: int) -> range:
    """Return the seeds of a random test: ``usual`` many, or as many as SPOOLPOOL_FAULT_SEEDS says."""
    return range(int(os.environ.get("SPOOLPOOL_FAULT_SEEDS", usual)))


# -- running them


@dataclass(frozen=True)
class _Start:
    """A prepared scenario."""

    scenario: Scenario
    seed: object
    stage: Stage
    body: Body
    ticks: int
    random: Any
    """State of the module ``random``."""
    ids: Any
    """State of the source of ids."""
    files: dict[str, tuple[int, bytes | None]] = field(default_factory=dict)
    """Mode of each file and directory, and content of each file, by path; a directory comes before its files."""


class Runner:
    """Runs scenarios with faults, one after the other in the same directory, and checks the spools that they leave.

    All ids come from ``random`` and :meth:`ticks`. A scenario starts with the same seed each time, so that equal
    histories leave equal files. A state of the files that was checked before under the same conditions is not checked
    again: ``checked`` has them all.
    """

    def __init__(self, directory: Path, clock: Clock, checked: set[object]) -> None:
        self.clock = clock
        self.random = random.Random()
        self._directory = directory / "stage"
        self._copies = directory / "copies"
        self._checked = checked
        self._locks = _locks()
        self._epoch = self._ticks = 0
        self._start: _Start | None = None

    def ticks(self) -> int:
        """Return the date of the next id, in nanoseconds: later than all before."""
        self._ticks += 1_000_000
        return self._ticks

    @contextlib.contextmanager
    def prepared(self, scenario: Scenario, seed: object = "") -> Iterator[tuple[Stage, Body]]:
        """Prepare a scenario; its process syncs everything that can be synced.

        Errors of the checks tell the history of the spool.
        """
        start = self._start
        if start is not None and (start.scenario, start.seed) == (scenario, seed):
            self._restore(start)
        else:
            self._begin((scenario.__name__, seed), 0)
            shutil.rmtree(self._directory, ignore_errors=True)
            stage = Stage(self._directory, self.clock)
            body = scenario(stage)
            start = _Start(scenario, seed, stage, body, self._ticks, random.getstate(), self.random.getstate())
            if scenario in REPEATABLE:
                start.files.update(_read(self._directory))
                self._start = start
        stage = start.stage
        stage.durability("full")
        may_come = stage.may_come
        try:
            yield stage, start.body
        except AssertionError as error:
            raise AssertionError(f"{stage.story()}\n{error}") from error
        finally:
            stage.may_come = may_come
            stage.close()

    @contextlib.contextmanager
    def run(
        self, scenario: Scenario, seed: object = "", *, once: bool = False, atomic: bool = False
    ) -> Iterator[tuple[Stage, Body]]:
        """Prepare a scenario, and check the files at the end of the block: see :meth:`check`."""
        with self.prepared(scenario, seed) as (stage, body):
            yield stage, body
            self.check(scenario, stage, once=once, atomic=atomic)

    def check(self, scenario: Scenario, stage: Stage, *, once: bool = False, atomic: bool = False) -> None:
        """Check that other processes can recover, run and collect all tasks, and that nothing is lost or doubled.

        ``once``: no process died, so no task may run twice. ``atomic``: a submission that raised left nothing behind.
        """
        published = tuple((task, *sorted(names)) for task, names in sorted(stage.published.items()))
        files = digest(stage.directory, without=stage.struck.name)
        state = (scenario, once, atomic, stage.may_come, published, files)
        locks, self._locks = self._locks, _locks()
        free = locks is not None and locks == self._locks  # a lock that this process still has is part of the state
        if free and state in self._checked:
            return
        self._begin("other processes", self._epoch + 1)
        stage.durability("none")
        if atomic:
            assert len(stage.places()) <= len(stage.notes("submitted")), "submit raised, and left its task there"
        complete, before = stage.complete(), stage.runs()
        stage.settle(forgiven=forgiven(scenario, stage))
        after = stage.runs()
        for task in complete:
            assert after[task] == before[task], f"{task} ran again, although its outcome was complete"
        assert not once or max(after.values(), default=1) == 1, "a task ran twice"
        if free:
            self._checked.add(state)

    def operations(self, scenario: Scenario, **options: Any) -> list[str]:
        """Return the names of the operations of a scenario without faults, on a disk with these options."""
        disk = Disk(**options)
        with self.run(scenario) as (_, body), disk.installed():
            body()
        return disk.names

    def fork(self, disk: Disk, body: Body) -> int:
        """Run a body in a process of its own, as :func:`in_child`; its ids are not used again."""
        code = in_child(disk, body)
        self._begin("next process", self._epoch + 1)
        return code

    def record(self, stage: Stage, body: Body) -> list[Path]:
        """Run a body in a process of its own; return copies of all states of the files that it could leave by dying."""
        shutil.rmtree(self._copies, ignore_errors=True)
        notes = (stage.diary, stage.effects)
        code = in_child(Recorder(stage.directory, self._copies, notes, stage.struck.name), body)
        assert code == 0
        return sorted(self._copies.iterdir())

    def _restore(self, start: _Start) -> None:
        shutil.rmtree(self._directory)
        for path, (mode, content) in start.files.items():
            if content is None:
                os.mkdir(path)
            else:
                with open(path, "wb") as file:
                    file.write(content)
            os.chmod(path, mode)
        start.stage.published.clear()
        self._epoch, self._ticks = 0, start.ticks
        random.setstate(start.random)
        self.random.setstate(start.ids)

    def _begin(self, seed: object, epoch: int) -> None:
        """Begin a sequence of ids and random numbers that no other process has."""
        self._epoch = epoch
        self._ticks = int(NOW + 1000 * epoch) * 1_000_000_000
        random.seed(f"{seed} {epoch}")
        self.random.seed(f"{seed} {epoch}")


def forgiven(scenario: Scenario, stage: Stage) -> frozenset[str]:
    """Return tasks that may be nowhere: they were cancelled, but the process ended before it could note that."""
    return frozenset(stage.notes("submitted") if scenario in {cancel, cancel_dependent} else ())


def run_with_faults(disk: Disk, body: Body) -> None:
    """Run a body on a disk with faults; it may end early, with an error that says why."""
    with disk.installed(), contextlib.suppress(SpoolpoolError, OSError):
        body()


def _read(tree: Path) -> Iterator[tuple[str, tuple[int, bytes | None]]]:
    yield str(tree), (tree.stat().st_mode & 0o7777, None)
    for path in sorted(tree.rglob("*")):
        yield str(path), (path.stat().st_mode & 0o7777, None if path.is_dir() else path.read_bytes())


def _locks() -> set[str] | None:
    """Return the files that this process has locked, by device and inode; None if that is unknown."""
    try:
        lines = [line.split() for line in Path("/proc/locks").read_text(encoding="ascii").splitlines()]
    except OSError:
        return None
    return {fields[-3] for fields in lines if fields[-4] == str(os.getpid())}

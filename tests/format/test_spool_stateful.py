"""Stateful test of the spool against a dictionary, with any order of steps of submitters, workers and recoverers.

The model has the directory of each task file, and the outcome of each task; after every rule the tree is compared with
it. The test moves all clocks, and does not wait.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from spoolpool.format.headers import TaskHeader
from spoolpool.format.names import CANCELLED, TaskFile
from spoolpool.protocol import cancel
from spoolpool.protocol.claim import Claim
from spoolpool.protocol.claimer import Claimer
from spoolpool.protocol.failed_tasks import retry_task
from spoolpool.protocol.recovery import Recovery
from spoolpool.security.trust import Trust
from tests.support.fake_worker import (
    Clock,
    Inbox,
    Stage,
    announce,
    dead_process,
    leave_trace,
    outcome_of,
    unknown_process,
)

CHOICE = st.integers(0, 10**6)


@dataclass
class Task:
    """A task in the model."""

    header: TaskHeader
    place: str
    """ready, claimed, results, failed, or "" after the delivery."""
    task_file: TaskFile
    outcome: str = ""
    """value, cancelled or lost, after the commit."""
    written: str = ""
    """Worker that has written the outcome of the current claim, and not committed it."""


@dataclass
class Worker:
    """A worker in the model."""

    name: str
    claimer: Claimer
    state: str = "alive"
    """alive, paused (has its lock, no heartbeat), or silent (neither)."""
    claim: Claim | None = None


class SpoolMachine(RuleBasedStateMachine):
    """Each rule is one step of one process."""

    @initialize()
    def begin(self) -> None:
        self.patch = pytest.MonkeyPatch()
        self.clock = Clock.installed(self.patch)
        self.directory = Path(tempfile.mkdtemp(prefix="spoolpool-test-"))
        self.stage = Stage(self.directory / "stage", self.clock)
        self.spool = self.stage.spool
        self.inbox = Inbox(self.spool, self.clock)
        self.tasks: dict[str, Task] = {}
        self.workers: list[Worker] = []
        self.beats = 0
        for _ in range(3):
            self.start_worker()
            self.submit(priority=0, attempts=2)
        self.submit(priority=0, attempts=1)

    def teardown(self) -> None:
        if not hasattr(self, "patch"):
            return
        try:
            self.end()
        finally:
            self.patch.undo()
            shutil.rmtree(self.directory)

    # -- submitters

    @precondition(lambda self: len(self.tasks_in("ready")) < 6)
    @rule(priority=st.integers(-1, 1), attempts=st.integers(1, 2))
    def submit(self, priority: int, attempts: int) -> None:
        future = self.inbox.put(leave_trace, str(self.stage.effects), priority=priority, max_attempts=attempts)
        self.tasks[future.task] = Task(future.header, "ready", future.task_file)

    @precondition(lambda self: len(self.tasks_in("ready")) > 2)
    @rule(choice=CHOICE)
    def cancel(self, choice: int) -> None:
        task = list(self.tasks.values())[choice % len(self.tasks)]
        task_file = TaskFile(task.header.task, 1, 1)
        waits = task.place == "ready" and task.task_file == task_file
        cancelled_before = task.place == "results" and task.outcome == "cancelled"
        assert cancel.cancel_task(self.spool, task.header, task_file) is (waits or cancelled_before)
        if waits:
            task.place, task.task_file, task.outcome = "results", task_file.claimed_by(CANCELLED), "cancelled"

    @rule()
    def collect(self) -> None:
        self.inbox.look(rounds=0)  # one pass, without time for a recovery
        for task in self.tasks_in("results"):
            assert self.delivered(task) == task.outcome
            task.place = "failed" if task.outcome == "lost" else ""

    @precondition(lambda self: self.tasks_in("failed"))
    @rule(choice=CHOICE)
    def retry(self, choice: int) -> None:
        failed = self.tasks_in("failed")
        task = failed[choice % len(failed)]
        assert retry_task(self.spool, task.task_file.name) == task.header.task
        task.place, task.outcome = "ready", ""
        task.task_file = TaskFile(task.header.task, task.task_file.claim + 1, 1)
        self.inbox.expect(task.header)
        self.stage.published.pop(task.header.task)  # after a retry it has another outcome

    # -- workers

    @precondition(lambda self: len(self.workers) < 4)
    @rule()
    def start_worker(self) -> None:
        name = announce(self.spool, unknown_process())
        self.workers.append(Worker(name, Claimer(self.spool, name, lambda _: True, Trust())))

    @precondition(lambda self: self.idle())
    @rule(choice=CHOICE)
    def claim_too(self, choice: int) -> None:
        """The same rule again, because without claims nothing happens."""
        self.claim(choice)

    @precondition(lambda self: self.idle())
    @rule(choice=CHOICE)
    def claim(self, choice: int) -> None:
        worker = self.idle()[choice % len(self.idle())]
        self.clock.sleep(2.0)  # a listing is used for a second
        waiting = self.tasks_in("ready")
        worker.claim = worker.claimer.next()
        assert (worker.claim is not None) == bool(waiting)
        if worker.claim is not None:
            task = self.tasks[worker.claim.task_file.task]
            assert task.header.task[:3] == min(other.header.task[:3] for other in waiting), "a more urgent one waits"
            task.place, task.task_file = "claimed", task.task_file.claimed_by(worker.name)
            assert worker.claim.task_file == task.task_file

    @precondition(lambda self: self.busy())
    @rule(choice=CHOICE)
    def publish(self, choice: int) -> None:
        """Publish an outcome: also by a fenced worker, and by a worker that has written it before."""
        worker, task, mine = self.chosen(choice)
        if not (mine and task.written):
            self.write(worker)
        claim = self.take_claim(worker)
        done_for_it = task.place == "results" and task.task_file == claim.task_file
        assert claim.commit() is (mine or done_for_it)
        if mine:
            task.place, task.outcome, task.written = "results", "value", ""

    @precondition(lambda self: self.busy())
    @rule(choice=CHOICE)
    def write_without_commit(self, choice: int) -> None:
        worker, task, mine = self.chosen(choice)
        if mine and not task.written:
            self.write(worker)
            task.written = worker.name

    @precondition(lambda self: self.busy())
    @rule(choice=CHOICE)
    def release(self, choice: int) -> None:
        worker, task, mine = self.chosen(choice)
        self.take_claim(worker).release()
        if mine:
            task.place, task.written = "ready", ""
            task.task_file = TaskFile(task.header.task, task.task_file.claim + 1, task.task_file.attempt)

    @precondition(lambda self: self.workers)
    @rule(choice=CHOICE, how=st.sampled_from(["killed", "entry removed"]))
    def crash(self, choice: int, how: str) -> None:
        worker = self.workers.pop(choice % len(self.workers))
        if worker.claim is not None:
            worker.claim.close()
        shutil.rmtree(self.spool.layout.worker(worker.name), ignore_errors=True)
        if how == "killed":
            announce(self.spool, dead_process(), worker_id=worker.name)

    @precondition(lambda self: self.workers)
    @rule(choice=CHOICE, state=st.sampled_from(["alive", "paused", "silent"]))
    def change(self, choice: int, state: str) -> None:
        """Pause or resume a worker; a silent one also loses its lock, as if locks do not reach other hosts."""
        worker = self.workers[choice % len(self.workers)]
        if worker.state == "silent" and worker.claim is not None:
            return  # a lost lock does not come back
        worker.state = state
        if state == "silent" and worker.claim is not None:
            worker.claim.close()

    # -- recoverers

    @precondition(lambda self: self.busy())
    @rule(choice=CHOICE)
    def take_for_dead(self, choice: int) -> None:
        """Recover the claim of a live worker that is silent: it continues later, fenced."""
        worker, _, _ = self.chosen(choice)
        assert worker.claim is not None
        worker.claim.close()
        worker.state = "silent"
        self.recover()

    @rule()
    def recover(self) -> None:
        """Observe for more than a lease."""
        recovery = Recovery(self.spool)
        for _ in range(5):
            self.beat()
            recovery.round()
            self.clock.sleep(self.spool.config.lease)
        alive = {worker.name for worker in self.workers if worker.state == "alive"}
        holding = {worker.name for worker in self.workers if worker.state == "paused"}
        for task in self.tasks_in("claimed"):
            if task.task_file.worker not in alive | holding:
                self.recovered(task)
        # a silent worker, or a paused one without a claim, was taken for dead: its entry is gone, and it ends
        self.workers = [worker for worker in self.workers if worker.state == "alive" or (worker.claim is not None)]

    def recovered(self, task: Task) -> None:
        if task.written:
            task.place, task.outcome, task.written = "results", "value", ""
        elif task.task_file.attempt < task.header.max_attempts:
            task.place = "ready"
            task.task_file = TaskFile(task.header.task, task.task_file.claim + 1, task.task_file.attempt + 1)
        else:
            task.place, task.outcome = "results", "lost"
            task.task_file = task.task_file._replace(claim=task.task_file.claim + 1, worker="")  # the recoverer's

    # -- helpers of the rules

    def tasks_in(self, place: str) -> list[Task]:
        return [task for task in self.tasks.values() if task.place == place]

    def idle(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.claim is None and worker.state == "alive"]

    def busy(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.claim is not None]

    def chosen(self, choice: int) -> tuple[Worker, Task, bool]:
        """Return a busy worker, its task, and whether it still has the claim."""
        worker = self.busy()[choice % len(self.busy())]
        assert worker.claim is not None
        task = self.tasks[worker.claim.task_file.task]
        return worker, task, task.place == "claimed" and task.task_file == worker.claim.task_file

    def take_claim(self, worker: Worker) -> Claim:
        assert worker.claim is not None
        claim, worker.claim = worker.claim, None
        claim.close()
        return claim

    def write(self, worker: Worker) -> None:
        assert worker.claim is not None
        try:
            worker.claim.write_outcome(outcome_of(worker.claim.header, worker.claim.task_file))
        except FileExistsError:  # it was fenced after it had written the outcome
            assert self.stage.outcome(worker.claim.task_file) is not None

    def beat(self) -> None:
        self.beats += 1
        for worker in self.workers:
            beat = Path(self.spool.layout.worker(worker.name), "beat")
            if worker.state == "alive" and beat.exists():
                os.utime(beat, (self.beats, self.beats))

    def delivered(self, task: Task) -> str:
        future = self.inbox.given[task.header.task]
        assert future.done()
        if future.cancelled():
            return "cancelled"
        return "lost" if future.exception() else str(future.result())

    # -- invariants

    @invariant()
    def every_task_file_is_where_the_model_has_it(self) -> None:
        if not hasattr(self, "tasks"):
            return
        seen = self.stage.seen()
        for place in ("ready", "claimed", "results", "failed"):
            there = {task_file.task: task_file for task_file in getattr(seen, place).values()}
            assert len(there) == len(getattr(seen, place))
            assert there.keys() == {task.header.task for task in self.tasks_in(place)}, place
            for task in self.tasks_in(place):
                found = there[task.header.task]
                if task.outcome == "lost" and not task.task_file.worker:
                    task.task_file = task.task_file.claimed_by(found.worker)
                assert found == task.task_file

    @invariant()
    def every_published_outcome_is_complete(self) -> None:
        if hasattr(self, "tasks"):
            self.stage.check()
            assert not os.listdir(self.spool.layout.tmp)

    def end(self) -> None:
        """Finish all tasks: each one is delivered, and nothing is left."""
        for worker in self.workers:
            if worker.claim is not None:
                worker.claim.close()
            shutil.rmtree(self.spool.layout.worker(worker.name), ignore_errors=True)
        self.workers = []
        for _ in range(2):
            self.recover()
            self.stage.work()
            self.inbox.look(rounds=8)
        assert not [future for future in self.inbox.given.values() if not future.done()]
        self.stage.session = self.inbox.name
        self.stage.leave_nothing()


TestSpool = SpoolMachine.TestCase
TestSpool.settings = settings(
    max_examples=120, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)

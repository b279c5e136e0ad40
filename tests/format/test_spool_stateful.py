"""The spool against a plain dictionary: any order of what submitters, workers and recoverers do.

The model says where the token of each task stands, and what its outcome is; after every rule the tree is compared
with it. All clocks are the test's: nobody waits.
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
from spoolpool.protocol.recovery import Recovery
from spoolpool.protocol.retry import retry_task
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
    """What the model knows of a task."""

    header: TaskHeader
    place: str
    """ready, claimed, results, failed, or "" for nowhere: it was delivered."""
    task_file: TaskFile
    outcome: str = ""
    """value, cancelled or lost, once it is published."""
    written: str = ""
    """Worker that has written its outcome for the claim that stands, but has not committed it."""


@dataclass
class Person:
    """A worker, as the model sees it."""

    name: str
    claimer: Claimer
    state: str = "lives"
    """lives, paused (holds its lock, does not beat), silent (neither), dead (provably)."""
    claim: Claim | None = None


class SpoolMachine(RuleBasedStateMachine):
    """Every rule is one thing that somebody does."""

    @initialize()
    def begin(self) -> None:
        self.patch = pytest.MonkeyPatch()
        self.clock = Clock.installed(self.patch)
        self.directory = Path(tempfile.mkdtemp(prefix="spoolpool-test-"))
        self.stage = Stage(self.directory / "stage", self.clock)
        self.spool = self.stage.spool
        self.inbox = Inbox(self.spool, self.clock)
        self.tasks: dict[str, Task] = {}
        self.people: list[Person] = []
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

    @precondition(lambda self: len(self.having("ready")) < 6)
    @rule(priority=st.integers(-1, 1), attempts=st.integers(1, 2))
    def submit(self, priority: int, attempts: int) -> None:
        future = self.inbox.put(leave_trace, str(self.stage.effects), priority=priority, max_attempts=attempts)
        self.tasks[future.task] = Task(future.header, "ready", future.task_file)

    @precondition(lambda self: len(self.having("ready")) > 2)
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
        self.inbox.look(rounds=0)  # one pass, in which it has no time to recover anything
        for task in self.having("results"):
            assert self.delivered(task) == task.outcome
            task.place = "failed" if task.outcome == "lost" else ""

    @precondition(lambda self: self.having("failed"))
    @rule(choice=CHOICE)
    def try_again(self, choice: int) -> None:
        failed = self.having("failed")
        task = failed[choice % len(failed)]
        assert retry_task(self.spool, task.task_file.name) == task.header.task
        task.place, task.outcome = "ready", ""
        task.task_file = TaskFile(task.header.task, task.task_file.claim + 1, 1)
        self.inbox.expect(task.header)
        self.stage.published.pop(task.header.task)  # a new life has an outcome of its own

    # -- workers

    @precondition(lambda self: len(self.people) < 4)
    @rule()
    def start_worker(self) -> None:
        name = announce(self.spool, unknown_process())
        self.people.append(Person(name, Claimer(self.spool, name, lambda _: True, Trust())))

    @precondition(lambda self: self.idle())
    @rule(choice=CHOICE)
    def claim_too(self, choice: int) -> None:
        """Once more, since without claims nothing happens."""
        self.claim(choice)

    @precondition(lambda self: self.idle())
    @rule(choice=CHOICE)
    def claim(self, choice: int) -> None:
        person = self.idle()[choice % len(self.idle())]
        self.clock.sleep(2.0)  # a listing is used for a second
        waiting = self.having("ready")
        person.claim = person.claimer.next()
        assert (person.claim is not None) == bool(waiting)
        if person.claim is not None:
            task = self.tasks[person.claim.task_file.task]
            assert task.header.task[:3] == min(other.header.task[:3] for other in waiting), "a more urgent one waits"
            task.place, task.task_file = "claimed", task.task_file.claimed_by(person.name)
            assert person.claim.task_file == task.task_file

    @precondition(lambda self: self.busy())
    @rule(choice=CHOICE)
    def publish(self, choice: int) -> None:
        """Also late: by a worker whom others took for dead, and by one who had written it before."""
        person, task, mine = self.chosen(choice)
        if not (mine and task.written):
            self.write(person)
        claim = self.release(person)
        done_for_it = task.place == "results" and task.task_file == claim.task_file
        assert claim.commit() is (mine or done_for_it)
        if mine:
            task.place, task.outcome, task.written = "results", "value", ""

    @precondition(lambda self: self.busy())
    @rule(choice=CHOICE)
    def write_without_commit(self, choice: int) -> None:
        person, task, mine = self.chosen(choice)
        if mine and not task.written:
            self.write(person)
            task.written = person.name

    @precondition(lambda self: self.busy())
    @rule(choice=CHOICE)
    def give_back(self, choice: int) -> None:
        person, task, mine = self.chosen(choice)
        self.release(person).release()
        if mine:
            task.place, task.written = "ready", ""
            task.task_file = TaskFile(task.header.task, task.task_file.claim + 1, task.task_file.attempt)

    @precondition(lambda self: self.people)
    @rule(choice=CHOICE, how=st.sampled_from(["killed", "entry removed"]))
    def crash(self, choice: int, how: str) -> None:
        person = self.people.pop(choice % len(self.people))
        if person.claim is not None:
            person.claim.close()
        shutil.rmtree(self.spool.layout.worker(person.name), ignore_errors=True)
        if how == "killed":
            announce(self.spool, dead_process(), worker_id=person.name)

    @precondition(lambda self: self.people)
    @rule(choice=CHOICE, state=st.sampled_from(["lives", "paused", "silent"]))
    def change(self, choice: int, state: str) -> None:
        """Stop it, let it go on; silent: its lock is lost as well, as where locks do not reach across hosts."""
        person = self.people[choice % len(self.people)]
        if person.state == "silent" and person.claim is not None:
            return  # a lock that is lost does not come back
        person.state = state
        if state == "silent" and person.claim is not None:
            person.claim.close()

    # -- recoverers

    @precondition(lambda self: self.busy())
    @rule(choice=CHOICE)
    def take_for_dead(self, choice: int) -> None:
        """Somebody recovers what a live worker holds that is neither heard nor seen: it will come back, and be late."""
        person, _, _ = self.chosen(choice)
        assert person.claim is not None
        person.claim.close()
        person.state = "silent"
        self.recover()

    @rule()
    def recover(self) -> None:
        """Somebody watches for more than a lease."""
        recovery = Recovery(self.spool)
        for _ in range(5):
            self.beat()
            recovery.round()
            self.clock.sleep(self.spool.config.lease)
        alive = {person.name for person in self.people if person.state == "lives"}
        holding = {person.name for person in self.people if person.state == "paused"}
        for task in self.having("claimed"):
            if task.task_file.worker not in alive | holding:
                self.brought_back(task)
        # who was silent, or idle and paused, was taken for dead, and its entry is gone: it will end
        self.people = [person for person in self.people if person.state == "lives" or (person.claim is not None)]

    def brought_back(self, task: Task) -> None:
        if task.written:
            task.place, task.outcome, task.written = "results", "value", ""
        elif task.task_file.attempt < task.header.max_attempts:
            task.place = "ready"
            task.task_file = TaskFile(task.header.task, task.task_file.claim + 1, task.task_file.attempt + 1)
        else:
            task.place, task.outcome = "results", "lost"
            task.task_file = task.task_file._replace(claim=task.task_file.claim + 1, worker="")  # whoever took it over

    # -- what they need

    def having(self, place: str) -> list[Task]:
        return [task for task in self.tasks.values() if task.place == place]

    def idle(self) -> list[Person]:
        return [person for person in self.people if person.claim is None and person.state == "lives"]

    def busy(self) -> list[Person]:
        return [person for person in self.people if person.claim is not None]

    def chosen(self, choice: int) -> tuple[Person, Task, bool]:
        """A busy worker, its task, and whether the claim is still its own."""
        person = self.busy()[choice % len(self.busy())]
        assert person.claim is not None
        task = self.tasks[person.claim.task_file.task]
        return person, task, task.place == "claimed" and task.task_file == person.claim.task_file

    def release(self, person: Person) -> Claim:
        assert person.claim is not None
        claim, person.claim = person.claim, None
        claim.close()
        return claim

    def write(self, person: Person) -> None:
        assert person.claim is not None
        try:
            person.claim.write_outcome(outcome_of(person.claim.header, person.claim.task_file))
        except FileExistsError:  # it was fenced after it had written it
            assert self.stage.outcome(person.claim.task_file) is not None

    def beat(self) -> None:
        self.beats += 1
        for person in self.people:
            beat = Path(self.spool.layout.worker(person.name), "beat")
            if person.state == "lives" and beat.exists():
                os.utime(beat, (self.beats, self.beats))

    def delivered(self, task: Task) -> str:
        future = self.inbox.given[task.header.task]
        assert future.done()
        if future.cancelled():
            return "cancelled"
        return "lost" if future.exception() else str(future.result())

    # -- what must hold

    @invariant()
    def every_task_is_where_the_model_has_it(self) -> None:
        if not hasattr(self, "tasks"):
            return
        seen = self.stage.seen()
        for place in ("ready", "claimed", "results", "failed"):
            there = {task_file.task: task_file for task_file in getattr(seen, place).values()}
            assert len(there) == len(getattr(seen, place))
            assert there.keys() == {task.header.task for task in self.having(place)}, place
            for task in self.having(place):
                found = there[task.header.task]
                if task.outcome == "lost" and not task.task_file.worker:
                    task.task_file = task.task_file.claimed_by(found.worker)
                assert found == task.task_file

    @invariant()
    def whatever_is_published_is_complete(self) -> None:
        if hasattr(self, "tasks"):
            self.stage.check()
            assert not os.listdir(self.spool.layout.tmp)

    def end(self) -> None:
        """Let all of it come to its end: everything is delivered, nothing is left."""
        for person in self.people:
            if person.claim is not None:
                person.claim.close()
            shutil.rmtree(self.spool.layout.worker(person.name), ignore_errors=True)
        self.people = []
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

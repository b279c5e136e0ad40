"""The checker finds wrong rules: each protocol here breaks one rule, and breaks an invariant because of it.

`pytest -s` prints the traces.
"""

from __future__ import annotations

import pytest

from tests.model.checker import check
from tests.model.config import Budget, Config
from tests.model.operations import (
    CANCELLED,
    DEAD,
    DONE,
    ENTRY,
    ERROR,
    INBOX,
    LINK,
    LOST,
    NO,
    PARTIAL,
    RAISED,
    TASK,
    VALUE,
    Body,
    Choose,
    Create,
    Find,
    Name,
    Note,
    Read,
    Rename,
    Unlink,
    rule,
)
from tests.model.protocol import Protocol


class CommitByUnlink(Protocol):
    """Unlink the claim, then rename the outcome into results/. Recovery publishes each outcome that it finds."""

    outcome_is_moved = True

    @rule
    def commit(self, mine: Name) -> Body:
        outgoing = mine.to("outgoing")
        if (yield Unlink(mine)) == DONE:
            yield Rename(outgoing, mine.to("results"))
        else:
            yield Unlink(outgoing)
        return None

    @rule
    def discard(self, outgoing: Name) -> Body:
        if (yield Read(outgoing.to("claimed"))):
            return None
        complete = (yield Read(outgoing)) not in (NO, PARTIAL)
        yield Rename(outgoing, outgoing.to("results")) if complete else Unlink(outgoing)
        return None

    @rule
    def recover(self, claimed: Name, me: str) -> Body:
        found = yield Read(claimed.to("outgoing"))
        if found and found != PARTIAL:
            return self.commit(claimed)
        yield Rename(claimed, Name("ready", claimed.task, claimed.claim + 1, claimed.attempt + 1))
        return None

    @rule
    def collect(self, published: Name) -> Body:
        content = yield Read(published)
        yield Note("delivered", published.task, content)
        yield Unlink(published)
        return None


class ResultsBeforeClaimed(Protocol):
    """Discard looks in the target of a commit before it looks in its source."""

    rounds = 1

    @rule
    def discard(self, outgoing: Name) -> Body:
        for place in ("results", "claimed"):
            if (yield Read(outgoing.to(place))):
                return None
        yield Unlink(outgoing)
        return None


class OneRead(Protocol):
    """Discard and collect believe the first read that finds no file."""

    rounds = 1


class DropWithoutProof(Protocol):
    """A worker unlinks its outcome as soon as it finds its claim neither in claimed/ nor in results/."""

    @rule
    def drop(self, mine: Name) -> Body:
        yield Unlink(mine.to("outgoing"))
        return None


class RequeueUnderTheSameName(Protocol):
    """Recovery does not raise the claim number (and counts attempts elsewhere)."""

    @rule
    def recover(self, claimed: Name, me: str) -> Body:
        found = yield Read(claimed.to("outgoing"))
        if found and found != PARTIAL:
            yield Rename(claimed, claimed.to("results"))
        else:
            yield Rename(claimed, claimed.to("ready", ""))
        return None


class RecovererRunsItsClaims(Protocol):
    """A recoverer resumes a forgotten claim in its name like a worker."""

    @rule
    def recover(self, claimed: Name, me: str) -> Body:
        if claimed.holder == me:
            return self.run(claimed)
        yield Read(claimed)
        return super().recover(claimed, me)


class ResumeWithoutSecondRead(Protocol):
    """A worker assumes that a forgotten claim without an outcome never ran."""

    @rule
    def self_check(self, mine: Name, left: int = 0) -> Body:
        if mine.place == "outgoing":
            return self.discard(mine)
        return self.commit(mine) if (yield Read(mine.to("outgoing"))) else self.run(mine)


class OutcomeBeforeTaskFile(Protocol):
    """The collector removes the outcome, then the task file."""

    @rule
    def collect(self, published: Name) -> Body:
        content = yield Read(published.to("outgoing"))
        if not content:
            return None
        yield Note("delivered", published.task, content)
        yield Unlink(published.to("outgoing"))
        yield Unlink(published)
        return None


class DependentsIgnored(Protocol):
    """The collector removes each outcome that it has delivered, even if a task depends on it."""

    def dependent_links(self, task: int) -> list[Name]:
        return []


class FailureNotPropagated(Protocol):
    """A dependent runs when its dependency has ended, whatever the outcome."""

    @rule
    def run(self, mine: Name, left: int = 0) -> Body:
        if mine.attempt > self.config.attempts:
            return self.write_outcome(mine, LOST)
        if (yield Read(Name("cancel", mine.task))):
            return self.write_outcome(mine, CANCELLED)
        yield Note("run", mine.task)
        return self.write_outcome(mine, RAISED if (yield Choose("raises")) else VALUE)


class LinkAfterTaskFile(Protocol):
    """A submitter creates the dependency links when the task is in the queue already."""

    @rule
    def enqueue(self, task: int) -> Body:
        yield Note("begun", task)
        yield Create(Name("tmp", task), TASK)
        return self.rename_into_queue(task)

    @rule
    def rename_into_queue(self, task: int) -> Body:
        yield Rename(Name("tmp", task), Name("waiting" if task > 1 else "ready", task, 1, 1))
        for link in self.dependency_links(task):
            yield Create(link, LINK)
        yield Note("submitted", task)
        return None


class LostTaskWithoutLinks(Protocol):
    """A task goes to failed/ without its links: the dependency is gone when the task is retried."""

    @rule
    def collect(self, published: Name) -> Body:
        for link in self.dependency_links(published.task):
            yield Unlink(link)
        return super().collect(published)


class OnePass(Protocol):
    """A submitter believes the first pass over all places that finds no file."""

    passes = 1


class NoSearch(Protocol):
    """A submitter searches for no task."""

    @rule
    def search(self, task: int) -> Body:
        yield Read(Name("tmp", task))
        return None


class RemovedIsRenamed(Protocol):
    """A submitter takes a missing tmp/N for a rename that was done, and nothing searches for the task later."""

    @rule
    def rename_into_queue(self, task: int) -> Body:
        yield Rename(Name("tmp", task), Name("ready", task, 1, 1))
        yield Note("submitted", task)
        return None


class SweepByAge(Protocol):
    """A collector removes tmp/N because it is old."""

    @rule
    def sweep(self, task: int) -> Body:
        yield Unlink(Name("tmp", task))
        return None


class SweepWithoutSecondLook(Protocol):
    """A collector removes the links of tmp/N, which it found before the proof of death."""

    @rule
    def sweep(self, task: int) -> Body:
        for name in [*self.dependency_links(task), Name("tmp", task)]:
            if (yield Read(ENTRY)) != DEAD or (yield Unlink(name)) == ERROR:
                return None
        return None


class ExpireByAge(Protocol):
    """A collector removes an outcome because it is old."""

    @rule
    def expire(self, published: Name) -> Body:
        if (yield Unlink(published)) == DONE:
            yield Unlink(published.to("outgoing"))
        return None


class LinksBeforeTheProof(Protocol):
    """A collector looks for dependents, and proves the death of the submitter after that."""

    @rule
    def expire(self, published: Name) -> Body:
        for link in self.dependent_links(published.task):
            if (yield Read(link)):
                return None
        if (yield Read(ENTRY)) == DEAD and (yield Unlink(published)) == DONE:
            yield Unlink(published.to("outgoing"))
        return None


class RetryKeepsRequest(Protocol):
    """A retry leaves the cancel request for the earlier life of the task."""

    @rule
    def retry(self, failed: Name) -> Body:
        yield Note("retried", failed.task)
        yield Rename(failed, Name("ready", failed.task, failed.claim + 1, 1))
        return None


class RequestsStay(Protocol):
    """No collector removes the cancel request of a task that has ended."""

    @rule
    def sweep_request(self, task: int) -> Body:
        yield Read(Name("cancel", task))
        return None


class SessionOfWaitingTask(Protocol):
    """A collector removes the empty directory of a dead submitter, whose task waits."""

    @rule
    def remove_session(self) -> Body:
        if (yield Read(ENTRY)) == DEAD and not (yield Find("results", 1)):
            yield Unlink(INBOX)
        return None


class TasksBeforeTheProof(Protocol):
    """A collector looks for tasks of a session, and proves the death of the submitter after that."""

    @rule
    def remove_session(self) -> Body:
        if not (yield from self.find(1)) and (yield Read(ENTRY)) == DEAD:
            yield Unlink(INBOX)
        return None


class AutoscalerCountsReadyTasks(Protocol):
    """The autoscaler leaves delayed tasks, and claims of dead workers, to workers that it does not start for them."""

    autoscaler_releases = False


class NeverReady(Protocol):
    """No participant moves a task from waiting/ to ready/."""

    @rule
    def make_ready(self, waiting: Name) -> Body:
        yield Read(waiting)
        return None


class ClaimsWithoutLooking(Protocol):
    """Claim a task whatever time is left, and give it back later."""

    def fits(self, ready: Name, left: int = 0) -> bool:
        return True


class ForgetsTheTime(Protocol):
    """Count a task that is given back at the end of a walltime, but do not record the time that it had."""

    @rule
    def give_back(self, mine: Name, left: int) -> Body:
        if mine.releases + 1 >= self.config.attempts:
            return self.write_outcome(mine, LOST)
        if (yield Rename(mine, mine.following("ready", mine.attempt)._replace(releases=mine.releases + 1))):
            yield Note("given back", mine.task, str(left))
        return None


class RecoversWithoutTheTime(Protocol):
    """Requeue the task of a dead worker as if it had never been given back."""

    @rule
    def recover(self, claimed: Name, me: str) -> Body:
        if claimed.attempt < self.config.attempts:
            yield Rename(claimed, Name("ready", claimed.task, claimed.claim + 1, claimed.attempt + 1))
        return None


class CountsNoReleases(Protocol):
    """Record the time that a task had, but give it back as often as groups have more."""

    @rule
    def give_back(self, mine: Name, left: int) -> Body:
        ready = mine.following("ready", mine.attempt)._replace(seconds=left + 1)
        if (yield Rename(mine, ready)):
            yield Note("given back", mine.task, str(left))
        return None


class ReportsNothing(Protocol):
    """Leave a task in the queue that was given back as often as it has attempts: no group claims it any more."""

    @rule
    def give_back(self, mine: Name, left: int) -> Body:
        yield Rename(mine, mine.following("ready", mine.attempt)._replace(releases=mine.releases + 1))
        return None

    def fits(self, ready: Name, left: int = 0) -> bool:
        return ready.releases < self.config.attempts


WRONG: list[tuple[type[Protocol], Config, str, str]] = [
    (
        CommitByUnlink,
        Config(budget=Budget(suspect=2)),
        "ready/1.2.2 can run after its outcome was published",
        "r1  rename outgoing/1.1.1.w1 results/1.1.1.w1: done",
    ),
    (
        ResultsBeforeClaimed,
        Config(budget=Budget(suspect=1)),
        "results/1.1.1.w1 has lost its outcome",
        "r1  unlink outgoing/1.1.1.w1: done",
    ),
    (
        OneRead,
        Config(budget=Budget(suspect=1, stale=1)),
        "results/1.1.1.w1 is published without a complete outcome",
        "w1  rename claimed/1.1.1.w1 results/1.1.1.w1: done",
    ),
    (
        DropWithoutProof,
        Config(budget=Budget(enoent=1, stale=1)),
        "results/1.1.1.w1 has lost its outcome",
        "w1  unlink outgoing/1.1.1.w1: done",
    ),
    (
        RequeueUnderTheSameName,
        Config(workers=1, attempts=9, budget=Budget(suspect=2)),
        "results/1.1.1.w1 is published without a complete outcome",
        "w1  rename claimed/1.1.1.w1 results/1.1.1.w1: done",
    ),
    (
        RecovererRunsItsClaims,
        Config(attempts=1, budget=Budget(crash=1, enoent=1, stale=1)),
        "task 1 runs more often than it has attempts",
        "r1  read cancel/1: no",
    ),
    (
        ResumeWithoutSecondRead,
        Config(attempts=1, budget=Budget(suspect=1, error=1, stale=1)),
        "task 1 runs more often than it has attempts",
        "w1  read cancel/1: no",
    ),
    (
        OutcomeBeforeTaskFile,
        Config(),
        "results/1.1.1.w1 has lost its outcome",
        "s   unlink outgoing/1.1.1.w1: done",
    ),
    (
        DependentsIgnored,
        Config(tasks=2, chain=True),
        "task 2 fails, although its dependency has a value",
        "w2  rename claimed/2.1.1.w2 results/2.1.1.w2: done",
    ),
    (
        LinkAfterTaskFile,
        Config(tasks=2, chain=True, workers=1, budget=Budget(crash=1)),
        "task 2 fails, although its dependency has a value",
        "w1  rename claimed/2.1.1.w1 results/2.1.1.w1: done",
    ),
    (
        FailureNotPropagated,
        Config(tasks=2, chain=True, budget=Budget(raises=1)),
        "task 2 runs without the value of task 1",
        "w2  read cancel/2: no",
    ),
    (
        LostTaskWithoutLinks,
        Config(tasks=2, chain=True, workers=1, attempts=1, budget=Budget(crash=1, retry=1)),
        "task 2 fails, although its dependency has a value",
        "w2  rename claimed/2.3.1.w2 results/2.3.1.w2: done",
    ),
    (
        OnePass,
        Config(searches=True, budget=Budget(release=1)),
        "task 1 is vanished, although it is in",
        "s   find failed 1: no",
    ),
    (
        NoSearch,
        Config(searches=True, budget=Budget(delete=1)),
        "no final state can be reached without further faults",
        "r1  sees a third party delete ready/1.1.1",
    ),
    (
        RemovedIsRenamed,
        Config(budget=Budget(delete=1)),
        "no final state can be reached without further faults",
        "r1  sees a third party delete tmp/1",
    ),
    (
        SweepByAge,
        Config(collectors=1),
        "task 1 is refused, although no third party deleted it",
        "s   find failed 1: no",
    ),
    (
        SweepWithoutSecondLook,
        Config(tasks=2, chain=True, workers=1, recoverers=0, collectors=1, searches=True, budget=Budget(death=1)),
        "task 2 fails, although its dependency has a value",
        "w1  rename claimed/2.1.1.w1 results/2.1.1.w1: done",
    ),
    (
        ExpireByAge,
        Config(collectors=1, searches=True),
        "task 1 is lost",
        "g1  unlink results/1.1.1.w1: done",
    ),
    (
        LinksBeforeTheProof,
        Config(tasks=2, chain=True, workers=1, recoverers=0, collectors=1, searches=True, budget=Budget(death=1)),
        "task 2 fails, although its dependency has a value",
        "w1  rename claimed/2.1.1.w1 results/2.1.1.w1: done",
    ),
    (
        RetryKeepsRequest,
        Config(workers=1, attempts=1, collectors=1, searches=True, budget=Budget(crash=1, cancel=1, retry=1)),
        "task 1 is cancelled, but nobody asked for it since its retry",
        "w2  rename claimed/1.3.1.w2 results/1.3.1.w2: done",
    ),
    (
        RequestsStay,
        Config(workers=1, collectors=1, searches=True, budget=Budget(cancel=1)),
        "no final state can be reached without further faults",
        "s   unlink cancel/1: no",
    ),
    (
        SessionOfWaitingTask,
        Config(workers=1, recoverers=0, shared=True, collectors=1, searches=True, budget=Budget(death=1)),
        "task 1 is set aside without a run",
        "w1  rename claimed/1.1.1.w1 failed/1.1.1.w1: done",
    ),
    (
        TasksBeforeTheProof,
        Config(workers=1, recoverers=0, shared=True, collectors=1, searches=True, budget=Budget(death=1)),
        "task 1 is set aside without a run",
        "w1  rename claimed/1.1.1.w1 failed/1.1.1.w1: done",
    ),
    (
        AutoscalerCountsReadyTasks,
        Config(autoscaler=True, recoverers=0, workers=0, delayed=True),
        "no final state can be reached without further faults",
        "s   submits 1",
    ),
    (
        AutoscalerCountsReadyTasks,
        Config(autoscaler=True, recoverers=0, workers=0, budget=Budget(crash=1)),
        "no final state can be reached without further faults; left are claimed/1.1.1.w1 (task)",
        "w1  CRASHES",
    ),
    (
        ClaimsWithoutLooking,
        Config(walltimes=(1, 2), duration=2, limited=True),
        "task 1 is claimed by a group in whose time its limit does not fit",
        "w1  rename ready/1.1.1.2 claimed/1.1.1.w1.2: done",
    ),
    (
        ForgetsTheTime,
        Config(walltimes=(1, 2), duration=2),
        "task 1 is claimed by a group that has no more time than an earlier one had",
        "w1  rename ready/1.2.1.1 claimed/1.2.1.w1.1: done",
    ),
    (
        RecoversWithoutTheTime,
        Config(walltimes=(1, 2), duration=2, budget=Budget(crash=1)),
        "task 1 is claimed by a group that has no more time than an earlier one had",
        "w2  rename ready/1.3.2 claimed/1.3.2.w2: done",
    ),
    (
        CountsNoReleases,
        Config(walltimes=(1, 2, 3), duration=3, attempts=1),
        "task 1 runs more often than it has attempts",
        "w1  read cancel/1: no",
    ),
    (
        ReportsNothing,
        Config(walltimes=(1, 2), duration=3, attempts=1),
        "no final state can be reached without further faults",
        "s   submits 1",
    ),
    (
        NeverReady,
        Config(retries=1, budget=Budget(raises=1)),
        "no final state can be reached without further faults; left are claimed/1.1.1.w1 (task)",
        "w1  choose raises: done",
    ),
]


@pytest.mark.parametrize(("wrong", "config", "violation", "last_step"), WRONG, ids=[case[0].__name__ for case in WRONG])
def test_wrong_rule_is_found_with_a_trace(
    wrong: type[Protocol], config: Config, violation: str, last_step: str
) -> None:
    report = check(wrong(config))
    print(report)
    assert violation in report.violation
    assert "s   submits 1" in report.trace
    assert report.trace[-1] == last_step

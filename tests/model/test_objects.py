"""Objects hold in every interleaving of the processes of a session, a worker and the garbage collection.

Each wrong rule breaks an invariant, and the checker finds it. `pytest -s` prints the number of states of each case, and
the traces of the wrong rules.
"""

from __future__ import annotations

import pytest

from tests.model.checker import check_transitions
from tests.model.config import Budget
from tests.model.objects import (
    CONTENT,
    LEASE,
    OBJECT,
    PENDING,
    Answer,
    ObjectConfig,
    ObjectProtocol,
    ObjectTransitions,
    entry_of,
    held_by,
    lease_of,
)
from tests.model.operations import DONE, TASK, Body, Create, Find, Holders, Name, Note, Read, Unlink, rule

CASES = {
    "two processes": ObjectConfig(),
    "a process of two crashes": ObjectConfig(crashing="s", budget=Budget(crash=1)),
    "a process of two detaches": ObjectConfig(budget=Budget(detach=1)),
    "a collector of two crashes": ObjectConfig(processes=1, collectors=2, budget=Budget(crash=1)),
    "silence, and a task that waits again": ObjectConfig(
        processes=1, by_place=True, retries=1, budget=Budget(suspect=1, raises=1)
    ),
    "a task is lost and retried": ObjectConfig(
        processes=1, by_place=True, attempts=1, budget=Budget(crash=1, retry=1, detach=1)
    ),
    "two workers crash, and the task moves behind the looks": ObjectConfig(
        processes=1, by_place=True, attempts=3, budget=Budget(crash=2)
    ),
    "a process removes the object between two tasks, and crashes": ObjectConfig(
        early=True, processes=1, rounds=2, tasks=2, budget=Budget(early=2, crash=1)
    ),
    "two processes remove the object early": ObjectConfig(early=True, tasks=2, collectors=0, budget=Budget(early=2)),
    "two processes remove the object early, and one crashes": ObjectConfig(
        early=True, tasks=2, collectors=0, crashing="s", budget=Budget(early=1, crash=1)
    ),
    "a task is lost, and retried after the early removals": ObjectConfig(
        early=True,
        processes=1,
        rounds=2,
        tasks=2,
        attempts=1,
        crashing="w",
        budget=Budget(early=1, crash=1, retry=1),
    ),
    "unreadable headers": ObjectConfig(processes=1, by_place=True, budget=Budget(unreadable=2, crash=1, detach=1)),
}


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_objects_are_there_while_needed_and_gone_afterwards(config: ObjectConfig) -> None:
    report = check_transitions(ObjectTransitions(ObjectProtocol(config)))
    print(report)
    assert not report.violation, str(report)


class LostTasksOnlyInFailed(ObjectProtocol):
    """A process that ends keeps its lease only if a lost task is in failed/ at that moment."""

    def is_kept(self, mine: dict[int, str]) -> bool:
        return False

    @rule
    def close(self, me: str, keeps: int) -> Body:
        if not (yield Find("failed", 1)):
            yield Unlink(lease_of(me))
            if not (yield Holders("needs", 1)):
                yield from self.remove(me, by_gc=False)
        return self.leave(me)


class OneEntryForASession(ObjectProtocol):
    """The first process alone has an entry, and removes it at its end."""

    def entries(self) -> list[Name]:
        return [entry_of(self.processes[-1])]


class AsideIsGarbage(ObjectProtocol):
    """An object that was put aside counts as the unfinished write of a process that died."""

    def found(self) -> Answer:
        return bool((yield Read(OBJECT)))

    @rule
    def restore(self, aside: Name) -> Body:
        yield Unlink(aside)
        return None


class UnreadableNeedsNothing(ObjectProtocol):
    """A task whose header cannot be read is passed over."""

    def is_named(self, looks: int) -> Answer:
        for _ in range(looks):
            if (yield Find("any", 1)) == DONE:
                return True
        return False


class RemovedWithoutAside(ObjectProtocol):
    """The object is removed after a look, and not put aside before another one."""

    def remove(self, me: str, *, by_gc: bool, run: str = "") -> Answer:
        if by_gc or (yield Holders("needs", 1)):
            return False
        yield Unlink(OBJECT)
        return True


class LeasesAloneAfterAside(ObjectProtocol):
    """After the object was put aside, no task is looked at again."""

    def is_named(self, looks: int) -> Answer:
        return False if looks > 1 else (yield from super().is_named(looks))


class LeaseAfterTheLook(ObjectProtocol):
    """A process looks for the object first, and then acquires its lease."""

    @rule
    def put(self, me: str) -> Body:
        if not (yield Read(OBJECT)):
            yield Create(OBJECT, CONTENT)
        yield Create(lease_of(me), LEASE)
        yield Create(held_by(me), "")
        return None


class ReliesOnAnOldLease(ObjectProtocol):
    """A process submits again after a long silence without a look at the object."""

    @rule
    def submit(self, task: int, me: str) -> Body:
        yield Create(Name("mine", task, holder=me), PENDING)
        yield Create(Name("ready", task, 1, 1), TASK)
        yield Note("submitted", task)
        return None


class NewLeasesRemoved(ObjectProtocol):
    """The collection removes the leases of dead processes, also those that it did not see before its look at tasks."""

    @rule
    def collect_garbage(self, me: str) -> Body:
        if (yield from self.is_leased()) or (yield from self.is_named(1)):
            return None
        if (yield from self.remove(me, by_gc=True)) or not (yield from self.found()):
            for holder in self.processes:
                if not (yield Read(Name("process", 0, holder=holder))):
                    yield Unlink(lease_of(holder))
        return None


class LeasesBeforeTheObject(ObjectProtocol):
    """The collection removes the leases first, and then the object."""

    @rule
    def collect_garbage(self, me: str) -> Body:
        if (yield from self.is_leased()) or (yield from self.is_named(1)):
            return None
        for holder in (yield Holders("needs", 1)).split():
            yield Unlink(lease_of(holder))
        yield from self.remove(me, by_gc=True)
        return None


class RemovedWhileAwaited(ObjectProtocol):
    """A process removes the object early although it waits for a task."""

    def is_unused(self, mine: dict[int, str]) -> bool:
        return True


class RemovedAfterALoss(ObjectProtocol):
    """A process removes the object early if it waits for no task, also if one was lost."""

    def is_unused(self, mine: dict[int, str]) -> bool:
        return PENDING not in mine.values()


class RemovedEarlyWithoutALook(ObjectProtocol):
    """A process removes the object early without a look at the leases of others."""

    @rule
    def remove_early(self, me: str, left: int) -> Body:
        yield Unlink(held_by(me))
        yield Unlink(lease_of(me))
        yield Unlink(OBJECT)
        return None


class NothingCollected(ObjectProtocol):
    """No garbage is collected: a process that has died leaves its lease and its object for ever."""

    @rule
    def collect_garbage(self, me: str) -> Body:
        yield Read(OBJECT)
        return None


WRONG: list[tuple[type[ObjectProtocol], ObjectConfig, str]] = [
    (
        LostTasksOnlyInFailed,
        ObjectConfig(processes=1, attempts=1, budget=Budget(crash=1, retry=1)),
        "needs the object, which was removed",
    ),
    (OneEntryForASession, ObjectConfig(), "needs the object, which was removed"),
    (AsideIsGarbage, ObjectConfig(crashing="s", budget=Budget(crash=1)), "needs the object, which was removed"),
    (
        UnreadableNeedsNothing,
        ObjectConfig(processes=1, budget=Budget(detach=1, unreadable=3)),
        "needs the object, which was removed",
    ),
    (RemovedWithoutAside, ObjectConfig(), "needs the object, which was removed"),
    (
        LeasesAloneAfterAside,
        ObjectConfig(processes=1, by_place=True, budget=Budget(detach=1, crash=1)),
        "needs the object, which was removed",
    ),
    (LeaseAfterTheLook, ObjectConfig(), "needs the object, which was removed"),
    (ReliesOnAnOldLease, ObjectConfig(processes=1, budget=Budget(suspect=1)), "needs the object, which was removed"),
    (NewLeasesRemoved, ObjectConfig(crashing="s", budget=Budget(crash=1)), "needs the object, which was removed"),
    (LeasesBeforeTheObject, ObjectConfig(budget=Budget(suspect=1)), "needs the object, which was removed"),
    (
        RemovedWhileAwaited,
        ObjectConfig(early=True, processes=1, rounds=2, tasks=2, budget=Budget(early=1)),
        "needs the object, which was removed",
    ),
    (
        RemovedAfterALoss,
        ObjectConfig(early=True, processes=1, attempts=1, crashing="w", budget=Budget(early=1, crash=1, retry=1)),
        "needs the object, which was removed",
    ),
    (
        RemovedEarlyWithoutALook,
        ObjectConfig(early=True, tasks=2, budget=Budget(early=1)),
        "needs the object, which was removed",
    ),
    (NothingCollected, ObjectConfig(processes=1, budget=Budget(crash=1)), "no final state can be reached"),
]


@pytest.mark.parametrize(("wrong", "config", "violation"), WRONG, ids=[case[0].__name__ for case in WRONG])
def test_wrong_rule_of_objects_is_found(wrong: type[ObjectProtocol], config: ObjectConfig, violation: str) -> None:
    report = check_transitions(ObjectTransitions(wrong(config)))
    print(report)
    assert violation in report.violation

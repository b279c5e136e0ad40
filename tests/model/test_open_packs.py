"""Open packs hold in every interleaving of a submitter that is stopped or dies, processes that seal, and a worker.

Each wrong rule breaks an invariant, and the checker finds it. `pytest -s` prints the number of states of each case, and
the traces of the wrong rules. The protocol does not use open packs yet (docs/decisions/0086-open-packs.md).
"""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.model.checker import check_transitions
from tests.model.config import Budget
from tests.model.open_packs import (
    OpenPackConfig,
    OpenPackProtocol,
    OpenPackTransitions,
    beat,
    calls_of,
    open_pack,
    silent,
    synced,
)
from tests.model.operations import Body, Create, Find, Name, Note, Operation, Read, Rename, Unlink, Write, rule

CASES = {
    "no fault": OpenPackConfig(),
    "two silences": OpenPackConfig(budget=Budget(suspect=2)),
    "death and silence": OpenPackConfig(budget=Budget(crash=1, suspect=1)),
    "two processes seal": OpenPackConfig(recoverers=2, budget=Budget(crash=1, suspect=1)),
    "repeated requests": OpenPackConfig(budget=Budget(suspect=1, enoent=1)),
    "renames that fail": OpenPackConfig(budget=Budget(suspect=1, error=1)),
    "full disk": OpenPackConfig(budget=Budget(suspect=1, error=1, enoent=1)),
    "stale reads": OpenPackConfig(budget=Budget(suspect=1, stale=1)),
    "three calls": OpenPackConfig(tasks=3, budget=Budget(suspect=1, enoent=1)),
}


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_submitted_call_of_an_open_pack_runs_once(config: OpenPackConfig) -> None:
    report = check_transitions(OpenPackTransitions(OpenPackProtocol(config)))
    print(report)
    assert not report.violation, str(report)


class SamePackAfterASilence(OpenPackProtocol):
    """A submitter goes on with its open pack after a silence: its next append is a new sign of life."""

    @rule
    def submit(self, call: int, pack: int, new: int) -> Body:
        yield Note("begun", call, str(pack))
        if not new and (yield Read(silent(pack), own=True)):
            yield Unlink(silent(pack))
        return self.write(call, pack, new)


class LookForTheOpenName(OpenPackProtocol):
    """After a silence the submitter looks for the open name of the pack, which a later seal takes with the call."""

    @rule
    def decide(self, call: int, pack: int) -> Body:
        if not (yield Read(open_pack(pack), own=True)):
            count = yield from self.sealed_count(pack)
            if int(count or 0) <= int((yield Find(f"position.{pack}", call))):
                return self.submit(call, pack + 1, 1)
        yield Note("submitted", call)
        return None


class NoLookAfterTheWrite(OpenPackProtocol):
    """The submitter looks at its clock before the write alone."""

    @rule
    def write(self, call: int, pack: int, new: int) -> Body:
        if new:
            yield Create(open_pack(pack), "pack")
        if not (yield from self.append(call, pack)):
            return self.fail(call, pack)
        yield Note("submitted", call)
        return None


class SubmittedAgainInAnyCase(OpenPackProtocol):
    """A submitter whose pack was sealed by another process submits the call again."""

    @rule
    def decide(self, call: int, pack: int) -> Body:
        if not (yield from self.seal_own(pack)):
            return self.submit(call, pack + 1, 1)
        yield Note("submitted", call)
        return None


class SilenceOfALivePack(OpenPackProtocol):
    """An idle worker seals each open pack that it lists, at once: its submitter may be busy."""

    @rule
    def seal_for(self, name: Name) -> Body:
        content = yield Read(name)
        if content:
            yield Write(synced(name.task), "")
            yield Rename(name, Name("ready", name.task, 1, 1, seconds=len(calls_of(content))))
        return None


class AllRecordsCount(OpenPackProtocol):
    """A worker runs all calls with complete records, whatever the name says."""

    @rule
    def claim(self, ready: Name, me: str, left: int = 0) -> Body:
        content = yield Read(ready)
        if content and (yield Rename(ready, ready.to("results"))):
            for call in calls_of(content):
                yield Note("run", int(call))
        return None


class ErrorsAreAnswers(OpenPackProtocol):
    """A submitter takes an error of its rename for the seal of another process."""

    def seal_own(self, pack: int, before: int = 0) -> Generator[Operation, str, str]:
        count = yield Find("own count", pack)
        yield Note("closed", 1, str(pack))
        return (yield Rename(open_pack(pack), Name("ready", pack, 1, 1, seconds=int(count or 0))))


class NoSyncBeforeTheSeal(OpenPackProtocol):
    """A process that seals for another one does not sync the records that it has counted."""

    @rule
    def seal_for(self, name: Name) -> Body:
        if (yield Read(beat(name.task), own=True)):
            return None
        content = yield Read(name)
        if content:
            yield Rename(name, Name("ready", name.task, 1, 1, seconds=len(calls_of(content))))
        return None


WRONG: list[tuple[type[OpenPackProtocol], Budget, str]] = [
    (SamePackAfterASilence, Budget(suspect=1), "is lost"),
    (LookForTheOpenName, Budget(suspect=1), "is lost"),
    (NoLookAfterTheWrite, Budget(suspect=1), "is lost"),
    (SubmittedAgainInAnyCase, Budget(suspect=1), "runs twice"),
    (SilenceOfALivePack, Budget(), "is lost"),
    (AllRecordsCount, Budget(suspect=1), "runs twice"),
    (ErrorsAreAnswers, Budget(suspect=1, error=1), "runs twice"),
    (NoSyncBeforeTheSeal, Budget(suspect=1), "after a loss of power"),
]


@pytest.mark.parametrize(("wrong", "budget", "violation"), WRONG, ids=[case[0].__name__ for case in WRONG])
def test_wrong_rule_of_open_packs_is_found(wrong: type[OpenPackProtocol], budget: Budget, violation: str) -> None:
    report = check_transitions(OpenPackTransitions(wrong(OpenPackConfig(budget=budget))))
    print(report)
    assert violation in report.violation

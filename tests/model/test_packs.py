"""Packs hold in every interleaving of a submitter, workers and recoverers, with records torn at any moment.

Each wrong rule breaks an invariant, and the checker finds it. `pytest -s` prints the number of states of each case, and
the traces of the wrong rules.
"""

from __future__ import annotations

import pytest

from tests.model.checker import check_transitions
from tests.model.config import Budget
from tests.model.operations import DONE, Body, Choose, Create, Name, Note, Read, Rename, Unlink, rule
from tests.model.packs import LOG, FoundLog, PackConfig, PackProtocol, PackTransitions, log_of, records_of

CASES = {
    "crash and pause": PackConfig(tasks=1, budget=Budget(crash=1, suspect=1)),
    "crash, two calls": PackConfig(budget=Budget(crash=1)),
    "two crashes": PackConfig(workers=1, budget=Budget(crash=2)),
    "pause, two calls": PackConfig(budget=Budget(suspect=1)),
    "two recoverers": PackConfig(tasks=1, recoverers=2, budget=Budget(crash=1)),
    "two recoverers and a pause": PackConfig(tasks=1, recoverers=2, budget=Budget(suspect=1)),
    "stale reads": PackConfig(tasks=1, budget=Budget(crash=1, suspect=1, stale=1)),
    "stale reads, two calls": PackConfig(workers=1, budget=Budget(crash=1, stale=1)),
    "repeated requests": PackConfig(budget=Budget(crash=1, enoent=1)),
    "renames that fail": PackConfig(budget=Budget(crash=1, error=1)),
    "releases": PackConfig(budget=Budget(crash=1, release=1)),
    "releases and a pause": PackConfig(tasks=1, budget=Budget(suspect=1, release=1, enoent=1)),
    "one attempt, three calls": PackConfig(tasks=3, workers=1, attempts=1, budget=Budget(crash=1)),
}


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_each_call_of_a_pack_has_one_outcome(config: PackConfig) -> None:
    report = check_transitions(PackTransitions(PackProtocol(config)))
    print(report)
    assert not report.violation, str(report)


class DeliveredWithoutALook(PackProtocol):
    """The collector delivers each complete record of a log."""

    @rule
    def stream(self, claimed: Name) -> Body:
        for call, record in enumerate(records_of((yield Read(log_of(claimed))))):
            yield Note("delivered", call + 1, record)
        return None


class LookBeforeTheRead(PackProtocol):
    """The collector looks for the claim, and then reads its log."""

    @rule
    def stream(self, claimed: Name) -> Body:
        if (yield Read(claimed)):
            for call, record in enumerate(records_of((yield Read(log_of(claimed))))):
                yield Note("delivered", call + 1, record)
        return None


class NothingAdopted(PackProtocol):
    """A worker begins with the first call, whatever an earlier claim has left."""

    @rule
    def adopt(self, mine: Name) -> Body:
        yield Create(log_of(mine), LOG)
        return self.run_calls(mine, 0)


class AdoptedByTheName(PackProtocol):
    """A worker adopts as many records as the recoverer has counted."""

    @rule
    def adopt(self, mine: Name) -> Body:
        records = (yield from self.find_log(mine.claim - 1))[: mine.seconds]
        yield Create(log_of(mine), LOG)
        for record in records:
            yield from self.append(mine, record)
        return self.run_calls(mine, len(records))


class AttemptOfThePack(PackProtocol):
    """The number of the attempt counts for whichever call is the first one without a record."""

    def attempt(self, mine: Name, done: int) -> int:
        return mine.attempt


class FencedLogRemoved(PackProtocol):
    """A fenced worker removes its log, as it does with the outcome of a task with one call."""

    @rule
    def commit(self, mine: Name) -> Body:
        published = mine.to("results")
        if not (yield Rename(mine, published)) and not (yield Read(mine)) and not (yield Read(published)):
            yield Unlink(log_of(mine))
        return None


class LatestLogAdopted(PackProtocol):
    """A worker adopts the latest log that has a record, also one that has only a part of the adopted ones."""

    def find_log(self, last: int) -> FoundLog:
        for claim in range(last, 0, -1):
            for _ in range(self.rounds):
                found = records_of((yield Read(Name("outgoing", 1, claim))))
                if found:
                    return found
        return ()


class EarlierLogsKept(PackProtocol):
    """The collector removes the log of the published claim alone, and no recoverer the others."""

    @rule
    def collect(self, published: Name) -> Body:
        records = records_of((yield Read(log_of(published))))
        for call, record in enumerate(records):
            yield Note("delivered", call + 1, record)
        if (yield Unlink(published)) == DONE:
            yield Unlink(log_of(published))
        return None

    @rule
    def discard(self, outgoing: Name) -> Body:
        yield Choose("release")
        return None


WRONG: list[tuple[type[PackProtocol], PackConfig, str]] = [
    (DeliveredWithoutALook, PackConfig(tasks=1, budget=Budget(suspect=1)), "outcome"),
    (LookBeforeTheRead, PackConfig(tasks=1, budget=Budget(suspect=1)), "outcome"),
    (NothingAdopted, PackConfig(budget=Budget(crash=1)), "runs again after"),
    (AdoptedByTheName, PackConfig(tasks=1, budget=Budget(suspect=1)), "outcome"),
    (AttemptOfThePack, PackConfig(tasks=3, workers=1, attempts=1, budget=Budget(crash=1)), "is lost, although"),
    (FencedLogRemoved, PackConfig(tasks=1, budget=Budget(suspect=1)), "outcome"),
    (
        LatestLogAdopted,
        PackConfig(tasks=3, workers=1, budget=Budget(crash=2)),
        "runs again after",
    ),
    (EarlierLogsKept, PackConfig(tasks=1, workers=1, budget=Budget(crash=1)), "no final state can be reached"),
]


@pytest.mark.parametrize(("wrong", "config", "violation"), WRONG, ids=[case[0].__name__ for case in WRONG])
def test_wrong_rule_of_packs_is_found(wrong: type[PackProtocol], config: PackConfig, violation: str) -> None:
    report = check_transitions(PackTransitions(wrong(config)))
    print(report)
    assert violation in report.violation

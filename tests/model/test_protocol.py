"""The protocol holds in every interleaving, and the checker finds what is known to be wrong.

`pytest -s` shows the sizes of the runs and the traces.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.model import protocol
from tests.model.protocol import (
    CANCELLED,
    DONE,
    LOST,
    NO,
    PARTIAL,
    RAISED,
    TOKEN,
    VALUE,
    Body,
    Budget,
    Config,
    Create,
    Look,
    Name,
    Note,
    Perhaps,
    Protocol,
    Rename,
    Unlink,
    check,
    rule,
)

ONE_TASK = {
    "crash and pause": Config(budget=Budget(crash=1, judge=1)),
    "two pauses": Config(budget=Budget(judge=2)),
    "two crashes, one attempt, retry": Config(attempts=1, budget=Budget(crash=2, retry=1)),
    "two recoverers": Config(recoverers=2, budget=Budget(crash=1, enoent=1)),
    "two recoverers and a pause": Config(recoverers=2, budget=Budget(judge=1, error=1)),
    "repeated requests": Config(budget=Budget(crash=1, enoent=2)),
    "renames that fail": Config(budget=Budget(crash=1, error=2)),
    "stale looks": Config(budget=Budget(judge=1, lie=1)),
    "every answer wrong once": Config(attempts=1, budget=Budget(judge=1, enoent=1, error=1, lie=1)),
    "held back": Config(retries=1, budget=Budget(judge=1, raises=1)),
    "held back, stale looks": Config(retries=1, budget=Budget(raises=2, error=1, enoent=1, lie=1)),
    "give-backs": Config(budget=Budget(judge=1, give_back=2)),
    "cancel": Config(budget=Budget(crash=1, cancel=1, enoent=1)),
}
TWO_TASKS = {
    "crash": Config(tasks=2, budget=Budget(crash=1)),
    "cancel": Config(tasks=2, budget=Budget(cancel=1)),
}
DEPENDENT = {
    "crash": Config(tasks=2, chain=True, budget=Budget(crash=1)),
    "pause": Config(tasks=2, chain=True, workers=1, budget=Budget(judge=2)),
    "raises, stale looks": Config(tasks=2, chain=True, workers=1, budget=Budget(raises=1, lie=1)),
    "repeated requests": Config(tasks=2, chain=True, budget=Budget(enoent=1)),
    "renames that fail": Config(tasks=2, chain=True, budget=Budget(error=1)),
    "cancel": Config(tasks=2, chain=True, budget=Budget(cancel=1)),
    "lost, retried": Config(
        tasks=2,
        chain=True,
        workers=1,
        attempts=1,
        budget=Budget(crash=1, retry=1),
    ),
    "held back": Config(tasks=2, chain=True, retries=1, budget=Budget(raises=1)),
    "three in a row": Config(tasks=3, chain=True, workers=1, budget=Budget(cancel=1)),
}
KEPT = {
    "crashes": Config(keeps=True, budget=Budget(crash=2)),
    "two processes": Config(keeps=True, submitters=2, attempts=1, budget=Budget(crash=1, enoent=1)),
    "two processes, stale looks": Config(keeps=True, submitters=2, workers=1, budget=Budget(error=1, lie=1)),
    "two processes, cancel": Config(keeps=True, submitters=2, budget=Budget(cancel=1, enoent=1)),
    "dependent": Config(tasks=2, chain=True, keeps=True, submitters=2, workers=1, budget=Budget(crash=1)),
    "lost, retried": Config(keeps=True, submitters=2, workers=1, attempts=1, budget=Budget(crash=2, retry=1)),
    "dependent, lost, retried": Config(
        tasks=2, chain=True, keeps=True, workers=1, attempts=1, budget=Budget(crash=1, retry=1)
    ),
}
ALL = [
    pytest.param(config, id=f"{title}: {words}")
    for title, configs in (("one", ONE_TASK), ("two", TWO_TASKS), ("dependent", DEPENDENT), ("kept", KEPT))
    for words, config in configs.items()
]


@pytest.mark.parametrize("config", ALL)
def test_the_protocol_holds(config: Config) -> None:
    report = check(Protocol(config))
    print(report)
    assert not report.violation, str(report)


# -- known to be wrong: each breaks one rule ------------------------------------------------------


class CommitByUnlink(Protocol):
    """Unlink the claim, then rename the outcome to results: recovery finishes what it finds."""

    outcome_is_token = True

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
        if (yield Look(outgoing.to("claimed"))):
            return None
        complete = (yield Look(outgoing)) not in (NO, PARTIAL)
        yield Rename(outgoing, outgoing.to("results")) if complete else Unlink(outgoing)
        return None

    @rule
    def recover(self, claimed: Name, me: str) -> Body:
        found = yield Look(claimed.to("outgoing"))
        if found and found != PARTIAL:
            return self.commit(claimed)
        yield Rename(claimed, Name("ready", claimed.task, claimed.claim + 1, claimed.attempt + 1))
        return None

    @rule
    def collect(self, token: Name) -> Body:
        content = yield Look(token)
        yield Note("delivered", token.task, content)
        yield Unlink(token)
        return None


class ResultsBeforeClaimed(Protocol):
    """Discard looks where the token goes before it looks where the token comes from."""

    rounds = 1

    @rule
    def discard(self, outgoing: Name) -> Body:
        for place in ("results", "claimed"):
            if (yield Look(outgoing.to(place))):
                return None
        yield Unlink(outgoing)
        return None


class OneLook(Protocol):
    """Discard and collect believe the first look."""

    rounds = 1


class RequeueUnderTheSameName(Protocol):
    """Recovery does not raise the claim number (and counts attempts somewhere else)."""

    @rule
    def recover(self, claimed: Name, me: str) -> Body:
        found = yield Look(claimed.to("outgoing"))
        if found and found != PARTIAL:
            yield Rename(claimed, claimed.to("results"))
        else:
            yield Rename(claimed, claimed.to("ready", ""))
        return None


class RecovererRunsWhatItTookOver(Protocol):
    """A recoverer adopts a forgotten claim in its name as a worker would."""

    @rule
    def recover(self, claimed: Name, me: str) -> Body:
        if claimed.holder == me:
            return self.run(claimed)
        yield Look(claimed)
        return super().recover(claimed, me)


class AdoptWithoutLookingAgain(Protocol):
    """A worker takes a forgotten claim without an outcome for one that never ran."""

    @rule
    def self_check(self, mine: Name) -> Body:
        if mine.place == "outgoing":
            return self.discard(mine)
        return self.commit(mine) if (yield Look(mine.to("outgoing"))) else self.run(mine)


class OutcomeBeforeToken(Protocol):
    """The collector removes the outcome, then the token."""

    @rule
    def collect(self, token: Name) -> Body:
        content = yield Look(token.to("outgoing"))
        if not content:
            return None
        yield Note("delivered", token.task, content)
        yield Unlink(token.to("outgoing"))
        yield Unlink(token)
        return None


class NothingKept(Protocol):
    """The collector removes what it has delivered, needed or not."""

    def needing(self, task: int) -> list[Name]:
        return []


class FailureNotPassedOn(Protocol):
    """A dependent runs when what it needs has ended, however."""

    @rule
    def run(self, mine: Name) -> Body:
        if mine.attempt > self.config.attempts:
            return self.outcome(mine, LOST)
        if (yield Look(Name("cancel", mine.task))):
            return self.outcome(mine, CANCELLED)
        yield Note("run", mine.task)
        return self.outcome(mine, RAISED if (yield Perhaps("raises")) else VALUE)


class EdgeAfterToken(Protocol):
    """A dependent says what it needs when it waits already."""

    @rule
    def enqueue(self, task: int) -> Body:
        yield Note("begun", task)
        yield Create(Name("tmp", task), TOKEN)
        return self.hand_over(task)

    @rule
    def hand_over(self, task: int) -> Body:
        yield Rename(Name("tmp", task), Name("waiting" if task > 1 else "ready", task, 1, 1))
        for edge in self.needed_by(task):
            yield Create(edge, "edge")
        yield Note("submitted", task)
        return None


class LostForgetsWhatItNeeds(Protocol):
    """A task goes to failed without its edges: its retry finds nothing to work on."""

    @rule
    def collect(self, token: Name) -> Body:
        for edge in self.needed_by(token.task):
            yield Unlink(edge)
        return super().collect(token)


KNOWN_WRONG: list[tuple[type[Protocol], Config, str, str]] = [
    (
        CommitByUnlink,
        Config(budget=Budget(judge=2)),
        "ready/1.2.2 can run after its outcome was published",
        "r1  rename outgoing/1.1.1.w1 results/1.1.1.w1: done",
    ),
    (
        ResultsBeforeClaimed,
        Config(budget=Budget(judge=1)),
        "results/1.1.1.w1 has lost its outcome",
        "r1  unlink outgoing/1.1.1.w1: done",
    ),
    (
        OneLook,
        Config(budget=Budget(judge=1, lie=1)),
        "results/1.1.1.w1 is published without a complete outcome",
        "w1  rename claimed/1.1.1.w1 results/1.1.1.w1: done",
    ),
    (
        RequeueUnderTheSameName,
        Config(workers=1, attempts=9, budget=Budget(judge=2)),
        "results/1.1.1.w1 is published without a complete outcome",
        "w1  rename claimed/1.1.1.w1 results/1.1.1.w1: done",
    ),
    (
        RecovererRunsWhatItTookOver,
        Config(attempts=1, budget=Budget(crash=1, enoent=1, lie=1)),
        "task 1 runs more often than it has attempts",
        "r1  look cancel/1: no",
    ),
    (
        AdoptWithoutLookingAgain,
        Config(attempts=1, budget=Budget(judge=1, error=1, lie=1)),
        "task 1 runs more often than it has attempts",
        "w1  look cancel/1: no",
    ),
    (
        OutcomeBeforeToken,
        Config(),
        "results/1.1.1.w1 has lost its outcome",
        "s   unlink outgoing/1.1.1.w1: done",
    ),
    (
        NothingKept,
        Config(tasks=2, chain=True),
        "task 2 fails, although what it needs has its value",
        "w1  rename claimed/2.1.1.w1 results/2.1.1.w1: done",
    ),
    (
        EdgeAfterToken,
        Config(tasks=2, chain=True, workers=1, budget=Budget(crash=1)),
        "task 2 fails, although what it needs has its value",
        "w1  rename claimed/2.1.1.w1 results/2.1.1.w1: done",
    ),
    (
        FailureNotPassedOn,
        Config(tasks=2, chain=True, budget=Budget(raises=1)),
        "task 2 runs without the value of task 1",
        "w1  look cancel/2: no",
    ),
    (
        LostForgetsWhatItNeeds,
        Config(tasks=2, chain=True, workers=1, attempts=1, budget=Budget(crash=1, retry=1)),
        "task 2 fails, although what it needs has its value",
        "w2  rename claimed/2.3.1.w2 results/2.3.1.w2: done",
    ),
]


@pytest.mark.parametrize(
    ("wrong", "config", "violation", "last_step"),
    KNOWN_WRONG,
    ids=[case[0].__name__ for case in KNOWN_WRONG],
)
def test_a_wrong_rule_is_found_with_the_way_there(
    wrong: type[Protocol], config: Config, violation: str, last_step: str
) -> None:
    report = check(wrong(config))
    print(report)
    assert violation in report.violation
    assert report.trace[0] == "s   submits 1"
    assert report.trace[-1] == last_step


def test_bigger_cases_run_by_hand() -> None:
    program = [sys.executable, protocol.__file__, "--crash", "1", "--give-back", "1"]
    done = subprocess.run(program, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("holds\n")
    stopped = subprocess.run([*program, "--limit", "10"], capture_output=True, text=True)
    assert stopped.returncode == 1
    assert "more than 10 states" in stopped.stdout

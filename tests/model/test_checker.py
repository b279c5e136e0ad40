"""The checker visits each state up to symmetry, and reports what it finds."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.model.checker import Search
from tests.model.config import Budget, Config
from tests.model.operations import Body, Name, Read, Rename, rule
from tests.model.protocol import Protocol
from tests.model.reduction import Code, StateSpace, renamed_participant, renamed_shared, renamings_of
from tests.model.transitions import State, Transitions

ROOT = Path(__file__).parents[2]
Outcome = tuple[bool, bool, Code]  # of a step: whether it is free, whether it is a violation, the state after it


def reachable(transitions: Transitions) -> set[State]:
    """Return every state that can be reached, without any reduction. Steps that break an invariant are not taken."""
    new = [transitions.start()]
    seen = set(new)
    while new:
        following = {after for step, after in transitions.successors(new.pop()) if not step.violation}
        new.extend(following - seen)
        seen |= following
    return seen


def asymmetric_states(transitions: Transitions, states: set[State]) -> list[State]:
    """Return the states whose steps differ, up to symmetry, from those of an image, or from those that are searched."""
    space = StateSpace(transitions)

    def steps(state: State) -> Counter[Outcome]:
        return Counter(
            (not step.effect.price, bool(step.violation), space.encode(after))
            for step, after in transitions.successors(state)
        )

    def searched_steps(state: State) -> Counter[Outcome]:
        successors = space.successors(space.encode(state))
        return Counter((move.is_free, move.is_violation, code) for move, code in successors)

    def is_asymmetric(state: State) -> bool:
        expected = searched_steps(state)
        return any(steps(image) != expected for image in images_of(state))

    return [state for state in states if is_asymmetric(state)]


def images_of(state: State) -> Iterator[State]:
    """Yield the state after each renaming; one of them changes nothing."""
    for renaming in renamings_of(state.shared.used):
        names = dict(renaming)
        participants = sorted(
            (renamed_participant(each, names) for each in state.participants), key=lambda each: each.name
        )
        yield State(renamed_shared(state.shared, names), tuple(participants))


class OneRead(Protocol):
    """Discard believes the first read that finds no file, which breaks an invariant."""

    rounds = 1


class OneWorkerIsSpecial(Protocol):
    """The names of workers are not interchangeable: w1 never claims a task."""

    @rule
    def claim(self, ready: Name, me: str, left: int = 0) -> Body:
        yield Read(ready) if me == "w1" else Rename(ready, ready.to("claimed", me))
        return None


@pytest.mark.parametrize(
    "protocol",
    [
        pytest.param(Protocol(Config(attempts=1, budget=Budget(crash=1))), id="crash"),
        pytest.param(Protocol(Config(workers=1, recoverers=2, budget=Budget(suspect=1))), id="two recoverers"),
        pytest.param(Protocol(Config(workers=3)), id="three workers"),
        pytest.param(Protocol(Config(workers=1, keeps=True, submitters=3)), id="three submitters"),
        pytest.param(Protocol(Config(tasks=2, chain=True)), id="dependent"),
        pytest.param(OneRead(Config(budget=Budget(suspect=1, stale=1))), id="wrong rule"),
    ],
)
def test_reduced_search_visits_every_state_up_to_symmetry(protocol: Protocol) -> None:
    transitions = Transitions(protocol)
    states = reachable(transitions)
    assert not asymmetric_states(transitions, states)
    search = Search(transitions)
    if not search.run()[0]:
        assert {search.space.encode(state) for state in states} == set(search.codes)
        assert len(search.codes) < len(states)


def test_comparison_finds_a_rule_that_singles_out_a_worker() -> None:
    transitions = Transitions(OneWorkerIsSpecial(Config()))
    assert asymmetric_states(transitions, reachable(transitions))


def test_case_from_the_command_line_holds() -> None:
    done = run_program("--crash", "1", "--release", "1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("holds\n")


def test_case_from_the_command_line_stops_at_its_limit() -> None:
    stopped = run_program("--crash", "1", "--release", "1", "--limit", "10")
    assert stopped.returncode == 1
    assert "more than 10 states" in stopped.stdout


def run_program(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tests.model", *options], cwd=ROOT, capture_output=True, text=True)

"""Model checker: visits every state that can be reached, in every order in which the participants can take steps.

It stops at the first violation of an invariant, with a shortest trace. Without one, it checks that from every state a
final state can be reached without further faults: every participant idle, every outcome delivered, no file left over.
"""

from __future__ import annotations

import time
from array import array
from typing import NamedTuple

from tests.model.protocol import Protocol
from tests.model.reduction import Code, StateSpace
from tests.model.transitions import State, Step, Transitions


class Report(NamedTuple):
    """Result of a check. `trace` is a shortest one to the violation, or empty."""

    states: int
    steps: int
    seconds: float
    violation: str
    trace: tuple[str, ...]

    def __str__(self) -> str:
        counts = f"{self.states} states, {self.steps} steps, {self.seconds:.1f} s"
        found = f"VIOLATION: {self.violation}" if self.violation else "holds"
        return "\n".join([f"{counts}: {found}", *self.trace])


def check(protocol: Protocol, limit: int = 0) -> Report:
    """Check a protocol. Stop when there are more than `limit` states, if it is not 0."""
    return check_transitions(Transitions(protocol), limit)


def check_transitions(transitions: Transitions, limit: int = 0) -> Report:
    """Check a protocol with transitions of its own, as :func:`check`."""
    began = time.monotonic()
    search = Search(transitions)
    violation, trace = search.run(limit)
    return Report(len(search.codes), search.steps, time.monotonic() - began, violation, tuple(map(str, trace)))


class Search:
    """Breadth-first search, so that the first trace to a state is a shortest one."""

    def __init__(self, transitions: Transitions) -> None:
        self.transitions = transitions
        self.space = StateSpace(transitions)
        self.codes = [self.space.encode(transitions.start())]
        self.parents = array("q", [0])  # of each state, the state from which it was reached first
        self.steps = 0

    def run(self, limit: int = 0) -> tuple[str, list[Step]]:
        """Return the violation, or "", and the trace that leads to it."""
        codes, parents, space = self.codes, self.parents, self.space
        numbers = {codes[0]: 0}
        free = array("q")  # steps without a fault, as pairs of states: from, to
        for here, code in enumerate(codes):  # grows while it is read
            for move, following in space.successors(code):
                self.steps += 1
                if move.is_violation:
                    trace, _ = self.trace(here, following)
                    return trace[-1].violation, trace
                there = numbers.setdefault(following, len(codes))
                if there == len(codes):
                    codes.append(following)
                    parents.append(here)
                if move.is_free:
                    free.extend((here, there))
            if limit and len(codes) > limit:
                return f"none so far, but there are more than {limit} states", []
        stuck = first_stuck(bytearray(map(space.is_final, codes)), free)
        if stuck is None:
            return "", []
        trace, state = self.trace(stuck)
        left = ", ".join(f"{name} ({content})" for name, content in state.shared.files)
        return f"no final state can be reached without further faults; left are {left}", trace

    def trace(self, last: int, violating: Code | None = None) -> tuple[list[Step], State]:
        """Return the steps that lead to a state, or to the violation after it, and the state at the end.

        A path of codes mixes the names of its representatives. So it is executed again from the start: this is a
        trace of the model without any reduction.
        """
        path = [] if violating is None else [violating]
        while last:
            path.append(self.codes[last])
            last = self.parents[last]
        state, trace = self.transitions.start(), []
        for number, code in enumerate(reversed(path), 1):
            breaks = violating is not None and number == len(path)
            step, state = next(
                (step, after)
                for step, after in self.transitions.successors(state)
                if bool(step.violation) == breaks and self.space.encode(after) == code
            )
            trace.append(step)
        return trace, state


def first_stuck(final: bytearray, free: array[int]) -> int | None:
    """Return the first state from which no final one can be reached, or None.

    States have the numbers in which they were found, so most steps lead to a higher number: reading the steps
    backwards needs few rounds.
    """
    changed = True
    while changed:
        changed = False
        for i in range(len(free) - 2, -2, -2):
            if final[free[i + 1]] and not final[free[i]]:
                final[free[i]] = changed = True
    stuck = final.find(0)
    return None if stuck < 0 else stuck

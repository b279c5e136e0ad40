"""State space up to symmetry, as small integers, so that the checker compares states quickly.

Symmetry: the names of workers are interchangeable, and the names of recoverers, and of submitters that only collect.
A rule compares names, and singles none out. So a permutation of the names of a role, applied to all files and all
participants, maps every step of a state to a step of its image, and both break the same invariants. A participant
that starts after a crash has a name that was never given before, in the state and in its image. Of all images of a
state the checker visits one. A rule that depended on the order of names, or on one name, would make this wrong:
`test_checker.py` compares the steps with and without the reduction.

Integers: few shared parts and few participants make up many states. Each of them gets a number, and the steps of a
participant are computed once for each shared part in which it occurs.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from functools import cache
from itertools import groupby, permutations, product
from typing import Generic, NamedTuple, TypeVar

from tests.model.operations import Name
from tests.model.protocol import Protocol
from tests.model.transitions import Participant, Shared, State, Transitions

T = TypeVar("T", bound=Hashable)
Renaming = tuple[tuple[str, str], ...]  # old and new names; names that stay are left out
IDENTITY: Renaming = ()
Code = tuple[int, ...]  # of a state: the number of its shared part, then those of its participants, by name


class Numbers(Generic[T]):
    """Numbers of values, in the order in which they appear."""

    def __init__(self) -> None:
        self.values: list[T] = []
        self._numbers: dict[T, int] = {}

    def __getitem__(self, value: T) -> int:
        number = self._numbers.setdefault(value, len(self.values))
        if number == len(self.values):
            self.values.append(value)
        return number


class Image(NamedTuple):
    """Representative of a shared part, and every renaming that maps the shared part to it.

    With each renaming stands the new order of the participants: the places that they had before.
    """

    shared: int
    renamings: tuple[tuple[Renaming, tuple[int, ...]], ...]


class Move(NamedTuple):
    """A step of a participant, in numbers."""

    image: Image
    after: tuple[int, ...]
    is_free: bool  # it costs no fault or choice
    is_violation: bool


class StateSpace:
    """Codes of states, and the steps between them. States that are equal up to symmetry have the same code."""

    def __init__(self, transitions: Transitions) -> None:
        self._transitions = transitions
        self._shared: Numbers[Shared] = Numbers()
        self._participants: Numbers[Participant] = Numbers()
        self._image = cache(self._find_image)
        self._renamed = cache(self._rename)
        self._moves = cache(self._find_moves)
        self._is_complete = cache(self._check_complete)

    def encode(self, state: State) -> Code:
        """Return the code of a state."""
        return self._code(self._image(state.shared), [self._participants[each] for each in state.participants])

    def successors(self, code: Code) -> Iterator[tuple[Move, Code]]:
        """Yield every step that is possible in a state, and the code of the state after it."""
        shared, *participants = code
        for place, participant in enumerate(participants):
            before, behind = participants[:place], participants[place + 1 :]
            for move in self._moves(shared, participant):
                yield move, self._code(move.image, [*before, *move.after, *behind])

    def is_final(self, code: Code) -> bool:
        """Tell whether every participant is idle and the spool complete."""
        shared, *participants = code
        return self._is_complete(shared) and not any(self._participants.values[each].activity for each in participants)

    def _code(self, image: Image, participants: list[int]) -> Code:
        shared, renamings = image
        if len(renamings) == 1 and renamings[0][0] == IDENTITY:  # most often, and much quicker
            return (shared, *participants)
        return min(
            (shared, *[self._renamed(participants[place], renaming) for place in order])
            for renaming, order in renamings
        )

    def _find_moves(self, shared: int, participant: int) -> list[Move]:
        steps = self._transitions.steps(self._shared.values[shared], self._participants.values[participant])
        return [
            Move(
                self._image(step.shared),
                tuple(self._participants[each] for each in step.after),
                not step.effect.price,
                bool(step.violation),
            )
            for step in steps
        ]

    def _find_image(self, shared: Shared) -> Image:
        images: dict[int, list[tuple[Renaming, tuple[int, ...]]]] = {}
        for renaming in renamings_of(shared.used):
            names = dict(renaming)
            image = renamed_shared(shared, names)
            places = {names.get(name, name): place for place, name in enumerate(shared.live)}
            order = tuple(places[name] for name in image.live)
            images.setdefault(self._shared[image], []).append((renaming, order))
        representative = min(images)
        return Image(representative, tuple(images[representative]))

    def _rename(self, participant: int, renaming: Renaming) -> int:
        return self._participants[renamed_participant(self._participants.values[participant], dict(renaming))]

    def _check_complete(self, shared: int) -> bool:
        files, records, *_ = self._shared.values[shared]
        return self._transitions.invariants.is_complete(dict(files), records)


def renamings_of(used: tuple[str, ...]) -> Iterator[Renaming]:
    """Yield every permutation of the names within each role. `used` is sorted."""
    roles = [tuple(names) for _, names in groupby(used, key=lambda name: name[0])]
    for orders in product(*(permutations(names) for names in roles)):
        pairs = (pair for names, order in zip(roles, orders, strict=True) for pair in zip(names, order, strict=True))
        yield tuple((old, new) for old, new in pairs if old != new)


def renamed_shared(shared: Shared, names: dict[str, str]) -> Shared:
    files = tuple(sorted((renamed_name(name, names), content) for name, content in shared.files))
    return shared._replace(files=files, live=tuple(sorted(names.get(name, name) for name in shared.live)))


def renamed_participant(participant: Participant, names: dict[str, str]) -> Participant:
    name, activity = participant
    if activity is not None:
        activity = activity._replace(arguments=tuple(renamed_argument(each, names) for each in activity.arguments))
    return Participant(names.get(name, name), activity)


def renamed_argument(argument: object, names: dict[str, str]) -> object:
    match argument:
        case Name():
            return renamed_name(argument, names)
        case str():
            return names.get(argument, argument)
        case int() | Protocol():
            return argument
        case _:
            raise TypeError(f"{argument!r} is an argument of a rule; names in it would not be renamed")


def renamed_name(name: Name, names: dict[str, str]) -> Name:
    return name._replace(holder=names.get(name.holder, name.holder))

"""File names, file operations, and rules: the language in which `protocol.py` is written.

A rule is a generator. Each `yield` is one file operation, and its value is the answer of the filesystem.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import cache
from typing import NamedTuple, ParamSpec

# Content of a file: a task, an outcome that is not complete yet, an outcome, a dependency link, a cancel request, the
# entry of a session whose submitter is alive or dead, a directory.
TASK, PARTIAL = "task", "partial"
VALUE, RAISED, CANCELLED, LOST, DEPENDENCY = "value", "raised", "cancelled", "lost", "dependency"
LINK, REQUEST = "link", "request"
ALIVE, DEAD, DIRECTORY = "alive", "dead", "directory"
# Answers of operations. A read answers the content of the file, or NO.
DONE, NO, ERROR = "done", "", "error"


class Name(NamedTuple):
    """Name of a file: place/N.c.a.w with task N, claim number c, attempt a and holder w.

    `seconds` is the time that a group must have left to claim the task, `releases` the number of times that the task
    was given back at the end of a walltime.

    In needs/A.N, which says that task N depends on task A, the number N is in the field of the claim number.
    """

    place: str
    task: int
    claim: int = 0
    attempt: int = 0
    holder: str = ""
    seconds: int = 0
    releases: int = 0

    def to(self, place: str, holder: str | None = None) -> Name:
        """Return the name of the same claim in another place."""
        return self._replace(place=place, holder=self.holder if holder is None else holder)

    def following(self, place: str, attempt: int, holder: str = "") -> Name:
        """Return the name of the next claim, in another place."""
        return self._replace(place=place, claim=self.claim + 1, attempt=attempt, holder=holder)

    def __str__(self) -> str:
        return f"{self.place}/{'.'.join(str(part) for part in self[1:] if part)}"


ENTRY = Name("sessions", 0)
"""Entry of the session, which tells whether its submitter is provably dead."""
INBOX = Name("inbox", 0)
"""Directory of the session in a shared spool, which a worker cannot make."""

Files = dict[Name, str]


class Create(NamedTuple):
    """Create a file."""

    name: Name
    content: str


class Write(NamedTuple):
    """Replace the content of a file, if the file exists."""

    name: Name
    content: str


class Append(NamedTuple):
    """Append to a file through an open descriptor. It replaces a torn record of the same process (model of packs)."""

    name: Name
    text: str


class Rename(NamedTuple):
    """Rename a file."""

    name: Name
    target: Name


class Unlink(NamedTuple):
    """Remove a file."""

    name: Name


class Read(NamedTuple):
    """Read the content of a file.

    `own`: only the reader itself can have created this name, so no stale cache hides it from the reader.
    """

    name: Name
    own: bool = False


class ReadOutcome(NamedTuple):
    """Read the outcome of a task: find its file in results/, then read the outcome which that file names."""

    task: int


class Find(NamedTuple):
    """Find the file of a task in a place, under whatever name: list the place. The answer is its content, or NO."""

    place: str
    task: int


class Holders(NamedTuple):
    """List the files of a task or an object in a directory: the answer joins their holders."""

    place: str
    task: int


class ReadSuccessor(NamedTuple):
    """Tell whether a task file has a later claim number than this name, or was removed.

    A later number is seen by a listing, the removal by the link count of a descriptor that is open since the claim.
    """

    name: Name


class Choose(NamedTuple):
    """Let the checker take a choice of the budget (DONE) or not (NO)."""

    choice: str


class Note(NamedTuple):
    """Tell the invariants about an event of a task. This is not a file operation."""

    event: str
    task: int
    detail: str = ""


Operation = (
    Create | Write | Append | Rename | Unlink | Read | ReadOutcome | Find | Holders | ReadSuccessor | Choose | Note
)
Body = Generator[Operation, str, "Activity | None"]
P = ParamSpec("P")


class Activity(NamedTuple):
    """A rule that a participant executes: its function, the arguments, and the answers so far.

    A generator can be neither copied nor compared. So it is created anew and given the answers again.
    """

    body: Callable[..., Body]
    arguments: tuple[object, ...]
    answers: tuple[str, ...] = ()

    def answered(self, answer: str) -> Activity:
        """Return the activity after one more answer."""
        return self._replace(answers=(*self.answers, answer))


def rule(body: Callable[P, Body]) -> Callable[P, Activity]:
    """Turn a generator function into a rule: a call returns an `Activity` and executes nothing.

    A rule continues with another rule by returning it.
    """
    return lambda *args, **kwargs: Activity(body, (*args, *kwargs.values()))


@cache
def next_of(activity: Activity) -> Operation | Activity | None:
    """Return the next operation of an activity, or the activity that follows it, or None at its end."""
    generator = activity.body(*activity.arguments)
    try:
        operation = next(generator)
        for answer in activity.answers:
            operation = generator.send(answer)
    except StopIteration as end:
        following: Activity | None = end.value
        return following
    return operation

"""Whose turn it is: in which order waiting tasks are claimed. Pure: no disk is touched here.

::

    queues, if they have weights     in proportion to them
      priorities                     the most urgent first
        users                        in turn
          submitters of a user       in turn
            buckets of a submitter   the oldest first

So a million waiting tasks of one do not keep ten of another waiting, and within one priority nobody waits for more
than one task of everybody else. Weights stand above priorities: who runs a group decides how much of it a queue
gets, and a submitter only in which order that is used. Each group goes round by itself; it remembers who was served.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple, TypeVar

_Any = TypeVar("_Any")

_KNOWN = 4096  # users and submitters of which it is remembered when they were served


class BucketInfo(NamedTuple):
    """A bucket in which tasks may wait, with what its name and its lane's tell."""

    bucket: str
    lane: str
    queue: str
    user: int | None
    priority: str
    submitter: str


_User = int | None
_Submitter = tuple[_User, str]
_Name = _User | _Submitter
_Tree = dict[str, dict[str, dict[_User, dict[_Submitter, list[BucketInfo]]]]]


class FairShare:
    """Which bucket is next, among those that one look at the spool found.

    ``weights`` are those of the queues; one that is not named has 1. Without any, queues are not told apart.
    """

    def __init__(self, weights: Mapping[str, int] | None = None) -> None:
        self._weights = weights or {}
        self._tree: _Tree = {}
        # how much of its share each queue has had, and how much the one that was served last: what has been
        # without tasks goes on from there, and saves nothing up
        self._used: dict[str, float] = {}
        self._now = 0.0
        self._turn_of: dict[_Name, int] = {}
        self._turns = 0

    def start(self, sources: Iterable[BucketInfo]) -> None:
        """Begin anew with these buckets."""
        self._tree = {}
        for source in sorted(sources):
            self._buckets(source).append(source)
        if len(self._turn_of) > _KNOWN:
            recent = sorted(self._turn_of, key=self._last_turn)[-_KNOWN // 2 :]
            self._turn_of = {name: self._turn_of[name] for name in recent}

    def add(self, source: BucketInfo) -> None:
        """Something waits again in a bucket that was dropped."""
        bisect.insort(self._buckets(source), source)

    def _buckets(self, source: BucketInfo) -> list[BucketInfo]:
        users = self._tree.setdefault(self._queue(source), {}).setdefault(source.priority, {})
        return users.setdefault(source.user, {}).setdefault((source.user, source.submitter), [])

    def first(self) -> BucketInfo | None:
        """The bucket whose turn it is; None where none is left."""
        if not self._tree:
            return None
        priorities = self._tree[_least(self._tree, self._start_of)]
        users = priorities[min(priorities)]
        submitters = users[_least(users, self._last_turn)]
        return submitters[_least(submitters, self._last_turn)][0]

    def _queue(self, source: BucketInfo) -> str:
        return source.queue if self._weights else ""

    def _start_of(self, queue: str) -> float:
        return max(self._now, self._used.get(queue, 0.0))

    def _last_turn(self, name: _Name) -> int:
        return self._turn_of.get(name, 0)

    def served(self, source: BucketInfo) -> None:
        """A task of this bucket was claimed: now it is the others' turn."""
        queue = self._queue(source)
        self._now = self._start_of(queue)
        self._used[queue] = self._now + 1.0 / self._weights.get(queue, 1)
        self.skip(source)

    def skip(self, source: BucketInfo) -> None:
        """Let it be the others' turn, although no task of this bucket was claimed."""
        self._turns += 1
        self._turn_of[source.user] = self._turn_of[source.user, source.submitter] = self._turns

    def drop(self, source: BucketInfo) -> None:
        """Nothing is left in the bucket of :meth:`first`."""
        queue, submitter = self._queue(source), (source.user, source.submitter)
        priorities = self._tree[queue]
        users = priorities[source.priority]
        submitters = users[source.user]
        submitters[submitter].remove(source)
        # what is empty must not be found first
        if not submitters[submitter]:
            del submitters[submitter]
        if not submitters:
            del users[source.user]
        if not users:
            del priorities[source.priority]
        if not priorities:
            del self._tree[queue]


def _least(names: Collection[_Any], key: Callable[[_Any], float]) -> _Any:
    """The one with the least key; the only one, as is usual, is not asked for it."""
    return min(names, key=key) if len(names) > 1 else next(iter(names))

"""Order in which ready tasks are claimed. No I/O.

::

    queues, if they have weights     in proportion to them
      priorities                     the most urgent first
        users                        in turn
          submitters of a user       in turn
            buckets of a submitter   the oldest first

So a million tasks of one user do not block ten of another, and within one priority each submitter waits for one task of
each other submitter at most. Weights stand above priorities: the person who runs a group decides which share of it a
queue gets, and a submitter only in which order that share is used. Each group goes round by itself, and remembers which
users and submitters it served.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple, TypeVar

_Any = TypeVar("_Any")

_KNOWN = 4096  # users and submitters whose last turn is remembered


class BucketInfo(NamedTuple):
    """A bucket, with the parts of its name and of its lane's name."""

    name: str
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
    """Selects the next bucket among those that one listing of the spool found.

    ``weights`` are those of the queues; the default is 1. Without weights, queues are not distinguished.
    """

    def __init__(self, weights: Mapping[str, int] | None = None) -> None:
        self._weights = weights or {}
        self._tree: _Tree = {}
        # how much of its share each queue has used, and that value of the queue served last: a queue that had no tasks
        # continues from there, and saves nothing up
        self._used: dict[str, float] = {}
        self._now = 0.0
        self._turn_of: dict[_Name, int] = {}
        self._turns = 0

    def start(self, buckets: Iterable[BucketInfo]) -> None:
        """Begin a new round with these buckets."""
        self._tree = {}
        for bucket in sorted(buckets):
            self._siblings(bucket).append(bucket)
        if len(self._turn_of) > _KNOWN:
            recent = sorted(self._turn_of, key=self._last_turn)[-_KNOWN // 2 :]
            self._turn_of = {name: self._turn_of[name] for name in recent}

    def add(self, bucket: BucketInfo) -> None:
        """Add a bucket that was dropped, because it has tasks again."""
        bisect.insort(self._siblings(bucket), bucket)

    def _siblings(self, bucket: BucketInfo) -> list[BucketInfo]:
        """Return the buckets of the same submitter."""
        users = self._tree.setdefault(self._queue(bucket), {}).setdefault(bucket.priority, {})
        return users.setdefault(bucket.user, {}).setdefault((bucket.user, bucket.submitter), [])

    def first(self) -> BucketInfo | None:
        """Return the bucket that is next; None if no bucket is left."""
        if not self._tree:
            return None
        priorities = self._tree[_least(self._tree, self._start_of)]
        users = priorities[min(priorities)]
        submitters = users[_least(users, self._last_turn)]
        return submitters[_least(submitters, self._last_turn)][0]

    def _queue(self, bucket: BucketInfo) -> str:
        return bucket.queue if self._weights else ""

    def _start_of(self, queue: str) -> float:
        return max(self._now, self._used.get(queue, 0.0))

    def _last_turn(self, name: _Name) -> int:
        return self._turn_of.get(name, 0)

    def served(self, bucket: BucketInfo) -> None:
        """Record that a task of this bucket was claimed: now it is the others' turn."""
        queue = self._queue(bucket)
        self._now = self._start_of(queue)
        self._used[queue] = self._now + 1.0 / self._weights.get(queue, 1)
        self.skip(bucket)

    def skip(self, bucket: BucketInfo) -> None:
        """Give the turn to the others, although no task of this bucket was claimed."""
        self._turns += 1
        self._turn_of[bucket.user] = self._turn_of[bucket.user, bucket.submitter] = self._turns

    def drop(self, bucket: BucketInfo) -> None:
        """Remove the bucket of :meth:`first`: it has no names left."""
        queue, submitter = self._queue(bucket), (bucket.user, bucket.submitter)
        priorities = self._tree[queue]
        users = priorities[bucket.priority]
        submitters = users[bucket.user]
        submitters[submitter].remove(bucket)
        # empty branches must not be found first
        if not submitters[submitter]:
            del submitters[submitter]
        if not submitters:
            del users[bucket.user]
        if not users:
            del priorities[bucket.priority]
        if not priorities:
            del self._tree[queue]


def _least(names: Collection[_Any], key: Callable[[_Any], float]) -> _Any:
    """Return the name with the least key; a single name, the usual case, is not asked for its key."""
    return min(names, key=key) if len(names) > 1 else next(iter(names))

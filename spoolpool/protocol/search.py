"""Search for task files by the ids of the tasks, in all directories through which a task passes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from spoolpool.format.headers import TaskHeader
from spoolpool.format.names import is_bucket, parse_lane, parse_task_file
from spoolpool.protocol.spool import Spool
from spoolpool.system import files

PASSES = 3
"""Passes over all directories, one after the other, after which a task that none of them found does not exist.

A task evades a pass if it moves back (after the death of its worker, say) between the listings of two directories, or
if a stale cache hides it. The passes are distributed over the time for which caches last.
"""

Place = Literal["waiting", "ready", "claimed", "results", "failed"]
"""Directory of a task file."""

_PLACES: tuple[Place, ...] = ("waiting", "ready", "claimed", "results", "failed")
_OWN_PLACES: frozenset[Place] = frozenset(("ready", "results"))


def search_interval(spool: Spool) -> float:
    """Return the seconds between two passes, from the begin of each, with the jitter of a :class:`Backoff` to come."""
    return max(spool.config.lease, spool.config.caches) / (PASSES - 1) / 0.75


class Wanted(NamedTuple):
    """A task to be found."""

    task: str
    session: str
    bucket: str = ""
    """Directory of its bucket; empty if it is unknown, so that all buckets are listed."""

    @classmethod
    def of(cls, spool: Spool, header: TaskHeader) -> Wanted:
        """Return the task with this header."""
        return cls(header.task, header.session, spool.layout.bucket(header.lane, header.bucket))


def find_places(spool: Spool, wanted: Iterable[Wanted], places: Sequence[Place] = _PLACES) -> dict[str, Place]:
    """Return the place of each task that one pass over the directories of these places finds, by task id.

    The directories are listed in the order in which a task moves. Raises ``OSError`` if one of them cannot be listed:
    then nothing is known about a task that was not found. An account that may not list the directories of others (see
    :attr:`spoolpool.protocol.spool.Spool.sees_all`) finds tasks in its buckets and among its results only.
    """
    left = {each.task: each for each in wanted}
    found: dict[str, Place] = {}
    for place in places:
        if not spool.sees_all and place not in _OWN_PLACES:
            continue
        for directory in _directories(spool, place, left.values()):
            if not left:
                return found
            for name in files.list_names(directory, certain=True):
                task = name.partition(".")[0]
                if task in left and parse_task_file(name) is not None:
                    found[task] = place
                    del left[task]
    return found


def _directories(spool: Spool, place: Place, wanted: Iterable[Wanted]) -> list[str]:
    where = spool.layout
    if place == "ready":
        known = dict.fromkeys(each.bucket for each in wanted)
        return list(_buckets(spool)) if "" in known else list(known)
    if place == "results":
        return [f"{where.results}/{session}" for session in dict.fromkeys(each.session for each in wanted)]
    return [f"{spool.layout.root}/{place}"]


def _buckets(spool: Spool) -> Iterator[str]:
    where = spool.layout
    for lane in filter(parse_lane, files.list_names(where.ready, certain=True)):
        for bucket in filter(is_bucket, files.list_names(where.lane(lane), certain=True)):
            yield where.bucket(lane, bucket)

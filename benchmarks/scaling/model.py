"""Closed forms: operations per second by their causes, and the limits of a metadata server."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from benchmarks import costs
from benchmarks.costs import Costs
from benchmarks.scaling.servers import Server
from spoolpool import settings
from spoolpool.protocol import failure_detector

CHECK_EVERY = 5.0
"""Seconds between two checks of a submitter that waits."""
POLL_EVERY, LOOK_EVERY = 1.0, 2.0
"""Slowest rhythms of a submitter that waits and of a group without a task, in seconds, before jitter."""
LOOKS = 1000
"""Looks per second of all idle groups together, beyond which they slow down."""
JITTER = 7 / 8
"""Mean of what the jitter of a rhythm leaves of it."""
FRESH = 1.0
"""Seconds for which a listing is used."""
LONG = 0.02
"""Seconds of a task after which a group looks whether it is to end."""
MARKS_EVERY = 5.0
"""Slowest rhythm of the looks at what is to be cancelled, while a call runs."""
ENTRY = 24
"""Bytes of a listing for each name, beside the name."""
WORKER, CLAIM = 16, 67
"""Bytes of the names of a worker and of a claimed task."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Groups and submitters of one spool, in a steady state."""

    groups: int
    """Worker groups."""
    seconds: float = 0.0
    """Length of a task; 0: there is none to be done."""
    submitters: int = 1
    """Sessions that have tasks in the spool, or wait for some."""
    chunk: int = 1
    """Calls in a task."""
    lease: float = settings.LEASE
    """The spool's."""
    begun: float = 0.0
    """Tasks per second, where processors or the submitter bound them and not the length of a task; 0: it does."""

    age: float = 0.0
    """Seconds since the groups began; at first, each sees all others for the first time."""

    @property
    def observers(self) -> int:
        """Groups that go round: those in the middle of a task that lasts for longer than a round do not."""
        return max(1, round(self.groups * min(1.0, self.lease / 4 / self.seconds))) if self.seconds else self.groups


class Cause(NamedTuple):
    """A reason for operations."""

    name: str
    rate: float
    """Times per second."""
    steps: tuple[Costs, ...]

    @property
    def operations(self) -> float:
        """Per second."""
        return self.rate * costs.operations(*self.steps)


def look_every(groups: int) -> float:
    """Mean seconds between two looks of an idle group."""
    return max(LOOK_EVERY, groups / LOOKS) * JITTER


def tasks_per_second(pool: Pool) -> float:
    """Tasks per second of the groups if the filesystem took no time."""
    if pool.begun:
        return pool.begun
    return pool.groups / pool.seconds if pool.seconds else 0.0


BY_TASK = frozenset({"tasks", "to be stopped?", "to be cancelled?"})
"""Causes that come with each task."""
FINDING = "finding tasks"
"""This one with each task, or once a second and group where tasks are shorter."""


def causes(pool: Pool) -> Iterator[Cause]:
    """All that a pool asks of the metadata server."""
    tasks = tasks_per_second(pool)
    if pool.seconds:
        yield Cause("tasks", tasks, costs.TASK)
        listings = min(tasks, pool.groups / FRESH)
        yield Cause(FINDING, listings, (costs.LOOK, costs.MARKS))
        wanted = tasks if pool.seconds > LONG else min(tasks, 2 * pool.groups)
        yield Cause("to be stopped?", wanted, (costs.WANTED,))
        yield Cause("to be cancelled?", tasks * _marks(pool.seconds), (costs.MARKS,))
    else:
        buckets = [costs.BUCKET] * (pool.submitters - 1)
        yield Cause("looking for tasks", pool.groups / look_every(pool.groups), (costs.LOOK, costs.WANTED, *buckets))
    yield Cause("looking for outcomes", pool.submitters / (POLL_EVERY * JITTER), (costs.POLL,))
    if not pool.seconds:
        yield Cause("is an outcome possible?", pool.submitters / CHECK_EVERY, (costs.CHECK,))
    yield Cause("is the spool there?", pool.groups / pool.lease, (costs.PRESENCE,))
    yield Cause("signs of life", pool.groups * settings.BEATS_PER_LEASE / pool.lease, (costs.BEAT,))
    rounds = pool.observers * 4 / pool.lease
    yield Cause("held back?", rounds, (costs.HELD,))
    taken = rounds * failure_detector.sampling_rate(pool.observers)
    yield Cause("who claims, who is there", taken, (costs.CLAIMS_AND_GROUPS, costs.SELF_CHECK))
    share = failure_detector.sample_size(pool.groups, pool.observers)
    yield Cause("watching each other", taken * share, (costs.WATCHED,))
    # an observer that chooses among many looks at a group again that it has not seen before
    rounds_before = pool.age * taken / pool.observers
    unseen = (1 - share / pool.groups) ** rounds_before if share < pool.groups else 0.0
    yield Cause("meeting each other", taken * share * unseen, (costs.WATCHED, costs.MET))


def _marks(seconds: float) -> float:
    """Looks at the marks while one call runs: the first after a second, then ever less often."""
    due, pause, count = JITTER, 1.0, 0
    while due < seconds and pause < MARKS_EVERY:
        count += 1
        pause = min(MARKS_EVERY, 1.5 * pause)
        due += pause * JITTER
    return count + max(0.0, seconds - due) / (MARKS_EVERY * JITTER)


def by_kind(pool: Pool) -> dict[str, float]:
    """All operations per second, by their kinds."""
    found: Counter[str] = Counter()
    for cause in causes(pool):
        for step in cause.steps:
            for kind, count in step.items():
                found[kind] += cause.rate * count  # type: ignore[assignment]  # a number of them per second
    return dict(found)


def operations(pool: Pool) -> float:
    """All operations per second."""
    return sum(cause.operations for cause in causes(pool))


def load(pool: Pool, server: Server) -> float:
    """Return the utilization of the server by a pool; more than 1 is an overload."""
    return sum(_seconds(cause, server) for cause in causes(pool))


def rate(pool: Pool, server: Server) -> float:
    """Return tasks per second with enough queued tasks: limited by the groups or by the server."""
    offered = tasks_per_second(pool)
    beside = sum(_seconds(cause, server) for cause in causes(pool) if cause.name not in BY_TASK | {FINDING})
    each = sum(_seconds(cause, server) for cause in causes(pool) if cause.name in BY_TASK) / offered
    look = server.seconds(costs.LOOK, costs.MARKS)
    most = (1 - beside) / (each + look)
    if most > pool.groups / FRESH:
        most = (1 - beside - look * pool.groups / FRESH) / each
    return max(0.0, min(offered, most))


def _seconds(cause: Cause, server: Server) -> float:
    return cause.rate * server.seconds(*cause.steps)


def listed(pool: Pool) -> float:
    """Bytes per second of the listings that grow with the number of groups."""
    rounds = pool.observers * 4 / pool.lease * failure_detector.sampling_rate(pool.observers)
    busy = pool.groups if pool.seconds else 0
    return rounds * (pool.groups * (WORKER + ENTRY) + 2 * busy * (CLAIM + ENTRY))


def most_tasks(server: Server, chunk: int = 1) -> float:
    """Calls per second that fill the server with nothing but tasks."""
    return chunk / server.seconds(*costs.TASK)


def most_groups(pool: Pool, server: Server, part: float = 1.0) -> int:
    """Return the number of groups of a pool that cause this utilization of the server."""
    return _greatest(lambda groups: load(replace(pool, groups=groups), server) <= part)


def _greatest(holds: Callable[[int], bool]) -> int:
    low, high = 0, 1
    while holds(high) and high < 10**9:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


class Found(NamedTuple):
    """Time until the death of a group is detected, in leases."""

    mean: float
    most: float
    """99 of 100 are found sooner."""


def found_after(groups: int, observers: int) -> Found:
    """Return the time from the last heartbeat to the end of the claim, for deaths that cannot be proven.

    An observer must read the heartbeat once, at a random moment, and then again until a lease has passed since then.
    These rounds are a quarter of a lease apart, so the last one exceeds the lease by half a quarter on average.
    """
    looks = (
        observers * failure_detector.sampling_rate(observers) * failure_detector.sample_size(groups, observers) / groups
    )  # in a quarter of a lease
    return Found(0.25 / looks + 1.125, 0.25 * math.log(100) / looks + 1.25)

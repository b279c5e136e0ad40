"""Discrete events: groups, a metadata server with a queue, and observers of the dead. A seed determines each run.

The operations of a group in one step are one event, because it waits for all of them anyway. So ten
thousand groups and ten million tasks take a minute.
"""

from __future__ import annotations

import heapq
import random
import statistics
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from benchmarks import costs
from benchmarks.scaling import model
from benchmarks.scaling.model import Pool
from benchmarks.scaling.servers import Server
from spoolpool.protocol import failure_detector

_TICK = 0.05  # seconds; the load beside the tasks in this time is one piece of work for the server


class Worked(NamedTuple):
    """Results of a run of tasks."""

    rate: float
    """Tasks per second."""
    busy: float
    """Part of the time for which the server was busy."""


def work(pool: Pool, server: Server, tasks: int, seed: int) -> Worked:
    """Let the groups do so many tasks, of which enough wait all the time.

    A group publishes an outcome and claims the next task in one go, and then runs it, for exponentially distributed
    seconds. The task's submission and collection follow in the queue of the server.
    """
    chance = random.Random(seed)
    by_task = {cause.name: cause for cause in model.causes(pool)}
    beside = [by_task.pop(name) for name in tuple(by_task) if name not in model.BY_TASK | {model.FINDING}]
    background = sum(cause.rate * server.seconds(*cause.steps) for cause in beside) * _TICK
    look = server.seconds(*by_task.pop(model.FINDING).steps)
    each = sum(cause.rate * server.seconds(*cause.steps) for cause in by_task.values()) / model.tasks_per_second(pool)
    mine = server.seconds(costs.CLAIM, costs.PUBLISH)
    theirs = each - mine
    groups = [chance.expovariate(1 / pool.seconds) for _ in range(pool.groups)]  # when each is done with its task
    heapq.heapify(groups)
    rest, push, next_of = 1 / pool.seconds, heapq.heapreplace, chance.expovariate
    free = used = tick = first = fresh = 0.0
    looks = 0  # of this second: each group looks once in it, if it needs a task at all
    settled = tasks // 10
    for done in range(tasks):
        now = groups[0]
        while tick < now:
            free = max(free, tick) + background
            used += background
            tick += _TICK
        if now > fresh:
            fresh, looks = now + model.FRESH, pool.groups
        free = max(free, now) + mine
        used += each
        if looks:
            looks -= 1
            free += look
            used += look
        push(groups, free + next_of(rest))
        free += theirs
        if done == settled:  # the beginning is no steady state
            first, used = now, 0.0
    took = groups[0] - first
    return Worked((tasks - settled) / took, min(1.0, used / took))


class Burst(NamedTuple):
    """Results of many tasks submitted at once to idle groups."""

    looks: float
    """Looks per second of all groups before."""
    first: float
    """Seconds until the first task was claimed."""
    half: float
    """Seconds until half of them were."""
    last: float
    """Seconds until all were."""


def burst(pool: Pool, server: Server, tasks: int, seed: int) -> Burst:
    """Submit as many tasks at once to idle groups that nothing wakes, as on a network filesystem."""
    chance = random.Random(seed)
    slowest = max(model.LOOK_EVERY, pool.groups / model.LOOKS)
    look, claim = server.seconds(costs.LOOK, costs.WANTED), server.seconds(costs.LOOK, costs.CLAIM)
    due = [chance.uniform(0, slowest) for _ in range(pool.groups)]
    heapq.heapify(due)
    free, looks, begun, came = 0.0, 0, 10 * slowest, 0
    claimed: list[float] = []
    while len(claimed) < min(tasks, pool.groups):
        now = due[0]
        came += now < begun
        if now >= begun and len(claimed) < tasks:
            free = max(free, now) + claim
            claimed.append(free - begun)
            heapq.heappop(due)
        else:
            looks += 1
            free = max(free, now) + look
            heapq.heapreplace(due, free + slowest * chance.uniform(0.75, 1.0))
    return Burst(came / begun, claimed[0], claimed[len(claimed) // 2], claimed[-1])


class Watched(NamedTuple):
    """Results of the failure detection by all observers."""

    mean: float
    """Leases from the last sign of life of a dead group until it was found dead."""
    most: float
    """99 of 100 were found sooner."""
    looks: float
    """At each group, in a quarter of a lease, by all observers."""


def watch(pool: Pool, deaths: int, seed: int) -> Watched:
    """Let so many groups die at random moments of one lease, and the observers among the others find them.

    As in :class:`spoolpool.protocol.failure_detector.FailureDetector`, a worker seen for the first time is checked once
    more.
    """
    chance = random.Random(seed)
    observers = pool.observers
    share = failure_detector.sample_size(pool.groups, observers)
    turn = failure_detector.sampling_rate(observers)
    died = {dead: 1 + chance.random() for dead in range(deaths)}  # in leases; the first ones among the groups
    found: dict[int, float] = {}
    suspects: list[dict[int, tuple[float, float]]] = [{} for _ in range(observers)]
    rounds = [(chance.random() / 4, observer) for observer in range(observers)]
    heapq.heapify(rounds)
    looks = 0
    now = 0.0
    everybody = range(pool.groups)
    while len(found) < deaths and now < 100:
        now, observer = rounds[0]
        mine = suspects[observer]
        looks += len(mine)
        for dead, (seen, before) in tuple(mine.items()):
            still = before + min(now - seen, 1 / 3)
            mine[dead] = now, still
            if still >= 1:
                found.setdefault(dead, now - died[dead])
            if dead in found:
                del mine[dead]
        if chance.random() < turn:
            chosen = everybody if share >= pool.groups else chance.sample(everybody, share)
            looks += len(chosen) if share >= pool.groups else 2 * len(chosen)
            for dead in chosen if share < pool.groups else range(deaths):
                if dead < deaths and dead not in mine and dead not in found and now >= died[dead]:
                    mine[dead] = now, 0.0
        heapq.heapreplace(rounds, (now + chance.uniform(0.75, 1.25) / 4, observer))
    times = sorted(found.values())
    return Watched(statistics.fmean(times), times[int(len(times) * 0.99)], looks / pool.groups / (4 * now))


def checks(server: Server, *, groups: int, tasks: int, seed: int) -> Iterator[tuple[str, float, float]]:
    """Comparison of both models: a quantity, by the closed form, and by events."""
    for seconds in (groups / model.most_tasks(server) * 4, groups / model.most_tasks(server) / 4):
        pool = Pool(groups=groups, seconds=seconds)
        worked = work(pool, server, tasks, seed)
        yield f"tasks per second, of {seconds:.3g} s", model.rate(pool, server), worked.rate
        yield f"server busy, tasks of {seconds:.3g} s", min(1.0, model.load(pool, server)), worked.busy
    idle = Pool(groups=groups)
    came = burst(idle, server, groups, seed)
    every = model.look_every(groups)
    yield "looks per second, idle", groups / every, came.looks
    yield "seconds until half of a burst is claimed", every / 2, came.half
    for pool in (idle, replace(idle, seconds=idle.lease)):
        seen = watch(pool, max(1, min(200, groups // 10)), seed)
        found = model.found_after(pool.groups, pool.observers)
        who = "idle" if not pool.seconds else f"tasks of {pool.seconds:.3g} s"
        yield f"leases until a death is noticed, mean, {who}", found.mean, seen.mean
        yield f"leases until a death is noticed, 99 %, {who}", found.most, seen.most

"""How many batch jobs of workers there should be: what follows from what is seen. Nothing is done here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from spoolpool.format.names import parse_lane

_LATELY = 3600.0  # seconds for which a job that ended speaks against another try
_MOST_DOUBLINGS = 6


@dataclass(frozen=True, kw_only=True)
class ScalingPolicy:
    """What is wanted. Times are in seconds."""

    max_jobs: int
    """Jobs that may wait or run at once."""
    min_jobs: int = 0
    """Jobs of the lane ``home`` that there should always be."""
    home: str = ""
    """The lane of these."""
    tasks_per_job: int = 100
    """Waiting tasks of a lane for each of which one more job is worth it."""
    patience: float = 300.0
    """A job that waits is cancelled no sooner after its submission, nor after the last stir in its lane."""
    cooldown: float = 60.0
    """Between two submissions for a lane that has a job; doubled with each job of the lane that ended lately."""


@dataclass(frozen=True, kw_only=True)
class JobSeen:
    """A job that was submitted for a lane."""

    name: str
    """Its name."""
    lane: str
    """The lane for which it was submitted."""
    state: str
    """``pending``, ``running`` or ``over``."""
    age: float
    """Seconds since it was submitted."""


@dataclass(frozen=True, kw_only=True)
class State:
    """What is there."""

    waiting: Mapping[str, int] = field(default_factory=dict)
    """Tasks by lane; lanes without any may be left out."""
    jobs: tuple[JobSeen, ...] = ()
    """Those that are to be scaled, and those that were and ended lately."""
    elsewhere: Mapping[str, int] = field(default_factory=dict)
    """Jobs and hosts with live groups that serve a lane, and that are not to be scaled."""
    quiet: Mapping[str, float] = field(default_factory=dict)
    """Seconds since a task came or went, by lane; for ever where it is left out."""
    barred: Mapping[str, str] = field(default_factory=dict)
    """Lanes that workers which are started here would not serve, with the reasons."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One thing to do, or to leave although it might be expected; with its reason."""

    do: Literal["submit", "cancel", "leave"]
    """What."""
    lane: str
    """For which lane."""
    why: str
    """The reason, in words."""
    job: str = ""
    """Name of the job to be cancelled."""
    stays: bool = False
    """Whether the job is to stay when it has nothing to do."""


def serves(has: str, wants: str) -> bool:
    """Whether groups that were started for one lane also run the tasks of another."""
    have, want = parse_lane(has), parse_lane(wants)
    if have is None or want is None or have.threads < want.threads or have.gpus < want.gpus:
        return False
    # tags and accounts are what all workers that are started here have or trust in common: see State.barred
    return have._replace(threads=want.threads, gpus=want.gpus, tags=want.tags, user=want.user) == want


def decide(state: State, terms: ScalingPolicy) -> list[Decision]:
    """What to do now. Depends on nothing but its arguments."""
    there = [job for job in state.jobs if job.state != "over"]
    cancels = _surplus(state, terms, there)
    gone = {each.job for each in cancels}
    return cancels + _missing(state, terms, [job for job in there if job.name not in gone])


def _wanted(tasks: int, terms: ScalingPolicy) -> int:
    return -(-tasks // terms.tasks_per_job)


def _missing(state: State, terms: ScalingPolicy, there: list[JobSeen]) -> list[Decision]:
    decisions = []
    room = terms.max_jobs - len(there)
    lanes = {terms.home: 0} if terms.min_jobs else {}
    lanes.update({lane: count for lane, count in state.waiting.items() if count})
    have = {lane: sum(serves(job.lane, lane) for job in there) + state.elsewhere.get(lane, 0) for lane in lanes}
    # who has nothing comes first, then who has the most that waits
    for lane in sorted(lanes, key=lambda lane: (have[lane] > 0, -lanes[lane], lane)):
        at_home = terms.min_jobs - sum(serves(job.lane, lane) for job in there) if lane == terms.home else 0
        missing = max(_wanted(lanes[lane], terms) - have[lane], at_home)
        if missing <= 0:
            continue
        why = f"{lanes[lane]} task(s) wait, {have[lane]} job(s) serve them"
        if at_home > 0:
            why = f"{terms.min_jobs} job(s) are always wanted, {terms.min_jobs - at_home} are there"
        if reason := _not_yet(state, terms, lane, have[lane]):
            decisions.append(Decision(do="leave", lane=lane, why=f"{why}; {reason}"))
            continue
        if room < missing:
            limit = f"{why}; no more than {terms.max_jobs} job(s) are allowed"
            if room <= 0:
                decisions.append(Decision(do="leave", lane=lane, why=limit))
                continue
            why = limit
        count = min(missing, room)
        room -= count
        decisions += [Decision(do="submit", lane=lane, why=why, stays=number < at_home) for number in range(count)]
    return decisions


def _not_yet(state: State, terms: ScalingPolicy, lane: str, have: int) -> str | None:
    """Why no job is submitted for a lane now, although one is missing."""
    if lane in state.barred:
        return f"workers that are started here would not run them: {state.barred[lane]}"
    ages = [job.age for job in state.jobs if job.lane == lane]
    ended = sum(job.state == "over" and job.age < _LATELY for job in state.jobs if job.lane == lane)
    if not ages or not (have or ended):
        return None
    pause = terms.cooldown * 2 ** min(max(ended - 1, 0), _MOST_DOUBLINGS)
    if min(ages) >= pause:
        return None
    past = f", and {ended} job(s) for it ended within the last hour" if ended else ""
    return f"the last job was submitted {min(ages):.0f} s ago{past}: the next one follows after {pause:.0f} s"


def _surplus(state: State, terms: ScalingPolicy, there: list[JobSeen]) -> list[Decision]:
    decisions = []
    left = list(there)
    lanes = {*state.waiting, terms.home, *(job.lane for job in there)}
    for job in sorted((job for job in there if job.state == "pending"), key=lambda job: job.age):
        if job.age < terms.patience:
            continue
        others = [each for each in left if each.name != job.name]
        mine = [lane for lane in lanes if serves(job.lane, lane)]
        if any(_is_short(state, terms, lane, others) for lane in mine):
            continue
        waiting = sum(state.waiting.get(lane, 0) for lane in mine)
        left = others
        why = f"it has waited for {job.age:.0f} s, and {waiting} task(s) wait for it and {len(others)} other job(s)"
        decisions.append(Decision(do="cancel", lane=job.lane, job=job.name, why=why))
    return decisions


def _is_short(state: State, terms: ScalingPolicy, lane: str, there: list[JobSeen]) -> bool:
    """Whether a lane would need what has just been taken away, or might soon.

    A job counts as needed until half the tasks would do for it, so that one does not come and go with each task.
    """
    have = sum(serves(job.lane, lane) for job in there)
    if lane == terms.home and have < terms.min_jobs:
        return True
    tasks = state.waiting.get(lane, 0)
    if not tasks:
        return state.quiet.get(lane, terms.patience) < terms.patience
    return have + state.elsewhere.get(lane, 0) < _wanted(2 * tasks, terms)

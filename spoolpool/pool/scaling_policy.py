"""Decisions of the autoscaler: batch jobs to submit and to cancel. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from spoolpool.format.names import parse_lane
from spoolpool.pool.batch_jobs import SpoolJob

_RECENT = 3600.0  # seconds for which an ended job delays the next submission
_MOST_DOUBLINGS = 6


@dataclass(frozen=True, kw_only=True)
class ScalingPolicy:
    """Limits of the number of jobs. Times are in seconds."""

    max_jobs: int
    """Jobs that may be pending or running at once."""
    min_jobs: int = 0
    """Jobs of the lane ``home`` that are always kept."""
    home: str = ""
    """Lane of these jobs."""
    tasks_per_job: int = 100
    """Waiting tasks of a lane per job: more tasks justify one more job."""
    patience: float = 300.0
    """Time since its submission, and since the last change in its lane, after which a superfluous job is cancelled."""
    cooldown: float = 60.0
    """Time between two submissions for a lane with a job; doubled with each job of the lane that ended recently."""
    idle_timeout: float = 300.0
    """Time without a task after which the groups of a job end; those of ``min_jobs`` do not."""


@dataclass(frozen=True, kw_only=True)
class ScalingState:
    """Tasks of a spool and workers for them."""

    waiting: Mapping[str, int] = field(default_factory=dict)
    """Waiting tasks by lane; lanes without tasks may be omitted."""
    jobs: tuple[SpoolJob, ...] = ()
    """Jobs that the autoscaler has submitted, also those that ended lately."""
    other_sources: Mapping[str, int] = field(default_factory=dict)
    """Further jobs and hosts with live groups that serve a lane."""
    quiet: Mapping[str, float] = field(default_factory=dict)
    """Seconds since a task was added to or removed from a lane; infinite for an omitted lane."""
    unserved: Mapping[str, str] = field(default_factory=dict)
    """Lanes that new workers would not serve, with the reasons."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Submission or cancellation of a job, or a submission that is expected but must not be made now."""

    action: Literal["submit", "cancel", "none"]
    """Action."""
    lane: str
    """Lane of the job."""
    reason: str
    """Reason, for people."""
    job: SpoolJob | None = None
    """Job to be cancelled."""
    permanent: bool = False
    """Whether the new job stays when it is idle."""


def serves(offered: str, wanted: str) -> bool:
    """Return whether groups that were started for one lane also run the tasks of another."""
    offer, want = parse_lane(offered), parse_lane(wanted)
    if offer is None or want is None or offer.threads < want.threads or offer.gpus < want.gpus:
        return False
    # tags and trusted accounts are the same for all workers that are started here: see ScalingState.unserved
    return offer._replace(threads=want.threads, gpus=want.gpus, tags=want.tags, user=want.user) == want


def decide(state: ScalingState, policy: ScalingPolicy) -> list[Decision]:
    """Return the decisions for a state."""
    active = [job for job in state.jobs if job.state != "over"]
    cancellations = _cancellations(state, policy, active)
    cancelled = [each.job for each in cancellations]
    return cancellations + _submissions(state, policy, [job for job in active if job not in cancelled])


def _jobs_for(tasks: int, policy: ScalingPolicy) -> int:
    return -(-tasks // policy.tasks_per_job)


def _count_serving(jobs: list[SpoolJob], lane: str) -> int:
    return sum(serves(job.record.lane, lane) for job in jobs)


def _submissions(state: ScalingState, policy: ScalingPolicy, active: list[SpoolJob]) -> list[Decision]:
    decisions = []
    room = policy.max_jobs - len(active)
    lanes = {policy.home: 0} if policy.min_jobs else {}
    lanes.update({lane: count for lane, count in state.waiting.items() if count})
    serving = {lane: _count_serving(active, lane) + state.other_sources.get(lane, 0) for lane in lanes}
    # first the lanes without workers, then those with the most waiting tasks
    for lane in sorted(lanes, key=lambda lane: (serving[lane] > 0, -lanes[lane], lane)):
        permanent = policy.min_jobs - _count_serving(active, lane) if lane == policy.home else 0
        missing = max(_jobs_for(lanes[lane], policy) - serving[lane], permanent)
        if missing <= 0:
            continue
        reason = f"{lanes[lane]} task(s) wait, {serving[lane]} job(s) serve them"
        if permanent > 0:
            reason = f"{policy.min_jobs} job(s) are always wanted, {policy.min_jobs - permanent} are there"
        if obstacle := _obstacle(state, policy, lane, serving[lane]):
            decisions.append(Decision(action="none", lane=lane, reason=f"{reason}; {obstacle}"))
            continue
        if room < missing:
            reason = f"{reason}; no more than {policy.max_jobs} job(s) are allowed"
            if room <= 0:
                decisions.append(Decision(action="none", lane=lane, reason=reason))
                continue
        count = min(missing, room)
        room -= count
        decisions += [
            Decision(action="submit", lane=lane, reason=reason, permanent=number < permanent) for number in range(count)
        ]
    return decisions


def _obstacle(state: ScalingState, policy: ScalingPolicy, lane: str, serving: int) -> str | None:
    """Return the reason why no job is submitted for a lane now although one is missing; None if there is none."""
    if lane in state.unserved:
        return f"workers that are started here would not run them: {state.unserved[lane]}"
    ages = [job.age for job in state.jobs if job.record.lane == lane]
    ended = sum(job.state == "over" and job.age < _RECENT for job in state.jobs if job.record.lane == lane)
    if not ages or not (serving or ended):
        return None
    pause = policy.cooldown * 2 ** min(max(ended - 1, 0), _MOST_DOUBLINGS)
    if min(ages) >= pause:
        return None
    past = f", and {ended} job(s) for it ended within the last hour" if ended else ""
    return f"the last job was submitted {min(ages):.0f} s ago{past}: the next one follows after {pause:.0f} s"


def _cancellations(state: ScalingState, policy: ScalingPolicy, active: list[SpoolJob]) -> list[Decision]:
    decisions = []
    left = list(active)
    lanes = {*state.waiting, policy.home, *(job.record.lane for job in active)}
    for job in sorted((job for job in active if job.state == "pending"), key=lambda job: job.age):
        if job.age < policy.patience:
            continue
        others = [each for each in left if each is not job]
        served = [lane for lane in lanes if serves(job.record.lane, lane)]
        if any(_is_short(state, policy, lane, others) for lane in served):
            continue
        waiting = sum(state.waiting.get(lane, 0) for lane in served)
        left = others
        reason = f"it has waited for {job.age:.0f} s, and {waiting} task(s) wait for it and {len(others)} other job(s)"
        decisions.append(Decision(action="cancel", lane=job.record.lane, job=job, reason=reason))
    return decisions


def _is_short(state: ScalingState, policy: ScalingPolicy, lane: str, jobs: list[SpoolJob]) -> bool:
    """Return whether a lane needs more than these jobs, or may need more soon.

    They are enough only if they are enough for twice the tasks, so that a job does not come and go with each task.
    """
    serving = _count_serving(jobs, lane)
    if lane == policy.home and serving < policy.min_jobs:
        return True
    tasks = state.waiting.get(lane, 0)
    if not tasks:
        return state.quiet.get(lane, policy.patience) < policy.patience
    return serving + state.other_sources.get(lane, 0) < _jobs_for(2 * tasks, policy)

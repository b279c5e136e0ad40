"""Decisions of the autoscaler: batch jobs to submit and to cancel. Pure: no I/O."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from spoolpool.format.names import parse_lane
from spoolpool.pool.batch_jobs import SpoolJob
from spoolpool.system.text import format_duration

_RECENT = 3600.0  # seconds for which an ended job delays the next submission
_MOST_DOUBLINGS = 6
_LEFT_ALONE = 3600.0  # seconds for which a lane gets no job after its second failed job in a row
_LONGEST_LEFT_ALONE = 86400.0
_LINES_OF_REASON = 3  # last lines of an output in a message


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
    max_failures: int = 2
    """Failed jobs of a lane in a row after which the lane is left alone for a while; 0: never."""


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


def failures_in_a_row(jobs: Iterable[SpoolJob], lane: str) -> list[SpoolJob]:
    """Return the failed jobs of a lane, the last one first, since a job of it has worked.

    A job that was cancelled or lost its node counts neither as a failure nor as a success.
    """
    failed: list[SpoolJob] = []
    for job in sorted((job for job in jobs if job.record.lane == lane), key=lambda job: job.age):
        kind = ("done" if job.started else None) if job.state != "over" else job.end and job.end.kind
        if kind == "done":
            break
        if kind == "failed":
            failed.append(job)
    return failed


def seconds_left_alone(failures: Sequence[SpoolJob], most: int = 2) -> float:
    """Return the seconds for which a lane with these failures in a row gets no job; 0.0 if it may have one now.

    They begin with the end of the last job, and double with each further failure.
    """
    if not most or len(failures) < most:
        return 0.0
    pause = min(_LEFT_ALONE * 2.0 ** min(len(failures) - most, _MOST_DOUBLINGS), _LONGEST_LEFT_ALONE)
    return max(0.0, pause - min(job.ended for job in failures))


def describe_left_alone(failures: Sequence[SpoolJob], seconds: float) -> str:
    """Return the reason why a lane gets no job now, with the end of the last one."""
    end = failures[0].end
    why = f": {end.why.rstrip('.')}" if end and end.why else ""
    output = f"; its output ends with: {' | '.join(end.output[-_LINES_OF_REASON:])}" if end and end.output else ""
    return (
        f"{len(failures)} jobs in a row failed, so that it gets no other one for {format_duration(seconds)} "
        f"('spool workers forget' ends that). The last one{why}{output}"
    )


def _count_serving(jobs: list[SpoolJob], lane: str) -> int:
    return sum(serves(job.record.lane, lane) for job in jobs)


def _submissions(state: ScalingState, policy: ScalingPolicy, active: list[SpoolJob]) -> list[Decision]:
    """Return a decision for each lane that needs more jobs.

    Every lane gets its first job before any gets its second; further jobs go where most tasks wait for each job.
    """
    decisions: list[Decision] = []
    room = max(0, policy.max_jobs - len(active))
    lanes = {policy.home: 0} if policy.min_jobs else {}
    lanes.update({lane: count for lane, count in state.waiting.items() if count})
    serving = {lane: _count_serving(active, lane) + state.other_sources.get(lane, 0) for lane in lanes}
    reasons: dict[str, str] = {}
    missing: dict[str, int] = {}
    permanent: dict[str, int] = {}
    reserved = 0  # first jobs that follow after a pause
    # the lanes without workers first, then those with the most waiting tasks
    for lane in sorted(lanes, key=lambda lane: (serving[lane] > 0, -lanes[lane], lane)):
        kept = policy.min_jobs - _count_serving(active, lane) if lane == policy.home else 0
        count = max(_jobs_for(lanes[lane], policy) - serving[lane], kept)
        if count <= 0:
            continue
        reason = f"{lanes[lane]} task(s) wait, {serving[lane]} job(s) serve them"
        if kept > 0:
            reason = f"{policy.min_jobs} job(s) are always wanted, {policy.min_jobs - kept} are there"
        if obstacle := _obstacle(state, policy, lane):
            decisions.append(Decision(action="none", lane=lane, reason=f"{reason}; {obstacle}"))
        elif pause := _pause(state, policy, lane, serving[lane]):
            decisions.append(Decision(action="none", lane=lane, reason=f"{reason}; {pause}"))
            reserved += not serving[lane]
        else:
            reasons[lane], missing[lane], permanent[lane] = reason, count, kept
    given = _share(room, reserved, missing, serving, lanes)
    for lane, reason in list(reasons.items()):
        if given[lane] < missing[lane]:
            reasons[lane] = f"{reason}; no more than {policy.max_jobs} job(s) are allowed"
            if not given[lane]:
                decisions.append(Decision(action="none", lane=lane, reason=reasons[lane]))
        decisions += [
            Decision(action="submit", lane=lane, reason=reasons[lane], permanent=number < permanent[lane])
            for number in range(given[lane])
        ]
    return decisions


def _share(
    room: int, reserved: int, missing: Mapping[str, int], serving: Mapping[str, int], tasks: Mapping[str, int]
) -> dict[str, int]:
    """Share the room for jobs among lanes; return the number for each.

    The ``reserved`` part of the room is for first jobs alone.
    """
    given = dict.fromkeys(missing, 0)

    def rank(lane: str) -> tuple[bool, float, str]:
        jobs = serving[lane] + given[lane]
        return jobs > 0, -tasks[lane] / (jobs + 1), lane

    queue = sorted(map(rank, missing))
    while room and queue:
        served, _, lane = heapq.heappop(queue)
        if served and room <= reserved:
            break
        given[lane] += 1
        room -= 1
        if given[lane] < missing[lane]:
            heapq.heappush(queue, rank(lane))
    return given


def _obstacle(state: ScalingState, policy: ScalingPolicy, lane: str) -> str | None:
    """Return the reason why a lane gets no jobs although one is missing; None if there is none."""
    if lane in state.unserved:
        return f"workers that are started here would not run them: {state.unserved[lane]}"
    failures = failures_in_a_row(state.jobs, lane)
    if seconds := seconds_left_alone(failures, policy.max_failures):
        return describe_left_alone(failures, seconds)
    return None


def _pause(state: ScalingState, policy: ScalingPolicy, lane: str, serving: int) -> str | None:
    """Return the reason why the next job of a lane is not submitted yet; None if it may be submitted."""
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

"""Decisions about batch jobs, without a spool or a batch system."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from spoolpool.format.names import Lane
from spoolpool.pool.batch_jobs import JobRecord, SpoolJob
from spoolpool.pool.job_ends import EndKind, JobEnd
from spoolpool.pool.scaling_policy import ScalingPolicy, ScalingState, decide, serves

ONE = Lane("default", 1, 1, 0, "3.11").name
TWO = Lane("default", 2, 1, 0, "3.11").name
GPU = Lane("default", 1, 1, 1, "3.11").name
LANES = (ONE, TWO, GPU)


def job(state: Any, age: float = 1000.0, lane: str = ONE, name: str = "") -> SpoolJob:
    record = JobRecord(name=name or f"{lane} {state} {age}", system="slurm", cluster="", user="", lane=lane)
    return SpoolJob(record=record, age=age, state=state)


def ended(kind: EndKind | None, age: float, ended: float | None = None, lane: str = ONE) -> SpoolJob:
    """Return an ended job, submitted ``age`` seconds ago, whose end was recorded ``ended`` seconds ago."""
    record = JobRecord(name=f"{lane} {kind} {age}", system="slurm", cluster="", user="", lane=lane)
    end = None if kind is None else JobEnd(name=record.name, kind=kind, why="exit code 3", output=("no such module",))
    return SpoolJob(record=record, age=age, state="over", end=end, ended=age if ended is None else ended)


def names(jobs: Iterable[SpoolJob | None]) -> list[str]:
    return [job.record.name for job in jobs if job is not None]


def made(state: ScalingState, **limits: Any) -> list[tuple[str, str]]:
    """Return the decided actions, each with the lane, or the name of the cancelled job."""
    decisions = decide(state, ScalingPolicy(**{"max_jobs": 10, **limits}))
    return [(each.action, each.job.record.name if each.job else each.lane) for each in decisions]


def reason(state: ScalingState, **limits: Any) -> str:
    """Return the reason of the only decision."""
    [decision] = decide(state, ScalingPolicy(**{"max_jobs": 10, **limits}))
    return decision.reason


def test_without_waiting_tasks_nothing_is_submitted():
    assert made(ScalingState()) == []
    assert made(ScalingState(jobs=(job("running"), job("over")), waiting={ONE: 0})) == []


def test_unserved_lane_gets_one_job_per_hundred_tasks():
    assert made(ScalingState(waiting={ONE: 1})) == [("submit", ONE)]
    assert made(ScalingState(waiting={ONE: 201})) == [("submit", ONE)] * 3
    assert reason(ScalingState(waiting={ONE: 5})) == "5 task(s) wait, 0 job(s) serve them"


def test_pending_and_running_jobs_and_other_groups_count_as_serving():
    assert made(ScalingState(waiting={ONE: 100}, jobs=(job("pending", 10.0),))) == []
    assert made(ScalingState(waiting={ONE: 100}, jobs=(job("running"),))) == []
    assert made(ScalingState(waiting={ONE: 100}, other_sources={ONE: 1})) == []
    assert made(ScalingState(waiting={ONE: 201}, jobs=(job("running"),), other_sources={ONE: 1})) == [("submit", ONE)]


def test_job_with_more_threads_or_gpus_serves_smaller_lanes_of_equal_ranks_and_queue():
    assert serves(GPU, ONE) and not serves(ONE, GPU)
    assert not serves(TWO, ONE) and not serves(ONE, TWO)
    assert not serves(Lane("other", 1, 1, 0, "3.11").name, ONE)
    assert not serves("nonsense", ONE)
    assert made(ScalingState(waiting={ONE: 1}, jobs=(job("running", lane=GPU),))) == []


def test_served_lane_gets_another_job_only_after_the_cooldown():
    young = ScalingState(waiting={ONE: 200}, jobs=(job("running", 59.0),))
    assert made(young) == [("none", ONE)]
    assert "the next one follows after 60 s" in reason(young)
    assert made(ScalingState(waiting={ONE: 200}, jobs=(job("running", 60.0),))) == [("submit", ONE)]


def test_number_of_jobs_is_bounded_and_unserved_lanes_come_first():
    crowd = ScalingState(waiting={ONE: 1000, TWO: 1}, jobs=(job("running"), job("running", 999.0)))
    assert made(crowd, max_jobs=3) == [("submit", TWO), ("none", ONE)]
    assert made(crowd, max_jobs=5) == [("submit", TWO), ("submit", ONE), ("submit", ONE)]
    assert made(ScalingState(waiting={ONE: 1}, jobs=(job("running", lane=TWO),)), max_jobs=1) == [("none", ONE)]


def test_each_recently_ended_job_doubles_the_cooldown():
    ended = [job("over", age) for age in (600.0, 300.0, 100.0)]
    assert made(ScalingState(waiting={ONE: 1}, jobs=tuple(ended[:1]))) == [("submit", ONE)]
    state = ScalingState(waiting={ONE: 1}, jobs=tuple(ended))
    assert made(state) == [("none", ONE)]
    assert "3 job(s) for it ended within the last hour: the next one follows after 240 s" in reason(state)
    assert made(state, cooldown=25.0) == [("submit", ONE)]
    assert made(ScalingState(waiting={ONE: 1}, jobs=(job("over", 3601.0), job("over", 4000.0)))) == [("submit", ONE)]
    assert made(ScalingState(waiting={TWO: 1}, jobs=tuple(ended))) == [("submit", TWO)], (
        "jobs of another lane do not count"
    )


def test_every_lane_gets_its_first_job_before_any_gets_its_second():
    waiting = {ONE: 1000, TWO: 300, GPU: 1}
    assert made(ScalingState(waiting=waiting), max_jobs=3) == [("submit", ONE), ("submit", TWO), ("submit", GPU)]
    assert sorted(made(ScalingState(waiting=waiting), max_jobs=4)) == sorted(
        [("submit", ONE), ("submit", ONE), ("submit", TWO), ("submit", GPU)]
    )
    assert made(ScalingState(waiting=waiting), max_jobs=2) == [("submit", ONE), ("submit", TWO), ("none", GPU)]
    served = ScalingState(waiting=waiting, jobs=(job("running"),))
    assert [lane for action, lane in made(served, max_jobs=3) if action == "submit"] == [TWO, GPU]


def test_further_jobs_go_where_most_tasks_wait_for_each_job():
    decisions = made(ScalingState(waiting={ONE: 1000, TWO: 500}), max_jobs=6)
    assert decisions.count(("submit", ONE)) == 4
    assert decisions.count(("submit", TWO)) == 2


def test_room_for_the_first_job_of_a_lane_is_kept_while_its_pause_lasts():
    idle = ended("done", 30.0, lane=TWO)
    state = ScalingState(waiting={ONE: 1000, TWO: 1}, jobs=(idle,))
    assert sorted(made(state, max_jobs=3)) == [("none", TWO), ("submit", ONE), ("submit", ONE)]
    assert made(ScalingState(waiting={ONE: 1000, TWO: 1}, jobs=(idle,)), max_jobs=1) == [("none", TWO), ("submit", ONE)]


def left_alone(*jobs: SpoolJob, **limits: Any) -> bool:
    state = ScalingState(waiting={ONE: 1000}, jobs=jobs)
    return "jobs in a row failed" in " ".join(
        each.reason for each in decide(state, ScalingPolicy(max_jobs=9, **limits))
    )


def test_lane_is_left_alone_after_two_failed_jobs_in_a_row_and_the_reason_is_told():
    failed = ended("failed", 600.0), ended("failed", 300.0)
    assert made(ScalingState(waiting={ONE: 1}, jobs=failed[:1])) == [("submit", ONE)]
    assert made(ScalingState(waiting={ONE: 1, TWO: 1}, jobs=failed)) == [("none", ONE), ("submit", TWO)]
    text = reason(ScalingState(waiting={ONE: 1}, jobs=failed))
    assert "2 jobs in a row failed, so that it gets no other one for 55 min" in text
    assert "The last one: exit code 3; its output ends with: no such module" in text
    assert made(ScalingState(waiting={ONE: 1}, jobs=failed), max_failures=0) == [("submit", ONE)]


def test_ends_that_are_no_failures_of_a_lane_neither_count_nor_part_its_failures():
    first, last = ended("failed", 900.0), ended("failed", 300.0)
    for kind in ("cancelled", "lost", None):
        assert left_alone(first, ended(kind, 600.0), last)
        assert not left_alone(ended(kind, 600.0), last)
        assert not left_alone(ended(kind, 600.0), ended(kind, 300.0))
    assert not left_alone(first, ended("done", 600.0), last), "a job has worked between them"
    assert left_alone(ended("done", 1000.0), first, last)
    assert left_alone(first, last, job("pending", 10.0))
    working = replace(job("running", 10.0), started=True)
    assert not left_alone(first, last, working), "a later job works"
    assert left_alone(first, last, replace(working, age=1000.0)), "an earlier job works"
    assert not left_alone(first, ended("failed", 300.0, lane=TWO))


def test_lane_is_left_alone_for_an_hour_and_longer_after_each_further_failure():
    failed = ended("failed", 9000.0, 4000.0), ended("failed", 8000.0, 3599.0)
    assert left_alone(*failed), "the pause begins with the end, however long the job has waited"
    assert not left_alone(failed[0], ended("failed", 8000.0, 3600.0))
    assert left_alone(*failed, ended("failed", 7500.0, 7199.0), cooldown=1.0)
    assert not left_alone(
        ended("failed", 9000.0, 8000.0), ended("failed", 8000.0, 7500.0), ended("failed", 7300.0, 7200.0)
    )
    many = [ended("failed", 1e6 + number, 86399.0) for number in range(50)]
    assert left_alone(*many)
    assert not left_alone(*(ended("failed", 1e6 + number, 86400.0) for number in range(50)))


def test_no_job_is_submitted_for_tasks_that_its_workers_would_not_run():
    state = ScalingState(waiting={ONE: 1}, unserved={ONE: "Python 3.12 wanted, groups run 3.11"})
    assert made(state) == [("none", ONE)]
    assert "Python 3.12 wanted" in reason(state)


def test_superfluous_pending_job_is_cancelled():
    assert made(ScalingState(jobs=(job("pending", 300.0),))) == [("cancel", f"{ONE} pending 300.0")]


def test_pending_job_is_kept_while_it_is_new_or_its_lane_has_changed_lately():
    assert made(ScalingState(jobs=(job("pending", 299.0),))) == []
    assert made(ScalingState(jobs=(job("pending"),), quiet={ONE: 299.0})) == []
    assert made(ScalingState(jobs=(job("pending"),), quiet={ONE: 300.0})) != []


def test_running_job_is_never_cancelled():
    assert made(ScalingState(jobs=(job("running", 1e6),))) == []


def test_youngest_pending_jobs_are_cancelled_if_the_others_are_enough_for_twice_the_tasks():
    jobs = (job("running"), job("pending", 900.0), job("pending", 800.0), job("pending", 700.0))
    assert made(ScalingState(waiting={ONE: 100}, jobs=jobs)) == [
        ("cancel", f"{ONE} pending 700.0"),
        ("cancel", f"{ONE} pending 800.0"),
    ]
    assert made(ScalingState(waiting={ONE: 151}, jobs=jobs)) == []
    assert made(ScalingState(waiting={ONE: 150}, jobs=jobs)) == [("cancel", f"{ONE} pending 700.0")]


def test_pending_job_is_kept_if_another_lane_needs_it():
    assert made(ScalingState(waiting={ONE: 1}, jobs=(job("pending", lane=GPU),))) == []


def test_min_jobs_of_the_home_lane_are_always_kept_and_permanent():
    decisions = decide(ScalingState(waiting={ONE: 250}), ScalingPolicy(max_jobs=10, min_jobs=2, home=ONE))
    assert [(each.action, each.permanent) for each in decisions] == [
        ("submit", True),
        ("submit", True),
        ("submit", False),
    ]
    assert made(ScalingState(jobs=(job("pending", 500.0), job("pending", 400.0))), min_jobs=1, home=ONE) == [
        ("cancel", f"{ONE} pending 400.0")
    ]
    assert made(ScalingState(jobs=(job("running"),)), min_jobs=1, home=ONE) == []
    assert made(ScalingState(jobs=(job("over", 70.0),)), min_jobs=1, home=ONE) == [("submit", ONE)]
    assert made(ScalingState(jobs=(job("over", 50.0),)), min_jobs=1, home=ONE) == [("none", ONE)]


# -- properties of all states

AGES = st.floats(0, 5000)
JOBS = st.lists(
    st.builds(
        job,
        state=st.sampled_from(["pending", "running", "over"]),
        age=AGES,
        lane=st.sampled_from(LANES),
        name=st.uuids().map(str),
    ),
    max_size=12,
    unique_by=lambda each: each.record.name,
).map(tuple)
STATES = st.builds(
    ScalingState,
    waiting=st.dictionaries(st.sampled_from(LANES), st.integers(0, 2000)),
    jobs=JOBS,
    other_sources=st.dictionaries(st.sampled_from(LANES), st.integers(0, 3)),
    quiet=st.dictionaries(st.sampled_from(LANES), AGES),
)
POLICIES = st.builds(
    ScalingPolicy,
    max_jobs=st.integers(2, 10),
    min_jobs=st.integers(0, 2),
    home=st.sampled_from(LANES),
    tasks_per_job=st.integers(1, 200),
    patience=AGES,
    cooldown=AGES,
)


def after(state: ScalingState, policy: ScalingPolicy) -> ScalingState:
    """Return the state after all decisions were carried out in no time."""
    decisions = decide(state, policy)
    cancelled = names(each.job for each in decisions)
    new = [job("pending", 0.0, each.lane, f"new {n}") for n, each in enumerate(decisions) if each.action == "submit"]
    kept = [each for each in state.jobs if each.record.name not in cancelled]
    return ScalingState(waiting=state.waiting, jobs=(*kept, *new), other_sources=state.other_sources, quiet=state.quiet)


@given(STATES, POLICIES)
def test_number_of_jobs_is_bounded_running_ones_are_kept_and_a_third_round_changes_nothing(
    state: ScalingState, policy: ScalingPolicy
):
    decisions = decide(state, policy)
    active = {each.record.name for each in state.jobs if each.state != "over"}
    cancelled = [each.job for each in decisions if each.job is not None]
    assert len(cancelled) == sum(each.action == "cancel" for each in decisions)
    submitted = [each for each in decisions if each.action == "submit"]
    assert all(each.state == "pending" and each.age >= policy.patience for each in cancelled)
    assert not submitted or len(active) - len(cancelled) + len(submitted) <= policy.max_jobs
    assert all(each.reason for each in decisions)
    if policy.cooldown > 0 and policy.patience > 0:
        # a new job may serve the lane of an older one too: the second round cancels that, and may submit in its place
        second = decide(after(state, policy), policy)
        superfluous = names(each.job for each in second)
        assert active >= set(superfluous), "the new jobs stay"
        assert len(superfluous) >= sum(each.action == "submit" for each in second), "the new jobs are enough"
        third = decide(after(after(state, policy), policy), policy)
        assert not [each for each in third if each.action != "none"], "the state is stable"


def test_older_job_is_cancelled_after_a_newer_job_also_serves_its_lane():
    state = ScalingState(waiting={GPU: 1, ONE: 1}, jobs=(job("pending", 300.0),))
    assert made(state) == [("submit", GPU)]
    assert made(after(state, ScalingPolicy(max_jobs=10))) == [("cancel", f"{ONE} pending 300.0")]


@given(STATES, POLICIES)
def test_every_lane_with_tasks_is_served_if_there_is_room_and_no_job_for_it_ended(
    state: ScalingState, policy: ScalingPolicy
):
    active = [each for each in after(state, policy).jobs if each.state != "over"]
    for lane, tasks in state.waiting.items():
        ended = any(each.record.lane == lane for each in state.jobs if each.state == "over")
        served = any(serves(each.record.lane, lane) for each in active) or state.other_sources.get(lane)
        assert not tasks or served or ended or len(active) >= policy.max_jobs

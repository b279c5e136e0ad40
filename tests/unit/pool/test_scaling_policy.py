"""How many batch jobs there should be: the decisions alone, without a spool or a batch system."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from spoolpool.format.names import Lane
from spoolpool.pool.scaling_policy import JobSeen, ScalingPolicy, State, decide, serves

ONE = Lane("default", 1, 1, 0, "3.11").name
TWO = Lane("default", 2, 1, 0, "3.11").name
GPU = Lane("default", 1, 1, 1, "3.11").name
LANES = (ONE, TWO, GPU)


def job(state: str, age: float = 1000.0, lane: str = ONE, name: str = "") -> JobSeen:
    return JobSeen(name=name or f"{lane} {state} {age}", lane=lane, state=state, age=age)


def made(state: State, **terms: Any) -> list[tuple[str, str]]:
    """What is decided: what is done, and for which lane or to which job."""
    return [(each.do, each.job or each.lane) for each in decide(state, ScalingPolicy(**{"max_jobs": 10, **terms}))]


def why(state: State, **terms: Any) -> str:
    [decision] = decide(state, ScalingPolicy(**{"max_jobs": 10, **terms}))
    return decision.why


def test_nothing_is_done_where_nothing_waits():
    assert made(State()) == []
    assert made(State(jobs=(job("running"), job("over")), waiting={ONE: 0})) == []


def test_a_lane_that_nobody_serves_gets_as_many_jobs_as_its_tasks_are_worth():
    assert made(State(waiting={ONE: 1})) == [("submit", ONE)]
    assert made(State(waiting={ONE: 201})) == [("submit", ONE)] * 3
    assert why(State(waiting={ONE: 5})) == "5 task(s) wait, 0 job(s) serve them"


def test_jobs_that_wait_or_run_and_groups_from_elsewhere_count():
    assert made(State(waiting={ONE: 100}, jobs=(job("pending", 10.0),))) == []
    assert made(State(waiting={ONE: 100}, jobs=(job("running"),))) == []
    assert made(State(waiting={ONE: 100}, elsewhere={ONE: 1})) == []
    assert made(State(waiting={ONE: 201}, jobs=(job("running"),), elsewhere={ONE: 1})) == [("submit", ONE)]


def test_a_job_for_more_threads_or_gpus_serves_those_who_ask_for_less_but_no_other_number_of_ranks():
    assert serves(GPU, ONE) and not serves(ONE, GPU)
    assert not serves(TWO, ONE) and not serves(ONE, TWO)
    assert not serves(Lane("other", 1, 1, 0, "3.11").name, ONE)
    assert not serves("nonsense", ONE)
    assert made(State(waiting={ONE: 1}, jobs=(job("running", lane=GPU),))) == []


def test_a_served_lane_gets_one_more_only_after_a_pause():
    young = State(waiting={ONE: 200}, jobs=(job("running", 59.0),))
    assert made(young) == [("leave", ONE)]
    assert "the next one follows after 60 s" in why(young)
    assert made(State(waiting={ONE: 200}, jobs=(job("running", 60.0),))) == [("submit", ONE)]


def test_the_number_of_jobs_is_bounded_and_lanes_without_any_come_first():
    crowd = State(waiting={ONE: 1000, TWO: 1}, jobs=(job("running"), job("running", 999.0)))
    assert made(crowd, max_jobs=3) == [("submit", TWO), ("leave", ONE)]
    assert made(crowd, max_jobs=5) == [("submit", TWO), ("submit", ONE), ("submit", ONE)]
    assert made(State(waiting={ONE: 1}, jobs=(job("running", lane=TWO),)), max_jobs=1) == [("leave", ONE)]


def test_each_job_that_ended_lately_doubles_the_pause_before_the_next_one():
    ended = [job("over", age) for age in (600.0, 300.0, 100.0)]
    assert made(State(waiting={ONE: 1}, jobs=tuple(ended[:1]))) == [("submit", ONE)]
    state = State(waiting={ONE: 1}, jobs=tuple(ended))
    assert made(state) == [("leave", ONE)]
    assert "3 job(s) for it ended within the last hour: the next one follows after 240 s" in why(state)
    assert made(state, cooldown=25.0) == [("submit", ONE)]
    assert made(State(waiting={ONE: 1}, jobs=(job("over", 3601.0), job("over", 4000.0)))) == [("submit", ONE)]
    assert made(State(waiting={TWO: 1}, jobs=tuple(ended))) == [("submit", TWO)], "of another lane they say nothing"


def test_tasks_that_workers_from_here_would_not_run_bring_no_job():
    state = State(waiting={ONE: 1}, barred={ONE: "Python 3.12 wanted, groups run 3.11"})
    assert made(state) == [("leave", ONE)]
    assert "Python 3.12 wanted" in why(state)


def test_a_job_that_waits_is_cancelled_once_nobody_needs_it():
    assert made(State(jobs=(job("pending", 300.0),))) == [("cancel", f"{ONE} pending 300.0")]


def test_not_before_it_has_waited_and_the_lane_has_been_quiet_for_long_enough():
    assert made(State(jobs=(job("pending", 299.0),))) == []
    assert made(State(jobs=(job("pending"),), quiet={ONE: 299.0})) == []
    assert made(State(jobs=(job("pending"),), quiet={ONE: 300.0})) != []


def test_a_job_that_runs_is_never_cancelled():
    assert made(State(jobs=(job("running", 1e6),))) == []


def test_surplus_goes_youngest_first_and_only_where_the_rest_would_do_for_twice_the_tasks():
    jobs = (job("running"), job("pending", 900.0), job("pending", 800.0), job("pending", 700.0))
    assert made(State(waiting={ONE: 100}, jobs=jobs)) == [
        ("cancel", f"{ONE} pending 700.0"),
        ("cancel", f"{ONE} pending 800.0"),
    ]
    assert made(State(waiting={ONE: 151}, jobs=jobs)) == []
    assert made(State(waiting={ONE: 150}, jobs=jobs)) == [("cancel", f"{ONE} pending 700.0")]


def test_a_job_that_another_lane_needs_stays():
    assert made(State(waiting={ONE: 1}, jobs=(job("pending", lane=GPU),))) == []


def test_there_are_always_as_many_jobs_of_the_home_lane_as_asked_for_and_those_stay():
    decisions = decide(State(waiting={ONE: 250}), ScalingPolicy(max_jobs=10, min_jobs=2, home=ONE))
    assert [(each.do, each.stays) for each in decisions] == [("submit", True), ("submit", True), ("submit", False)]
    assert made(State(jobs=(job("pending", 500.0), job("pending", 400.0))), min_jobs=1, home=ONE) == [
        ("cancel", f"{ONE} pending 400.0")
    ]
    assert made(State(jobs=(job("running"),)), min_jobs=1, home=ONE) == []
    assert made(State(jobs=(job("over", 70.0),)), min_jobs=1, home=ONE) == [("submit", ONE)]
    assert made(State(jobs=(job("over", 50.0),)), min_jobs=1, home=ONE) == [("leave", ONE)]


# -- what holds of any state

AGES = st.floats(0, 5000)
JOBS = st.lists(
    st.builds(
        JobSeen,
        name=st.uuids().map(str),
        lane=st.sampled_from(LANES),
        state=st.sampled_from(["pending", "running", "over"]),
        age=AGES,
    ),
    max_size=12,
    unique_by=lambda each: each.name,
).map(tuple)
STATES = st.builds(
    State,
    waiting=st.dictionaries(st.sampled_from(LANES), st.integers(0, 2000)),
    jobs=JOBS,
    elsewhere=st.dictionaries(st.sampled_from(LANES), st.integers(0, 3)),
    quiet=st.dictionaries(st.sampled_from(LANES), AGES),
)
TERMS = st.builds(
    ScalingPolicy,
    max_jobs=st.integers(2, 10),
    min_jobs=st.integers(0, 2),
    home=st.sampled_from(LANES),
    tasks_per_job=st.integers(1, 200),
    patience=AGES,
    cooldown=AGES,
)


def after(state: State, terms: ScalingPolicy) -> State:
    """The state once everything was done that is decided, in no time."""
    decisions = decide(state, terms)
    cancelled = {each.job for each in decisions if each.do == "cancel"}
    new = [job("pending", 0.0, each.lane, f"new {n}") for n, each in enumerate(decisions) if each.do == "submit"]
    kept = [each for each in state.jobs if each.name not in cancelled]
    return State(waiting=state.waiting, jobs=(*kept, *new), elsewhere=state.elsewhere, quiet=state.quiet)


@given(STATES, TERMS)
def test_jobs_stay_within_the_bound_running_ones_are_kept_and_a_third_look_changes_nothing(
    state: State, terms: ScalingPolicy
):
    decisions = decide(state, terms)
    there = {each.name: each for each in state.jobs if each.state != "over"}
    cancelled = [each.job for each in decisions if each.do == "cancel"]
    submitted = [each for each in decisions if each.do == "submit"]
    assert all(there[name].state == "pending" and there[name].age >= terms.patience for name in cancelled)
    assert not submitted or len(there) - len(cancelled) + len(submitted) <= terms.max_jobs
    assert all(each.why for each in decisions)
    if terms.cooldown > 0 and terms.patience > 0:
        # a new job may serve the lane of an older one too: the second look cancels that, and may submit in its place
        second = decide(after(state, terms), terms)
        superfluous = [each.job for each in second if each.do == "cancel"]
        assert there.keys() >= set(superfluous), "the new jobs stay"
        assert len(superfluous) >= sum(each.do == "submit" for each in second), "the new jobs are enough"
        third = decide(after(after(state, terms), terms), terms)
        assert not [each for each in third if each.do != "leave"], "the state is stable"


def test_an_older_job_is_cancelled_after_one_was_submitted_that_serves_its_lane_too():
    state = State(waiting={GPU: 1, ONE: 1}, jobs=(job("pending", 300.0),))
    assert made(state) == [("submit", GPU)]
    assert made(after(state, ScalingPolicy(max_jobs=10))) == [("cancel", f"{ONE} pending 300.0")]


@given(STATES, TERMS)
def test_no_lane_is_left_without_a_job_while_there_is_room_and_no_job_for_it_ended(state: State, terms: ScalingPolicy):
    then = after(state, terms)
    there = [each for each in then.jobs if each.state != "over"]
    for lane, tasks in state.waiting.items():
        ended = any(each.lane == lane for each in state.jobs if each.state == "over")
        served = any(serves(each.lane, lane) for each in there) or state.elsewhere.get(lane)
        assert not tasks or served or ended or len(there) >= terms.max_jobs

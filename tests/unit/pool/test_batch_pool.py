"""An executor gives up after failed jobs, and tells their reasons; other ends of jobs are no failures."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pytest

from spoolpool import Sbatch, Spool
from spoolpool.format.names import Lane
from spoolpool.pool import batch_jobs, batch_pool, job_ends
from spoolpool.pool.batch_jobs import JobRecord, SpoolJob
from spoolpool.pool.batch_pool import BatchPool
from spoolpool.pool.job_ends import JobEnd
from spoolpool.protocol.worker_registration import Registration
from spoolpool.protocol.workers import WorkerInfo
from tests.support.fake_worker import Clock, unknown_process

HOME = Lane("default", 1, 1, 0, "3.11")


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[SpoolJob]:
    """Jobs of the batch system, to be changed by the test; it knows no ends but theirs."""
    jobs: list[SpoolJob] = []
    monkeypatch.setattr(batch_jobs, "find_jobs", lambda spool: list(jobs))
    monkeypatch.setattr(batch_jobs, "_ask_for_end", lambda record: None)
    return jobs


@pytest.fixture
def pool(spool: Spool, jobs: list[SpoolJob], monkeypatch: pytest.MonkeyPatch) -> BatchPool:
    pool = BatchPool(spool, "session", Sbatch(min_jobs=0), home=HOME, groups=None, memory=0)
    monkeypatch.setattr(pool, "_heartbeat", mock.Mock())
    monkeypatch.setattr(pool, "_scale", lambda lanes: None)
    return pool


@pytest.fixture
def step(pool: BatchPool, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let the pool look at its jobs."""
    clock = Clock.installed(monkeypatch)
    monkeypatch.setattr(batch_pool, "time", clock)
    pool._due = 0.0

    def step() -> None:
        clock.sleep(100)
        pool.step(set())

    return step


def over(name: str, kind: str = "", why: str = "", *output: str) -> SpoolJob:
    record = JobRecord(name=name, system="slurm", cluster="c", user="u", lane=HOME.name, session="session")
    end = JobEnd(name=name, kind=kind, why=why, output=output) if kind else None  # type: ignore[arg-type]
    return SpoolJob(record=record, age=1.0, state="over", end=end)


def test_three_failed_jobs_break_the_executor_with_the_recorded_reason(
    pool: BatchPool, jobs: list[SpoolJob], step: Callable[[], None]
) -> None:
    jobs += [over(f"job-{number}", "failed", "it cannot start: (BadConstraints)") for number in range(2)]
    step()
    assert not pool.broken
    jobs.append(over("job-2", "failed", "exit code 3", "loading", "no such module"))
    step()
    assert pool.broken == (
        "3 batch jobs in a row ended like this: Batch job job-2 failed: exit code 3; its output ends with: "
        "loading\nno such module."
    )


def test_job_that_was_cancelled_since_it_cannot_start_is_explained_so(
    pool: BatchPool, jobs: list[SpoolJob], step: Callable[[], None]
) -> None:
    jobs += [over(f"job-{number}", "failed", "it cannot start: (BadConstraints)") for number in range(3)]
    step()
    assert "it cannot start: (BadConstraints)" in pool.broken
    assert "printed nothing" not in pool.broken


@pytest.mark.parametrize("kind", ["cancelled", "lost"])
def test_jobs_that_were_cancelled_or_lost_break_the_executor_only_if_that_never_ends(
    pool: BatchPool, jobs: list[SpoolJob], step: Callable[[], None], kind: str
) -> None:
    jobs += [over(f"job-{number}", kind, "NODE_FAIL") for number in range(50)]  # by one command, or one maintenance
    for _ in range(20):
        step()
    assert not pool.broken
    for number in range(50, 50 + batch_pool._LOOKS_WITHOUT_GROUP):
        assert not pool.broken
        jobs.append(over(f"job-{number}", kind, "NODE_FAIL"))
        step()
        if pool.broken:
            break
    assert "again and again" in pool.broken
    assert "NODE_FAIL" in pool.broken


def test_job_with_a_group_ends_the_count(
    pool: BatchPool, spool: Spool, jobs: list[SpoolJob], step: Callable[[], None]
) -> None:
    for round_ in range(3):
        for number in range(2):
            jobs.append(over(f"job-{round_}-{number}", "failed", "exit code 3"))
            step()
        jobs.append(over(f"good-{round_}", "lost", "PREEMPTED"))
        info = WorkerInfo(
            worker=f"0123456789abcde{round_}", process=unknown_process(), user="tester", batch=f"good-{round_}"
        )
        Registration(spool, info)
        step()
    assert not pool.broken


def test_job_counts_once_its_end_is_known(
    pool: BatchPool, spool: Spool, jobs: list[SpoolJob], step: Callable[[], None]
) -> None:
    jobs += [over(f"job-{number}") for number in range(3)]
    spool.make_directories(spool.layout.jobs)
    step()
    assert not pool.broken, "their submission may be in progress"
    for job in jobs:
        with open(job_ends.output_path(spool, job.record.name), "w") as output:
            output.write("no such module\n")
    step()
    assert "3 batch jobs in a row" in pool.broken
    assert "no such module" in pool.broken

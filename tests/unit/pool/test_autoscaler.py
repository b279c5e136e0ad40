"""The autoscaler starts a job for every task that can run, where no worker lives that would make it ready."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from spoolpool import Sbatch, Spool
from spoolpool.format.names import Lane, new_worker_id, parse_lane
from spoolpool.pool import autoscaler, batch_jobs, batch_pool
from spoolpool.pool.autoscaler import Autoscaler
from spoolpool.pool.batch_pool import BatchPool
from spoolpool.pool.batch_system import Job
from spoolpool.pool.scaling_policy import ScalingPolicy
from spoolpool.protocol import delayed_tasks
from spoolpool.protocol.workers import remove_worker
from tests.support import tasks
from tests.support.fake_worker import LANE, Clock, Stage, announce, unknown_process
from tests.support.task_files import put


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock.installed(monkeypatch)
    for module in (delayed_tasks, autoscaler):
        monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def stage(tmp_path: Path, clock: Clock) -> Iterator[Stage]:
    stage = Stage(tmp_path / "stage", clock)
    yield stage
    stage.close()


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lanes of the jobs that were submitted to a batch system without jobs."""
    lanes: list[str] = []

    def submit(spool: Spool, job: Job, *, lane: str = "", session: str = "") -> tuple[None, str]:
        lanes.append(lane)
        return None, str(len(lanes))

    monkeypatch.setattr(batch_jobs, "find_jobs", lambda spool: [])
    monkeypatch.setattr(batch_jobs, "submit", submit)
    return lanes


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Clock that dates the files, to be moved by the test."""
    now = [time.time()]
    monkeypatch.setattr(Spool, "server_time", lambda self: now[0])
    return now


def make_scaler(spool: Spool) -> Autoscaler:
    return Autoscaler(spool, Job(backend=Sbatch(), spool=spool.path), ScalingPolicy(max_jobs=3))


def places(stage: Stage) -> list[str]:
    return sorted(path.split("/")[0] for paths in stage.places().values() for path in paths)


def claim_by(stage: Stage, worker: str) -> None:
    """Claim the only task of a stage in the name of a worker."""
    [(path, task_file)] = stage.seen().ready.items()
    os.rename(f"{stage.spool.path}/{path}", stage.spool.layout.claimed_task(task_file.claimed_by(worker)))


def test_a_task_is_released_and_gets_a_job_once_it_may_start(
    stage: Stage, clock: Clock, submitted: list[str], server: list[float]
) -> None:
    stage.submit(not_before=100.0)
    scaler = make_scaler(stage.spool)
    assert scaler.round() == []
    server[0] += 50
    clock.sleep(50)
    scaler.round()
    assert (submitted, places(stage)) == ([], ["waiting"])
    server[0] += 50
    clock.sleep(50)
    messages = scaler.round()
    assert (submitted, places(stage)) == ([LANE], ["ready"])
    assert "1 delayed task(s) were made ready." in messages


@pytest.mark.parametrize("seconds_before", [0.0, 9.9])
def test_a_task_that_raised_gets_a_job_after_its_delay_even_in_a_single_round(
    stage: Stage, clock: Clock, submitted: list[str], server: list[float], seconds_before: float
) -> None:
    header = stage.submit(None, fail, retries=1, retry_delay=10.0)
    stage.work(tasks=1)
    assert places(stage) == ["waiting"]
    server[0] = time.time() + seconds_before
    make_scaler(stage.spool).round()
    assert (submitted, places(stage)) == ([], ["waiting"])
    server[0] = time.time() + 10.1
    make_scaler(stage.spool).round()  # by another process, as from cron
    assert (submitted, places(stage)) == ([header.lane], ["ready"])


def fail(path: str) -> None:
    raise ValueError("not yet")


def test_a_claim_of_a_dead_worker_is_released_and_gets_a_job(stage: Stage, clock: Clock, submitted: list[str]) -> None:
    stage.submit()
    claim_by(stage, new_worker_id())
    scaler = make_scaler(stage.spool)
    for _ in range(20):
        scaler.round()
        clock.sleep(stage.spool.config.lease / 4)
    assert (submitted[:1], places(stage)) == ([LANE], ["ready"])


def test_a_single_round_awaits_the_recovery_of_silent_workers(
    stage: Stage, clock: Clock, submitted: list[str], server: list[float]
) -> None:
    stage.submit()
    claim_by(stage, announce(stage.spool, unknown_process()))
    stage.submit()
    announce(stage.spool, unknown_process())  # idle, and dead as well: it serves no lane
    server[0] += 2 * stage.spool.config.lease
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        clock.sleep(seconds)
        return False

    scaler = make_scaler(stage.spool)
    messages = [*scaler.await_recovery(wait), *scaler.round()]
    assert (submitted, places(stage)) == ([LANE], ["ready", "ready"])
    assert any(message.startswith("Recovered ") for message in messages)
    assert waits


def test_a_single_round_does_not_wait_for_workers_with_a_heartbeat(stage: Stage, server: list[float]) -> None:
    stage.submit()
    claim_by(stage, announce(stage.spool, unknown_process()))

    def wait(seconds: float) -> bool:
        pytest.fail("waited for a worker that lives")

    assert list(make_scaler(stage.spool).await_recovery(wait)) == []
    assert places(stage) == ["claimed"]


def test_a_task_whose_dependencies_have_ended_gets_a_job(stage: Stage, clock: Clock, submitted: list[str]) -> None:
    inbox = stage.inbox()
    first = stage.submit(inbox)
    stage.submit(inbox, tasks.mark, inbox.given[first.task])
    scaler = make_scaler(stage.spool)
    scaler.round()
    assert (submitted, places(stage)) == ([LANE], ["ready", "waiting"])
    stage.work(tasks=1)
    put_back(stage)
    submitted.clear()
    scaler.round()
    assert (submitted, places(stage)) == ([LANE], ["ready", "results"])


def put_back(stage: Stage) -> None:
    """Undo the release of the dependent task: its worker died before that."""
    for path, task_file in stage.seen().ready.items():
        if path.startswith("ready/"):
            os.rename(f"{stage.spool.path}/{path}", f"{stage.spool.layout.waiting}/{task_file.name}")


def test_an_executor_with_batch_jobs_releases_its_delayed_tasks(
    stage: Stage, clock: Clock, submitted: list[str], server: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_pool, "time", clock)
    pool = BatchPool(
        stage.spool, "session", Sbatch(min_jobs=0), home=Lane("default", 1, 1, 0, "3.11"), groups=None, memory=0
    )
    stage.submit(not_before=100.0)
    pool.step({LANE})
    assert places(stage) == ["waiting"]
    monkeypatch.setattr(pool, "_heartbeat", mock.Mock())
    pool.step({LANE})
    server[0] += 100
    clock.sleep(100)
    pool.step({LANE})
    assert (submitted, places(stage)) == ([LANE], ["ready"])


def test_preview_tells_the_decisions_and_changes_nothing(
    stage: Stage, submitted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_jobs, "find_jobs", lambda spool, clean=True: [])
    scaler = make_scaler(stage.spool)
    assert scaler.preview() == ["Nothing would be submitted or cancelled."]
    stage.submit()
    stage.submit(not_before=100.0)
    before = places(stage), os.listdir(stage.spool.layout.journal)
    messages = scaler.preview()
    assert f"A job would be submitted for {LANE}: 1 task(s) wait, 0 job(s) serve them." in messages
    assert any("Not counted are 1 task(s) that are held back" in message for message in messages)
    assert (submitted, before) == ([], (places(stage), os.listdir(stage.spool.layout.journal)))
    assert not os.path.exists(stage.spool.layout.jobs)


def test_lanes_that_no_worker_here_would_serve_cause_few_messages(stage: Stage, submitted: list[str]) -> None:
    shape = parse_lane(LANE)
    assert shape is not None
    for number in range(100):
        put(stage.spool, "waiting", lane=shape._replace(tags=(f"tag{number}",)).name)
    scaler = make_scaler(stage.spool)
    messages = scaler.round()
    assert (submitted, len(messages)) == ([], 21)
    assert messages[-1] == "Nothing is submitted for 80 more lanes."
    assert scaler.round() == []


def test_number_of_lanes_that_a_round_considers_is_bounded(
    stage: Stage, submitted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autoscaler, "_MOST_LANES", 10)
    shape = parse_lane(LANE)
    assert shape is not None
    for number in range(30):
        put(stage.spool, "waiting", lane=shape._replace(ranks=number + 2).name)
    for _ in range(2):
        put(stage.spool, "waiting")
    make_scaler(stage.spool).round()
    assert LANE in submitted


def test_workers_that_are_gone_are_forgotten(stage: Stage, submitted: list[str]) -> None:
    scaler = make_scaler(stage.spool)
    for _ in range(20):
        worker = announce(stage.spool, unknown_process())
        scaler.round()
        remove_worker(stage.spool, worker)
    assert len(scaler._liveness._seen) <= 1


@pytest.mark.parametrize("content", [b'{"a":' * 100_000, b'{"process": NaN}', b"", bytes(1 << 17)])
def test_hostile_entries_of_workers_hold_up_no_job(stage: Stage, submitted: list[str], content: bytes) -> None:
    worker = announce(stage.spool, unknown_process())
    Path(stage.spool.layout.worker(worker), "info.json").write_bytes(content)
    stage.submit()
    make_scaler(stage.spool).round()
    assert submitted == [LANE]


def test_no_job_is_submitted_for_a_task_that_needs_more_time_than_a_job_has(
    stage: Stage, clock: Clock, submitted: list[str], server: list[float]
) -> None:
    stage.submit(time_limit=3600)
    scaler = make_scaler(stage.spool)
    [message] = scaler.round()
    assert "1 task(s)" in message and "needs 3600 s, the groups of a job have 3515 s for tasks" in message
    for _ in range(3):
        clock.now += 100.0
        assert scaler.round() == []
    assert submitted == []
    stage.submit(time_limit=3500)  # it fits
    assert len(scaler.round()) == 1
    assert submitted == [LANE]


def test_job_is_not_submitted_again_for_a_task_that_its_walltime_ended(
    stage: Stage, clock: Clock, submitted: list[str], server: list[float]
) -> None:
    stage.submit()
    scaler = make_scaler(stage.spool)
    scaler.round()
    assert submitted == [LANE]
    [(path, task_file)] = stage.seen().ready.items()
    given_back = task_file.released().needing(3576, releases=1)
    os.rename(f"{stage.spool.path}/{path}", f"{stage.spool.path}/{os.path.dirname(path)}/{given_back.name}")
    [message] = scaler.round()
    assert "needs 3576 s" in message
    assert submitted == [LANE]

"""Failure detector: the checks are shared among observers, and each death is found."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from spoolpool.format.names import TaskFile, new_task_id, new_worker_id
from spoolpool.protocol import workers
from spoolpool.protocol.failure_detector import (
    MAX_OBSERVERS,
    MIN_CHECKS,
    MIN_RATE,
    MIN_SAMPLE,
    FailureDetector,
    sample_size,
    sampling_rate,
)
from spoolpool.protocol.recovery import Recovery
from spoolpool.protocol.spool import Spool
from tests.support.fake_worker import Clock, Stage, announce, dead_process, info_of, unknown_process


class Watched:
    """Heartbeats of many workers, without files: they change at each check until their worker dies."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, clock: Clock, count: int) -> None:
        self.workers = {new_worker_id() for _ in range(count)}
        self.dead: dict[str, float] = {}
        self.looks: Counter[str] = Counter()
        self._clock = clock
        infos = {worker: info_of(unknown_process(), worker) for worker in self.workers}
        monkeypatch.setattr(workers, "read_worker", lambda _spool, worker: infos.get(worker))
        monkeypatch.setattr(workers.files, "mtime_ns", self._stamp)

    def _stamp(self, path: str) -> int:
        worker = path.split("/")[-2]
        self.looks[worker] += 1
        return int(self.dead.get(worker, self._clock.now) * 1e9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock.installed(monkeypatch)


@pytest.fixture
def stage(tmp_path: Path, clock: Clock) -> Stage:
    return Stage(tmp_path / "stage", clock)


def rounds(observers: list[FailureDetector], workers: Any, claims: Any = None) -> set[str]:
    """Let each observer make a round, if it is due; return the dead workers."""
    found: set[str] = set()
    for observer in observers:
        if observer.due():
            found.update(observer.check(workers, claims or {}))
    return found


def test_few_workers_are_all_checked_by_each_observer() -> None:
    for count in range(1, MIN_SAMPLE + 1):
        for observers in range(1, count + 1):
            assert sampling_rate(observers) == 1
            assert sample_size(count, observers) == count


@pytest.mark.parametrize("workers", [17, 100, 1000, 10_000, 100_000])
@pytest.mark.parametrize("busy", [0.0, 0.9, 0.999])
def test_total_number_of_checks_grows_linearly_with_the_workers(workers: int, busy: float) -> None:
    observers = max(1, round(workers * (1 - busy)))
    together = observers * sampling_rate(observers) * sample_size(workers, observers)
    assert together >= min(MIN_CHECKS, observers) * workers
    few, many = MIN_SAMPLE * MAX_OBSERVERS, MIN_SAMPLE * MIN_RATE * observers
    assert together <= max(MIN_CHECKS * workers + observers, few, many)


def test_observers_are_counted_by_claims_that_change(
    spool: Spool, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    random.seed(400)  # each round is a sample, and so is the choice of rounds
    watched = Watched(monkeypatch, clock, 400)
    claims = {worker: [TaskFile(new_task_id(), 1, 1, worker)] for worker in list(watched.workers)[:390]}
    observer = FailureDetector(spool)
    for _ in range(3):  # 390 run long tasks: ten observers are left
        clock.sleep(spool.config.lease / 4)
        before = watched.looks.total()
        assert observer.due()
        observer.check(watched.workers, claims)
        assert watched.looks.total() - before >= sample_size(400, 10)
    for _ in range(20):  # short tasks: all of them make rounds
        clock.sleep(spool.config.lease / 4)
        claims = {worker: [TaskFile(new_task_id(), 1, 1, worker)] for worker in claims}
        if observer.due():
            before = watched.looks.total()
            observer.check(watched.workers, claims)
    assert watched.looks.total() - before <= 3 * MIN_SAMPLE


@pytest.mark.parametrize("count", [8, 64, 600])
def test_observers_together_find_the_dead_within_two_leases(
    spool: Spool, clock: Clock, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    random.seed(count)
    watched = Watched(monkeypatch, clock, count)
    observers = [FailureDetector(spool) for _ in watched.workers]
    quarter = spool.config.lease / 4
    for _ in range(4):
        assert not rounds(observers, watched.workers)
        clock.sleep(quarter)
    watched.looks.clear()
    for _ in range(8):
        assert not rounds(observers, watched.workers)
        clock.sleep(quarter)
    assert watched.looks.total() / 8 / count <= max(
        2 * MIN_SAMPLE, 6 * MIN_CHECKS
    )  # checks per worker in a quarter of a lease
    doomed = random.sample(sorted(watched.workers), count // 8)
    watched.dead = dict.fromkeys(doomed, clock.now)
    left = set(doomed)
    for turn in range(9):
        found = rounds(observers, watched.workers)
        assert found <= set(doomed)  # no live worker
        assert turn >= 4 or not found  # and none before a lease of silence
        left -= found
        clock.sleep(quarter)
    assert not left


def test_last_observer_of_many_checks_all_workers(spool: Spool, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    random.seed(1)
    watched = Watched(monkeypatch, clock, 600)
    observer = FailureDetector(spool)
    rounds([observer], watched.workers)
    survivors = set(sorted(watched.workers)[:10])
    [dead] = set(sorted(survivors)[:1])
    watched.dead = {dead: clock.now}
    found: set[str] = set()
    for _ in range(8 * 8):  # it finds it in the next round that it takes: after two leases, on average
        clock.sleep(spool.config.lease / 4)
        found |= rounds([observer], survivors)
    assert found == {dead}


def test_observer_of_all_workers_checks_all_in_every_round(
    spool: Spool, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(monkeypatch, clock, 600)
    observer = FailureDetector(spool, all_workers=True)
    for turn in range(1, 4):
        assert observer.due()
        observer.check(watched.workers, {})
        assert set(watched.looks.values()) == {turn}


def test_supervisor_of_many_groups_finds_a_dead_one_at_once(stage: Stage) -> None:
    for _ in range(3 * MIN_SAMPLE):
        announce(stage.spool, unknown_process())
    header = stage.submit()
    task_file = TaskFile(header.task, 1, 1).claimed_by(announce(stage.spool, dead_process()))
    source = f"{stage.spool.layout.bucket(header.lane, header.bucket)}/{header.task}.000001.01"
    os.rename(source, stage.spool.layout.claimed_task(task_file))
    assert len(Recovery(stage.spool, all_workers=True).round()) == 1

"""Limit of the waiting tasks of one user: submit raises or waits, and seldom counts."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from spoolpool import Executor, Submission
from spoolpool.errors import BadRequest, TooManyWaiting
from spoolpool.format.names import Lane, TaskFile
from spoolpool.protocol import submit
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.submit import WaitingLimit
from spoolpool.system import files
from tests.conftest import Workers
from tests.support.fake_worker import Clock
from tests.support.waiting import LIMIT, wait_until


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool.create(tmp_path / "spool", durability="none", max_waiting=10)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(submit, "time", clock)
    return clock


def fill(spool: Spool, count: int, *, user: int | None = None, bucket: int = 0) -> list[Path]:
    """Create files with the names of waiting tasks; return their paths."""
    lane = Lane("default", 1, 1, 0, "3.11", (), user).name
    place = Path(spool.layout.bucket(lane, f"499-{bucket:014x}-{0:08x}"))
    place.mkdir(parents=True, exist_ok=True)
    begin = len(list(place.iterdir()))
    made = [place / TaskFile(f"499-{number:014x}-{bucket:010x}", 1, 1).name for number in range(begin, begin + count)]
    for path in made:
        path.touch()
    return made


def take(limited: WaitingLimit) -> int:
    """Take places until none is free; return how many there were."""
    count = 0
    try:
        while True:
            limited.take()
            count += 1
    except TooManyWaiting:
        return count


def test_submit_over_the_limit_raises_and_leaves_nothing(spool: Spool) -> None:
    with Executor(spool=spool.path) as executor:
        futures = [executor.submit(pow, i, 2) for i in range(10)]
        with pytest.raises(TooManyWaiting, match=rf"{spool.path}.*10 tasks.*wait_for_room"):
            executor.submit(pow, 2, 2)
        assert len(executor) == 10 and not list(Path(spool.layout.tmp).iterdir())
        assert all(future.cancel() for future in futures)
        wait_until(lambda: _submitted(executor), "there is room again")


def _submitted(executor: Executor) -> bool:
    try:
        return executor.submit(pow, 2, 2).cancel()
    except TooManyWaiting:
        return False


def test_submit_waits_for_room_until_tasks_have_begun(spool: Spool, worker: Workers) -> None:
    with (
        Executor(spool=spool.path, submission=Submission(wait_for_room=True)) as executor,
        ThreadPoolExecutor(1) as thread,
    ):
        early = [executor.submit(pow, i, 2) for i in range(10)]
        late = thread.submit(lambda: list(executor.map(pow, range(30), [2] * 30)))
        wait_until(lambda: len(executor) == 10, "the limit is reached")
        worker(spool)
        assert late.result(LIMIT) == [i**2 for i in range(30)]
        assert [future.result(LIMIT) for future in early] == [i**2 for i in range(10)]


def test_shutdown_ends_the_wait_for_room(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = Executor(spool=spool.path, submission=Submission(wait_for_room=True))
    waiting = [executor.submit(pow, 2, 2) for _ in range(10)]
    waits = threading.Event()
    count = WaitingLimit.count
    monkeypatch.setattr(WaitingLimit, "count", lambda self: waits.set() or count(self))
    with ThreadPoolExecutor(1) as thread:
        late = thread.submit(executor.submit, pow, 2, 2)
        assert waits.wait(LIMIT)
        executor.shutdown(wait=False)
        assert isinstance(late.exception(LIMIT), RuntimeError)
    assert all(future.cancel() for future in waiting)


def record_listings(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets the paths that are listed in a spool; threads of earlier tests may list others."""
    listed: list[str] = []
    names = files.list_names

    def record(path: str) -> list[str]:
        if path.startswith(spool.path):
            listed.append(path)
        return names(path)

    monkeypatch.setattr(files, "list_names", record)
    return listed


def test_tasks_are_not_counted_for_each_submit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    spool = Spool.create(tmp_path / "large", durability="none", max_waiting=10_000)
    listed = record_listings(spool, monkeypatch)
    limited = WaitingLimit(spool, 10_000)
    for _ in range(5000):
        limited.take()
    assert len(listed) == 1
    limited.take()
    assert len(listed) == 2


def test_count_without_room_is_used_for_a_while(spool: Spool, clock: Clock) -> None:
    limited = WaitingLimit(spool, 10)
    waiting = fill(spool, 8)
    assert take(limited) == 2
    fill(spool, 2)
    clock.sleep(0.1)
    assert take(limited) == 0
    waiting[0].unlink()
    assert take(limited) == 0
    clock.sleep(0.1)
    assert take(limited) == 1


def test_count_with_room_expires(spool: Spool, clock: Clock) -> None:
    limited = WaitingLimit(spool, 10)
    limited.take()
    fill(spool, 10)  # another submitter of the same user
    clock.sleep(61.0)
    assert take(limited) == 0


def test_tasks_of_other_users_do_not_count(spool: Spool) -> None:
    import os

    fill(spool, 50, user=os.geteuid() + 1)
    assert WaitingLimit(spool, 10).count() == 0
    fill(spool, 3, user=os.geteuid())
    assert WaitingLimit(spool, 10).count() == 3


def test_counting_ends_at_the_limit(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    for bucket in range(20):
        fill(spool, 5, bucket=bucket)
    listed = record_listings(spool, monkeypatch)
    assert WaitingLimit(spool, 10).count() == 10
    assert len(listed) == 4


def test_spool_without_a_limit_counts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WaitingLimit, "count", lambda _: pytest.fail("counted"))
    with Executor(spool=Spool.create(tmp_path / "free").path) as executor:
        assert executor.submit(pow, 2, 2).cancel()


def test_limit_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="at least 1"):
        Spool.create(tmp_path / "spool", max_waiting=0)


def test_dropbox_has_no_limit_since_its_submitters_cannot_count(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="dropbox cannot limit"):
        Spool.create(tmp_path / "spool", mode="dropbox", group="root", max_waiting=10)
    assert not (tmp_path / "spool").exists()

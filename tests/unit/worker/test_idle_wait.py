"""Idle workers: the reaction to new tasks, in reserve and otherwise."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from spoolpool.system.backoff import Backoff
from spoolpool.system.watch import DirectoryWatcher
from spoolpool.worker import idle_wait
from spoolpool.worker.idle_wait import IdleWait
from tests.support.waiting import LIMIT

GROUPS = 4


class _Place:
    """Two watched directories, of which one is a bucket, and the wait of a worker."""

    def __init__(self, path: Path) -> None:
        self.bucket, self.entry = path / "bucket", path / "entry"
        self.bucket.mkdir()
        self.entry.mkdir()
        self.watch = DirectoryWatcher()
        self.idle = IdleWait(self.watch, tells=True)
        self.idle.watch({str(self.bucket), str(self.entry)}, {str(self.bucket)})
        self.idle.event_pending = False

    def put(self, name: str) -> Path:
        path = self.bucket / name
        path.touch()
        return path

    def wait(self, left: dict[str, set[str]] | None = None, workers: int = GROUPS) -> None:
        self.idle.wait(None, workers, left or {})

    def lose(self, workers: int = GROUPS) -> None:
        """Be told of a task that another worker claims."""
        self.put("lost").unlink()
        self.wait(workers=workers)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Place]:
    # a wait that should end by an event ends by nothing else within the limit of a test
    monkeypatch.setattr(idle_wait, "_FIRST_TOLD", 2 * LIMIT)
    monkeypatch.setattr(idle_wait, "_LAST_LOOK", 2 * LIMIT)
    place = _Place(tmp_path)
    yield place
    place.watch.close()


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Directories that were listed."""
    found: list[str] = []
    real = idle_wait.files.list_names

    def list_names(directory: str) -> list[str]:
        found.append(directory)
        return real(directory)

    monkeypatch.setattr(idle_wait.files, "list_names", list_names)
    return found


def test_worker_that_lost_no_task_reacts_at_once(place: _Place, looks: list[str]) -> None:
    place.put("task")
    place.wait()
    assert not place.idle.in_reserve
    assert not looks
    assert not place.idle.has_event()


def test_worker_that_lost_a_task_leaves_the_next_ones_to_the_others(place: _Place, looks: list[str]) -> None:
    place.lose()

    def claim_all(directory: str) -> list[str]:
        looks.append(directory)
        for path in list(place.bucket.iterdir()):  # the others claim it during the look
            path.unlink()
        if len(looks) == 3:
            place.watch.wake()
        else:
            place.put(f"task {len(looks)}")
        return []

    idle_wait.files.list_names = claim_all  # type: ignore[assignment]  # restored by the fixture
    place.put("task 0")
    place.wait()
    assert looks == [str(place.bucket)] * 3
    assert place.idle.in_reserve
    assert place.idle.has_event()


@pytest.mark.parametrize("cores_are_busy", [False, True])
def test_task_that_the_others_do_not_claim_ends_the_wait_in_reserve(
    place: _Place, looks: list[str], monkeypatch: pytest.MonkeyPatch, cores_are_busy: bool
) -> None:
    """The other worker is stopped, has died, or may not run the task."""
    # as far as the worker can see: every sleep, or none, takes far too long
    monkeypatch.setattr(idle_wait, "_SHORT", -LIMIT if cores_are_busy else LIMIT)
    place.lose()
    place.put("task")
    place.wait()
    assert len(looks) == (idle_wait._LATE if cores_are_busy else 1)


def test_task_among_many_that_the_others_claim_ends_the_wait_in_reserve(place: _Place, looks: list[str]) -> None:
    """A task that only this worker can run does not wait because the others are busy with short ones."""
    place.lose()
    place.put("task")
    number = 0
    real = idle_wait.files.list_names

    def list_names(directory: str) -> list[str]:
        nonlocal number
        for name in [each for each in os.listdir(directory) if each != "task"]:
            os.unlink(f"{directory}/{name}")
        listed = real(directory)
        number += 1
        for each in range(100):
            place.put(f"short {number} {each}")
        return listed

    for each in range(100):
        place.put(f"short {number} {each}")
    idle_wait.files.list_names = list_names  # type: ignore[assignment]  # restored by the fixture
    place.wait()
    assert (place.bucket / "task").exists()
    assert 1 <= len(looks) <= idle_wait._LATE


def test_tasks_left_to_others_are_looked_for_once(
    place: _Place, looks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idle_wait, "_SHORT", LIMIT)  # no sleep takes too long
    left = {str(place.bucket): {"task"}}
    place.put("task")
    place.watch.clear()
    place.wait(left)
    assert looks == [str(place.bucket)]
    threading.Timer(0.01, place.watch.wake).start()
    place.wait(left)
    assert looks == [str(place.bucket)]


@pytest.mark.parametrize("in_reserve", [False, True])
def test_other_changes_end_the_wait_and_are_told(place: _Place, in_reserve: bool) -> None:
    if in_reserve:
        place.lose()
    (place.entry / "stop").touch()
    place.wait()
    assert place.idle.has_event()


@pytest.mark.parametrize("change", ["signal", "stop", "bucket"])
def test_changes_while_tasks_are_left_to_others_end_the_wait(
    place: _Place, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """The change comes with the last task that the others claim, and no further event follows."""
    place.lose()
    task = place.put("task")
    wait = DirectoryWatcher.wait

    def wait_no_more(watcher: DirectoryWatcher, seconds: float) -> bool:
        assert not seconds, "the change has ended the wait"
        return wait(watcher, seconds)

    def sleep(_backoff: Backoff) -> float:
        monkeypatch.setattr(DirectoryWatcher, "wait", wait_no_more)
        task.unlink()
        if change == "signal":
            place.watch.wake()
        else:
            (place.entry / change).touch()
        return 0.0

    monkeypatch.setattr(Backoff, "sleep", sleep)
    place.wait()
    assert place.idle.has_event()


def test_tasks_without_a_pause_do_not_keep_a_worker_in_reserve_from_its_duties(place: _Place, looks: list[str]) -> None:
    place.lose()
    number = itertools.count()
    place.put(f"task {next(number)}")

    def claim_all(directory: str) -> list[str]:
        looks.append(directory)
        assert len(looks) < 1000, "the wait has an end"
        for path in list(place.bucket.iterdir()):
            path.unlink()
        place.put(f"task {next(number)}")
        return []

    idle_wait.files.list_names = claim_all  # type: ignore[assignment]  # restored by the fixture
    place.idle.wait(time.monotonic() + 0.05, GROUPS, {})
    assert place.idle.in_reserve


def test_task_ends_the_reserve(place: _Place) -> None:
    place.lose()
    place.put("task")
    place.wait()
    assert place.idle.in_reserve
    place.idle.reset(0.0)
    assert not place.idle.in_reserve
    place.put("another")
    place.wait()
    assert not place.idle.in_reserve


def test_bucket_that_was_removed_and_made_again_is_watched_again(place: _Place) -> None:
    place.bucket.rmdir()
    place.wait()
    place.bucket.mkdir()  # before the listing
    assert place.idle.has_event()
    directories, buckets = {str(place.bucket), str(place.entry)}, {str(place.bucket)}
    assert not place.idle.watch(directories, buckets)
    assert place.idle.watch(directories, buckets)
    place.idle.event_pending = False
    place.put("task")
    place.wait()
    assert not place.idle.has_event()
    assert place.watch.covers(directories)


def test_directory_that_cannot_be_watched_is_polled(place: _Place, tmp_path: Path) -> None:
    directories = {str(place.bucket), str(tmp_path / "missing")}
    assert not place.idle.watch(directories, {str(place.bucket)})
    assert place.idle.watch(directories, {str(place.bucket)})


def test_only_worker_is_never_in_reserve(place: _Place, looks: list[str]) -> None:
    place.lose(workers=1)  # a task that was cancelled
    place.put("task")
    place.wait(workers=1)
    assert not place.idle.in_reserve
    assert not looks


def test_polls_stay_frequent_where_the_filesystem_does_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = _Place(tmp_path)
    seconds: list[float] = []
    monkeypatch.setattr(DirectoryWatcher, "wait", lambda _self, most: seconds.append(most) or False)
    for tells, watched in ((True, True), (False, True), (True, False)):
        idle = IdleWait(place.watch, tells=tells)
        idle.watch({str(place.bucket)} if watched else {str(tmp_path / "missing")}, {str(place.bucket)})
        idle.wait(None, GROUPS, {})
    place.watch.close()
    told, blind, unwatched = seconds
    assert told > 10 * blind
    assert told > 10 * unwatched

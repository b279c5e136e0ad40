"""Tasks whose files a third party removed: their futures get an error, and those of tasks that only move do not."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from spoolpool.client import vanished
from spoolpool.client.futures import TaskFuture
from spoolpool.errors import BadTaskFile, DependencyFailed, TaskVanished
from spoolpool.format.names import TaskFile, new_worker_id
from spoolpool.protocol import search
from spoolpool.protocol.search import PASSES, Wanted, find_places
from spoolpool.protocol.spool import Spool
from spoolpool.system import files
from tests.support.fake_worker import LANE, Clock, Inbox, Stage, leave_trace

SECONDS = vanished._LEAST_SECONDS


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path / "stage", Clock.installed(monkeypatch))


@pytest.fixture
def inbox(stage: Stage) -> Inbox:
    return stage.inbox()


def put(stage: Stage, inbox: Inbox, *more: object) -> TaskFuture:
    return inbox.put(leave_trace, str(stage.effects), *more)


def path_of(stage: Stage, future: TaskFuture) -> Path:
    """Return the path of the only file of a task."""
    [path] = stage.places()[future.task]
    return Path(stage.spool.path, path)


def claim(stage: Stage, future: TaskFuture) -> TaskFile:
    """Move a ready task to ``claimed/`` as an unknown worker does."""
    ready = path_of(stage, future)
    claimed = future.task_file.claimed_by(new_worker_id())
    ready.rename(stage.spool.layout.claimed_task(claimed))
    return claimed


def look(inbox: Inbox, passes: int) -> None:
    """Let the collector work until so many searches are over."""
    inbox.look(rounds=int(1.4 * passes * SECONDS) + 20)  # rounds are up to a second long


def remove_ready(stage: Stage, future: TaskFuture) -> None:
    path_of(stage, future).unlink()


def remove_claimed(stage: Stage, future: TaskFuture) -> None:
    os.unlink(stage.spool.layout.claimed_task(claim(stage, future)))


def remove_bucket(stage: Stage, future: TaskFuture) -> None:
    files.remove_tree(stage.spool.layout.lane(LANE))


@pytest.mark.parametrize("remove", [remove_ready, remove_claimed, remove_bucket])
def test_future_of_a_removed_task_gets_an_error(
    stage: Stage, inbox: Inbox, remove: Callable[[Stage, TaskFuture], None]
) -> None:
    future = put(stage, inbox)
    remove(stage, future)
    look(inbox, PASSES)
    error = future.exception(0)
    assert isinstance(error, TaskVanished)
    assert future.task in str(error)
    assert stage.spool.path in str(error)
    assert not len(inbox.pending)


def test_removed_result_is_an_error(stage: Stage, inbox: Inbox) -> None:
    future = put(stage, inbox)
    stage.work()
    path_of(stage, future).unlink()
    look(inbox, PASSES)
    assert isinstance(future.exception(0), TaskVanished)
    look(inbox, 1)
    assert not stage.seen().outgoing, "its outcome was swept"


def test_other_tasks_of_the_session_go_on(stage: Stage, inbox: Inbox) -> None:
    removed, kept = put(stage, inbox), put(stage, inbox)
    remove_ready(stage, removed)
    look(inbox, PASSES)
    assert isinstance(removed.exception(0), TaskVanished)
    assert not kept.done()
    stage.work()
    inbox.look()
    assert kept.result(0) == "value"


def test_task_that_is_missed_by_fewer_passes_has_not_vanished(stage: Stage, inbox: Inbox) -> None:
    future = put(stage, inbox)
    path = path_of(stage, future)
    hidden = stage.directory / "hidden"
    collector_passes: list[int] = []
    missed = vanished.find_places

    def find(spool: Spool, wanted: list[Wanted], *more: object) -> dict[str, search.Place]:
        collector_passes.append(len(collector_passes))
        hides = len(collector_passes) % PASSES
        if hides == 1:
            path.rename(hidden)
        elif not hides:
            hidden.rename(path)
        return missed(spool, wanted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vanished, "find_places", find)
        look(inbox, 3 * PASSES)
    assert len(collector_passes) >= 2 * PASSES, "it was hidden in more than so many passes together"
    assert not future.done()


@pytest.mark.parametrize("place", ["ready", "claimed", "failed", "waiting"])
def test_task_is_found_in_any_place(stage: Stage, inbox: Inbox, place: str) -> None:
    future = put(stage, inbox)
    if place == "claimed":
        claim(stage, future)
    elif place != "ready":
        path_of(stage, future).rename(f"{stage.spool.path}/{place}/{future.task_file.requeued().name}")
    assert find_places(stage.spool, [Wanted.of(stage.spool, future.header)]) == {future.task: place}
    assert find_places(stage.spool, [Wanted(future.task, stage.session)]) == {future.task: place}, "in any bucket"


def test_task_that_a_worker_returns_meanwhile_is_found_by_a_later_pass(
    stage: Stage, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    future = put(stage, inbox)
    claimed = claim(stage, future)
    bucket = stage.spool.layout.bucket(LANE, future.header.bucket)
    returned = f"{bucket}/{claimed.released().name}"
    list_names = files.list_names

    def list_and_move(directory: str, **how: bool) -> list[str]:
        names = list_names(directory, **how)
        if directory == bucket and not os.path.exists(returned):  # it was listed; claimed/ is listed next
            os.rename(stage.spool.layout.claimed_task(claimed), returned)
        return names

    monkeypatch.setattr(search.files, "list_names", list_and_move)
    wanted = [Wanted.of(stage.spool, future.header)]
    assert find_places(stage.spool, wanted) == {}
    assert find_places(stage.spool, wanted) == {future.task: "ready"}


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO, errno.EACCES])
def test_nothing_is_concluded_while_a_directory_cannot_be_listed(
    stage: Stage, inbox: Inbox, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    future = put(stage, inbox)
    claim(stage, future)
    list_names = os.listdir

    def fail(directory: str) -> list[str]:
        if directory == stage.spool.layout.claimed:
            raise OSError(code, os.strerror(code), directory)
        return list_names(directory)

    monkeypatch.setattr(files.os, "listdir", fail)
    look(inbox, 2 * PASSES)
    assert not future.done()


def test_pass_of_a_process_that_was_stopped_meanwhile_does_not_count(
    stage: Stage, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    future = put(stage, inbox)
    remove_ready(stage, future)
    found = vanished.find_places

    def find_late(*arguments: object) -> dict[str, search.Place]:
        stage.clock.sleep(3600.0)
        return found(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(vanished, "find_places", find_late)
    look(inbox, 2 * PASSES)
    assert not future.done()


def test_dependents_of_a_removed_task_fail_and_leave_nothing(stage: Stage, inbox: Inbox) -> None:
    first = put(stage, inbox)
    second = put(stage, inbox, first)
    third = put(stage, inbox, second)
    remove_ready(stage, first)
    look(inbox, PASSES + 1)
    assert isinstance(first.exception(0), TaskVanished)
    for each in (second, third):
        assert isinstance(each.exception(0), DependencyFailed)
    assert first.task in str(second.exception(0))
    assert not any(files.list_names(f"{stage.spool.layout.needs}/{stage.session}"))
    assert not stage.places()


def test_links_of_a_removed_task_go_and_the_outcome_that_it_needed(stage: Stage, inbox: Inbox) -> None:
    first = put(stage, inbox)
    second = put(stage, inbox, first)
    path_of(stage, second).unlink()
    stage.work()
    look(inbox, PASSES)
    assert first.result(0) == "value"
    assert isinstance(second.exception(0), TaskVanished)
    inbox.look()
    assert not files.list_names(f"{stage.spool.layout.needs}/{stage.session}")
    assert not stage.places()


@pytest.mark.parametrize("set_aside", [True, False])
def test_task_fails_whose_dependency_of_an_ended_session_has_no_outcome(
    stage: Stage, inbox: Inbox, *, set_aside: bool
) -> None:
    other = Inbox(stage.spool, stage.clock, "other")
    needed = put(stage, other)
    future = put(stage, inbox, needed)
    other.forget()  # its process has ended
    inbox.pending.retention._references.clear()
    path = path_of(stage, needed)
    if set_aside:
        path.rename(f"{stage.spool.layout.failed}/{needed.task_file.claimed_by(new_worker_id()).name}")
    else:
        path.unlink()
    look(inbox, PASSES + 1)
    error = future.exception(0)
    assert isinstance(error, DependencyFailed)
    assert isinstance(error.__cause__, BadTaskFile if set_aside else TaskVanished)
    assert needed.task in str(error)
    other.pending.close()


def test_task_waits_for_a_dependency_in_a_bucket_of_another_session(stage: Stage, inbox: Inbox) -> None:
    other = Inbox(stage.spool, stage.clock, "other")
    future = put(stage, inbox, put(stage, other))
    other.forget()
    inbox.pending.retention._references.clear()
    look(inbox, 2 * PASSES)
    assert not future.done()
    other.pending.close()


def test_removed_task_of_a_resumed_session_is_an_error(stage: Stage) -> None:
    earlier = stage.inbox(keeps=True)
    task = put(stage, earlier)
    later = stage.inbox(keeps=True)
    [future] = later.futures()
    remove_ready(stage, task)
    look(later, PASSES)
    assert isinstance(future.exception(0), TaskVanished)


# ------------------------------------------------------------------------------- submission


def test_submission_raises_if_its_file_is_removed_before_it_is_in_the_queue(
    stage: Stage, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = files.move

    def remove_and_move(source: str, target: str, **how: files.Durability) -> None:
        if "/tmp/" in source:
            os.unlink(source)
        move(source, target, **how)

    needed = put(stage, inbox)
    monkeypatch.setattr(files, "move", remove_and_move)
    with pytest.raises(TaskVanished, match="submit it again"):
        put(stage, inbox)
    with pytest.raises(TaskVanished, match="submit it again"):
        put(stage, inbox, needed)
    assert [each.task for each in inbox.pending.futures()] == [needed.task]
    assert list(stage.places()) == [needed.task]
    assert not files.list_names(f"{stage.spool.layout.needs}/{stage.session}")


@pytest.mark.parametrize("moves_on", [False, True])
def test_submission_whose_rename_answers_an_error_finds_its_task(
    stage: Stage, inbox: Inbox, monkeypatch: pytest.MonkeyPatch, *, moves_on: bool
) -> None:
    move = files.move

    def move_and_fail(source: str, target: str, **how: files.Durability) -> None:
        move(source, target, **how)  # raises as well before the bucket is made
        if "/tmp/" not in source:
            return
        if moves_on:
            claimed = TaskFile(os.path.basename(source), 1, 1, new_worker_id())
            os.rename(target, stage.spool.layout.claimed_task(claimed))
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), source)

    monkeypatch.setattr(files, "move", move_and_fail)
    future = put(stage, inbox)
    assert not future.done()
    [path] = stage.places()[future.task]
    assert path.startswith("claimed/" if moves_on else "ready/")

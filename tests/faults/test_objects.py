"""A process that removes an object may die or fail at any moment: a task that needs the object runs, and nothing stays.

The remover has found the object unused, and a task needs it by then.
"""

from __future__ import annotations

import errno
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from spoolpool.format.headers import TaskHeader
from spoolpool.maintenance.garbage import find_garbage, remove
from spoolpool.protocol.object_removal import remove_object
from spoolpool.protocol.spool import Spool
from tests.faults.disk import NAME_CHANGES, OPERATIONS, Disk, Fault, Recorder, at, digest, in_child
from tests.faults.scenarios import Body, run_with_faults
from tests.support.fake_worker import Clock, Inbox, Stage, leave_trace

DAY = 86400.0


class Days:
    """Days that have passed on the clock that dates the files of all spools."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passed = 0.0
        real = Spool.server_time
        monkeypatch.setattr(Spool, "server_time", lambda spool: real(spool) + self.passed * DAY)


@pytest.fixture
def days(monkeypatch: pytest.MonkeyPatch) -> Days:
    return Days(monkeypatch)


Scene = tuple[TaskHeader, Body]


def by_a_session(stage: Stage, days: Days) -> Scene:
    """Remove the object as a session that ends, and has released its lease."""
    first = stage.inbox()
    ref = first.put_object("needed")
    [lease] = Path(stage.spool.layout.needs, stage.session).iterdir()
    lease.unlink()
    first.detach()
    header = stage.submit(Inbox(stage.spool, stage.clock, "other"), leave_trace, ref)
    return header, lambda: remove_object(stage.spool, ref.name)


def by_a_session_that_goes_on(stage: Stage, days: Days) -> Scene:
    """Remove the object as a session that shared it unasked, and has no task any more that needs it."""
    first = stage.inbox()
    ref = first.put_object("needed")
    first.detach()
    header = stage.submit(Inbox(stage.spool, stage.clock, "other"), leave_trace, ref)

    def body() -> None:
        first.objects._leased[ref.name] = 0.0
        first.objects._shared[ref.name] = 1
        first.objects._remove_unused(0)

    return header, body


def by_gc(stage: Stage, days: Days) -> Scene:
    """Remove the object as a garbage collection that found it before another session acquired it."""
    first = stage.inbox()
    ref = first.put_object("needed")
    first.detach()
    days.passed = 2
    found = find_garbage(stage.spool)
    days.passed = 0
    assert f"objects/{ref.name}" in [each.path for each in found]
    header = stage.submit(Inbox(stage.spool, stage.clock, "other"), leave_trace, ref)
    return header, lambda: remove(stage.spool, found)


def by_gc_that_missed_a_task(stage: Stage, days: Days) -> Scene:
    """Remove the object as a garbage collection to which the only task of a session that has ended was hidden."""
    other = Inbox(stage.spool, stage.clock, "other")
    header = stage.submit(other, leave_trace, other.put_object("needed"))
    other.detach()
    [ready] = stage.seen().ready
    path = Path(stage.spool.path, ready)
    hidden = path.rename(stage.directory / "hidden")
    days.passed = 2
    found = find_garbage(stage.spool)
    days.passed = 0
    assert [each for each in found if each.path.startswith("objects/")]
    hidden.rename(path)
    return header, lambda: remove(stage.spool, found)


Remover = Callable[[Stage, Days], Scene]
by_remover = pytest.mark.parametrize(
    "remover",
    [by_a_session, by_a_session_that_goes_on, by_gc, by_gc_that_missed_a_task],
    ids=lambda each: each.__name__,
)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path / "stage", Clock.installed(monkeypatch))


def check(stage: Stage, days: Days, header: TaskHeader) -> None:
    """Check that the task runs with its object, and that nothing is left when its session has ended."""
    stage.work()
    assert stage.runs() == {header.task: 1}, stage.story()
    inbox = Inbox(stage.spool, stage.clock, "other")
    stage.collect(inbox, [header])
    assert stage.notes("delivered") == {header.task: 1} and "surprise" not in stage.diary.read_text()
    inbox.close()
    for _ in range(3):
        days.passed += 2
        remove(stage.spool, find_garbage(stage.spool))
    days.passed = 0
    root = Path(stage.spool.path)
    left = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
    kept = ("spool.json", "journal", "sessions", "workers")
    assert not [path for path in left if path.parts[0] not in kept], stage.story()


@by_remover
def test_remover_that_dies_at_any_moment_leaves_a_needed_object(
    remover: Remover, stage: Stage, days: Days, tmp_path: Path
) -> None:
    header, body = remover(stage, days)
    copies = tmp_path / "copies"
    notes = (stage.diary, stage.effects)
    assert in_child(Recorder(stage.directory, copies, notes, stage.struck.name), body) == 0
    states = sorted(copies.iterdir())
    is_aside = [any("." in path.name for path in (copy / "spool" / "objects").iterdir()) for copy in states]
    assert True in is_aside and not is_aside[-1]
    for copy in states:
        stage.restore(copy)
        check(stage, days, header)


FAULTS = [
    *((Fault("before", error), OPERATIONS) for error in (errno.EIO, errno.ESTALE, errno.EACCES)),
    *((Fault("after", error), NAME_CHANGES) for error in (errno.ENOENT, errno.EIO)),
]


@by_remover
@pytest.mark.parametrize(("fault", "only"), FAULTS, ids=lambda each: str(getattr(each, "error", "")))
def test_remover_that_fails_at_any_operation_leaves_a_needed_object(
    remover: Remover, fault: Fault, only: frozenset[str], stage: Stage, days: Days, tmp_path: Path
) -> None:
    header, body = remover(stage, days)
    start, again = tmp_path / "start", tmp_path / "again"
    shutil.copytree(stage.directory, start)
    seen: set[str] = set()
    for number in itertools.count(1):
        shutil.copytree(start, again)
        stage.restore(again)
        disk = Disk(at(number, fault), only=only, report=stage.struck)
        run_with_faults(disk, body)
        state = digest(stage.directory, without=stage.struck.name)
        if state not in seen:
            check(stage, days, header)
        seen.add(state)
        if not disk.struck:
            break
    assert number > 2


@by_remover
@pytest.mark.parametrize("operation", ["listdir", "open"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_remover_that_can_list_or_read_nothing_leaves_a_needed_object(
    remover: Remover, operation: str, error: int, stage: Stage, days: Days
) -> None:
    header, body = remover(stage, days)
    run_with_faults(Disk(lambda _, name: Fault("before", error) if name == operation else None), body)
    check(stage, days, header)

"""Retries: after an exception, after the death of a worker, and by 'spool retry'."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import click.testing
import msgspec
import pytest

from spoolpool import Executor, settings
from spoolpool.cli.spool import main
from spoolpool.errors import BadRequest, BadTaskFile, NotASpool, SpoolpoolError, WorkerLost
from spoolpool.format import envelope
from spoolpool.format import headers as records
from spoolpool.format.config import RetentionPolicy
from spoolpool.format.headers import TaskHeader
from spoolpool.format.names import (
    TaskFile,
    bucket_name,
    is_bucket,
    new_submitter_id,
    new_task_id,
    new_worker_id,
    parse_task_file,
)
from spoolpool.maintenance.check import check
from spoolpool.maintenance.garbage import find_garbage, remove
from spoolpool.maintenance.repair import repair
from spoolpool.monitor.scan import scan
from spoolpool.protocol import delayed_tasks
from spoolpool.protocol.claimer import Claimer
from spoolpool.protocol.delayed_tasks import DelayedTasks, retry_delay
from spoolpool.protocol.failed_tasks import retry_task
from spoolpool.protocol.recovery import Recovery
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.tasks import move_to_bucket
from spoolpool.security.trust import Trust
from spoolpool.system import file_content, files
from tests.conftest import Workers
from tests.faults.disk import CRASHED, Disk, Fault, at, in_child
from tests.support.fake_worker import LANE, Clock, Inbox, announce, dead_process
from tests.support.waiting import wait_until


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Monotonic clock of the module that delays tasks."""
    moved = Clock()
    monkeypatch.setattr(delayed_tasks, "time", moved)
    return moved


def new_header(**more: Any) -> TaskHeader:
    task = new_task_id()
    fields = {"task": task, "session": "inbox", "lane": LANE, "bucket": bucket_name(task, new_submitter_id()), **more}
    return TaskHeader(**fields)


def write(path: str, header: TaskHeader) -> None:
    files.create(path, envelope.pack(records.encode(header), b"x"))


def delay_one(spool: Spool, *, attempt: int = 2, **more: Any) -> tuple[TaskHeader, TaskFile]:
    """Put a task into waiting/, before an attempt."""
    header = new_header(retries=5, **more)
    task_file = TaskFile(header.task, attempt, attempt)
    write(f"{spool.layout.waiting}/{task_file.name}", header)
    return header, task_file


def task_files(spool: Spool) -> dict[str, list[str]]:
    """Return the directories of the task files, by their names."""
    seen = scan(spool)
    found: dict[str, list[str]] = {}
    for path in [*seen.ready, *seen.claimed, *seen.results, *seen.failed]:
        found.setdefault(os.path.basename(path), []).append(path.split("/")[0])
    return found


def run(*arguments: object, **variables: str) -> click.testing.Result:
    words = [str(each) for each in arguments]
    return click.testing.CliRunner().invoke(main, words, prog_name="spool", env=variables)


# ------------------------------------------------------------------------------- after an exception


def fail_at_first(trace: str, failures: int) -> tuple[int, int]:
    """Raise ``times`` times, then return the number of runs and the last attempt."""
    from spoolpool import current_task

    with open(trace, "a", encoding="ascii") as file:
        file.write("run\n")
    with open(trace, encoding="ascii") as file:
        runs = len(file.readlines())
    if runs <= failures:
        raise RuntimeError(f"run {runs}")
    return runs, current_task().attempt


def fail_without(path: str) -> int:
    """Raise until a file exists, then return the number of the attempt."""
    from spoolpool import current_task

    if not os.path.exists(path):
        raise FileNotFoundError(path)
    return current_task().attempt


def again(retries: int, seconds: float = 0.0) -> dict[str, Any]:
    return {"retries": retries, "retry_delay": seconds}


def test_exception_comes_back_after_the_requested_retries(spool: Spool, worker: Workers, tmp_path: Path) -> None:
    def submit(name: str, failures: int, wishes: dict[str, Any] | None) -> Future[tuple[int, int]]:
        return executor.submit(fail_at_first, str(tmp_path / name), failures, resource_dict=wishes)

    worker(spool)
    with Executor(spool=spool.path) as executor:
        unasked = submit("unasked", 1, None)
        enough = submit("enough", 2, again(2))
        short = submit("short", 9, again(2))
        more = submit("more", 1, again(5))
        assert str(unasked.exception()) == "run 1"
        assert enough.result() == (3, 3)
        assert str(short.exception()) == "run 3", "the last exception comes back"
        assert more.result() == (2, 2)
    with Executor(spool=spool.path, resource_dict=again(1)) as executor:
        assert submit("default", 1, None).result() == (2, 2)
        assert str(submit("otherwise", 1, {"retries": 0}).exception()) == "run 1"
    assert (tmp_path / "unasked").read_text().count("run") == 1
    assert (tmp_path / "short").read_text().count("run") == 3
    assert task_files(spool) == {}
    assert check(spool) == []


@pytest.mark.parametrize(
    "wishes",
    [
        {"retries": -1},
        {"retries": 91},
        {"retries": 1.5},
        {"retries": True},
        {"retry_delay": -0.1},
        {"retry_delay": float("nan")},
        {"retry_delay": float("inf")},
        {"retry_delay": "1"},
        {"max_attempts": 0},
        {"max_attempts": 100},
    ],
)
def test_invalid_retry_options_are_refused_by_name(spool: Spool, wishes: dict[str, Any]) -> None:
    (name,) = wishes
    with Executor(spool=spool.path) as executor, pytest.raises(BadRequest, match=name):
        executor.submit(pow, 2, 2, resource_dict=wishes)


# ----------------------------------------------------------------------------------- the delay


def test_delay_doubles_up_to_five_minutes() -> None:
    header = new_header(retries=90, retry_delay=1.5)
    assert [retry_delay(header, attempt) for attempt in range(2, 12)] == [1.5, 3, 6, 12, 24, 48, 96, 192, 300, 300]
    assert retry_delay(header, 99) == 300
    assert retry_delay(new_header(retry_delay=1e308), 99) == 300
    assert retry_delay(new_header(retry_delay=0.0), 99) == 0


def test_task_is_ready_when_its_delay_has_passed(spool: Spool, clock: Clock) -> None:
    delayed = DelayedTasks(spool)
    assert delayed.due is None
    for attempt, seconds in ((2, 10.0), (3, 20.0), (4, 40.0)):
        header, task_file = delay_one(spool, attempt=attempt, retry_delay=10.0)
        assert delayed.round() == 0
        assert delayed.due == clock.now + seconds
        clock.sleep(seconds - 0.1)
        assert delayed.round() == 0
        assert task_files(spool)[task_file.name] == ["waiting"]
        clock.sleep(0.1)
        assert delayed.round() == 1
        assert delayed.due is None
        assert files.list_names(spool.layout.bucket(header.lane, header.bucket)) == [task_file.name]


def test_delay_is_measured_by_the_observers_clock_from_its_first_round(spool: Spool, clock: Clock) -> None:
    _, task_file = delay_one(spool, retry_delay=10.0)
    path = f"{spool.layout.waiting}/{task_file.name}"
    first = DelayedTasks(spool)
    first.round()
    clock.sleep(5.0)
    os.utime(path, (0, 0))
    second = DelayedTasks(spool)
    second.round()
    assert (first.due, second.due) == (clock.now + 5.0, clock.now + 10.0)
    os.utime(path, (4e9, 4e9))
    clock.sleep(5.0)
    assert second.round() == 0
    assert first.round() == 1
    assert second.round() == 0
    assert second.due is None


def test_task_made_ready_by_another_process_is_forgotten(spool: Spool, clock: Clock) -> None:
    header, task_file = delay_one(spool, retry_delay=10.0)
    delayed = DelayedTasks(spool)
    delayed.round()
    spool.make_directories(spool.layout.bucket(header.lane, header.bucket))
    files.move(
        f"{spool.layout.waiting}/{task_file.name}",
        f"{spool.layout.bucket(header.lane, header.bucket)}/{task_file.name}",
    )
    delayed.round()
    assert delayed.due is None


# ------------------------------------------------------------------- a task in waiting/ survives


def test_delayed_task_of_a_dead_worker_is_made_ready_by_another(spool: Spool, worker: Workers, tmp_path: Path) -> None:
    first = worker(spool)
    succeeds = tmp_path / "succeeds"
    with Executor(spool=spool.path) as executor:
        # each delay is twice as long as the one before: this process, however slow, sees one of them
        future = executor.submit(fail_without, str(succeeds), resource_dict=again(9, 0.5))
        wait_until(lambda: files.list_names(spool.layout.waiting), "the task is delayed")
        worker.may_die(first)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        succeeds.touch()
        worker(spool)
        assert future.result() > 1


def test_delayed_task_survives_recovery_repair_and_gc(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool.create(tmp_path / "spool", durability="none", lease=0.2, caches=0.1)
    _, task_file = delay_one(spool, retry_delay=10.0)
    real = Spool.server_time
    monkeypatch.setattr(Spool, "server_time", lambda each: real(each) + 1e9)
    announce(spool, dead_process())
    repair(spool, check(spool))
    remove(
        spool, find_garbage(spool, RetentionPolicy(results=0.0, sessions=0.0, unfinished=0.0, journals=0.0, logs=0.0))
    )
    spool.open_session("inbox")
    spool.close_session("inbox")
    assert files.list_names(spool.layout.waiting) == [task_file.name]
    delayed = DelayedTasks(spool)
    delayed.round()
    clock.sleep(10.0)
    assert delayed.round() == 1


def make_all_ready(spool: Spool, clock: Clock) -> None:
    """Make the rounds of a worker after a while, and again later."""
    delayed = DelayedTasks(spool)
    for _ in range(3):
        delayed.round()
        clock.sleep(100.0)


@pytest.mark.parametrize("when", ["before", "after"])
def test_process_that_makes_tasks_ready_may_die_at_any_file_operation(tmp_path: Path, clock: Clock, when: Any) -> None:
    for number in itertools.count(1):
        spool = Spool.create(tmp_path / f"spool-{number}", durability="none")
        held = [delay_one(spool, retry_delay=1.0)[1].name for _ in range(2)]
        ended = in_child(Disk(at(number, Fault(when))), lambda spool=spool: make_all_ready(spool, clock))
        assert sorted(task_files(spool)) == sorted(held)
        assert all(len(places) == 1 for places in task_files(spool).values())
        make_all_ready(spool, clock)
        assert files.list_names(spool.layout.waiting) == []
        assert sorted(task_files(spool)) == sorted(held)
        if ended != CRASHED:
            assert number > 10
            break


FAULTS = [
    Fault("before", errno.EIO),
    Fault("before", errno.ESTALE),
    Fault("before", errno.EACCES),
    Fault("before", errno.ENOENT),
    Fault("after", errno.EIO),
    Fault("after", errno.ENOENT),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.when}-{errno.errorcode[fault.error]}")
def test_any_file_operation_of_making_ready_may_fail_or_lie(tmp_path: Path, clock: Clock, fault: Fault) -> None:
    for number in itertools.count(1):
        spool = Spool.create(tmp_path / f"spool-{number}", durability="none")
        held = [delay_one(spool, retry_delay=1.0)[1].name for _ in range(2)]
        disk = Disk(at(number, fault))
        with disk.installed():
            make_all_ready(spool, clock)
        assert {name: len(places) for name, places in task_files(spool).items()} == dict.fromkeys(held, 1)
        make_all_ready(spool, clock)
        assert files.list_names(spool.layout.waiting) == []
        if not disk.struck:
            assert number > 10
            break


def test_concurrent_workers_make_each_delayed_task_ready_once(spool: Spool, clock: Clock) -> None:
    held = [delay_one(spool, retry_delay=1.0)[1].name for _ in range(60)]
    observers = [DelayedTasks(spool) for _ in range(6)]
    for delayed in observers:
        delayed.round()
    clock.sleep(1.0)
    start = threading.Barrier(len(observers))

    def make_ready(delayed: DelayedTasks) -> None:
        start.wait()
        delayed.round()

    threads = [threading.Thread(target=make_ready, args=(delayed,)) for delayed in observers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert files.list_names(spool.layout.waiting) == []
    assert {name: len(places) for name, places in task_files(spool).items()} == dict.fromkeys(held, 1)


def test_late_move_to_a_bucket_leaves_no_empty_bucket(spool: Spool) -> None:
    header, task_file = delay_one(spool)
    bucket = spool.layout.bucket(header.lane, header.bucket)
    path = f"{spool.layout.waiting}/{task_file.name}"
    assert move_to_bucket(spool, path, header, task_file)
    os.unlink(f"{bucket}/{task_file.name}")
    os.rmdir(bucket)
    assert not move_to_bucket(spool, path, header, task_file)
    assert not os.path.exists(bucket)


def remove_buckets(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Remove each bucket so many times when it was made, like a worker that finds it empty."""
    real = os.mkdir
    left = [times]

    def removed_again(path: str, mode: int = 0o777) -> None:
        real(path, mode)
        if is_bucket(os.path.basename(path)) and left[0]:
            left[0] -= 1
            os.rmdir(path)

    monkeypatch.setattr(files.os, "mkdir", removed_again)


def test_move_to_a_vanishing_bucket_is_retried_later(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    header, task_file = delay_one(spool)
    remove_buckets(monkeypatch, 1000)
    path = f"{spool.layout.waiting}/{task_file.name}"
    with pytest.raises(FileNotFoundError):
        move_to_bucket(spool, path, header, task_file)
    monkeypatch.undo()
    assert move_to_bucket(spool, path, header, task_file)


def test_move_to_a_bucket_that_vanishes_twice_succeeds(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    header, task_file = delay_one(spool)
    remove_buckets(monkeypatch, 2)
    assert move_to_bucket(spool, f"{spool.layout.waiting}/{task_file.name}", header, task_file)


def test_retry_of_a_task_whose_bucket_vanishes_says_that_the_task_was_left(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    header, task_file = delay_one(spool)
    kept = f"{spool.layout.failed}/{task_file.name}"
    os.rename(f"{spool.layout.waiting}/{task_file.name}", kept)
    remove_buckets(monkeypatch, 1000)
    with pytest.raises(SpoolpoolError, match="It was left alone; try again") as caught:
        retry_task(spool, task_file.name)
    assert kept in str(caught.value) and spool.layout.bucket(header.lane, header.bucket) in str(caught.value)
    assert os.listdir(spool.layout.failed) == [task_file.name]
    monkeypatch.undo()
    assert retry_task(spool, task_file.name) == header.task


# --------------------------------------------------------------------------- unknown names in waiting/


def unknown_names(spool: Spool, tmp_path: Path) -> None:
    """Put names into waiting/ that are no delayed tasks."""
    place = Path(spool.layout.waiting)
    other = new_header()
    write(str(tmp_path / "outside"), other)
    (place / "junk").touch()
    (place / TaskFile(new_task_id(), 2, 2).name).touch()
    (place / TaskFile(new_task_id(), 2, 2).name).mkdir()
    os.mkfifo(place / TaskFile(new_task_id(), 2, 2).name)
    (place / TaskFile(other.task, 2, 2).name).symlink_to(tmp_path / "outside")
    (place / TaskFile(new_task_id(), 2, 2).name).symlink_to("/dev/zero")
    write(str(place / TaskFile(new_task_id(), 2, 2).name), other)
    claimed = new_header()
    write(str(place / TaskFile(claimed.task, 2, 2, new_worker_id()).name), claimed)
    hostile = msgspec.json.encode({**msgspec.to_builtins(new_header()), "bucket": "../../../outside"})
    files.create(str(place / TaskFile(new_task_id(), 2, 2).name), envelope.pack(hostile, b"x"))


def test_unknown_names_in_waiting_are_left_alone(spool: Spool, clock: Clock, tmp_path: Path) -> None:
    unknown_names(spool, tmp_path)
    before = sorted(files.list_names(spool.layout.waiting))
    header, task_file = delay_one(spool, retry_delay=1.0)
    make_all_ready(spool, clock)
    assert sorted(files.list_names(spool.layout.waiting)) == before
    assert files.list_names(spool.layout.bucket(header.lane, header.bucket)) == [task_file.name]
    assert files.list_names(f"{spool.layout.ready}/{LANE}") == [header.bucket]
    assert {each.kind for each in check(spool)} == {"unknown name", "unreadable"}


def test_failed_move_of_a_delayed_task_is_repeated_later(
    spool: Spool, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused, refused_token = delay_one(spool, retry_delay=1.0)
    _, task_file = delay_one(spool, retry_delay=1.0)
    delayed = DelayedTasks(spool)
    delayed.round()
    clock.sleep(1.0)
    real = files.move

    def move(source: str, target: str, **options: Any) -> None:
        if refused.task in source:
            raise PermissionError(errno.EACCES, "Permission denied", source)
        real(source, target, **options)

    monkeypatch.setattr(files, "move", move)
    assert delayed.round() == 1
    assert files.list_names(spool.layout.waiting) == [refused_token.name]
    assert delayed.due is not None and delayed.due > clock.now, "a worker sleeps until then: it must not spin"
    monkeypatch.setattr(files, "move", real)
    clock.now = delayed.due
    assert delayed.round() == 1
    assert sorted(task_files(spool)) == sorted([task_file.name, refused_token.name])


def test_spool_that_cannot_be_listed_changes_nothing(
    spool: Spool, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    delay_one(spool, retry_delay=1.0)
    delayed = DelayedTasks(spool)
    delayed.round()
    due = delayed.due

    def away(directory: str) -> list[str]:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected", directory)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "list_names", away)
        assert delayed.round() == 0
    assert delayed.due == due
    clock.sleep(1.0)
    assert delayed.round() == 1


# ------------------------------------------------------------------------------- after a death


def deaths(spool: Spool, inbox: Inbox, **options: Any) -> int:
    """Return how many workers of a task can die until it is reported as lost."""
    future = inbox.put(pow, 2, 2, **options)
    for number in itertools.count(1):
        dead = announce(spool, dead_process())
        claimer = Claimer(spool, dead, lambda _: True, Trust())
        mine = claimer.next()
        assert mine is not None and mine.header.task == future.task
        assert mine.task_file.attempt == number
        mine.close()
        Recovery(spool).round()
        inbox.look()
        if future.done():
            assert isinstance(future.exception(), WorkerLost)
            return number
    raise AssertionError


@pytest.fixture
def inbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Inbox]:
    """A session of a spool with four attempts for each task."""
    moved = Clock.installed(monkeypatch)
    made = Inbox(Spool.create(tmp_path / "spool", durability="none", max_attempts=4), moved)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("options", "times"),
    [({}, 4), ({"max_attempts": 1}, 1), ({"max_attempts": 2}, 2), ({"max_attempts": 6}, 6)],
)
def test_task_overrides_the_attempts_of_the_spool(inbox: Inbox, options: dict[str, int], times: int) -> None:
    assert deaths(inbox.spool, inbox, **options) == times
    (name,) = files.list_names(inbox.spool.layout.failed)
    assert parse_task_file(name) is not None


def test_retries_and_deaths_are_counted_together(inbox: Inbox) -> None:
    assert deaths(inbox.spool, inbox, max_attempts=2, retries=3) == 5


def test_task_with_the_greatest_number_of_attempts_ends(inbox: Inbox) -> None:
    assert deaths(inbox.spool, inbox, max_attempts=99, retries=90) == 99


def test_spool_has_the_default_number_of_attempts(tmp_path: Path) -> None:
    assert Spool.create(tmp_path / "spool").config.max_attempts == settings.MAX_ATTEMPTS


# ----------------------------------------------------------------------------- 'spool retry'


def lose(spool: Spool, *, task: str = "", **more: Any) -> TaskFile:
    """Put a task into failed/, as its submitter does."""
    header = new_header(**more)
    if task:
        header = msgspec.structs.replace(header, task=task)
    task_file = TaskFile(header.task, 3, 3, new_worker_id())
    write(f"{spool.layout.failed}/{task_file.name}", header)
    return task_file


def die_once(trace: str) -> str:
    """End the worker the first time."""
    import os

    if not os.path.exists(trace):
        with open(trace, "w", encoding="ascii"):
            pass
        os._exit(3)
    return "done"


def test_lost_task_runs_again_after_a_retry(spool: Spool, worker: Workers, tmp_path: Path) -> None:
    first = worker(spool)
    worker.may_die(first)
    with Executor(spool=spool.path) as executor:
        future = executor.submit(die_once, str(tmp_path / "trace"), resource_dict={"max_attempts": 1})
        session = executor.info["session"]
        first.wait()
        second = worker(spool, await_groups=0)
        assert isinstance(future.exception(), WorkerLost)
        assert "'spool retry' runs the task again" in str(future.exception())
        task = future.task  # type: ignore[attr-defined]
        wait_until(lambda: files.list_names(spool.layout.failed), "the task is kept")
        shown = run("retry", spool.path, task)
        assert (shown.exit_code, shown.output) == (0, f"{task} waits again.\n")
        wait_until(lambda: files.list_names(f"{spool.layout.results}/{session}"), "it has an outcome")
    (name,) = files.list_names(f"{spool.layout.results}/{session}")
    task_file = parse_task_file(name)
    assert task_file is not None and (task_file.task, task_file.attempt) == (task, 1), "with all its attempts"
    path = spool.layout.outcome(session, task_file)
    fd = files.open_file(path)
    try:
        assert records.decode_outcome(envelope.read_header(fd, file_content.size(fd), path), path).kind == "result"
    finally:
        files.close(fd)
    assert second.poll() is None


@pytest.mark.parametrize("part", [slice(None), slice(0, 28), slice(-10, None), slice(-4, None)])
def test_task_is_selected_by_its_id_or_a_prefix_or_suffix(spool: Spool, part: slice) -> None:
    tail = "0123456789"
    wanted = lose(spool, task=f"499-0660e5f20d1a76-{tail}")
    lose(spool, task="499-0660e5f20d1a77-9876543210")
    shown = run("retry", spool.path, wanted.task[part])
    assert (shown.exit_code, shown.output) == (0, f"{wanted.task} waits again.\n")
    assert list(task_files(spool)) != [] and len(files.list_names(spool.layout.failed)) == 1
    (path,) = scan(spool).ready
    assert os.path.basename(path) == TaskFile(wanted.task, wanted.claim + 1, 1).name
    assert os.path.isdir(f"{spool.layout.results}/inbox"), "the session can take its outcome"


def test_all_option_retries_all_tasks(spool: Spool) -> None:
    lost = sorted(lose(spool).task for _ in range(5))
    shown = run("retry", spool.path, "--all")
    assert shown.exit_code == 0
    assert shown.stdout.splitlines() == [f"{task} waits again." for task in lost]
    assert files.list_names(spool.layout.failed) == []
    empty = run("retry", spool.path, "--all")
    assert (empty.exit_code, empty.stdout) == (0, "")
    assert "No matching task" in empty.stderr


def test_task_named_twice_is_retried_once(spool: Spool) -> None:
    task_file = lose(spool)
    shown = run("retry", spool.path, task_file.task, task_file.task, task_file.task[-6:])
    assert (shown.exit_code, shown.output) == (0, f"{task_file.task} waits again.\n")


def test_ambiguous_or_unknown_id_changes_nothing(spool: Spool) -> None:
    for number in range(3):
        lose(spool, task=f"499-0660e5f20d1a7{number}-0123456789")
    for words, text in (
        ([], "Name tasks or give a filter, or --all"),
        (["--all", "499"], "Name tasks or give a filter, or --all"),
        (["499-0660e5f20d1a7"], "matches 3 tasks"),
        (["0123456789"], "matches 3 tasks"),
        (["nothing"], "matches 0 tasks"),
        ([""], "matches 0 tasks"),
        (["499-0660e5f20d1a71", "nothing"], "matches 0 tasks"),
    ):
        shown = run("retry", spool.path, *words)
        assert shown.exit_code == BadRequest.exit_code
        assert text in shown.stderr
        assert len(files.list_names(spool.layout.failed)) == 3


@pytest.mark.parametrize("kind", ["torn", "empty", "FIFO", "directory", "link", "another task"])
def test_task_that_cannot_be_retried_is_reported_and_the_others_are_retried(
    spool: Spool, tmp_path: Path, kind: str
) -> None:
    bad, good = lose(spool), lose(spool)
    path = Path(spool.layout.failed) / bad.name
    data = path.read_bytes()
    path.unlink()
    if kind in ("torn", "empty"):
        path.write_bytes(data[: 20 if kind == "torn" else 0])
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "link":
        (tmp_path / "aside").write_bytes(data)
        path.symlink_to(tmp_path / "aside")
    else:
        write(str(path), new_header())
    shown = run("retry", spool.path, "--all")
    assert shown.exit_code == BadTaskFile.exit_code
    assert bad.task in shown.stderr and "Traceback" not in shown.stderr
    assert shown.stdout == f"{good.task} waits again.\n"
    assert os.path.lexists(path)


def test_task_that_another_process_retried_is_reported(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    task_file = lose(spool)
    real = Spool.open_session

    def meanwhile(each: Spool, session: str, owner: int | None = None) -> None:
        real(each, session, owner)
        (Path(spool.layout.failed) / task_file.name).unlink()

    monkeypatch.setattr(Spool, "open_session", meanwhile)
    with pytest.raises(BadTaskFile, match="another process has moved it"):
        retry_task(spool, task_file.name)
    with pytest.raises(BadTaskFile, match="cannot be read"):
        retry_task(spool, task_file.name)
    with pytest.raises(BadTaskFile, match="not the name of a task"):
        retry_task(spool, "junk")


def test_unknown_names_in_failed_are_no_tasks(spool: Spool) -> None:
    (Path(spool.layout.failed) / "junk").touch()
    assert run("retry", spool.path, "--all").stdout == ""
    assert "matches 0 tasks" in run("retry", spool.path, "junk").stderr
    assert files.list_names(spool.layout.failed) == ["junk"]


def test_retry_reads_the_spool_from_the_environment(spool: Spool, tmp_path: Path) -> None:
    first, second, third = lose(spool), lose(spool), lose(spool)
    variables = {settings.ENV_SPOOL: spool.path}
    assert run("retry", first.task, **variables).output == f"{first.task} waits again.\n"
    assert run("retry", spool.path, second.task, SPOOLPOOL_DIR=str(tmp_path)).output == f"{second.task} waits again.\n"
    assert run("retry", "--all", **variables).output == f"{third.task} waits again.\n"
    assert run("retry", str(tmp_path / "nowhere"), first.task, **variables).exit_code == NotASpool.exit_code
    assert run("retry", "nowhere", SPOOLPOOL_DIR="").exit_code == NotASpool.exit_code
    missing = run("retry", SPOOLPOOL_DIR="")
    assert missing.exit_code == 2
    assert "SPOOL" in missing.stderr

"""Only a submitter itself, or a process that has proved its death, removes its files, whatever their age."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from spoolpool.format import envelope
from spoolpool.format import headers as records
from spoolpool.format.config import RetentionPolicy
from spoolpool.format.headers import TaskHeader
from spoolpool.format.names import (
    DependencyLink,
    ObjectLease,
    TaskFile,
    bucket_name,
    new_submitter_id,
    new_task_id,
    new_worker_id,
    session_entry,
)
from spoolpool.maintenance import garbage
from spoolpool.maintenance.garbage import find_garbage, remove
from spoolpool.maintenance.garbage_item import GarbageItem
from spoolpool.protocol import cancel, object_leases
from spoolpool.protocol.failed_tasks import retry_task
from spoolpool.protocol.recovery import Recovery
from spoolpool.protocol.sessions import SessionInfo
from spoolpool.protocol.spool import Spool
from spoolpool.system import files, open_directory
from spoolpool.system.processes import ProcessId
from tests.support.fake_worker import LANE, Clock, announce, dead_process, outcome_of, unknown_process

DAY = 86400.0
AT_ONCE = RetentionPolicy(results=0.0, sessions=0.0, unfinished=0.0, journals=0.0, logs=0.0, cache=0.0)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool.create(tmp_path / "spool", durability="none", lease=0.3, caches=0.2)


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spool:
    """Spool whose session directories a worker cannot make."""
    spool = Spool.create(tmp_path / "spool", durability="none", lease=0.3, caches=0.2)
    spool.shared, spool.account = True, os.geteuid()
    return spool


@pytest.fixture
def after(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Advance the clock of the file server by some days."""
    real = Spool.server_time

    def advance(days: float) -> None:
        monkeypatch.setattr(Spool, "server_time", lambda spool: real(spool) + days * DAY)

    return advance


@pytest.fixture
def paused() -> Iterator[ProcessId]:
    """Process that is alive, and does nothing."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield ProcessId.of(process.pid)
        process.kill()


def register(spool: Spool, process: ProcessId, session: str = "inbox", run: str = "") -> Path:
    """Register a process of a session, which has a name if there is a ``run``; return its entry."""
    info = SessionInfo(process=process, user="tester", keeps=bool(run))
    spool.open_session(session)
    path = spool.layout.session(session_entry(session, run) if run else session)
    files.create(path, [msgspec.json.encode(info)])
    return Path(path)


def new_header(session: str = "inbox", **fields: Any) -> TaskHeader:
    task = new_task_id()
    lane = fields.pop("lane", LANE)
    return TaskHeader(task=task, session=session, lane=lane, bucket=bucket_name(task, new_submitter_id()), **fields)


def write(path: str, header: TaskHeader) -> Path:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    files.create(path, envelope.pack(records.encode(header), b"x"))
    return Path(path)


def unfinished(spool: Spool, session: str = "inbox") -> Path:
    """Write a task into ``tmp/``."""
    header = new_header(session)
    return write(f"{spool.layout.tmp}/{header.task}", header)


def committed(spool: Spool, session: str = "inbox") -> tuple[Path, Path]:
    """Create a committed task with its outcome; return the paths of both."""
    header = new_header(session)
    task_file = TaskFile(header.task, 1, 1, new_worker_id())
    spool.open_session(session)
    files.create(spool.layout.outcome(session, task_file), outcome_of(header, task_file))
    return write(spool.layout.result(session, task_file), header), Path(spool.layout.outcome(session, task_file))


def collect(spool: Spool, keep: RetentionPolicy = AT_ONCE) -> tuple[list[str], dict[str, str]]:
    """Collect garbage; return the paths that were listed, and the reasons of those that stay."""
    stay: dict[str, str] = {}
    found = find_garbage(spool, keep, stay.__setitem__)
    remove(spool, found, stay.__setitem__)
    return [each.path for each in found], stay


def failing(monkeypatch: pytest.MonkeyPatch, name: str, path: Path | str, number: int = errno.EIO) -> None:
    """Let a function of :mod:`spoolpool.system.files` fail for one path."""
    real = getattr(files, name)

    def fail(each: str, *args: Any, **options: Any) -> Any:
        if open_directory.display_path(str(each)) == str(path):
            raise OSError(number, os.strerror(number), str(each))
        return real(each, *args, **options)

    monkeypatch.setattr(files, name, fail)


# ------------------------------------------------------------------------------ unfinished writes


def test_unfinished_task_stays_while_its_submitter_is_alive(
    spool: Spool, paused: ProcessId, after: Callable[[float], None]
) -> None:
    path, entry = unfinished(spool), register(spool, paused)
    after(10_000)
    listed, stay = collect(spool)
    assert path.exists() and f"tmp/{path.name}" not in listed
    assert f"process {paused.pid} of session inbox is alive" in stay[f"tmp/{path.name}"]
    entry.unlink()
    register(spool, dead_process())
    assert f"tmp/{path.name}" in collect(spool)[0]
    assert not path.exists()


def test_submitter_on_another_host_counts_as_alive_while_it_renews_its_entry(
    spool: Spool, after: Callable[[float], None]
) -> None:
    path = unfinished(spool)
    register(spool, unknown_process(), run=new_submitter_id())
    for days in (0.9, 1.1):  # whatever the policy says, it is granted a day
        after(days)
        _, stay = collect(spool)
        assert path.exists() == (days < 1)
    other = unfinished(spool, "other")
    register(spool, unknown_process(), "other")
    after(29)
    _, stay = collect(spool, RetentionPolicy())
    assert other.exists() and "on elsewhere" in stay[f"tmp/{other.name}"]
    after(31)
    collect(spool, RetentionPolicy())
    assert not other.exists()


def test_one_live_process_of_a_named_session_protects_its_writes(
    spool: Spool, paused: ProcessId, after: Callable[[float], None]
) -> None:
    path = unfinished(spool)
    for process in (dead_process(), paused, dead_process()):
        register(spool, process, run=new_submitter_id())
    after(10_000)
    assert f"tmp/{path.name}" not in collect(spool)[0]
    assert path.exists()


def test_cut_short_write_stays_while_any_submitter_is_alive(
    spool: Spool, paused: ProcessId, after: Callable[[float], None]
) -> None:
    path = Path(spool.layout.tmp, new_task_id())
    path.write_bytes(b"cut short")
    entry = register(spool, paused, "other")
    after(10_000)
    assert f"tmp/{path.name}" in collect(spool)[1]
    assert path.exists()
    entry.unlink()
    collect(spool)
    assert not path.exists()


def test_unreadable_write_stays_while_any_submitter_is_alive(
    spool: Spool, paused: ProcessId, after: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = unfinished(spool, "ended")
    register(spool, paused, "other")
    failing(monkeypatch, "open_file", path)
    after(10_000)
    assert f"tmp/{path.name}" in collect(spool)[1]
    assert path.exists()


def test_write_stays_if_the_entries_of_submitters_cannot_be_listed(
    spool: Spool, after: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = unfinished(spool)
    after(10_000)
    [item] = garbage.unfinished_writes(spool, spool.server_time())
    failing(monkeypatch, "list_names", spool.layout.sessions)
    assert garbage.unfinished_writes(spool, spool.server_time()) == []
    assert remove(spool, [item]) == 0
    assert path.exists()


def test_unfinished_entry_of_a_registered_worker_stays(spool: Spool, after: Callable[[float], None]) -> None:
    worker = announce(spool, unknown_process())
    path = Path(spool.layout.tmp, f"{worker}.info")
    path.touch()
    after(10_000)
    assert f"worker {worker} may be alive" in collect(spool)[1][f"tmp/{path.name}"]
    assert path.exists()


@pytest.mark.parametrize("named", [True, False])
def test_unfinished_object_stays_while_its_submitter_is_alive(
    spool: Spool, paused: ProcessId, after: Callable[[float], None], named: bool
) -> None:
    run = new_submitter_id()
    entry = register(spool, paused, run=run if named else "")
    if not named:
        object_leases.acquire(spool, "inbox", ObjectLease("0" * 32, run))
    path = Path(spool.layout.tmp, f"{'0' * 32}.{run}")
    path.touch()
    after(10_000)
    assert f"tmp/{path.name}" in collect(spool)[1]
    assert path.exists()
    entry.unlink()
    collect(spool)
    assert not path.exists()


def test_task_that_was_submitted_since_it_was_found_keeps_its_links(
    spool: Spool, after: Callable[[float], None]
) -> None:
    path = unfinished(spool)
    needed = committed(spool)[0]
    link = DependencyLink(needed.name.partition(".")[0], path.name)
    spool.make_directories(f"{spool.layout.needs}/inbox")
    files.create(spool.layout.dependency_link("inbox", link), [])
    after(2)
    found = find_garbage(spool)
    assert [each.path for each in found[:2]] == [f"needs/inbox/{link.name}", f"tmp/{path.name}"]
    path.rename(Path(spool.layout.waiting, TaskFile(path.name, 1, 1).name))  # and then its submitter died
    assert remove(spool, found) == 0
    assert files.list_names(f"{spool.layout.needs}/inbox") == [link.name]


def test_link_of_a_task_that_appeared_since_it_was_found_stays(spool: Spool, after: Callable[[float], None]) -> None:
    header = new_header()
    link = DependencyLink(new_task_id(), header.task)
    spool.make_directories(f"{spool.layout.needs}/inbox")
    files.create(spool.layout.dependency_link("inbox", link), [])
    after(2)
    found = [each for each in find_garbage(spool) if each.path.startswith("needs/inbox/")]
    write(f"{spool.layout.tmp}/{header.task}", header)
    assert (len(found), remove(spool, found)) == (1, 0)


def test_empty_bucket_of_a_dropbox_is_removed_from_tmp(spool: Spool, after: Callable[[float], None]) -> None:
    path = Path(spool.layout.tmp, bucket_name(new_task_id(), new_submitter_id()))
    path.mkdir()
    assert f"tmp/{path.name}" not in collect(spool, RetentionPolicy())[0]
    after(2)
    collect(spool, RetentionPolicy())
    assert not path.exists()


# --------------------------------------------------------------------------------------- outcomes


def test_outcomes_stay_while_their_submitter_is_alive(
    spool: Spool, paused: ProcessId, after: Callable[[float], None]
) -> None:
    both = committed(spool)
    entry = register(spool, paused)
    after(10_000)
    stay = collect(spool)[1]
    assert "is alive" in stay["results/inbox"]
    assert all(path.exists() for path in both) and entry.exists()
    entry.unlink()
    collect(spool)
    assert not any(path.exists() for path in both)


@pytest.mark.parametrize("run", ["", "0123abcd"])
def test_session_that_is_opened_since_it_was_found_loses_nothing(
    spool: Spool, paused: ProcessId, after: Callable[[float], None], run: str
) -> None:
    both = committed(spool)
    spool.make_directories(f"{spool.layout.needs}/inbox")
    after(31)
    found = find_garbage(spool)
    assert {"results/inbox", "outgoing/inbox", "needs/inbox"} <= {each.path for each in found}
    entry = register(spool, paused, run=run)
    assert remove(spool, found) == 0
    assert all(path.exists() for path in both) and entry.exists()


def test_outcome_that_is_needed_since_it_was_found_stays(spool: Spool, after: Callable[[float], None]) -> None:
    path, outcome = committed(spool)
    after(31)
    found = find_garbage(spool)
    spool.make_directories(f"{spool.layout.needs}/inbox")
    link = DependencyLink(path.name.partition(".")[0], new_task_id())
    files.create(spool.layout.dependency_link("inbox", link), [])
    remove(spool, found)
    assert path.exists() and outcome.exists()


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_outcome_that_cannot_be_read_stays(
    spool: Spool, after: Callable[[float], None], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path, outcome = committed(spool)  # it may be the outcome of a lost task, which is kept
    failing(monkeypatch, "open_file", outcome, number)
    after(10_000)
    assert os.strerror(number) in collect(spool)[1][f"outgoing/inbox/{outcome.name}"]
    assert path.exists() and outcome.exists()


def test_directory_that_cannot_be_listed_is_reported(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    home = f"{spool.layout.cache}/1000"
    os.makedirs(home)
    failing(monkeypatch, "list_names", home, errno.EACCES)
    assert collect(spool)[1]["cache/1000"] == "it cannot be listed (Permission denied)"


def test_removal_that_fails_is_reported(spool: Spool, after: Callable[[float], None]) -> None:
    stay: dict[str, str] = {}

    def unknown() -> bool:
        raise OSError(errno.EIO, "Input/output error")

    path = unfinished(spool)
    item = GarbageItem(path=f"tmp/{path.name}", reason="test", is_garbage=unknown)
    assert remove(spool, [item], stay.__setitem__) == 0
    assert stay == {item.path: "Input/output error"} and path.exists()


# --------------------------------------------------------------------------- directories of sessions


@pytest.mark.parametrize("place", ["waiting", "ready", "claimed", "failed"])
def test_directories_of_a_shared_session_stay_while_it_has_a_task(
    shared: Spool, after: Callable[[float], None], place: str
) -> None:
    lane = f"{LANE}@{os.geteuid()}"
    header = new_header(lane=lane)
    task_file = TaskFile(header.task, 1, 1, new_worker_id() if place in ("claimed", "failed") else "")
    below = f"{lane}/{header.bucket}/" if place == "ready" else ""
    register(shared, dead_process())
    path = write(f"{shared.path}/{place}/{below}{task_file.name}", header)
    after(10_000)
    collect(shared)
    shared.close_directories()
    assert os.path.isdir(f"{shared.layout.results}/inbox") and os.path.isdir(f"{shared.layout.outgoing}/inbox")
    assert files.list_names(shared.layout.sessions) == ["inbox.json"]
    path.unlink()
    collect(shared)
    assert not os.path.exists(f"{shared.layout.results}/inbox")
    assert files.list_names(shared.layout.sessions) == []


def test_directories_of_a_shared_session_stay_if_a_task_cannot_be_read(
    shared: Spool, after: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    header = new_header("other", lane=f"{LANE}@{os.geteuid()}")
    path = write(f"{shared.layout.waiting}/{TaskFile(header.task, 1, 1).name}", header)
    register(shared, dead_process())
    after(10_000)
    with monkeypatch.context() as patch:
        failing(patch, "open_file", path)
        collect(shared)
    assert os.path.isdir(f"{shared.layout.results}/inbox"), "the task may be of this session"
    path.write_bytes(b"damaged: no worker can run it")
    collect(shared)
    assert not os.path.exists(f"{shared.layout.results}/inbox")


def test_shared_session_that_got_a_task_since_it_was_found_stays(
    shared: Spool, after: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("spoolpool.maintenance.submitters.time", clock)
    register(shared, dead_process())
    after(10_000)
    found = find_garbage(shared)
    assert "results/inbox" in [each.path for each in found]
    clock.sleep(2.0)
    header = new_header(lane=f"{LANE}@{os.geteuid()}")
    write(f"{shared.layout.waiting}/{TaskFile(header.task, 1, 1).name}", header)
    remove(shared, found)
    assert os.path.isdir(f"{shared.layout.results}/inbox")


# -------------------------------------------------------------------------------- cancel requests


def failed(spool: Spool, **fields: Any) -> TaskFile:
    header = new_header(**fields)
    task_file = TaskFile(header.task, 1, 1, new_worker_id())
    spool.open_session("inbox")
    write(f"{spool.layout.failed}/{task_file.name}", header)
    return task_file


def test_retry_removes_the_cancel_request_for_the_earlier_life(spool: Spool) -> None:
    task_file = failed(spool)
    cancel.request(spool, task_file.task)
    retry_task(spool, task_file.name)
    assert files.list_names(spool.layout.cancel) == []


def test_retry_that_cannot_remove_a_cancel_request_leaves_the_task(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_file = failed(spool)
    cancel.request(spool, task_file.task)
    failing(monkeypatch, "remove", f"{spool.layout.cancel}/{task_file.task}")
    with pytest.raises(Exception, match="cancel request"):
        retry_task(spool, task_file.name)
    assert files.list_names(spool.layout.failed) == [task_file.name]


def test_report_of_a_lost_task_removes_its_cancel_request(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    header = new_header(max_attempts=1)
    worker = announce(spool, dead_process())
    spool.open_session("inbox")
    write(spool.layout.claimed_task(TaskFile(header.task, 1, 1, worker)), header)
    cancel.request(spool, header.task)
    assert "reported as lost" in " ".join(Recovery(spool, all_workers=True).round())
    assert files.list_names(spool.layout.cancel) == []


def test_old_cancel_requests_of_ended_tasks_are_removed(spool: Spool, after: Callable[[float], None]) -> None:
    ended, nowhere, waits = failed(spool).task, new_task_id(), new_header()
    write(f"{spool.layout.waiting}/{TaskFile(waits.task, 1, 1).name}", waits)
    for task in (ended, nowhere, waits.task):
        cancel.request(spool, task)
    assert collect(spool, RetentionPolicy())[0] == []
    after(2)
    assert sorted(collect(spool, RetentionPolicy())[0]) == sorted([f"cancel/{ended}", f"cancel/{nowhere}"])
    assert files.list_names(spool.layout.cancel) == [waits.task]


def test_repeated_cancel_request_is_a_new_one(spool: Spool) -> None:
    task = new_task_id()
    cancel.request(spool, task)
    path = Path(spool.layout.cancel, task)
    os.utime(path, (0, 0))
    cancel.request(spool, task)
    assert path.stat().st_mtime > 0


def test_batch_jobs_are_kept_for_as_long_as_they_may_run(spool: Spool, after: Callable[[float], None]) -> None:
    spool.make_directories(spool.layout.jobs)
    path = Path(spool.layout.jobs, "spool-worker-0123456789abcdef.json")
    path.touch()
    after(29)
    collect(spool)
    assert path.exists()
    after(31)
    collect(spool)
    assert not path.exists()

"""Collection of garbage, and the command ``spool gc``."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click.testing
import msgspec
import pytest

from spoolpool import Executor
from spoolpool.calls import pickling
from spoolpool.cli.spool import main
from spoolpool.errors import WorkerLost
from spoolpool.format import envelope
from spoolpool.format import headers as records
from spoolpool.format.config import RetentionPolicy
from spoolpool.format.headers import TaskHeader
from spoolpool.format.layout import Layout
from spoolpool.format.names import (
    CANCELLED,
    DependencyLink,
    TaskFile,
    bucket_name,
    new_submitter_id,
    new_task_id,
    new_worker_id,
    parse_lane,
    parse_task_file,
)
from spoolpool.maintenance.check import check
from spoolpool.maintenance.garbage import find_garbage, remove
from spoolpool.maintenance.garbage_item import GarbageItem
from spoolpool.maintenance.repair import repair
from spoolpool.protocol import sessions
from spoolpool.protocol.claim import Claim
from spoolpool.protocol.claimer import Claimer
from spoolpool.protocol.failed_tasks import retry_task
from spoolpool.protocol.journal import Journal
from spoolpool.protocol.sessions import SessionInfo
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.tasks import read_task
from spoolpool.security.trust import Trust
from spoolpool.system import file_content, files
from spoolpool.system.processes import ProcessId
from tests.conftest import Workers
from tests.faults.disk import CRASHED, Disk, Fault, at, in_child
from tests.support import tasks
from tests.support.fake_worker import LANE, Clock, Stage, announce, dead_process, outcome_of, unknown_process
from tests.support.waiting import wait_until

DAY = 86400.0


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    """Spool with quick repairs."""
    return Spool.create(tmp_path / "spool", durability="none", lease=0.3, caches=0.2)


@pytest.fixture
def after(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Advance the clock of the file server by some days."""
    real = Spool.server_time

    def advance(days: float) -> None:
        monkeypatch.setattr(Spool, "server_time", lambda spool: real(spool) + days * DAY)

    return advance


def new_header(session: str) -> TaskHeader:
    task = new_task_id()
    return TaskHeader(task=task, session=session, lane=LANE, bucket=bucket_name(task, new_submitter_id()))


def put(spool: Spool, place: str, worker: str = "", session: str = "inbox") -> str:
    """Create a task, with its outcome if the place is ``results``; return its relative path."""
    header = new_header(session)
    task_file = TaskFile(header.task, 1, 1, worker)
    where = {
        "ready": f"ready/{LANE}/{header.bucket}",
        "results": f"results/{session}",
        "outgoing": f"outgoing/{session}",
    }.get(place, place)
    spool.open_session(session)
    spool.make_directories(f"{spool.path}/{where}")
    files.create(f"{spool.path}/{where}/{task_file.name}", envelope.pack(records.encode(header), b"x"))
    if place == "results" and worker != CANCELLED:
        files.create(spool.layout.outcome(session, task_file), outcome_of(header, task_file))
    return f"{where}/{task_file.name}"


def lost(spool: Spool, session: str = "inbox") -> TaskFile:
    """Create a task that was reported as lost with its workers."""
    header = new_header(session)
    task_file = TaskFile(header.task, 3, 3, new_worker_id())
    spool.open_session(session)
    files.create(spool.layout.claimed_task(task_file), envelope.pack(records.encode(header), b"x"))
    Claim(spool, header, task_file).report_lost("it died")
    return task_file


def submitter(spool: Spool, session: str, process: ProcessId) -> None:
    """Register the submitter of a session."""
    info = SessionInfo(process=process, user="tester")
    files.create(f"{spool.layout.sessions}/{session}.json", [msgspec.json.encode(info)])
    spool.open_session(session)


def paths(found: list[GarbageItem]) -> list[str]:
    return [each.path for each in found]


def tree(spool: Spool) -> set[str]:
    root = Path(spool.path)
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}


def age(spool: Spool, path: str, days: float) -> None:
    """Set the age of a file, by the clock of the file server."""
    when = spool.server_time() - days * DAY
    os.utime(f"{spool.path}/{path}", (when, when))


# -------------------------------------------------------------------------------------- no garbage


def test_waiting_running_and_failed_tasks_are_kept_at_any_age(spool: Spool, after: Callable[[float], None]) -> None:
    for place in ("ready", "waiting"):
        put(spool, place)
    for place in ("claimed", "failed"):
        put(spool, place, new_worker_id())
    put(spool, "claimed", announce(spool, dead_process()))
    after(10_000)
    before = tree(spool)
    found = find_garbage(spool)
    assert not any(each.path.startswith(("ready/", "waiting/", "claimed/", "failed/")) for each in found)
    remove(spool, found)
    assert tree(spool) == before


def test_unknown_names_and_symbolic_links_are_kept_at_any_age(
    spool: Spool, tmp_path: Path, after: Callable[[float], None]
) -> None:
    spool.open_session("inbox")
    outside = tmp_path / "outside"
    outside.mkdir()
    task_file = TaskFile(new_task_id(), 1, 1, new_worker_id())
    (outside / task_file.name).write_text("other")
    root = Path(spool.path)
    for name in ("tmp/junk", "journal/junk", "logs/junk", "results/inbox/junk", "sessions/junk", "ready/junk"):
        (root / name).touch()
        age(spool, name, 10_000)
    (root / "tmp" / new_task_id()).symlink_to(outside / task_file.name)
    (root / "journal" / f"{new_worker_id()}.jsonl").symlink_to(outside / task_file.name)
    (root / "results" / "linked").symlink_to(outside)
    (root / "outgoing" / "linked").symlink_to(outside)
    os.mkfifo(root / "tmp" / new_task_id())
    half = put(spool, "results", new_worker_id(), "half")
    (root / "outgoing" / "half").rename(outside / "half")
    (root / "outgoing" / "half").symlink_to(outside / "half")
    before = tree(spool)
    after(10_000)
    remove(spool, find_garbage(spool))
    assert tree(spool) == before
    assert sorted(path.name for path in outside.iterdir()) == sorted([task_file.name, "half"])
    assert (outside / "half" / os.path.basename(half)).exists()


def test_committed_task_without_an_outcome_is_kept(spool: Spool, after: Callable[[float], None]) -> None:
    """No process can have its outcome: 'spool check --repair' requeues it."""
    path = put(spool, "results", new_worker_id())
    (Path(spool.path) / path.replace("results", "outgoing")).unlink()
    after(10_000)
    assert path not in paths(find_garbage(spool))


# ------------------------------------------------------------------------------------ results


def test_outcomes_are_removed_after_their_retention_time(spool: Spool, after: Callable[[float], None]) -> None:
    path = put(spool, "results", new_worker_id())
    cancelled = put(spool, "results", CANCELLED)
    after(29.9)
    assert find_garbage(spool) == []
    after(30.1)
    outcome = path.replace("results", "outgoing")
    found = find_garbage(spool)
    assert {path, outcome, cancelled} <= set(paths(found))
    assert "30 d" in found[0].reason
    remove(spool, found)
    assert tree(spool) == {"spool.json"}


def test_age_of_an_outcome_begins_with_its_commit(spool: Spool) -> None:
    """A complete outcome of a dead worker may exist for long before it is committed."""
    path = put(spool, "results", new_worker_id())
    for each in (path, path.replace("results", "outgoing")):
        age(spool, each, 100)
    root = Path(spool.path)
    (root / path).rename(root / "claimed" / os.path.basename(path))
    (root / "claimed" / os.path.basename(path)).rename(root / path)
    assert find_garbage(spool) == []


@pytest.mark.parametrize("offset", [-7200.0, 7200.0])
def test_clocks_of_hosts_do_not_matter(spool: Spool, monkeypatch: pytest.MonkeyPatch, offset: float) -> None:
    task, session = new_task_id(), new_worker_id()
    for name in (f"tmp/{task}", f"journal/{session}.jsonl"):
        (Path(spool.path) / name).touch()
    put(spool, "results", new_worker_id())
    keep = RetentionPolicy(results=3600.0, unfinished=3600.0, journals=3600.0, logs=3600.0, sessions=3600.0)
    monkeypatch.setattr("time.time", lambda: 1e9 + offset)
    assert find_garbage(spool, keep) == []


def test_committed_task_is_removed_before_its_outcome(spool: Spool, after: Callable[[float], None]) -> None:
    for _ in range(5):
        put(spool, "results", new_worker_id())
    after(31)
    order = paths(find_garbage(spool))
    for path in order:
        if path.startswith("results/inbox/"):
            assert order.index(path) < order.index(path.replace("results", "outgoing"))
    assert order.index("results/inbox") > max(order.index(path) for path in order if path.startswith("results/inbox/"))


def test_outcome_is_kept_if_its_task_cannot_be_removed(
    spool: Spool, after: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(spool, "results", new_worker_id())
    after(31)
    found = find_garbage(spool)
    real = files.remove

    def refused(each: str) -> bool:
        if each == f"{spool.path}/{path}":
            raise PermissionError(1, "Operation not permitted", each)
        return real(each)

    monkeypatch.setattr(files, "remove", refused)
    remove(spool, found)
    assert {path, path.replace("results", "outgoing")} <= tree(spool)


def test_lost_task_is_moved_to_failed(spool: Spool, after: Callable[[float], None]) -> None:
    task_file = lost(spool)
    after(31)
    found = find_garbage(spool)
    assert f"kept as failed/{task_file.name}" in found[0].reason
    remove(spool, found)
    assert tree(spool) == {"spool.json", f"failed/{task_file.name}"}
    assert retry_task(spool, task_file.name) == task_file.task


def unfinished_dependent(spool: Spool) -> None:
    """Create what a submitter leaves that dies before the rename of a task with a dependency."""
    submitter(spool, "inbox", dead_process())
    header = new_header("inbox")
    spool.make_directories(f"{spool.layout.needs}/inbox")
    files.create(f"{spool.layout.tmp}/{header.task}", envelope.pack(records.encode(header), b"x"))
    files.create(spool.layout.dependency_link("inbox", DependencyLink(new_task_id(), header.task)), [])


@pytest.mark.parametrize(
    "make",
    [lambda spool: put(spool, "results", new_worker_id()), lost, unfinished_dependent],
    ids=["result", "lost", "unfinished"],
)
def test_collection_that_is_killed_anywhere_leaves_only_garbage(
    tmp_path: Path, after: Callable[[float], None], make: Callable[[Spool], object]
) -> None:
    after(31)
    for number in itertools.count(1):
        spool = Spool.create(tmp_path / f"spool-{number}", durability="none", lease=0.1, caches=0.1)
        make(spool)
        disk = Disk(at(number, Fault("before")), only=frozenset({"unlink", "rename", "rmdir"}))
        ended = in_child(disk, lambda spool=spool: remove(spool, find_garbage(spool)))
        for path in tree(spool):
            if path.startswith("results/"):
                assert path.replace("results", "outgoing") in tree(spool), (
                    "a committed task without its outcome is a loss"
                )
        orphans = [each for each in check(spool, deep=False) if each.kind == "orphan outcome"]
        repair(spool, orphans)
        remove(spool, find_garbage(spool))
        assert {path for path in tree(spool) if not path.startswith("failed/")} == {"spool.json"}
        if ended != CRASHED:
            assert number > 3
            break


# ------------------------------------------------------------------------------- ended sessions


def test_outcomes_of_a_dead_submitter_are_removed_earlier(spool: Spool, after: Callable[[float], None]) -> None:
    for session, process in (
        ("dead", dead_process()),
        ("far", unknown_process()),
        ("alive", ProcessId.of(os.getpid())),
    ):
        submitter(spool, session, process)
        put(spool, "results", new_worker_id(), session)
    put(spool, "results", new_worker_id(), "unknown")
    assert find_garbage(spool) == []
    after(1.1)
    found = find_garbage(spool)
    assert len(found) == 5
    assert all(each.path.split("/")[1].startswith("dead") for each in found)
    assert all("its submitter is dead" in each.reason for each in found)
    assert remove(spool, found) == 5
    assert not any("dead" in path for path in os.listdir(spool.layout.results) + os.listdir(spool.layout.outgoing))
    assert sorted(os.listdir(spool.layout.sessions)) == ["alive.json", "far.json"]


def test_running_tasks_of_a_dead_submitter_are_removed_after_their_commit(
    spool: Spool, after: Callable[[float], None]
) -> None:
    submitter(spool, "dead", dead_process())
    put(spool, "results", new_worker_id(), "dead")
    running = put(spool, "claimed", new_worker_id(), "dead")
    name = os.path.basename(running)
    task_file = parse_task_file(name)
    assert task_file is not None
    header = read_task(spool, f"{spool.path}/{running}", task_file)
    files.create(spool.layout.outcome("dead", task_file), outcome_of(header, task_file))
    after(1.1)
    remove(spool, find_garbage(spool))
    assert {running, f"outgoing/dead/{name}"} <= tree(spool)
    assert "sessions/dead.json" in tree(spool), "only this file tells that the submitter is dead"
    assert Claim(spool, header, task_file).commit()
    after(2.2)
    remove(spool, find_garbage(spool))
    assert tree(spool) == {"spool.json"}


def test_session_of_a_submitter_that_died_while_closing_is_removed(
    spool: Spool, after: Callable[[float], None]
) -> None:
    for number, done in enumerate((("results",), ("results", "outgoing"))):
        submitter(spool, f"dead{number}", dead_process())
        for directory in done:
            (Path(spool.path) / directory / f"dead{number}").rmdir()
    after(1.1)
    remove(spool, find_garbage(spool))
    assert tree(spool) == {"spool.json"}
    assert os.listdir(spool.layout.outgoing) == []


def test_empty_unknown_sessions_are_removed(spool: Spool, after: Callable[[float], None]) -> None:
    spool.open_session("unknown")
    submitter(spool, "far", unknown_process())
    after(31)
    remove(spool, find_garbage(spool))
    assert tree(spool) == {"spool.json"}
    assert os.listdir(spool.layout.results) == []


# ------------------------------------------------------------------ tmp, journals, logs, buckets


def test_unfinished_writes_journals_and_logs_are_removed_by_age(spool: Spool) -> None:
    task, worker, thing = new_task_id(), new_worker_id(), "0" * 32
    olds = {
        0.9: [],
        1.1: [f"tmp/{task}", f"tmp/{worker}.info", f"tmp/{thing}.session", "tmp/spool.json"],
        30.1: [f"logs/{worker}.0", f"logs/{worker}.12.3"],
        365.1: [f"journal/{worker}.jsonl"],
    }
    every = [path for old in olds.values() for path in old]
    for path in every:
        (Path(spool.path) / path).touch()
    gone: list[str] = []
    for days, going in olds.items():
        for path in every:
            age(spool, path, days)
        gone += going
        assert sorted(paths(find_garbage(spool))) == sorted(gone)
    remove(spool, find_garbage(spool))
    assert tree(spool) == {"spool.json"}


def test_journal_of_a_registered_worker_is_kept(spool: Spool) -> None:
    live, ended = announce(spool, unknown_process()), new_worker_id()
    for writer in (live, ended):
        journal = Journal(spool, writer)
        journal.write("worker started")
        journal.close()
        age(spool, f"journal/{writer}.jsonl", 400)
    assert paths(find_garbage(spool)) == [f"journal/{ended}.jsonl"]


def test_only_empty_buckets_are_removed(spool: Spool, after: Callable[[float], None]) -> None:
    waiting = put(spool, "ready")
    empty = put(spool, "ready")
    (Path(spool.path) / empty).unlink()
    assert find_garbage(spool) == []
    after(1.1)
    found = find_garbage(spool)
    assert paths(found) == [os.path.dirname(empty)]
    put_back = Path(spool.path) / empty
    put_back.touch()
    remove(spool, found)
    assert put_back.exists(), "it is in use again"
    put_back.unlink()
    assert remove(spool, find_garbage(spool)) == 1
    assert (Path(spool.path) / waiting).exists()


def test_claimer_removes_an_empty_bucket_after_its_submitter_began_the_next(spool: Spool) -> None:
    submitter_id, root = new_submitter_id(), Path(spool.path)

    def bucket(priority: int, lane: str = LANE) -> Path:
        path = root / "ready" / lane / bucket_name(new_task_id(priority), submitter_id)
        path.mkdir(parents=True)
        return path

    urgent, first, other = bucket(9), bucket(0), bucket(0, LANE.replace("default", "other"))
    claimer = Claimer(spool, new_worker_id(), lambda _: True, Trust())
    assert claimer.next() is None
    assert urgent.exists() and first.exists() and other.exists()
    second = bucket(0)
    assert claimer.next() is None
    assert not first.exists()
    assert urgent.exists() and second.exists() and other.exists()


# ------------------------------------------------------------------------ files of finished sessions


def test_finished_session_leaves_only_journals(tmp_path: Path, worker: Workers) -> None:
    spool = Spool.create(tmp_path / "spool", durability="none")
    process = worker(spool)
    with Executor(spool=spool.path) as executor:
        pending = [executor.submit(pow, number, 2, resource_dict={"priority": number % 3}) for number in range(190)]
        failing = [executor.submit(tasks.fail, tasks.OwnError("no")) for _ in range(5)]
        again = [
            executor.submit(tasks.fail, tasks.OwnError("no"), resource_dict={"retries": 1, "retry_delay": 0.0})
            for _ in range(5)
        ]
        assert [future.result() for future in pending] == [number**2 for number in range(190)]
        assert all(isinstance(future.exception(), tasks.OwnError) for future in [*failing, *again])
        cancelled = executor.submit(pow, 2, 2, resource_dict={"cores": 7})
        assert cancelled.cancel()
    process.terminate()
    process.wait()
    root = Path(spool.path)
    left = {str(path.relative_to(root)) for path in root.rglob("*")}
    journals = {path for path in left if path.startswith("journal/")}
    lanes = {path for path in left if path.startswith("ready/")}
    assert len(journals) == 2  # of the worker, and of all sessions of this account on this host
    assert left - journals - lanes == {"spool.json", *Layout.DIRECTORIES}
    assert all(parse_lane(path.removeprefix("ready/")) for path in lanes), "only empty lane directories"
    assert check(spool) == []


SUBMIT_AND_DIE = """
import os, sys
from spoolpool import Executor

executor = Executor(spool=sys.argv[1])
pending = [executor.submit(pow, number, 2) for number in range(20)]
print("submitted", flush=True)
os._exit(1)
"""


def test_garbage_of_a_killed_submitter_is_removed_completely(
    tmp_path: Path, worker: Workers, after: Callable[[float], None]
) -> None:
    spool = Spool.create(tmp_path / "spool", durability="none")
    ended = subprocess.run([sys.executable, "-c", SUBMIT_AND_DIE, spool.path], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (1, "submitted\n")
    process = worker(spool)
    wait_until(lambda: not files.list_names(spool.layout.claimed) and len(done(spool)) == 20, "all tasks are done")
    after(1.1)
    assert run("gc", spool.path, "--journals", 0).exit_code == 0
    process.terminate()
    process.wait()
    left = tree(spool)
    assert {path.split("/")[0] for path in left} == {"spool.json", "journal"}
    assert all(not files.list_names(f"{spool.layout.ready}/{lane}") for lane in files.list_names(spool.layout.ready))


def done(spool: Spool) -> list[str]:
    """Return the names of all committed tasks."""
    return [
        name
        for session in files.list_names(spool.layout.results)
        for name in files.list_names(f"{spool.layout.results}/{session}")
    ]


def test_collection_removes_nothing_of_sessions_in_use(tmp_path: Path, worker: Workers) -> None:
    spool = Spool.create(tmp_path / "spool", durability="none")
    worker(spool)
    with Executor(spool=spool.path) as executor:
        pending = [executor.submit(pow, number, 2) for number in range(300)]
        while not all(future.done() for future in pending):
            remove(spool, find_garbage(spool))
        assert [future.result() for future in pending] == [number**2 for number in range(300)]


def test_lost_task_has_an_outcome_for_its_submitter(spool: Spool) -> None:
    """The collection of garbage moves it to the same place as its submitter would."""
    task_file = lost(spool)
    path = spool.layout.outcome("inbox", task_file)
    fd = files.open_file(path)
    try:
        content = envelope.read(fd, file_content.size(fd), path)
    finally:
        files.close(fd)
    assert records.decode_outcome(content.header, path).kind == "lost"
    assert isinstance(pickling.loads(content.payload, content.buffers), WorkerLost)


# ------------------------------------------------------------------------------------------ command


def run(*arguments: object) -> click.testing.Result:
    return click.testing.CliRunner().invoke(main, [str(each) for each in arguments], prog_name="spool")


def test_dry_run_lists_reasons_and_removes_nothing(spool: Spool, after: Callable[[float], None]) -> None:
    path = put(spool, "results", new_worker_id())
    orphan = put(spool, "outgoing", new_worker_id())
    after(31)
    before = tree(spool)
    result = run("gc", "-n", spool.path)
    assert result.exit_code == 0
    *lines, last = result.output.splitlines()
    assert f"{path}  (not collected for 30 d)" in lines
    assert f"{orphan}  (orphan outcome)" in lines
    assert last == f"Would remove {len(lines)} file(s) and directories."
    assert tree(spool) == before


def test_command_prints_the_number_of_removed_files(spool: Spool, after: Callable[[float], None]) -> None:
    put(spool, "results", new_worker_id())
    put(spool, "outgoing", new_worker_id())
    after(31)
    result = run("gc", spool.path)
    assert result.exit_code == 0
    assert "second check of 1 orphan outcome(s)" in result.stderr
    assert result.stdout.splitlines()[-1] == "Removed 5 file(s) and directories."
    assert tree(spool) == {"spool.json"}
    assert run("gc", spool.path).output == "Removed 0 file(s) and directories.\n"


def test_logs_and_journals_of_registered_workers_are_kept(spool: Spool) -> None:
    worker = announce(spool, unknown_process())
    for path in (f"logs/{worker}.0", f"journal/{worker}.jsonl"):
        (Path(spool.path) / path).touch()
        age(spool, path, 10_000)
    assert paths(find_garbage(spool)) == []


def test_options_override_the_retention_policy(spool: Spool) -> None:
    task, worker = new_task_id(), new_worker_id()
    for name in (f"tmp/{task}", f"logs/{worker}.0", f"journal/{worker}.jsonl"):
        (Path(spool.path) / name).touch()
        age(spool, name, 0.6)
    for option, name in (
        ("unfinished", f"tmp/{task}"),
        ("logs", f"logs/{worker}.0"),
        ("journals", f"journal/{worker}"),
    ):
        result = run("gc", "-n", spool.path, f"--{option}", 0.5)
        assert [line.split()[0] for line in result.output.splitlines()[:-1]] == [
            name + ".jsonl" * (option == "journals")
        ]
    assert run("gc", spool.path).output == "Removed 0 file(s) and directories.\n"


@pytest.mark.parametrize("option", ["results", "sessions", "unfinished", "journals", "logs"])
def test_negative_retention_time_is_refused(spool: Spool, option: str) -> None:
    put(spool, "results", new_worker_id())
    before = tree(spool)
    assert run("gc", spool.path, f"--{option}", -1).exit_code == 2
    assert tree(spool) == before


def test_retention_policy_is_read_from_the_spool(spool: Spool) -> None:
    config = msgspec.structs.replace(spool.config, keep=RetentionPolicy(unfinished=60.0))
    Path(spool.layout.config).write_bytes(msgspec.json.encode(config))
    spool = Spool(spool.path)
    task = new_task_id()
    (Path(spool.path) / "tmp" / task).touch()
    age(spool, f"tmp/{task}", 100 / DAY)
    assert [each.reason for each in find_garbage(spool)] == ["an unfinished write older than 60 s"]


def test_retention_policy_without_a_new_field_is_read(spool: Spool) -> None:
    data = msgspec.json.decode(Path(spool.layout.config).read_bytes())
    del data["keep"]["sessions"]
    Path(spool.layout.config).write_bytes(msgspec.json.encode(data))
    assert Spool(spool.path).config.keep.sessions == DAY


def test_collection_works_on_a_full_disk(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    task = new_task_id()
    (Path(spool.path) / "tmp" / task).touch()
    age(spool, f"tmp/{task}", 2)

    def full(path: str, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", path)

    monkeypatch.setattr(files, "create", full)
    assert remove(spool, find_garbage(spool)) == 1


# ------------------------------------------------------------------------------------ dependencies


def chain(spool: Spool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[TaskHeader]:
    """Run a chain of three dependent tasks and leave their outcomes uncollected."""
    stage = Stage(tmp_path / "stage", Clock.installed(monkeypatch))
    stage.spool = spool
    inbox = stage.inbox()
    futures = [inbox.put(str, 1)]
    for _ in range(2):
        futures.append(inbox.put(str, futures[-1]))
    stage.work()
    inbox.forget()
    sessions.unregister(spool, inbox.entry)
    return [future.header for future in futures]


def test_old_outcomes_of_a_chain_are_removed_with_their_links(
    spool: Spool, after: Callable[[float], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chain(spool, monkeypatch, tmp_path)
    assert len(files.list_names(f"{spool.layout.needs}/inbox")) == 2
    after(31)
    remove(spool, find_garbage(spool))
    assert files.list_names(f"{spool.layout.needs}") == files.list_names(spool.layout.results) == []


def test_dependencies_of_a_failed_task_are_kept(
    spool: Spool, after: Callable[[float], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, second, third = chain(spool, monkeypatch, tmp_path)
    [name] = [name for name in files.list_names(f"{spool.layout.results}/inbox") if name.startswith(third.task)]
    os.rename(f"{spool.layout.results}/inbox/{name}", f"{spool.layout.failed}/{name}")
    after(31)
    remove(spool, find_garbage(spool))
    assert {name.partition(".")[0] for name in files.list_names(f"{spool.layout.results}/inbox")} == {
        first.task,
        second.task,
    }
    assert len(files.list_names(f"{spool.layout.needs}/inbox")) == 2


def test_links_are_removed_before_an_unfinished_write_and_without_a_task(
    spool: Spool, after: Callable[[float], None]
) -> None:
    needed, unfinished, nowhere = new_task_id(), new_task_id(), new_task_id()
    spool.make_directories(f"{spool.layout.needs}/inbox")
    for task in (unfinished, nowhere):
        files.create(spool.layout.dependency_link("inbox", DependencyLink(needed, task)), [])
    files.create(f"{spool.layout.tmp}/{unfinished}", [])
    assert [each for each in find_garbage(spool) if "needs/" in each.path] == []
    after(2)
    found = [each.path for each in find_garbage(spool)]
    assert found.index(f"needs/inbox/{needed}.{unfinished}") < found.index(f"tmp/{unfinished}")
    remove(spool, find_garbage(spool))
    assert files.list_names(f"{spool.layout.needs}/inbox") == files.list_names(spool.layout.tmp) == []

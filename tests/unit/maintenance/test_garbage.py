"""``spool gc`` removes what nobody will ask for any more, and nothing that somebody still needs."""

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
from spoolpool.format.config import Keep
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
from spoolpool.maintenance.check import check, repair
from spoolpool.maintenance.garbage import GarbageItem, find_garbage, remove
from spoolpool.protocol.claim import Claim
from spoolpool.protocol.claimer import Claimer
from spoolpool.protocol.journal import Journal
from spoolpool.protocol.retry import retry_task
from spoolpool.protocol.sessions import SessionInfo
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.tasks import read_task
from spoolpool.security.trust import Trust
from spoolpool.system import files
from spoolpool.system.processes import ProcessId
from tests.conftest import Workers
from tests.faults.disk import CRASHED, Disk, Fault, at, in_child
from tests.support import tasks
from tests.support.fake_worker import LANE, Clock, Stage, announce, dead_process, outcome_of, unknown_process
from tests.support.waiting import wait_until

DAY = 86400.0


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    """A spool whose repairs do not take long."""
    return Spool.create(tmp_path / "spool", durability="none", lease=0.3, caches=0.2)


@pytest.fixture
def after(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let so many days pass by the clock that dates the spool's files."""
    real = Spool.server_time

    def pass_by(days: float) -> None:
        monkeypatch.setattr(Spool, "server_time", lambda spool: real(spool) + days * DAY)

    return pass_by


def new_header(session: str) -> TaskHeader:
    task = new_task_id()
    return TaskHeader(task=task, session=session, lane=LANE, bucket=bucket_name(task, new_submitter_id()))


def put(spool: Spool, place: str, worker: str = "", session: str = "inbox") -> str:
    """A task in a place, with its outcome if that is ``results``; its path below the spool."""
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
    """A task whose workers died, and whose outcome says so."""
    header = new_header(session)
    task_file = TaskFile(header.task, 3, 3, new_worker_id())
    spool.open_session(session)
    files.create(spool.layout.claimed_task(task_file), envelope.pack(records.encode(header), b"x"))
    Claim(spool, header, task_file).report_lost("it died")
    return task_file


def submitter(spool: Spool, session: str, process: ProcessId) -> None:
    """Say who submits."""
    info = SessionInfo(process=process, user="tester")
    files.create(f"{spool.layout.sessions}/{session}.json", [msgspec.json.encode(info)])
    spool.open_session(session)


def paths(found: list[GarbageItem]) -> list[str]:
    return [each.path for each in found]


def tree(spool: Spool) -> set[str]:
    root = Path(spool.path)
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}


def age(spool: Spool, path: str, days: float) -> None:
    """Make a file so old, by the clock that dates the spool's files."""
    when = spool.server_time() - days * DAY
    os.utime(f"{spool.path}/{path}", (when, when))


# ----------------------------------------------------------------------------- what is not rubbish


def test_nothing_that_waits_runs_or_failed_goes_however_old_it_is(spool: Spool, after: Callable[[float], None]) -> None:
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


def test_unknown_names_and_links_stay_however_old_they_are(
    spool: Spool, tmp_path: Path, after: Callable[[float], None]
) -> None:
    spool.open_session("inbox")
    outside = tmp_path / "outside"
    outside.mkdir()
    task_file = TaskFile(new_task_id(), 1, 1, new_worker_id())
    (outside / task_file.name).write_text("somebody's")
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


def test_a_committed_task_whose_outcome_is_missing_stays(spool: Spool, after: Callable[[float], None]) -> None:
    """It never had an outcome that anybody could have: 'spool check --repair' lets it run again."""
    path = put(spool, "results", new_worker_id())
    (Path(spool.path) / path.replace("results", "outgoing")).unlink()
    after(10_000)
    assert path not in paths(find_garbage(spool))


# ------------------------------------------------------------------------------------ results


def test_outcomes_go_with_their_age_and_not_before(spool: Spool, after: Callable[[float], None]) -> None:
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


def test_the_age_of_an_outcome_is_the_time_since_it_was_published(spool: Spool) -> None:
    """A dead worker's complete outcome may lie for long until somebody publishes it."""
    path = put(spool, "results", new_worker_id())
    for each in (path, path.replace("results", "outgoing")):
        age(spool, each, 100)
    root = Path(spool.path)
    (root / path).rename(root / "claimed" / os.path.basename(path))
    (root / "claimed" / os.path.basename(path)).rename(root / path)
    assert find_garbage(spool) == []


@pytest.mark.parametrize("offset", [-7200.0, 7200.0])
def test_no_hosts_clock_takes_part(spool: Spool, monkeypatch: pytest.MonkeyPatch, offset: float) -> None:
    task, session = new_task_id(), new_worker_id()
    for name in (f"tmp/{task}", f"journal/{session}.jsonl"):
        (Path(spool.path) / name).touch()
    put(spool, "results", new_worker_id())
    keep = Keep(results=3600.0, unfinished=3600.0, journals=3600.0, logs=3600.0, sessions=3600.0)
    monkeypatch.setattr("time.time", lambda: 1e9 + offset)
    assert find_garbage(spool, keep) == []


def test_of_a_result_the_task_goes_before_the_outcome(spool: Spool, after: Callable[[float], None]) -> None:
    for _ in range(5):
        put(spool, "results", new_worker_id())
    after(31)
    order = paths(find_garbage(spool))
    for path in order:
        if path.startswith("results/inbox/"):
            assert order.index(path) < order.index(path.replace("results", "outgoing"))
    assert order.index("results/inbox") > max(order.index(path) for path in order if path.startswith("results/inbox/"))


def test_an_outcome_stays_where_its_task_cannot_be_removed(
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


def test_a_task_that_was_lost_with_its_workers_is_kept_as_a_collector_would(
    spool: Spool, after: Callable[[float], None]
) -> None:
    task_file = lost(spool)
    after(31)
    found = find_garbage(spool)
    assert f"kept as failed/{task_file.name}" in found[0].reason
    remove(spool, found)
    assert tree(spool) == {"spool.json", f"failed/{task_file.name}"}
    assert retry_task(spool, task_file.name) == task_file.task


@pytest.mark.parametrize("make", [lambda spool: put(spool, "results", new_worker_id()), lost], ids=["result", "lost"])
def test_a_collection_that_dies_anywhere_leaves_only_rubbish(
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
                assert path.replace("results", "outgoing") in tree(spool), "a task without its outcome is a loss"
        orphans = [each for each in check(spool, deep=False) if each.kind == "orphan outcome"]
        repair(spool, orphans)
        remove(spool, find_garbage(spool))
        assert {path for path in tree(spool) if not path.startswith("failed/")} == {"spool.json"}
        if ended != CRASHED:
            assert number > 3
            break


# --------------------------------------------------------------------------- sessions that ended


def test_what_a_dead_submitter_left_goes_sooner(spool: Spool, after: Callable[[float], None]) -> None:
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


def test_a_dead_submitters_tasks_that_still_run_are_collected_in_the_end(
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
    assert "sessions/dead.json" in tree(spool), "else nobody would know that the submitter is gone"
    assert Claim(spool, header, task_file).commit()
    after(2.2)
    remove(spool, find_garbage(spool))
    assert tree(spool) == {"spool.json"}


def test_the_leftovers_of_a_close_that_died_halfway_go(spool: Spool, after: Callable[[float], None]) -> None:
    for number, done in enumerate((("results",), ("results", "outgoing"))):
        submitter(spool, f"dead{number}", dead_process())
        for directory in done:
            (Path(spool.path) / directory / f"dead{number}").rmdir()
    after(1.1)
    remove(spool, find_garbage(spool))
    assert tree(spool) == {"spool.json"}
    assert os.listdir(spool.layout.outgoing) == []


def test_empty_sessions_that_nobody_knows_go_in_the_end(spool: Spool, after: Callable[[float], None]) -> None:
    spool.open_session("unknown")
    submitter(spool, "far", unknown_process())
    after(31)
    remove(spool, find_garbage(spool))
    assert tree(spool) == {"spool.json"}
    assert os.listdir(spool.layout.results) == []


# ------------------------------------------------------------------ tmp, journals, logs, buckets


def test_unfinished_writes_journals_and_logs_go_with_their_age(spool: Spool) -> None:
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


def test_the_journal_of_a_worker_that_still_has_its_entry_stays(spool: Spool) -> None:
    live, ended = announce(spool, unknown_process()), new_worker_id()
    for writer in (live, ended):
        journal = Journal(spool, writer)
        journal.write("worker started")
        journal.close()
        age(spool, f"journal/{writer}.jsonl", 400)
    assert paths(find_garbage(spool)) == [f"journal/{ended}.jsonl"]


def test_empty_buckets_of_dead_submitters_go_and_others_stay(spool: Spool, after: Callable[[float], None]) -> None:
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
    assert put_back.exists(), "somebody came back to it"
    put_back.unlink()
    assert remove(spool, find_garbage(spool)) == 1
    assert (Path(spool.path) / waiting).exists()


def test_a_claimer_removes_an_empty_bucket_only_when_its_submitter_went_on_to_the_next(spool: Spool) -> None:
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


# -------------------------------------------------------------------- nothing is left of what is done


def test_a_session_that_is_done_leaves_no_inode_but_journals(tmp_path: Path, worker: Workers) -> None:
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
    assert len(journals) == 2  # the worker's, and that of all sessions of this account on this host
    assert left - journals - lanes == {"spool.json", *Layout.DIRECTORIES}
    assert all(parse_lane(path.removeprefix("ready/")) for path in lanes), "lane directories, and empty ones"
    assert check(spool) == []


SUBMIT_AND_DIE = """
import os, sys
from spoolpool import Executor

executor = Executor(spool=sys.argv[1])
pending = [executor.submit(pow, number, 2) for number in range(20)]
print("submitted", flush=True)
os._exit(1)
"""


def test_what_a_killed_submitter_left_is_nothing_after_a_collection(
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
    """Names of all committed tasks."""
    return [
        name
        for session in files.list_names(spool.layout.results)
        for name in files.list_names(f"{spool.layout.results}/{session}")
    ]


def test_a_collection_takes_nothing_from_sessions_in_use(tmp_path: Path, worker: Workers) -> None:
    spool = Spool.create(tmp_path / "spool", durability="none")
    worker(spool)
    with Executor(spool=spool.path) as executor:
        pending = [executor.submit(pow, number, 2) for number in range(300)]
        while not all(future.done() for future in pending):
            remove(spool, find_garbage(spool))
        assert [future.result() for future in pending] == [number**2 for number in range(300)]


def test_a_lost_task_is_collected_as_failed_by_its_submitter_too(spool: Spool) -> None:
    """What the collection of garbage does with it is the same."""
    task_file = lost(spool)
    path = spool.layout.outcome("inbox", task_file)
    fd = files.open_file(path)
    try:
        content = envelope.read(fd, files.size(fd), path)
    finally:
        files.close(fd)
    assert records.decode_outcome(content.header, path).kind == "lost"
    assert isinstance(pickling.loads(content.payload, content.buffers), WorkerLost)


# --------------------------------------------------------------------------------- the command line


def run(*arguments: object) -> click.testing.Result:
    return click.testing.CliRunner().invoke(main, [str(each) for each in arguments], prog_name="spool")


def test_a_dry_run_lists_with_reasons_and_removes_nothing(spool: Spool, after: Callable[[float], None]) -> None:
    path = put(spool, "results", new_worker_id())
    orphan = put(spool, "outgoing", new_worker_id())
    after(31)
    before = tree(spool)
    shown = run("gc", "-n", spool.path)
    assert shown.exit_code == 0
    *lines, last = shown.output.splitlines()
    assert f"{path}  (not collected for 30 d)" in lines
    assert f"{orphan}  (an outcome without a task)" in lines
    assert last == f"Would remove {len(lines)} file(s) and directories."
    assert tree(spool) == before


def test_the_command_removes_and_says_how_much(spool: Spool, after: Callable[[float], None]) -> None:
    put(spool, "results", new_worker_id())
    put(spool, "outgoing", new_worker_id())
    after(31)
    shown = run("gc", spool.path)
    assert shown.exit_code == 0
    assert "a second look at 1 outcome(s)".casefold() in shown.stderr.casefold()
    assert shown.stdout.splitlines()[-1] == "Removed 5 file(s) and directories."
    assert tree(spool) == {"spool.json"}
    assert run("gc", spool.path).output == "Removed 0 file(s) and directories.\n"


def test_the_logs_and_journals_of_workers_that_still_have_their_entry_stay(spool: Spool) -> None:
    worker = announce(spool, unknown_process())
    for path in (f"logs/{worker}.0", f"journal/{worker}.jsonl"):
        (Path(spool.path) / path).touch()
        age(spool, path, 10_000)
    assert paths(find_garbage(spool)) == []


def test_options_say_otherwise_for_once(spool: Spool) -> None:
    task, worker = new_task_id(), new_worker_id()
    for name in (f"tmp/{task}", f"logs/{worker}.0", f"journal/{worker}.jsonl"):
        (Path(spool.path) / name).touch()
        age(spool, name, 0.6)
    for option, name in (
        ("unfinished", f"tmp/{task}"),
        ("logs", f"logs/{worker}.0"),
        ("journals", f"journal/{worker}"),
    ):
        shown = run("gc", "-n", spool.path, f"--{option}", 0.5)
        assert [line.split()[0] for line in shown.output.splitlines()[:-1]] == [
            name + ".jsonl" * (option == "journals")
        ]
    assert run("gc", spool.path).output == "Removed 0 file(s) and directories.\n"


@pytest.mark.parametrize("option", ["results", "sessions", "unfinished", "journals", "logs"])
def test_an_age_is_never_negative(spool: Spool, option: str) -> None:
    put(spool, "results", new_worker_id())
    before = tree(spool)
    assert run("gc", spool.path, f"--{option}", -1).exit_code == 2
    assert tree(spool) == before


def test_the_policy_stands_in_the_spool(spool: Spool) -> None:
    config = msgspec.structs.replace(spool.config, keep=Keep(unfinished=60.0))
    Path(spool.layout.config).write_bytes(msgspec.json.encode(config))
    spool = Spool(spool.path)
    task = new_task_id()
    (Path(spool.path) / "tmp" / task).touch()
    age(spool, f"tmp/{task}", 100 / DAY)
    assert [each.reason for each in find_garbage(spool)] == ["an unfinished write older than 60 s"]


def test_a_policy_of_an_earlier_version_is_read(spool: Spool) -> None:
    data = msgspec.json.decode(Path(spool.layout.config).read_bytes())
    del data["keep"]["sessions"]
    Path(spool.layout.config).write_bytes(msgspec.json.encode(data))
    assert Spool(spool.path).config.keep.sessions == DAY


def test_a_full_disk_can_be_collected_on(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    task = new_task_id()
    (Path(spool.path) / "tmp" / task).touch()
    age(spool, f"tmp/{task}", 2)

    def full(path: str, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", path)

    monkeypatch.setattr(files, "create", full)
    assert remove(spool, find_garbage(spool)) == 1


# -- what needs what


def chain(spool: Spool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[TaskHeader]:
    """Three tasks, each of which needs the one before it; all have run, and nobody collected."""
    stage = Stage(tmp_path / "stage", Clock.installed(monkeypatch))
    stage.spool = spool
    inbox = stage.inbox()
    futures = [inbox.put(str, 1)]
    for _ in range(2):
        futures.append(inbox.put(str, futures[-1]))
    stage.work()
    inbox.forget()
    return [future.header for future in futures]


def test_old_outcomes_of_a_chain_go_with_their_edges(
    spool: Spool, after: Callable[[float], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chain(spool, monkeypatch, tmp_path)
    assert len(files.list_names(f"{spool.layout.needs}/inbox")) == 2
    after(31)
    remove(spool, find_garbage(spool))
    assert files.list_names(f"{spool.layout.needs}") == files.list_names(spool.layout.results) == []


def test_what_a_failed_or_waiting_task_needs_is_kept(
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


def test_an_unfinished_write_goes_after_its_edges_and_an_edge_without_a_task_goes(
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

"""Checks and repairs of a spool that is in use, and the command ``spool check``."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import click.testing
import msgspec
import pytest

from spoolpool import Executor
from spoolpool.cli.spool import main
from spoolpool.format import envelope
from spoolpool.format import headers as records
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
)
from spoolpool.maintenance.check import Finding, check
from spoolpool.maintenance.repair import repair
from spoolpool.monitor.scan import Selector, Snapshot, scan
from spoolpool.protocol import delayed_tasks, heartbeat, sessions, workers
from spoolpool.protocol.recovery import Recovery
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.workers import WorkerInfo
from spoolpool.system import files, locks
from tests.conftest import Workers
from tests.support import tasks
from tests.support.accounts import as_root, unused_id
from tests.support.fake_worker import LANE, announce, dead_process, info_of, outcome_of, unknown_process
from tests.support.waiting import wait_until

LONG_AGO = (1_000_000_000, 1_000_000_000)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    """Spool with quick repairs."""
    return Spool.create(tmp_path / "spool", durability="none", lease=0.3, caches=0.2)


@pytest.fixture
def few_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeat each check only once, since no task moves meanwhile."""
    monkeypatch.setattr("spoolpool.maintenance.check._REPETITIONS", 1)


class Tree:
    """Writer of files in a spool."""

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self.root = Path(spool.path)
        spool.open_session("inbox")

    def header(self) -> TaskHeader:
        """Return the header of a new task."""
        task = new_task_id()
        bucket = bucket_name(task, new_submitter_id())
        return TaskHeader(task=task, session="inbox", lane=LANE, bucket=bucket, max_attempts=3)

    def put(
        self, place: str, worker: str = "", *, header: TaskHeader | None = None, size: int = 10
    ) -> tuple[Path, TaskFile]:
        """Create a valid task file in ``place``, and its outcome if that is ``results``."""
        header = header or self.header()
        task_file = TaskFile(header.task, 1, 1, worker)
        path = self.path(place, header, task_file)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.create(str(path), envelope.pack(records.encode(header), b"x" * size))
        if place == "results":
            files.create(self.spool.layout.outcome("inbox", task_file), outcome_of(header, task_file))
        return path, task_file

    def path(self, place: str, header: TaskHeader, task_file: TaskFile) -> Path:
        """Return the path of a task file."""
        below = {"ready": f"{LANE}/{header.bucket}", "results": "inbox", "outgoing": "inbox"}.get(place, ".")
        return self.root / place / below / task_file.name

    def outcome(self, worker: str) -> Path:
        """Create an outcome without a task."""
        header = self.header()
        task_file = TaskFile(header.task, 1, 1, worker)
        files.create(self.spool.layout.outcome("inbox", task_file), outcome_of(header, task_file))
        return self.path("outgoing", header, task_file)

    def everything(self) -> dict[str, tuple[int, ...]]:
        """Return mode, inode and size of everything in the spool, for comparison."""
        found = {}
        for path in self.root.rglob("*"):
            status = path.lstat()
            found[str(path)] = (status.st_mode, status.st_ino, status.st_size if path.is_file() else 0)
        return found

    def of(self, path: Path) -> str:
        """Return a path relative to the spool, as in findings."""
        return str(path.relative_to(self.root))


@pytest.fixture
def tree(spool: Spool, few_checks: None) -> Tree:
    return Tree(spool)


def kinds(found: list[Finding]) -> list[tuple[str, str]]:
    return sorted((each.kind, each.path) for each in found)


def run(*arguments: object) -> click.testing.Result:
    return click.testing.CliRunner().invoke(main, [str(each) for each in arguments], prog_name="spool")


# ---------------------------------------------------------------------------------- no findings


def test_new_spool_has_no_findings(spool: Spool) -> None:
    assert check(spool) == []
    assert repair(spool, []) == []


def test_spool_in_use_has_no_findings(tmp_path: Path, worker: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool.create(tmp_path / "spool", durability="none")
    with Executor(spool=spool.path, init_function=dict) as executor:
        running = executor.submit(tasks.mark_and_wait, tmp_path / "started", tmp_path / "go", 1)
        held = executor.submit(
            tasks.fail, tasks.OwnError("no"), resource_dict={"retries": 1, "retry_delay": 200.0, "priority": 9}
        )
        others = [executor.submit(pow, number, 2) for number in range(20)]
        elsewhere = executor.submit(pow, 2, 2, resource_dict={"cores": 7})
        worker(spool)
        wait_until((tmp_path / "started").exists, "the task runs")
        assert files.list_names(spool.layout.waiting) != []
        assert check(spool) == []
        (tmp_path / "go").touch()
        assert [future.result() for future in [running, *others]] == [1, *(number**2 for number in range(20))]
        assert check(spool) == []
        assert elsewhere.cancel()
        monkeypatch.setattr(delayed_tasks, "retry_delay", lambda *_: 0.0)
        assert delayed_tasks.DelayedTasks(spool).round() == 1
        assert isinstance(held.exception(), tasks.OwnError)
    assert check(spool) == []


def test_running_tasks_and_dying_workers_cause_no_findings(tmp_path: Path, worker: Workers) -> None:
    spool = Spool.create(tmp_path / "spool", durability="none")
    looks = 0
    with Executor(spool=spool.path) as executor:
        pending = [executor.submit(pow, number, 2) for number in range(400)]
        for _ in range(2):
            # a worker that is already ending has no signal handler any more
            worker.may_die(worker(spool, "--max-tasks", 150, await_groups=0))
        worker(spool)
        while not all(future.done() for future in pending):
            assert check(spool) == []
            looks += 1
    assert looks > 0
    assert check(spool) == []


# -------------------------------------------------------------------------------- unknown names


def unknown_names(tree: Tree) -> list[str]:
    """Return unknown names in each directory of a spool."""
    waiting, _ = tree.put("ready")
    lane, bucket = tree.of(waiting).split("/")[1:3]
    task, worker = new_task_id(), announce(tree.spool, info_of(unknown_process()).process)
    return [
        "junk",
        ".hidden",
        "ready/junk",
        f"ready/{lane}/junk",
        f"ready/{lane}/{bucket}/junk",
        f"ready/{lane}/{bucket}/{task}.000001.01.{worker}",
        f"ready/{lane}/{bucket}/{task.replace('0', chr(0x660))}.000001.01",
        f"ready/{lane}/{bucket}/{task}.1.1",
        f"waiting/{task}",
        f"waiting/{task}.000001.01.{worker}",
        f"claimed/{task}.000001.01",
        f"claimed/{task}.000001.01.{worker}x",
        "outgoing/.session",
        "outgoing/inbox/junk",
        f"outgoing/inbox/{task}.000001.01",
        "results/-",
        "results/inbox/junk",
        "failed/junk",
        f"cancel/{task}.000001",
        f"objects/{worker}",
        "sessions/inbox",
        "sessions/.json",
        f"workers/{worker[1:]}",
        f"workers/{worker}/junk",
        f"journal/{worker}",
        f"logs/{task}",
        "tmp/junk",
        f"tmp/{worker}.other",
    ]


def test_unknown_names_are_reported_in_every_directory_and_never_touched(tree: Tree, heartbeats: None) -> None:
    names = unknown_names(tree)
    for name in names:
        (tree.root / name).write_bytes(b"unknown")
        os.utime(tree.root / name, LONG_AGO)
    before = tree.everything()
    found = check(tree.spool)
    assert kinds(found) == sorted(("unknown name", name) for name in names)
    assert not any(each.repairable for each in found)
    assert repair(tree.spool, found) == []
    assert tree.everything() == before
    assert run("check", "--repair", tree.spool.path).exit_code == 1
    assert tree.everything() == before


def test_unknown_directories_are_reported_and_not_listed(tree: Tree) -> None:
    for name in ("other", "ready/other", "results/.other", "workers/other", "tmp/other"):
        (tree.root / name / "inner").mkdir(parents=True)
    found = check(tree.spool)
    assert {each.path for each in found} == {"other", "ready/other", "results/.other", "workers/other", "tmp/other"}


@pytest.mark.parametrize("name", [b"\xff\xfe", b"two\nlines", b"\x1b[31mred", "weiß".encode(), b"\xe2\x80\xae"])
def test_hostile_name_is_escaped(tree: Tree, name: bytes) -> None:
    (tree.root / "failed" / os.fsdecode(name)).touch()
    result = run("check", tree.spool.path)
    assert (result.exit_code, result.exception.__class__) == (1, SystemExit)
    assert len(result.output.splitlines()) == 1
    assert all(each.isprintable() for each in result.output.rstrip("\n"))
    document = json.loads(run("check", "--json", tree.spool.path).output)
    assert document["findings"][0]["path"] == f"failed/{os.fsdecode(name)}"


def test_symbolic_link_instead_of_a_directory_is_reported_and_not_followed(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, task_file = tree.put("claimed", new_worker_id())
    path.rename(tmp_path / task_file.name)
    (tree.root / "results" / "linked").symlink_to(tmp_path)
    (tree.root / "outgoing" / "linked").symlink_to(tmp_path)
    (tree.root / "ready" / LANE).symlink_to(tmp_path)
    (tree.root / "workers" / task_file.worker).symlink_to(tmp_path)
    (tmp_path / "info.json").touch()
    (tree.root / "logs").rmdir()
    (tree.root / "logs").symlink_to(tmp_path)
    before = tree.everything()
    found = check(tree.spool)
    paths = ["results/linked", "outgoing/linked", f"ready/{LANE}", f"workers/{task_file.worker}", "logs"]
    assert kinds(found) == sorted(("unknown name", path) for path in paths)
    repair(tree.spool, found)
    monkeypatch.setattr(heartbeat.Liveness, "seconds_since_change", lambda *_: 1000.0)
    assert Recovery(tree.spool).round() == []
    assert tree.everything() == before
    assert (tmp_path / "info.json").exists()


# ----------------------------------------------------------------------------- unreadable files

PLACES = ("ready", "waiting", "claimed", "results", "failed")


def holder(tree: Tree, place: str) -> str:
    """Return the worker in the name of a task file: a live one, or none."""
    return "" if place in ("ready", "waiting") else announce(tree.spool, info_of(unknown_process()).process)


@pytest.fixture
def heartbeats(tree: Tree) -> Iterator[None]:
    """Let every worker of the spool have a recent heartbeat."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "seconds_since_heartbeat", lambda *_: 0.0)
        patch.setattr(heartbeat.Liveness, "seconds_since_change", lambda *_: 0.0)
        yield


@pytest.mark.parametrize("place", PLACES)
def test_torn_file_is_reported_and_not_changed(tree: Tree, place: str, heartbeats: None) -> None:
    path, _ = tree.put(place, holder(tree, place))
    assert check(tree.spool) == []
    whole = path.read_bytes()
    for torn in (b"", whole[:20], whole[:-1], whole[:40] + b"?" + whole[41:], whole + b"x", bytes(len(whole))):
        path.write_bytes(torn)
        (found,) = check(tree.spool)
        assert (found.kind, found.path, found.repairable) == ("unreadable", tree.of(path), False)
        assert check(tree.spool, deep=False) == []
    repair(tree.spool, [found])
    assert path.read_bytes() == torn


def test_torn_outcome_is_reported_after_its_commit(tree: Tree, heartbeats: None) -> None:
    worker = announce(tree.spool, unknown_process())
    path, task_file = tree.put("results", worker)
    outcome = Path(tree.spool.layout.outcome("inbox", task_file))
    outcome.write_bytes(outcome.read_bytes()[:-1])
    assert kinds(check(tree.spool)) == [("unreadable", tree.of(outcome))]
    path.rename(tree.root / "claimed" / task_file.name)
    assert check(tree.spool) == [], "the outcome may be incomplete before the commit"


def test_large_torn_file_is_reported(tree: Tree) -> None:
    path, _ = tree.put("ready", size=3 << 20)
    assert check(tree.spool) == []
    os.truncate(path, 2 << 20)
    assert kinds(check(tree.spool)) == [("unreadable", tree.of(path))]


def test_file_of_a_newer_format_is_reported(tree: Tree) -> None:
    path, _ = tree.put("ready")
    data = bytearray(path.read_bytes())
    data[8] = 9
    path.write_bytes(data)
    (found,) = check(tree.spool)
    assert found.kind == "unreadable"
    assert "format 9" in found.text


@pytest.mark.parametrize("place", ["ready", "results"])
def test_header_of_another_task_is_reported(tree: Tree, place: str, heartbeats: None) -> None:
    path, task_file = tree.put(place, holder(tree, place))
    other, _ = tree.put("failed", new_worker_id())
    path.write_bytes(other.read_bytes())
    other.unlink()
    (found,) = check(tree.spool)
    assert (found.kind, found.path) == ("unreadable", tree.of(path))
    assert task_file.task not in found.text


def special(kind: str, path: Path, aside: Path) -> None:
    """Replace a file with a special file of a kind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "link":
        path.rename(aside)
        path.symlink_to(aside)
    elif kind == "dangling link":
        path.symlink_to(aside)
    elif kind == "endless link":
        path.symlink_to(path)
    else:
        path.symlink_to("/dev/zero")


SPECIAL = ("FIFO", "directory", "link", "dangling link", "endless link", "device")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", SPECIAL)
def test_special_file_is_reported_and_neither_opened_nor_followed(
    tree: Tree, tmp_path: Path, place: str, kind: str, heartbeats: None
) -> None:
    path, _ = tree.put(place, holder(tree, place))
    if kind != "link":
        path.unlink()
    special(kind, path, tmp_path / "aside")
    before = tree.everything()
    found = check(tree.spool)
    assert kinds(found) == [("unreadable", tree.of(path))]
    assert not found[0].repairable
    assert repair(tree.spool, found) == []
    assert tree.everything() == before


@pytest.mark.parametrize("kind", SPECIAL)
def test_special_file_among_the_claims_of_a_dead_worker_stops_no_repair(tree: Tree, tmp_path: Path, kind: str) -> None:
    dead = announce(tree.spool, dead_process())
    path, _ = tree.put("claimed", dead)
    if kind != "link":
        path.unlink()
    special(kind, path, tmp_path / "aside")
    good, task_file = tree.put("claimed", dead)
    repair(tree.spool, check(tree.spool))
    assert os.path.lexists(path)
    assert not good.exists()
    assert task_file.requeued().name in {each.name for each in scan(tree.spool).ready.values()}


def refuse(monkeypatch: pytest.MonkeyPatch, name: str, wanted: Callable[[str], bool]) -> None:
    """Let an operation fail with EACCES for some paths."""
    real = getattr(files, name)

    def refused(path: str, **options: object) -> object:
        if wanted(path):
            raise PermissionError(13, "Permission denied", path)
        return real(path, **options)

    monkeypatch.setattr(files, name, refused)


@pytest.mark.parametrize("place", PLACES)
def test_file_without_read_permission_is_reported(
    tree: Tree, place: str, heartbeats: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = tree.put(place, holder(tree, place))
    refuse(monkeypatch, "open_file", lambda each: each == str(path))
    (found,) = check(tree.spool)
    assert (found.kind, found.path) == ("unreadable", tree.of(path))
    assert "Permission denied" in found.text


@as_root
@pytest.mark.multiuser
def test_file_of_another_account_is_reported_and_not_read(tree: Tree) -> None:
    path, _ = tree.put("ready")
    os.chown(path, unused_id(), -1)
    (found,) = check(tree.spool)
    assert (found.kind, found.path) == ("unreadable", tree.of(path))
    assert "not trusted" in found.text


def test_hard_linked_file_is_reported(tree: Tree, tmp_path: Path) -> None:
    path, _ = tree.put("ready")
    os.link(path, tmp_path / "second")
    assert kinds(check(tree.spool)) == [("unreadable", tree.of(path))]


@pytest.mark.parametrize("directory", ["claimed", "results", "results/inbox", "ready", "workers"])
def test_unlisted_directory_is_reported_and_causes_no_other_finding(
    tree: Tree, directory: str, monkeypatch: pytest.MonkeyPatch, heartbeats: None
) -> None:
    worker = announce(tree.spool, unknown_process())
    tree.put("results", worker)
    _, task_file = tree.put("ready")
    (tree.root / "cancel" / task_file.task).touch()
    assert check(tree.spool) == []
    refuse(monkeypatch, "list_names", lambda path: path == f"{tree.spool.path}/{directory}")
    if directory == "workers":
        monkeypatch.setattr(workers, "read_workers", lambda _: [])
    assert kinds(check(tree.spool)) == [("unreadable", directory)]


# ------------------------------------------------------------------------------ duplicate tasks


@pytest.mark.parametrize(("one", "other"), [("ready", "claimed"), ("ready", "waiting"), ("results", "failed")])
def test_duplicate_task_is_reported_and_not_changed(tree: Tree, one: str, other: str, heartbeats: None) -> None:
    header = tree.header()
    for place in (one, other):
        tree.put(place, holder(tree, place), header=header)
    before = tree.everything()
    (found,) = check(tree.spool)
    assert (found.kind, found.repairable) == ("duplicate task", False)
    assert one in found.text and other in found.text
    repair(tree.spool, [found])
    assert tree.everything() == before


# ------------------------------------------------------------------------------------ dead workers


def test_claim_of_a_dead_worker_is_reported_and_requeued(tree: Tree) -> None:
    dead = announce(tree.spool, dead_process())
    path, task_file = tree.put("claimed", dead)
    found = check(tree.spool)
    assert kinds(found) == [("dead claim", tree.of(path)), ("dead worker", f"workers/{dead}")]
    (line,) = repair(tree.spool, found)
    assert task_file.task in line
    assert [each.name for each in scan(tree.spool).ready.values()] == [task_file.requeued().name]
    assert check(tree.spool) == []


def test_claim_of_an_unknown_worker_is_requeued_after_a_lease(tree: Tree) -> None:
    path, task_file = tree.put("claimed", new_worker_id())
    found = check(tree.spool)
    assert kinds(found) == [("dead claim", tree.of(path))]
    assert repair(tree.spool, found, seconds=0) == []
    assert path.exists(), "the worker was not observed for a lease"
    repair(tree.spool, found)
    assert [each.name for each in scan(tree.spool).ready.values()] == [task_file.requeued().name]
    assert check(tree.spool) == []


def test_claim_of_a_silent_worker_of_another_host_is_reported_and_requeued(tree: Tree) -> None:
    silent = announce(tree.spool, unknown_process())
    path, _ = tree.put("claimed", silent)
    os.utime(tree.root / "workers" / silent / "beat", LONG_AGO)
    found = check(tree.spool)
    assert kinds(found) == [("dead claim", tree.of(path)), ("dead worker", f"workers/{silent}")]
    repair(tree.spool, found)
    assert not path.exists()
    assert check(tree.spool) == []


def test_silent_worker_with_a_lock_is_reported_and_keeps_its_claim(tree: Tree) -> None:
    silent = announce(tree.spool, unknown_process())
    path, _ = tree.put("claimed", silent)
    os.utime(tree.root / "workers" / silent / "beat", LONG_AGO)
    found = check(tree.spool)
    fd = files.open_file(str(path), write=True)
    try:
        assert locks.try_lock(fd) is locks.Lock.TAKEN
        assert repair(tree.spool, found) == []
    finally:
        files.close(fd)
    assert path.exists()
    assert (tree.root / "workers" / silent / "info.json").exists()


def test_complete_outcome_of_a_dead_worker_is_committed(tree: Tree) -> None:
    dead = announce(tree.spool, dead_process())
    header = tree.header()
    path, task_file = tree.put("claimed", dead, header=header)
    files.create(tree.spool.layout.outcome("inbox", task_file), outcome_of(header, task_file))
    repair(tree.spool, check(tree.spool))
    assert not path.exists()
    assert tree.path("results", header, task_file).exists()
    assert check(tree.spool) == []


def test_worker_that_ends_between_the_scans_is_not_reported(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker removes its claim first, and its entry afterwards."""
    worker = announce(tree.spool, unknown_process())
    path, task_file = tree.put("claimed", worker)

    def ended(spool: Spool) -> list[WorkerInfo]:
        if path.exists():
            path.rename(tree.root / "failed" / task_file.name)
        return []

    monkeypatch.setattr(workers, "read_workers", ended)
    assert check(tree.spool) == []


def test_worker_entry_with_mismatched_id_is_ignored(tree: Tree) -> None:
    """An account that can write there could declare a live worker dead."""
    worker, liar = announce(tree.spool, unknown_process()), announce(tree.spool, dead_process())
    info = tree.root / "workers" / liar / "info.json"
    info.write_text(info.read_text().replace(liar, worker))
    assert [info.worker for info in workers.read_workers(tree.spool)] == [worker]


# ---------------------------------------------------------------------------------------- outcomes


def test_outcome_without_a_task_is_reported_and_removed_after_a_delay(tree: Tree) -> None:
    path = tree.outcome(new_worker_id())
    found = check(tree.spool)
    assert kinds(found) == [("orphan outcome", tree.of(path))]
    assert repair(tree.spool, found, seconds=0) == []
    assert path.exists(), "the outcome is checked twice"
    assert repair(tree.spool, found) == [f"removed {tree.of(path)}"]
    assert not path.exists()
    assert check(tree.spool) == []


@pytest.mark.parametrize("place", ["claimed", "results"])
def test_outcome_is_kept_if_its_task_appears_during_the_repair(tree: Tree, place: str, heartbeats: None) -> None:
    worker = announce(tree.spool, unknown_process())
    header = tree.header()
    task_file = TaskFile(header.task, 1, 1, worker)
    files.create(tree.spool.layout.outcome("inbox", task_file), outcome_of(header, task_file))
    found = check(tree.spool)
    assert [each.kind for each in found] == ["orphan outcome"]
    task, _ = tree.put("failed", worker, header=header)
    tree.path(place, header, task_file).parent.mkdir(exist_ok=True)
    task.rename(tree.path(place, header, task_file))
    repair(tree.spool, found, seconds=0.7)
    assert tree.path("outgoing", header, task_file).exists()


def test_committed_task_without_an_outcome_is_reported_and_requeued(tree: Tree) -> None:
    path, task_file = tree.put("results", new_worker_id())
    Path(tree.spool.layout.outcome("inbox", task_file)).unlink()
    found = check(tree.spool)
    assert kinds(found) == [("no outcome", tree.of(path))]
    assert repair(tree.spool, found, seconds=0) == []
    assert path.exists(), "the outcome may only be late"
    assert repair(tree.spool, found) == [f"requeued {tree.of(path)}"]
    assert [each.name for each in scan(tree.spool).ready.values()] == [task_file.released().name]
    assert check(tree.spool) == []


def test_late_outcome_keeps_its_task_committed(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    path, task_file = tree.put("results", new_worker_id())
    outcome = Path(tree.spool.layout.outcome("inbox", task_file))
    outcome.rename(tree.root / "late")
    found = [each for each in check(tree.spool) if each.kind == "no outcome"]
    assert len(found) == 1
    looks = []
    real = Recovery.round

    def comes(recovery: Recovery) -> list[str]:
        looks.append(1)
        if len(looks) == 2:
            (tree.root / "late").rename(outcome)
        return real(recovery)

    monkeypatch.setattr(Recovery, "round", comes)
    assert repair(tree.spool, found) == []
    assert path.exists()
    assert check(tree.spool) == []


def test_committed_task_without_an_outcome_is_not_requeued_while_its_worker_lives(tree: Tree, heartbeats: None) -> None:
    worker = announce(tree.spool, unknown_process())
    path, task_file = tree.put("results", worker)
    Path(tree.spool.layout.outcome("inbox", task_file)).unlink()
    found = check(tree.spool)
    assert [each.kind for each in found] == ["no outcome"]
    assert repair(tree.spool, found, seconds=0.5) == []
    assert path.exists()


def test_cancelled_task_needs_no_outcome(tree: Tree) -> None:
    _, task_file = tree.put("results", CANCELLED)
    Path(tree.spool.layout.outcome("inbox", task_file)).unlink()
    assert check(tree.spool) == []


def test_outcome_that_a_collector_is_removing_is_not_reported(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    _, task_file = tree.put("results", new_worker_id())
    outcome = Path(tree.spool.layout.outcome("inbox", task_file))
    Path(tree.spool.layout.result("inbox", task_file)).unlink()
    real = scan
    looks = []

    def later(spool: Spool, wanted: Selector) -> Snapshot:
        looks.append(1)
        if len(looks) == 3:
            outcome.unlink()
        return real(spool, wanted)

    monkeypatch.setattr("spoolpool.maintenance.check.scan", later)
    assert check(tree.spool, deep=False) == []


# ------------------------------------------------------------------------ cancel requests and others


def test_cancel_request_without_a_task_is_reported_and_removed(tree: Tree, heartbeats: None) -> None:
    marked = {place: tree.put(place, holder(tree, place))[1].task for place in PLACES}
    stale = sorted([marked.pop("results"), marked.pop("failed"), new_task_id()])
    for task in [*marked.values(), *stale]:
        (tree.root / "cancel" / task).touch()
    found = check(tree.spool)
    assert kinds(found) == [("stale request", f"cancel/{task}") for task in stale]
    assert repair(tree.spool, found) == [f"removed cancel/{task}" for task in stale]
    assert sorted(files.list_names(tree.spool.layout.cancel)) == sorted(marked.values())
    assert check(tree.spool) == []


def test_cancel_request_of_a_task_that_was_retried_since_the_check_stays(tree: Tree) -> None:
    path, task_file = tree.put("failed", new_worker_id())
    (tree.root / "cancel" / task_file.task).touch()
    found = check(tree.spool)
    assert kinds(found) == [("stale request", f"cancel/{task_file.task}")]
    path.rename(tree.root / "claimed" / path.name)
    assert repair(tree.spool, found) == []
    assert files.list_names(tree.spool.layout.cancel) == [task_file.task]


def test_link_of_a_task_that_appeared_since_the_check_stays(tree: Tree) -> None:
    needed, header = new_task_id(), tree.header()
    link = DependencyLink(needed, header.task)
    tree.spool.make_directories(f"{tree.spool.layout.needs}/inbox")
    files.create(tree.spool.layout.dependency_link("inbox", link), [])
    found = check(tree.spool)
    assert kinds(found) == [("stale link", f"needs/inbox/{link.name}")]
    tree.put("waiting", header=header)
    assert repair(tree.spool, found) == []
    assert files.list_names(f"{tree.spool.layout.needs}/inbox") == [link.name]


def test_failed_repair_does_not_stop_other_repairs(tree: Tree) -> None:
    wrong, right = new_task_id(), new_task_id()
    (tree.root / "cancel" / wrong / "inner").mkdir(parents=True)
    (tree.root / "cancel" / right).touch()
    assert repair(tree.spool, check(tree.spool)) == [f"removed cancel/{right}"]
    assert kinds(check(tree.spool)) == [("stale request", f"cancel/{wrong}")]
    assert (tree.root / "cancel" / wrong / "inner").is_dir()


def test_missing_directories_are_reported_and_created(spool: Spool) -> None:
    names = [name for name in Layout.DIRECTORIES if name != "failed"]
    for name in names:
        (Path(spool.path) / name).rmdir()
    found = check(spool)
    assert kinds(found) == sorted(("missing", name) for name in names)
    assert sorted(repair(spool, found)) == sorted(f"made {name}" for name in names)
    assert {stat.S_IMODE((Path(spool.path) / name).stat().st_mode) for name in names} == {0o700}
    assert check(spool) == []


@pytest.mark.parametrize("lost", ["results", "claimed"])
def test_missing_directory_causes_no_other_finding(tree: Tree, lost: str) -> None:
    path, task_file = tree.put("results", new_worker_id())
    path.rename(tree.root / "saved")
    outcome = Path(tree.spool.layout.outcome("inbox", task_file))
    Path(path.parent).rmdir()
    (tree.root / lost).rmdir()
    found = check(tree.spool)
    assert kinds(found) == [("missing", lost), ("unknown name", "saved")]
    repair(tree.spool, found)
    assert outcome.exists(), "it may be the only file of a task"


def test_old_unfinished_writes_are_reported_and_removed(tree: Tree) -> None:
    task = new_task_id()
    young, old = tree.root / "tmp" / new_task_id(), tree.root / "tmp" / task
    young.touch()
    old.touch()
    os.utime(old, LONG_AGO)
    found = check(tree.spool)
    assert kinds(found) == [("unfinished", f"tmp/{task}")]
    assert repair(tree.spool, found) == [f"removed tmp/{task}"]
    assert files.list_names(tree.spool.layout.tmp) == [young.name]


def test_old_unfinished_write_of_a_live_submitter_is_no_finding(tree: Tree) -> None:
    path, task_file = tree.put("tmp")
    path = path.rename(path.with_name(task_file.task))
    os.utime(path, LONG_AGO)
    found = check(tree.spool)
    assert kinds(found) == [("unfinished", f"tmp/{path.name}")]
    sessions.register(tree.spool, "inbox", "tester")
    assert check(tree.spool) == []
    assert repair(tree.spool, found) == []
    assert path.exists()


def test_read_only_spool_can_be_checked(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = tree.put("claimed", new_worker_id())

    def refused(path: str) -> None:
        raise OSError(30, "Read-only file system", path)

    monkeypatch.setattr(files, "touch", refused)
    assert kinds(check(tree.spool)) == [("dead claim", tree.of(path))]


def test_names_of_removed_open_files_on_nfs_are_not_reported(tree: Tree) -> None:
    (tree.root / "outgoing" / "inbox" / ".nfs00000000000a1b2c00000001").touch()
    assert check(tree.spool) == []


# ------------------------------------------------------------------------------------- command


def test_command_reports_a_spool_without_findings(spool: Spool) -> None:
    result = run("check", spool.path)
    assert (result.exit_code, result.output) == (0, f"{spool.path}: nothing is wrong.\n")
    document = run("check", "--json", spool.path)
    assert document.exit_code == 0
    assert json.loads(document.output) == {"spool": spool.path, "findings": [], "done": []}


def test_command_prints_kind_path_and_description(tree: Tree) -> None:
    (tree.root / "junk").touch()
    torn, _ = tree.put("ready")
    torn.write_bytes(b"torn")
    result = run("check", tree.spool.path)
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert [line.split()[0] for line in lines] == ["unknown", "unreadable"]
    assert "junk" in lines[0] and tree.of(torn) in lines[1]
    assert all(line.endswith(".") and not line.endswith("..") for line in lines)
    quick = run("check", "--quick", tree.spool.path)
    assert quick.exit_code == 1
    assert "unreadable" not in quick.output


def test_json_output_has_stable_keys(tree: Tree) -> None:
    (tree.root / "junk").touch()
    document = json.loads(run("check", "--json", tree.spool.path).output)
    assert document.keys() == {"spool", "findings", "done"}
    assert [finding.keys() for finding in document["findings"]] == [{"kind", "path", "text", "repairable"}]


def test_command_prints_repairs_and_remaining_findings(tree: Tree) -> None:
    stale = tree.root / "cancel" / new_task_id()
    stale.touch()
    repaired = run("check", "--repair", tree.spool.path)
    assert repaired.exit_code == 0
    assert repaired.output.splitlines() == [
        f"done           removed {tree.of(stale)}",
        f"{tree.root}: nothing is wrong.",
    ]
    stale.touch()
    (tree.root / "junk").touch()
    repaired = run("check", "--repair", "--json", tree.spool.path)
    assert repaired.exit_code == 1
    document = json.loads(repaired.output)
    assert document["done"] == [f"removed {tree.of(stale)}"]
    assert [finding["path"] for finding in document["findings"]] == ["junk"]


def test_command_without_repair_changes_nothing(tree: Tree) -> None:
    dead = announce(tree.spool, dead_process())
    tree.put("claimed", dead)
    tree.outcome(new_worker_id())
    (tree.root / "cancel" / new_task_id()).touch()
    before = tree.everything()
    assert run("check", tree.spool.path).exit_code == 1
    assert tree.everything() == before


# --------------------------------------------------------------------------------- dependencies


def test_link_without_a_task_is_reported_and_removed(tree: Tree) -> None:
    needed, _ = tree.put("ready")
    edge = DependencyLink(needed.name.partition(".")[0], new_task_id())
    tree.spool.make_directories(f"{tree.spool.layout.needs}/inbox")
    files.create(tree.spool.layout.dependency_link("inbox", edge), [])
    found = check(tree.spool, deep=False)
    assert kinds(found) == [("stale link", f"needs/inbox/{edge.name}")]
    assert repair(tree.spool, found) == [f"removed needs/inbox/{edge.name}"]
    assert check(tree.spool, deep=False) == []


def test_task_with_a_missing_dependency_is_reported_and_made_ready(tree: Tree) -> None:
    header = msgspec.structs.replace(tree.header(), needs={"inbox": (new_task_id(),)})
    path, task_file = tree.put("waiting", header=header)
    tree.spool.make_directories(f"{tree.spool.layout.needs}/inbox")
    files.create(tree.spool.layout.dependency_link("inbox", DependencyLink(header.needs["inbox"][0], header.task)), [])
    found = check(tree.spool)
    assert kinds(found) == [("no dependency", tree.of(path))]
    assert repair(tree.spool, found) == [f"made {tree.of(path)} ready"]
    assert tree.path("ready", header, task_file).exists()


@pytest.mark.parametrize("purged", [False, True], ids=["link", "no link"])
def test_task_whose_dependency_was_set_aside_is_reported_and_made_ready(tree: Tree, *, purged: bool) -> None:
    needed, _ = tree.put("failed")
    dependency = needed.name.partition(".")[0]
    header = msgspec.structs.replace(tree.header(), needs={"inbox": (dependency,)})
    path, task_file = tree.put("waiting", header=header)
    if not purged:
        tree.spool.make_directories(f"{tree.spool.layout.needs}/inbox")
        files.create(tree.spool.layout.dependency_link("inbox", DependencyLink(dependency, header.task)), [])
    [found] = check(tree.spool)
    assert (found.kind, found.path) == ("no dependency", tree.of(path))
    assert dependency in found.text
    assert "failed/" in found.text
    assert repair(tree.spool, [found]) == [f"made {tree.of(path)} ready"]
    assert tree.path("ready", header, task_file).exists()


def test_delayed_task_whose_dependency_can_still_end_is_no_finding(tree: Tree) -> None:
    needed, _ = tree.put("ready")
    header = msgspec.structs.replace(tree.header(), needs={"inbox": (needed.name.partition(".")[0],)})
    tree.put("waiting", header=header)
    assert check(tree.spool) == []


def test_unknown_name_among_the_links_is_reported(tree: Tree) -> None:
    directory = tree.root / "needs" / "inbox"
    directory.mkdir(parents=True)
    (directory / "junk").touch()
    assert kinds(check(tree.spool)) == [("unknown name", "needs/inbox/junk")]

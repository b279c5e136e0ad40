"""``spool check`` says what is wrong with a spool that is in use, mends what can be mended, and nothing else."""

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
from spoolpool.maintenance.check import Finding, check, repair
from spoolpool.monitor.scan import Snapshot, scan
from spoolpool.protocol import delay, heartbeat, workers
from spoolpool.protocol.recovery import Recovery
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.workers import WorkerInfo
from spoolpool.system import files, locks
from tests.conftest import Workers
from tests.support import tasks
from tests.support.fake_worker import LANE, announce, dead_process, info_of, outcome_of, unknown_process
from tests.support.waiting import wait_until

LONG_AGO = (1_000_000_000, 1_000_000_000)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    """A spool whose repairs do not take long."""
    return Spool.create(tmp_path / "spool", durability="none", lease=0.3, caches=0.2)


@pytest.fixture
def few_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing moves in the spool: one more look is enough."""
    monkeypatch.setattr("spoolpool.maintenance.check._REPETITIONS", 1)


class Tree:
    """Puts files into a spool by hand."""

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self.root = Path(spool.path)
        spool.open_session("inbox")

    def header(self) -> TaskHeader:
        """A new task's."""
        task = new_task_id()
        bucket = bucket_name(task, new_submitter_id())
        return TaskHeader(task=task, session="inbox", lane=LANE, bucket=bucket, max_attempts=3)

    def put(
        self, place: str, worker: str = "", *, header: TaskHeader | None = None, size: int = 10
    ) -> tuple[Path, TaskFile]:
        """A good task file in ``place``; with its outcome, if that is ``results``."""
        header = header or self.header()
        task_file = TaskFile(header.task, 1, 1, worker)
        path = self.path(place, header, task_file)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.create(str(path), envelope.pack(records.encode(header), b"x" * size))
        if place == "results":
            files.create(self.spool.layout.outcome("inbox", task_file), outcome_of(header, task_file))
        return path, task_file

    def path(self, place: str, header: TaskHeader, task_file: TaskFile) -> Path:
        """Where the file of a task stands."""
        below = {"ready": f"{LANE}/{header.bucket}", "results": "inbox", "outgoing": "inbox"}.get(place, ".")
        return self.root / place / below / task_file.name

    def outcome(self, worker: str) -> Path:
        """An outcome whose task is nowhere."""
        header = self.header()
        task_file = TaskFile(header.task, 1, 1, worker)
        files.create(self.spool.layout.outcome("inbox", task_file), outcome_of(header, task_file))
        return self.path("outgoing", header, task_file)

    def everything(self) -> dict[str, tuple[int, ...]]:
        """What is in the spool, and how each thing is: for comparison."""
        found = {}
        for path in self.root.rglob("*"):
            status = path.lstat()
            found[str(path)] = (status.st_mode, status.st_ino, status.st_size if path.is_file() else 0)
        return found

    def of(self, path: Path) -> str:
        """A path as findings have it."""
        return str(path.relative_to(self.root))


@pytest.fixture
def tree(spool: Spool, few_looks: None) -> Tree:
    return Tree(spool)


def kinds(found: list[Finding]) -> list[tuple[str, str]]:
    return sorted((each.kind, each.path) for each in found)


def run(*arguments: object) -> click.testing.Result:
    return click.testing.CliRunner().invoke(main, [str(each) for each in arguments], prog_name="spool")


# ------------------------------------------------------------------------------ nothing is wrong


def test_a_new_spool_has_no_findings(spool: Spool) -> None:
    assert check(spool) == []
    assert repair(spool, []) == []


def test_a_spool_in_use_has_no_findings(tmp_path: Path, worker: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
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
        monkeypatch.setattr(delay, "retry_delay", lambda *_: 0.0)
        assert delay.DelayedTasks(spool).round() == 1
        assert isinstance(held.exception(), tasks.OwnError)
    assert check(spool) == []


def test_a_spool_has_no_findings_while_tasks_flow_and_workers_come_and_go(tmp_path: Path, worker: Workers) -> None:
    spool = Spool.create(tmp_path / "spool", durability="none")
    looks = 0
    with Executor(spool=spool.path) as executor:
        pending = [executor.submit(pow, number, 2) for number in range(400)]
        for _ in range(2):
            # it may be about to end by itself, its handler of signals gone, when it is told to end
            worker.may_die(worker(spool, "--max-tasks", 150, await_groups=0))
        worker(spool)
        while not all(future.done() for future in pending):
            assert check(spool) == []
            looks += 1
    assert looks > 0
    assert check(spool) == []


# ---------------------------------------------------------------------------- what is not a spool's


def strangers(tree: Tree) -> list[str]:
    """Names that no spool makes, in each of its directories."""
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


def test_unknown_names_are_reported_wherever_they_are_and_never_touched(tree: Tree, beating: None) -> None:
    names = strangers(tree)
    for name in names:
        (tree.root / name).write_bytes(b"somebody's")
        os.utime(tree.root / name, LONG_AGO)
    before = tree.everything()
    found = check(tree.spool)
    assert kinds(found) == sorted(("unknown name", name) for name in names)
    assert not any(each.repairable for each in found)
    assert repair(tree.spool, found) == []
    assert tree.everything() == before
    assert run("check", "--repair", tree.spool.path).exit_code == 1
    assert tree.everything() == before


def test_unknown_directories_are_reported_and_not_entered(tree: Tree) -> None:
    for name in ("other", "ready/other", "results/.other", "workers/other", "tmp/other"):
        (tree.root / name / "inner").mkdir(parents=True)
    found = check(tree.spool)
    assert {each.path for each in found} == {"other", "ready/other", "results/.other", "workers/other", "tmp/other"}


@pytest.mark.parametrize("name", [b"\xff\xfe", b"two\nlines", b"\x1b[31mred", "weiß".encode(), b"\xe2\x80\xae"])
def test_a_hostile_name_is_shown_harmlessly(tree: Tree, name: bytes) -> None:
    (tree.root / "failed" / os.fsdecode(name)).touch()
    shown = run("check", tree.spool.path)
    assert (shown.exit_code, shown.exception.__class__) == (1, SystemExit)
    assert len(shown.output.splitlines()) == 1
    assert all(each.isprintable() for each in shown.output.rstrip("\n"))
    told = json.loads(run("check", "--json", tree.spool.path).output)
    assert told["findings"][0]["path"] == f"failed/{os.fsdecode(name)}"


def test_a_link_in_the_place_of_a_directory_is_reported_and_not_followed(
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


# ----------------------------------------------------------------------------- what cannot be read

PLACES = ("ready", "waiting", "claimed", "results", "failed")


def holder(tree: Tree, place: str) -> str:
    """Who is in the name of a task file there: a live worker, or nobody."""
    return "" if place in ("ready", "waiting") else announce(tree.spool, info_of(unknown_process()).process)


@pytest.fixture
def beating(tree: Tree) -> Iterator[None]:
    """Every worker of the spool gives signs of life, so that none of them is found to be silent."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "seconds_since_heartbeat", lambda *_: 0.0)
        patch.setattr(heartbeat.Liveness, "seconds_since_change", lambda *_: 0.0)
        yield


@pytest.mark.parametrize("place", PLACES)
def test_a_torn_file_is_reported_and_left_alone(tree: Tree, place: str, beating: None) -> None:
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


def test_a_torn_outcome_is_reported_once_it_is_committed(tree: Tree, beating: None) -> None:
    worker = announce(tree.spool, unknown_process())
    path, task_file = tree.put("results", worker)
    outcome = Path(tree.spool.layout.outcome("inbox", task_file))
    outcome.write_bytes(outcome.read_bytes()[:-1])
    assert kinds(check(tree.spool)) == [("unreadable", tree.of(outcome))]
    path.rename(tree.root / "claimed" / task_file.name)
    assert check(tree.spool) == [], "it is still being written"


def test_a_large_torn_file_is_reported(tree: Tree) -> None:
    path, _ = tree.put("ready", size=3 << 20)
    assert check(tree.spool) == []
    os.truncate(path, 2 << 20)
    assert kinds(check(tree.spool)) == [("unreadable", tree.of(path))]


def test_a_file_of_a_newer_version_is_reported(tree: Tree) -> None:
    path, _ = tree.put("ready")
    data = bytearray(path.read_bytes())
    data[8] = 9
    path.write_bytes(data)
    (found,) = check(tree.spool)
    assert found.kind == "unreadable"
    assert "format 9" in found.text


@pytest.mark.parametrize("place", ["ready", "results"])
def test_a_file_that_says_it_is_another_task_is_reported(tree: Tree, place: str, beating: None) -> None:
    path, task_file = tree.put(place, holder(tree, place))
    other, _ = tree.put("failed", new_worker_id())
    path.write_bytes(other.read_bytes())
    other.unlink()
    (found,) = check(tree.spool)
    assert (found.kind, found.path) == ("unreadable", tree.of(path))
    assert task_file.task not in found.text


def special(kind: str, path: Path, aside: Path) -> None:
    """Put something that is no file where one should be."""
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
def test_what_is_no_file_is_reported_and_neither_hangs_nor_is_followed(
    tree: Tree, tmp_path: Path, place: str, kind: str, beating: None
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
def test_what_is_no_file_in_the_hands_of_a_dead_worker_stops_no_repair(tree: Tree, tmp_path: Path, kind: str) -> None:
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
    """Let an operation answer EACCES for some paths."""
    real = getattr(files, name)

    def refused(path: str, **options: object) -> object:
        if wanted(path):
            raise PermissionError(13, "Permission denied", path)
        return real(path, **options)

    monkeypatch.setattr(files, name, refused)


@pytest.mark.parametrize("place", PLACES)
def test_a_file_that_may_not_be_read_is_reported(
    tree: Tree, place: str, beating: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = tree.put(place, holder(tree, place))
    refuse(monkeypatch, "open_file", lambda each: each == str(path))
    (found,) = check(tree.spool)
    assert (found.kind, found.path) == ("unreadable", tree.of(path))
    assert "Permission denied" in found.text


@pytest.mark.multiuser
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file somebody else's")
def test_a_file_of_another_account_is_reported_and_not_read(tree: Tree) -> None:
    path, _ = tree.put("ready")
    os.chown(path, 12345, -1)
    (found,) = check(tree.spool)
    assert (found.kind, found.path) == ("unreadable", tree.of(path))
    assert "not trusted" in found.text


def test_a_file_with_a_second_name_is_reported(tree: Tree, tmp_path: Path) -> None:
    path, _ = tree.put("ready")
    os.link(path, tmp_path / "second")
    assert kinds(check(tree.spool)) == [("unreadable", tree.of(path))]


@pytest.mark.parametrize("directory", ["claimed", "results", "results/inbox", "ready", "workers"])
def test_a_directory_that_cannot_be_listed_is_reported_and_nothing_is_concluded_from_it(
    tree: Tree, directory: str, monkeypatch: pytest.MonkeyPatch, beating: None
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


# ------------------------------------------------------------------------------ tasks in two places


@pytest.mark.parametrize(("one", "other"), [("ready", "claimed"), ("ready", "waiting"), ("results", "failed")])
def test_a_task_in_two_places_is_reported_and_left_alone(tree: Tree, one: str, other: str, beating: None) -> None:
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


def test_a_dead_worker_and_its_claim_are_reported_and_brought_back(tree: Tree) -> None:
    dead = announce(tree.spool, dead_process())
    path, task_file = tree.put("claimed", dead)
    found = check(tree.spool)
    assert kinds(found) == [("dead claim", tree.of(path)), ("dead worker", f"workers/{dead}")]
    (line,) = repair(tree.spool, found)
    assert task_file.task in line
    assert [each.name for each in scan(tree.spool).ready.values()] == [task_file.requeued().name]
    assert check(tree.spool) == []


def test_a_claim_of_an_unknown_worker_is_brought_back_after_a_lease(tree: Tree) -> None:
    path, task_file = tree.put("claimed", new_worker_id())
    found = check(tree.spool)
    assert kinds(found) == [("dead claim", tree.of(path))]
    assert repair(tree.spool, found, seconds=0) == []
    assert path.exists(), "nobody was watched for a lease"
    repair(tree.spool, found)
    assert [each.name for each in scan(tree.spool).ready.values()] == [task_file.requeued().name]
    assert check(tree.spool) == []


def test_a_worker_of_another_host_that_is_silent_is_reported_and_brought_back(tree: Tree) -> None:
    silent = announce(tree.spool, unknown_process())
    path, _ = tree.put("claimed", silent)
    os.utime(tree.root / "workers" / silent / "beat", LONG_AGO)
    found = check(tree.spool)
    assert kinds(found) == [("dead claim", tree.of(path)), ("dead worker", f"workers/{silent}")]
    repair(tree.spool, found)
    assert not path.exists()
    assert check(tree.spool) == []


def test_a_silent_worker_that_still_holds_its_lock_is_reported_and_keeps_its_claim(tree: Tree) -> None:
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


def test_a_finished_outcome_of_a_dead_worker_is_published(tree: Tree) -> None:
    dead = announce(tree.spool, dead_process())
    header = tree.header()
    path, task_file = tree.put("claimed", dead, header=header)
    files.create(tree.spool.layout.outcome("inbox", task_file), outcome_of(header, task_file))
    repair(tree.spool, check(tree.spool))
    assert not path.exists()
    assert tree.path("results", header, task_file).exists()
    assert check(tree.spool) == []


def test_a_worker_that_ends_between_the_looks_is_not_reported(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes its claim away first and its entry afterwards."""
    worker = announce(tree.spool, unknown_process())
    path, task_file = tree.put("claimed", worker)

    def ended(spool: Spool) -> list[WorkerInfo]:
        if path.exists():
            path.rename(tree.root / "failed" / task_file.name)
        return []

    monkeypatch.setattr(workers, "read_workers", ended)
    assert check(tree.spool) == []


def test_an_entry_that_names_another_worker_is_nobodys(tree: Tree) -> None:
    """Else who can write there could have a live worker taken for dead."""
    worker, liar = announce(tree.spool, unknown_process()), announce(tree.spool, dead_process())
    info = tree.root / "workers" / liar / "info.json"
    info.write_text(info.read_text().replace(liar, worker))
    assert [info.worker for info in workers.read_workers(tree.spool)] == [worker]


# ---------------------------------------------------------------------------------------- outcomes


def test_an_outcome_without_a_task_is_reported_and_removed_after_a_second_look(tree: Tree) -> None:
    path = tree.outcome(new_worker_id())
    found = check(tree.spool)
    assert kinds(found) == [("orphan outcome", tree.of(path))]
    assert repair(tree.spool, found, seconds=0) == []
    assert path.exists(), "one look is not enough"
    assert repair(tree.spool, found) == [f"removed {tree.of(path)}"]
    assert not path.exists()
    assert check(tree.spool) == []


@pytest.mark.parametrize("place", ["claimed", "results"])
def test_an_outcome_whose_task_is_there_after_all_is_kept(tree: Tree, place: str, beating: None) -> None:
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


def test_a_committed_task_without_its_outcome_is_reported_and_runs_again(tree: Tree) -> None:
    path, task_file = tree.put("results", new_worker_id())
    Path(tree.spool.layout.outcome("inbox", task_file)).unlink()
    found = check(tree.spool)
    assert kinds(found) == [("no outcome", tree.of(path))]
    assert repair(tree.spool, found, seconds=0) == []
    assert path.exists(), "the outcome may only be late"
    assert repair(tree.spool, found) == [f"requeued {tree.of(path)}"]
    assert [each.name for each in scan(tree.spool).ready.values()] == [task_file.released().name]
    assert check(tree.spool) == []


def test_an_outcome_that_comes_late_is_waited_for(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_committed_task_without_its_outcome_waits_for_the_end_of_its_worker(tree: Tree, beating: None) -> None:
    worker = announce(tree.spool, unknown_process())
    path, task_file = tree.put("results", worker)
    Path(tree.spool.layout.outcome("inbox", task_file)).unlink()
    found = check(tree.spool)
    assert [each.kind for each in found] == ["no outcome"]
    assert repair(tree.spool, found, seconds=0.5) == []
    assert path.exists()


def test_a_cancelled_task_needs_no_outcome(tree: Tree) -> None:
    _, task_file = tree.put("results", CANCELLED)
    Path(tree.spool.layout.outcome("inbox", task_file)).unlink()
    assert check(tree.spool) == []


def test_a_collector_between_its_two_removals_is_not_reported(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    _, task_file = tree.put("results", new_worker_id())
    outcome = Path(tree.spool.layout.outcome("inbox", task_file))
    Path(tree.spool.layout.result("inbox", task_file)).unlink()
    real = scan
    looks = []

    def later(spool: Spool) -> Snapshot:
        looks.append(1)
        if len(looks) == 3:
            outcome.unlink()
        return real(spool)

    monkeypatch.setattr("spoolpool.maintenance.check.scan", later)
    assert check(tree.spool, deep=False) == []


# --------------------------------------------------------------------------------- marks and the rest


def test_a_mark_is_stale_once_its_task_is_nowhere(tree: Tree, beating: None) -> None:
    marked = []
    for place in PLACES:
        _, task_file = tree.put(place, holder(tree, place))
        marked.append(task_file.task)
    stale = new_task_id()
    for task in [*marked, stale]:
        (tree.root / "cancel" / task).touch()
    found = check(tree.spool)
    assert kinds(found) == [("stale request", f"cancel/{stale}")]
    assert repair(tree.spool, found) == [f"removed cancel/{stale}"]
    assert sorted(files.list_names(tree.spool.layout.cancel)) == sorted(marked)
    assert check(tree.spool) == []


def test_what_cannot_be_mended_hinders_nothing_else(tree: Tree) -> None:
    wrong, right = new_task_id(), new_task_id()
    (tree.root / "cancel" / wrong / "inner").mkdir(parents=True)
    (tree.root / "cancel" / right).touch()
    assert repair(tree.spool, check(tree.spool)) == [f"removed cancel/{right}"]
    assert kinds(check(tree.spool)) == [("stale request", f"cancel/{wrong}")]
    assert (tree.root / "cancel" / wrong / "inner").is_dir()


def test_missing_directories_are_reported_and_made(spool: Spool) -> None:
    names = [name for name in Layout.DIRECTORIES if name != "failed"]
    for name in names:
        (Path(spool.path) / name).rmdir()
    found = check(spool)
    assert kinds(found) == sorted(("missing", name) for name in names)
    assert sorted(repair(spool, found)) == sorted(f"made {name}" for name in names)
    assert {stat.S_IMODE((Path(spool.path) / name).stat().st_mode) for name in names} == {0o700}
    assert check(spool) == []


@pytest.mark.parametrize("lost", ["results", "claimed"])
def test_nothing_is_concluded_from_a_directory_that_is_missing(tree: Tree, lost: str) -> None:
    path, task_file = tree.put("results", new_worker_id())
    path.rename(tree.root / "saved")
    outcome = Path(tree.spool.layout.outcome("inbox", task_file))
    Path(path.parent).rmdir()
    (tree.root / lost).rmdir()
    found = check(tree.spool)
    assert kinds(found) == [("missing", lost), ("unknown name", "saved")]
    repair(tree.spool, found)
    assert outcome.exists(), "it may be all that is left of a task"


def test_unfinished_writes_are_reported_once_they_are_old(tree: Tree) -> None:
    task = new_task_id()
    young, old = tree.root / "tmp" / new_task_id(), tree.root / "tmp" / task
    young.touch()
    old.touch()
    os.utime(old, LONG_AGO)
    found = check(tree.spool)
    assert kinds(found) == [("unfinished", f"tmp/{task}")]
    assert repair(tree.spool, found) == [f"removed tmp/{task}"]
    assert files.list_names(tree.spool.layout.tmp) == [young.name]


def test_a_spool_that_cannot_be_written_to_can_be_checked(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = tree.put("claimed", new_worker_id())

    def refused(path: str) -> None:
        raise OSError(30, "Read-only file system", path)

    monkeypatch.setattr(files, "touch", refused)
    assert kinds(check(tree.spool)) == [("dead claim", tree.of(path))]


def test_what_nfs_calls_a_file_that_is_open_and_removed_is_not_reported(tree: Tree) -> None:
    (tree.root / "outgoing" / "inbox" / ".nfs00000000000a1b2c00000001").touch()
    assert check(tree.spool) == []


# ------------------------------------------------------------------------------- the command line


def test_the_command_says_that_nothing_is_wrong(spool: Spool) -> None:
    shown = run("check", spool.path)
    assert (shown.exit_code, shown.output) == (0, f"{spool.path}: nothing is wrong.\n")
    told = run("check", "--json", spool.path)
    assert told.exit_code == 0
    assert json.loads(told.output) == {"spool": spool.path, "findings": [], "done": []}


def test_the_command_names_kind_path_and_what_it_does(tree: Tree) -> None:
    (tree.root / "junk").touch()
    torn, _ = tree.put("ready")
    torn.write_bytes(b"torn")
    shown = run("check", tree.spool.path)
    assert shown.exit_code == 1
    lines = shown.output.splitlines()
    assert [line.split()[0] for line in lines] == ["unknown", "unreadable"]
    assert "junk" in lines[0] and tree.of(torn) in lines[1]
    assert all(line.endswith(".") and not line.endswith("..") for line in lines)
    quick = run("check", "--quick", tree.spool.path)
    assert quick.exit_code == 1
    assert "unreadable" not in quick.output


def test_the_commands_json_has_stable_keys(tree: Tree) -> None:
    (tree.root / "junk").touch()
    told = json.loads(run("check", "--json", tree.spool.path).output)
    assert told.keys() == {"spool", "findings", "done"}
    assert [finding.keys() for finding in told["findings"]] == [{"kind", "path", "text", "repairable"}]


def test_the_command_repairs_says_what_it_did_and_what_is_left(tree: Tree) -> None:
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
    told = json.loads(repaired.output)
    assert told["done"] == [f"removed {tree.of(stale)}"]
    assert [finding["path"] for finding in told["findings"]] == ["junk"]


def test_without_repair_the_command_changes_nothing(tree: Tree) -> None:
    dead = announce(tree.spool, dead_process())
    tree.put("claimed", dead)
    tree.outcome(new_worker_id())
    (tree.root / "cancel" / new_task_id()).touch()
    before = tree.everything()
    assert run("check", tree.spool.path).exit_code == 1
    assert tree.everything() == before


# ------------------------------------------------------------------------------ what needs what


def test_an_edge_without_a_task_is_reported_and_removed(tree: Tree) -> None:
    needed, _ = tree.put("ready")
    edge = DependencyLink(needed.name.partition(".")[0], new_task_id())
    tree.spool.make_directories(f"{tree.spool.layout.needs}/inbox")
    files.create(tree.spool.layout.dependency_link("inbox", edge), [])
    found = check(tree.spool, deep=False)
    assert kinds(found) == [("stale link", f"needs/inbox/{edge.name}")]
    assert repair(tree.spool, found) == [f"removed needs/inbox/{edge.name}"]
    assert check(tree.spool, deep=False) == []


def test_a_task_that_waits_for_what_is_not_there_is_reported_and_let_go(tree: Tree) -> None:
    header = msgspec.structs.replace(tree.header(), needs={"inbox": (new_task_id(),)})
    path, task_file = tree.put("waiting", header=header)
    tree.spool.make_directories(f"{tree.spool.layout.needs}/inbox")
    files.create(tree.spool.layout.dependency_link("inbox", DependencyLink(header.needs["inbox"][0], header.task)), [])
    found = check(tree.spool)
    assert kinds(found) == [("no dependency", tree.of(path))]
    assert repair(tree.spool, found) == [f"made {tree.of(path)} ready"]
    assert tree.path("ready", header, task_file).exists()


def test_a_name_in_needs_that_is_no_edge_is_reported(tree: Tree) -> None:
    directory = tree.root / "needs" / "inbox"
    directory.mkdir(parents=True)
    (directory / "junk").touch()
    assert kinds(check(tree.spool)) == [("unknown name", "needs/inbox/junk")]

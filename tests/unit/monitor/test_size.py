"""Commands for a spool with many tasks: memory and file operations do not grow with the number of names."""

from __future__ import annotations

import gc
import os
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from spoolpool.cli.spool import main
from spoolpool.format.names import (
    CANCELLED,
    DependencyLink,
    TaskFile,
    bucket_name,
    new_submitter_id,
    new_task_id,
    new_worker_id,
)
from spoolpool.maintenance.check import check
from spoolpool.maintenance.garbage import find_garbage
from spoolpool.monitor.inventory import count_session_tasks
from spoolpool.monitor.scan import SpoolScanner, waiting_needs
from spoolpool.monitor.states import UNREAD
from spoolpool.monitor.status import StatusCollector
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.workers import NeededTime
from spoolpool.system import files
from tests.support.fake_worker import LANE

FEW, MANY = 1000, 11_000
PER_TASK = 60  # bytes: a name alone takes more


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool.create(tmp_path / "spool", durability="none")


def fill(spool: Spool, number: int, **parts: int) -> None:
    """Make so many names of waiting tasks, a thousand in each bucket."""
    for start in range(0, number, 1000):
        tasks = sorted(new_task_id() for _ in range(min(1000, number - start)))
        bucket = Path(spool.path, "ready", LANE, bucket_name(tasks[0], new_submitter_id()))
        bucket.mkdir(parents=True)
        for task in tasks:
            os.close(os.open(bucket / TaskFile(task, 1, 1, **parts).name, os.O_CREAT | os.O_WRONLY, 0o600))


def peak(function: Callable[[], object]) -> int:
    gc.collect()
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "command",
    [
        lambda spool: check(spool, deep=False),
        find_garbage,
        lambda spool: StatusCollector(spool).collect(),
        lambda spool: count_session_tasks(spool, SpoolScanner(spool.layout.root)),
        waiting_needs,
    ],
    ids=["check", "gc", "status", "session ls", "autoscale"],
)
def test_memory_does_not_grow_with_the_names_of_waiting_tasks(spool: Spool, command: Callable[[Spool], object]) -> None:
    fill(spool, FEW)
    command(spool)  # caches of patterns and of imports
    few = peak(lambda: command(spool))
    fill(spool, MANY - FEW)
    many = peak(lambda: command(spool))
    assert (many - few) / (MANY - FEW) < PER_TASK, f"{few} and {many} bytes"


def test_check_reads_contents_one_after_another(spool: Spool) -> None:
    fill(spool, FEW)
    Path(spool.path, "note.txt").touch()
    seen: list[tuple[int, int]] = []
    found = check(spool, progress=lambda done, of: seen.append((done, of)))
    assert Counter(each.kind for each in found) == {"unknown name": 1, "unreadable": FEW}
    assert seen == [(FEW, FEW)]


def test_consistent_spool_is_listed_once_by_check(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(spool, 10)
    listed: Counter[str] = Counter()
    real = files.list_names

    def counted(directory: str, **options: bool) -> list[str]:
        listed[directory] += 1
        return real(directory, **options)

    monkeypatch.setattr(files, "list_names", counted)
    assert check(spool, deep=False) == []
    assert {listed[path] for path in listed if "/ready" in path} == {1}


def test_findings_among_many_tasks_are_exact(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spoolpool.maintenance.check._REPETITIONS", 1)
    fill(spool, 3000)
    bucket = next(Path(spool.path, "ready", LANE).iterdir())
    twice = min(bucket.iterdir()).name
    worker = new_worker_id()
    ended, orphan, dependency, dependent = (new_task_id() for _ in range(4))
    for path in (
        f"failed/{twice}",
        f"claimed/{TaskFile(ended, 1, 1, worker).name}",
        f"outgoing/inbox/{TaskFile(orphan, 1, 1, worker).name}",
        f"results/inbox/{TaskFile(orphan, 2, 1, worker).name}",
        f"results/inbox/{TaskFile(new_task_id(), 1, 1, CANCELLED).name}",
        f"waiting/{TaskFile(dependent, 1, 1).name}",
        f"needs/inbox/{DependencyLink(dependency, dependent).name}",
        f"needs/inbox/{DependencyLink(ended, orphan).name}",
        f"needs/inbox/{DependencyLink(ended, dependency).name}",
        f"cancel/{ended}",
        f"cancel/{orphan}",
        "results/inbox/note.txt",
    ):
        Path(spool.path, path).parent.mkdir(parents=True, exist_ok=True)
        Path(spool.path, path).touch()
    found = {(each.kind, each.path) for each in check(spool, deep=False)}
    assert found == {
        ("duplicate task", f"failed/{twice}"),
        ("dead claim", f"claimed/{TaskFile(ended, 1, 1, worker).name}"),
        ("orphan outcome", f"outgoing/inbox/{TaskFile(orphan, 1, 1, worker).name}"),
        ("no outcome", f"results/inbox/{TaskFile(orphan, 2, 1, worker).name}"),
        ("no dependency", f"waiting/{TaskFile(dependent, 1, 1).name}"),
        ("stale link", f"needs/inbox/{DependencyLink(ended, dependency).name}"),
        ("stale request", f"cancel/{orphan}"),
        ("unknown name", "results/inbox/note.txt"),
    }


def test_status_counts_calls_and_needed_times_by_names(spool: Spool) -> None:
    fill(spool, 1001)
    fill(spool, 3, calls=100, first=40)
    fill(spool, 2, seconds=60)
    bucket = next(Path(spool.path, "ready", LANE).iterdir())
    (bucket / "note.txt").touch()
    (bucket / TaskFile(new_task_id(), 1, 1, new_worker_id()).name).touch()
    (row,) = StatusCollector(spool).collect().counts
    assert row.states == {"waiting": 1001 + 3 * 60 + 2, UNREAD: 3 * 40}
    assert row.needed == {NeededTime(60, 0): 2}


def test_finished_tasks_beyond_the_limit_of_headers_are_counted_by_names(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spoolpool.monitor.task_reader._HEADERS", 5)
    monkeypatch.setattr("spoolpool.monitor.task_reader._SECONDS", -1.0)
    results = Path(spool.path, "results", "inbox")
    results.mkdir()
    for calls in [0] * 20 + [50]:
        (results / TaskFile(new_task_id(), 1, 1, new_worker_id(), calls=calls).name).touch()
    collector = StatusCollector(spool)
    assert collector.collect().totals()["unread"] == 15 + 50
    counts = count_session_tasks(spool, SpoolScanner(spool.layout.root))["inbox"]
    assert sum(counts.states.values()) == 20 + 50


def test_ids_of_many_tasks_are_listed(spool: Spool) -> None:
    fill(spool, 2345)
    printed = CliRunner().invoke(main, ["ls", "-q", spool.path]).output.split()
    assert len(set(printed)) == 2345
    assert len(CliRunner().invoke(main, ["ls", "-q", "-n", "1001", spool.path]).output.split()) == 1001

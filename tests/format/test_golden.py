"""Golden spools of every format stay readable: their tasks run, their outcomes are collected."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec
import pytest

from spoolpool import wire
from spoolpool.calls.pickling import ObjectRef
from spoolpool.errors import DependencyFailed, RemoteTraceback, SpoolVersion, WalltimeTooShort, WorkerLost
from spoolpool.format.layout import Layout
from spoolpool.format.names import FORMAT, TaskFile, parse_task_file
from spoolpool.maintenance.check import check
from spoolpool.pool import job_ends
from spoolpool.pool.batch_jobs import read_record
from spoolpool.protocol import lost_attempts
from spoolpool.protocol.object_leases import leases
from spoolpool.protocol.open_packs import OpenPackSealer
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.tasks import read_task
from spoolpool.protocol.worker_registration import take_end
from spoolpool.security import signing
from spoolpool.wire import values_before
from tests.format.golden.make import ATTEMPT, DATA, END, JOB, RECORD, SECRET, WORKER, done, waiting
from tests.format.pickled_names import is_allowed, names_in_spool
from tests.support.fake_worker import Clock, Inbox, run_worker

GOLDEN = Path(__file__).parent / "golden"
FORMATS = sorted(path.name for path in GOLDEN.glob("format-*"))


@pytest.fixture(params=FORMATS)
def golden(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a golden spool with the empty directories that git does not keep, and the key of a signed one."""
    key = signing.Key.of(SECRET)
    (tmp_path / "key").write_text(f"{key.id} {key.secret.hex()}\n")
    (tmp_path / "key").chmod(0o600)
    copy = tmp_path / "spool"
    shutil.copytree(GOLDEN / request.param, copy)
    if b'"signed":true' in (copy / "spool.json").read_bytes():
        monkeypatch.setenv("SPOOLPOOL_KEY", str(tmp_path / "key"))
    copy.chmod(0o700)  # git keeps no modes
    for directory in Layout.DIRECTORIES:
        (copy / directory).mkdir(exist_ok=True)
    return copy


def test_there_is_a_golden_spool_of_this_format() -> None:
    assert f"format-{FORMAT}" in FORMATS


def test_check_finds_nothing_in_a_golden_spool(golden: Path) -> None:
    assert check(Spool(golden)) == []


def results_of_pack(results: Any) -> list[object]:
    """The values of a pack's calls, and the types of their exceptions and causes."""
    found: list[object] = []
    for number in range(len(results)):
        try:
            found.append(results[number])
        except ZeroDivisionError as error:
            found += [type(error), type(error.__cause__)]
    return found


def output_of(ended: Any) -> bytes:
    assert isinstance(ended, subprocess.CompletedProcess)
    return bytes(ended.stdout)


def as_list(value: Any) -> list[Any]:
    return [bytes(each) if isinstance(each, (memoryview, bytearray)) else each for each in value]


def same(value: Any) -> Any:
    return value


ZERO = ZeroDivisionError("division by zero")

RESULTS_OF_TASKS: dict[str, tuple[object, Callable[[Any], object]]] = {
    "plain": (32, same),
    "chunk": ([8, 16], same),
    "pack": ([8, ZeroDivisionError, RemoteTraceback], results_of_pack),
    "command": (b"golden 0\n", output_of),
    "program": ("golden\n", same),
    "shell": ("golden\n", same),
    "objects": (DATA + b"+put+apart", same),
    "dependency": (43, same),
    "current task": (waiting("current task"), same),
    "wait": ((set(), set()), tuple),
    "public names": (26, same),
    "options": (["night", "night", ("-v",), ("-v",), ("-v",), 2, 2], same),
    "errors": (24, same),
    "module": ([7, "spoolpool.errors", type(None)], same),
    "exception": (ZERO, same),
    "definitions": (6, same),
    "time limit": (32, same),
    "initialized": (32, same),
    "label": (32, same),
    "arguments": (32, same),
    "labelled calls": ([8, ZeroDivisionError, RemoteTraceback], results_of_pack),
    "calls": ([8, ZeroDivisionError, RemoteTraceback], results_of_pack),
    "open pack": ([8, ZeroDivisionError, RemoteTraceback], results_of_pack),
}
RESULTS_OF_OUTCOMES: dict[str, tuple[object, Callable[[Any], object]]] = {
    "buffer": ([42, DATA], as_list),
    "chunk": ([8, 16], same),
    "usage": (7, same),
    "pack": ([8, ZeroDivisionError, RemoteTraceback], results_of_pack),
    "command": (b"golden\n", output_of),
    "object reference": (ObjectRef("0" * 16, "a8c7d3d88838097f13c37e422080c6a5", 18), same),
    "ranks": ([[0, DATA], [1, DATA]], lambda value: list(map(as_list, value))),
    "exception": (ZERO, same),
    "worker lost": (WorkerLost("it died"), same),
    "dependency failed": (DependencyFailed("it was not run"), same),
    "linked exception": (FileNotFoundError(2, "No such file", "golden"), same),
    "lost attempts": (WorkerLost("it died"), same),
    "exception of a chunk": (ZERO, same),
    "walltime too short": (WalltimeTooShort("it was given back"), same),
    "calls": ([8, ZeroDivisionError, RemoteTraceback], results_of_pack),
}


def test_its_tasks_run_and_its_outcomes_are_collected(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool, clock = Spool(golden), Clock.installed(monkeypatch)
    paths = [*golden.glob("ready/*/*/*"), *golden.glob("waiting/*"), *golden.glob("results/*/*")]
    headers = [read_task(spool, str(path), parse_task_file(path.name)) for path in paths]
    assert {(header.name, header.user, header.max_attempts) for header in headers} == {("pow", "golden", 3)}

    sealer = OpenPackSealer(spool)
    for _ in range(8):
        sealer.round()
        clock.sleep(spool.config.lease)
    run_worker(spool, clock, python="3.11")
    inbox = Inbox(spool, clock, "golden")
    futures = {header.task: inbox.expect(header) for header in headers}
    inbox.look()
    for kind, (wanted, convert) in RESULTS_OF_TASKS.items():
        assert_result(kind, futures.pop(waiting(kind)), wanted, convert)
    for kind, (wanted, convert) in RESULTS_OF_OUTCOMES.items():
        assert_result(kind, futures[done(kind)], wanted, convert)
    assert {task for task, future in futures.items() if future.cancelled()} == {
        done("cancelled"),
        done("cancelled before its claim"),
    }
    cause = futures[done("dependency failed")].exception().__cause__
    assert isinstance(cause, ZeroDivisionError) and isinstance(cause.__cause__, RemoteTraceback)
    linked = futures[done("linked exception")].exception()
    assert isinstance(linked.__cause__, ZeroDivisionError) and linked.__notes__ == ["a note"]
    assert isinstance(linked.__cause__.__cause__, RemoteTraceback)

    assert futures[done("lost attempts")].exception().attempts == (ATTEMPT,)
    assert values_before(futures[done("exception of a chunk")].exception()) == [8]

    clock.now += 200.0  # outcomes stay until no other process can have added a link to them
    inbox.look()
    assert not [path for path in (golden / "outgoing").rglob("*") if path.is_file()]
    assert sorted(leases(spool)) == sorted(path.name for path in (golden / "objects").iterdir())


def test_the_records_of_the_end_of_a_worker_are_read(golden: Path) -> None:
    spool = Spool(golden)
    lost = done("lost attempts")
    assert lost_attempts.kept(spool, lost) == {1: ATTEMPT}
    found = lost_attempts.find(spool, TaskFile(lost, 2, 2, WORKER))
    assert (found.rank, found.status) == (1, -11) and 'File "golden.py"' in found.stack
    assert take_end(spool, WORKER) == "renew"


def test_the_records_of_a_batch_job_are_read(golden: Path) -> None:
    spool = Spool(golden)
    assert read_record(spool, JOB) == RECORD
    found = job_ends.read_end(spool, JOB, 0.0)
    assert found is not None and found.end == END
    assert job_ends.has_started(spool, JOB)


def assert_result(kind: str, future: Future[Any], wanted: object, convert: Callable[[Any], object]) -> None:
    """Compare the result of a future with a value, or its exception with one of the same type and text."""
    if isinstance(wanted, BaseException):
        error = future.exception(timeout=0)
        assert (type(error), str(error)) == (type(wanted), str(wanted)), kind
    else:
        assert convert(future.result(timeout=0)) == wanted, kind


def test_golden_files_name_nothing_of_spoolpool_but_names_of_the_format(golden: Path) -> None:
    names = names_in_spool(golden)
    assert {name: paths for name, paths in names.items() if not is_allowed(name)} == {}


def test_golden_files_of_this_format_name_each_name_of_wire() -> None:
    names = {name for path in GOLDEN.glob(f"format-{FORMAT}*") for name in names_in_spool(path)}
    assert {name.name for name in names if name.module == "spoolpool.wire"} == set(wire.__all__)


def test_a_spool_of_a_later_format_is_refused_with_the_remedy(golden: Path) -> None:
    config = msgspec.json.decode((golden / "spool.json").read_bytes())
    config["format"] = FORMAT + 1
    (golden / "spool.json").write_bytes(msgspec.json.encode(config))
    with pytest.raises(SpoolVersion, match="Install a newer spoolpool"):
        Spool(golden)

"""Hostile files in the place of small records: submitters get their results, commands work, and the file is named."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from spoolpool import Executor
from spoolpool.cli.spool import main
from spoolpool.client import starvation
from spoolpool.format.names import CANCELLED, TaskFile, new_task_id, new_worker_id
from spoolpool.protocol.spool import Spool
from spoolpool.system import records
from spoolpool.system.limited_log import LimitedLog
from spoolpool.system.processes import ProcessId
from tests.conftest import Workers
from tests.support.fake_worker import LANE
from tests.support.task_files import put
from tests.support.waiting import LIMIT, wait_until

NOBODY = {"host": "elsewhere", "pid": 1, "start": "1", "boot": "another", "namespace": "n"}


def _deep(path: Path) -> None:
    path.write_bytes(b'{"a":' + b"[" * 30_000 + b"]" * 30_000 + b"}")


def _deeper_than_the_stack(path: Path) -> None:
    path.write_bytes(b'{"a":' * 100_000 + b"1" + b"}" * 100_000)


def _many_keys(path: Path) -> None:
    path.write_bytes(b"{" + b",".join(b'"%d":1' % number for number in range(1_000_000)) + b"}")


def _not_a_number(path: Path) -> None:
    path.write_bytes(b'{"t": NaN, "told": NaN, "process": NaN}')


def _huge_number(path: Path) -> None:
    path.write_bytes(b'{"t": 1e400, "pid": ' + b"9" * 5000 + b"}")


def _surrogate(path: Path) -> None:
    path.write_bytes(b'{"event": "\\ud800", "user": "\\udfff", "text": "\\ud8"}')


def _torn(path: Path) -> None:
    path.write_bytes(b'{"worker": "0123')


def _zeros(path: Path) -> None:
    path.write_bytes(bytes(4096))


def _large(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b'{"worker": "')
        file.truncate(100_000_000)


def _directory(path: Path) -> None:
    path.mkdir()


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def _absurd(path: Path) -> None:
    """Write values of the right types, which no record has."""
    fields = {
        "worker": path.parent.name,
        "process": {**NOBODY, "pid": 10**30},
        "user": "\x1b[2J",
        "ranks": -1,
        "started": 1e300,
        "task": "t",
        "fraction": 1e300,
        "text": "x",
        "told": -1e300,
        "name": path.stem,
        "system": "slurm",
        "cluster": "\x1b",
        "t": 1e300,
        "event": "task",
    }
    path.write_text(json.dumps(fields) + "\n", encoding="utf-8")


HOSTILE: list[Callable[[Path], None]] = [
    _deep,
    _deeper_than_the_stack,
    _many_keys,
    _not_a_number,
    _huge_number,
    _surrogate,
    _torn,
    _zeros,
    _large,
    _directory,
    _fifo,
    _link,
    _absurd,
]


def _plant(spool: Spool, plant: Callable[[Path], None]) -> list[str]:
    """Put hostile files in the places of all records; return their paths, relative to the spool."""
    worker = new_worker_id()
    entry = Path(spool.layout.worker(worker))
    spool.make_directories(str(entry))
    (entry / "beat").touch()
    spool.make_directories(spool.layout.jobs)
    # a good entry with a hostile progress report and lack file
    other = Path(spool.layout.worker(new_worker_id()))
    spool.make_directories(str(other))
    (other / "beat").touch()
    process = ProcessId.of(os.getpid())
    about = {"worker": other.name, "process": {name: getattr(process, name) for name in process.__struct_fields__}}
    (other / "info.json").write_text(json.dumps({**about, "user": "u", "queues": ["elsewhere"]}), encoding="utf-8")
    paths = [
        entry / "info.json",
        other / "progress",
        Path(spool.layout.session("hostile")),
        Path(spool.layout.jobs, "spool-worker-0123456789abcdef.json"),
        Path(spool.layout.journal, "hostile.jsonl"),
    ]
    for path in paths:
        plant(path)
        if path.suffix == ".jsonl" and path.is_file() and not path.is_symlink():
            with path.open("ab") as file:
                file.write(b"\n")
    plant(other / "lacks-some==1.0")
    put(spool, "running", worker=other.name)  # of whose task the status shows the progress
    return [str(path.relative_to(spool.path)) for path in paths]


COMMANDS = [
    ("status",),
    ("status", "--json"),
    ("workers", "ls"),
    ("workers", "ls", "--json"),
    ("ls",),
    ("ls", "--json"),
    ("gc",),
    ("gc", "--dry-run"),
    ("session", "ls"),
    ("session", "ls", "--json"),
    ("journal",),
    ("journal", "--json"),
    ("cache", "ls"),
    ("graph",),
    ("check",),
    ("check", "--json"),
]


@pytest.mark.parametrize("plant", HOSTILE, ids=lambda plant: plant.__name__.strip("_"))
def test_commands_work_and_name_the_hostile_file(
    spool: Spool, plant: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    planted = _plant(spool, plant)
    told = ""
    for command in [*COMMANDS, ("report", "--output", str(tmp_path / "report.html"))]:
        monkeypatch.setattr(records, "_reported", LimitedLog(logging.getLogger(records.__name__)))
        name, *options = command
        words = [name, *options[:1], spool.path, *options[1:]] if name in ("workers", "session", "cache") else None
        result = CliRunner().invoke(main, words or [name, spool.path, *options])
        assert result.exit_code in ({0} if name != "check" else {1}), (command, result.output, result.exception)
        assert "\x1b" not in result.output
        told += result.output + result.stderr
    missing = [path for path in planted if path not in told]
    assert missing == []


@pytest.mark.parametrize("plant", HOSTILE, ids=lambda plant: plant.__name__.strip("_"))
def test_futures_resolve_beside_hostile_files(
    spool: Spool, worker: Workers, plant: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spoolpool.client.collector._CHECK_SECONDS", 0.01)
    looks = []
    real = starvation.StarvationMonitor.check

    def check(self: starvation.StarvationMonitor, awaited: object) -> None:
        real(self, awaited)  # type: ignore[arg-type]
        looks.append(time.monotonic())

    monkeypatch.setattr(starvation.StarvationMonitor, "check", check)
    _plant(spool, plant)
    with Executor(spool=spool.path) as executor:
        future = executor.submit(pow, 2, 5)
        wait_until(lambda: looks, "the submitter has looked for groups, as no outcome comes")
        worker(spool)
        assert future.result(LIMIT) == 32


def test_names_with_terminal_controls_do_not_reach_the_terminal(spool: Spool) -> None:
    put(spool, "failed", name="\x1b[2Jname", user="\x1b]0;u\x07", host="\u202eh", cwd="\x1b", lane=LANE)
    put(spool, "raised", name="\x1b[2Jname")
    for command in ("ls", "status", "graph", "journal", "check"):
        result = CliRunner().invoke(main, [command, spool.path])
        assert "\x1b" not in result.output + result.stderr, command


def test_torn_file_of_a_cancelled_task_does_not_end_the_collector(spool: Spool, worker: Workers) -> None:
    with Executor(spool=spool.path) as executor:
        future = executor.submit(pow, 2, 5)
        junk = Path(spool.layout.results, executor.info["session"], TaskFile(new_task_id(), 1, 1, CANCELLED).name)
        junk.write_bytes(b"junk")
        worker(spool)
        assert future.result(LIMIT) == 32
    assert junk.exists()

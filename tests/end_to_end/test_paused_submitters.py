"""Submitters that are stopped at any moment, as in a suspended laptop, while garbage is collected a month later."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from spoolpool import Executor
from spoolpool.format.config import RetentionPolicy
from spoolpool.maintenance.check import check
from spoolpool.maintenance.garbage import find_garbage, remove
from spoolpool.maintenance.repair import repair
from spoolpool.protocol.spool import Spool
from spoolpool.system import files
from tests.conftest import Workers
from tests.support.waiting import LIMIT, wait_until

AT_ONCE = RetentionPolicy(results=0.0, sessions=0.0, unfinished=0.0, journals=0.0, logs=0.0, cache=0.0)

# it stops at the moment that its arguments name: a function of spoolpool.system.files, and two parts of its path
SUBMITTER = """
import os, signal, sys
from spoolpool import Executor
from spoolpool.system import files

path, function, source, target = sys.argv[1:]
real = getattr(files, function)
stopped = []

def stop(first, *more, **options):
    if not stopped and source in first and (not target or target in more[0]):
        stopped.append(first)
        os.kill(os.getpid(), signal.SIGSTOP)
    return real(first, *more, **options)

with Executor(spool=path) as executor:
    setattr(files, function, stop)
    first = executor.submit(pow, 2, 5)
    print(first.result(), executor.submit(pow, first, 2).result(), flush=True)
"""


@pytest.fixture
def month(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the clock of the file server show that a month has passed, for this process."""
    real = Spool.server_time
    monkeypatch.setattr(Spool, "server_time", lambda spool: real(spool) + 40 * 86400.0)


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "T"


@pytest.mark.parametrize(
    ("function", "source", "target"),
    [("move", "/tmp/", "/ready/"), ("remove", "/results/", ""), ("list_names", "/results/", "")],
    ids=["before the task is in the queue", "before an outcome is removed", "before the outcomes are listed"],
)
def test_stopped_submitter_loses_nothing(
    tmp_path: Path, worker: Workers, month: None, function: str, source: str, target: str
) -> None:
    spool = Spool.create(tmp_path / "spool", durability="none", lease=1.0, caches=1.0)
    worker(spool)
    arguments = [sys.executable, "-c", SUBMITTER, spool.path, function, f"{spool.path}{source}", target]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as submitter:
        wait_until(lambda: is_stopped(submitter.pid), "the submitter stops")
        wait_until(lambda: not files.list_names(spool.layout.claimed), "nothing runs")
        for keep in (None, AT_ONCE):
            remove(spool, find_garbage(spool, keep))
        repair(spool, check(spool), seconds=0.0)
        submitter.send_signal(signal.SIGCONT)
        out, err = submitter.communicate(timeout=LIMIT)
    assert (out, submitter.returncode) == ("32 1024\n", 0), err


def test_session_that_is_resumed_during_a_collection_waits_for_nothing_in_silence(
    tmp_path: Path, worker: Workers, month: None
) -> None:
    spool = Spool.create(tmp_path / "spool", durability="none", lease=1.0, caches=1.0)
    worker(spool)
    with Executor(spool=spool.path, session="sweep") as executor:
        assert [executor.submit(abs, -number).result() for number in range(3)] == [0, 1, 2]
    listed = find_garbage(spool)
    assert any(each.path.startswith("results/sweep/") for each in listed)
    with Executor(spool=spool.path, session="sweep") as executor:
        futures = executor.futures()
        remove(spool, listed)
        assert [future.result(timeout=LIMIT) for future in futures] == [0, 1, 2]
        assert all(os.path.lexists(f"{spool.path}/{each.path}") for each in listed if "/sweep" in each.path)

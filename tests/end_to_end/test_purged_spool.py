"""Real processes on a spool that is replaced, moved or purged while they use it."""

from __future__ import annotations

import grp
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spoolpool import Executor, Submission
from spoolpool.client import collector, vanished
from spoolpool.errors import BrokenSpool, TaskVanished
from spoolpool.protocol.spool import Spool
from spoolpool.security.permissions import Mode
from spoolpool.system import files
from tests.conftest import Workers
from tests.support.waiting import LIMIT, wait_until

CODE = BrokenSpool.exit_code


@pytest.fixture(params=["private", "group"])
def spool(tmp_path: Path, request: pytest.FixtureRequest) -> Spool:
    return create(tmp_path / "spool", request.param)


def create(path: str | Path, mode: Mode) -> Spool:
    group = None if mode == "private" else grp.getgrgid(os.getegid()).gr_name
    return Spool.create(path, mode=mode, group=group, durability="none", lease=1.0, caches=0.5)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let submitters check the spool and search for tasks within a second."""
    monkeypatch.setattr(collector, "_CHECK_SECONDS", 0.1)
    monkeypatch.setattr(vanished, "_LEAST_SECONDS", 0.2)


def replace(spool: Spool) -> Spool:
    """Remove a spool, and make another one at its path."""
    os.rename(spool.path, f"{spool.path}.former")
    files.remove_tree(f"{spool.path}.former")
    return create(spool.path, spool.config.mode)


def command(*words: str) -> subprocess.Popen[str]:
    """Start ``spool`` with these arguments."""
    return subprocess.Popen(
        [sys.executable, "-m", "spoolpool.cli.spool", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_processes_of_a_spool_that_was_made_anew_end_and_say_so(spool: Spool, worker: Workers, soon: None) -> None:
    with Executor(spool=spool.path) as executor:
        future = executor.submit(abs, -1, resource_dict={"cores": 3})  # nobody serves it
        waiting = command("wait", spool.path)
        watching = command("status", spool.path, "--watch", "--json", "--interval", "0.1")
        group = worker(spool)
        supervisor = worker(spool, "--launcher", "local")
        for process in (group, supervisor):
            worker.may_die(process)
        other = replace(spool)
        for process in (group, supervisor):
            assert process.wait(LIMIT) == CODE
            assert other.config.id in worker.said(process)
        for said in (waiting, watching):
            assert said.wait(LIMIT) == CODE
            assert said.stderr is not None
            assert other.config.id in said.stderr.read()
            said.stderr.close()
        with pytest.raises(BrokenSpool, match=other.config.id):
            future.result(LIMIT)
        with pytest.raises(BrokenSpool, match=other.config.id):
            executor.submit(abs, -2)
    worker(other)
    with Executor(spool=spool.path) as executor:
        assert executor.submit(abs, -3).result(LIMIT) == 3


def test_calls_of_a_removed_pack_get_the_error(spool: Spool, soon: None) -> None:
    with Executor(spool=spool.path, submission=Submission(pack=True)) as executor:
        futures = [executor.submit(abs, number) for number in range(-20, 0)]
        wait_until(lambda: os.listdir(spool.layout.ready), "a task is in the queue")
        files.remove_tree(spool.layout.ready)
        for future in futures:
            assert isinstance(future.exception(LIMIT), TaskVanished)


def test_tasks_flow_again_after_a_purge_of_all_empty_directories(spool: Spool, worker: Workers, soon: None) -> None:
    worker(spool)
    with Executor(spool=spool.path) as executor:
        assert executor.submit(abs, -1).result(LIMIT) == 1
        for directory, _, _ in os.walk(spool.path, topdown=False):
            files.remove_directory(directory)
        assert executor.submit(abs, -2).result(LIMIT) == 2
        needed = executor.submit(abs, -3)
        assert executor.submit(abs, needed).result(LIMIT) == 3

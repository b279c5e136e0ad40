"""Executors that are killed together with their groups: the next executor removes what they have left."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from spoolpool import Executor, settings
from spoolpool.cli.spool import main
from spoolpool.client.temporary_spool import memory_directories
from spoolpool.protocol.spool import Spool
from tests.support.accounts import as_root
from tests.support.processes import is_running, processes_of, start_script
from tests.support.waiting import LIMIT, wait_until

LEFT = """
import sys
from spoolpool import Executor

executor = Executor(max_workers=2)
future = executor.submit(len, bytes(1 << 20))  # its argument is in the second directory, if there is one
assert future.result() == 1 << 20
held = [executor.submit(__import__("time").sleep, 600) for _ in range(3)]
print(executor.info["spool"], flush=True)
sys.stdin.read()
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Temporary directory of this process and of its scripts."""
    path = tmp_path / "temporary"
    path.mkdir()
    monkeypatch.setenv("TMPDIR", str(path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return path


def kill_with_groups(script: subprocess.Popen[str], spool: Path) -> None:
    """Kill an executor and its groups at once: none of them can clear away for the others."""
    pids = [script.pid]
    send(signal.SIGSTOP, pids)
    while new := [pid for pid in processes_of(spool) if pid not in pids]:  # those that another one has just started
        send(signal.SIGSTOP, new)
        pids += new
    send(signal.SIGKILL, pids)
    script.wait(LIMIT)
    wait_until(lambda: not any(map(is_running, pids)), "all are dead")


def send(number: signal.Signals, pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # a short process of a group has ended
            os.kill(pid, number)


@pytest.fixture
def memory() -> Iterator[Path]:
    """Directory in memory, which no executor of another test sweeps."""
    if not list(memory_directories(["/dev/shm"])):
        pytest.skip("there is no /dev/shm with room")
    path = Path(tempfile.mkdtemp(prefix="tests-", dir="/dev/shm"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.mark.parametrize("place", ["temporary", "memory"])
def test_the_next_executor_removes_what_a_killed_one_left(
    tmp_path: Path,
    temporary: Path,
    place: str,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    parent: Path = request.getfixturevalue(place)
    monkeypatch.setenv(settings.ENV_SHM, str(parent) if place == "memory" else "")
    live = start_script(tmp_path / "live.py", LEFT)
    script = start_script(tmp_path / "script.py", LEFT)
    assert live.stdout is not None and script.stdout is not None
    kept, spool = Path(live.stdout.readline().strip()), Path(script.stdout.readline().strip())
    assert spool.parent == parent
    kill_with_groups(script, spool)
    left = [each for each in temporary.iterdir() if spool.name.rpartition("-")[2] in each.name]
    assert spool.exists() and left
    with Executor(max_workers=1, backend="local") as executor:
        assert executor.submit(pow, 2, 3).result() == 8
        wait_until(lambda: not any(os.path.lexists(each) for each in (spool, *left)), "what it left is removed")
    assert Spool(kept).config.temporary and processes_of(kept)
    live.kill()
    live.wait(LIMIT)
    wait_until(lambda: not processes_of(kept), "the groups of the other one ended")


def test_gc_lists_and_removes_what_a_killed_one_left(tmp_path: Path, temporary: Path) -> None:
    script = start_script(tmp_path / "script.py", LEFT)
    assert script.stdout is not None
    spool = Path(script.stdout.readline().strip())
    kill_with_groups(script, spool)
    other = Spool.create(tmp_path / "spool")
    listed = CliRunner().invoke(main, ["gc", other.path, "--temporary", "--dry-run"])
    assert f"{spool}  (temporary spool of a process that was killed)" in listed.output.splitlines()
    assert spool.exists()
    done = CliRunner().invoke(main, ["gc", other.path, "--temporary"])
    assert done.exit_code == 0 and "Removed " in done.output
    assert not spool.exists() and list(temporary.iterdir()) == []


@as_root
@pytest.mark.skipif(shutil.which("unshare") is None, reason="there is no unshare(1)")
@pytest.mark.parametrize("proc", ["of its own", "of this container"])
def test_a_spool_of_another_container_stays(tmp_path: Path, temporary: Path, proc: str) -> None:
    program = (
        "import sys, tempfile\n"
        "from spoolpool.client.temporary_spool import abandoned_spools, create_temporary_spool\n"
        "spool = create_temporary_spool(one_host=True, output=0)\n"
        "print(spool.path, flush=True)\n"
        "sys.stdin.read()\n"
        "print(len(abandoned_spools()), flush=True)\n"
    )
    options = ["--mount-proc"] if proc == "of its own" else []
    process = subprocess.Popen(
        ["unshare", "--pid", "--fork", *options, sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    spool = process.stdout.readline().strip()
    if not spool:
        process.wait(LIMIT)
        pytest.skip("this account may make no pid namespace")
    ours = start_script(tmp_path / "ours.py", LEFT)
    assert ours.stdout is not None
    mine = Path(ours.stdout.readline().strip())
    with Executor(max_workers=1, backend="local") as executor:
        assert executor.submit(pow, 2, 3).result() == 8
    assert os.path.isdir(spool)
    kill_with_groups(ours, mine)
    process.stdin.close()
    assert int(process.stdout.read()) == 0, "from there nothing is known of a process here"
    process.wait(LIMIT)
    with Executor(max_workers=1, backend="local") as executor:
        assert executor.submit(pow, 2, 3).result() == 8
        wait_until(lambda: not mine.exists(), "the one of this container is removed")
    assert os.path.isdir(spool)

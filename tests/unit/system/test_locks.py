"""File locks: a live process holds its lock, a dead one does not, and a filesystem without locks is no error."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import filelock
import pytest

from spoolpool.system import files
from spoolpool.system.locks import UNSUPPORTED, Lock, try_lock
from tests.support.processes import run_script
from tests.support.waiting import LIMIT, wait_until

HOLD = """\
import os, sys
from spoolpool.system import files
from spoolpool.system.locks import try_lock
fd = files.open_file(sys.argv[1], write=True)
print(try_lock(fd).name, flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = tmp_path / "token"
    path.write_bytes(b"content")
    return str(path)


@pytest.fixture
def holder(path: str) -> Iterator[subprocess.Popen[str]]:
    """Another process with the lock."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "TAKEN\n"
        yield process
        process.kill()


def ask(path: str) -> Lock:
    fd = files.open_file(path, write=True)
    try:
        return try_lock(fd)
    finally:
        files.close(fd)


def test_a_lock_is_taken_once_at_a_time(path: str) -> None:
    first, second = (files.open_file(path, write=True) for _ in range(2))
    assert try_lock(first) is Lock.TAKEN
    assert try_lock(second) is Lock.BUSY
    files.close(first)
    assert try_lock(second) is Lock.TAKEN
    files.close(second)


def test_taking_a_lock_does_not_change_the_file(path: str) -> None:
    assert ask(path) is Lock.TAKEN
    assert Path(path).read_bytes() == b"content"


def test_a_lock_stays_with_a_renamed_file(path: str, tmp_path: Path) -> None:
    fd = files.open_file(path, write=True)
    assert try_lock(fd) is Lock.TAKEN
    target = str(tmp_path / "claimed")
    files.move(path, target)
    assert ask(target) is Lock.BUSY
    files.close(fd)
    assert ask(target) is Lock.TAKEN


def test_a_stopped_process_holds_its_lock_and_a_killed_one_does_not(path: str, holder: subprocess.Popen[str]) -> None:
    assert ask(path) is Lock.BUSY
    holder.send_signal(signal.SIGSTOP)
    wait_until(lambda: " T " in Path(f"/proc/{holder.pid}/stat").read_text(), "it has stopped")
    assert ask(path) is Lock.BUSY
    holder.kill()
    holder.wait(LIMIT)
    assert ask(path) is Lock.TAKEN


def test_a_forked_child_shares_the_lock_until_it_closes_its_descriptor(path: str) -> None:
    fd = files.open_file(path, write=True)
    assert try_lock(fd) is Lock.TAKEN
    closed, end = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.read(end[0], 1)
        os.close(fd)
        os.write(closed[1], b"x")
        os.read(end[0], 1)
        os._exit(0)
    files.close(fd)
    assert ask(path) is Lock.BUSY
    os.write(end[1], b"x")
    os.read(closed[0], 1)
    assert ask(path) is Lock.TAKEN
    os.write(end[1], b"x")
    os.waitpid(child, 0)
    for pipe in (closed, end):
        os.close(pipe[0])
        os.close(pipe[1])


def test_a_child_program_does_not_inherit_a_lock(path: str) -> None:
    fd = files.open_file(path, write=True)
    assert try_lock(fd) is Lock.TAKEN
    with subprocess.Popen(["sleep", "1000"], close_fds=False) as process:
        files.close(fd)
        try:
            assert ask(path) is Lock.TAKEN
        finally:
            process.kill()


@pytest.mark.parametrize("number", sorted(UNSUPPORTED), ids=errno.errorcode.get)
def test_a_filesystem_without_locks_is_no_error(number: int, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, *, blocking: bool) -> bool:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(filelock, "lock_descriptor", refuse)
    assert ask(path) is Lock.NONE


def test_other_errors_are_raised(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, *, blocking: bool) -> bool:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(filelock, "lock_descriptor", refuse)
    with pytest.raises(OSError, match="Input/output"):
        ask(path)


def test_submitting_needs_no_locks(tmp_path: Path) -> None:
    """The import of filelock takes 30 ms, which a submitter can save."""
    script = "import sys, spoolpool, spoolpool.client.session, spoolpool.executor; print('filelock' in sys.modules)"
    assert run_script(tmp_path / "script.py", script).stdout == "False\n"

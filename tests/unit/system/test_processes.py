"""Proof that a process is dead: same boot, same pid namespace, and no process of its identity."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator

import msgspec
import pytest

from spoolpool.system import processes
from spoolpool.system.processes import ProcessId
from tests.support.accounts import as_root, unused_id
from tests.support.waiting import LIMIT, wait_until


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs until the test ends it."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def state_of(pid: int) -> str:
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        return file.read().rpartition(")")[2].split()[0]


def test_a_running_process_is_not_dead(process: subprocess.Popen[bytes]) -> None:
    assert not ProcessId.of(process.pid).is_provably_dead()
    assert not ProcessId.of(os.getpid()).is_provably_dead()


def test_nothing_is_known_in_a_pid_namespace_with_the_proc_of_another_one(
    process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    readlink = os.readlink
    monkeypatch.setattr(os, "readlink", lambda path: "1" if path == "/proc/self" else readlink(path))
    who = ProcessId.of(process.pid)
    assert not who.namespace
    process.kill()
    process.wait(LIMIT)
    assert not who.is_near() and not who.is_provably_dead()


def test_a_stopped_process_is_not_dead(process: subprocess.Popen[bytes]) -> None:
    who = ProcessId.of(process.pid)
    process.send_signal(signal.SIGSTOP)
    wait_until(lambda: state_of(process.pid) == "T", "it has stopped")
    assert not who.is_provably_dead()


def test_an_ended_process_is_dead_before_and_after_its_parent_reaps_it(
    process: subprocess.Popen[bytes],
) -> None:
    who = ProcessId.of(process.pid)
    process.kill()
    wait_until(lambda: state_of(process.pid) == "Z", "it is a zombie")
    assert who.is_provably_dead()
    process.wait(LIMIT)
    assert who.is_provably_dead()


def test_another_process_with_the_same_pid_is_another_process(process: subprocess.Popen[bytes]) -> None:
    earlier = msgspec.structs.replace(ProcessId.of(process.pid), start="12")
    assert earlier.is_provably_dead()


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"boot": "0b0e4b6c-0000-0000-0000-000000000000"},
        {"namespace": "pid:[1]"},
        {"boot": ""},
        {"namespace": ""},
        {"start": ""},
    ],
    ids=str,
)
def test_nothing_is_proven_about_a_process_of_another_or_unknown_boot_or_namespace(
    elsewhere: dict[str, str], process: subprocess.Popen[bytes]
) -> None:
    who = ProcessId.of(process.pid)
    process.kill()
    process.wait(LIMIT)
    assert who.is_provably_dead()
    assert not msgspec.structs.replace(who, **elsewhere).is_provably_dead()


def test_the_name_of_the_host_proves_nothing(process: subprocess.Popen[bytes]) -> None:
    who = msgspec.structs.replace(ProcessId.of(process.pid), host="another")
    assert not who.is_provably_dead()


@pytest.mark.parametrize("pid", [0, -1, 2**31, 2**62])
def test_a_process_with_an_impossible_pid_is_not_provably_dead(pid: int) -> None:
    assert not msgspec.structs.replace(ProcessId.of(os.getpid()), pid=pid).is_provably_dead()


def test_no_process_is_dead_where_proc_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    who = msgspec.structs.replace(ProcessId.of(os.getpid()), start="12")
    monkeypatch.setattr(processes, "read_proc", lambda path: "")
    assert not who.is_provably_dead()


def test_a_process_hidden_by_proc_is_not_dead(
    process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    who = ProcessId.of(process.pid)
    read = processes.read_proc
    monkeypatch.setattr(processes, "read_proc", lambda path: "" if f"/{process.pid}/" in path else read(path))
    assert not who.is_provably_dead()
    process.kill()
    process.wait(LIMIT)
    assert who.is_provably_dead()


HIDING = """\
import encodings.ascii, os, sys
import msgspec
from spoolpool.system.processes import ProcessId
number = int(sys.argv[1])
os.setgid(number), os.setuid(number)
others, gone = (msgspec.json.decode(text, type=ProcessId) for text in sys.argv[2:])
assert not os.path.exists(f"/proc/{others.pid}/stat"), "proc does not hide it"
print(others.is_provably_dead(), gone.is_provably_dead())
"""


@as_root
@pytest.mark.multiuser
def test_a_process_of_another_account_is_alive_with_hidepid(process: subprocess.Popen[bytes]) -> None:
    if not shutil.which("unshare"):
        pytest.skip("needs unshare, to mount another /proc")
    gone = msgspec.structs.replace(ProcessId.of(os.getpid()), pid=2**22 + 1)
    arguments = [msgspec.json.encode(who).decode() for who in (ProcessId.of(process.pid), gone)]
    script = 'mount -t proc -o hidepid=2 proc /proc && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", script, "sh", sys.executable, "-c", HIDING, str(unused_id()), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    if "mount:" in result.stderr:
        pytest.skip(f"/proc cannot be mounted here: {result.stderr}")
    assert result.stdout.split() == ["False", "True"], result.stderr


PROVE = """\
import sys
import msgspec
from spoolpool.system.processes import ProcessId
print(msgspec.json.decode(sys.argv[1], type=ProcessId).is_provably_dead())
"""


def test_nothing_is_proven_from_another_pid_namespace() -> None:
    who = msgspec.structs.replace(ProcessId.of(os.getpid()), start="12")
    assert who.is_provably_dead()
    command = ["unshare", "-f", "-p", "--mount-proc", sys.executable, "-c", PROVE, msgspec.json.encode(who).decode()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT) if shutil.which("unshare") else None
    if result is None or "unshare:" in result.stderr:
        pytest.skip("a pid namespace cannot be made here")
    assert result.stdout.split() == ["False"], result.stderr

"""Real processes that tests start and look for."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spoolpool import settings
from tests.support.waiting import LIMIT


def processes_of(text: str | os.PathLike[str]) -> list[int]:
    """Return the pids of the processes with a text on their command lines, as the path of a spool on its workers'."""
    wanted = os.fsencode(text)
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:  # it ended between the two reads
                continue
            if wanted in command:
                found.append(int(entry.name))
    return found


def read_proc(pid: int, name: str) -> bytes:
    """Return a file of a process in /proc; nothing if the process has ended."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def pid_namespace(pid: int) -> str:
    """Return the namespace of pids in which a process runs, which each node has of its own; empty after its end."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


def processes_of_group(spool: str, worker: str) -> list[int]:
    """Return all processes of a worker group on all nodes of this machine, with the command that started it."""
    name = worker.encode()
    variable = settings.ENV_WORKER.encode() + b"=" + name
    found = processes_of(spool)
    return [
        pid for pid in found if name in read_proc(pid, "cmdline") or variable in read_proc(pid, "environ").split(b"\0")
    ]


def find_process(pids: list[int], inner: int, node: int) -> int:
    """Return the process among these whose pid on the node of the process ``node`` is ``inner``."""
    for pid in pids:
        numbers = read_proc(pid, "status").decode().partition("\nNSpid:")[2].partition("\n")[0].split()
        if pid_namespace(pid) == pid_namespace(node) and numbers[-1:] == [str(inner)]:
            return pid
    raise AssertionError(f"process {inner} has ended")


def is_running(pid: int) -> bool:
    """Return whether a process exists that has not ended; a zombie has ended."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in {"Z", "X"}


def kill_processes_of(text: str | os.PathLike[str]) -> list[int]:
    """Kill the processes with a text on their command lines, as the kernel does when memory is short; return them."""
    pids = processes_of(text)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # a child of another one, which ended with it
            os.kill(pid, signal.SIGKILL)
    return pids


def start_script(path: Path, text: str, *arguments: object, **variables: object) -> subprocess.Popen[str]:
    """Start a Python program with this text; its output and its errors are pipes."""
    path.write_text(text, encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, str(path), *map(str, arguments)],
        env={**os.environ, **{name: str(value) for name, value in variables.items()}},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_script(path: Path, text: str, *arguments: object, **variables: Any) -> subprocess.CompletedProcess[str]:
    """Run a Python program with this text to its end; its exit code is for the test to judge."""
    process = start_script(path, text, *arguments, **variables)
    try:
        output, errors = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        try:
            output, errors = process.communicate(timeout=5)
        except subprocess.TimeoutExpired:  # processes that it started hold the pipes
            output, errors = "", "(its pipes are still open)"
        raise AssertionError(f"{path} did not end. It said: {output}{errors}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def in_fork(function: Callable[[], object]) -> object:
    """Return the value of a function that a forked child calls, or the exception that it raises there."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads run: that is tested
        pid = os.fork()
    if pid == 0:
        try:
            try:
                value = function()
            except BaseException as error:  # noqa: BLE001  the parent looks at it
                value = error
            with os.fdopen(writing, "wb") as pipe:
                pickle.dump(value, pipe)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        value = pickle.load(pipe)
    os.waitpid(pid, 0)
    return value


_DIES = """\
import os, sys, threading, time
node = os.environ.get("FLUX_URI") or os.uname().nodename  # brokers of a test instance share a host
if "--group-of" in sys.orig_argv and node.endswith({host!r}):
    path = {path!r}.format(os.environ["SPOOLPOOL_WORKER"])
    def die():
        while path and not os.path.exists(path):
            time.sleep(0.005)  # no import of the package beside the main thread, which imports it now
        os.kill(os.getpid(), 9)
    if path:
        threading.Thread(target=die, daemon=True).start()
    else:
        die()
"""


def deadly(directory: Path, host: str, path: str = "") -> dict[str, str]:
    """Return variables by which the workers of a supervisor are killed on a host, or under a Flux broker.

    ``host`` is the end of its name or address. A worker is killed once ``path`` exists, where ``{}`` is the worker's
    id; without a path before it has imported anything. ``directory`` is made, for a ``sitecustomize``.
    """
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(_DIES.format(host=host, path=path), encoding="utf-8")
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(directory), os.environ.get("PYTHONPATH"))))}

"""Submitters and workers open no network socket, and work without any network interface."""

from __future__ import annotations

import functools
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from spoolpool.protocol.spool import Spool
from tests.support.waiting import LIMIT, wait_until

AUDITED = """\
import sys
log, program = sys.argv.pop(1), sys.argv.pop(1)

def note(event, args):
    if event.startswith("socket.") and not (event == "socket.__new__" and args[1] == 1):  # not AF_UNIX
        with open(log, "a") as file:
            file.write(f"{event} {args!r}\\n")

sys.addaudithook(note)
exec(program)
"""

WORKER = "from spoolpool.cli.worker import main; main()"

SUBMITTER = """\
from spoolpool import Executor
with Executor(spool=sys.argv[1]) as executor:
    print(list(executor.map(pow, range(5), [2] * 5)), executor.submit(int, "x").exception())
"""

EMBEDDED = """\
from spoolpool import Executor
with Executor(max_workers=1, backend="local") as executor:
    print(executor.submit(pow, 2, 5).result())
"""

NETWORK = """\
import socket
try:
    socket.create_connection(("127.0.0.1", 9))
except ConnectionRefusedError:
    print("reached")
except OSError as error:
    print(error)
"""


@functools.cache
def without_network() -> list[str] | None:
    """Return a command prefix that creates a network namespace; None if this account may not create one."""
    for command in (["unshare", "-n"], ["unshare", "-rn"]):
        if shutil.which("unshare"):
            made = subprocess.run([*command, sys.executable, "-c", NETWORK], capture_output=True, text=True)
            if made.returncode == 0:
                assert "unreachable" in made.stdout, "an interface is up in the namespace"
                return command
    return None


def start(program: str, log: Path, *arguments: str, network: bool) -> subprocess.Popen[str]:
    """Start a program that logs each network socket that it creates."""
    prefix = [] if network else without_network()
    if prefix is None:
        pytest.skip("this account may not create a network namespace")
    return subprocess.Popen(
        [*prefix, sys.executable, "-c", AUDITED, str(log), program, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


network = pytest.mark.parametrize("network", [True, False], ids=["with a network", "without any interface"])


def test_audit_hook_finds_sockets(tmp_path: Path) -> None:
    process = start(NETWORK, tmp_path / "log", network=True)
    process.communicate(timeout=LIMIT)
    assert "socket.__new__" in (tmp_path / "log").read_text() and "socket.connect" in (tmp_path / "log").read_text()


@network
def test_submitter_and_worker_open_no_socket(network: bool, tmp_path: Path) -> None:
    spool = Spool.create(tmp_path / "spool", durability="none", lease=1.0)
    log = tmp_path / "log"
    worker = start(WORKER, log, spool.path, network=network)
    try:
        wait_until(
            lambda: worker.poll() is not None or list(Path(spool.layout.workers).iterdir()), "the worker has registered"
        )
        submitter = start(SUBMITTER, log, spool.path, network=network)
        output, errors = submitter.communicate(timeout=LIMIT)
        assert output.startswith("[0, 1, 4, 9, 16] invalid literal"), errors
    finally:
        worker.send_signal(signal.SIGTERM)
        _, errors = worker.communicate(timeout=LIMIT)
    assert worker.returncode == 0, errors
    assert not log.exists(), log.read_text()


@network
def test_embedded_executor_opens_no_socket(network: bool, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = start(EMBEDDED, log, network=network)
    output, errors = process.communicate(timeout=LIMIT)
    assert output == "32\n", errors
    assert not log.exists(), log.read_text()

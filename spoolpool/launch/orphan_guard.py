"""Guard of the groups of this process: ends them after its death.

Ranks on this host notice the death themselves. Those on other nodes cannot: srun and Flux keep them running without the
process that started them.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading

from spoolpool import settings
from spoolpool.system.processes import ProcessId
from spoolpool.system.stop_request import blocked_group_signals

_PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "orphan_guard_program.py")

_FEW = 64  # commands among which those that have ended are not looked for

_WAIT_SECONDS = settings.GRACE + 5.0  # for ranks on this host, which end in order


class OrphanGuard:
    """Handle of a process that is started with the first group. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._commands: dict[int, str] = {}  # start times by pid
        self._most = _FEW
        self._jobs: set[str] = set()

    def add_command(self, pid: int) -> None:
        """Add a child process that leads a process group and ends its ranks at SIGTERM."""
        start = _start_time(pid)
        with self._lock:
            if len(self._commands) >= self._most:
                self._drop_ended()
                self._most = 2 * len(self._commands) + _FEW
            self._commands[pid] = start
            self._send(_command_line(pid, start))

    def add_job(self, job: object) -> None:
        """Add a job of the Flux instance."""
        with self._lock:
            self._jobs.add(str(job))
            self._send(f"job {job}")

    def remove_job(self, job: object) -> None:
        """Remove a job that has ended."""
        with self._lock:
            self._jobs.discard(str(job))
            self._send(f"ended {job}")

    def _drop_ended(self) -> None:
        self._commands = {pid: start for pid, start in self._commands.items() if start and _start_time(pid) == start}

    def _send(self, line: str) -> None:
        """Write a line to the process, or all that still holds to a new one if it has ended."""
        if self._process is not None and self._process.poll() is None:
            self._write([line])
            return
        self._drop_ended()
        self._start([*itertools.starmap(_command_line, self._commands.items()), *(f"job {job}" for job in self._jobs)])

    def _start(self, lines: list[str]) -> None:
        command = [sys.executable, "-IS", _PROGRAM, str(os.getpid()), str(_WAIT_SECONDS)]
        try:
            with blocked_group_signals():
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
                )
        except OSError:  # too little memory, or too many processes: the next group tries again
            self._process = None
            return
        self._write(lines)

    def _write(self, lines: list[str]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("".join(f"{line}\n" for line in lines).encode())
            self._process.stdin.flush()
        except OSError:  # it was killed: the next group starts another one
            pass


def _start_time(pid: int) -> str:
    return ProcessId.of(pid).start


def _command_line(pid: int, start: str) -> str:
    return f"command {pid} {start}"

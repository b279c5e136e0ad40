"""Guard of the groups of this process: ends them after its death.

Ranks on this host notice the death themselves. Those on other nodes cannot: srun and Flux keep them running without the
process that started them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading

from spoolpool import settings
from spoolpool.system.stop_request import blocked_group_signals

_PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "orphan_guard_program.py")

_WAIT_SECONDS = settings.GRACE + 5.0  # for ranks on this host, which end in order


class OrphanGuard:
    """Handle of a process that is started with the first group. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: list[bytes] = []

    def add_command(self, pid: int) -> None:
        """Add a process that leads a process group and ends its ranks at SIGTERM."""
        self._add(b"command %d" % pid)

    def add_job(self, job: object) -> None:
        """Add a job of the Flux instance."""
        self._add(f"job {job}".encode())

    def remove_job(self, job: object) -> None:
        """Remove a job that has ended."""
        self._add(f"ended {job}".encode())

    def _add(self, line: bytes) -> None:
        with self._lock:
            self._lines.append(line)
            if self._process is None or self._process.poll() is not None:
                self._start(self._lines)
            else:
                self._write([line])

    def _start(self, lines: list[bytes]) -> None:
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

    def _write(self, lines: list[bytes]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"".join(line + b"\n" for line in lines))
            self._process.stdin.flush()
        except OSError:  # it was killed: the next group starts another one
            pass

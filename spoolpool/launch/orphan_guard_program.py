"""Program of :mod:`spoolpool.launch.orphan_guard`. It imports little, to be small and quick to start.

``orphan_guard_program.py OWNER SECONDS`` reads lines from its standard input: ``command PID START``, a process
that leads a process group, with its start time, ``job ID``, a job of the Flux instance, or ``ended ID``. After the end
of its parent, the process OWNER, it ends those that still run SECONDS later.
"""

from __future__ import annotations

import os
import select
import signal
import sys

_LOOK_SECONDS = 2.0  # a child that the owner forked can hold the other end of the pipe open
_KILL_SECONDS = 5.0
_FEW = 64  # commands among which those that have ended are not looked for


def start_time(pid: int) -> str:
    """Return the start time of a process, which tells it from a later one with its pid; empty if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


class Groups:
    """Commands, by their pids with their start times, and Flux jobs."""

    def __init__(self) -> None:
        self.commands: dict[int, str] = {}
        self.most = _FEW
        self.jobs: set[str] = set()

    def add(self, line: bytes) -> None:
        """Take a line of the input."""
        kind, _, value = line.decode().partition(" ")
        if kind == "command":
            pid, _, start = value.partition(" ")
            if len(self.commands) >= self.most:
                self.commands = {each: self.commands[each] for each in self.running()}
                self.most = 2 * len(self.commands) + _FEW
            self.commands[int(pid)] = start
        elif kind == "job":
            self.jobs.add(value)
        else:
            self.jobs.discard(value)

    def running(self) -> list[int]:
        """Return the commands that still run."""
        return [pid for pid, start in self.commands.items() if start and start_time(pid) == start]

    def end(self) -> None:
        """End all that still run."""
        if self.jobs:
            import subprocess  # takes a third of the memory of this process

            subprocess.run(["flux", "cancel", *self.jobs], check=False, stderr=subprocess.DEVNULL)
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.running():
                try:  # noqa: SIM105  contextlib takes memory
                    os.killpg(pid, number)
                except OSError:  # race: it has ended
                    pass
            self.wait(_KILL_SECONDS)

    def wait(self, seconds: float) -> None:
        """Wait until none runs, or for so long."""
        while seconds > 0 and (self.jobs or self.running()):
            select.select([], [], [], 0.5)
            seconds -= 0.5


def main() -> None:
    """Run the program."""
    owner, seconds = sys.argv[1:]
    groups = Groups()
    text = b""
    inputs = [0]
    while True:
        is_owned = os.getppid() == int(owner)
        if select.select(inputs, [], [], _LOOK_SECONDS if is_owned else 0.0)[0]:
            data = os.read(0, 65536)
            *lines, text = (text + data).split(b"\n")
            for line in lines:
                groups.add(line)
            if not data:  # the owner ends, or a function closed all of its descriptors
                inputs = []
        elif not is_owned:  # it may have ended while this process started: its lines are read first
            break
    groups.wait(float(seconds))
    groups.end()


if __name__ == "__main__":
    main()

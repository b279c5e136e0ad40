"""Program of the heartbeat processes. It imports little, and nothing of the package, to be small and quick to start.

``heartbeat_program.py PATH INTERVAL PID START [COMMAND...]`` touches PATH as long as the process PID lives that
started at START. It runs as two processes, which replace each other::

    beater:   touches PATH; replaces the watcher if it has ended or is stopped
       |      (parent of the watcher)
    watcher:  becomes the beater, with a watcher of its own, if the beater has ended or is stopped

Both check once in each interval, so that PATH is touched again within two of them. Standard output gets a line for
each touch, with both pids. Standard input ends with PID; a byte there requests the end. Without such a request, COMMAND
replaces the beater after the end of PID. Signals that end other processes of a group must be ignored from the start.
"""

from __future__ import annotations

import os
import select
import sys

_MISSES = 3  # touches in a row that found no file: the entry was removed, because its owner was taken for dead
_SIGKILL = 9
_TAKEN_OVER = -1


def status_of(pid: int) -> tuple[str, str] | None:
    """Return the state and the start time of a process; None if there is none, or if it is hidden."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            text = file.read()
    except OSError:
        return None
    fields = text[text.rfind(")") + 1 :].split()
    return fields[0], fields[19]


def is_stopped(pid: int) -> bool:
    """Return whether a signal or a debugger has stopped a process."""
    status = status_of(pid)
    return status is not None and status[0] in "Tt"


class Owner:
    """Process for which the heartbeat is sent."""

    def __init__(self, pid: int, start: str) -> None:
        self.pid = pid
        self.start = start

    def is_alive(self) -> bool:
        """Return whether the process has not ended."""
        status = status_of(self.pid)
        if status is not None:
            return status[0] not in "ZX" and self.start in ("", status[1])
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:  # it is hidden, and of another account
            pass
        return True

    def runs_without(self, pid: int) -> bool:
        """Return whether a process is stopped although this one is not.

        If both are stopped, the whole group is, as when a batch system suspends its job: then nothing is to be revived.
        """
        return is_stopped(pid) and not is_stopped(self.pid)


def beat(path: str, interval: float, owner: Owner) -> bool:
    """Touch the file until the owner ends; return False if the end was requested, or if the file is missing."""
    watcher = misses = 0
    requested = False
    while owner.is_alive() and misses < _MISSES:
        try:
            os.utime(path)
            misses = 0
            _report(watcher)
        except FileNotFoundError:
            misses += 1
        except OSError:  # the server is away: it answers with an error or not at all; continue until it is back
            pass
        watcher = _keep_watcher(watcher, interval, owner)
        if watcher == _TAKEN_OVER:
            watcher = 0
            continue
        # a child that the owner forked can hold the other end open: then is_alive notices the end of the owner
        if select.select([0], [], [], interval)[0]:
            requested = bool(os.read(0, 1))
            break
    if watcher:
        _kill(watcher)
    return not requested and misses < _MISSES


def _report(watcher: int) -> None:
    try:  # noqa: SIM105  contextlib takes memory
        os.write(1, b"%d %d\n" % (os.getpid(), watcher))
    except OSError:  # full, since a busy owner does not read; or its end is closed
        pass


def _keep_watcher(watcher: int, interval: float, owner: Owner) -> int:
    """Return the pid of the watcher, or of a new one in its place; 0 if none can be started now.

    In the new process, return :data:`_TAKEN_OVER` once it is to become the beater.
    """
    if watcher and not os.waitpid(watcher, os.WNOHANG)[0]:
        if not owner.runs_without(watcher):
            return watcher
        _kill(watcher)
    beater = os.getpid()
    try:
        child = os.fork()
    except OSError:  # too little memory, or too many processes
        return 0
    if child == 0:
        _watch(beater, interval, owner)
        return _TAKEN_OVER
    return child


def _watch(beater: int, interval: float, owner: Owner) -> None:
    """Return once the beater has ended, or was stopped and therefore killed."""
    while os.getppid() == beater:
        select.select([], [], [], interval)
        if owner.runs_without(beater) and os.getppid() == beater:
            os.kill(beater, _SIGKILL)
            return


def _kill(child: int) -> None:
    os.kill(child, _SIGKILL)  # a child keeps its pid until it is waited for
    os.waitpid(child, 0)


def main() -> None:
    """Run the program."""
    path, interval, pid, start, *command = sys.argv[1:]
    os.set_blocking(1, False)
    if beat(path, float(interval), Owner(int(pid), start)) and command:
        import signal  # takes a third of the memory of this process

        for number in signal.valid_signals():
            if signal.getsignal(number) is signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        os.dup2(2, 1)
        os.execv(command[0], command)  # noqa: S606  that of the owner


if __name__ == "__main__":
    main()

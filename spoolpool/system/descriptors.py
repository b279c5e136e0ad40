"""Descriptors of this process that code of users must not replace: copies under high numbers, and the standard ones."""

from __future__ import annotations

import contextlib
import fcntl
import os
import weakref
from collections.abc import Iterable

from spoolpool.system import files

_HIGH = 200  # lowest number of a copy
_RESERVE = 16  # for the outcome of a task and the end of a worker


def copy_high(fd: int) -> int:
    """Return a copy of a descriptor under a high number, which is not assigned again once a task has closed it."""
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    except OSError:
        pass
    try:
        return os.dup(fd)  # the limit of descriptors is lower
    except OSError:
        return move_high(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))  # it is closed


def move_high(fd: int) -> int:
    """Move a descriptor to a high number."""
    moved = copy_high(fd)
    files.close(fd)
    return moved


class StandardDescriptors:
    """Standard input, output and error of this process, to be restored after code of users."""

    def __init__(self) -> None:
        self._saved = tuple(map(copy_high, range(3)))
        self._close = weakref.finalize(self, _close_all, self._saved)
        self._close.atexit = False

    def restore(self, *, output: bool) -> bool:
        """Restore standard input, and with ``output`` also the other two; return whether the copies were still open.

        It does not look first: that takes longer.
        """
        try:
            os.dup2(self._saved[0], 0)
            if output:
                os.dup2(self._saved[1], 1)
                os.dup2(self._saved[2], 2)
        except OSError:  # a task has closed all descriptors that it found
            return False
        return True

    def close(self) -> None:
        """Close the copies."""
        self._close()


def _close_all(descriptors: Iterable[int]) -> None:
    for fd in descriptors:
        with contextlib.suppress(OSError):
            os.close(fd)


class Reserve:
    """Descriptors that are kept for the time when a task has left none free."""

    def __init__(self) -> None:
        self._kept: list[int] = []
        weakref.finalize(self, _close_all, self._kept).atexit = False
        self.fill()

    def fill(self) -> None:
        """Open the descriptors that are missing."""
        with contextlib.suppress(OSError):  # none is free
            while len(self._kept) < _RESERVE:
                self._kept.append(move_high(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)))

    def free(self) -> None:
        """Close the descriptors, for others that are needed now."""
        for fd in self._kept:
            # a task may have closed all that it found, and have got the same number for a file of its own
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(fd), os.stat(os.devnull)):
                    os.close(fd)
        self._kept.clear()

"""Resources that a call uses on one rank: CPU time, duration, and peak memory, with children that have ended.

The peak is that of the call and not of the process: the kernel's high-water mark is reset when a call begins
(``/proc/self/clear_refs``). Where that is not allowed, it is the mark of the process since its start.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import time
import weakref
from collections.abc import Callable, Sequence

from spoolpool.calls.run import RankResult
from spoolpool.format.headers import Usage
from spoolpool.system.descriptors import move_high

_SELF, _CHILDREN = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
_RESET = b"5"  # to /proc/self/clear_refs: the peak becomes the present size
_UNIT = 1024  # bytes of ru_maxrss
_SLACK = 1024  # KiB by which the kernel's approximate numbers differ


_largest_child = 0  # peak of the children of the present call that were noted, in KiB


def note_child(used: resource.struct_rusage) -> None:
    """Note what a child of the present call has used, as ``os.wait4`` returns it.

    The process has only one peak for all children of its life; so that of a child that was not the largest one is lost.
    """
    global _largest_child  # noqa: PLW0603  calls run one at a time in a process
    _largest_child = max(_largest_child, used.ru_maxrss)


class UsageMeter:
    """Meter of the calls of one rank, which may be nested: a call that waits runs subtasks.

    The descriptor of ``clear_refs`` stays open. A call may close it, and open another file under its number, so that it
    is compared before each use.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._fd = -1
        self._file: tuple[int, int] | None = None
        self._open: list[int] = []  # peaks of the calls that run, as far as they are known: in KiB
        # a process that vfork made has in its ru_maxrss the peak of the one that started it, for ever
        self._inherited = peak if (peak := resource.getrusage(_SELF).ru_maxrss) > _high_water_mark() + _SLACK else 0
        with contextlib.suppress(OSError):  # not Linux, or /proc is hidden
            self._fd = move_high(os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC))
            self._file = _identity(self._fd)
            weakref.finalize(self, _close, self._fd, self._file).atexit = False

    def measure(self, call: Callable[[], RankResult]) -> RankResult:
        """Run a call; return its result with what it has used."""
        global _largest_child
        outer, _largest_child = _largest_child, 0
        before, children = resource.getrusage(_SELF), resource.getrusage(_CHILDREN)
        if self._open:
            self._open[-1] = max(self._open[-1], self._peak(before))
        self._reset()
        self._open.append(0)
        begun = time.monotonic()
        try:
            result = call()
        finally:
            peak = self._open.pop()
        wall = time.monotonic() - begun
        after, ended = resource.getrusage(_SELF), resource.getrusage(_CHILDREN)
        peak = max(peak, self._peak(after))
        if self._open:
            self._open[-1] = max(self._open[-1], peak)
        if ended.ru_maxrss > children.ru_maxrss:  # else the largest child was one of an earlier call
            peak = max(peak, ended.ru_maxrss)
        peak, _largest_child = max(peak, _largest_child), max(outer, _largest_child)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        cpu += ended.ru_utime + ended.ru_stime - children.ru_utime - children.ru_stime
        usage = Usage(cpu=round(cpu, 6), wall=round(wall, 6), memory=peak * _UNIT, of_process=self._file is None)
        return RankResult(result.payload, result.buffers, result.failure, usage)

    def _peak(self, used: resource.struct_rusage) -> int:
        """Return the peak of this process since the last reset, in KiB."""
        if used.ru_maxrss > self._inherited:
            return used.ru_maxrss
        return int(min(used.ru_maxrss, _high_water_mark()))

    def _reset(self) -> None:
        try:
            if self._file is not None and os.getpid() == self._pid and _identity(self._fd) == self._file:
                os.pwrite(self._fd, _RESET, 0)
                return
        except OSError:  # refused, or closed
            pass
        self._file = None


def _close(fd: int, file: tuple[int, int]) -> None:
    with contextlib.suppress(OSError):
        if _identity(fd) == file:  # else a call has closed it
            os.close(fd)


def _high_water_mark() -> float:
    """Return the peak of the memory of this process since the last reset, in KiB; infinite where it is not known."""
    with contextlib.suppress(OSError, ValueError), open("/proc/self/status", "rb") as status:
        _, found, rest = status.read().partition(b"VmHWM:")
        if found:
            return int(rest.split(None, 1)[0])
    return math.inf


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def join(usages: Sequence[Usage]) -> Usage:
    """Return what the ranks of a group have used together."""
    if len(usages) == 1:
        return usages[0]
    return Usage(
        cpu=round(sum(each.cpu for each in usages), 6),
        cpu_max=max(each.cpu for each in usages),
        wall=max(each.wall for each in usages),
        memory=max(each.memory for each in usages),
        memory_sum=sum(each.memory for each in usages),
        of_process=any(each.of_process for each in usages),
    )

"""A disk that fails, and processes that end in the middle of it.

:class:`Disk` stands in the place of ``os`` in the modules that touch the disk. It counts their operations, and at
those that it is told to it ends the process, fails, does the thing and yet answers with an error, or lists a
directory as it was a while ago.
"""

from __future__ import annotations

import contextlib
import errno
import os
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

from spoolpool.format import envelope
from spoolpool.security import trust
from spoolpool.system import files

CRASHED, RAISED = 86, 87
"""Exit statuses of a child: it was ended by a :class:`Fault`; it raised what its test did not expect."""

CHANGES = frozenset({"open", "rename", "unlink", "mkdir", "rmdir"})
OPERATIONS = CHANGES | {
    "chmod",
    "close",
    "fstat",
    "fsync",
    "listdir",
    "lstat",
    "pread",
    "read",
    "stat",
    "utime",
    "writev",
}
"""What is counted. Reading is counted too: it can fail, and a crash there is a crash between two changes."""

LOOKS = frozenset({"lstat", "stat"})
"""Whether a name is there."""

SPACE = frozenset({"open", "writev", "mkdir", "fsync"})
"""Operations that need space."""


@dataclass(frozen=True)
class Fault:
    """What happens at one operation: it ends the process, or answers with an error."""

    when: Literal["before", "half", "after"]
    """Before the thing is done, in the middle of a write, or when it was done."""
    error: int = 0
    """What is answered; 0 ends the process."""


Plan = Callable[[int, str], "Fault | None"]
"""From the number of an operation (the first is 1) and its name to what happens at it."""


def at(number: int, fault: Fault) -> Plan:
    """A fault at one operation, and never again."""
    return lambda count, name: fault if count == number else None


def during(numbers: range, fault: Fault) -> Plan:
    """A fault at each of several operations."""
    return lambda count, name: fault if count in numbers else None


def nothing(_count: int, _name: str) -> None:
    """No fault at all."""


class Disk:
    """``os`` with faults, until :meth:`installed` ends.

    ``only`` restricts what is counted, and can fail. With ``lag``, a directory is listed as it was so many
    operations ago, or so many seconds if there is a clock. What struck is written to the file ``report`` as well, for
    whoever outlives this process.
    """

    def __init__(
        self,
        plan: Plan = nothing,
        *,
        only: frozenset[str] = OPERATIONS,
        lag: float = 0,
        clock: Callable[[], float] | None = None,
        report: Path | None = None,
    ) -> None:
        self._plan = plan
        self._only = only
        self._lag = lag
        self._now = clock or (lambda: self.count)
        self._report = report
        self._listings: dict[str, list[tuple[float, list[str] | None]]] = {}
        self.count = 0
        self.struck: list[str] = []

    @contextlib.contextmanager
    def installed(self) -> Iterator[Disk]:
        """Be the disk of the package."""
        with contextlib.ExitStack() as stack:
            for module in (files, envelope, trust):
                stack.enter_context(mock.patch.object(module, "os", self))
            yield self

    def __getattr__(self, name: str) -> Any:
        value = getattr(os, name)
        if name in OPERATIONS:
            return lambda *args, **kwargs: self.do(name, value, *args, **kwargs)
        return value

    def do(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Do one operation, or not."""
        fault = None
        if name in self._only:
            self.count += 1
            fault = self._plan(self.count, name)
        if fault is None:
            return self._really(name, call, *args, **kwargs)
        self._tell(f"{fault.when} operation {self.count}, {name}{args}: {errno.errorcode.get(fault.error, 'the end')}")
        if fault.when == "half":
            assert name == "writev"
            fd, parts = args
            whole = b"".join(bytes(part) for part in parts)
            os.write(fd, whole[: len(whole) // 2])
        elif fault.when == "after" or name == "close":  # also where close(2) fails, the descriptor is closed
            try:
                result = self._really(name, call, *args, **kwargs)
            except OSError:  # it has an error of its own to tell
                if fault.error:
                    raise
            else:
                if name == "open" and fault.error:
                    os.close(result)
        if not fault.error:
            os._exit(CRASHED)
        raise OSError(fault.error, os.strerror(fault.error), *(arg for arg in args[:1] if isinstance(arg, str)))

    def _tell(self, what: str) -> None:
        self.struck.append(what)
        if self._report is not None:
            self._report.write_text(what)

    def _really(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if name == "fsync":  # costs time and changes nothing that can be seen
            return None
        if name == "listdir" and self._lag:
            return self._list_late(args[0])
        if name not in CHANGES or not self._lag:
            return call(*args, **kwargs)
        paths = args[:2] if name == "rename" else args[:1]
        directories = {os.path.dirname(path) for path in paths}
        for directory in directories:
            self._listings.setdefault(directory, [(0, _list(directory))])
        try:
            return call(*args, **kwargs)
        finally:
            for directory in directories:
                self._listings[directory].append((self._now(), _list(directory)))

    def _list_late(self, directory: str) -> list[str]:
        listings = self._listings.get(directory) or [(0, _list(directory))]
        seen = listings[0][1]
        for since, names in listings:
            if since <= self._now() - self._lag:
                seen = names
        if seen is None:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", directory)
        return list(seen)


def _list(directory: str) -> list[str] | None:
    try:
        return os.listdir(directory)
    except OSError:
        return None


def in_child(disk: Disk, body: Callable[[], object]) -> int:
    """Run in a child process with such a disk; its exit status: 0, :data:`CRASHED` or :data:`RAISED`."""
    pid = os.fork()
    if pid == 0:
        code = RAISED
        try:
            with disk.installed():
                body()
            code = 0
        except BaseException:  # noqa: BLE001  the child must never go on as the test
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

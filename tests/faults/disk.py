"""File operations that fail, answer wrongly or lag behind, and processes that die between two of them.

:class:`Disk` replaces ``os`` in the modules that touch files. It counts their operations. At the operations that its
plan names it ends the process, raises an error, or does the operation and raises an error all the same; it can also
return directory listings of a while ago. :class:`Recorder` copies every state of the files in which a process could
die.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

from spoolpool.security import trust
from spoolpool.system import file_content, files, open_directory

PATCHED = (file_content, files, open_directory, trust)
"""Modules whose ``os`` is replaced: all files of tasks and outcomes are reached through them."""

CRASHED, RAISED = 86, 87
"""Exit statuses of a child: ended by a :class:`Fault`; ended by an exception that its test did not expect."""

NAME_CHANGES = frozenset({"create", "rename", "unlink", "mkdir", "rmdir"})
"""Operations that change a directory. ``create`` is open(2) with O_CREAT, ``open`` is any other."""

CHANGES = NAME_CHANGES | {"chmod", "fchmod", "fchown", "ftruncate", "pwrite", "utime", "writev"}
"""Operations after which the files are in another state."""

READS = frozenset({"close", "fdatasync", "fstat", "fsync", "listdir", "lseek", "lstat", "open", "pread", "preadv"})
READS |= {"read", "stat"}
"""Operations that change nothing, but can fail. A sync changes nothing that another process can see."""

OPERATIONS = CHANGES | READS
"""Operations that are counted."""

LOOKS = frozenset({"lstat", "stat"})
"""Operations that say whether a name exists."""

SPACE = frozenset({"create", "writev", "mkdir", "fsync"})
"""Operations that need space."""


@dataclass(frozen=True)
class Fault:
    """Effect on one operation: the process ends, or the operation raises an error."""

    when: Literal["before", "half", "after"]
    """Before the operation, in the middle of a write, or after the operation."""
    error: int = 0
    """Number of the error that is raised; 0 ends the process."""


Plan = Callable[[int, str], "Fault | None"]
"""Map the number of an operation (the first is 1) and its name to its fault."""


def at(number: int, fault: Fault) -> Plan:
    """Return a plan with a fault at one operation."""
    return lambda count, name: fault if count == number else None


def during(numbers: range, fault: Fault) -> Plan:
    """Return a plan with the same fault at each of several operations."""
    return lambda count, name: fault if count in numbers else None


def nothing(_count: int, _name: str) -> None:
    """Plan without faults."""


class Disk:
    """Replacement for ``os`` with faults, as long as :meth:`installed` lasts.

    Only operations in ``only`` are counted and can fail. With ``lag``, a directory is listed as it was so many
    operations ago, or so many seconds with a ``clock``. Faults that occurred are kept in ``struck`` and written to the
    file ``report``, which outlives this process.
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
        self.names: list[str] = []
        """Names of the operations that were counted."""
        self.struck: list[str] = []

    @property
    def count(self) -> int:
        """Number of operations that were counted."""
        return len(self.names)

    @contextlib.contextmanager
    def installed(self) -> Iterator[Disk]:
        """Replace ``os`` in the modules that touch files."""
        with contextlib.ExitStack() as stack:
            for module in PATCHED:
                stack.enter_context(mock.patch.object(module, "os", self))
            yield self

    def __getattr__(self, name: str) -> Any:
        value = getattr(os, name)
        if name in OPERATIONS:
            return lambda *args, **kwargs: self.do(name, value, *args, **kwargs)
        return value

    def do(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Do one operation of ``os``, with its fault."""
        if name == "open" and args[1] & os.O_CREAT:
            name = "create"
        fault = None
        if name in self._only:
            self.names.append(name)
            fault = self._plan(self.count, name)
        if fault is None:
            return self._really(name, call, *args, **kwargs)
        self._tell(f"{fault.when} operation {self.count}, {name}{args}: {errno.errorcode.get(fault.error, 'the end')}")
        if fault.when == "half":
            assert name == "writev"
            fd, parts = args
            whole = b"".join(parts)
            os.write(fd, whole[: len(whole) // 2])
        elif fault.when == "after" or name == "close":  # a close(2) that fails closes the descriptor all the same
            try:
                result = self._really(name, call, *args, **kwargs)
            except OSError:  # the real error comes first
                if fault.error:
                    raise
            else:
                if name in {"create", "open"} and fault.error:
                    os.close(result)
        if not fault.error:
            os._exit(CRASHED)
        raise OSError(fault.error, os.strerror(fault.error), *(arg for arg in args[:1] if isinstance(arg, str)))

    def _tell(self, text: str) -> None:
        self.struck.append(text)
        if self._report is not None:
            self._report.write_text(text)

    def _really(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if name in {"fdatasync", "fsync"}:  # takes time, and changes nothing that can be seen
            return None
        if name == "listdir" and self._lag:
            return self._list_late(args[0])
        if name not in NAME_CHANGES or not self._lag:
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


class Recorder(Disk):
    """Disk without faults that copies a tree whenever it differs: each copy is the state after a death at that moment.

    A process that dies during a read leaves the state before it, so the states follow from the changes: one after each
    change, and one in the middle of each write. The files ``notes`` in the tree are written without this disk, and
    only appended to; the state after such a write is copied at the next operation. ``label`` is the name of a file in
    each copy that says when the process would have died.
    """

    def __init__(self, tree: Path, copies: Path, notes: Iterable[Path], label: str) -> None:
        super().__init__()
        self._tree = tree
        self._copies = copies
        self._notes = tuple(notes)
        self._label = label
        self._changes = 0
        self._state: tuple[int, ...] = ()
        copies.mkdir()

    @contextlib.contextmanager
    def installed(self) -> Iterator[Disk]:
        with super().installed():
            yield self
        self._copy("at the end")

    def _really(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        where = f"operation {self.count}, {name}{args}"
        self._copy(f"before {where}")
        if name == "writev":
            fd, parts = args
            whole = b"".join(parts)
            half = os.write(fd, whole[: len(whole) // 2])
            self._changes += 1
            self._copy(f"half of {where}")
            result: Any = half + os.write(fd, whole[half:])
        else:
            result = super()._really(name, call, *args, **kwargs)
        if name in CHANGES:
            self._changes += 1
            self._copy(f"after {where}")
        return result

    def _copy(self, when: str) -> None:
        state = (self._changes, *(path.stat().st_size for path in self._notes))
        if state == self._state:
            return
        self._state = state
        copy = self._copies / f"{len(os.listdir(self._copies)):04d}"
        shutil.copytree(self._tree, copy, symlinks=True)
        (copy / self._label).write_text(f"the process died {when}")


def digest(tree: Path, *, without: str) -> str:
    """Return a digest of names, modes and contents below a directory, ``without`` one of the names in it."""
    found = hashlib.blake2b()
    for directory, names, leaves in os.walk(tree):
        names.sort()
        below = directory.removeprefix(str(tree))
        found.update(f"{below}\0{os.stat(directory).st_mode}\0{names}\0".encode())
        for name in sorted(leaves):
            if not (name == without and not below):
                path = f"{directory}/{name}"
                content = os.readlink(path).encode() if os.path.islink(path) else Path(path).read_bytes()
                found.update(f"{name}\0{os.lstat(path).st_mode}\0{len(content)}\0".encode() + content)
    return found.hexdigest()


def in_child(disk: Disk, body: Callable[[], object]) -> int:
    """Run ``body`` on ``disk`` in a forked process; return its exit status: 0, :data:`CRASHED` or :data:`RAISED`."""
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

"""Open directories, and paths that lead through their descriptors."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from typing import TypeAlias

_DESCRIPTORS = "/proc/self/fd/"

_HIGH = 200  # number of a descriptor


def _close(fd: int) -> None:
    with contextlib.suppress(OSError):
        os.close(fd)


class Directory:
    """Open directory. Its text is a path that leads to it, even after another one was put in its place.

    The path is valid only in this process and only during the life of this object. It costs no more than another path.
    """

    def __init__(self, path: str, *, readable: bool = True) -> None:
        """Open it without following a link in the last part of ``path``. ``OSError`` as open(2).

        A link, too, raises ``ENOTDIR``. A directory that this account can enter, but not list, is not ``readable``.
        """
        self._fd = -1
        self._flags = (os.O_RDONLY if readable else os.O_PATH) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(path, self._flags)
        if not readable:  # kept for long: under a high number a task that closes descriptors is less likely to meet it
            low, self._fd = self._fd, fcntl.fcntl(self._fd, fcntl.F_DUPFD_CLOEXEC, _HIGH)
            os.close(low)
        self._status = os.fstat(self._fd)
        self.owner = self._status.st_uid

    def __str__(self) -> str:
        return f"{_DESCRIPTORS}{self._fd}"

    def __del__(self) -> None:
        if self._fd >= 0:
            _close(self._fd)

    def restore(self, path: str) -> bool:
        """Open the directory again, under the same number, if a function has closed it; return whether it was closed.

        Raises ``OSError`` if ``path`` does not lead to it any more, or if the number has been reused.
        """
        try:
            found = os.fstat(self._fd)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
        else:
            if os.path.samestat(found, self._status):
                return False
            raise OSError(errno.EBADF, "Its descriptor was closed and has been reused", path)
        fd = os.open(path, self._flags)
        try:
            if not os.path.samestat(os.fstat(fd), self._status):
                raise FileNotFoundError(errno.ENOENT, "Its descriptor was closed, and it was replaced", path)
            os.dup2(fd, self._fd, inheritable=False)
        finally:
            _close(fd)
        return True

    def removed(self) -> bool:
        """Return whether the directory was removed after it was opened."""
        return os.fstat(self._fd).st_nlink == 0


Place: TypeAlias = "str | Directory"
"""A path or an open directory; formatted, both are paths."""


def child_path(path: str) -> str:
    """Return a path for a child process: it is valid as long as this process lives and keeps the directory open."""
    return f"/proc/{os.getpid()}/fd/{path.removeprefix(_DESCRIPTORS)}" if path.startswith(_DESCRIPTORS) else path


def display_path(path: str) -> str:
    """Return a path for display: where it leads through a :class:`Directory`, the path of that directory."""
    if path.startswith(_DESCRIPTORS):
        number, _, rest = path.removeprefix(_DESCRIPTORS).partition("/")
        with contextlib.suppress(OSError):
            return f"{os.readlink(_DESCRIPTORS + number)}/{rest}"
    return path

"""Waiting for a change: inotify where the filesystem delivers it, and always a limit of time.

No network filesystem tells one client of another's change (measured on NFS 3 and 4.2, MooseFS,
GlusterFS, sshfs), so an event is a hint that ends a wait early and the poll is the truth. Events are
not read for what they say: whoever waited lists. Nothing is read at all while nobody waits, so that a
busy worker pays nothing for the watch.
"""

from __future__ import annotations

import contextlib
import os
import select
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from watchdog.observers import inotify_c


_EVENT = 512  # bytes, more than the largest event of inotify: 16 and a name of 255 with its end


class DirectoryWatcher:
    """A set of watched directories, and a wait that their changes or :meth:`wake` end.

    One thread waits; any thread may call :meth:`wake`, but not while another one calls :meth:`close`: the
    number of a closed descriptor may be somebody else's already. Uses watchdog's bindings of the inotify calls
    directly: its observer threads would cost two switches of thread per event.
    """

    _read = _write = _inotify = -1  # for one whose making failed
    _begun = False

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._poll = select.poll()
        self._poll.register(self._read, select.POLLIN)
        self._watched: dict[str, inotify_c.WatchDescriptor] = {}

    def add(self, directory: str) -> None:
        """Watch a directory for names that come; one that cannot be watched is only polled."""
        if not self._begun and self._read >= 0:
            self._begun = True
            self._begin()
        if self._inotify < 0 or directory in self._watched:
            return
        mask = 0x100 | 0x80  # IN_CREATE, IN_MOVED_TO of inotify(7)
        wd = self._calls.inotify_add_watch(self._inotify, os.fsencode(directory), mask)
        if wd >= 0:
            self._watched[directory] = wd

    def _begin(self) -> None:
        """Have inotify, where there is one."""
        try:  # not before a directory is watched: a group that has a task at once claims it sooner
            from watchdog.observers import inotify_c
        except (ImportError, OSError, RuntimeError):  # no inotify on this system: the poll is enough
            return
        self._calls = inotify_c
        fd = inotify_c.inotify_init()
        if fd >= 0:  # else the user's limit of instances is reached: the poll is enough
            os.set_inheritable(fd, False)
            os.set_blocking(fd, False)
            self._inotify = fd
            self._poll.register(fd, select.POLLIN)

    def keep(self, directories: set[str]) -> None:
        """Watch these directories and no others."""
        for gone in [path for path in self._watched if path not in directories]:
            self._calls.inotify_rm_watch(self._inotify, self._watched.pop(gone))
        for path in directories:
            self.add(path)

    def wait(self, seconds: float) -> bool:
        """Wait until something changed, at most so long; whether something did."""
        try:
            ready = self._poll.poll(max(0.0, seconds) * 1000)
        except OSError:
            return False
        for fd, _ in ready:
            self._drain(fd)
        return bool(ready)

    def pause(self, seconds: float) -> bool:
        """Wait, if changes can be seen; what changed until now is forgotten. Call it before the look for it."""
        return self.wait(seconds if self._watched else 0.0)

    def clear(self) -> None:
        """Forget the changes so far; call it before the look that they would announce."""
        self.wait(0.0)

    def wake(self) -> None:
        """End a wait; from any thread or signal handler."""
        with contextlib.suppress(OSError, ValueError):  # full: it wakes anyway; closed: nobody waits
            os.write(self._write, b"\0")

    def close(self) -> None:
        """Give the descriptors back; harmless when repeated."""
        fds = [fd for fd in (self._read, self._write, self._inotify) if fd >= 0]
        self._read = self._write = self._inotify = -1
        self._watched = {}
        for fd in fds:
            with contextlib.suppress(OSError):
                os.close(fd)

    def __del__(self) -> None:
        # whoever made it may have failed before he could close it
        self.close()

    @staticmethod
    def _drain(fd: int) -> None:
        try:
            while len(os.read(fd, 65536)) > 65536 - _EVENT:  # inotify gives whole events
                pass
        except OSError:  # BlockingIOError: it is empty
            pass

"""Waiting for changes of directories, by inotify where the filesystem delivers events, always with a timeout.

No network filesystem reports the changes of one client to another (measured on NFS 3 and 4.2, MooseFS, GlusterFS,
sshfs). So an event only ends a wait early, and the poll decides. Events are read in a wait alone, so that the watch
costs a busy worker nothing, and their content is decoded for :meth:`DirectoryWatcher.new_names` alone.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import struct
import time
from typing import TYPE_CHECKING

from spoolpool.system.spin import Spin

if TYPE_CHECKING:
    from watchdog.observers import inotify_c

_EVENT = 512  # bytes, more than the largest event of inotify: 16, and a name of 255 with its terminator
_HEADER = struct.Struct("iIII")  # of an event: watch descriptor, mask, cookie, and length of the name
_IGNORED = 0x8000  # IN_IGNORED: the watch has ended, since its directory was removed
_WOKEN = _HEADER.pack(-1, 0, 0, 0)  # in place of the events of the pipe; the kernel reports lost events likewise


class DirectoryWatcher:
    """Watched directories, and a wait that ends when one of them changes or :meth:`wake` is called.

    One thread waits; another one may do so while a signal handler interrupts the first, and may get its changes. Any
    thread may call :meth:`wake`, but not during :meth:`close`: the number of the closed descriptor may be used again.
    Uses watchdog's bindings of inotify(7) directly, because its observer threads would cost two thread switches per
    event.
    """

    _read = _write = _inotify = -1  # for close() after an exception in __init__
    _begun = False

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._poll = self._new_poll()
        self._watched: dict[str, inotify_c.WatchDescriptor] = {}
        self._events: list[bytes] = []
        self._spin = Spin()

    def _new_poll(self) -> select.poll:
        poll = select.poll()
        for fd in (self._read, self._inotify):
            if fd >= 0:
                poll.register(fd, select.POLLIN)
        return poll

    def add(self, directory: str) -> None:
        """Watch a directory for new names. A directory that cannot be watched is only polled."""
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
        """Open inotify, where the system has it."""
        try:  # not before a directory is watched: a group that finds a task at once claims it sooner
            from watchdog.observers import inotify_c
        except (ImportError, OSError, RuntimeError):  # no inotify on this system: the poll is enough
            return
        self._calls = inotify_c
        fd = inotify_c.inotify_init()
        if fd >= 0:  # else the user's limit of inotify instances is reached: the poll is enough
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

    def wait(self, seconds: float, *, spins: bool = False) -> bool:
        """Wait for a change, at most ``seconds``; return whether there was one.

        If it ``spins``, it does so for a moment where a core is free and the last of these waits was short.
        """
        self._events = []
        try:
            try:
                ready = self._spin_or_sleep(seconds) if spins else self._poll.poll(max(0.0, seconds) * 1000)
            except RuntimeError as error:
                if "concurrent poll" not in str(error):  # of a signal handler
                    raise
                # a signal handler has interrupted another wait, which goes on after it
                ready = self._new_poll().poll(max(0.0, seconds) * 1000)
        except OSError as error:
            if error.errno is None:  # of a signal handler, such as a TimeoutError
                raise
            return False
        for fd, _ in ready:
            self._drain(fd)
        return bool(ready)

    def _spin_or_sleep(self, seconds: float) -> list[tuple[int, int]]:
        ready = self._spin.until(lambda: self._poll.poll(0), seconds)
        if ready is None:
            begun = time.perf_counter()
            ready = self._poll.poll(max(0.0, seconds) * 1000)
            self._spin.record(time.perf_counter() - begun if ready else math.inf)
        return ready

    def new_names(self) -> dict[str, set[str]] | None:
        """Return the names whose appearance ended the last wait or pause, by directory.

        Returns None if these were not all of its reasons: :meth:`wake` was called, events were lost, or a directory is
        not watched any more.
        """
        directories = {wd: path for path, wd in self._watched.items()}
        found: dict[str, set[str]] = {}
        for events in self._events:
            position = 0
            while position < len(events):
                wd, mask, _, size = _HEADER.unpack_from(events, position)
                position += _HEADER.size + size
                if mask & _IGNORED and wd in directories:  # removed; it may be made again under the same path
                    self._watched.pop(directories.pop(wd), None)
                if wd not in directories:
                    return None
                name = events[position - size : position].rstrip(b"\0")
                found.setdefault(directories[wd], set()).add(os.fsdecode(name))
        return found

    def covers(self, directories: set[str]) -> bool:
        """Return whether the changes of all these directories are reported, as far as their filesystem tells."""
        return directories <= self._watched.keys()

    def pause(self, seconds: float) -> bool:
        """Wait and discard the changes so far, if any directory is watched. Call it before listing."""
        return self.wait(seconds, spins=seconds > 0) if self._watched else self.wait(0.0)

    def clear(self) -> None:
        """Discard the changes so far. Call it before listing."""
        self.wait(0.0)

    def wake(self) -> None:
        """End a wait. May be called from any thread and from a signal handler."""
        with contextlib.suppress(OSError, ValueError):  # a full pipe wakes too; a closed one has no waiting thread
            os.write(self._write, b"\0")

    def close(self) -> None:
        """Close the descriptors; harmless when repeated."""
        fds = [fd for fd in (self._read, self._write, self._inotify) if fd >= 0]
        self._read = self._write = self._inotify = -1
        self._watched = {}
        for fd in fds:
            with contextlib.suppress(OSError):
                os.close(fd)

    def __del__(self) -> None:
        self.close()  # its creator may have failed before closing it

    def _drain(self, fd: int) -> None:
        if fd not in (self._read, self._inotify):  # closed in a child that a signal handler forked during the wait
            return
        try:
            events = b""
            while not events or len(events) > 65536 - _EVENT:  # inotify returns whole events
                events = os.read(fd, 65536)
                self._events.append(events if fd == self._inotify else _WOKEN)
        except OSError as error:  # BlockingIOError: no more events
            if error.errno is None:  # of a signal handler
                raise

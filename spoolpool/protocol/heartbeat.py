"""Heartbeats: periodic signs of life, and an observer of them."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Collection, Sequence

from spoolpool import settings
from spoolpool.protocol import sessions
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.workers import WorkerInfo
from spoolpool.system import files, open_directory
from spoolpool.system.processes import ProcessId
from spoolpool.system.stop_request import GROUP_SIGNALS

log = logging.getLogger(__name__)

_PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "heartbeat_program.py")

_DETACHED = f"""trap '' {" ".join(f"{each:d}" for each in sorted(GROUP_SIGNALS))}; exec 3<&0; "$@" <&3 3<&- &"""
# A shell that ends at once, so that the heartbeat processes are no children of this one: a function here neither waits
# for them nor gets SIGCHLD for them. They ignore the signals that end a group after its task.

_END_SECONDS = 1.0  # for the end of the processes: they may be stopped, or the server away

_SILENT = 3  # intervals in a row without a report of a touch


class Heartbeat:
    """Periodic touch of a file as long as this process lives, whatever its Python does.

    Two small processes touch the file and replace each other, also while a function here holds the GIL
    (:mod:`spoolpool.protocol.heartbeat_program`). Where both are stopped at once, a thread here continues them. Where
    both have ended, or cannot reach the file, it touches the file, until :meth:`keep` starts them again. If this
    process ends without :meth:`close`, the command ``then`` replaces them.
    """

    def __init__(self, path: str, interval: float, then: Sequence[str] = ()) -> None:
        self._path = path
        self._interval = interval
        self._then = then
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._ended = False
        self._pids: tuple[int, ...] = ()
        self._start()
        threading.Thread(target=self._watch, name="spoolpool-heartbeat", daemon=True).start()

    def _start(self) -> None:
        import subprocess  # for a worker or session that begins, not for a reader

        me = ProcessId.of(os.getpid())
        arguments = [open_directory.child_path(self._path), str(self._interval), str(me.pid), me.start, *self._then]
        command = [sys.executable, "-IS", _PROGRAM, *arguments]
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _DETACHED, "sh", *command],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=bool(self._then),  # a signal that ends the terminal's processes must not end it
        )
        self._process.wait()
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self._ended = False
        self._silent = 0

    def keep(self) -> bool:
        """Start the processes again if they have ended; return False if the file was removed."""
        with self._lock:
            self._read_reports()
            if self._closed.is_set() or not self._ended:
                return True
            if files.is_missing(self._path):
                return False
            self._close_pipes()
            try:
                self._start()
            except OSError as error:  # too little memory, or too many processes: the thread continues
                log.warning(
                    "Cannot start the heartbeat of %s again: %s", open_directory.display_path(self._path), error
                )
            return True

    def close(self) -> None:
        """End the heartbeat, without running the command. From any thread; harmless when repeated.

        Usually its processes have ended as well when this returns.
        """
        with self._lock:
            if not self._closed.is_set():
                self._read_reports()
                self._closed.set()
                with contextlib.suppress(OSError, ValueError):  # the processes have ended, or could not be started
                    self._request_end(time.monotonic() + _END_SECONDS)
                self._close_pipes()

    def _request_end(self, limit: float) -> None:
        requests, reports = self._process.stdin, self._process.stdout
        assert requests is not None
        assert reports is not None
        requests.write(b".")
        self._continue()
        while select.select([reports], [], [], max(0.0, limit - time.monotonic()))[0]:
            if reports.read() == b"":
                return

    def _close_pipes(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # a function closed all descriptors
                pipe.close()

    def _read_reports(self) -> None:
        """Note whether the processes have touched the file, or have ended."""
        assert self._process.stdout is not None
        if self._closed.is_set() or self._process.stdout.closed:
            return
        try:
            reports = self._process.stdout.read()  # None: there is none now
        except OSError:  # a function closed all descriptors
            reports = b""
        if reports:
            self._silent = 0
            self._pids = tuple(map(int, reports.splitlines()[-1].split()))
        self._ended = reports == b""

    def _continue(self) -> None:
        """Continue the processes if they are stopped. For another process with such a pid, this changes nothing."""
        for pid in filter(None, self._pids):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGCONT)

    def _watch(self) -> None:
        warned = False
        while not self._closed.wait(self._interval):
            with self._lock:
                self._silent += 1  # not by a clock: this process may have been stopped together with them
                self._read_reports()
                is_silent = self._ended or self._silent >= _SILENT
                if is_silent:
                    self._continue()
            if not is_silent:
                warned = False
                continue
            with contextlib.suppress(OSError):  # the server is away; or the entry was removed, and the processes ended
                files.touch(self._path)
                if not warned:
                    warned = True
                    log.warning(
                        "The processes that touch %s are silent: a thread continues.",
                        open_directory.display_path(self._path),
                    )


def heartbeat_interval(spool: Spool) -> float:
    """Return the seconds between two heartbeats."""
    return spool.config.lease / settings.BEATS_PER_LEASE


class Liveness:
    """Observer of heartbeats: compares each with its earlier value, and measures by its own monotonic clock.

    Clocks of hosts are never compared: a heartbeat counts as still if it did not change for a lease *while it was
    watched*, whatever its date. A gap between two checks (the server was away, this process was stopped, the laptop
    slept) counts for a third of a lease at most: the same may have held up the worker.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._seen: dict[str, tuple[int | None, float, float]] = {}  # modification time, when seen, seconds unchanged
        self._longest_gap = spool.config.lease / 3

    def seconds_since_change(self, worker: str) -> float:
        """Check a worker's heartbeat; return for how many seconds it has not changed while it was watched."""
        return self._check(worker, f"{self._spool.layout.worker(worker)}/beat")

    def seconds_unchanged(self, name: str, path: str) -> float:
        """Return for how many seconds a file has not changed while it was watched under this name."""
        return self._check(name, path)

    def is_session_alive(self, session: str) -> bool:
        """Return whether a session is open and alive: provably, on this host, or not provably dead and not silent."""
        path = self._spool.layout.session(session)
        if files.is_missing(path):
            return False
        info = sessions.read_session(self._spool, session)
        if info is not None and info.process.is_alive_here():
            return True
        if info is not None and info.process.is_provably_dead():
            return False
        return self._check(f"session {session}", path) < self._spool.config.lease

    def _check(self, name: str, path: str) -> float:
        try:
            stamp = files.mtime_ns(path)
        except OSError:  # unknown: counts as unchanged if it was unknown before
            stamp = None
        now = time.monotonic()
        before = self._seen.get(name)
        unchanged = 0.0
        if before is not None and before[0] == stamp:
            unchanged = before[2] + min(now - before[1], self._longest_gap)
        self._seen[name] = (stamp, now, unchanged)
        return unchanged

    def is_alive(self, info: WorkerInfo) -> bool:
        """Return whether a worker is alive: provably on this host, or not provably dead and not silent for a lease."""
        if info.process.is_alive_here():
            return True
        return not info.process.is_provably_dead() and self.seconds_since_change(info.worker) < self._spool.config.lease

    def knows(self, worker: str) -> bool:
        """Return whether a worker was checked before."""
        return worker in self._seen

    def keep_only(self, workers: Collection[str]) -> None:
        """Drop the observations of all other workers."""
        self._seen = {worker: seen for worker, seen in self._seen.items() if worker in workers}

    def forget(self, worker: str) -> None:
        """Drop the observations of a worker."""
        self._seen.pop(worker, None)

"""Two processes that try a filesystem out together, and the directory in which they talk.

The doctor (:mod:`spoolpool.maintenance.doctor`) gives orders, its *peer* follows them: another process of this host,
or one that
somebody started on another. What they say are files with names of their own, each written once.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec

from spoolpool.errors import NotTrusted, TaskTimeout
from spoolpool.format.names import is_rendezvous, rendezvous_name
from spoolpool.system import files
from spoolpool.system.accounts import account_name
from spoolpool.system.backoff import Backoff
from spoolpool.system.locks import try_lock
from spoolpool.system.processes import ProcessId, hostname

PATIENCE = 100.0
"""Seconds to wait for the other side: longer than NFS goes on saying "not there" (60)."""

TOKENS = 500
"""Files for which two race."""

_CLOSING = 30.0  # seconds: longer than sshfs goes on listing what it listed before (20)
_LOST = frozenset({errno.EEXIST, errno.EPERM, errno.EACCES})  # sshfs says EPERM where others say EEXIST
_FILE = re.compile(r"[a-z]+-[0-9]+(/in/new)?")


def order_name(number: int) -> str:
    """The file of the doctor's n-th order, from 0."""
    return f"order-{number:04d}"


def answer_name(number: int) -> str:
    """The file of the answer to it."""
    return f"answer-{number:04d}"


class Rendezvous:
    """A directory in which the two sides talk; it is this account's alone, so that nobody else gives orders.

    ``patience`` bounds each wait for the other side; ``present`` tells that it is still there, where that is known.
    Raises :class:`NotTrusted` for a directory that is somebody else's.
    """

    def __init__(self, path: str, *, patience: float = PATIENCE, present: Callable[[], bool] = lambda: True) -> None:
        self.path = path
        self.patience = patience
        self.present = present
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise NotTrusted(
                f"{path} belongs to {account_name(status.st_uid)} (mode {stat.S_IMODE(status.st_mode):o}). "
                f"Either others "
                "may write there, or this filesystem does not keep owners and permissions, which a spool needs."
            )

    @classmethod
    def make(cls, directory: str, *, patience: float = PATIENCE) -> Rendezvous:
        """A new one for what is examined."""
        path = f"{_where(directory)}/{rendezvous_name()}"
        files.make_directory(path)
        made = cls(path, patience=patience)
        made.post("maker", msgspec.to_builtins(ProcessId.of(os.getpid())))
        return made

    def invite(self) -> None:
        """Let a doctor find that a peer waits here: see :func:`waiting_peer`."""
        self.post("peer", {})

    def maker(self) -> ProcessId | None:
        """Who made it, so far as it says."""
        try:
            return msgspec.json.decode(files.read_small(f"{self.path}/maker"), type=ProcessId)
        except (OSError, ValueError):  # just being made; or its content is not here yet
            return None

    def post(self, name: str, content: dict[str, Any]) -> None:
        """Say something to the other side.

        Made in place: on NFS 3 a temporary file beside it can hide the name from the other side for good.
        """
        files.create(f"{self.path}/{name}", [json.dumps(content).encode()])

    def hear(self, name: str, what: str) -> dict[str, Any]:
        """Wait for what the other side says, and read it."""
        found: list[dict[str, Any]] = []
        backoff = Backoff(1.0, 30.0, 2.0)
        due = time.monotonic() + backoff.next()

        def read() -> bool:
            nonlocal due
            if time.monotonic() > due:  # also for the other side, from which the order may be hidden
                files.refresh(self.path)
                due = time.monotonic() + backoff.next()
            # a name that was looked up in vain stays hidden for long on NFS, a listing stays stale on sshfs: ask both
            # ways, so that what is said arrives before what it is about. Its content may come later still.
            path = f"{self.path}/{name}"
            with contextlib.suppress(OSError, ValueError):
                if files.exists(path):
                    found.append(json.loads(files.read_small(path)))
            return bool(found)

        self.expect(read, what)
        return found[0]

    def expect(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until something holds. Raises :class:`TaskTimeout`, also at once where the other side has ended."""
        if self.until(condition) is None:
            why = f"in {self.patience:g} s" if self.present() else "and has ended"
            raise TaskTimeout(
                f"The other side did not give {what} {why}. Look what became of it (it says so on its own screen), "
                "and start both again."
            )

    def until(self, condition: Callable[[], bool]) -> float | None:
        """Seconds until the condition held; None if it did not in time, or the other side has ended."""
        return until_true(condition, self.patience, self.present)

    def close(self) -> None:
        """Remove it; harmless when repeated."""

        def gone() -> bool:
            with contextlib.suppress(OSError):
                files.remove_tree(self.path)
            return not os.path.lexists(self.path)

        until_true(gone, _CLOSING)  # a listing may be too old to show all that is in it


class Peer:
    """The far side: does what is asked, until it is told to go or hears nothing for a while.

    It takes nothing from a file but which of its own abilities is asked for, and on which file of the meeting.
    """

    def __init__(self, meeting: Rendezvous, *, patience: float = 600.0) -> None:
        self._meeting = meeting
        self._patience = patience
        self._maker: ProcessId | None = None
        self._holder: subprocess.Popen[bytes] | None = None
        self._abilities: dict[str, Callable[[str], dict[str, Any]]] = {
            "clock": self._clock,
            "rename": self._rename,
            "create": self._create,
            "make": self._make,
            "take": self._take,
            "touch": self._touch,
            "hold": self._hold,
            "kill": self._kill,
            "go": lambda _: {},
        }

    def serve(self) -> int:
        """Answer a doctor's orders; returns how many there were."""
        number = 0
        backoff = Backoff(0.002, 0.1)
        heard = time.monotonic()
        dismissed = False
        try:
            while time.monotonic() - heard < self._patience and self._wanted():
                if not files.exists(f"{self._meeting.path}/{order_name(number)}"):
                    backoff.sleep()
                    continue
                order = self._meeting.hear(order_name(number), "its order")
                self._meeting.post(answer_name(number), self._do(order))
                number += 1
                if order.get("do") == "go":
                    dismissed = True
                    break
                heard = time.monotonic()
                backoff.reset()
        except FileNotFoundError:  # the doctor has given up and removed the meeting
            pass
        finally:
            self._end_holder()
            if not dismissed:  # else the doctor reads the last answer, and removes it all
                self._meeting.close()
        return number

    def _wanted(self) -> bool:
        self._maker = self._maker or self._meeting.maker()
        return files.is_directory(self._meeting.path) and not (
            self._maker is not None and self._maker.is_provably_dead()
        )

    def _do(self, order: dict[str, Any]) -> dict[str, Any]:
        do, name = order.get("do"), order.get("name", "")
        ability = self._abilities.get(do) if isinstance(do, str) else None
        if ability is None or not isinstance(name, str) or not (name == "" or _FILE.fullmatch(name)):
            return {"error": f"it does not know how to {do!r} {name!r}: is its spoolpool another version?"}
        try:
            return ability(name)
        except OSError as error:
            return {"error": error.strerror or str(error)}

    def _clock(self, _name: str) -> dict[str, Any]:
        return {"now": time.time(), "host": hostname()}

    def _rename(self, name: str) -> dict[str, Any]:
        self._start(name)
        return {"won": rename_all(f"{self._meeting.path}/{name}", "peer")}

    def _create(self, name: str) -> dict[str, Any]:
        self._start(name)
        return {"won": create_all(f"{self._meeting.path}/{name}")}

    def _start(self, race: str) -> None:
        self._meeting.post(f"ready-{race}", {})
        self._meeting.hear(f"start-{race}", "the start of a race")

    def _make(self, name: str) -> dict[str, Any]:
        files.create(f"{self._meeting.path}/{name}", [b"x"])
        return {}

    def _take(self, name: str) -> dict[str, Any]:
        return {"gone": files.remove(f"{self._meeting.path}/{name}")}

    def _touch(self, name: str) -> dict[str, Any]:
        files.touch(f"{self._meeting.path}/{name}")
        return {}

    def _hold(self, name: str) -> dict[str, Any]:
        path = f"{self._meeting.path}/{name}"
        self._holder = subprocess.Popen(
            [sys.executable, "-m", "spoolpool.maintenance.doctor_peer", path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        return {"lock": self._holder.stdout.readline().decode().strip()}

    def _kill(self, _name: str) -> dict[str, Any]:
        self._end_holder()
        return {}

    def _end_holder(self) -> None:
        if self._holder is not None:
            self._holder.kill()
            self._holder.communicate()
            self._holder = None


def hold(path: str) -> None:
    """Lock a file, say what came of it, and keep it until standard input ends."""
    fd = files.open_file(path, write=True)
    print(try_lock(fd).value, flush=True)  # noqa: T201  the parent reads it
    sys.stdin.read()


def rename_all(directory: str, me: str) -> int:
    """Rename every file to a name of one's own; returns how many are, or were said to be."""
    won = set()
    for number in range(TOKENS):
        with contextlib.suppress(OSError):
            files.move(f"{directory}/{number}", f"{directory}/{number}.{me}")
            won.add(f"{number}.{me}")
    # a repeated request answers with an error for a rename that happened: the name tells
    return len(won.union(name for name in files.list_names(directory) if name.endswith(f".{me}")))


def create_all(directory: str) -> int:
    """Make the same files as the other side; returns how many were said to be new."""
    won = 0
    for number in range(TOKENS):
        try:
            files.create(f"{directory}/{number}", [])
            won += 1
        except OSError as error:
            if error.errno not in _LOST:  # the other side was first
                raise
    return won


def waiting_peer(directory: str, *, patience: float = PATIENCE) -> Rendezvous | None:
    """A meeting in which a peer waits that somebody started on this directory, on whichever host.

    What was left by processes of this host that died is removed.
    """
    where = _where(directory)
    found = []
    for name in sorted(filter(is_rendezvous, files.list_names(where))):
        with contextlib.suppress(NotTrusted, FileNotFoundError):  # somebody else's; or it ends at this moment
            meeting = Rendezvous(f"{where}/{name}", patience=patience)
            maker = meeting.maker()
            if maker is not None and maker.is_provably_dead():
                meeting.close()
            elif files.exists(f"{meeting.path}/peer"):
                found.append(meeting)
    for meeting in found:
        try:
            files.move(f"{meeting.path}/peer", f"{meeting.path}/met")
        except OSError as error:
            if error.errno not in files.GONE:  # another doctor was first
                raise
        else:
            return meeting
    return None


def start_peer(meeting: Rendezvous) -> subprocess.Popen[bytes]:
    """Start a peer on this host."""
    command = [sys.executable, "-m", "spoolpool.maintenance.doctor_peer", "--peer", meeting.path]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL)


def _where(directory: str) -> str:
    is_spool = os.path.lexists(f"{directory}/spool.json") and os.path.isdir(f"{directory}/tmp")
    return f"{directory}/tmp" if is_spool else directory


def until_true(
    condition: Callable[[], bool], seconds: float, present: Callable[[], bool] = lambda: True
) -> float | None:
    """Seconds until the condition held; None if it did not in time, or while somebody was present."""
    begin = time.monotonic()
    backoff = Backoff(0.0005, 0.05)
    while not condition():
        if time.monotonic() - begin > seconds:
            return None
        if not present():  # its last word may have come after the look
            return time.monotonic() - begin if condition() else None
        backoff.sleep()
    return time.monotonic() - begin


if __name__ == "__main__":
    if sys.argv[1] == "--peer":
        Peer(Rendezvous(sys.argv[2])).serve()
    else:
        hold(sys.argv[1])

"""Peer of the doctor, and the rendezvous directory through which both communicate.

The doctor (:mod:`spoolpool.maintenance.doctor`) gives orders, and the peer executes them: a process of this host,
or one on another host that a user started. Each message is a file with a name of its own, written once.
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
from spoolpool.system import files, records
from spoolpool.system.accounts import account_name
from spoolpool.system.backoff import Backoff
from spoolpool.system.environment import python_module
from spoolpool.system.locks import try_lock
from spoolpool.system.processes import ProcessId, hostname
from spoolpool.system.records import BadRecord

TIMEOUT = 100.0
"""Seconds to wait for the other side: longer than NFS caches a failed look-up (60)."""

RACE_FILES = 500
"""Number of files in a race."""

_REMOVAL_TIMEOUT = 30.0  # seconds: longer than sshfs caches a listing (20)
_LOST = frozenset({errno.EEXIST, errno.EPERM, errno.EACCES})  # sshfs answers EPERM where others answer EEXIST
_FILE = re.compile(r"[a-z]+-[0-9]+(/in/new)?")


_message_decoder = msgspec.json.Decoder(dict[str, Any])
_creator_decoder = msgspec.json.Decoder(ProcessId)


def order_name(number: int) -> str:
    """Return the file name of an order; numbers begin at 0."""
    return f"order-{number:04d}"


def reply_name(number: int) -> str:
    """Return the file name of the reply to an order."""
    return f"reply-{number:04d}"


class Rendezvous:
    """Directory through which the two sides communicate. Only its account can write to it, and so give orders.

    ``timeout`` limits each wait for the other side; ``is_alive`` tells whether that is running, if it is known.
    Raises :class:`NotTrusted` for a directory of another account.
    """

    def __init__(self, path: str, *, timeout: float = TIMEOUT, is_alive: Callable[[], bool] = lambda: True) -> None:
        self.path = path
        self.timeout = timeout
        self.is_alive = is_alive
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise NotTrusted(
                f"{path} belongs to {account_name(status.st_uid)} (mode {stat.S_IMODE(status.st_mode):o}). Either "
                "others may write to it, or this filesystem does not keep owners and permissions, which a spool needs."
            )

    @classmethod
    def create(cls, directory: str, *, timeout: float = TIMEOUT) -> Rendezvous:
        """Create a rendezvous in the directory that is examined."""
        path = f"{_parent(directory)}/{rendezvous_name()}"
        files.make_directory(path)
        created = cls(path, timeout=timeout)
        created.send("creator", msgspec.to_builtins(ProcessId.of(os.getpid())))
        return created

    def invite(self) -> None:
        """Announce to doctors that a peer waits here: see :func:`find_peer`."""
        self.send("peer", {})

    def creator(self) -> ProcessId | None:
        """Return the process that created the directory; None if that is not known yet."""
        try:
            return records.load(f"{self.path}/creator", _creator_decoder)
        except (OSError, BadRecord):  # it is just being created; or the content is not visible yet
            return None

    def send(self, name: str, content: dict[str, Any]) -> None:
        """Send a message.

        Its file is created in place: on NFS 3 a temporary file in the directory can hide the name from the other side
        for good.
        """
        files.create(f"{self.path}/{name}", [json.dumps(content).encode()])

    def receive(self, name: str, noun: str) -> dict[str, Any]:
        """Wait for a message and return it. Raises :class:`TaskTimeout`, at once if the other side has ended."""
        found: list[dict[str, Any]] = []
        backoff = Backoff(1.0, 30.0, 2.0)
        due = time.monotonic() + backoff.next()

        def read() -> bool:
            nonlocal due
            if time.monotonic() > due:  # for the other side too: the order may be hidden from it
                files.refresh(self.path)
                due = time.monotonic() + backoff.next()
            # NFS caches a failed look-up for long, and sshfs a listing: files.exists asks in both ways, so that a
            # message arrives before the change that it announces. Its content may become visible even later.
            path = f"{self.path}/{name}"
            with contextlib.suppress(OSError, BadRecord):
                if files.exists(path):
                    found.append(records.load(path, _message_decoder))
            return bool(found)

        if seconds_until(read, self.timeout, self.is_alive) is None:
            reason = f"in {self.timeout:g} s" if self.is_alive() else "and has ended"
            raise TaskTimeout(
                f"The other side did not send {noun} {reason}. See its terminal for the reason, and start both again."
            )
        return found[0]

    def remove(self) -> None:
        """Remove the directory; harmless when repeated."""

        def gone() -> bool:
            with contextlib.suppress(OSError):
                files.remove_tree(self.path)
            return not os.path.lexists(self.path)

        seconds_until(gone, _REMOVAL_TIMEOUT)  # a cached listing may not show all files


class Peer:
    """Executes the orders of a doctor, until it is told to end or receives none for some time.

    A file selects only one of the operations below, and a file inside the rendezvous directory for it.
    """

    def __init__(self, rendezvous: Rendezvous, *, timeout: float = 600.0) -> None:
        self._rendezvous = rendezvous
        self._timeout = timeout
        self._creator: ProcessId | None = None
        self._lock_holder: subprocess.Popen[bytes] | None = None
        self._operations: dict[str, Callable[[str], dict[str, Any]]] = {
            "clock": self._clock,
            "rename": self._rename,
            "create": self._create,
            "make": self._make,
            "remove": self._remove,
            "touch": self._touch,
            "lock": self._lock,
            "kill": self._kill,
            "end": lambda _: {},
        }

    def serve(self) -> int:
        """Execute the orders of a doctor; return their number."""
        number = 0
        backoff = Backoff(0.002, 0.1)
        last = time.monotonic()
        dismissed = False
        try:
            while time.monotonic() - last < self._timeout and self._is_needed():
                if not files.exists(f"{self._rendezvous.path}/{order_name(number)}"):
                    backoff.sleep()
                    continue
                order = self._rendezvous.receive(order_name(number), "its order")
                self._rendezvous.send(reply_name(number), self._execute(order))
                number += 1
                if order.get("do") == "end":
                    dismissed = True
                    break
                last = time.monotonic()
                backoff.reset()
        except FileNotFoundError:  # the doctor gave up and removed the directory
            pass
        finally:
            self._end_lock_holder()
            if not dismissed:  # else the doctor reads the last reply, and then removes the directory
                self._rendezvous.remove()
        return number

    def _is_needed(self) -> bool:
        self._creator = self._creator or self._rendezvous.creator()
        dead = self._creator is not None and self._creator.is_provably_dead()
        return files.is_directory(self._rendezvous.path) and not dead

    def _execute(self, order: dict[str, Any]) -> dict[str, Any]:
        do, name = order.get("do"), order.get("name", "")
        operation = self._operations.get(do) if isinstance(do, str) else None
        if operation is None or not isinstance(name, str) or not (name == "" or _FILE.fullmatch(name)):
            return {"error": f"unknown order {do!r} {name!r}: does the peer run another version of spoolpool?"}
        try:
            return operation(name)
        except OSError as error:
            return {"error": error.strerror or str(error)}

    def _clock(self, _name: str) -> dict[str, Any]:
        return {"now": time.time(), "host": hostname()}

    def _rename(self, name: str) -> dict[str, Any]:
        self._await_start(name)
        return {"won": rename_all(f"{self._rendezvous.path}/{name}", "peer")}

    def _create(self, name: str) -> dict[str, Any]:
        self._await_start(name)
        return {"won": create_all(f"{self._rendezvous.path}/{name}")}

    def _await_start(self, race: str) -> None:
        self._rendezvous.send(f"ready-{race}", {})
        self._rendezvous.receive(f"start-{race}", "the start of a race")

    def _make(self, name: str) -> dict[str, Any]:
        files.create(f"{self._rendezvous.path}/{name}", [b"x"])
        return {}

    def _remove(self, name: str) -> dict[str, Any]:
        return {"removed": files.remove(f"{self._rendezvous.path}/{name}")}

    def _touch(self, name: str) -> dict[str, Any]:
        files.touch(f"{self._rendezvous.path}/{name}")
        return {}

    def _lock(self, name: str) -> dict[str, Any]:
        path = f"{self._rendezvous.path}/{name}"
        self._lock_holder = subprocess.Popen(
            python_module("spoolpool.maintenance.doctor_peer", path),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._lock_holder.stdout is not None
        return {"lock": self._lock_holder.stdout.readline().decode().strip()}

    def _kill(self, _name: str) -> dict[str, Any]:
        self._end_lock_holder()
        return {}

    def _end_lock_holder(self) -> None:
        if self._lock_holder is not None:
            self._lock_holder.kill()
            self._lock_holder.communicate()
            self._lock_holder = None


def hold_lock(path: str) -> None:
    """Lock a file, print the result, and keep the lock until standard input ends."""
    fd = files.open_file(path, write=True)
    print(try_lock(fd).value, flush=True)  # noqa: T201  the parent reads it
    sys.stdin.read()


def rename_all(directory: str, side: str) -> int:
    """Rename every file of a race to a name of this side; return the number of successes, true or reported."""
    won = set()
    for number in range(RACE_FILES):
        with contextlib.suppress(OSError):
            files.move(f"{directory}/{number}", f"{directory}/{number}.{side}")
            won.add(f"{number}.{side}")
    # a repeated request returns an error for a rename that succeeded: the new name counts too
    return len(won.union(name for name in files.list_names(directory) if name.endswith(f".{side}")))


def create_all(directory: str) -> int:
    """Create every file of a race; return the number of successes."""
    won = 0
    for number in range(RACE_FILES):
        try:
            files.create(f"{directory}/{number}", [])
            won += 1
        except OSError as error:
            if error.errno not in _LOST:  # else the other side was first
                raise
    return won


def find_peer(directory: str, *, timeout: float = TIMEOUT) -> Rendezvous | None:
    """Return the rendezvous of a peer that a user started for this directory, on any host; None if there is none.

    A rendezvous of a dead process of this host is removed.
    """
    parent = _parent(directory)
    found = []
    for name in sorted(filter(is_rendezvous, files.list_names(parent))):
        with contextlib.suppress(NotTrusted, FileNotFoundError):  # of another account; or it is just being removed
            rendezvous = Rendezvous(f"{parent}/{name}", timeout=timeout)
            creator = rendezvous.creator()
            if creator is not None and creator.is_provably_dead():
                rendezvous.remove()
            elif files.exists(f"{rendezvous.path}/peer"):
                found.append(rendezvous)
    for rendezvous in found:
        try:
            files.move(f"{rendezvous.path}/peer", f"{rendezvous.path}/taken")
        except OSError as error:
            if error.errno not in files.GONE:  # else another doctor was first
                raise
        else:
            return rendezvous
    return None


def start_peer(rendezvous: Rendezvous) -> subprocess.Popen[bytes]:
    """Start a peer on this host."""
    command = python_module("spoolpool.maintenance.doctor_peer", "--peer", rendezvous.path)
    return subprocess.Popen(command, stdin=subprocess.DEVNULL)


def _parent(directory: str) -> str:
    is_spool = os.path.lexists(f"{directory}/spool.json") and os.path.isdir(f"{directory}/tmp")
    return f"{directory}/tmp" if is_spool else directory


def seconds_until(
    condition: Callable[[], bool], timeout: float, is_alive: Callable[[], bool] = lambda: True
) -> float | None:
    """Wait for a condition; return the seconds, or None after the timeout or the end of the other side."""
    begin = time.monotonic()
    backoff = Backoff(0.0005, 0.05)
    while not condition():
        if time.monotonic() - begin > timeout:
            return None
        if not is_alive():  # it may have met the condition between the check and its end
            return time.monotonic() - begin if condition() else None
        backoff.sleep()
    return time.monotonic() - begin


if __name__ == "__main__":
    if sys.argv[1] == "--peer":
        Peer(Rendezvous(sys.argv[2])).serve()
    else:
        hold_lock(sys.argv[1])

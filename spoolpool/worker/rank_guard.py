"""Guard of one rank: its parent process, which ends the rank when its group is gone.

The rank may run compiled code that holds Python's global lock for hours, so that no thread of its own can do this. The
guard runs no task. It learns from the rank which group it belongs to, and looks several times per lease for these
reasons to end::

    launcher    the process that started the guard has ended; or the entry of the worker in the spool says that the
                command that started the group has: srun, killed with its child, leaves the ranks running
    owner       the supervisor or executor has ended: on this host by its process, on another one by its heartbeat
    rank 0      ranks of its host look at its process. On each other host the lowest rank looks at its heartbeat in the
                spool, and the other ranks look at the process of that one
    time        the time of the group is up, and the time for its last task

Rank 0 is then asked to stop, releases its task after the grace period, and is killed if it does not. After the end of
rank 0 the other ranks are interrupted as by a cancellation, and killed after the grace period. After its kill of rank 0
the guard releases the task: the death says nothing about the task. Any other death costs the task an attempt, also
after a request to stop.
"""

from __future__ import annotations

import logging
import mmap
import os
import select
import signal
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from spoolpool import settings
from spoolpool.calls.interruption import ABANDON
from spoolpool.format.names import parse_task_file
from spoolpool.protocol.claim import ASKED_TO_END, WALLTIME_ENDED
from spoolpool.protocol.lost_attempts import EXIT
from spoolpool.system import files, records
from spoolpool.system.backoff import Backoff
from spoolpool.system.locks import Lock, try_lock
from spoolpool.system.processes import ProcessId
from spoolpool.system.stop_request import FORWARDED, HURRY

log = logging.getLogger(__name__)

_LOOKS = 6  # looks at the other processes in each lease
_LONGEST = 5.0  # seconds between two of them, at most: they cost a few system calls
_KILL_SECONDS = 1.0  # for a rank that was told to end at once; Flux kills it a little later, and its guard
_AFTER_RANK_0 = 5.0  # for the release of the task by rank 0 or its guard, before its other ranks are killed
_NO_RANK_0, _TIME_IS_UP = "rank 0, or the rank of this host that watches it, has ended", "its time is up"
_NO_OWNER = "the supervisor or executor that it works for has ended"
_STOP, _HURRY = b"stop", b"hurry"
_COUNT = struct.Struct("=q")  # tasks of a rank that is to be started again, plus one


@dataclass(frozen=True, kw_only=True)
class GuardOptions:
    """Conditions under which a guard ends its rank; times are in seconds."""

    owner: ProcessId | None = None
    """Process for which the group works."""
    grace: float = settings.GRACE
    """Time for a call to end after its interruption."""
    drain: float | None = None
    """Time for the running task after a request to stop; None if it may take as long as it needs."""
    max_time: float | None = None
    """Time after which the group begins no more tasks."""
    start_again: Callable[[int], None] | None = None
    """Function that executes the command of this process again, after a number of tasks."""


class Membership(msgspec.Struct, frozen=True, kw_only=True):
    """Place of a rank in its group, as the rank tells its guard."""

    rank: int
    """Number of the rank in its group."""
    worker: str
    """Id of the worker."""
    lease: float
    """Lease of the spool in seconds."""
    entry: str = ""
    """Directory of the worker's entry, with the heartbeat of rank 0."""
    claimed: str = ""
    """Directory of the claims."""
    leader: ProcessId | None = None
    """Lowest rank of the group on this host; None if it is this one."""
    owner_entry: str = ""
    """Directory of the entry with the heartbeat of the owner, if its launcher reaches other hosts."""


_decoder = msgspec.json.Decoder(Membership)


class _Step(NamedTuple):
    """Signal that is due at a time of the monotonic clock."""

    due: float
    number: int


class HeartbeatObserver:
    """Observer of the heartbeat of rank 0, from another host; also of that of the owner of its group.

    By the rules of recovery rank 0 is dead if its heartbeat did not change for a lease while it was watched, unless it
    holds the lock of a claim; then after ten leases. A spool that cannot be read says nothing about rank 0.
    """

    def __init__(self, member: Membership) -> None:
        self._member = member
        self._stamp: int | None = None
        self._silence = 0.0
        self._looked = time.monotonic()
        self.is_gone = False
        """Whether rank 0 is dead."""

    def run(self) -> None:
        """Look until rank 0 is dead. In a thread of its own: while the server is away, a look does not return."""
        interval = self._member.lease / _LOOKS
        backoff = Backoff(interval, interval)
        while not self.is_gone:
            backoff.sleep()
            self.look()

    def look(self) -> None:
        """Look at the heartbeat once."""
        lease, now = self._member.lease, time.monotonic()
        # this process may have been stopped together with rank 0
        passed, self._looked = min(now - self._looked, lease / 3), now
        try:
            stamp = files.mtime_ns(f"{self._member.entry}/beat")
            if stamp is None and not files.exists(os.path.dirname(self._member.entry)):
                return
            self._silence = self._silence + passed if stamp == self._stamp else 0.0
            self._stamp = stamp
            if self._silence >= lease:
                self.is_gone = self._silence >= settings.GONE_LEASES * lease or not self._holds_lock()
        except OSError as error:
            log.info("The heartbeat of rank 0 or of the owner cannot be read now: %s", error)

    def _holds_lock(self) -> bool:
        """Return whether a claim of the worker is locked."""
        for name in files.list_names(self._member.claimed):
            task_file = parse_task_file(name)
            if task_file is not None and task_file.worker == self._member.worker:
                path = f"{self._member.claimed}/{name}"
                try:
                    fd = files.open_file(path, write=True)
                except PermissionError:  # of another account, in a shared spool
                    fd = files.open_file(path)
                except OSError as error:
                    if error.errno in files.GONE:  # its task has ended
                        continue
                    raise
                try:
                    if try_lock(fd) is Lock.BUSY:
                        return True
                finally:
                    files.close(fd)
        return False


class OwnerObserver:
    """Observer of the owner of a group, and of the command that started the group, by their files in the spool.

    From rank 0. An owner on this host is not observed here: its process is.
    """

    def __init__(self, member: Membership, owner: ProcessId | None) -> None:
        self._member = member
        self._owner = None
        if owner is None or not owner.is_near():
            entry = member.owner_entry
            self._owner = HeartbeatObserver(
                msgspec.structs.replace(member, entry=entry, worker=os.path.basename(entry))
            )
        self.found = ""
        """Reason to end the group; empty as long as there is none."""

    def run(self) -> None:
        """Look until there is a reason. In a thread of its own: while the server is away, a look does not return."""
        interval = self._member.lease / _LOOKS
        backoff = Backoff(interval, interval)
        while not self.found:
            backoff.sleep()
            self.look()

    def look(self) -> None:
        """Look at the files once."""
        try:
            if self._is_launcher_gone():
                self.found = "the command that started its group has ended"
        except OSError as error:
            log.info("The entry of this worker cannot be read now: %s", error)
        if self._owner is not None:
            self._owner.look()
            if self._owner.is_gone:
                self.found = _NO_OWNER

    def _is_launcher_gone(self) -> bool:
        """Return whether the supervisor has recorded how the command ended. Other accounts cannot."""
        entry = self._member.entry
        # listed, not looked up: a client of NFS may repeat for long that a name does not exist
        if EXIT not in files.list_names(entry):
            return False
        return files.owner(f"{entry}/{EXIT}") == files.owner(entry)


class RankGuard:
    """Guard in the parent process; in the rank, the way to it."""

    def __init__(self, options: GuardOptions) -> None:
        self._options = options
        self._reading, self._writing = os.pipe()
        self._began = time.monotonic()
        self._leader: ProcessId | None = None
        self._member: Membership | None = None
        self._observer: HeartbeatObserver | None = None
        self._owner_observer: OwnerObserver | None = None
        self._steps: list[_Step] = []
        self._reason = ""
        self._requested = False
        self._has_killed = False
        self._tasks = mmap.mmap(-1, _COUNT.size)  # shared with the rank; no task can close it

    # -- in the rank

    def request_start(self, done: int) -> None:
        """Request that the guard starts a worker of one rank again when this process ends, after so many tasks."""
        _COUNT.pack_into(self._tasks, 0, done + 1)

    def share(self, node: Any) -> None:
        """Determine the lowest rank of this host. All ranks of a host call this, with their communicator."""
        leader = node.bcast(ProcessId.of(os.getpid()))
        self._leader = leader if node.Get_rank() else None

    def join(self, member: Membership) -> None:
        """Tell the guard the place of this rank in its group."""
        member = msgspec.structs.replace(member, leader=self._leader)
        os.write(self._writing, msgspec.json.encode(member) + b"\n")
        os.close(self._writing)
        os.close(self._reading)

    @staticmethod
    def leave() -> None:
        """Ignore the signals of the guard from now on, since the work of this rank has ended; it may still kill it.

        The interpreter removes all handlers early in its shutdown. Without this call, a signal that arrives after that
        would end the process with an error, for example when rank 0 has ended a moment earlier.
        """
        for number in (ABANDON, FORWARDED, HURRY):
            signal.signal(number, signal.SIG_IGN)

    # -- in the parent process

    def ended_worker(self, status: int) -> str:
        """Return the id of the worker whose rank 0 has ended so, if the death says nothing about its task; else "".

        That is so if the guard has killed it. A launcher that ends at the same time may have killed it before.
        """
        if self._member is None or self._member.rank or status != -signal.SIGKILL:
            return ""
        return self._member.worker if self._has_killed or self._reason else ""

    @property
    def why_released(self) -> tuple[str, float | None]:
        """Reason to release the task of :attr:`ended_worker`, and the seconds since its walltime if that is it."""
        over = None if self._options.max_time is None else time.monotonic() - self._began - self._options.max_time
        if over is not None and over > 0.0:
            return WALLTIME_ENDED, over
        return self._reason or ASKED_TO_END, None

    def start_again(self, status: int) -> int:
        """Start the rank again if it has requested that; otherwise return the status with which to end.

        The status alone says nothing: a function of a task can end the rank with any.
        """
        (count,) = _COUNT.unpack_from(self._tasks)
        if status != settings.EXIT_RENEW or not count or self._options.start_again is None:
            return status
        if self._requested or self._reason:
            return 0
        self._options.start_again(count - 1)
        return status

    def record_request(self, *, hurry: bool) -> None:
        """Record a signal that requests a stop, from a signal handler."""
        self._requested = True
        os.write(self._writing, (_HURRY if hurry else _STOP) + b"\n")

    def watch(self, send: Callable[[int], None]) -> None:
        """Watch the group, and end the rank by ``send`` when there is a reason."""
        launcher = os.getppid()
        while True:
            if select.select([self._reading], [], [], self._pause())[0]:
                for line in os.read(self._reading, 65536).splitlines():
                    self._take(line)
            reason = self._why_end(launcher) if self._reason != _NO_RANK_0 else ""
            if reason and (not self._reason or reason == _NO_RANK_0):
                self._reason = reason
                log.warning("This rank is to end: %s.", reason)
                self._plan_end()
            for step in [each for each in self._steps if each.due <= time.monotonic()]:
                self._steps.remove(step)
                self._has_killed = self._has_killed or step.number == signal.SIGKILL
                send(step.number)

    def _pause(self) -> float:
        """Return the seconds until the next look or the next step."""
        now = time.monotonic()
        lease = settings.LEASE if self._member is None else self._member.lease
        return max(0.0, min([min(_LONGEST, lease / _LOOKS), *(step.due - now for step in self._steps)]))

    def _take(self, line: bytes) -> None:
        if line == _HURRY:
            self._add_step(_KILL_SECONDS, signal.SIGKILL)
        elif line != _STOP:
            self._member = member = records.decode(_decoder, line, "the membership of a rank")
            if member.rank and not (member.leader is not None and member.leader.is_near()):
                self._observer = HeartbeatObserver(member)
                threading.Thread(target=self._observer.run, name="spoolpool-observer", daemon=True).start()
            elif not member.rank and member.owner_entry:
                self._owner_observer = OwnerObserver(member, self._options.owner)
                threading.Thread(target=self._owner_observer.run, name="spoolpool-observer", daemon=True).start()
        elif self._member is not None and not self._member.rank and self._options.drain is not None:
            # it releases its task by itself, unless compiled code holds the global lock
            self._add_step(self._options.drain + _KILL_SECONDS, signal.SIGKILL)

    def _add_step(self, seconds: float, number: int) -> None:
        self._steps.append(_Step(time.monotonic() + seconds, number))

    def _why_end(self, launcher: int) -> str:
        """Return the reason to end the rank; empty if there is none."""
        options, member = self._options, self._member
        if member is not None and member.rank and self._is_rank_0_gone(member):
            return _NO_RANK_0
        if os.getppid() != launcher:
            return "the process that started it has ended"
        if options.owner is not None and options.owner.is_provably_dead():
            return _NO_OWNER
        if self._owner_observer is not None and self._owner_observer.found:
            return self._owner_observer.found
        if options.max_time is not None:
            limit = options.max_time + (options.drain or 0.0)
            if time.monotonic() - self._began > limit:
                return _TIME_IS_UP
        return ""

    def _is_rank_0_gone(self, member: Membership) -> bool:
        if member.leader is not None and member.leader.is_provably_dead():
            return True
        return self._observer is not None and self._observer.is_gone

    def _plan_end(self) -> None:
        grace = self._options.grace
        if self._member is None:  # it is starting, and has no task
            self._add_step(0.0, signal.SIGKILL)
        elif not self._member.rank:
            if self._reason == _TIME_IS_UP:  # rank 0 has released its task, unless compiled code holds the global lock
                grace = 0.0
            else:
                self._add_step(0.0, FORWARDED)
            self._add_step(grace, HURRY)
            self._add_step(grace + _KILL_SECONDS, signal.SIGKILL)
        elif self._reason == _NO_RANK_0:
            self._add_step(0.0, ABANDON)
            self._add_step(grace, signal.SIGKILL)
        else:  # an interruption would be the outcome of the task, and a kill before rank 0 ends costs it an attempt
            self._add_step(grace + _AFTER_RANK_0, signal.SIGKILL)

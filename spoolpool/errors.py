"""Exceptions of spoolpool. The docstring of each class is its meaning to a user.

A message contains the action, the path, the finding and the remedy. All exceptions survive a pickle round trip, since
they may be the outcome of a task. ``exit_code`` is the exit code of a command that ends with the exception.
"""

from __future__ import annotations

import os
import pickle
import re
import signal
from collections.abc import Iterable
from concurrent.futures import BrokenExecutor
from typing import Any, ClassVar, NamedTuple


class RemoteTraceback(Exception):
    """Traceback on the worker; it is the cause of an exception that a task raised."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return self.text


_OPEN_DIRECTORY = re.compile(r"/proc/self/fd/\d+")


def _path_of(descriptor: re.Match[str]) -> str:
    try:
        return os.readlink(descriptor[0])
    except OSError:  # closed by now
        return descriptor[0]


class SpoolpoolError(Exception):
    """Base class of the errors that spoolpool detects, and the class of those without a class of their own.

    A path in the message that leads through an open directory is replaced by the path of that directory.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*(_OPEN_DIRECTORY.sub(_path_of, each) if isinstance(each, str) else each for each in args))


class NotASpool(SpoolpoolError):
    """The directory is not a spool, does not exist, or is not visible from this host."""

    exit_code = 3


class SpoolVersion(SpoolpoolError):
    """The spool was made by a newer version of spoolpool with another format on disk."""

    exit_code = 4


class SpoolDenied(SpoolpoolError):
    """The account has no permission for the operation in this spool."""

    exit_code = 5


class SpoolFull(SpoolpoolError):
    """The filesystem of the spool has no space, inodes or quota left."""

    exit_code = 6


class BadTaskFile(SpoolpoolError):
    """A file in the spool is torn, foreign, or of a newer version."""

    exit_code = 7


class NotTrusted(SpoolpoolError):
    """A file belongs to an untrusted account or has a wrong signature, or other accounts can change directories.

    Nothing was unpickled.
    """

    exit_code = 8


class BadRequest(SpoolpoolError, ValueError):
    """An argument is invalid, or a task requests resources that do not exist."""

    exit_code = 9


class NotPicklable(SpoolpoolError, pickle.PicklingError):
    """A function, an argument or a result cannot be pickled."""

    exit_code = 10


class NotUnpicklable(SpoolpoolError, pickle.UnpicklingError):
    """A call or a result cannot be unpickled here, for instance because a package is missing."""

    exit_code = 11


class LostAttempt(NamedTuple):
    """An attempt of a task that ended with the death of its worker; what is not known has its default."""

    attempt: int
    """Number of the attempt, from 1."""
    worker: str = ""
    """Id of the worker."""
    host: str = ""
    """Host of the rank that died first, or of rank 0 if that rank is not known."""
    pid: int = 0
    """Process of rank 0."""
    job: str = ""
    """Batch job of the worker."""
    rank: int | None = None
    """Rank that died first."""
    status: int | None = None
    """How that rank ended: its exit status, or the negative number of a signal."""
    launcher: str = ""
    """Launcher whose command ended with :attr:`status`, where that of the rank is not known."""
    last_heartbeat: float = 0.0
    """Seconds since the epoch, by the clock of the spool's filesystem."""
    stack: str = ""
    """Stack that Python's faulthandler wrote at the end, at most 8 KiB."""

    @property
    def signal(self) -> str:
        """Name of the signal that killed the rank, or the launcher's command: ``"SIGKILL"``; empty if none did."""
        return "" if self.status is None or self.status >= 0 else signal_name(-self.status)

    @property
    def exit_status(self) -> int | None:
        """Exit status of the rank, or of the launcher's command; None if it is not known, or a signal ended it."""
        return None if self.status is None or self.status < 0 else self.status


class WorkerLost(SpoolpoolError):
    """The workers of a task died in all its attempts."""

    exit_code = 12

    def __init__(self, message: str = "", attempts: Iterable[Iterable[Any]] = ()) -> None:
        super().__init__(message)
        self.attempts = tuple(LostAttempt(*each) for each in attempts)
        """The attempts that ended with the death of a worker, in their order."""

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the attempts as plain tuples, so that the pickle names no further class."""
        others = {name: value for name, value in vars(self).items() if name != "attempts"}
        return type(self), (*self.args, tuple(map(tuple, self.attempts))), others or None

    @property
    def last(self) -> LostAttempt:
        """The last attempt; without any known field if no record of it is left."""
        return self.attempts[-1] if self.attempts else LostAttempt(0)


class WalltimeTooShort(WorkerLost):
    """A task was given back at the end of a walltime as often as it has attempts: no group had enough time for it."""

    exit_code = 23


class TaskFailed(SpoolpoolError):
    """A task raised an exception of a class that cannot be pickled or loaded; the message has its type and text."""

    exit_code = 13


class DependencyFailed(SpoolpoolError):
    """A task was not run because a task that it depends on failed; the cause is the exception of that task."""

    exit_code = 21

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the cause, and the remote traceback that is the cause's cause."""
        cause = self.__cause__
        return type(self), self.args, (cause, None if cause is None else cause.__cause__)

    def __setstate__(self, state: tuple[BaseException | None, BaseException | None]) -> None:  # type: ignore[override]
        """Restore the cause and its remote traceback."""
        cause, before = state
        if cause is not None:
            cause.__cause__ = before
        self.__cause__ = cause


class NobodyServes(SpoolpoolError):
    """No live worker group can run the task, for the reason in the message."""

    exit_code = 14


class LauncherError(SpoolpoolError):
    """A worker group cannot be started: the launcher is missing, or the ranks do not connect to each other."""

    exit_code = 15


class BrokenSpool(SpoolpoolError, BrokenExecutor):
    """Pending futures get no result: worker groups cannot start, the collecting thread ended, or the spool is gone.

    It was removed, moved, or replaced by another spool.
    """

    exit_code = 16


class TaskTimeout(SpoolpoolError, TimeoutError):
    """A time limit was exceeded, such as the ``time_limit`` of a task."""

    exit_code = 17


class TaskCancelled(KeyboardInterrupt):
    """Raised in a running function when its task is cancelled. Do not suppress it, like ``KeyboardInterrupt``."""


class NoKey(NotTrusted):
    """The key of a signed spool is missing here, may be known to other accounts, or did not sign a file."""

    exit_code = 18


class BadNode(SpoolpoolError):
    """Every worker group on a node died, so that no more are started there."""

    exit_code = 19


class TooManyWaiting(SpoolpoolError):
    """The user's limit of queued tasks in the spool is reached."""

    exit_code = 20


class TaskVanished(SpoolpoolError):
    """The file of a task is in no directory of the spool any more: a purge of old files, or a person, removed it."""

    exit_code = 22


def signal_name(number: int) -> str:
    """Return the name of a signal, such as ``SIGKILL``; for a number without a name, ``signal NUMBER``."""
    try:
        return signal.Signals(number).name
    except ValueError:
        first = int(signal.SIGRTMIN)
        return f"SIGRTMIN+{number - first}" if first < number <= signal.SIGRTMAX else f"signal {number}"

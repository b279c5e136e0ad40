"""Everything that goes wrong has a class here; the docstring is its meaning to a user.

Each message says what was being done, to which path, what was found, and what to do. All errors
survive a pickle round trip, since they may travel through a spool as somebody's result.
"""

from __future__ import annotations

import pickle
from concurrent.futures import BrokenExecutor
from typing import ClassVar


class RemoteTraceback(Exception):
    """The traceback on the worker's side; the cause of an exception that came back from a task."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return self.text


class SpoolpoolError(Exception):
    """Something that spoolpool can explain went wrong."""

    exit_code: ClassVar[int] = 1


class NotASpool(SpoolpoolError):
    """The directory is not a spool, or is not there, or cannot be seen from this host."""

    exit_code = 3


class SpoolVersion(SpoolpoolError):
    """The spool was made by a newer spoolpool with another layout on disk."""

    exit_code = 4


class SpoolDenied(SpoolpoolError):
    """The account may not do in this spool what was asked for."""

    exit_code = 5


class SpoolFull(SpoolpoolError):
    """The filesystem of the spool has no space, no inodes or no quota left."""

    exit_code = 6


class BadTaskFile(SpoolpoolError):
    """A file in the spool is torn, foreign, or written by a newer version."""

    exit_code = 7


class NotTrusted(SpoolpoolError):
    """A file is of an account that is not trusted, or its signature is wrong, or others can change directories.

    Nothing of it was unpickled.
    """

    exit_code = 8


class BadRequest(SpoolpoolError, ValueError):
    """A task asks for something that does not exist or makes no sense."""

    exit_code = 9


class NotPicklable(SpoolpoolError, pickle.PicklingError):
    """A function, an argument or a result cannot be turned into bytes."""

    exit_code = 10


class NotUnpicklable(SpoolpoolError, pickle.UnpicklingError):
    """Bytes from the other side cannot be turned into an object here, as when a package is missing."""

    exit_code = 11


class WorkerLost(SpoolpoolError):
    """The worker of a task died each time that the task was claimed, until its attempts were used up."""

    exit_code = 12


class TaskFailed(SpoolpoolError):
    """A task raised an exception that cannot travel; its type, text and traceback are in the message."""

    exit_code = 13


class DependencyFailed(SpoolpoolError):
    """A task was not run, since another one whose result it needs failed; the cause is that one's exception."""

    exit_code = 21

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the cause, and the remote traceback that is the cause's cause."""
        cause = self.__cause__
        return type(self), self.args, (cause, None if cause is None else cause.__cause__)

    def __setstate__(self, state: tuple[BaseException | None, BaseException | None]) -> None:  # type: ignore[override]
        """Restore both causes."""
        cause, before = state
        if cause is not None:
            cause.__cause__ = before
        self.__cause__ = cause


class NobodyServes(SpoolpoolError):
    """No live worker group can run the task, and the message says why."""

    exit_code = 14


class LauncherError(SpoolpoolError):
    """A worker group cannot be started: the launcher is missing, or its ranks do not find each other."""

    exit_code = 15


class BrokenSpool(SpoolpoolError, BrokenExecutor):
    """The worker groups or the thread that collects results ended, so that nothing can be awaited."""

    exit_code = 16


class TaskTimeout(SpoolpoolError, TimeoutError):
    """Something that was given a limited time did not happen within it; a task: its ``time_limit``."""

    exit_code = 17


class TaskCancelled(KeyboardInterrupt):
    """Raised in a function that runs, when its task is cancelled: let it pass, as one does with Ctrl-C."""


class NoKey(NotTrusted):
    """The key of a signed spool is not here, may be known to others, or is not the one with which a file was signed."""

    exit_code = 18


class BadNode(SpoolpoolError):
    """Every worker group that was started on a node died, so that none is started there any more."""

    exit_code = 19


class TooManyWaiting(SpoolpoolError):
    """As many tasks of this user wait in the spool as may."""

    exit_code = 20

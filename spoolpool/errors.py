"""Exceptions of spoolpool. The docstring of each class is its meaning to a user, with a paragraph about the remedy.

The page for troubleshooting is made from these docstrings and from the messages in the source.

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
    """Traceback on the worker; it is the cause of an exception that a task raised.

    Remedy: read its last lines. They name the line of your function, and the rank and host of the worker.
    """

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

    Remedy: follow the message. It has the action, the path, the finding and the remedy.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*(_OPEN_DIRECTORY.sub(_path_of, each) if isinstance(each, str) else each for each in args))


class NotASpool(SpoolpoolError):
    """The directory is not a spool, does not exist, or is not visible from this host.

    Remedy: check the path and the mount on this host (``ls PATH/spool.json``). A new spool is made by ``spool init
    PATH``.
    """

    exit_code = 3


class SpoolVersion(SpoolpoolError):
    """The spool was made by a newer version of spoolpool with another format on disk.

    Remedy: install that version here, or use a spool of this version. Compare ``spool --version`` on both hosts.
    """

    exit_code = 4


class SpoolDenied(SpoolpoolError):
    """The account has no permission for the operation in this spool.

    Remedy: ask the owner of the spool for the permission, or use a spool of your own. ``ls -ld PATH`` shows owner,
    group and mode.
    """

    exit_code = 5


class SpoolFull(SpoolpoolError):
    """The filesystem of the spool has no space, inodes or quota left.

    Remedy: free space, inodes or quota, and submit again. ``spool gc PATH`` removes expired results, logs and journals.
    If a future has this error, the task ran and its result could not be stored.
    """

    exit_code = 6


class BadTaskFile(SpoolpoolError):
    """A file in the spool is torn, foreign, or of a newer version.

    Remedy: look at the file in the message; ``spool check PATH`` lists further ones. The file was left, or moved to
    ``failed/``. Submit the task again.
    """

    exit_code = 7


class NotTrusted(SpoolpoolError):
    """A file belongs to an untrusted account or has a wrong signature, or other accounts can change directories.

    Nothing was unpickled.

    Remedy: find the account that wrote the file. Name it only if it may run code as you: ``trust=``, ``--trust-user``
    or ``--trust-group``. If a directory is writable for others, remove that right (``chmod go-w``).
    """

    exit_code = 8


class BadRequest(SpoolpoolError, ValueError):
    """An argument is invalid, or a task requests resources that do not exist.

    Remedy: correct the value in the message. The message lists the valid values or their form.
    """

    exit_code = 9


class NotPicklable(SpoolpoolError, pickle.PicklingError):
    """A function, an argument or a result cannot be pickled.

    Remedy: create the object inside the function, or pass the values from which it is made. Locks, open files,
    connections and generators cannot be pickled.
    """

    exit_code = 10


class NotUnpicklable(SpoolpoolError, pickle.UnpicklingError):
    """A call or a result cannot be unpickled here, for instance because a package is missing.

    Remedy: install the package in the environment of the worker, in the same version. ``resource_dict={"packages":
    [...]}`` selects workers that have it.
    """

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
    """The workers of a task died in all its attempts.

    Remedy: look at the end of each attempt in the message: SIGKILL is often a lack of memory, SIGSEGV a crash in
    compiled code. ``spool logs PATH TASK`` shows the output. The task is kept: ``spool retry PATH TASK`` runs it again.
    """

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
    """A task was given back at the end of a walltime as often as it has attempts: no group had enough time for it.

    Remedy: start groups in jobs with a longer walltime, give the call a ``time_limit``, or save partial results before
    ``current_task().remaining()`` is zero. ``spool retry PATH TASK`` runs the task again.
    """

    exit_code = 23


class TaskFailed(SpoolpoolError):
    """A task raised an exception of a class that cannot be pickled or loaded; the message has its type and text.

    Remedy: read the cause of this exception, which has the traceback of the worker. Define the class in an installed
    module for the exception itself.
    """

    exit_code = 13


class DependencyFailed(SpoolpoolError):
    """A task was not run because a task that it depends on failed; the cause is the exception of that task.

    Remedy: repair the cause, and submit the failed task and its dependents again.
    """

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
    """No live worker group can run the task, for the reason in the message.

    Remedy: start groups with the ranks, threads, GPUs, queue and version of Python in the message. ``spool status
    PATH`` shows the groups and the waiting tasks.
    """

    exit_code = 14


class LauncherError(SpoolpoolError):
    """A worker group cannot be started: the launcher is missing, or the ranks do not connect to each other.

    Remedy: install or load the launcher (``module load``), or choose another one with ``--launcher``. For ranks that do
    not connect, the MPI of mpi4py and of the launcher must be the same; with srun, set ``--mpi=``.
    """

    exit_code = 15


class BrokenSpool(SpoolpoolError, BrokenExecutor):
    """Pending futures get no result: worker groups cannot start, the collecting thread ended, or the spool is gone.

    It was removed, moved, or replaced by another spool.

    Remedy: remove the cause in the message, and create a new executor. Tasks in a spool that was moved are complete:
    move it back. With a named session, a new executor gets the futures again.
    """

    exit_code = 16


class TaskTimeout(SpoolpoolError, TimeoutError):
    """A time limit was exceeded, such as the ``time_limit`` of a task.

    Remedy: set a longer limit, or catch ``TaskTimeout`` in the function and return a partial result.
    """

    exit_code = 17


class TaskCancelled(KeyboardInterrupt):
    """Raised in a running function when its task is cancelled. Do not suppress it, like ``KeyboardInterrupt``.

    Remedy: none is needed. A function may catch it for its own cleanup, and must raise it again.
    """


class NoKey(NotTrusted):
    """The key of a signed spool is missing here, may be known to other accounts, or did not sign a file.

    Remedy: copy the key file of another user of the spool, and give it mode 0600. After ``spool key rotate`` every user
    needs the new file.
    """

    exit_code = 18


class BadNode(SpoolpoolError):
    """Every worker group on a node died, so that no more are started there.

    Remedy: look at the output of the groups above the message, and at the node: memory, GPUs, mounts. Report it to the
    user support, and exclude the node from the next job.
    """

    exit_code = 19


class TooManyWaiting(SpoolpoolError):
    """The user's limit of queued tasks in the spool is reached.

    Remedy: wait until tasks have begun: ``Submission(wait_for_room=True)``. Or cancel tasks with ``spool cancel``, or
    ask the owner of the spool for a higher limit.
    """

    exit_code = 20


class TaskVanished(SpoolpoolError):
    """The file of a task is in no directory of the spool any more: a purge of old files, or a person, removed it.

    Remedy: submit the task again. Move the spool to a filesystem without automatic purge of old files.
    """

    exit_code = 22


def signal_name(number: int) -> str:
    """Return the name of a signal, such as ``SIGKILL``; for a number without a name, ``signal NUMBER``."""
    try:
        return signal.Signals(number).name
    except ValueError:
        first = int(signal.SIGRTMIN)
        return f"SIGRTMIN+{number - first}" if first < number <= signal.SIGRTMAX else f"signal {number}"

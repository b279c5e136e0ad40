"""A claimed task: its outcome is written and committed, or it is given back. A worker's side of the protocol.

The task file is a token that is only ever renamed; where it stands is the state. ``docs/protocol.md``
has the rules with their reasons; each function here is one of them.
"""

from __future__ import annotations

import logging
import os

from spoolpool.errors import BadTaskFile, NoKey, SpoolDenied, SpoolpoolError
from spoolpool.format.envelope import Buffer, Envelope
from spoolpool.format.headers import TaskHeader
from spoolpool.format.names import TaskFile, parse_task_file
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.tasks import read_owned_task
from spoolpool.security.signing import outcome_label
from spoolpool.system import files
from spoolpool.system.backoff import Backoff

log = logging.getLogger(__name__)


class Claim:
    """A task in this worker's hands, with the lock that witnesses that the worker lives."""

    def __init__(self, task_file: TaskFile, header: TaskHeader, content: Envelope, fd: int, owner: int) -> None:
        self.task_file = task_file
        self.header = header
        self.content = content
        self.owner = owner
        """Account to which the task's file belongs."""
        self._fd = fd

    def release(self) -> None:
        """Give the lock back; harmless when repeated."""
        if self._fd >= 0:
            files.close(self._fd)
            self._fd = -1


def write_outcome(
    spool: Spool, session: str, task_file: TaskFile, parts: list[Buffer], owner: int | None = None
) -> None:
    """Make the outcome of a claim. Its name is this claim's alone, so it is made in place.

    ``owner`` is the account of the task's file, whose the session must be; a shared spool needs it. Raises
    ``FileExistsError`` where another rank of the group made it, and ``OSError`` otherwise, after which nothing of it is
    left.
    """
    name = task_file.name
    label = outcome_label(session, name)
    try:
        spool.write(f"{spool.outgoing(session, owner)}/{name}", label, parts, spool.rights.outcome)
    except FileNotFoundError:  # the session's directory is not there: it was closed, or never opened
        open_again(spool, f"{spool.layout.outgoing}/{session}")
        spool.write(f"{spool.outgoing(session, owner)}/{name}", label, parts, spool.rights.outcome)


def open_again(spool: Spool, path: str) -> None:
    """Have the directory of a session again that is gone; in a shared spool its owner alone can make it."""
    if spool.shared:
        spool.let_go(path)
    else:
        spool.make_directories(path)


def has_outcome(
    spool: Spool, session: str, task_file: TaskFile, owner: int | None = None, writer: int | None = None
) -> bool:
    """Whether the outcome of a claim was written to its end, so that nothing but the commit is missing.

    In a shared spool it must be ``writer``'s, that of the claim's worker: another's was put there by somebody else. In
    a signed one it must be signed as well; raises :class:`NoKey` where that cannot be told here.
    """
    path = spool.layout.outcome(session, task_file)
    try:
        outgoing = spool.outgoing(session, owner)
        fd = files.open_file(f"{outgoing}/{task_file.name}")
    except OSError as error:
        if error.errno in files.GONE:
            return False
        raise
    try:
        if spool.shared and os.fstat(fd).st_uid != writer:
            log.warning("%s is not of the worker %s: it was left alone.", path, task_file.worker)
            return False
        spool.read(fd, files.size(fd), path, outcome_label(session, task_file.name))
    except NoKey:
        raise
    except SpoolpoolError:  # its worker died while it wrote, or it was forged
        return False
    finally:
        files.close(fd)
    return True


def commit(spool: Spool, session: str, task_file: TaskFile, owner: int | None = None) -> bool:
    """Publish the outcome of a claim: the one rename that decides.

    False where the claim is no longer ours: a recoverer thought us dead. The outcome then must not be
    published; see :meth:`spoolpool.protocol.recovery.Recovery.discard`. ``owner`` as for :func:`write_outcome`.
    """
    name = task_file.name
    source = f"{spool.layout.claimed}/{name}"
    target = f"{spool.layout.results}/{session}/{name}"
    backoff: Backoff | None = None
    denied = 0
    while True:
        try:
            target = f"{spool.results(session, owner)}/{name}"
            files.move(source, target, durability=spool.config.durability)
            return True
        except OSError as error:
            # the order of the two looks matters: the token moves from source to target, never back
            if files.exists(source):
                if error.errno in files.GONE:
                    open_again(spool, f"{spool.layout.results}/{session}")
                denied += error.errno in files.DENIED or (spool.shared and error.errno in files.GONE)
                if denied > 5:
                    raise SpoolDenied(
                        f"Cannot publish the outcome of {task_file.task}: "
                        f"{spool.layout.result(session, task_file)} is refused "
                        f"({error.strerror}). The owner of the session must let workers write there."
                    ) from error
                backoff = backoff or Backoff(0.005, 5.0, 2.0)
                backoff.sleep()
            else:
                return files.exists(target)


def give_back(spool: Spool, header: TaskHeader, task_file: TaskFile) -> None:
    """Let a claimed task wait again, at no cost in attempts."""
    requeue_from(spool, spool.layout.claimed_task(task_file), header, task_file.released())


def requeue(spool: Spool, header: TaskHeader, task_file: TaskFile) -> None:
    """Let the task of a dead worker wait again; it costs an attempt."""
    requeue_from(spool, spool.layout.claimed_task(task_file), header, task_file.requeued())


def retry(spool: Spool, name: str, session: str = "") -> str:
    """Let a task from ``failed/`` wait again, with all its attempts; returns its id.

    With a ``session``, one that was lost with its workers and whose outcome, which goes, is still there. Raises
    :class:`BadTaskFile` where it cannot be read (any more), or is not what its name says.
    """
    parent = f"{spool.layout.results}/{session}" if session else spool.layout.failed
    path = f"{parent}/{name}"
    task_file = parse_task_file(name)
    if task_file is None:
        raise BadTaskFile(f"{path} is not the name of a task. It was left alone.")
    try:
        source = f"{spool.held(parent) if session else parent}/{name}"
        header, owner = read_owned_task(spool, source, task_file)
    except OSError as error:
        raise BadTaskFile(f"{path} cannot be read ({error.strerror}). It was left alone.") from error
    if header.task != task_file.task:
        raise BadTaskFile(f"{path} says that it is task {header.task}. It was left alone.")
    spool.open_session(header.session, owner)
    if not requeue_from(spool, source, header, TaskFile(task_file.task, task_file.claim + 1, 1)):
        raise BadTaskFile(f"{path} is gone: somebody else has taken it.")
    if session:  # it counts no more; were it left, nobody would know to whom it belonged
        files.remove(f"{spool.outgoing(session, owner)}/{name}")
    return task_file.task


def requeue_from(spool: Spool, source: str, header: TaskHeader, ready: TaskFile) -> bool:
    """Rename a task file to its bucket, under a claim number that was never used.

    Whether it waits there now, as far as can be seen. Where it does not, somebody else moved the token, which is
    just as good, or the bucket vanishes as often as it is made; the next round sees what is true.
    """
    path = spool.layout.bucket(header.lane, header.bucket)
    for last in (False, True):
        try:
            bucket = spool.bucket(header.lane, header.bucket)
            files.move(source, f"{bucket}/{ready.name}")
            return True
        except OSError as error:
            # the bucket was removed as empty, or the token was moved: then nobody would remove a new bucket
            if error.errno not in files.GONE:
                raise
            if last or not files.exists(source):
                break
            spool.make_directories(path)
    return files.exists(f"{path}/{ready.name}")

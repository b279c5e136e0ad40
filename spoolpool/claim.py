"""A claimed task: its outcome is written and committed, or it is given back. A worker's side of the protocol.

The task file is a token that is only ever renamed; where it stands is the state. ``docs/protocol.md``
has the rules with their reasons; each function here is one of them.
"""

from __future__ import annotations

import logging
import os

from spoolpool import fsio, layout
from spoolpool.backoff import Backoff
from spoolpool.envelope import Buffer, Envelope
from spoolpool.errors import BadTaskFile, NoKey, SpoolDenied, SpoolpoolError
from spoolpool.layout import Token
from spoolpool.signature import outcome_label, task_label
from spoolpool.spool import Spool
from spoolpool.task import TaskHeader, decode_task
from spoolpool.trust import account

log = logging.getLogger(__name__)


class Claim:
    """A task in this worker's hands, with the lock that witnesses that the worker lives."""

    def __init__(self, token: Token, header: TaskHeader, content: Envelope, fd: int, owner: int) -> None:
        self.token = token
        self.header = header
        self.content = content
        self.owner = owner
        """Account to which the task's file belongs."""
        self._fd = fd

    def release(self) -> None:
        """Give the lock back; harmless when repeated."""
        if self._fd >= 0:
            fsio.close(self._fd)
            self._fd = -1


def write_outcome(spool: Spool, session: str, token: Token, parts: list[Buffer], owner: int | None = None) -> None:
    """Make the outcome of a claim. Its name is this claim's alone, so it is made in place.

    ``owner`` is the account of the task's file, whose the session must be; a shared spool needs it. Raises
    ``FileExistsError`` where another rank of the group made it, and ``OSError`` otherwise, after which nothing of it is
    left.
    """
    name = token.name
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


def has_outcome(spool: Spool, session: str, token: Token, owner: int | None = None, writer: int | None = None) -> bool:
    """Whether the outcome of a claim was written to its end, so that nothing but the commit is missing.

    In a shared spool it must be ``writer``'s, that of the claim's worker: another's was put there by somebody else. In
    a signed one it must be signed as well; raises :class:`NoKey` where that cannot be told here.
    """
    path = spool.layout.outcome(session, token)
    try:
        outgoing = spool.outgoing(session, owner)
        fd = fsio.open_file(f"{outgoing}/{token.name}")
    except OSError as error:
        if error.errno in fsio.GONE:
            return False
        raise
    try:
        if spool.shared and os.fstat(fd).st_uid != writer:
            log.warning("%s is not of the worker %s: it was left alone.", path, token.worker)
            return False
        spool.read(fd, fsio.size(fd), path, outcome_label(session, token.name))
    except NoKey:
        raise
    except SpoolpoolError:  # its worker died while it wrote, or it was forged
        return False
    finally:
        fsio.close(fd)
    return True


def commit(spool: Spool, session: str, token: Token, owner: int | None = None) -> bool:
    """Publish the outcome of a claim: the one rename that decides.

    False where the claim is no longer ours: a recoverer thought us dead. The outcome then must not be
    published; see :meth:`spoolpool.recovery.Recovery.discard`. ``owner`` as for :func:`write_outcome`.
    """
    name = token.name
    source = f"{spool.layout.claimed}/{name}"
    target = f"{spool.layout.results}/{session}/{name}"
    rhythm: Backoff | None = None
    denied = 0
    while True:
        try:
            target = f"{spool.results(session, owner)}/{name}"
            fsio.move(source, target, durability=spool.config.durability)
            return True
        except OSError as error:
            # the order of the two looks matters: the token moves from source to target, never back
            if fsio.there(source):
                if error.errno in fsio.GONE:
                    open_again(spool, f"{spool.layout.results}/{session}")
                denied += error.errno in fsio.DENIED or (spool.shared and error.errno in fsio.GONE)
                if denied > 5:
                    raise SpoolDenied(
                        f"Cannot publish the outcome of {token.task}: {spool.layout.result(session, token)} is refused "
                        f"({error.strerror}). The owner of the session must let workers write there."
                    ) from error
                rhythm = rhythm or Backoff(0.005, 5.0, 2.0)
                rhythm.sleep()
            else:
                return fsio.there(target)


def give_back(spool: Spool, header: TaskHeader, token: Token) -> None:
    """Let a claimed task wait again, at no cost in attempts."""
    requeue_from(spool, spool.layout.claimed_token(token), header, token.given_back())


def requeue(spool: Spool, header: TaskHeader, token: Token) -> None:
    """Let the task of a dead worker wait again; it costs an attempt."""
    requeue_from(spool, spool.layout.claimed_token(token), header, token.requeued())


def retry(spool: Spool, name: str, session: str = "") -> str:
    """Let a task from ``failed/`` wait again, with all its attempts; returns its id.

    With a ``session``, one that was lost with its workers and whose outcome, which goes, is still there. Raises
    :class:`BadTaskFile` where it cannot be read (any more), or is not what its name says.
    """
    parent = f"{spool.layout.results}/{session}" if session else spool.layout.failed
    path = f"{parent}/{name}"
    token = layout.parse_token(name)
    if token is None:
        raise BadTaskFile(f"{path} is not the name of a task. It was left alone.")
    try:
        source = f"{spool.held(parent) if session else parent}/{name}"
        header, owner = read_owned_task(spool, source, token)
    except OSError as error:
        raise BadTaskFile(f"{path} cannot be read ({error.strerror}). It was left alone.") from error
    if header.task != token.task:
        raise BadTaskFile(f"{path} says that it is task {header.task}. It was left alone.")
    spool.open_session(header.session, owner)
    if not requeue_from(spool, source, header, Token(token.task, token.claim + 1, 1)):
        raise BadTaskFile(f"{path} is gone: somebody else has taken it.")
    if session:  # it counts no more; were it left, nobody would know to whom it belonged
        fsio.remove(f"{spool.outgoing(session, owner)}/{name}")
    return token.task


def read_task(spool: Spool, path: str, token: Token) -> TaskHeader:
    """The header of the task file at a path; raises as :func:`read_owned_task`."""
    return read_owned_task(spool, path, token)[0]


def read_owned_task(spool: Spool, path: str, token: Token) -> tuple[TaskHeader, int]:
    """The header of the task file at a path, and the account that owns it.

    Raises ``OSError`` as open(2), and :class:`SpoolpoolError` for what is no task.
    """
    fd = fsio.open_file(path)
    try:
        return read_opened_task(spool, fd, path, token)
    finally:
        fsio.close(fd)


def read_opened_task(spool: Spool, fd: int, path: str, token: Token) -> tuple[TaskHeader, int]:
    """As :func:`read_owned_task`, of a file that is open."""
    status = os.fstat(fd)
    header = decode_task(spool.read_header(fd, status.st_size, path, task_label(token.task)), path)
    lane = layout.parse_lane(header.lane)
    if spool.shared and (lane is None or lane.user != status.st_uid):
        raise BadTaskFile(f"{path} belongs to {account(status.st_uid)}, and says that it is of lane {header.lane}.")
    return header, status.st_uid


def requeue_from(spool: Spool, source: str, header: TaskHeader, ready: Token) -> bool:
    """Rename a task file to its bucket, under a claim number that was never used.

    Whether it waits there now, as far as can be seen. Where it does not, somebody else moved the token, which is
    just as good, or the bucket vanishes as often as it is made; the next round sees what is true.
    """
    path = spool.layout.bucket(header.lane, header.bucket)
    for last in (False, True):
        try:
            bucket = spool.bucket(header.lane, header.bucket)
            fsio.move(source, f"{bucket}/{ready.name}")
            return True
        except OSError as error:
            # the bucket was removed as empty, or the token was moved: then nobody would remove a new bucket
            if error.errno not in fsio.GONE:
                raise
            if last or not fsio.there(source):
                break
            spool.make_directories(path)
    return fsio.there(f"{path}/{ready.name}")

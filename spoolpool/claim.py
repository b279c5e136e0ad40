"""Claim a task, write its outcome, commit it: a worker's side of the protocol.

The task file is a token that is only ever renamed; where it stands is the state. ``docs/protocol.md``
has the rules with their reasons; each function here is one of them.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import time
from collections.abc import Callable, Container, Mapping

from spoolpool import fsio, layout
from spoolpool.backoff import Backoff
from spoolpool.envelope import Buffer, Envelope
from spoolpool.errors import BadTaskFile, NoKey, NotTrusted, SpoolDenied, SpoolpoolError
from spoolpool.layout import Lane, Token
from spoolpool.listing import Listing
from spoolpool.locks import Lock, try_lock
from spoolpool.order import Source
from spoolpool.signature import outcome_label, task_label
from spoolpool.spool import Spool
from spoolpool.task import TaskHeader, decode_task
from spoolpool.trust import Trust, account

log = logging.getLogger(__name__)

_AGAIN = 60.0  # seconds after which a file is looked at again whose key was not here
_USELESS, _PATIENCE = 64, 4096  # files of one bucket, after which the others are looked at first; twice as many next
_MISSED = 3  # names in a row that others had taken, after one more of which the other buckets are looked at first
_BUSY = 1000  # files whose locks were taken, of which those that were found so long ago are forgotten

_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENXIO, errno.EISDIR})


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


class Claimer:
    """Finds tasks that a worker may run and claims them, in order, at a cost that the backlog does not change.

    ``serves`` says which lanes are this group's, ``weights`` how much of it each queue gets (see
    :mod:`spoolpool.order`); ``submitter`` restricts it to the tasks of one. Contention is met by going on to another
    candidate, never by waiting.
    """

    def __init__(
        self,
        spool: Spool,
        worker: str,
        serves: Callable[[Lane], bool],
        trust: Trust,
        weights: Mapping[str, int] | None = None,
        submitter: str = "",
    ) -> None:
        self._spool = spool
        self._lease = spool.config.lease
        self._worker = worker
        self._serves = serves
        self._trust = trust
        spool.need_key()
        self._listing = Listing(spool, serves, self._refuse, weights, submitter)
        self._refused: dict[str, str] = {}
        self._keyless: dict[str, float] = {}
        self._useless = 0  # files that came to nothing
        self._patience = _USELESS
        self._busy: dict[str, float] = {}

    @property
    def refused(self) -> dict[str, str]:
        """Paths that were left alone, with the reasons."""
        return self._refused

    @property
    def supplied(self) -> bool:
        """Whether :meth:`next` will try names that it has listed already, before it lists."""
        return self._listing.supplied

    def directories(self) -> set[str]:
        """Where new tasks for this worker may appear, as :meth:`next` saw it when it found none."""
        return self._listing.directories()

    def next(self) -> Claim | None:
        """Claim the next task, or return None where none is waiting that can be had."""
        if self._listing.fresh:
            claim = self._claim_listed()
            if claim is None and self._listing.look_again():
                claim = self._claim_listed()
            if claim is not None:
                return claim
        self._listing.look()
        claim = self._claim_listed()
        if claim is None and self._listing.look_closer():
            claim = self._claim_listed()
        if claim is None and self._listing.unlisted is not None:
            raise self._listing.unlisted
        return claim

    def _claim_listed(self) -> Claim | None:
        while (turn := self._listing.turn()) is not None:
            source, names = turn
            claim = self._claim_from(source, names)
            if claim is not None:
                self._listing.served(source)
                return claim
        return None

    def _claim_from(self, source: Source, names: list[str]) -> Claim | None:
        bucket = self._spool.layout.bucket(source.lane, source.bucket)
        place = self._listing.place(source)
        hopeless = True
        missed = 0
        most = self._useless + self._patience
        while names:
            if self._useless > most:  # junk: have a look at the other buckets before the rest of it
                self._patience = min(_PATIENCE, 2 * self._patience)
                self._listing.cut(source)
                return None
            name = names.pop()
            token = layout.parse_token(name)
            if token is None or token.worker:
                continue
            path = f"{bucket}/{name}"
            claim = self._claim(path, f"{place}/{name}", token, source.user)
            if claim is not None:
                self._patience = _USELESS
                return claim
            if path in self._refused:
                continue
            hopeless = False
            missed += 1
            names = self._listing.missed(source, name)
            if missed > _MISSED or self._listing.crowded(source):
                self._listing.cut(source)
        if hopeless:
            self._listing.hopeless(source)
        return None

    def _claim(self, path: str, way: str, token: Token, user: int | None) -> Claim | None:
        """Claim the task at a path, to which ``way`` leads through a directory that nobody can swap."""
        if path in self._refused and time.monotonic() < self._keyless.get(path, math.inf):
            return None
        try:
            # a lock on NFS needs it open for writing, which nobody may do to another's file
            fd = fsio.open_file(way, write=user == self._spool.account)
        except OSError as error:
            if error.errno in _REFUSED:
                self._refuse(path, f"{path} cannot be opened ({error.strerror}). It was left alone.")
            elif error.errno not in fsio.GONE:  # GONE: another worker was first
                raise
            return None
        try:
            claim = self._take(fd, path, way, token, user)
        except (NotTrusted, BadTaskFile) as error:
            self._refuse(path, str(error))
            if isinstance(error, NoKey):  # it may be on its way to this host
                self._keyless[path] = time.monotonic() + _AGAIN
            claim = None
        except BaseException:
            fsio.close(fd)
            raise
        if claim is None:
            fsio.close(fd)
        return claim

    def _take(self, fd: int, path: str, way: str, token: Token, user: int | None) -> Claim | None:
        status = self._trust.check(fd, path)
        if user is not None and status.st_uid != user:
            raise NotTrusted(
                f"{path} belongs to {account(status.st_uid)}, and waits among the tasks of {account(user)}. It was not "
                "read."
            )
        if not self._free(fd, token):
            return None
        content = self._signed(fd, status.st_size, path, token)
        mine = token.claimed_by(self._worker)
        target = self._spool.layout.claimed_token(mine)
        try:
            fsio.move(way, target, durability=self._spool.config.durability)
        except OSError as error:
            # a repeated request answers ENOENT for a rename that happened: the target is ours alone
            if not fsio.there(target):
                if error.errno in fsio.GONE:
                    return None
                if self._spool.shared and error.errno in fsio.DENIED:  # its directory lets nobody take what is in it
                    raise BadTaskFile(f"{path} cannot be claimed ({error.strerror}). It was left alone.") from error
                raise
        return self._read(fd, status, mine, target, content)

    def _signed(self, fd: int, size: int, path: str, token: Token) -> Envelope | None:
        """The content of a file in a signed spool, read before the claim: without a good signature it is left alone."""
        if self._spool.signature is None:
            return None
        try:
            return self._spool.read(fd, size, path, task_label(token.task))
        except NotTrusted:
            raise
        except SpoolpoolError:  # torn: whoever claims it sets it aside
            return None

    def _free(self, fd: int, token: Token) -> bool:
        """Take the lock; whether the task may be had.

        It may not while another worker claims it, or a recoverer has it in hand, which takes a moment. A lock that
        stays taken for a lease is that of a host that lost its power in an earlier attempt (for ever on NFS 3, for a
        day on MooseFS): then it goes without. The rename decides; what is missing is the witness of this worker's
        life.
        """
        now = time.monotonic()
        if try_lock(fd) is not Lock.BUSY:
            self._busy.pop(token.name, None)
            return True
        if len(self._busy) > _BUSY:
            self._busy = {name: since for name, since in self._busy.items() if now - since < 2 * self._lease}
        return now - self._busy.setdefault(token.name, now) > self._lease

    def _read(
        self, fd: int, status: os.stat_result, token: Token, path: str, content: Envelope | None = None
    ) -> Claim | None:
        try:
            if content is None:
                content = self._spool.read(fd, status.st_size, path, task_label(token.task))
            header = decode_task(content.header, path)
            lane = layout.parse_lane(header.lane)
            if header.task != token.task or lane is None or not self._serves(lane):
                raise BadTaskFile(
                    f"{path} says that it is task {header.task} of lane {header.lane}: not what it waited as."
                )
            self._check_origin(header, lane, status.st_uid, path)
        except SpoolpoolError as error:
            self.set_aside(token, str(error))
            return None
        return Claim(token, header, content, fd, status.st_uid)

    def _check_origin(self, header: TaskHeader, lane: Lane, owner: int, path: str) -> None:
        """Raise :class:`BadTaskFile` or :class:`NotTrusted` for a task that was brought here from elsewhere, or again.

        In a shared spool it must be of the lane of its owner, and of a session that is open and his: else it could put
        a result into another's inbox, and an old file could be made to run once more.
        """
        spool = self._spool
        if header.spool != spool.config.id and (header.spool or spool.shared):
            raise BadTaskFile(f"{path} was made for the spool {header.spool!r}; this one is {spool.config.id!r}.")
        if not spool.shared:
            return
        if lane.user != owner:
            raise NotTrusted(f"{path} belongs to {account(owner)}, and says that it is of lane {header.lane}.")
        if not spool.has_session(header.session, owner):
            raise BadTaskFile(
                f"{path} is for the session {header.session} of {account(owner)}, which is not open (any more): its "
                "submitter has ended, or somebody put an old task back."
            )

    def forgotten(self, known: Container[Token] = ()) -> Claim | None:
        """A claim in this worker's name that it does not know of: none of those on which it works.

        So it is after a rename that happened although the answer, and the look after it, said no.
        """
        for token in map(layout.parse_token, fsio.names(self._spool.layout.claimed)):
            if token is None or token.worker != self._worker or token in known:
                continue
            path = self._spool.layout.claimed_token(token)
            if path in self._refused:
                continue
            try:
                fd = self._spool.open_for_lock(path)
            except OSError as error:
                if error.errno in fsio.GONE:  # a recoverer thought this worker dead
                    continue
                raise
            try:
                status = self._trust.check(fd, path)
                claim = self._read(fd, status, token, path) if self._free(fd, token) else None
            except (NotTrusted, BadTaskFile) as error:
                self._refuse(path, str(error))
                claim = None
            except BaseException:
                fsio.close(fd)
                raise
            if claim is not None:
                return claim
            fsio.close(fd)
        return None

    def set_aside(self, token: Token, reason: str) -> None:
        """Keep a claimed task that nothing can be done with in ``failed/``."""
        target = f"{self._spool.layout.failed}/{token.name}"
        self._useless += 1
        log.warning("%s It is kept as %s.", reason, target)
        try:
            fsio.move(self._spool.layout.claimed_token(token), target)
        except OSError as error:  # it stays claimed; recovery will meet it again
            log.warning("Cannot set aside %s: %s", token.name, error)

    def _refuse(self, path: str, reason: str) -> None:
        self._useless += 1
        if path not in self._refused:
            log.warning("%s", reason)
        if len(self._refused) > 100_000:  # somebody floods the spool with junk: better to look twice than to grow
            self._refused.clear()
            self._keyless.clear()
        self._refused[path] = reason

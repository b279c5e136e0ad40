"""Finding and claiming tasks: what a worker does between two of them.

``docs/protocol.md`` has the rules with their reasons; :mod:`spoolpool.protocol.listing` says where tasks wait, and
:mod:`spoolpool.protocol.claim` what is done with one that was claimed.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import time
from collections.abc import Callable, Container, Mapping

from spoolpool.errors import BadTaskFile, NoKey, NotTrusted, SpoolpoolError
from spoolpool.format.envelope import Envelope
from spoolpool.format.headers import TaskHeader, decode_task
from spoolpool.format.names import Lane, TaskFile, parse_lane, parse_task_file
from spoolpool.protocol.claim import Claim, set_aside
from spoolpool.protocol.fair_share import BucketInfo
from spoolpool.protocol.listing import ReadyListing
from spoolpool.protocol.spool import Spool
from spoolpool.security.signing import task_label
from spoolpool.security.trust import Trust
from spoolpool.system import files
from spoolpool.system.accounts import account_name
from spoolpool.system.locks import Lock, try_lock

log = logging.getLogger(__name__)

_AGAIN = 60.0  # seconds after which a file is looked at again whose key was not here
_USELESS, _PATIENCE = 64, 4096  # files of one bucket, after which the others are looked at first; twice as many next
_MISSED = 3  # names in a row that others had taken, after one more of which the other buckets are looked at first
_BUSY = 1000  # files whose locks were taken, of which those that were found so long ago are forgotten

_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENXIO, errno.EISDIR})


class Claimer:
    """Finds tasks that a worker may run and claims them, in order, at a cost that the backlog does not change.

    ``serves`` says which lanes are this group's, ``weights`` how much of it each queue gets (see
    :mod:`spoolpool.protocol.fair_share`); ``submitter`` restricts it to the tasks of one. Contention is met by going
    on to another
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
        self._listing = ReadyListing(spool, serves, self._refuse, weights, submitter)
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

    def _claim_from(self, source: BucketInfo, names: list[str]) -> Claim | None:
        bucket = self._spool.layout.bucket(source.lane, source.bucket)
        place = self._listing.place(source)
        hopeless = True
        missed: set[str] = set()
        most = self._useless + self._patience
        while names:
            if self._useless > most:  # junk: have a look at the other buckets before the rest of it
                self._patience = min(_PATIENCE, 2 * self._patience)
                self._listing.cut(source)
                return None
            name = names.pop()
            if name in missed:  # it is listed anew, and was in somebody's hands a moment ago
                continue
            task_file = parse_task_file(name)
            if task_file is None or task_file.worker:
                continue
            path = f"{bucket}/{name}"
            claim = self._claim(path, f"{place}/{name}", task_file, source.user)
            if claim is not None:
                self._patience = _USELESS
                return claim
            if path in self._refused:
                continue
            hopeless = False
            missed.add(name)
            names = self._listing.missed(source, name)
            if len(missed) > _MISSED or self._listing.crowded(source):
                self._listing.cut(source)
        if hopeless:
            self._listing.hopeless(source)
        return None

    def _claim(self, path: str, way: str, task_file: TaskFile, user: int | None) -> Claim | None:
        """Claim the task at a path, to which ``way`` leads through a directory that nobody can swap."""
        if path in self._refused and time.monotonic() < self._keyless.get(path, math.inf):
            return None
        try:
            # a lock on NFS needs it open for writing, which nobody may do to another's file
            fd = files.open_file(way, write=user == self._spool.account)
        except OSError as error:
            if error.errno in _REFUSED:
                self._refuse(path, f"{path} cannot be opened ({error.strerror}). It was left alone.")
            elif error.errno not in files.GONE:  # GONE: another worker was first
                raise
            return None
        try:
            claim = self._take(fd, path, way, task_file, user)
        except (NotTrusted, BadTaskFile) as error:
            self._refuse(path, str(error))
            if isinstance(error, NoKey):  # it may be on its way to this host
                self._keyless[path] = time.monotonic() + _AGAIN
            claim = None
        except BaseException:
            files.close(fd)
            raise
        if claim is None:
            files.close(fd)
        return claim

    def _take(self, fd: int, path: str, way: str, task_file: TaskFile, user: int | None) -> Claim | None:
        status = self._trust.check(fd, path)
        if user is not None and status.st_uid != user:
            raise NotTrusted(
                f"{path} belongs to {account_name(status.st_uid)}, and waits among the tasks of "
                f"{account_name(user)}. It was not "
                "read."
            )
        if not self._free(fd, task_file):
            return None
        content = self._signed(fd, status.st_size, path, task_file)
        mine = task_file.claimed_by(self._worker)
        target = self._spool.layout.claimed_task(mine)
        try:
            files.move(way, target, durability=self._spool.config.durability)
        except OSError as error:
            # a repeated request answers ENOENT for a rename that happened: the target is ours alone
            if not files.exists(target):
                if error.errno in files.GONE:
                    return None
                if self._spool.shared and error.errno in files.DENIED:  # its directory lets nobody take what is in it
                    raise BadTaskFile(f"{path} cannot be claimed ({error.strerror}). It was left alone.") from error
                raise
        return self._read(fd, status, mine, target, content)

    def _signed(self, fd: int, size: int, path: str, task_file: TaskFile) -> Envelope | None:
        """The content of a file in a signed spool, read before the claim: without a good signature it is left alone."""
        if self._spool.signature is None:
            return None
        try:
            return self._spool.read(fd, size, path, task_label(task_file.task))
        except NotTrusted:
            raise
        except SpoolpoolError:  # torn: whoever claims it sets it aside
            return None

    def _free(self, fd: int, task_file: TaskFile) -> bool:
        """Take the lock; whether the task may be had.

        It may not while another worker claims it, or a recoverer has it in hand, which takes a moment. A lock that
        stays taken for a lease is that of a host that lost its power in an earlier attempt (for ever on NFS 3, for a
        day on MooseFS): then it goes without. The rename decides; what is missing is the witness of this worker's
        life.
        """
        now = time.monotonic()
        if try_lock(fd) is not Lock.BUSY:
            self._busy.pop(task_file.name, None)
            return True
        if len(self._busy) > _BUSY:
            self._busy = {name: since for name, since in self._busy.items() if now - since < 2 * self._lease}
        return now - self._busy.setdefault(task_file.name, now) > self._lease

    def _read(
        self, fd: int, status: os.stat_result, task_file: TaskFile, path: str, content: Envelope | None = None
    ) -> Claim | None:
        try:
            if content is None:
                content = self._spool.read(fd, status.st_size, path, task_label(task_file.task))
            header = decode_task(content.header, path)
            lane = parse_lane(header.lane)
            if header.task != task_file.task or lane is None or not self._serves(lane):
                raise BadTaskFile(
                    f"{path} says that it is task {header.task} of lane {header.lane}: not what it waited as."
                )
            self._check_origin(header, lane, status.st_uid, path)
        except SpoolpoolError as error:
            self._useless += 1
            set_aside(self._spool, task_file, str(error))
            return None
        return Claim(self._spool, header, task_file, status.st_uid, content=content, lock=fd)

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
            raise NotTrusted(f"{path} belongs to {account_name(owner)}, and says that it is of lane {header.lane}.")
        if not spool.has_session(header.session, owner):
            raise BadTaskFile(
                f"{path} is for the session {header.session} of {account_name(owner)}, which is not open (any "
                f"more): its "
                "submitter has ended, or somebody put an old task back."
            )

    def forgotten(self, known: Container[TaskFile] = ()) -> Claim | None:
        """A claim in this worker's name that it does not know of: none of those on which it works.

        So it is after a rename that happened although the answer, and the look after it, said no.
        """
        for task_file in map(parse_task_file, files.list_names(self._spool.layout.claimed)):
            if task_file is None or task_file.worker != self._worker or task_file in known:
                continue
            path = self._spool.layout.claimed_task(task_file)
            if path in self._refused:
                continue
            try:
                fd = self._spool.open_for_lock(path)
            except OSError as error:
                if error.errno in files.GONE:  # a recoverer thought this worker dead
                    continue
                raise
            try:
                status = self._trust.check(fd, path)
                claim = self._read(fd, status, task_file, path) if self._free(fd, task_file) else None
            except (NotTrusted, BadTaskFile) as error:
                self._refuse(path, str(error))
                claim = None
            except BaseException:
                files.close(fd)
                raise
            if claim is not None:
                return claim
            files.close(fd)
        return None

    def _refuse(self, path: str, reason: str) -> None:
        self._useless += 1
        if path not in self._refused:
            log.warning("%s", reason)
        if len(self._refused) > 100_000:  # somebody floods the spool with junk: better to look twice than to grow
            self._refused.clear()
            self._keyless.clear()
        self._refused[path] = reason

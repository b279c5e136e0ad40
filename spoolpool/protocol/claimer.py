"""Find ready tasks and claim them: a worker's side of the protocol between two tasks.

``docs/protocol.md`` has the rules with their reasons; :mod:`spoolpool.protocol.listing` lists the tasks, and
:mod:`spoolpool.protocol.claim` has the further steps of a claim.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import time
from collections.abc import Callable, Container, Mapping

from spoolpool.errors import BadTaskFile, BrokenSpool, NoKey, NotTrusted, SpoolpoolError
from spoolpool.format.envelope import Envelope
from spoolpool.format.headers import TaskHeader, decode_task
from spoolpool.format.names import Lane, TaskFile, parse_lane, parse_task_file
from spoolpool.protocol import sessions
from spoolpool.protocol.claim import Claim, set_aside
from spoolpool.protocol.fair_share import BucketInfo
from spoolpool.protocol.heartbeat import heartbeat_interval
from spoolpool.protocol.listing import ReadyListing
from spoolpool.protocol.packs import PackedCall, read_calls
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.tasks import move_to_bucket
from spoolpool.security.signing import task_label
from spoolpool.security.trust import Trust
from spoolpool.system import files
from spoolpool.system.accounts import account_name
from spoolpool.system.limited_log import LimitedLog
from spoolpool.system.locks import Lock, try_lock

log = logging.getLogger(__name__)

_KEY_RETRY = 60.0  # seconds before retrying a file whose signing key is missing
_UNUSABLE, _MOST_UNUSABLE = 64, 4096  # unusable files of one bucket before the others are tried; doubled each time
_CONFLICTS = 3  # names in a row that others took first; after one more the other buckets are tried
_FEW = 16  # names of a bucket that are left to the others after a second conflict
_BUSY, _MOST_BUSY = 1000, 10_000  # files with busy locks: the old ones are forgotten, and no new ones are noted
_CLAIMING = 0.05  # seconds of a busy lock after which an earlier attempt seems to hold it, and no claim
_LEAST_WAIT = 30.0  # seconds for which a task waits for the directories of its session, at least
_REFUSED = 100_000  # refused paths that are remembered

_CANNOT_OPEN = frozenset({errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENXIO, errno.EISDIR})


class _DirectoriesMissing(BadTaskFile):
    """The session of a task is open, but its directories are missing."""


class Claimer:
    """Claims the ready tasks that a worker may run, in order, at a cost that does not grow with the backlog.

    ``serves`` says which lanes are this group's, ``weights`` which share of it each queue gets (see
    :mod:`spoolpool.protocol.fair_share`); with a ``submitter`` only its tasks are claimed. Tasks that need more time
    than ``seconds_left`` are left to other groups. After a conflict with another worker it continues with another task,
    and never waits. ``on_set_aside`` is called with the claim and the reason after a task was set aside.
    """

    def __init__(
        self,
        spool: Spool,
        worker: str,
        serves: Callable[[Lane], bool],
        trust: Trust,
        weights: Mapping[str, int] | None = None,
        submitter: str = "",
        *,
        on_set_aside: Callable[[TaskFile, str], None] | None = None,
        seconds_left: Callable[[], float] = lambda: math.inf,
    ) -> None:
        self._spool = spool
        self._on_set_aside = on_set_aside
        self._seconds_left = seconds_left
        self._lease = spool.config.lease
        self._patience = heartbeat_interval(spool)
        self._worker = worker
        self._serves = serves
        self._trust = trust
        spool.need_key()
        self._listing = ReadyListing(spool, serves, self._refuse, weights, submitter)
        self._refused: dict[str, str] = {}
        self._without_key: dict[str, float] = {}  # refused paths, and when to retry them
        self._unusable = 0  # files that could not be claimed or read, of all buckets
        self._unusable_limit = _UNUSABLE
        self._busy: dict[str, float] = {}
        self._waiting: dict[str, float] = {}  # tasks of sessions without directories, and since when
        self._log = LimitedLog(log)
        self._was_claimed = False  # whether another worker has claimed the last name that was tried
        self._was_busy = False  # whether its lock was busy, as at an earlier try

    @property
    def refused(self) -> dict[str, str]:
        """Paths that were left alone, with the reasons."""
        return self._refused

    @property
    def has_names(self) -> bool:
        """Whether :meth:`next` tries names that are listed already before it lists."""
        return self._listing.has_names

    def directories(self) -> set[str]:
        """Return the directories in which new tasks for this worker may appear, after :meth:`next` found none."""
        return self._listing.directories()

    def buckets(self) -> set[str]:
        """Return the buckets among these directories."""
        return self._listing.buckets()

    @property
    def left(self) -> Mapping[str, set[str]]:
        """Names of task files that the last :meth:`next` left to other workers, by bucket.

        They were claiming tasks of that bucket. A worker without a task looks for these names again.
        """
        return self._listing.left

    @property
    def is_watchable(self) -> bool:
        """Whether new tasks can appear in no other directories."""
        return self._listing.is_watchable

    def next(self, *, late: bool = False) -> Claim | None:
        """Claim the next task; return None if no task can be claimed now.

        A worker that comes ``late`` to tasks that others are claiming does not begin with the oldest ones.
        """
        self._listing.begin(late=late)
        if self._listing.is_fresh:
            claim = self._claim_listed()
            if claim is None and self._listing.refresh_last():
                claim = self._claim_listed()
            if claim is not None:
                return claim
        self._listing.refresh()
        claim = self._claim_listed()
        if claim is None and self._listing.resume_put_off():
            claim = self._claim_listed()
        if claim is None and self._listing.error is not None:
            raise self._listing.error
        return claim

    def _claim_listed(self) -> Claim | None:
        while (turn := self._listing.next_bucket()) is not None:
            bucket, names = turn
            claim = self._claim_from(bucket, names)
            if claim is not None:
                self._listing.served(bucket)
                return claim
        return None

    def _claim_from(self, bucket: BucketInfo, names: list[str]) -> Claim | None:
        path = self._spool.layout.bucket(bucket.lane, bucket.name)
        directory = self._listing.directory(bucket)
        conflicts: set[str] = set()
        limit = self._unusable + self._unusable_limit
        while names:
            if self._unusable > limit:  # junk: try the other buckets before the rest of it
                self._unusable_limit = min(_MOST_UNUSABLE, 2 * self._unusable_limit)
                self._listing.skip(bucket)
                return None
            name = names.pop()
            if name in conflicts:  # listed again, and another worker had it a moment ago
                continue
            task_file = parse_task_file(name)
            if task_file is None or task_file.worker:
                continue
            if task_file.seconds and task_file.seconds > self._seconds_left():
                continue
            self._was_claimed = self._was_busy = False
            claim = self._claim(f"{path}/{name}", f"{directory}/{name}", task_file, bucket.user)
            if claim is not None:
                self._unusable_limit = _UNUSABLE
                return claim
            if f"{path}/{name}" in self._refused:
                continue
            conflicts.add(name)
            # a busy lock is no reason to leave: an earlier attempt may hold it
            if self._was_claimed and len(conflicts) > 1 and len(names) < _FEW:
                self._listing.leave(bucket)
                return None
            names = self._listing.contended(bucket, name, few=len(names) < _FEW, now=not self._was_busy)
            if len(conflicts) > _CONFLICTS or self._listing.is_left_to_others(bucket):
                self._listing.skip(bucket)
        if not conflicts:
            self._listing.nothing_usable(bucket)
        return None

    def _claim(self, path: str, way: str, task_file: TaskFile, user: int | None) -> Claim | None:
        """Claim the task at ``path``; ``way`` leads there through a directory that other users cannot swap."""
        if path in self._refused and time.monotonic() < self._without_key.get(path, math.inf):
            return None
        try:
            # a lock on NFS needs it open for writing, which only its owner may
            fd = files.open_file(way, write=user == self._spool.account)
        except OSError as error:
            if error.errno in _CANNOT_OPEN:
                self._refuse(path, f"{path} cannot be opened ({error.strerror}). It was left alone.")
            elif error.errno not in files.GONE:
                raise
            else:
                self._was_claimed = True
            return None
        return self._claim_opened(fd, path, self._take, task_file, way, user)

    def _claim_opened(self, fd: int, path: str, take: Callable[..., Claim | None], *arguments: object) -> Claim | None:
        """Call ``take`` with an opened file; the claim closes it later, and without a claim it is closed now."""
        claim = None
        try:
            claim = take(fd, path, *arguments)
        except (NotTrusted, BadTaskFile) as error:
            self._refuse(path, str(error))
            if isinstance(error, NoKey):  # the key may be on its way to this host
                self._without_key[path] = time.monotonic() + _KEY_RETRY
        finally:
            if claim is None:
                files.close(fd)
        return claim

    def _take(self, fd: int, path: str, task_file: TaskFile, way: str, user: int | None) -> Claim | None:
        status = self._trust.check(fd, path)
        if user is not None and status.st_uid != user:
            raise NotTrusted(
                f"{path} belongs to {account_name(status.st_uid)}, and its lane to {account_name(user)}. It was not "
                "read."
            )
        if not self._lock(fd, task_file):
            return None
        content = self._read_signed(fd, status.st_size, path, task_file)
        mine = task_file.claimed_by(self._worker)
        target = self._spool.layout.claimed_task(mine)
        try:
            files.move(way, target, durability=self._spool.config.durability)
        except OSError as error:
            # a repeated request answers ENOENT for a rename that was done: the target is this worker's alone
            if not files.exists(target):
                if error.errno in files.GONE:
                    if not files.is_missing(way) and files.is_missing(self._spool.layout.claimed):
                        self._spool.make_directories(self._spool.layout.claimed)  # a purge took it: claim later
                    self._was_claimed = True
                    return None
                if self._spool.shared and error.errno in files.DENIED:  # its directory does not allow it
                    raise BadTaskFile(f"{path} cannot be claimed ({error.strerror}). It was left alone.") from error
                raise
        return self._read(fd, status, mine, target, content)

    def _lock(self, fd: int, task_file: TaskFile) -> bool:
        """Take the lock of a task file; return whether the task may be claimed.

        It may not while another worker claims it or a recoverer holds it, which takes a moment. A lock that stays
        busy for the time between two heartbeats is that of an earlier attempt, whose worker was taken for dead: its
        host lost its power (then the lock is held for ever on NFS 3, for a day on MooseFS), or it is paused. Then the
        task is claimed without. The rename decides; only the witness of this worker's life is missing.
        """
        now = time.monotonic()
        if try_lock(fd) is not Lock.BUSY:
            self._busy.pop(task_file.name, None)
            return True
        if len(self._busy) > _BUSY and task_file.name not in self._busy:
            self._busy = {name: since for name, since in self._busy.items() if now - since < 2 * self._lease}
            if len(self._busy) > _MOST_BUSY:  # as many locks as that are held on purpose
                return False
        seconds = now - self._busy.setdefault(task_file.name, now)
        self._was_busy = seconds > _CLAIMING
        return seconds > self._patience

    def _read_signed(self, fd: int, size: int, path: str, task_file: TaskFile) -> Envelope | None:
        """Read a file of a signed spool before the claim: without a valid signature it is left alone."""
        if self._spool.signature is None:
            return None
        try:
            if task_file.calls:  # read again after the claim
                read_calls(self._spool, fd, path, task_file)
                return None
            return self._spool.read(fd, size, path, task_label(task_file.task))
        except NotTrusted:
            raise
        except SpoolpoolError:  # torn: the worker that claims it sets it aside
            return None

    def _read(
        self, fd: int, status: os.stat_result, task_file: TaskFile, path: str, content: Envelope | None = None
    ) -> Claim | None:
        header: TaskHeader | None = None
        calls: list[PackedCall] = []
        try:
            if task_file.calls:
                content, calls = read_calls(self._spool, fd, path, task_file)
            elif content is None:
                content = self._spool.read(fd, status.st_size, path, task_label(task_file.task))
            header = decode_task(content.header, path)
            lane = parse_lane(header.lane)
            if header.task != task_file.task or lane is None or not self._serves(lane):
                raise BadTaskFile(
                    f"The header of {path} names task {header.task}, lane {header.lane}, which does not match its "
                    "file name or its directory."
                )
            self._check_origin(header, lane, status.st_uid, path)
            if header.time_limit > task_file.seconds and header.time_limit > self._seconds_left():
                # its submitter has a version that does not name the time; now the name has it
                move_to_bucket(self._spool, path, header, task_file.released().needing(header.time_limit))
                return None
        except BrokenSpool:  # the task is of the spool that is at this path now
            if header is not None:
                move_to_bucket(self._spool, path, header, task_file.released())
            raise
        except SpoolpoolError as error:
            if header is not None and isinstance(error, _DirectoriesMissing) and self._may_wait(task_file.task):
                move_to_bucket(self._spool, path, header, task_file.released())
                return None
            self._unusable += 1
            if set_aside(self._spool, task_file, str(error)) and self._on_set_aside is not None:
                self._on_set_aside(task_file, str(error))
            return None
        return Claim(self._spool, header, task_file, status.st_uid, content=content, calls=calls, lock=fd)

    def _check_origin(self, header: TaskHeader, lane: Lane, owner: int, path: str) -> None:
        """Raise :class:`BadTaskFile` or :class:`NotTrusted` for a task that was copied here, or put back.

        Raises :class:`BrokenSpool` if another spool is at the path of this one by now.

        In a shared spool it must belong to the lane of its owner, and to an open session of the same account: otherwise
        a user could put a result into another user's session, or make an old task file run again.
        """
        spool = self._spool
        if header.spool != spool.config.id and (header.spool or spool.shared):
            with contextlib.suppress(OSError):
                spool.check_id()
            raise BadTaskFile(f"{path} was made for the spool {header.spool!r}; this one is {spool.config.id!r}.")
        if not spool.shared:
            return
        if lane.user != owner:
            raise NotTrusted(f"{path} belongs to {account_name(owner)}, and its header names lane {header.lane}.")
        if not spool.has_session(header.session, owner):
            is_open = any(
                files.owner(spool.layout.session(entry)) == owner
                for entry in sessions.list_entries(spool, header.session)
            )
            raise (_DirectoriesMissing if is_open else BadTaskFile)(
                f"{path} is for the session {header.session} of {account_name(owner)}, which is not open (any "
                "more): its submitter has ended, or an old task was put back."
            )

    def _may_wait(self, task: str) -> bool:
        """Return whether the submitter of a task still has time to make the directories of its session again.

        Only it can, and it checks for them every few seconds; a purge of empty directories has removed them.
        """
        now = time.monotonic()
        if len(self._waiting) > _BUSY:
            self._waiting.clear()
        limit = max(self._lease, self._spool.config.caches, _LEAST_WAIT)
        return now - self._waiting.setdefault(task, now) <= limit

    def forgotten(self, known: Container[TaskFile] = ()) -> Claim | None:
        """Return a claim in this worker's name that is not among the ``known`` ones on which it works.

        There is one after a rename that was done although its answer, and the check after it, said otherwise.
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
                if error.errno in files.GONE:  # a recoverer took this worker for dead
                    continue
                raise
            claim = self._claim_opened(fd, path, self._retake, task_file)
            if claim is not None:
                return claim
        return None

    def _retake(self, fd: int, path: str, task_file: TaskFile) -> Claim | None:
        status = self._trust.check(fd, path)
        return self._read(fd, status, task_file, path) if self._lock(fd, task_file) else None

    def _refuse(self, path: str, reason: str) -> None:
        self._unusable += 1
        if path not in self._refused:
            self._log.warning(path, reason)
        if len(self._refused) > _REFUSED:  # a flood of junk: check files twice rather than grow
            self._refused.clear()
            self._without_key.clear()
        self._refused[path] = reason

"""A claimed task, and the steps that end its claim. ``docs/protocol.md`` has the rules with their reasons.

A task file is a token that is only ever renamed; the directory in which it stands is the state of the task. So each
step of a claim is one rename of its task file, out of ``claimed/``.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from spoolpool.calls import pickling
from spoolpool.errors import LostAttempt, NotTrusted, SpoolDenied, WalltimeTooShort, WorkerLost
from spoolpool.format import envelope, headers
from spoolpool.format.envelope import Buffer, Envelope
from spoolpool.format.headers import Failure, OutcomeHeader, TaskHeader
from spoolpool.format.names import TaskFile, parse_task_file
from spoolpool.protocol import outcome_log, outcomes
from spoolpool.protocol.journal import Journal
from spoolpool.protocol.outcome_log import OutcomeLog
from spoolpool.protocol.packs import PackedCall
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.tasks import move_to_bucket
from spoolpool.security.signing import outcome_label
from spoolpool.security.trust import Trust
from spoolpool.system import files, open_directory
from spoolpool.system.backoff import Backoff
from spoolpool.system.limited_log import LimitedLog
from spoolpool.system.processes import hostname

T = TypeVar("T")

log = logging.getLogger(__name__)
_reported = LimitedLog(log)

_MESSAGE = 4096  # characters of a message in a header

WALLTIME_ENDED, ASKED_TO_END = "the walltime of its group ended", "its group was asked to end"
"""Reasons to release a claim."""


@dataclass(frozen=True, kw_only=True)
class GiveBack:
    """Reason to release a claim, and the run that ends with it."""

    reason: str
    """Reason, for the journal."""
    ran: float | None = None
    """Seconds that the call had; None if it was not called."""
    at_walltime: bool = False
    """Whether the time of its group was over, so that the task needs a group with more time."""
    worker: str = ""
    """Worker that ran it, if the claim was taken over from it."""
    log: tuple[TaskFile, int] | None = None
    """Claim of that worker on a pack, and the size of its log when it was taken over."""


class Claim:
    """The exclusive right to run one task and to publish its outcome.

    A worker's own claim has the content of the task and holds a lock on its file until the commit: the lock is a
    witness, for recoverers on other hosts, that the worker lives. As a context manager it closes that lock. A
    recoverer builds the claim of a dead worker without content and lock, and ends it by the same methods.

    ``owner`` is the account of the task file. In a shared spool the directories of the session must belong to it, so
    that :meth:`write_outcome`, :meth:`has_outcome` and :meth:`commit` need it there.
    """

    def __init__(
        self,
        spool: Spool,
        header: TaskHeader,
        task_file: TaskFile,
        owner: int | None = None,
        *,
        content: Envelope | None = None,
        calls: Sequence[PackedCall] = (),
        lock: int = -1,
    ) -> None:
        self._spool = spool
        self.header = header
        self.task_file = task_file
        self._owner = owner
        self._content = content
        self.calls = calls
        """Calls of a pack, of a claim made by :class:`spoolpool.protocol.claimer.Claimer`."""
        self._lock = lock
        self._name = task_file.name
        self._path = f"{spool.layout.claimed}/{self._name}"
        self.publishing = threading.Lock()
        """Lock around the write of an outcome and its commit: two threads of a worker may end a claim at once, and both
        outcomes have the same path."""
        self.committed = False
        """Whether this object has published an outcome. To be read under the lock."""

    @property
    def owner(self) -> int:
        """Account to which the task file belongs."""
        assert self._owner is not None
        return self._owner

    @property
    def content(self) -> Envelope:
        """The call, of a claim made by :class:`spoolpool.protocol.claimer.Claimer`."""
        assert self._content is not None
        return self._content

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the lock; harmless when repeated. The claim itself stays as it is."""
        if self._lock >= 0:
            files.close(self._lock)
            self._lock = -1

    def exists(self) -> bool:
        """Return whether the task file stands in ``claimed/``; it does not after the end of the claim, or if fenced."""
        return files.exists(self._path)

    def write_outcome(self, parts: list[Buffer]) -> None:
        """Create the outcome file. Its name belongs to this claim alone, so that it is written in place.

        Raises ``FileExistsError`` if another rank of the group has written it, and ``OSError`` otherwise; then nothing
        is left of it. For a pack it is the outcome of the calls without one.
        """
        self._in_session(lambda: self._write_outcome(parts))

    def _in_session(self, action: Callable[[], T]) -> T:
        try:
            return action()
        except FileNotFoundError:  # the session was closed, or never opened
            self._restore_directory(self._spool.layout.outgoing)
            return action()

    def _write_outcome(self, parts: list[Buffer]) -> None:
        spool, session = self._spool, self.header.session
        if self.task_file.calls:
            outcome_log.append_whole(spool, session, self.task_file, self._owner, parts)
            return
        path = f"{spool.outgoing(session, self._owner)}/{self._name}"
        spool.write(path, outcome_label(session, self._name), parts, spool.rights.outcome)

    def append_outcome(self, call: int, parts: list[Buffer]) -> bool:
        """Append the outcome of the call that runs to the log of a pack; return False if the log is not there yet.

        For a thread of the worker whose main thread does not end that call.
        """
        return outcome_log.append_call(self._spool, self.header.session, self.task_file, self._owner, call, parts)

    def open_log(self, trust: Trust) -> OutcomeLog:
        """Open the log of a pack, with the outcomes of earlier claims, if these belong to trusted accounts.

        Raises ``OSError``.
        """
        session = self.header.session
        log = self._in_session(lambda: OutcomeLog(self._spool, session, self.task_file, self._owner))
        try:
            if not log.resume():
                log.adopt(outcome_log.find_log(self._spool, session, self.task_file, trust.check, before=True))
        except BaseException:
            log.close()
            raise
        return log

    def _advanced(self) -> TaskFile:
        """Return the name of a pack with the number of its calls that have outcomes by now."""
        if not self.task_file.calls:
            return self.task_file
        session, check = self.header.session, files.regular_status
        return self.task_file.advanced(outcome_log.find_log(self._spool, session, self.task_file, check).done)

    def has_outcome(self, writer: int | None = None) -> bool:
        """Return whether the outcome file is complete, so that only the commit is missing.

        As :func:`spoolpool.protocol.outcomes.is_complete`.
        """
        return outcomes.is_complete(self._spool, self.header.session, self.task_file, self._owner, writer)

    def commit(self) -> bool:
        """Publish the outcome: one rename decides.

        Returns False if the claim was lost: a recoverer took this worker for dead. Then the outcome must not be
        published; see :meth:`discard_outcome`.
        """
        spool, session, source = self._spool, self.header.session, self._path
        target = path = f"{spool.layout.results}/{session}/{self._name}"
        backoff: Backoff | None = None
        denied = 0
        while True:
            try:
                target = f"{spool.results(session, self._owner)}/{self._name}"
                files.move(source, target, durability=spool.config.durability)
                self.committed = True
                return True
            except OSError as error:
                # the order of the two checks matters: the task file moves from source to target, never back
                if not files.exists(source):
                    self.committed = files.exists(target)
                    return self.committed
                if error.errno in files.GONE:
                    self._restore_directory(spool.layout.results)
                denied += error.errno in files.DENIED or (spool.shared and error.errno in files.GONE)
                if denied > 5:
                    raise SpoolDenied(
                        f"Cannot publish the outcome of {self.task_file.task}: "
                        f"{path} is refused ({error.strerror}). The owner of the session must let workers write there."
                    ) from error
                backoff = backoff or Backoff(0.005, 5.0, 2.0)
                backoff.sleep()

    def discard_outcome(self) -> bool:
        """Remove the outcome of a lost claim, if it is certain that none will look for it; return whether none is left.

        It is certain if the task file has a later claim number, which it gets from an uncommitted claim alone, or if it
        was unlinked, as after its collection. Otherwise a cache may hide that this claim was committed; see
        :meth:`spoolpool.protocol.recovery.Recovery.discard`.
        The log of a pack stays: another worker may be about to adopt its records. The collector removes it.
        """
        if self.task_file.calls:
            return True
        try:
            path = f"{self._spool.outgoing(self.header.session, self._owner)}/{self._name}"
            if not files.is_missing(path):  # it is, if the loss was found before the outcome was written
                if not (self._is_unlinked() or self._has_successor()):
                    return False
                files.remove(path)
        except (OSError, NotTrusted) as error:
            log.info("Cannot discard the outcome of %s now: %s", self._name, error)
            return False
        return True

    def _is_unlinked(self) -> bool:
        return self._lock >= 0 and os.fstat(self._lock).st_nlink == 0

    def _has_successor(self) -> bool:
        where, header = self._spool.layout, self.header
        for directory in (
            where.claimed,
            where.bucket(header.lane, header.bucket),
            where.waiting,
            where.failed,
            f"{where.results}/{header.session}",
        ):
            for task_file in map(parse_task_file, files.list_names(directory)):
                if task_file is not None and task_file.task == header.task and task_file.claim > self.task_file.claim:
                    return True
        return False

    def _restore_directory(self, parent: str) -> None:
        """Make the missing directory of the session again; in a shared spool only its owner can do that."""
        path = f"{parent}/{self.header.session}"
        if self._spool.shared:
            self._spool.close_directory(path)
        else:
            self._spool.make_directories(path)

    def report_lost(self, message: str, attempts: Sequence[LostAttempt] = ()) -> None:
        """Publish the outcome :class:`WorkerLost`."""
        self._report(WorkerLost(message, attempts))

    def _report(self, error: WorkerLost) -> bool:
        payload, buffers = pickling.dumps(error)
        outcome = OutcomeHeader(
            task=self.task_file.task,
            kind="lost",
            worker=self.task_file.worker,
            host=hostname(),
            attempt=self.task_file.attempt,
            ended=time.time(),
            failure=Failure(type=f"spoolpool.errors.{type(error).__name__}", message=str(error)[:_MESSAGE]),
        )
        self.write_outcome(envelope.pack(headers.encode(outcome), payload, buffers))
        return self.commit()

    def release(self) -> None:
        """Return the task to its bucket; it costs no attempt."""
        self._move_to_bucket(self._advanced().released())

    def give_back(self, why: GiveBack, journal: Journal | None) -> bool:
        """Release a task, or report it if it was given back at the end of a walltime as often as it has attempts.

        The name records the time that its call had, unless it has a time limit. Returns whether the task is ready
        again; if it is not, it was reported, or the claim had ended.
        """
        if why.log is not None:  # what the worker wrote while it was ended does not count
            outcome_log.cut(self._spool, self.header.session, why.log[0], self._owner, why.log[1])
        advanced, header = self._advanced(), self.header
        ready = advanced.released()
        # the time of a pack that went on says nothing about the calls that are left
        if why.ran is not None and not header.time_limit and advanced == self.task_file:
            ready = ready.needing(math.floor(why.ran) + 1)
        if why.at_walltime:
            ready = ready.needing(0, releases=ready.releases + 1)
        too_often = why.at_walltime and ready.releases >= headers.attempts(header)
        reported = too_often and self._report_too_short(ready.releases, why.ran or 0.0)
        moved = not reported and move_to_bucket(self._spool, self._path, header, ready)
        if journal is not None and (moved or reported):
            end = "reported as lost" if reported else "given back"
            journal.write(
                "given back",
                task=header.task,
                name=header.name,
                label=headers.label_of(header),
                session=header.session,
                lane=header.lane,
                worker=why.worker or self.task_file.worker,
                attempt=self.task_file.attempt,
                attempts=headers.attempts(header),
                ran=why.ran or 0.0,
                kind="lost" if reported else "",
                reason=why.reason,
                text=f"{header.task}: {end}: {why.reason}",
            )
            journal.flush()
        return moved

    def _report_too_short(self, releases: int, ran: float) -> bool:
        """Publish the outcome :class:`WalltimeTooShort`; return whether it was published.

        It is not while another thread publishes the outcome of the call, or after that.
        """
        if not self.publishing.acquire(blocking=False):  # its commit may take long, and this process is about to end
            return False
        try:
            return not self.committed and self._publish_too_short(releases, ran)
        finally:
            self.publishing.release()

    def _publish_too_short(self, releases: int, ran: float) -> bool:
        try:
            published = self._report(
                WalltimeTooShort(
                    f"Task {self.task_file.task} was given back {releases} time(s) at the end of the walltime of its "
                    f"worker groups, as often as it has attempts; the last group had {ran:.0f} s for it. Start groups "
                    "with more time (the walltime of their jobs, or --max-time), or let the function save what it has "
                    "before current_task().remaining() is 0. With a time_limit, only a group with that much time left "
                    "begins the call. 'spool retry' runs the task again."
                )
            )
        except OSError as error:  # another rank or a killed process has written to the file; or the disk is full
            log.info("Cannot report task %s: %s", self.task_file.task, error)
            return False
        if published:
            log.warning(
                "Task %s did not end in time, as often as it has attempts; this was reported.", self.header.task
            )
        else:  # a supervisor has taken the claim over
            self.discard_outcome()
        return published

    def requeue(self) -> None:
        """Return the task of a dead worker to its bucket; it costs an attempt.

        Of a pack it costs the call that ran, the first one without an outcome.
        """
        self._move_to_bucket(self._advanced().requeued())

    def _move_to_bucket(self, ready: TaskFile) -> None:
        move_to_bucket(self._spool, self._path, self.header, ready)

    def delay(self) -> None:
        """Move a task that raised to ``waiting/``; it costs an attempt.

        An error is left to recovery: the claim, if it still exists, is this worker's.
        """
        waiting = self._spool.layout.waiting
        target = f"{waiting}/{self.task_file.requeued().name}"
        self._spool.in_directory(waiting, lambda: files.move(self._path, target))

    def reassign(self, worker: str) -> Claim:
        """Take the task over from a dead worker, for ``worker``; return the new claim."""
        mine = self.task_file.reassigned_to(worker)
        files.move(self._path, self._spool.layout.claimed_task(mine))
        return Claim(self._spool, self.header, mine, self._owner)

    def set_aside(self, reason: str) -> bool:
        """Keep the task in ``failed/``, because nothing can be done with it; return whether it was moved there."""
        return set_aside(self._spool, self.task_file, reason)


def set_aside(spool: Spool, task_file: TaskFile, reason: str) -> bool:
    """Move a claimed task file to ``failed/``; return whether it was moved. Its header may be unreadable."""
    target = f"{spool.layout.failed}/{task_file.name}"
    _reported.warning(target, f"{reason} It is kept as {open_directory.display_path(target)}.")
    try:
        spool.in_directory(spool.layout.failed, lambda: files.move(spool.layout.claimed_task(task_file), target))
    except OSError as error:  # it stays claimed; recovery will meet it again
        _reported.warning(f"cannot {target}", f"Cannot set aside {task_file.name}: {error}")
        return False
    return True

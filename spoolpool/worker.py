"""Rank 0 of a group: claim, run, publish; in between wait, recover, and end when told to."""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from spoolpool import envelope, fsio, settings, task
from spoolpool.backoff import Backoff
from spoolpool.call import Report
from spoolpool.call import failed as failed_call
from spoolpool.claim import Claim, Claimer, commit, give_back, has_outcome, write_outcome
from spoolpool.envelope import Buffer
from spoolpool.errors import SpoolDenied, SpoolFull, SpoolpoolError
from spoolpool.identity import Identity, hostname
from spoolpool.journal import Journal
from spoolpool.layout import Lane, Token
from spoolpool.objects import read_object
from spoolpool.packages import is_requirement, lacks
from spoolpool.publishing import outcome_parts
from spoolpool.recovery import Recovery, report_lost
from spoolpool.registry import Registration, WorkerInfo, workers
from spoolpool.spool import Spool
from spoolpool.task import Failure, OutcomeHeader, TaskHeader
from spoolpool.trust import Trust
from spoolpool.waiting import Releaser, hold_back
from spoolpool.watch import Watch

log = logging.getLogger(__name__)

Init = tuple[Buffer, Sequence[Buffer]]

_FIRST_LOOK, _LAST_LOOK = 0.0005, 2.0
_LOOK_EVERY = 0.5  # seconds after which also a busy worker looks whether it is still wanted


class Group(Protocol):
    """What a worker needs of its group: see :mod:`spoolpool.group`."""

    size: int
    tainted: bool

    def run(self, token: Token, header: TaskHeader, content: Init, init: Init | None) -> tuple[Report, int]:
        """Run a call on all ranks; the outcome, and how many ranks' values are in it."""

    def knows(self, init: str) -> bool:
        """Whether this ``init_function`` was called in the group."""

    def settle(self, *, idle: bool) -> None:
        """Get ready for the next task, once the outcome of the last one is published; ``idle``: none is waiting."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """How long a worker works, and for whom."""

    trust: Trust = field(default_factory=Trust)
    """Whose tasks may run."""
    idle_timeout: float | None = None
    """Seconds without a task after which it ends."""
    max_tasks: int | None = None
    """Tasks after which it ends."""
    owner: Identity | None = None
    """The process for whose sake it runs; it ends when that has died."""
    max_time: float | None = None
    """Seconds after its start at which it begins no more tasks."""
    supervised: bool = False
    """Whether somebody replaces the group when it ends."""

    @property
    def ends(self) -> float | None:
        """The end in seconds since the epoch, by this host's clock, for functions that ask."""
        return None if self.max_time is None else time.time() + self.max_time


class Worker:
    """The loop of a group's rank 0. ``run`` returns the process's exit code."""

    def __init__(self, spool: Spool, group: Group, info: WorkerInfo, terms: Terms) -> None:
        self._spool = spool
        self._group = group
        self._terms = terms
        self._name = info.worker
        self._info = info
        # first: who cannot claim (without the key of a signed spool) must not announce itself
        self._claimer = Claimer(spool, info.worker, self._serves, terms.trust, info.weights)
        self._registration = Registration(spool, info)
        self._recovery = Recovery(spool)
        self._releaser = Releaser(spool)
        self._journal = Journal(spool, info.worker)
        self._watch = Watch()
        self._claim: Claim | None = None
        self._stopping = False
        self._until = None if terms.max_time is None else time.monotonic() + terms.max_time
        self._unsure = False  # whether something may be claimed in this worker's name without its knowing
        self._cancelled: set[str] = set()
        self._cancel_listed = 0.0
        self._look_due = 0.0
        self._round_due = 0.0
        self._round_every = spool.config.lease / 4
        # a forked child would hold the lock of the claim, and so witness for a worker that is dead
        os.register_at_fork(after_in_child=self._forked)

    def _serves(self, lane: Lane) -> bool:
        """Whether this group runs tasks of a lane; of packages that it lacks it tells in its entry."""
        if self._info.why_not(lane) is not None:
            return False
        missing = {tag: instead for tag in filter(is_requirement, lane.tags) if (instead := lacks(tag))}
        for tag, instead in missing.items():
            self._registration.note_lack(tag, instead)
        return not missing

    def _forked(self) -> None:
        if self._claim is not None:
            self._claim.release()

    def stop(self) -> None:
        """End after the task that runs; from any thread or signal handler."""
        self._stopping = True
        self._watch.wake()

    def run(self) -> int:
        """Work until there is a reason to end."""
        self._journal.write("worker started", worker=self._registration.directory)
        try:
            return self._loop()
        finally:
            self._registration.close(unfinished=self._recovery.discards(self._name))
            self._journal.write("worker ended")
            self._journal.close()
            self._watch.close()
            self._leave()

    def _loop(self) -> int:
        rhythm = Backoff(_FIRST_LOOK, _LAST_LOOK)
        watched: set[str] = set()
        idle_since = time.monotonic()
        done = 0
        woken = False
        while not self._stopping and (self._until is None or time.monotonic() < self._until):
            self._watch.clear()
            try:
                directories = self._turn()
            except OSError as error:  # the server is away for a moment
                log.warning("The look for a task, or its end, was put off: %s", error)
                self._unsure = True
                if not self._wanted():
                    break
                self._watch.wait(rhythm.next())
                continue
            if directories is None:
                done += 1
                woken = False
                rhythm.reset()
                idle_since = time.monotonic()
                if self._group.tainted:
                    return settings.EXIT_RENEW
                if self._terms.max_tasks is not None and done >= self._terms.max_tasks:
                    return 0
                self._housekeeping(idle=False)
                continue
            directories.add(self._registration.directory)
            if directories != watched:
                self._watch.keep(directories)
                watched = directories
                continue  # what came before the watch was set is found by one more look
            if (woken or time.monotonic() >= self._look_due) and not self._wanted():
                break
            if self._terms.idle_timeout is not None and time.monotonic() - idle_since > self._terms.idle_timeout:
                break
            self._housekeeping(idle=True)
            seconds = rhythm.next()
            if (due := self._releaser.due) is not None:
                seconds = min(seconds, max(0.0, due - time.monotonic()))
            woken = self._watch.wait(seconds)
            if woken:
                rhythm.reset()
        return 0

    def _turn(self) -> set[str] | None:
        """Do the next task; where there is none, return the directories into which one may come."""
        if self._unsure:
            self._take_up_forgotten()
        claim = self._claimer.next()
        if claim is None:
            self._group.settle(idle=True)
            return self._claimer.directories()
        self._work(claim)
        self._group.settle(idle=False)
        return None

    def _wanted(self) -> bool:
        """Whether nobody has asked this worker to end, and the process lives for whose sake it runs."""
        owner = self._terms.owner
        self._look_due = time.monotonic() + _LOOK_EVERY
        try:
            return not self._registration.told_to_stop() and (owner is None or not owner.dead())
        except OSError:  # the server is away for a moment
            return True

    def _leave(self) -> None:
        """Remove a spool that belonged to one executor, where that was killed and no other worker is left in it."""
        owner, spool = self._terms.owner, self._spool
        abandoned = spool.config.temporary and owner is not None and owner.dead()
        if abandoned and all(info.process.dead() for info in workers(spool)):
            fsio.remove_tree(spool.path)

    def _housekeeping(self, *, idle: bool) -> None:
        now = time.monotonic()
        if not idle and now >= self._look_due:  # a look after each task would cost as much as its claim
            self._stopping |= not self._wanted()
        if (due := self._releaser.due) is not None and due <= now:
            self._release()
        if now < self._round_due:
            return
        self._round_due = now + self._round_every * random.uniform(0.75, 1.25)
        self._journal.flush()
        if not self._registration.beats():
            log.warning("The entry of this worker was removed: it was taken for dead. It ends.")
            self._stopping = True
            return
        try:
            for line in self._recovery.round():
                log.warning("Recovered %s", line)
                self._journal.write("recovered", text=line)
            if idle:
                self._take_up_forgotten()
        except OSError as error:  # the server is away for a moment: later
            log.info("Recovery was put off: %s", error)
        self._release()

    def _release(self) -> None:
        try:
            self._releaser.round()
        except OSError as error:  # the server is away for a moment: later
            log.info("A look at the tasks that are held back was put off: %s", error)

    def _take_up_forgotten(self) -> None:
        """Go on with a task that is claimed in this worker's name, and that it does not work on."""
        claim = self._claimer.forgotten()
        self._unsure = claim is not None  # there may be more
        if claim is None:
            return
        try:
            if has_outcome(self._spool, claim.header.session, claim.token):
                commit(self._spool, claim.header.session, claim.token)
            elif fsio.there(self._spool.layout.claimed_token(claim.token)):
                # only now: before the look for the outcome, a recoverer might have committed it since
                self._work(claim)
        finally:
            claim.release()

    def _is_cancelled(self, task_id: str) -> bool:
        now = time.monotonic()
        if now - self._cancel_listed > 1.0:  # a mark asks politely: once a second is soon enough
            self._cancelled = set(fsio.names(self._spool.layout.cancel))
            self._cancel_listed = now
        return task_id in self._cancelled

    def _work(self, claim: Claim) -> None:
        """Run a claimed task and publish its outcome."""
        self._claim = claim
        token, header = claim.token, claim.header
        started = time.time()
        try:
            if token.attempt > task.attempts(header):
                report_lost(self._spool, header, token, f"Task {token.task} has used up its attempts.")
                return
            report: Report | None = None
            if self._is_cancelled(token.task):
                outcome = OutcomeHeader(task=token.task, kind="cancelled", worker=token.worker, host=hostname())
                parts = envelope.pack(task.encode(outcome), b"")
            else:
                report, ranks = self._run(claim)
                if report.failure and self._try_again(claim, report.failure):
                    return
                parts = outcome_parts(header, token, report, ranks, started)
            published = self._publish(claim, parts, started)
            self._journal.write(
                "task",
                task=token.task,
                name=header.name,
                session=header.session,
                lane=header.lane,
                attempt=token.attempt,
                submitted=header.submitted,
                started=started,
                ended=time.time(),
                published=published,
                kind="cancelled" if report is None else "error" if report.failure else "result",
                type=report.failure.type if report and report.failure else "",
            )
            if not published:
                log.warning(
                    "%s was taken from this worker, which was thought dead: its outcome is dropped.", token.task
                )
                self._recovery.discard(header.session, token)
        except SpoolDenied as error:  # the session's owner lets nobody write there: no reason to end
            self._claimer.set_aside(token, str(error))
        finally:
            claim.release()
            self._claim = None

    def _try_again(self, claim: Claim, failure: Failure) -> bool:
        """Hold a task back that raised and is to be tried again."""
        token = claim.token
        if token.attempt > claim.header.retries:
            return False
        self._journal.write("raised", task=token.task, attempt=token.attempt, type=failure.type)
        try:
            hold_back(self._spool, token)
        except OSError as error:  # fenced, or a passing fault: whoever finds the claim goes on with it
            log.info("Cannot hold back %s: %s", token.task, error)
            if fsio.there(self._spool.layout.claimed_token(token)):
                return False
        self._release()
        return True

    def _run(self, claim: Claim) -> tuple[Report, int]:
        header = claim.header
        init = None
        if header.init and not self._group.knows(header.init):
            try:
                found = read_object(self._spool, header.init, self._terms.trust)
            except (SpoolpoolError, OSError) as error:
                reason = SpoolpoolError(f"The init_function of session {header.session} cannot be read: {error}")
                return failed_call(reason, 0), 1
            init = (found.payload, found.buffers)
        return self._group.run(claim.token, header, (claim.content.payload, claim.content.buffers), init)

    def _publish(self, claim: Claim, parts: list[Buffer], started: float) -> bool:
        """Write and commit; tries on while the disk is full, then publishes that instead of the result."""
        rhythm = Backoff(0.1, 5.0, 2.0)
        deadline = time.monotonic() + self._spool.config.lease
        session = claim.header.session
        while True:
            try:
                self._write(session, claim.token, parts)
                break
            except OSError as error:
                log.warning("Cannot write the outcome of %s yet: %s", claim.token.task, error)
                if time.monotonic() > deadline:
                    reason = SpoolFull(
                        f"The task ran, but its result could not be stored in {self._spool.path}: {error.strerror}."
                    )
                    parts = outcome_parts(claim.header, claim.token, failed_call(reason, 0), 1, started)
                if self._stopping:
                    give_back(self._spool, claim.header, claim.token)
                    raise SpoolFull(
                        f"Ended before the result of {claim.token.task} could be written ({error.strerror}): it "
                        "waits again."
                    ) from error
                rhythm.sleep()
        return commit(self._spool, session, claim.token)

    def _write(self, session: str, token: Token, parts: list[Buffer]) -> None:
        """Make the file of an outcome, whatever lies in its place."""
        try:
            write_outcome(self._spool, session, token, parts)
            return
        except FileExistsError:
            if self._group.size > 1:
                self._await_abort()
        # nobody else made it: a request was repeated, or this process made half of it and could not take it away
        if not has_outcome(self._spool, session, token):
            fsio.remove(self._spool.layout.outcome(session, token))
            write_outcome(self._spool, session, token, parts)

    def _await_abort(self) -> None:
        """Another rank may have published its exception; then it is about to end the group."""
        rhythm = Backoff(0.05, 1.0)
        end = time.monotonic() + settings.GRACE
        while time.monotonic() < end:
            rhythm.sleep()

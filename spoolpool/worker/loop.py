"""Rank 0 of a group: claim, run, publish; in between wait, recover, and end when told to."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from spoolpool import settings
from spoolpool.calls.results import DependencyValue
from spoolpool.calls.run import RankResult
from spoolpool.calls.run import failure_report as failed_call
from spoolpool.context import assisting
from spoolpool.errors import DependencyFailed, NotTrusted, SpoolDenied, SpoolpoolError
from spoolpool.format import headers
from spoolpool.format.envelope import Buffer
from spoolpool.format.headers import Failure
from spoolpool.format.names import Lane
from spoolpool.protocol.cancel import CancelRequests
from spoolpool.protocol.claim import Claim
from spoolpool.protocol.claimer import Claimer
from spoolpool.protocol.delay import DelayedTasks
from spoolpool.protocol.dependencies import Dependencies, OutcomeIndex
from spoolpool.protocol.journal import Journal
from spoolpool.protocol.objects import read_object
from spoolpool.protocol.recovery import Recovery
from spoolpool.protocol.registration import Registration
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.workers import WorkerInfo, read_workers
from spoolpool.security.trust import Trust
from spoolpool.system import files, fork
from spoolpool.system.backoff import Backoff
from spoolpool.system.packages import is_requirement, lacks
from spoolpool.system.processes import ProcessId
from spoolpool.system.watch import DirectoryWatcher
from spoolpool.worker.publish import (
    Publisher,
    cancellation_report,
    cancelled_parts,
    dependency_failure_report,
    outcome_parts,
)

if TYPE_CHECKING:
    from spoolpool.worker.mpi_group import MPIGroup
    from spoolpool.worker.serial_group import SerialGroup

    Group = MPIGroup | SerialGroup

log = logging.getLogger(__name__)

Init = tuple[Buffer, Sequence[Buffer]]

_FIRST_LOOK, _LAST_LOOK = 0.0005, 2.0
_LOOKS = 1000  # per second, of all idle groups of a spool together: more of them look less often
_BREATH = 0.001  # seconds after a task in which the next one may announce itself: cheaper than to look for it
_FIRST_VAIN, _LAST_VAIN = 0.001, 0.008  # seconds of rest for who was woken and came too late, each time in a row
_LOOK_EVERY = 0.5  # seconds after which also a busy worker looks whether it is still wanted
_LONG = 0.02  # seconds of a task after which that look costs nothing beside it


class ClaimOutcome(NamedTuple):
    """What came of a claim."""

    parts: list[Buffer]
    """Its outcome, as a file."""
    report: RankResult | None = None
    """What the call reported; None of a cancelled one."""
    ran: float = 0.0
    """Seconds that the call took on all ranks."""


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """How long a worker works, and for whom."""

    trust: Trust = field(default_factory=Trust)
    """Whose tasks may run."""
    idle_timeout: float | None = None
    """Seconds without a task after which it ends."""
    max_tasks: int | None = None
    """Tasks after which it ends."""
    owner: ProcessId | None = None
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

    def __init__(self, spool: Spool, group: Group, info: WorkerInfo, terms: WorkerOptions) -> None:
        self._spool = spool
        self._group = group
        self._terms = terms
        self._name = info.worker
        self._info = info
        # first: who cannot claim (without the key of a signed spool) must not announce itself
        self._claimer = Claimer(spool, info.worker, self._serves, terms.trust, info.weights)
        self._registration = Registration(spool, info)
        self._recovery = Recovery(spool)
        ended = OutcomeIndex(spool)
        self._releaser = DelayedTasks(spool, ended)
        self._dependencies = Dependencies(spool, terms.trust, ended)
        self._publisher = Publisher(spool, group.size)
        self._journal = Journal(spool, info.worker)
        self._watch = DirectoryWatcher()
        self._claims: list[Claim] = []  # the later ones were claimed by a task that waits for them
        self._assistants: dict[str, Claimer] = {}
        self._here = os.getpid(), threading.get_ident()
        self._stopping = False
        self._until = None if terms.max_time is None else time.monotonic() + terms.max_time
        self._unsure = False  # whether something may be claimed in this worker's name without its knowing
        self._marks = CancelRequests(spool)
        self._busy = False  # whether the last turn did a task
        self._stirred = False  # whether something changed that was no task: perhaps this worker is to end
        self._look_due = 0.0
        self._round_due = 0.0
        self._round_every = spool.config.lease / 4
        fork.call_in_child(self, Worker.after_fork)

    def _serves(self, lane: Lane) -> bool:
        """Whether this group runs tasks of a lane; of packages that it lacks it tells in its entry."""
        if self._info.why_not(lane) is not None:
            return False
        missing = {tag: instead for tag in filter(is_requirement, lane.tags) if (instead := lacks(tag))}
        for tag, instead in missing.items():
            self._registration.report_lack(tag, instead)
        return not missing

    def after_fork(self) -> None:
        """In a forked child: it would hold the lock of the claim, and so witness for a worker that is dead."""
        for claim in self._claims:
            claim.close()

    def stop(self, within: float | None = None) -> None:
        """End after the task that runs; from any thread or signal handler.

        If that takes longer than ``within`` seconds, the task is given back and the process ended: a batch system that
        takes the nodes back tells only the ranks, and kills them a little later.
        """
        self._stopping = True
        self._watch.wake()
        if within is not None:
            timer = threading.Timer(within, self._surrender)
            timer.daemon = True
            timer.start()

    def _surrender(self) -> None:
        """Give back what runs, and end. The main thread may be about to commit it: one of the two renames succeeds."""
        claims = list(self._claims)
        for claim in claims:
            try:
                claim.release()
                log.warning("%s was given back: it did not end in time.", claim.task_file.task)
            except (OSError, SpoolpoolError) as error:  # then it is a dead worker's
                log.warning("Cannot give back %s: %s", claim.task_file.task, error)
        if claims:
            self._registration.close()
            os._exit(0)

    def run(self) -> int:
        """Work until there is a reason to end."""
        self._journal.write(
            "worker started", worker=self._registration.directory, job=self._info.job, ranks=self._info.ranks
        )
        try:
            return self._loop()
        finally:
            self._registration.close(unfinished=self._recovery.has_discards(self._name))
            self._journal.write("worker ended")
            self._journal.close()
            self._watch.close()
            self._leave()
            self._spool.close_directories()

    def _loop(self) -> int:
        backoff = Backoff(_FIRST_LOOK, _LAST_LOOK)
        vain = Backoff(_FIRST_VAIN, _LAST_VAIN, 2.0)
        watched: set[str] = set()
        idle_since = time.monotonic()
        done = 0
        woken = False
        while self._may_begin():
            begun = time.monotonic()
            try:
                directories = self._turn(woken)
            except OSError as error:  # the server is away for a moment
                log.warning("The look for a task, or its end, was put off: %s", error)
                self._unsure = True
                if not self._wanted():
                    break
                self._watch.wait(backoff.next())
                continue
            if directories is None:
                done += 1
                woken = False
                backoff.reset()
                vain.reset()
                idle_since = time.monotonic()
                if self._group.tainted:
                    return settings.EXIT_RENEW
                if self._terms.max_tasks is not None and done >= self._terms.max_tasks:
                    return 0
                self._housekeeping(busy_since=begun)
                continue
            directories |= {self._registration.directory, self._spool.layout.waiting}
            if directories != watched:
                self._watch.keep(directories)
                watched = directories
                self._stirred = True
                continue  # what came before the watch was set is found by one more look
            if (woken or self._stirred or time.monotonic() >= self._look_due) and not self._wanted():
                break
            self._stirred = False
            if self._terms.idle_timeout is not None and time.monotonic() - idle_since > self._terms.idle_timeout:
                break
            self._housekeeping()
            if woken:  # another group was quicker, and may be with the next task, which would wake all again
                vain.sleep()
            woken = self._wait(backoff)
        return 0

    def _wait(self, backoff: Backoff) -> bool:
        """Wait for the next look; whether something came before."""
        backoff.last = max(_LAST_LOOK, self._recovery.worker_count / _LOOKS)
        seconds = backoff.next()
        if (due := self._releaser.due) is not None:
            seconds = min(seconds, max(0.0, due - time.monotonic()))
        woken = self._watch.wait(seconds)
        if woken:
            backoff.reset()
        return woken

    def _may_begin(self) -> bool:
        """Whether another task may begin, if one comes."""
        return not self._stopping and (self._until is None or time.monotonic() < self._until)

    def _turn(self, woken: bool) -> set[str] | None:
        """Do the next task; where there is none, return the directories into which one may come.

        ``woken``: something came, but it need not be a task that is ready.
        """
        if not self._claimer.has_names:  # else no listing follows that changes would announce
            self._stirred |= self._breathe()
            woken = woken or self._stirred
        if self._unsure:
            self._take_up_forgotten()
        claim = self._claimer.next()
        if claim is None and self._releaser.check(woken=woken):
            claim = self._claimer.next()
        if claim is None:
            self._group.settle(idle=True)
            return self._claimer.directories()
        self._stirred = False
        self._work(claim)
        self._busy = True
        self._group.settle(idle=False)
        return None

    def _breathe(self) -> bool:
        """Forget the changes that a listing will show; after a task, give the next one a moment to come first."""
        busy, self._busy = self._busy, False
        if busy:
            self._group.settle(idle=True)
        return self._watch.pause(_BREATH if busy else 0.0)

    def _wanted(self) -> bool:
        """Whether nobody has asked this worker to end, and the process lives for whose sake it runs."""
        owner = self._terms.owner
        self._look_due = time.monotonic() + _LOOK_EVERY
        try:
            return not self._registration.is_stop_requested() and (owner is None or not owner.is_provably_dead())
        except OSError:  # the server is away for a moment
            return True

    def _leave(self) -> None:
        """Remove a spool that belonged to one executor, where that was killed and no other worker is left in it."""
        owner, spool = self._terms.owner, self._spool
        abandoned = spool.config.temporary and owner is not None and owner.is_provably_dead()
        if abandoned and all(info.process.is_provably_dead() for info in read_workers(spool)):
            files.remove_tree(spool.path)

    def _housekeeping(self, busy_since: float | None = None) -> None:
        """What is due beside the tasks; after one, which began at a time of the monotonic clock, or while idle."""
        now = time.monotonic()
        # a look after each short task would cost as much as its claim
        if busy_since is not None and (now >= self._look_due or now - busy_since > _LONG):
            self._stopping |= not self._wanted()
        if (due := self._releaser.due) is not None and due <= now:
            self._release()
        if now < self._round_due:
            return
        self._round_due = now + self._round_every * random.uniform(0.75, 1.25)
        self._journal.flush()
        if not self._registration.keep_heartbeat():
            log.warning("The entry of this worker was removed: it was taken for dead. It ends.")
            self._stopping = True
            return
        try:
            for line in self._recovery.round():
                log.warning("Recovered %s", line)
                self._journal.write("recovered", text=line)
            if busy_since is None and self._recovery.took_round:
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
        claim = self._claimer.forgotten([claim.task_file for claim in self._claims])
        self._unsure = claim is not None  # there may be more
        if claim is None:
            return
        with claim:
            if claim.has_outcome(os.geteuid()):
                claim.commit()
            elif claim.exists():
                # only now: before the look for the outcome, a recoverer might have committed it since
                self._work(claim)

    def _work(self, claim: Claim) -> None:
        """Run a claimed task and publish its outcome."""
        self._claims.append(claim)
        task_file, header = claim.task_file, claim.header
        started = time.time()
        try:
            if task_file.attempt > headers.attempts(header):
                claim.report_lost(f"Task {task_file.task} has used up its attempts.")
                return
            found = (
                ClaimOutcome(cancelled_parts(task_file))
                if self._marks.apply_to(task_file, claim.owner)
                else self._outcome(claim, started)
            )
            if found is None:
                return
            parts, report, ran = found
            published = self._publisher.publish(claim, parts, started, lambda: self._stopping)
            self._journal.write(
                "task",
                task=task_file.task,
                name=header.name,
                session=header.session,
                lane=header.lane,
                attempt=task_file.attempt,
                submitted=header.submitted,
                started=started,
                ended=time.time(),
                ran=ran,
                published=published,
                kind="cancelled" if report is None else "error" if report.failure else "result",
                type=report.failure.type if report and report.failure else "",
            )
            if published:
                self._releaser.record_commit(header.session, task_file)
                self._marks.withdraw(task_file.task)
            else:
                log.warning(
                    "%s was taken from this worker, which was thought dead: its outcome is dropped.", task_file.task
                )
                self._recovery.discard(header.session, task_file)
        except (SpoolDenied, NotTrusted) as error:  # nobody may write where its results go: no reason to end
            claim.set_aside(str(error))
        finally:
            claim.close()
            self._claims.remove(claim)

    def _outcome(self, claim: Claim, started: float) -> ClaimOutcome | None:
        """Make the call, if what it needs lets it.

        Returns None where there will be no outcome of this claim.
        """
        task_file, header = claim.task_file, claim.header
        needed: Sequence[DependencyValue] = ()
        if header.needs:
            try:
                found = self._dependencies.gather(header, lambda: self._goes_on(claim))
            except CancelledError:
                return ClaimOutcome(cancelled_parts(task_file))
            except DependencyFailed as error:
                report = dependency_failure_report(error)
                return ClaimOutcome(outcome_parts(header, task_file, report, 1, started), report)
            if found is None:
                return None
            needed = found
        begun = time.monotonic()
        report, ranks = self._run(claim, needed)
        ran = time.monotonic() - begun
        if cancellation_report(report):
            return ClaimOutcome(cancelled_parts(task_file), None, ran)
        if report.failure and self._try_again(claim, report.failure, started):
            return None
        return ClaimOutcome(outcome_parts(header, task_file, report, ranks, started), report, ran)

    def _goes_on(self, claim: Claim) -> bool:
        """Whether to wait on for what a claimed task needs: it is given back where this worker is to end."""
        if self._stopping:
            claim.release()
        return not self._stopping and claim.exists()

    def _assist(self, submitter: str) -> bool:
        """Run one of the tasks of a task that waits for them, in its thread: no other group may be free for them."""
        if (os.getpid(), threading.get_ident()) != self._here:
            return False
        try:
            if self._unsure:
                self._take_up_forgotten()
            claimer = self._assistants.get(submitter)
            if claimer is None:
                claimer = self._assistants[submitter] = Claimer(
                    self._spool, self._name, self._serves, self._terms.trust, submitter=submitter
                )
            claim = claimer.next()
            if claim is not None:
                self._work(claim)
            return claim is not None
        except (OSError, SpoolpoolError) as error:  # not the waiting task's: it goes on waiting
            log.warning("A task of a task that waits was put off: %s", error)
            self._unsure = True
            return False

    def _try_again(self, claim: Claim, failure: Failure, started: float) -> bool:
        """Hold a task back that raised and is to be tried again."""
        task_file = claim.task_file
        if task_file.attempt > claim.header.retries:
            return False
        self._journal.write(
            "raised",
            task=task_file.task,
            name=claim.header.name,
            attempt=task_file.attempt,
            type=failure.type,
            started=started,
            ended=time.time(),
        )
        try:
            claim.delay()
        except OSError as error:  # fenced, or a passing fault: whoever finds the claim goes on with it
            log.info("Cannot hold back %s: %s", task_file.task, error)
            if claim.exists():
                return False
        self._release()
        return True

    def _run(self, claim: Claim, needed: Sequence[DependencyValue]) -> tuple[RankResult, int]:
        header = claim.header
        init = None
        if header.init and not self._group.knows(header.init):
            try:
                found = read_object(self._spool, header.init, self._terms.trust, claim.owner)
            except (SpoolpoolError, OSError) as error:
                reason = SpoolpoolError(f"The init_function of session {header.session} cannot be read: {error}")
                return failed_call(reason, 0), 1
            init = (found.payload, found.buffers)
        content = claim.content.payload, claim.content.buffers
        if self._group.size > 1:  # the other ranks are not free for other tasks
            return self._group.run(claim.task_file, header, content, init, needed)
        try:
            with assisting(self._spool.config.id, self._assist):
                return self._group.run(claim.task_file, header, content, init, needed)
        finally:
            if len(self._claims) == 1:
                self._assistants.clear()

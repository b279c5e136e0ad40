"""Loop of a worker: rank 0 of a group claims tasks and runs them until its end is requested."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from dataclasses import dataclass, field

from spoolpool import settings
from spoolpool.format.names import Lane
from spoolpool.protocol.dependencies import OutcomeIndex
from spoolpool.protocol.journal import Journal
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.worker_registration import End, Registration
from spoolpool.protocol.workers import WorkerInfo
from spoolpool.security.trust import Trust
from spoolpool.system.mounts import is_local
from spoolpool.system.packages import is_requirement, lacks
from spoolpool.system.processes import ProcessId
from spoolpool.system.watch import DirectoryWatcher
from spoolpool.worker.claims import Claims
from spoolpool.worker.execution import Execution
from spoolpool.worker.group import Group
from spoolpool.worker.housekeeping import Housekeeping
from spoolpool.worker.idle_wait import IdleWait
from spoolpool.worker.renewal import Renewal
from spoolpool.worker.task_journal import TaskJournal

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """Trust of a worker, and the conditions under which it ends."""

    trust: Trust = field(default_factory=Trust)
    """Accounts whose tasks may run."""
    idle_timeout: float | None = None
    """Seconds without a task after which it ends."""
    max_tasks: int | None = None
    """Number of tasks after which it ends."""
    owner: ProcessId | None = None
    """Process that needs the worker, which ends after the death of that process."""
    max_time: float | None = None
    """Seconds after its start at which it begins no more tasks."""
    supervised: bool = False
    """Whether a supervisor replaces the group when it ends."""
    replaced: bool = False
    """Whether the group is replaced when it ends because of what tasks have left, by a supervisor or by itself."""
    renewals: int = 0
    """Number of groups in a row before this one that ended because of what tasks had left."""

    @property
    def ends(self) -> float | None:
        """The end in seconds since the epoch, by this host's clock, for functions that ask."""
        return None if self.max_time is None else time.time() + self.max_time


class Worker:
    """Loop of rank 0 of a worker group."""

    def __init__(self, spool: Spool, group: Group, info: WorkerInfo, options: WorkerOptions) -> None:
        self._spool = spool
        self._group = group
        self._info = info
        self._options = options
        self._end_time = None if options.max_time is None else time.monotonic() + options.max_time
        # before the registration: a worker that cannot claim (no key of a signed spool) must not announce itself
        journal = Journal(spool, info.worker)
        self.task_journal = TaskJournal(journal)
        """Journal entries about the tasks of this worker."""
        on_set_aside = self.task_journal.write_set_aside
        self._claims = Claims(spool, info, options.trust, self._serves, on_set_aside, self._seconds_left)
        self._registration = Registration(spool, info)
        outcomes = OutcomeIndex(spool)
        self._housekeeping = Housekeeping(spool, info, self._registration, outcomes, journal, options.owner)
        self._execution = Execution(
            spool,
            group,
            options.trust,
            claims=self._claims,
            outcomes=outcomes,
            housekeeping=self._housekeeping,
            journal=self.task_journal,
            is_stopping=lambda: self._stopping,
            may_go_on=self._may_go_on,
        )
        self._watch = DirectoryWatcher()
        self._idle = IdleWait(self._watch, tells=is_local(spool.path))
        self._renewal = Renewal(options.renewals, replaced=options.replaced)
        self._stopping = False
        self._served: Lane | None = None  # the last lane that depends on nothing that changes
        self.done = 0
        """Number of tasks that have run."""

    def _serves(self, lane: Lane) -> bool:
        """Return whether this group runs tasks of a lane; record in its entry the packages that it lacks."""
        if lane is self._served:
            return True
        if self._info.why_not(lane) is not None:
            return False
        if not lane.tags:  # tags of packages are looked up each time: one may be installed, or removed
            if lane.user is None:  # nor may an account that is trusted by its group stay in it
                self._served = lane
            return True
        missing = {tag: instead for tag in filter(is_requirement, lane.tags) if (instead := lacks(tag))}
        for tag, instead in missing.items():
            self._registration.report_lack(tag, instead)
        return not missing

    def stop(self, within: float | None = None) -> None:
        """End after the running task. May be called from any thread or signal handler.

        If the task takes longer than ``within`` seconds, it is released and the process ended: a batch system that
        takes the nodes back only signals the ranks, and kills them a little later.
        """
        self._stopping = True
        self._watch.wake()
        if within is not None:
            timer = threading.Timer(within, self._release_and_exit)
            timer.daemon = True
            timer.start()

    def _release_and_exit(self) -> None:
        if self._claims.release(self._housekeeping.journal):
            self._housekeeping.journal.close()
            self._registration.close(end="done" if self._options.supervised else None)
            os._exit(0)

    def run(self) -> int:
        """Work until there is a reason to end; return the exit code of the process."""
        self._housekeeping.begin()
        end: End | None = None
        try:
            end = self._loop()
            return settings.EXIT_RENEW if end == "renew" else 0
        finally:
            self._housekeeping.end(end if self._options.supervised else None)
            self._watch.close()
            self._housekeeping.remove_abandoned_spool()
            self._spool.close_directories()

    def _loop(self) -> End:
        """Run tasks until there is a reason to end; return it."""
        while self._may_begin():
            begun = time.monotonic()
            try:
                directories = self._run_next()
            except OSError as error:  # the server is unreachable for a moment
                log.warning("The claim of a task, or its end, was put off: %s", error)
                self._claims.uncertain = True
                if not self._housekeeping.should_continue():
                    break
                self._idle.wait_after_error()
                continue
            if directories is None:
                self.done += 1
                if self._options.max_tasks is not None and self.done >= self._options.max_tasks:
                    return "done"
                if self._must_renew():
                    return self._end_of_tainted()
                self._may_go_on(begun)
            elif self._must_renew():  # the pause between two replacements is over
                return self._end_of_tainted()
            elif not self._wait(directories | {self._registration.directory, self._spool.layout.waiting}):
                break
        return "done"

    def _must_renew(self) -> bool:
        """Return whether the group is to be replaced before its next task."""
        if not self._renewal.is_due(self._group.severity):
            return self._group.tainted
        replaced = self._options.replaced
        advice = "" if replaced else " Start another one; a supervisor ('spool-worker --launcher') would replace it."
        log.warning("Worker group %s ends because of what its tasks have left.%s", self._info.worker, advice)
        return True

    def _end_of_tainted(self) -> End:
        """Return the end of a group that is to be replaced: nothing replaces it after a request to end."""
        return "renew" if self._may_begin() and self._housekeeping.should_continue() else "done"

    def _may_begin(self) -> bool:
        """Return whether another task may begin."""
        return not self._stopping and self._seconds_left() > 0

    def _may_go_on(self, begun: float) -> bool:
        """Do the duties after a task or a call of a pack that began at a monotonic time; return whether one may begin.

        Raises :class:`BrokenSpool` if the spool is gone.
        """
        if not self._housekeeping.after_task(begun):
            self._stopping = True  # never `|=`: a signal handler may set it between the read and the write
        return self._may_begin()

    def _seconds_left(self) -> float:
        """Return the seconds until no more tasks are begun."""
        return math.inf if self._end_time is None else self._end_time - time.monotonic()

    def _run_next(self) -> set[str] | None:
        """Run the next task; if there is none, return the directories in which one may appear."""
        idle, claimer = self._idle, self._claims.claimer
        if not claimer.has_names:  # otherwise no listing follows that would show the changes
            after_task = idle.take_after_task()
            if after_task:
                self._group.settle(idle=True)
            idle.pause(after_task=after_task)
        if self._claims.uncertain:
            self._execution.resume_forgotten()
        claim = claimer.next(late=idle.in_reserve)
        if claim is None and self._housekeeping.delayed.check(woken=idle.has_event()):
            claim = claimer.next()
        if claim is None:
            self._group.settle(idle=True)
            return claimer.directories()
        idle.event_pending = False
        begun = time.monotonic()
        self._execution.run(claim)
        idle.reset(time.monotonic() - begun)
        self._group.settle(idle=False)
        return None

    def _wait(self, directories: set[str]) -> bool:
        """Wait for a change in the directories; return False if the worker is to end."""
        idle, housekeeping = self._idle, self._housekeeping
        claimer = self._claims.claimer
        if not idle.watch(directories, claimer.buckets() if claimer.is_watchable else set()):
            return True
        if (idle.has_event() or housekeeping.is_check_due()) and not housekeeping.should_continue():
            return False
        idle.event_pending = False
        if self._options.idle_timeout is not None and idle.seconds > self._options.idle_timeout:
            return False
        if not housekeeping.run_due(self._execution.resume_forgotten):
            self._stopping = True
        idle.wait(housekeeping.next_due(), housekeeping.worker_count, claimer.left)
        return True

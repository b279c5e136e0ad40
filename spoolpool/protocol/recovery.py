"""Recovery of the claims of dead workers, by any process that waits: workers, submitters, supervisors.

Any number of recoverers may run at once, without a lock between them. The source of each rename exists once, so one
of them wins each step, and the others see the true state in their next round.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Container, Iterable
from typing import NamedTuple

from spoolpool.errors import BadTaskFile, NotTrusted, SpoolpoolError
from spoolpool.format import headers
from spoolpool.format.headers import TaskHeader
from spoolpool.format.names import TaskFile, is_session, is_worker_id, new_worker_id, parse_task_file
from spoolpool.protocol import cancel, lost_attempts, outcome_log, workers
from spoolpool.protocol.claim import Claim, GiveBack
from spoolpool.protocol.failure_detector import FailureDetector
from spoolpool.protocol.journal import Journal
from spoolpool.protocol.open_packs import OpenPackSealer
from spoolpool.protocol.outcomes import read_outcome_header
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.tasks import read_opened_task, task_directories
from spoolpool.system import files, open_directory
from spoolpool.system.limited_log import LimitedLog
from spoolpool.system.locks import Lock, try_lock

log = logging.getLogger(__name__)
_reported = LimitedLog(log)

_MOST_LINES = 1000  # of text about the tasks that one round recovered: members of a group can make up claims
_MOST_KEPT = 10_000  # records of lost attempts that one recoverer writes, for the same reason
_PASSES = 3  # through all tasks, one of which may move back meanwhile
_MOST_SEEN = 100_000  # outcomes without a purpose that are remembered for their second check

_EXIT_SECONDS = 2.0  # for a supervisor to record how its worker ended; it looks twice a second


class _Recovered(NamedTuple):
    """A claim of a dead worker that was ended."""

    task_file: TaskFile
    text: str
    """Line of text for people; it begins with the id of the task."""
    header: TaskHeader | None = None
    """None if it cannot be read."""
    kind: str = ""
    """Kind of the outcome of the task, or ``set aside``; empty if the task runs again."""
    reason: str = ""
    """How the worker ended, or why the task was set aside."""


class Recovery:
    """One recoverer, with its observations. Not for use from several threads at once.

    It has a worker id of its own, and takes tasks over in that name if their attempts are used up. It runs no task, so
    that each claim in that name is to be ended. A caller that has a reason to check all workers now, and does so
    seldom, passes ``all_workers``. Each recovered task gets an entry in the ``journal``, if there is one.
    """

    def __init__(self, spool: Spool, journal: Journal | None = None, *, all_workers: bool = False) -> None:
        self._spool = spool
        self._journal = journal
        self._me = new_worker_id()
        self._detector = FailureDetector(spool, all_workers=all_workers)
        self._open_packs = OpenPackSealer(spool)
        self._kept = 0
        self._first_seen: dict[str, float] = {}  # paths of outcomes that may be without a purpose
        self._swept: set[str] = set()
        self._dead_since: dict[str, float] = {}  # by worker, until it is recovered
        self.took_round = False
        """Whether the last :meth:`round` was not left to other observers."""
        self.worker_count = 0
        """Number of workers in the last round that was taken."""

    def round(self, spare: Container[str] = ()) -> list[str]:
        """Check the claims of all workers but ``spare`` once; return a line of text for each task that was recovered.

        To be called four times a lease; if there are many observers, most of these calls leave the round to others.
        In a dropbox only the owner can see all claims, and makes rounds.
        """
        done: list[str] = []
        self.took_round = self._spool.sees_all and self._detector.due()
        if not self.took_round:
            return done
        claims = self._claims()
        entries = set(filter(is_worker_id, files.list_names(self._spool.layout.workers)))
        self.worker_count = len(entries)
        checked = self._detector.check(claims.keys() | entries, claims)
        dead = {
            worker: lock_expired
            for worker, lock_expired in checked.items()
            if worker not in spare and not self._is_exit_due(worker)
        }
        if self._me in claims:
            dead[self._me] = True
        done += self._recover_all((task_file, dead[worker]) for worker in dead for task_file in claims.get(worker, []))
        if dead.keys() - self._swept:
            for session in filter(is_session, files.list_names(self._spool.layout.outgoing)):
                self.sweep(session, dead)
        done += self._open_packs.round()
        self._swept = set(dead)
        self._discard_again()
        if dead:
            unfinished = self._claims().keys() | {path.rpartition(".")[2] for path in self._first_seen}
            for worker in dead.keys() - unfinished:
                workers.remove_worker(self._spool, worker)
                self._detector.forget(worker)
                self._dead_since.pop(worker, None)
        return done

    def _recover_all(self, claims: Iterable[tuple[TaskFile, bool]]) -> list[str]:
        """End claims of dead workers, each with whether its lock has expired; return lines of text."""
        done: list[str] = []
        count = 0
        for task_file, lock_expired in claims:
            try:
                recovered = self._recover(task_file, lock_expired)
            except (OSError, SpoolpoolError) as error:
                # stop with this one: whatever happened, the next round sees the true state
                log.info("Cannot recover %s now: %s", task_file.name, error)
                continue
            count += recovered is not None
            if recovered is not None and count <= _MOST_LINES:
                done.append(recovered.text)
                self._record(recovered)
        if count > _MOST_LINES:
            done.append(f"{count - _MOST_LINES} more tasks")
        if done and self._journal is not None:
            self._journal.flush()
        return done

    def _record(self, recovered: _Recovered) -> None:
        if self._journal is not None:
            task_file, header = recovered.task_file, recovered.header
            self._journal.write(
                "recovered",
                task=task_file.task,
                name=header.name if header else "",
                label=headers.label_of(header) if header else "",
                session=header.session if header else "",
                lane=header.lane if header else "",
                worker=task_file.worker,
                attempt=task_file.attempt,
                attempts=headers.attempts(header) if header else 0,
                kind=recovered.kind,
                reason=recovered.reason,
                text=recovered.text,
                **({"calls": task_file.calls} if task_file.calls else {}),
            )

    def _is_exit_due(self, worker: str) -> bool:
        """Return whether to leave a dead worker to its supervisor for a moment, which records how the worker ended.

        The supervisor is alive on this host, and recovers the worker itself. If it does not, a later round does.
        """
        if worker == self._me or lost_attempts.has_exit(self._spool, worker):
            return False
        now = time.monotonic()
        if now - self._dead_since.setdefault(worker, now) >= min(_EXIT_SECONDS, self._spool.config.lease / 4):
            return False
        info = workers.read_worker(self._spool, worker)
        return info is not None and info.supervisor is not None and info.supervisor.is_alive_here()

    def _claims(self) -> dict[str, list[TaskFile]]:
        """Return the claims of each worker."""
        claims: dict[str, list[TaskFile]] = {}
        for task_file in map(parse_task_file, files.list_names(self._spool.layout.claimed)):
            if task_file is not None and task_file.worker:
                claims.setdefault(task_file.worker, []).append(task_file)
        return claims

    def take_over(self, worker: str, reason: str, *, over: float | None = None) -> list[tuple[Claim, GiveBack]]:
        """Take the claims over from a worker that the caller is about to end, for :meth:`release`.

        Until then no other worker can run the tasks, and what the worker publishes while it is ended is discarded: a
        program that a task has started gets the signal as well, and the task fails for that reason alone. ``over`` are
        the seconds since the end of its walltime, if that is the reason.
        """
        taken = []
        for task_file in self._claims().get(worker, []):
            try:
                path = self._spool.layout.claimed_task(task_file)
                with files.reading(path, None) as (fd, status):
                    header, owner = read_opened_task(self._spool, fd, path, task_file)
                claim = Claim(self._spool, header, task_file, owner)
                if self._has_outcome(claim):
                    claim.commit()
                    continue
                ran = max(0.0, self._seconds_since(status.st_ctime, worker) - (over or 0.0))
                mine = claim.reassign(self._me)
                left = None
                if task_file.calls:
                    left = task_file, outcome_log.size_of(self._spool, header.session, task_file)
                why = GiveBack(reason=reason, ran=ran, at_walltime=over is not None, worker=worker, log=left)
                taken.append((mine, why))
            except (OSError, SpoolpoolError) as error:  # committed just now; or a round will find it
                log.info("Cannot take %s over now: %s", task_file.name, error)
        return taken

    def release(self, taken: Iterable[tuple[Claim, GiveBack]]) -> list[str]:
        """Release claims of a worker that has ended; return the ids of the tasks that are ready again.

        It costs no attempt, so it is for supervisors alone: only the process that ended a worker knows that its death
        says nothing about its task.
        """
        done = []
        for claim, why in taken:
            try:
                if claim.give_back(why, self._journal):  # else it was reported as lost, or the claim had ended
                    done.append(claim.task_file.task)
            except (OSError, SpoolpoolError) as error:  # a round will find it
                log.info("Cannot release %s now: %s", claim.task_file.name, error)
        return done

    def _seconds_since(self, claimed: float, worker: str) -> float:
        """Return the seconds since a claim that was dated by the file server, but not more than the age of its worker.

        Some filesystems date no renames.
        """
        started = (files.mtime_ns(f"{self._spool.layout.worker(worker)}/info.json") or 0) / 1e9
        return self._spool.server_time() - max(claimed, started)

    def _has_outcome(self, claim: Claim) -> bool:
        writer = files.owner(self._spool.layout.worker(claim.task_file.worker)) if self._spool.shared else None
        return claim.has_outcome(writer)

    def _recover(self, task_file: TaskFile, lock_expired: bool) -> _Recovered | None:
        path = self._spool.layout.claimed_task(task_file)
        try:
            fd = self._spool.open_for_lock(path)
        except OSError as error:
            if error.errno in files.GONE:  # committed, or another recoverer was first
                return None
            raise
        try:
            if not lock_expired and try_lock(fd) is Lock.BUSY:  # its holder is alive: paused, or cut off
                return None
            try:
                header, owner = read_opened_task(self._spool, fd, path, task_file)
            except BadTaskFile as error:  # its content was lost with the node's power
                target = f"{self._spool.layout.failed}/{task_file.name}"
                self._spool.in_directory(self._spool.layout.failed, lambda: files.move(path, target))
                text = f"{task_file.task}: set aside in failed/. {error}"
                return _Recovered(task_file, text, reason=str(error), kind="set aside")
            return self._end(Claim(self._spool, header, task_file, owner))
        finally:
            files.close(fd)

    def _end(self, claim: Claim) -> _Recovered:
        """End the claim of a dead worker."""
        task_file = claim.task_file
        if self._has_outcome(claim):
            return self._commit(claim)
        attempts = headers.attempts(claim.header)
        ended = lost_attempts.find(self._spool, task_file)
        # without a host there is no entry: its last holder was a recoverer, whose predecessor kept a record
        if ended.host and self._kept < _MOST_KEPT:
            self._kept += 1
            lost_attempts.keep(self._spool, task_file, ended)
        if task_file.attempt < attempts or task_file.calls:  # of a pack the next worker reports the call as lost
            claim.requeue()
            which = f"attempt {task_file.attempt + 1} of {attempts}"
            if task_file.calls:
                which = "the pack"
            text = f"{task_file.task}: worker {task_file.worker} died; {which} waits"
            return _Recovered(task_file, text, claim.header, reason=lost_attempts.reason(ended))
        known = lost_attempts.kept(self._spool, task_file.task)
        if ended.host or task_file.attempt not in known:
            known[task_file.attempt] = ended
        lost = [known[attempt] for attempt in sorted(known)]
        text = lost_attempts.message(task_file.task, lost, headers.title_of(claim.header))
        claim.reassign(self._me).report_lost(text, lost)
        cancel.withdraw_request(self._spool, task_file.task)  # it was for the worker that died
        died = f"worker {task_file.worker} died in attempt {task_file.attempt}, the last"
        text = f"{task_file.task}: {died}; reported as lost"
        return _Recovered(task_file, text, claim.header, "lost", lost_attempts.reason(lost[-1]))

    def _commit(self, claim: Claim) -> _Recovered:
        """Commit the outcome of a dead worker."""
        kind = self._kind_of_outcome(claim) if self._journal is not None else ""
        published = claim.commit()
        task_file = claim.task_file
        text = (
            f"{task_file.task}: the outcome of worker {task_file.worker}, which died before its commit, was committed"
        )
        return _Recovered(task_file, text, claim.header, kind if published else "")

    def _kind_of_outcome(self, claim: Claim) -> str:
        try:
            return read_outcome_header(self._spool, claim.header.session, claim.task_file).kind
        except (OSError, SpoolpoolError):  # collected meanwhile, after another recoverer's commit
            return ""

    def discard(self, session: str, task_file: TaskFile) -> None:
        """Remove an outcome without a purpose; to be called again while :meth:`has_discards`.

        ``claimed/`` is checked first and ``results/`` second, because the task file moves in that order. If it is in
        neither, both are checked again later than any attribute cache lasts; if it is in neither again, the outcome is
        removed.
        """
        path = self._spool.layout.outcome(session, task_file)
        if files.exists(self._spool.layout.claimed_task(task_file)) or files.exists(
            self._spool.layout.result(session, task_file)
        ):
            self._first_seen.pop(path, None)
            return
        now = time.monotonic()
        if task_file.calls and path in self._first_seen and self._may_be_adopted(task_file):
            self._first_seen[path] = now
            return
        if path not in self._first_seen and len(self._first_seen) >= _MOST_SEEN:  # a later sweep finds it
            return
        first = self._first_seen.setdefault(path, now)
        if now - first >= max(self._spool.config.lease, self._spool.config.caches):
            try:
                outgoing = self._spool.directory(f"{self._spool.layout.outgoing}/{session}")
                files.remove(f"{outgoing}/{task_file.name}")
            except (FileNotFoundError, NotTrusted) as error:
                shown = open_directory.display_path(path)
                _reported.warning(shown, f"Cannot remove the outcome {shown}, which belongs to no task: {error}")
            del self._first_seen[path]

    def _may_be_adopted(self, task_file: TaskFile) -> bool:
        """Return whether a pack still waits or runs, so that a worker may adopt the outcomes in the log of a claim.

        The tasks are listed in the order in which they move, and several times: a pack moves back after a death.
        """
        results = f"{self._spool.layout.results}/"
        for _ in range(_PASSES):
            for directory in task_directories(self._spool):
                if not directory.startswith(results):
                    found = map(parse_task_file, files.list_names(directory))
                    if any(each is not None and each.task == task_file.task for each in found):
                        return True
        return False

    def has_discards(self, worker: str) -> bool:
        """Return whether an outcome of a worker still waits for its second check."""
        return any(path.endswith(f".{worker}") for path in self._first_seen)

    def _discard_again(self) -> None:
        for path in list(self._first_seen):
            parent, _, name = path.rpartition("/")
            task_file = parse_task_file(name)
            if task_file is None or not files.exists(path):
                del self._first_seen[path]
                continue
            self.discard(parent.rpartition("/")[2], task_file)

    def sweep(self, session: str, workers: Container[str] | None = None) -> None:
        """Find outcomes without a purpose in a session: of these workers, or of all.

        They remain if a collector died between its two removals, or if a fenced worker ended before its second check.
        """
        if not self._spool.sees_all:
            return
        where = self._spool.layout
        outgoing = files.list_names(f"{where.outgoing}/{session}")
        task_files = [task_file for task_file in map(parse_task_file, outgoing) if task_file is not None]
        if workers is not None:
            task_files = [task_file for task_file in task_files if task_file.worker in workers]
        if task_files:
            # claimed first: the task file moves from there to the results
            needed = {*files.list_names(where.claimed)}
            needed.update(files.list_names(f"{where.results}/{session}"))
            for task_file in task_files:
                if task_file.name not in needed:
                    self.discard(session, task_file)

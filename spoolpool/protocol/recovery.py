"""Bring back what dead workers held. Anybody who waits does it: workers, submitters, supervisors.

Any number of recoverers may run at once, without a lock between them: every rename has a source that
exists once, so that one of them wins each step, and whoever loses sees the truth in its next round.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Container

from spoolpool.errors import BadTaskFile, NotTrusted, SpoolpoolError
from spoolpool.format import headers
from spoolpool.format.names import TaskFile, is_session, is_worker_id, new_worker_id, parse_task_file
from spoolpool.protocol import workers
from spoolpool.protocol.claim import Claim
from spoolpool.protocol.failure_detector import Detector
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.tasks import read_opened_task, read_owned_task
from spoolpool.system import files
from spoolpool.system.locks import Lock, try_lock

log = logging.getLogger(__name__)


class Recovery:
    """One recoverer, with what it has observed so far. Not for use from several threads at once.

    It has a worker id of its own, under which it takes tasks over whose attempts are used up. It runs none,
    so whatever is claimed in that name is to be brought to its end. ``everybody`` is for who has a reason to look at
    all workers now, and does not do it all the time.
    """

    def __init__(self, spool: Spool, *, everybody: bool = False) -> None:
        self._spool = spool
        self._me = new_worker_id()
        self._detector = Detector(spool, everybody=everybody)
        self._first_look: dict[str, float] = {}
        self._swept: set[str] = set()
        self.looked = False
        """Whether the last :meth:`round` was not left to others."""
        self.workers = 0
        """How many workers the last round that was taken has seen."""

    def round(self) -> list[str]:
        """Look once at everybody's claims; returns a line of text for each task that was brought back.

        To be called four times a lease; where many do, most of these calls leave it to the others. Whoever may not see
        all of a dropbox leaves it to its owner.
        """
        done: list[str] = []
        self.looked = self._spool.sees_all and self._detector.due()
        if not self.looked:
            return done
        claims = self._claims()
        entries = set(filter(is_worker_id, files.list_names(self._spool.layout.workers)))
        self.workers = len(entries)
        dead = self._detector.look(claims.keys() | entries, claims)
        if self._me in claims:
            dead[self._me] = True
        for worker, gone in dead.items():
            for task_file in claims.get(worker, []):
                try:
                    line = self._recover(task_file, gone)
                except (OSError, SpoolpoolError) as error:
                    # stop with this one: whatever happened, the next round sees the truth
                    log.info("Cannot recover %s now: %s", task_file.name, error)
                    continue
                if line:
                    done.append(line)
        if dead.keys() - self._swept:
            for session in filter(is_session, files.list_names(self._spool.layout.outgoing)):
                self.sweep(session, dead)
        self._swept = set(dead)
        self._discard_again()
        if dead:
            held = self._claims().keys() | {path.rpartition(".")[2] for path in self._first_look}
            for worker in dead.keys() - held:
                workers.remove_worker(self._spool, worker)
                self._detector.forget(worker)
        return done

    def _claims(self) -> dict[str, list[TaskFile]]:
        """Who claims what."""
        claims: dict[str, list[TaskFile]] = {}
        for task_file in map(parse_task_file, files.list_names(self._spool.layout.claimed)):
            if task_file is not None and task_file.worker:
                claims.setdefault(task_file.worker, []).append(task_file)
        return claims

    def release(self, worker: str) -> list[str]:
        """Let wait again what a worker held whose processes the caller has ended: it costs no attempt.

        For supervisors alone: only who ended a worker can know that its death says nothing about its task.
        """
        done = []
        for task_file in self._claims().get(worker, []):
            try:
                header, owner = read_owned_task(self._spool, self._spool.layout.claimed_task(task_file), task_file)
                claim = Claim(self._spool, header, task_file, owner)
                if self._has_outcome(claim):
                    claim.commit()
                else:
                    claim.release()
                    done.append(task_file.task)
            except (OSError, SpoolpoolError) as error:  # recovery will meet it again
                log.info("Cannot give back %s now: %s", task_file.name, error)
        return done

    def _has_outcome(self, claim: Claim) -> bool:
        writer = files.owner(self._spool.layout.worker(claim.task_file.worker)) if self._spool.shared else None
        return claim.has_outcome(writer)

    def _recover(self, task_file: TaskFile, gone: bool) -> str | None:
        path = self._spool.layout.claimed_task(task_file)
        try:
            fd = self._spool.open_for_lock(path)
        except OSError as error:
            if error.errno in files.GONE:  # committed, or another recoverer was first
                return None
            raise
        try:
            if not gone and try_lock(fd) is Lock.BUSY:  # its holder lives: paused, or its beat does not get through
                return None
            try:
                header, owner = read_opened_task(self._spool, fd, path, task_file)
            except BadTaskFile as error:  # lost its content with the node's power
                files.move(path, f"{self._spool.layout.failed}/{task_file.name}")
                return f"{task_file.task}: set aside in failed/. {error}"
            return self._bring_back(Claim(self._spool, header, task_file, owner))
        finally:
            files.close(fd)

    def _bring_back(self, claim: Claim) -> str:
        task_file = claim.task_file
        if self._has_outcome(claim):
            claim.commit()
            return (
                f"{task_file.task}: the outcome of worker {task_file.worker}, who died before its commit, was committed"
            )
        attempts = headers.attempts(claim.header)
        if task_file.attempt < attempts:
            claim.requeue()
            which = f"attempt {task_file.attempt + 1} of {attempts}"
            return f"{task_file.task}: worker {task_file.worker} died; {which} waits"
        claim.reassign(self._me).report_lost(self._obituary(task_file))
        died = f"worker {task_file.worker} died in attempt {task_file.attempt}, the last"
        return f"{task_file.task}: {died}; reported as lost"

    def _obituary(self, task_file: TaskFile) -> str:
        info = workers.read_worker(self._spool, task_file.worker)
        where = "on a host that is not known any more"
        if info is not None:
            where = f"on host {info.process.host}, pid {info.process.pid}"
            if info.job:
                where += f", job {info.job}"
        try:
            stamp = files.mtime_ns(f"{self._spool.layout.worker(task_file.worker)}/beat")
        except OSError:
            stamp = None
        seen = "none was found"
        if stamp is not None:
            seen = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(stamp / 1e9))
        return (
            f"The worker of task {task_file.task} died in attempt {task_file.attempt}, the last that it had: worker "
            f"{task_file.worker} {where}; last sign of life: {seen}. Look for what ended it (memory, walltime, a "
            "crash in compiled code); 'spool retry' runs the task again."
        )

    def discard(self, session: str, task_file: TaskFile) -> None:
        """Take away an outcome without a purpose; call it again until nothing is left to look at.

        Claimed is looked into first, then results: the token moves in that order. Seen in neither, both
        are looked into again later than any attribute cache lasts; seen in neither again, it goes.
        """
        path = self._spool.layout.outcome(session, task_file)
        if files.exists(self._spool.layout.claimed_task(task_file)) or files.exists(
            self._spool.layout.result(session, task_file)
        ):
            self._first_look.pop(path, None)
            return
        now = time.monotonic()
        first = self._first_look.setdefault(path, now)
        if now - first >= max(self._spool.config.lease, self._spool.config.caches):
            try:
                outgoing = self._spool.directory(f"{self._spool.layout.outgoing}/{session}")
                files.remove(f"{outgoing}/{task_file.name}")
            except (FileNotFoundError, NotTrusted) as error:
                log.warning("%s is not taken away: %s", path, error)
            del self._first_look[path]

    def discards(self, worker: str) -> bool:
        """Whether an outcome of a worker still waits for its second look."""
        return any(path.endswith(f".{worker}") for path in self._first_look)

    def _discard_again(self) -> None:
        for path in list(self._first_look):
            parent, _, name = path.rpartition("/")
            task_file = parse_task_file(name)
            if task_file is None or not files.exists(path):
                del self._first_look[path]
                continue
            self.discard(parent.rpartition("/")[2], task_file)

    def sweep(self, session: str, workers: Container[str] | None = None) -> None:
        """Look for outcomes without a purpose in a session: of these workers, or of anybody.

        They are what a collector left that died between its two removals, or a worker that was fenced and
        ended before its second look.
        """
        if not self._spool.sees_all:
            return
        where = self._spool.layout
        outgoing = files.list_names(f"{where.outgoing}/{session}")
        task_files = [task_file for task_file in map(parse_task_file, outgoing) if task_file is not None]
        if workers is not None:
            task_files = [task_file for task_file in task_files if task_file.worker in workers]
        if task_files:
            # claimed first: the token moves from there to the results
            needed = {*files.list_names(where.claimed)}
            needed.update(files.list_names(f"{where.results}/{session}"))
            for task_file in task_files:
                if task_file.name not in needed:
                    self.discard(session, task_file)

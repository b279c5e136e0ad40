"""Bring back what dead workers held. Anybody who waits does it: workers, submitters, supervisors.

Any number of recoverers may run at once, without a lock between them: every rename has a source that
exists once, so that one of them wins each step, and whoever loses sees the truth in its next round.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Container

from spoolpool import envelope, fsio, layout, pickling, registry, task
from spoolpool.claim import (
    commit,
    give_back,
    has_outcome,
    read_opened_task,
    read_owned_task,
    requeue,
    write_outcome,
)
from spoolpool.detector import Detector
from spoolpool.errors import BadTaskFile, NotTrusted, SpoolpoolError, WorkerLost
from spoolpool.identity import hostname
from spoolpool.layout import Token
from spoolpool.locks import Lock, try_lock
from spoolpool.spool import Spool
from spoolpool.task import Failure, OutcomeHeader, TaskHeader

log = logging.getLogger(__name__)


class Recovery:
    """One recoverer, with what it has observed so far. Not for use from several threads at once.

    It has a worker id of its own, under which it takes tasks over whose attempts are used up. It runs none,
    so whatever is claimed in that name is to be brought to its end. ``everybody`` is for who has a reason to look at
    all workers now, and does not do it all the time.
    """

    def __init__(self, spool: Spool, *, everybody: bool = False) -> None:
        self._spool = spool
        self._me = layout.new_worker_id()
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
        entries = set(filter(layout.is_worker_id, fsio.names(self._spool.layout.workers)))
        self.workers = len(entries)
        dead = self._detector.look(claims.keys() | entries, claims)
        if self._me in claims:
            dead[self._me] = True
        for worker, gone in dead.items():
            for token in claims.get(worker, []):
                try:
                    line = self._recover(token, gone)
                except (OSError, SpoolpoolError) as error:
                    # stop with this one: whatever happened, the next round sees the truth
                    log.info("Cannot recover %s now: %s", token.name, error)
                    continue
                if line:
                    done.append(line)
        if dead.keys() - self._swept:
            for session in filter(layout.is_session, fsio.names(self._spool.layout.outgoing)):
                self.sweep(session, dead)
        self._swept = set(dead)
        self._discard_again()
        if dead:
            held = self._claims().keys() | {path.rpartition(".")[2] for path in self._first_look}
            for worker in dead.keys() - held:
                registry.forget(self._spool, worker)
                self._detector.forget(worker)
        return done

    def _claims(self) -> dict[str, list[Token]]:
        """Who claims what."""
        claims: dict[str, list[Token]] = {}
        for token in map(layout.parse_token, fsio.names(self._spool.layout.claimed)):
            if token is not None and token.worker:
                claims.setdefault(token.worker, []).append(token)
        return claims

    def give_back(self, worker: str) -> list[str]:
        """Let wait again what a worker held whose processes the caller has ended: it costs no attempt.

        For supervisors alone: only who ended a worker can know that its death says nothing about its task.
        """
        done = []
        for token in self._claims().get(worker, []):
            try:
                header, owner = read_owned_task(self._spool, self._spool.layout.claimed_token(token), token)
                if self._has_outcome(header, owner, token):
                    commit(self._spool, header.session, token, owner)
                else:
                    give_back(self._spool, header, token)
                    done.append(token.task)
            except (OSError, SpoolpoolError) as error:  # recovery will meet it again
                log.info("Cannot give back %s now: %s", token.name, error)
        return done

    def _has_outcome(self, header: TaskHeader, owner: int, token: Token) -> bool:
        writer = fsio.owner(self._spool.layout.worker(token.worker)) if self._spool.shared else None
        return has_outcome(self._spool, header.session, token, owner, writer)

    def _recover(self, token: Token, gone: bool) -> str | None:
        path = self._spool.layout.claimed_token(token)
        try:
            fd = self._spool.open_for_lock(path)
        except OSError as error:
            if error.errno in fsio.GONE:  # committed, or another recoverer was first
                return None
            raise
        try:
            if not gone and try_lock(fd) is Lock.BUSY:  # its holder lives: paused, or its beat does not get through
                return None
            try:
                header, owner = read_opened_task(self._spool, fd, path, token)
            except BadTaskFile as error:  # lost its content with the node's power
                fsio.move(path, f"{self._spool.layout.failed}/{token.name}")
                return f"{token.task}: set aside in failed/. {error}"
            return self._bring_back(token, header, owner)
        finally:
            fsio.close(fd)

    def _bring_back(self, token: Token, header: TaskHeader, owner: int) -> str | None:
        if self._has_outcome(header, owner, token):
            commit(self._spool, header.session, token, owner)
            return f"{token.task}: the outcome of worker {token.worker}, who died before its commit, was committed"
        if token.attempt < task.attempts(header):
            requeue(self._spool, header, token)
            which = f"attempt {token.attempt + 1} of {task.attempts(header)}"
            return f"{token.task}: worker {token.worker} died; {which} waits"
        mine = token.taken_over_by(self._me)
        fsio.move(self._spool.layout.claimed_token(token), self._spool.layout.claimed_token(mine))
        report_lost(self._spool, header, mine, self._obituary(token), owner)
        return f"{token.task}: worker {token.worker} died in attempt {token.attempt}, the last; reported as lost"

    def _obituary(self, token: Token) -> str:
        info = registry.read_info(self._spool, token.worker)
        where = "on a host that is not known any more"
        if info is not None:
            where = f"on host {info.process.host}, pid {info.process.pid}"
            if info.job:
                where += f", job {info.job}"
        try:
            stamp = fsio.stamp(f"{self._spool.layout.worker(token.worker)}/beat")
        except OSError:
            stamp = None
        seen = "none was found"
        if stamp is not None:
            seen = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(stamp / 1e9))
        return (
            f"The worker of task {token.task} died in attempt {token.attempt}, the last that it had: worker "
            f"{token.worker} {where}; last sign of life: {seen}. Look for what ended it (memory, walltime, a "
            "crash in compiled code); 'spool retry' runs the task again."
        )

    def discard(self, session: str, token: Token) -> None:
        """Take away an outcome without a purpose; call it again until nothing is left to look at.

        Claimed is looked into first, then results: the token moves in that order. Seen in neither, both
        are looked into again later than any attribute cache lasts; seen in neither again, it goes.
        """
        path = self._spool.layout.outcome(session, token)
        if fsio.there(self._spool.layout.claimed_token(token)) or fsio.there(self._spool.layout.result(session, token)):
            self._first_look.pop(path, None)
            return
        now = time.monotonic()
        first = self._first_look.setdefault(path, now)
        if now - first >= max(self._spool.config.lease, self._spool.config.caches):
            try:
                outgoing = self._spool.held(f"{self._spool.layout.outgoing}/{session}")
                fsio.remove(f"{outgoing}/{token.name}")
            except (FileNotFoundError, NotTrusted) as error:
                log.warning("%s is not taken away: %s", path, error)
            del self._first_look[path]

    def discards(self, worker: str) -> bool:
        """Whether an outcome of a worker still waits for its second look."""
        return any(path.endswith(f".{worker}") for path in self._first_look)

    def _discard_again(self) -> None:
        for path in list(self._first_look):
            parent, _, name = path.rpartition("/")
            token = layout.parse_token(name)
            if token is None or not fsio.there(path):
                del self._first_look[path]
                continue
            self.discard(parent.rpartition("/")[2], token)

    def sweep(self, session: str, workers: Container[str] | None = None) -> None:
        """Look for outcomes without a purpose in a session: of these workers, or of anybody.

        They are what a collector left that died between its two removals, or a worker that was fenced and
        ended before its second look.
        """
        if not self._spool.sees_all:
            return
        where = self._spool.layout
        outgoing = fsio.names(f"{where.outgoing}/{session}")
        tokens = [token for token in map(layout.parse_token, outgoing) if token is not None]
        if workers is not None:
            tokens = [token for token in tokens if token.worker in workers]
        if tokens:
            # claimed first: the token moves from there to the results
            needed = {*fsio.names(where.claimed)}
            needed.update(fsio.names(f"{where.results}/{session}"))
            for token in tokens:
                if token.name not in needed:
                    self.discard(session, token)


def report_lost(spool: Spool, header: TaskHeader, token: Token, message: str, owner: int | None = None) -> None:
    """Publish that a task of ``owner``'s was lost with its workers; ``token`` must be in the caller's hands."""
    payload, buffers = pickling.dumps(WorkerLost(message))
    outcome = OutcomeHeader(
        task=token.task,
        kind="lost",
        worker=token.worker,
        host=hostname(),
        attempt=token.attempt,
        ended=time.time(),
        failure=Failure(type="spoolpool.errors.WorkerLost", message=message),
    )
    write_outcome(spool, header.session, token, envelope.pack(task.encode(outcome), payload, buffers), owner)
    commit(spool, header.session, token, owner)

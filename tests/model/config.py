"""Size of a case: participants, tasks, and the number of faults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Budget(NamedTuple):
    """Number of faults and choices that a run may still contain, by kind.

    crash    a participant ends before its next operation; a new worker gets a new name, a new submitter opens the
             same session again
    detach   a process of a session ends, and leaves its tasks and leases (model of objects)
    early    a process of a session removes the object before its end (model of objects)
    unreadable  the header of a task cannot be read: EIO, a newer version, a truncated file (model of objects)
    death    the submitter crashes
    suspect  a recoverer takes a live participant for dead: a long pause, a lost lock or a clock that jumps
    enoent   a rename or an unlink is done, but answers ENOENT: the client repeated a request whose answer was lost
    error    a rename or an unlink is not done, and answers another error
    stale    a read does not see a file that another client made: a stale cache
    cancel   a user cancels a task
    release  a worker puts a task back, because it has to end
    raises   a function raises an exception
    retry    a user asks for the retry of a lost task
    delete   a third party deletes the file of a task, in any place
    """

    crash: int = 0
    detach: int = 0
    early: int = 0
    unreadable: int = 0
    death: int = 0
    suspect: int = 0
    enoent: int = 0
    error: int = 0
    stale: int = 0
    cancel: int = 0
    release: int = 0
    raises: int = 0
    retry: int = 0
    delete: int = 0

    def spend(self, kind: str) -> Budget:
        """Return the budget after one fault or choice of a kind ("" costs nothing)."""
        return self._replace(**{kind: getattr(self, kind) - 1}) if kind else self


NO_FAULTS = Budget()


@dataclass(frozen=True, kw_only=True)
class Config:
    """Participants and tasks of a case. They share one session.

    tasks       number of tasks
    chain       each task depends on the one before it
    workers     number of workers at the start
    recoverers  number of recoverers at the start
    submitters  number of processes of the session; all of them collect, only the first one submits
    keeps       the session has a name: it keeps its outcomes in place
    attempts    attempts of a task, all together
    retries     a task that raises in one of its first `retries` attempts is delayed and runs again
    collectors  number of garbage collectors; with one, the session has an entry, and any user may cancel a claimed task
    shared      the directory of the session can be made by its submitter alone
    delayed     a task has a time before which it is not to start
    autoscaler  a worker starts only if a task is ready and no worker lives, and no process but the workers and the
                autoscaler releases delayed tasks: the submitter has gone
    searches    the submitter searches for its tasks now and then
    walltimes   times that a group may have left when it claims a task; none: its time has no end
    duration    time that each call takes
    limited     each call has a time limit, which is its duration
    supervised  a recoverer ends groups whose time is up, while they run a task
    budget      faults and choices
    """

    tasks: int = 1
    chain: bool = False
    workers: int = 2
    recoverers: int = 1
    submitters: int = 1
    keeps: bool = False
    attempts: int = 2
    retries: int = 0
    collectors: int = 0
    shared: bool = False
    delayed: bool = False
    autoscaler: bool = False
    searches: bool = False
    walltimes: tuple[int, ...] = ()
    duration: int = 0
    limited: bool = False
    supervised: bool = False
    budget: Budget = NO_FAULTS

"""Who serves what: the workers of a spool, and their signs of life."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Collection, Sequence

import msgspec

from spoolpool import fsio, layout, settings, submitter
from spoolpool.errors import NotTrusted, SpoolDenied
from spoolpool.explanation import explained
from spoolpool.identity import Identity
from spoolpool.layout import Lane
from spoolpool.packages import is_requirement
from spoolpool.spool import Spool
from spoolpool.trust import account, in_group


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One worker group, as ``workers/WORKER/info.json`` has it."""

    worker: str
    """Worker id."""
    process: Identity
    """Its rank 0."""
    user: str
    """Account that it runs as."""
    ranks: int = 1
    """MPI ranks."""
    threads: int = 1
    """Threads per rank."""
    gpus: int = 0
    """GPUs per rank."""
    queues: tuple[str, ...] = ("default",)
    """Queues that it serves."""
    weights: dict[str, int] = {}
    """How many of its tasks come from a queue, beside one from a queue that is not named here, while both have some."""
    tags: tuple[str, ...] = ()
    """What it has besides: tasks may ask for it."""
    python: str = settings.PYTHON
    """Python minor version."""
    job: str = ""
    """Batch job, where it runs in one."""
    batch: str = ""
    """Name of the job's record in ``jobs/``, where it was submitted through this spool."""
    started: float = 0.0
    """Seconds since the epoch, its host's clock."""
    lacks: dict[str, str] = {}
    """What it has in the place of packages that lanes ask for, as files of its entry say."""
    trust_users: tuple[int, ...] = ()
    """Accounts whose tasks it runs, where tasks tell theirs."""
    trust_groups: tuple[str, ...] = ()
    """Groups whose members' tasks it runs."""
    trust_all: bool = False
    """Whether it runs the tasks of everybody."""

    def trusts(self, user: int) -> bool:
        """Whether the group runs tasks of an account."""
        return self.trust_all or user in self.trust_users or in_group(user, self.trust_groups)

    def why_not(self, lane: Lane) -> str | None:
        """None if the group serves the lane, else the reason, in words.

        The number of ranks must be the same: a function sees it as the size of ``COMM_WORLD``.
        """
        if lane.queue not in self.queues:
            return f"queue {lane.queue!r} wanted, groups serve {', '.join(map(repr, self.queues))}"
        if lane.user is not None and not self.trusts(lane.user):
            return f"{account(lane.user)} is not trusted by groups of {self.user}"
        if lane.python != self.python:
            return f"Python {lane.python} wanted, groups run {self.python}"
        if lane.ranks != self.ranks:
            return f"{_ranks(lane)} wanted, groups have {self.ranks}"
        return self._what_lacks(lane)

    def _what_lacks(self, lane: Lane) -> str | None:
        """Of what a group may have more than is asked for."""
        for wanted, has, what in ((lane.threads, self.threads, "threads"), (lane.gpus, self.gpus, "GPUs")):
            if wanted > has:
                return f"{wanted} {what} per rank wanted, groups have {has}"
        for tag in filter(is_requirement, lane.tags):
            if tag in self.lacks:
                return f"{tag} wanted, {self.lacks[tag]} where groups run"
        if missing := [tag for tag in lane.tags if tag not in self.tags and not is_requirement(tag)]:
            tagged = f"are tagged {', '.join(self.tags)}" if self.tags else "have no tags"
            return f"tag {', '.join(missing)} wanted, groups {tagged}"
        return None


class Registration:
    """This process's entry among the workers, with a sign of life that no busy Python can hold up.

    A small process of its own touches the beat; it ends when its parent does. So a function that
    keeps the GIL for an hour in C code is still seen to live, also where locks exclude nobody.
    """

    def __init__(self, spool: Spool, info: WorkerInfo) -> None:
        if not spool.sees_all:
            raise SpoolDenied(
                f"The workers of the dropbox {spool.path} run as its owner, {account(spool.owner)}; this is "
                f"{account(os.geteuid())}. To run your own tasks yourself, use a spool of your own."
            )
        self._spool = spool
        self._worker = info.worker
        self._directory = spool.layout.worker(info.worker)
        self._stop = f"{self._directory}/stop"
        self._interval = spool.config.lease / settings.BEATS_PER_LEASE
        with explained(f"announce a worker group in {spool.path}"):
            try:
                spool.make_directories(self._directory)
                spool.show(f"{self._directory}/beat", [])
                source = f"{spool.layout.tmp}/{info.worker}.info"
                spool.show(source, [msgspec.json.encode(info)])
                fsio.move(source, f"{self._directory}/info.json")
            except OSError:
                forget(spool, info.worker)
                raise
        self._beat = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        return _start_beating(f"{self._directory}/beat", self._interval)

    @property
    def directory(self) -> str:
        """Where the entry lies; a file called ``stop`` in it asks the worker to end."""
        return self._directory

    def note_lack(self, tag: str, instead: str) -> None:
        """Tell those who wait for tasks with this tag why this worker takes none; harmless when repeated."""
        with contextlib.suppress(OSError):  # it stands there already; or the server is away: nobody depends on it
            self._spool.show(f"{self._directory}/{_LACKS}{tag}", [instead.encode()])

    def told_to_stop(self) -> bool:
        """Whether a file asks this worker to finish what it does and end, or its entry is gone."""
        found = fsio.names(self._directory)
        # an empty list can also be the answer for a stale handle
        return "stop" in found or ("info.json" not in found and (bool(found) or fsio.gone(self._directory)))

    def beats(self) -> bool:
        """Whether the sign of life still goes out; the process that sends it is started again once it ended."""
        if self._beat.poll() is None:
            return True
        if fsio.gone(f"{self._directory}/beat"):
            return False
        self._beat = self._start()
        return True

    def close(self, *, unfinished: bool = False) -> None:
        """Take the entry away: this worker claims nothing any more. Harmless when repeated.

        ``unfinished`` leaves an empty one, so that recoverers go on for this worker: something in its name is still to
        be discarded.
        """
        self._beat.kill()
        self._beat.communicate()
        forget(self._spool, self._worker)
        if unfinished:
            with contextlib.suppress(OSError):
                fsio.make_directory(self._directory, self._spool.rights.entry)


def _start_beating(path: str, interval: float, then: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    """Touch a file for as long as this process lives; ``then`` is the command that takes over once it has died."""
    command = [sys.executable, "-ISc", _BEAT, path, str(interval), str(os.getpid()), *then]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=bool(then),  # what ends the terminal must not end it
    )


_BEAT = """\
import os, select, sys
path, interval, parent = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
missed = 0
while os.getppid() == parent and missed < 3:
    try:
        os.utime(path)
        missed = 0
    except FileNotFoundError:
        missed += 1
    except OSError:
        pass
    if select.select([0], [], [], interval)[0]:
        missed = 0
        break
if sys.argv[4:] and missed < 3:
    os.execv(sys.argv[4], sys.argv[4:])
"""
# A server that is away answers with an error, or not at all: beat on until it is back. A beat that was removed says
# that others took this worker for dead.
# select: standard input ends when the parent does. A child that the parent forked can hold the far end of
# it open; the look at the parent's pid finds that out one interval later. A parent that is done kills this process.


ENTRY = ("info.json", "beat", "stop", "error", "progress")
"""The files of a worker's entry."""

_LACKS = "lacks-"  # begins the name of a file of an entry, which goes on with a lane's tag


def forget(spool: Spool, worker: str) -> None:
    """Remove a worker's entry; it stays where there is something else in it, or where it is but a link."""
    path = spool.layout.worker(worker)
    with contextlib.suppress(OSError, NotTrusted):
        if fsio.is_directory(path):
            spool.let_go(path)
            directory = spool.held(path)
            for name in ENTRY:
                fsio.remove(f"{directory}/{name}")
            if not fsio.remove_directory(path):
                for name in fsio.names(str(directory)):
                    if is_lack(name):
                        fsio.remove(f"{directory}/{name}")
                fsio.remove_directory(path)
            spool.let_go(path)


def is_lack(name: str) -> bool:
    """Whether a file of an entry says that a package is missing."""
    return name.startswith(_LACKS)


def ask_to_stop(spool: Spool, worker: str) -> None:
    """Ask a worker to finish what it does and end; it looks when it is idle or done with a task."""
    with contextlib.suppress(OSError):  # FileExistsError: asked already; gone: it ended
        spool.show(f"{spool.layout.worker(worker)}/stop", [])


def owner_text() -> str:
    """What :data:`spoolpool.settings.ENV_OWNER` says about this process."""
    return msgspec.json.encode(Identity.of(os.getpid())).decode()


def read_owner(text: str | None) -> Identity | None:
    """Read what :func:`owner_text` made."""
    return msgspec.json.decode(text, type=Identity) if text else None


def report_start_error(spool: Spool, worker: str, reason: str) -> None:
    """Tell the supervisor why this group cannot work as it was started."""
    with contextlib.suppress(OSError):  # it is told on standard error as well
        spool.make_directories(spool.layout.worker(worker))
        spool.show(f"{spool.layout.worker(worker)}/error", [reason.encode()])


def start_error(spool: Spool, worker: str) -> str | None:
    """What a group said about its failure to start; its entry is taken away."""
    try:
        reason = fsio.read_small(f"{spool.layout.worker(worker)}/error").decode(errors="replace")
    except (OSError, ValueError):  # it never got so far as to say something
        return None
    forget(spool, worker)
    return reason


class SessionBeat:
    """A sign of life of a session, for workers on other hosts that run for its sake alone.

    If this process dies without :meth:`close`, the command ``then`` runs in the place of the process that beats.
    """

    def __init__(self, spool: Spool, session: str, then: Sequence[str]) -> None:
        interval = spool.config.lease / settings.BEATS_PER_LEASE
        self._process = _start_beating(spool.layout.session(session), interval, then)

    def close(self) -> None:
        """No more beats, and nothing that takes over; harmless when repeated."""
        self._process.kill()
        self._process.communicate()


def read_info(spool: Spool, worker: str) -> WorkerInfo | None:
    """A worker's entry, or None where there is none (any more) or it is not one."""
    try:
        return msgspec.json.decode(fsio.read_small(f"{spool.layout.worker(worker)}/info.json"), type=WorkerInfo)
    except (OSError, ValueError):  # msgspec's errors are ValueErrors
        return None


def workers(spool: Spool) -> list[WorkerInfo]:
    """All entries that can be read, of live workers and of dead ones that nobody recovered yet."""
    found = [(name, read_info(spool, name)) for name in fsio.names(spool.layout.workers) if layout.is_worker_id(name)]
    return [_with_lacks(spool, info) for name, info in found if info is not None and info.worker == name]


def _with_lacks(spool: Spool, info: WorkerInfo) -> WorkerInfo:
    directory = spool.layout.worker(info.worker)
    lacks = {}
    with contextlib.suppress(OSError, ValueError):  # it ends just now, or says something else
        for name in filter(is_lack, fsio.names(directory)):
            text = fsio.read_small(f"{directory}/{name}", 512).decode(errors="replace")
            lacks[name.removeprefix(_LACKS)] = text
    return msgspec.structs.replace(info, lacks=lacks) if lacks else info


def silence(spool: Spool, worker: str, now: float) -> float | None:
    """Seconds since a worker's last sign of life, where ``now`` is :meth:`Spool.server_time`; None if it left none.

    A hint for people: a fault of the server silences everybody. Who is to be taken for dead is watched for a
    lease (:class:`Liveness`).
    """
    try:
        stamp = fsio.stamp(f"{spool.layout.worker(worker)}/beat")
    except OSError:
        return None
    return None if stamp is None else now - stamp / 1e9


def _ranks(lane: Lane) -> str:
    return f"{lane.ranks} rank{'s' * (lane.ranks != 1)}"


NOBODY = "no worker group is alive: start one with 'spool-worker'"
"""Why tasks wait where there is no group at all."""


def nobody_serves(lane: str, alive: list[WorkerInfo]) -> str | None:
    """Why no live group can run the tasks of a lane; None if one can."""
    wanted = layout.parse_lane(lane)
    if wanted is None:
        return f"{lane} is no lane"
    if not alive:
        return NOBODY
    if wanted.user is not None and not any(info.trusts(wanted.user) for info in alive):
        return f"no group trusts {account(wanted.user)} (--trust-user, --trust-group)"
    found, sizes = set(), set()
    for info in alive:
        reason = info.why_not(wanted)
        if reason is None:
            return None
        if reason == f"{_ranks(wanted)} wanted, groups have {info.ranks}":
            sizes.add(info.ranks)
        else:
            found.add(reason)
    if sizes:
        have = f"groups have {', '.join(map(str, sorted(sizes)))}"
        if max(sizes) < wanted.ranks:
            have = f"the largest group has {max(sizes)}"
        found.add(f"{_ranks(wanted)} wanted, {have}")
    return f"no live group can run them: {'; '.join(sorted(found))}"


class Liveness:
    """An observer of signs of life: compares each with what it saw before, by its own monotonic clock.

    Hosts' clocks are never compared with each other: a sign of life that did not change for a lease
    *while we watched* is still, whatever its date. Time in which nobody looked (the server was away, this
    process was stopped, the laptop slept) hardly counts: the worker may have been held up by the same.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._seen: dict[str, tuple[int | None, float, float]] = {}
        self._most = spool.config.lease / 3

    def look(self, worker: str) -> float:
        """Look at the sign of life; returns the seconds for which it has not changed, as far as was watched."""
        return self._still(worker, f"{self._spool.layout.worker(worker)}/beat")

    def session_alive(self, session: str) -> bool:
        """Whether a session that beats is at work: not closed, not provably dead, and not still for a lease."""
        path = self._spool.layout.session(session)
        if fsio.gone(path) or submitter.is_dead(self._spool, session):
            return False
        return self._still(f"session {session}", path) < self._spool.config.lease

    def _still(self, who: str, path: str) -> float:
        try:
            stamp = fsio.stamp(path)
        except OSError:  # cannot be seen: no sign, but nothing new either
            stamp = None
        now = time.monotonic()
        before = self._seen.get(who)
        still = 0.0
        if before is not None and before[0] == stamp:
            still = before[2] + min(now - before[1], self._most)
        self._seen[who] = (stamp, now, still)
        return still

    def alive(self, info: WorkerInfo) -> bool:
        """Whether a worker should be counted on: not provably dead, and not still for a lease."""
        return not info.process.dead() and self.look(info.worker) < self._spool.config.lease

    def knows(self, worker: str) -> bool:
        """Whether a worker was looked at before."""
        return worker in self._seen

    def keep(self, workers: Collection[str]) -> None:
        """Drop what was seen of all others."""
        self._seen = {worker: seen for worker, seen in self._seen.items() if worker in workers}

    def forget(self, worker: str) -> None:
        """Drop what was seen of a worker."""
        self._seen.pop(worker, None)

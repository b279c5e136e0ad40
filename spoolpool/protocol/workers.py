"""Entries of the workers of a spool: the lanes that they serve, and the last heartbeat."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

from spoolpool import settings
from spoolpool.errors import NotTrusted
from spoolpool.format.names import Lane, TaskFile, is_worker_id, parse_lane
from spoolpool.protocol.spool import Spool
from spoolpool.system import files, records
from spoolpool.system.accounts import account_name, in_group
from spoolpool.system.bounds import Account, Count, Positive, Seconds, Timeout, Word, Words
from spoolpool.system.packages import is_requirement
from spoolpool.system.patterns import lazy_pattern
from spoolpool.system.processes import ProcessId
from spoolpool.system.records import BadRecord
from spoolpool.system.text import format_duration


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One worker group: the content of ``workers/WORKER/info.json``."""

    worker: Word
    """Worker id."""
    process: ProcessId
    """Process of its rank 0."""
    user: Word
    """Account that it runs as."""
    ranks: Positive = 1
    """MPI ranks."""
    threads: Positive = 1
    """Threads per rank."""
    gpus: Count = 0
    """GPUs per rank."""
    queues: Words = ("default",)
    """Queues that it serves."""
    weights: Annotated[dict[Word, Positive], Meta(max_length=1000)] = {}
    """Weight of each queue, 1 by default: tasks of several queues are claimed in this proportion."""
    tags: Words = ()
    """Further properties that tasks may ask for."""
    python: Word = msgspec.field(default_factory=lambda: settings.PYTHON)
    """Python minor version. A factory: a plain default would be omitted, and read as the version of the reader."""
    job: Word = ""
    """Batch job in which it runs, if any."""
    supervisor: ProcessId | None = None
    """Process that started the group and records how it ends, if there is one."""
    batch: Word = ""
    """Name of the job's record in ``jobs/``, if the job was submitted through this spool."""
    started: Seconds = 0.0
    """Seconds since the epoch, by its host's clock."""
    lacks: Annotated[dict[Word, Word], Meta(max_length=1000)] = {}
    """For each required package that is missing, by tag, the version that is installed instead; from its lack files."""
    ending: bool = False
    """Whether it was asked to end after its present task; from its files."""
    time_left: Timeout | None = None
    """Seconds until it begins no more tasks, when this entry was written; None if no end is known."""
    ends: Seconds | None = None
    """The same moment, by the clock that dates the spool's files; not from the entry, but from the date of its file."""
    trust_users: Annotated[tuple[Account, ...], Meta(max_length=1000)] = ()
    """Accounts whose tasks it runs, in a shared spool."""
    trust_groups: Words = ()
    """Groups whose members' tasks it runs."""
    trust_all: bool = False
    """Whether it runs the tasks of all accounts."""

    def trusts(self, user: int) -> bool:
        """Return whether the group runs tasks of an account."""
        return self.trust_all or user in self.trust_users or in_group(user, self.trust_groups)

    def why_not(self, lane: Lane) -> str | None:
        """Return the reason why the group does not serve a lane, in words; None if it does.

        The number of ranks must be equal: a function sees it as the size of ``COMM_WORLD``.
        """
        if lane.queue not in self.queues:
            return f"queue {lane.queue!r} wanted, groups serve {', '.join(map(repr, self.queues))}"
        if lane.user is not None and not self.trusts(lane.user):
            return f"{account_name(lane.user)} is not trusted by groups of {self.user}"
        if lane.python != self.python:
            return f"Python {lane.python} wanted, groups run {self.python}"
        if lane.ranks != self.ranks:
            return f"{_ranks(lane)} wanted, groups have {self.ranks}"
        return self._why_insufficient(lane)

    def _why_insufficient(self, lane: Lane) -> str | None:
        """Check the requirements of which a group may have more than the lane asks for."""
        for wanted, has, unit in ((lane.threads, self.threads, "threads"), (lane.gpus, self.gpus, "GPUs")):
            if wanted > has:
                return f"{wanted} {unit} per rank wanted, groups have {has}"
        for tag in filter(is_requirement, lane.tags):
            if tag in self.lacks:
                return f"{tag} wanted, {self.lacks[tag]} where groups run"
        if missing := [tag for tag in lane.tags if tag not in self.tags and not is_requirement(tag)]:
            tagged = f"are tagged {', '.join(self.tags)}" if self.tags else "have no tags"
            return f"tag {', '.join(missing)} wanted, groups {tagged}"
        return None


_decoder = msgspec.json.Decoder(WorkerInfo)

_ENTRY_FILES = ("info.json", "beat", "stop", "error", "progress", "end", "exit")
_ERROR_LENGTH = 4096  # characters of an error that are shown
_LACKS = "lacks-"
_STOP = "stop"
_MOST_LACKS = 1000  # lack files that are read, of one entry
_EXIT, _STACK = "exit-", "stack-"
_OF_A_RANK = lazy_pattern(rf"(?:{_EXIT}|{_STACK})(0|[1-9]\d{{0,6}})", re.ASCII)


def is_entry_file(name: str) -> bool:
    """Return whether a file of this name may be in a worker's entry."""
    return name in _ENTRY_FILES or is_lack_file(name) or _OF_A_RANK.fullmatch(name) is not None


def exit_file(rank: int) -> str:
    """Return the name of the file of an entry that says how a rank ended."""
    return f"{_EXIT}{rank}"


def stack_file(rank: int) -> str:
    """Return the name of the file of an entry to which faulthandler writes the stack of a rank that crashes."""
    return f"{_STACK}{rank}"


def ranks_of(names: Iterable[str], kind: Callable[[int], str]) -> list[int]:
    """Return the ranks, in order, for which a listed entry has a file of a kind: ``exit_file`` or ``stack_file``."""
    matches = filter(None, map(_OF_A_RANK.fullmatch, names))
    return sorted(int(match[1]) for match in matches if match[0] == kind(int(match[1])))


def lack_file(tag: str) -> str:
    """Return the name of the file of an entry that says that the package of a tag is missing."""
    return f"{_LACKS}{tag}"


def is_lack_file(name: str) -> bool:
    """Return whether a file of an entry says that a package is missing."""
    return name.startswith(_LACKS)


def remove_worker(spool: Spool, worker: str, keep: str = "") -> None:
    """Remove a worker's entry; an entry with foreign files in it stays, and so does a symbolic link.

    With ``keep`` the directory stays, and the file of this name in it.
    """
    path = spool.layout.worker(worker)
    with contextlib.suppress(OSError, NotTrusted):
        if files.is_directory(path):
            spool.close_directory(path)
            directory = spool.directory(path)
            # these two also where a stale listing hides them (sshfs)
            for name in ("info.json", "beat", *filter(is_entry_file, files.list_names(str(directory)))):
                if name != keep:
                    files.remove(f"{directory}/{name}")
            if not keep:
                files.remove_directory(path)
            spool.close_directory(path)


def load_worker(spool: Spool, worker: str) -> WorkerInfo:
    """Return a worker's entry. Raises ``OSError`` as open(2), and :class:`BadRecord` for an invalid one.

    In a shared spool the account is that of the file, whatever the entry says.
    """
    path = f"{spool.layout.worker(worker)}/info.json"
    owner, written = -1, 0.0

    def check(fd: int, name: str) -> os.stat_result:
        nonlocal owner, written
        status = files.regular_status(fd, name)
        owner, written = status.st_uid, max(0.0, status.st_mtime)
        return status

    info = records.load(path, _decoder, check=check)
    if info.worker != worker:
        raise BadRecord(path, f"it names another worker, {info.worker}")
    ends = None if info.time_left is None else written + info.time_left
    return msgspec.structs.replace(info, user=account_name(owner) if spool.shared else info.user, ends=ends)


def read_worker(spool: Spool, worker: str) -> WorkerInfo | None:
    """Return a worker's entry; None if it is missing, or invalid, which is reported."""
    try:
        return load_worker(spool, worker)
    except (OSError, BadRecord) as error:
        records.report(f"{spool.layout.worker(worker)}/info.json", error)
        return None


def read_workers(spool: Spool) -> list[WorkerInfo]:
    """Return all valid entries: of live workers, and of dead ones that are not recovered yet."""
    found = [read_worker(spool, name) for name in files.list_names(spool.layout.workers) if is_worker_id(name)]
    return [_with_files(spool, info) for info in found if info is not None]


def read_start_errors(spool: Spool, known: Container[str]) -> dict[str, str]:
    """Return why groups are missing that a supervisor was to start, by worker id; ``known`` workers are left out."""
    found = {}
    for name in files.list_names(spool.layout.workers):
        if name not in known and is_worker_id(name):
            text = records.read_text(f"{spool.layout.worker(name)}/error", _ERROR_LENGTH)
            if text:
                found[name] = text
    return found


def is_ending(spool: Spool, worker: str) -> bool:
    """Return whether a worker was asked to end after its present task."""
    return files.exists(f"{spool.layout.worker(worker)}/{_STOP}")


def _with_files(spool: Spool, info: WorkerInfo) -> WorkerInfo:
    """Return an entry with the fields that other files of it tell."""
    directory = spool.layout.worker(info.worker)
    lacks, ending = {}, False
    with contextlib.suppress(OSError):  # it ends just now
        names = files.list_names(directory)
        ending = _STOP in names
        for name in itertools.islice(filter(is_lack_file, names), _MOST_LACKS):
            text = records.read_text(f"{directory}/{name}", 512)
            if text is not None:
                lacks[name.removeprefix(_LACKS)] = text
    return msgspec.structs.replace(info, lacks=lacks, ending=ending) if lacks or ending else info


def seconds_since_heartbeat(spool: Spool, worker: str, now: float) -> float | None:
    """Return the seconds since a worker's last heartbeat, or None; ``now`` is :meth:`Spool.server_time`.

    A hint for people only, because a fault of the server silences all workers. To tell whether one is dead, its
    heartbeat is watched for a lease (:class:`spoolpool.protocol.heartbeat.Liveness`).
    """
    try:
        stamp = files.mtime_ns(f"{spool.layout.worker(worker)}/beat")
    except OSError:
        return None
    return None if stamp is None else now - stamp / 1e9


class GroupState(NamedTuple):
    """State of a worker group by its entry and its last heartbeat."""

    state: Literal["alive", "silent", "dead"]
    """``silent``: several heartbeats are missing, and nothing is proven. ``dead``: its process has ended on this
    host."""
    silence: float | None
    """Seconds since the last heartbeat; None if it is unknown."""

    @property
    def text(self) -> str:
        """The state in words."""
        if self.state != "silent":
            return self.state
        return "no sign of life" if self.silence is None else f"no sign of life for {format_duration(self.silence)}"


def group_state(spool: Spool, info: WorkerInfo, now: float) -> GroupState:
    """Return the state of a group; ``now`` is :meth:`Spool.server_time`. A hint for people, as the silence is."""
    silence = seconds_since_heartbeat(spool, info.worker, now)
    if info.process.is_provably_dead():
        return GroupState("dead", silence)
    if info.process.is_alive_here():  # only its heartbeat process is stopped or has ended
        return GroupState("alive", silence)
    missed = settings.SILENT_BEATS * spool.config.lease / settings.BEATS_PER_LEASE
    return GroupState("silent" if silence is None or silence > missed else "alive", silence)


def _ranks(lane: Lane) -> str:
    return f"{lane.ranks} rank{'s' * (lane.ranks != 1)}"


_REASONS = 5  # that are listed: entries of workers can give any number

NO_GROUP = "no worker group is alive: start one with 'spool-worker'"
"""Reason why tasks wait if there is no group at all."""


def why_unserved(lane: str, alive: list[WorkerInfo]) -> str | None:
    """Return the reason why no live group can run the tasks of a lane; None if one can."""
    wanted = parse_lane(lane)
    if wanted is None:
        return f"{lane} is no lane"
    if not alive:
        return NO_GROUP
    if wanted.user is not None and not any(info.trusts(wanted.user) for info in alive):
        return f"no group trusts {account_name(wanted.user)} (--trust-user, --trust-group)"
    found, sizes = set(), set()
    for info in alive:
        reason = info.why_not(wanted)
        if reason is None and not info.ending:
            return None
        if reason is None:
            reason = "the groups that could were asked to end (spool workers drain)"
        if reason == f"{_ranks(wanted)} wanted, groups have {info.ranks}":
            sizes.add(info.ranks)
        else:
            found.add(reason)
    if sizes:
        have = f"groups have {', '.join(map(str, sorted(sizes)))}"
        if max(sizes) < wanted.ranks:
            have = f"the largest group has {max(sizes)}"
        found.add(f"{_ranks(wanted)} wanted, {have}")
    reasons = sorted(found)
    if len(reasons) > _REASONS:
        reasons[_REASONS:] = [f"and {len(reasons) - _REASONS} more reasons"]
    return f"no live group can run them: {'; '.join(reasons)}"


class NeededTime(NamedTuple):
    """Time that a waiting task needs, as its name says."""

    seconds: int
    """Seconds that a group must have left; 0 if that is not known."""
    releases: int
    """Number of times that the task did not end in the walltime of a group."""

    @classmethod
    def of(cls, task_file: TaskFile) -> NeededTime:
        """Return the time that a task needs."""
        return cls(task_file.seconds, task_file.releases)


class TimeShortage(NamedTuple):
    """Number of tasks of a lane that need more time than any group that serves the lane has left."""

    tasks: int
    needs: str
    """Time that they need, in words."""
    left: float
    """Seconds that the last group has left."""
    before: str
    """Earlier give-backs, in words; empty without any."""
    seconds: int = 0
    """The shortest time that one of them needs."""

    @property
    def why(self) -> str:
        """Reason in words why the tasks wait."""
        left = max(0, math.floor(self.left))
        return f"no live group can run them: {self.needs}, the longest group has {left} s left{self.before}"


def last_end(lane: str, alive: list[WorkerInfo]) -> float:
    """Return when the last group that serves a lane ends, by the clock of the file server; infinite if none does."""
    wanted = parse_lane(lane)
    ends = [info.ends for info in alive if wanted is not None and info.why_not(wanted) is None and not info.ending]
    return max((math.inf if end is None else end for end in ends), default=math.inf)


def why_too_short(waiting: Mapping[NeededTime, int], left: float) -> TimeShortage | None:
    """Return the shortage of time for the waiting tasks of a lane, if its last group has this time left; else None.

    ``waiting`` has the number of tasks by the time that they need.
    """
    too_long = {need: count for need, count in waiting.items() if need.seconds > left}
    if not too_long:
        return None
    count = sum(too_long.values())
    needs = f"{'the shortest ' * (count > 1)}needs {min(too_long).seconds} s"
    return TimeShortage(count, needs, left, _given_back(too_long), min(too_long).seconds)


def no_group(waiting: Mapping[NeededTime, int]) -> str:
    """Return the reason why tasks wait if there is no group at all, with the time that they need."""
    most = max(waiting, default=NeededTime(0, 0)).seconds
    return f"{NO_GROUP}; the longest needs {most} s{_given_back(waiting)}" if most else NO_GROUP


def _given_back(waiting: Mapping[NeededTime, int]) -> str:
    found = {need: count for need, count in waiting.items() if need.releases}
    if not found:
        return ""
    times = max(need.releases for need in found)
    return f"; {sum(found.values())} did not end in the walltime of a group before, up to {times} time(s)"

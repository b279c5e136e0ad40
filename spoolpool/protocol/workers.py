"""Who serves what: the workers of a spool, and their signs of life."""

from __future__ import annotations

import contextlib

import msgspec

from spoolpool import settings
from spoolpool.errors import NotTrusted
from spoolpool.format.names import Lane, is_worker_id, parse_lane
from spoolpool.protocol.spool import Spool
from spoolpool.system import files
from spoolpool.system.accounts import account_name, in_group
from spoolpool.system.packages import is_requirement
from spoolpool.system.processes import ProcessId


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One worker group, as ``workers/WORKER/info.json`` has it."""

    worker: str
    """Worker id."""
    process: ProcessId
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
            return f"{account_name(lane.user)} is not trusted by groups of {self.user}"
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


ENTRY_FILES = ("info.json", "beat", "stop", "error", "progress")
"""The files of a worker's entry."""

_LACKS = "lacks-"  # begins the name of a file of an entry, which goes on with a lane's tag


def remove_worker(spool: Spool, worker: str) -> None:
    """Remove a worker's entry; it stays where there is something else in it, or where it is but a link."""
    path = spool.layout.worker(worker)
    with contextlib.suppress(OSError, NotTrusted):
        if files.is_directory(path):
            spool.close_directory(path)
            directory = spool.directory(path)
            for name in ENTRY_FILES:
                files.remove(f"{directory}/{name}")
            if not files.remove_directory(path):
                for name in files.list_names(str(directory)):
                    if is_lack(name):
                        files.remove(f"{directory}/{name}")
                files.remove_directory(path)
            spool.close_directory(path)


def is_lack(name: str) -> bool:
    """Whether a file of an entry says that a package is missing."""
    return name.startswith(_LACKS)


def read_worker(spool: Spool, worker: str) -> WorkerInfo | None:
    """A worker's entry, or None where there is none (any more) or it is not one."""
    try:
        return msgspec.json.decode(files.read_small(f"{spool.layout.worker(worker)}/info.json"), type=WorkerInfo)
    except (OSError, ValueError):  # msgspec's errors are ValueErrors
        return None


def read_workers(spool: Spool) -> list[WorkerInfo]:
    """All entries that can be read, of live workers and of dead ones that nobody recovered yet."""
    found = [(name, read_worker(spool, name)) for name in files.list_names(spool.layout.workers) if is_worker_id(name)]
    return [_with_lacks(spool, info) for name, info in found if info is not None and info.worker == name]


def _with_lacks(spool: Spool, info: WorkerInfo) -> WorkerInfo:
    directory = spool.layout.worker(info.worker)
    lacks = {}
    with contextlib.suppress(OSError, ValueError):  # it ends just now, or says something else
        for name in filter(is_lack, files.list_names(directory)):
            text = files.read_small(f"{directory}/{name}", 512).decode(errors="replace")
            lacks[name.removeprefix(_LACKS)] = text
    return msgspec.structs.replace(info, lacks=lacks) if lacks else info


def seconds_since_heartbeat(spool: Spool, worker: str, now: float) -> float | None:
    """Seconds since a worker's last sign of life, where ``now`` is :meth:`Spool.server_time`; None if it left none.

    A hint for people: a fault of the server silences everybody. Who is to be taken for dead is watched for a
    lease (:class:`Liveness`).
    """
    try:
        stamp = files.mtime_ns(f"{spool.layout.worker(worker)}/beat")
    except OSError:
        return None
    return None if stamp is None else now - stamp / 1e9


def _ranks(lane: Lane) -> str:
    return f"{lane.ranks} rank{'s' * (lane.ranks != 1)}"


NO_GROUP = "no worker group is alive: start one with 'spool-worker'"
"""Why tasks wait where there is no group at all."""


def why_unserved(lane: str, alive: list[WorkerInfo]) -> str | None:
    """Why no live group can run the tasks of a lane; None if one can."""
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

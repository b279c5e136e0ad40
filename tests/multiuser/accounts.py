"""System accounts for tests, and their actions on one spool, each with the rights of the account."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from spoolpool import settings
from spoolpool.calls import pickling
from spoolpool.client.futures import TaskFuture
from spoolpool.format import envelope, headers
from spoolpool.format.headers import TaskHeader
from spoolpool.format.names import Lane
from spoolpool.protocol.claimer import Claimer
from spoolpool.protocol.object_cache import ObjectCache
from spoolpool.protocol.spool import Spool
from spoolpool.security.permissions import Mode
from spoolpool.security.trust import Trust
from spoolpool.system.processes import ProcessId
from spoolpool.worker import loop
from spoolpool.worker.group import RankEnvironment
from spoolpool.worker.loop import Worker, WorkerOptions
from spoolpool.worker.serial_group import SerialGroup
from tests.servers.base import wait_for
from tests.support.accounts import unused_name
from tests.support.fake_worker import (
    Clock,
    Inbox,
    SilentRegistration,
    SilentWatch,
    announce,
    dead_process,
    info_of,
    prepare_call,
)
from tests.support.processes import in_fork


@dataclass(frozen=True)
class Person:
    """Account with the groups of its processes."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    @contextlib.contextmanager
    def acting(self, *, umask: int = 0o022) -> Iterator[None]:
        """Give this process the rights of the account, and no others, until the end of the block."""
        before, mask = (os.getgroups(), os.getegid(), os.geteuid()), os.umask(umask)
        _become(self.groups, self.gid, self.uid)
        try:
            yield
        finally:
            _become(*before)
            os.umask(mask)


def in_account(person: Person, function: Callable[[], object], *, umask: int = 0o022) -> object:
    """Return the value or the exception of a function, called in a process that has given up all other accounts."""

    def act() -> object:
        os.umask(umask)
        os.setgroups(person.groups)
        os.setresgid(person.gid, person.gid, person.gid)
        os.setresuid(person.uid, person.uid, person.uid)
        return function()

    return in_fork(act)


def _become(groups: Iterable[int], gid: int, uid: int) -> None:
    os.seteuid(0)
    os.setgroups(list(groups))
    os.setegid(gid)
    os.seteuid(uid)


class People:
    """Members of a project, a service account with a group of its own, and an outsider."""

    project: str
    alice: Person
    bob: Person
    mallory: Person
    service: Person
    outsider: Person

    def __init__(self) -> None:
        self._made: list[str] = []
        self.project = unused_name("project")
        self._command("groupadd", self.project)
        gid = _number("group", self.project)
        for each in ("alice", "bob", "mallory", "service", "outsider"):
            name = unused_name(each)
            more = () if each in ("service", "outsider") else ("--groups", self.project)
            self._command("useradd", "--no-create-home", "--user-group", "--shell", "/bin/sh", *more, name)
            self._made.append(name)
            groups = (gid,) if more else ()
            setattr(self, each, Person(name, _number("passwd", name), _number("group", name), groups))

    @staticmethod
    def _command(*argv: str) -> None:
        # repeated: useradd fails while another process changes the accounts
        done = lambda: subprocess.run(argv, capture_output=True).returncode == 0  # noqa: E731
        wait_for(done, " ".join(argv), timeout=30)

    def remove(self) -> None:
        """Remove all accounts and the group of the project."""
        for name in self._made:
            self._command("userdel", name)
        self._command("groupdel", self.project)


def _number(database: str, name: str) -> int:
    line = subprocess.run(["getent", database, name], capture_output=True, text=True, check=True).stdout
    return int(line.split(":")[2])


def leave_trace(path: str) -> str:
    """Task that leaves a file, which belongs to the account that runs it."""
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o644))
    return "alice's own"


def fail_at_first(path: str) -> str:
    """Task that raises in its first attempt."""
    try:
        os.mkdir(path)
    except FileExistsError:
        return "at last"
    raise ValueError("not yet")


class Canary:
    """Foreign code: unpickling it leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.makedirs, (self.trace, 0o777, True)


class Scene:
    """One spool with a submitter (alice), a worker (bob, trusting alice; in a dropbox the service) and mallory.

    With ``open_parent``, all accounts can write to the directory above the spool, and can replace the spool.
    """

    def __init__(self, people: People, public: Path, mode: Mode, clock: Clock, *, open_parent: bool = False) -> None:
        self.people = people
        self.alice, self.mallory = people.alice, people.mallory
        self.worker = people.service if mode == "dropbox" else people.bob
        self.owner = people.service if mode == "dropbox" else people.alice
        self.mode = mode
        self.clock = clock
        self.public = public
        self.traces = public / "traces"
        self.canary = self.traces / "canary"
        self.traces.mkdir()
        self.traces.chmod(0o1777)
        self.path = self.make("spool")
        if open_parent:
            self.path.parent.chmod(0o777)
            for person in {people.alice, people.bob, people.mallory, self.owner}:
                with person.acting():
                    assert Spool(self.path, accept=True).replaceable
        with self.alice.acting():
            self.inbox = Inbox(Spool(self.path), clock, "alices")
            self.inbox.collector.delivery._accept = Trust([self.worker.uid])
        self.lane = Lane("default", 1, 1, 0, settings.PYTHON, user=self.alice.uid).name

    def make(self, name: str) -> Path:
        """Create a spool; return its path."""
        home = self.public / f"of-{name}"
        home.mkdir()
        os.chown(home, self.owner.uid, self.owner.gid)
        group = self.people.service.name if self.mode == "dropbox" else self.people.project
        with self.owner.acting():
            made = Spool.create(home / name, mode=self.mode, group=group, durability="none", lease=0.3, caches=0.5)
        return Path(made.path)

    # -- actions of the accounts

    def submit(self, function: Any = leave_trace, *args: object, by: Person | None = None, **more: Any) -> TaskFuture:
        """Submit a task as alice; by default a task that leaves a trace."""
        arguments = args or (str(self.traces / f"ran-{os.urandom(3).hex()}"),)
        with (by or self.alice).acting():
            return self.put(self.inbox, function, *arguments, **more)

    @staticmethod
    def put(inbox: Inbox, function: Any, *args: object, **more: Any) -> TaskFuture:
        """Submit a call to the lane of the acting account."""
        lane = Lane("default", 1, 1, 0, settings.PYTHON, user=os.geteuid()).name
        return inbox.submit(prepare_call(inbox, function, *args, lane=lane, **more))

    def file_of(self, future: TaskFuture) -> Path:
        """Return the path of a queued task."""
        return self.path / "ready" / future.header.lane / future.header.bucket / future.task_file.name

    def forge(self, header: TaskHeader, content: object) -> list[envelope.Buffer]:
        """Return the parts of a task file with a forged header and content."""
        payload, buffers = pickling.dumps(content)
        return envelope.pack(headers.encode(header), payload, buffers)

    def work(
        self,
        *trusted: Person,
        by: Person | None = None,
        umask: int = 0o022,
        tasks: int | None = None,
        seconds: float = 0.3,
    ) -> None:
        """Run a worker until no task is queued for some seconds, or until it has run this number of tasks."""
        with (by or self.worker).acting(umask=umask), pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "Registration", SilentRegistration)
            patch.setattr(loop, "DirectoryWatcher", lambda: SilentWatch(self.clock, 100))
            trust = self.trust(*trusted)
            info = info_of(
                ProcessId.of(os.getpid()),
                trust_users=tuple(trust.uids),
                trust_groups=trust.groups,
                trust_all=trust.everybody,
            )
            group = SerialGroup(RankEnvironment(objects=ObjectCache(Spool(self.path), trust)))
            Worker(
                Spool(self.path), group, info, WorkerOptions(trust=trust, idle_timeout=seconds, max_tasks=tasks)
            ).run()

    def trust(self, *trusted: Person) -> Trust:
        """Return the accounts that the worker trusts: alice and the named ones; in a dropbox all."""
        if self.mode == "dropbox":
            return Trust(everybody=True)
        return Trust([each.uid for each in (self.alice, *trusted)])

    def claimer(self, *trusted: Person) -> tuple[Claimer, str]:
        """Return the claimer of a provably dead worker, and its id. Call while the account of the worker is acting."""
        trust, name = self.trust(*trusted), announce(Spool(self.path), dead_process())
        serves = lambda lane: lane.user is None or trust.covers(lane.user)  # noqa: E731
        return Claimer(Spool(self.path), name, serves, trust), name

    def collect(self, *, rounds: int = 3) -> None:
        """Collect outcomes as alice."""
        with self.alice.acting():
            self.inbox.look(rounds)

    # -- invariants and observations

    def is_well(self) -> None:
        """Check that a task of alice runs and returns its value, and that no foreign code has run."""
        future = self.submit()
        self.work()
        self.collect()
        assert future.result(timeout=0) == "alice's own"
        assert not self.canary.exists()

    def runs(self) -> set[int]:
        """Return the accounts that have run a task."""
        return {each.stat().st_uid for each in self.traces.iterdir()}

    def left(self, directory: str) -> list[str]:
        """Return the names in a directory of the spool."""
        return sorted(os.listdir(self.path / directory))


def messages(caplog: pytest.LogCaptureFixture) -> str:
    """Return all warnings and errors logged so far."""
    return "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)

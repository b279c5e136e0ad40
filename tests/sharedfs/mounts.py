"""Shared filesystem with the actors of a test and worker groups on its clients.

A spool is identified by its name here, because its path differs between clients.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.servers import NFS, SSHFS, FileServer, MooseFS
from tests.servers.base import MountedFileServer, as_user
from tests.sharedfs.running import running
from tests.sharedfs.tasks import marks
from tests.support.accounts import known_account
from tests.support.waiting import wait_until

PATIENCE = 240.0
"""Seconds after which a test gives up: a program takes a second to start in a guest of User-Mode-Linux, or ten on a
busy machine."""

CLIENTS = ("A", "B", "C")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of shared filesystem, with the properties that tests depend on."""

    name: str
    start: Callable[[str], FileServer]
    """Function that creates its server, not yet started, in a directory."""
    lease: float
    """Seconds; as short as its caches allow."""
    locks: bool = True
    """Whether a lock excludes other clients."""
    late: str = ""
    """Kind of look-up that a cache delays for new names, by its name in the doctor."""
    network: bool = True
    """Whether its clients can be disconnected and its server restarted."""
    caches: float = 5.0
    """Seconds for which a client may answer from a cache."""
    user: str | None = None
    """Account of all programs on the clients; root if None."""


def _nfs(directory: str, version: str, options: str = "", *, squash: bool = False) -> NFS:
    """The clock of client B is an hour ahead in all tests."""
    clocks = {"B": 3600}
    return NFS(directory, CLIENTS, version=version, options=options, squash=squash, lease=10, clocks=clocks)


KINDS = [
    Kind(name="nfs-4.2", start=lambda at: _nfs(at, "4.2"), lease=3.0, late="looked up"),
    Kind(name="nfs-3", start=lambda at: _nfs(at, "3"), lease=2.0, late="looked up"),
    Kind(name="moosefs", start=lambda at: MooseFS(at, CLIENTS), lease=2.0),
    Kind(name="moosefs-cached", start=lambda at: MooseFS(at, CLIENTS, caches=1.5), lease=2.5, late="looked up"),
    Kind(
        name="sshfs",
        start=lambda at: SSHFS(at, CLIENTS, caches=5),
        lease=6.0,
        locks=False,
        late="listed",
        network=False,
    ),
]


NFS_VARIANTS = [
    Kind(
        name="nfs-4.2-actimeo",
        start=lambda at: _nfs(at, "4.2", "actimeo=60"),
        lease=3.0,
        late="looked up",
        caches=65.0,
    ),
    Kind(name="nfs-3-nolock", start=lambda at: _nfs(at, "3", "nolock"), lease=3.0, locks=False, late="looked up"),
    Kind(
        name="nfs-4.2-squashed",
        start=lambda at: _nfs(at, "4.2", squash=True),
        lease=3.0,
        late="looked up",
        user=known_account().pw_name,
    ),
]
"""NFS with other options, on which not all tests are run."""


def as_reader(user: str | None, command: list[str]) -> list[str]:
    """Return a command line that runs a command as another account, which may read all local files of the client.

    The interpreter may lie in a directory of root. On NFS the server checks the rights, and knows no such capability.
    """
    if user is None:
        return command
    *start, end = as_user(user)
    return [*start, "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search", end, *command]


class Remote:
    """Proxy of a :class:`tests.sharedfs.mounted_client.Actor` on a client."""

    def __init__(self, fs: FileServer, client: str, log: Path, user: str | None = None) -> None:
        self._client = client
        self._log = log
        with log.open("ab") as file:
            command = [sys.executable, "-m", "tests.sharedfs.mounted_client", fs.path(client)]
            pipe = subprocess.PIPE
            self._process = fs.popen(client, as_reader(user, command), stdin=pipe, stdout=pipe, stderr=file)

    def begin(self, name: str, *arguments: Any, **options: Any) -> None:
        """Send an order; :meth:`end` waits for its answer."""
        assert self._process.stdin is not None
        pickle.dump((name, arguments, options), self._process.stdin)
        self._process.stdin.flush()

    def end(self, patience: float = PATIENCE + 60) -> Any:
        """Return the value of the order, or raise its exception."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], patience)
        assert ready, f"{self._client} did not answer in {patience:g} s"
        well, value = pickle.load(self._process.stdout)
        if not well:
            raise value
        return value

    def do(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Send an order and wait for its answer."""
        self.begin(name, *arguments, **options)
        return self.end()

    def answered(self) -> bool:
        """Return whether the answer to an order has arrived."""
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def said(self) -> str:
        """Return its log."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def stop(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process.wait(PATIENCE)


class Command:
    """Command of this package on a client. Its output goes to a file of the machine."""

    def __init__(
        self, fs: FileServer, client: str, log: Path, module: str, *arguments: str, user: str | None = None
    ) -> None:
        self.client = client
        self.doomed = False
        self._fs = fs
        self._log = log
        self._pid = log.with_suffix(".pid")
        command = ["sh", "-c", 'echo $$ >"$0"; exec "$@"', str(self._pid), sys.executable, "-m", module, *arguments]
        with log.open("wb") as file:
            null = subprocess.DEVNULL
            command = as_reader(user, command)
            self.process = fs.popen(client, command, stdin=null, stdout=file, stderr=file, start_new_session=True)

    def said(self) -> str:
        """Return its output."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def serves(self) -> bool:
        """Return whether it scans for tasks."""
        return " serve " in self.said()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it and to the processes that it started: in a worker group, to the heartbeat process."""
        name = number.name.removeprefix("SIG")
        group = f"-{self._pid.read_text().strip()}"
        self._fs.run(self.client, ["sh", "-c", 'kill -s "$0" -- "$1"', name, group], check=False, timeout=PATIENCE)

    def kill(self) -> None:
        """Kill it with all processes that it started."""
        self.doomed = True
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
            self.process.wait(PATIENCE)


class Place:
    """Started filesystem with a submitter on client A; tests start groups on any client."""

    def __init__(self, kind: Kind, fs: FileServer) -> None:
        self.kind = kind
        self.fs = fs
        self.marks = str(fs.directory / "marks")
        Path(self.marks).mkdir()
        for directory in (self.marks, fs.directory / "log"):  # for another account
            os.chmod(directory, 0o1777)
        self.actor = Remote(fs, "A", fs.directory / "log/actor.log", kind.user)
        self._groups: list[Command] = []
        self._number = 0

    def unused(self, what: str) -> str:
        """Return a name that no other test uses."""
        self._number += 1
        return f"{what}{self._number}"

    def spool(self, **settings: Any) -> str:
        """Create a spool, by default with the shortest sensible lease for this filesystem; return its name."""
        name = self.unused("s")
        self.actor.do("make_spool", name, **{"lease": self.kind.lease, "caches": self.kind.caches, **settings})
        return name

    def start(self, client: str, spool: str, *options: str) -> Command:
        """Start a group without waiting until it serves."""
        group = self._run(client, "spoolpool.cli.worker", str(self.fs.path(client) / spool), *options)
        self._groups.append(group)
        return group

    def command(self, client: str, name: str, directory: str, *options: str) -> Command:
        """Start ``spool NAME DIRECTORY``."""
        return self._run(client, "spoolpool.cli.spool", name, str(self.fs.path(client) / directory), *options)

    def _run(self, client: str, module: str, *arguments: str) -> Command:
        log = self.fs.directory / "log" / self.unused("command-")
        return Command(self.fs, client, log, module, *arguments, user=self.kind.user)

    def serve(self, spool: str, *clients: str) -> list[Command]:
        """Start a group on each of these clients; wait until all serve."""
        groups = [self.start(client, spool) for client in clients]
        for group in groups:
            self.await_service(group)
        return groups

    def await_service(self, group: Command) -> None:
        """Wait until a group scans for tasks."""

        def serves() -> bool:
            assert group.process.poll() is None, group.said()
            return group.serves()

        wait_until(serves, f"a group on {group.client} serves", PATIENCE)

    def result(self, number: int) -> Any:
        """Return the value of a task, or raise its exception."""
        return self.actor.do("result", number, PATIENCE)

    def runs(self, uid: str) -> list[str]:
        """Return the host of each run of a task."""
        return marks(self.marks, uid)

    def await_run(self, uid: str) -> None:
        """Wait until a task runs."""
        wait_until(lambda: self.runs(uid), f"{uid} runs", PATIENCE)

    def allow(self, uid: str) -> None:
        """Release a task that waits for its mark."""
        Path(self.marks, f"{uid}-go.A.0").touch()

    def await_clean(self, spool: str) -> None:
        """Wait until a spool has nothing but the entries of its groups."""
        found: list[str] = []

        def clean() -> bool:
            found[:] = self.actor.do("left_over", spool)
            return not found

        try:
            wait_until(clean, "the spool is empty", PATIENCE)
        except AssertionError as error:
            raise AssertionError(f"{error}; left over: {found}") from None

    def all_runs(self) -> Counter[str]:
        """Return the number of runs of each task."""
        return Counter(name.split(".")[0] for name in os.listdir(self.marks))

    def die(self, client: str) -> None:
        """Kill a node by loss of power, or kill only the process that mounts the filesystem; its programs live on."""
        if isinstance(self.fs, MountedFileServer):
            self.fs.kill_mount(client)
        else:
            self.fs.kill(client)

    def end_groups(self) -> None:
        """Stop all groups; fail if a group ended with an error although the test did not kill it."""
        groups, self._groups = self._groups, []
        for group in groups:
            if group.process.poll() is None:
                group.signal(signal.SIGTERM)
        bad = []
        for group in groups:
            try:
                code = group.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                group.process.kill()
                code = f"never, until it was killed ({group.process.wait()})"
            if code and not group.doomed:
                bad.append(f"a group on {group.client} ended: {code}\n{group.said()}")
            print(f"--- group on {group.client}\n{group.said()}")  # pytest shows it for a failed test
        assert not bad, "\n".join(bad)


@contextmanager
def placed(kind: Kind) -> Iterator[Place]:
    """Start a filesystem with a submitter on it; skip the test if it cannot run."""
    with running(kind.name, kind.start) as server:
        place = Place(kind, server)
        try:
            yield place
        finally:
            place.actor.stop()

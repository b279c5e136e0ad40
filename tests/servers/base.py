"""What all servers share: pretended machines ("nodes"), waiting, and reasons not to run.

A :class:`Node` is a set of Linux namespaces around one first process.  The kernel ends every process
of a node together with that first process, so nothing here ever looks for a process by its name, and
no process outlives the tests, not even when they are killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, TypeVar

from typing_extensions import Self

T = TypeVar("T")
ServerT = TypeVar("ServerT", bound="Server")

PATH = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/local/sbin:/usr/sbin:/sbin"
_CLONE_NEWPID = 0x20000000  # <linux/sched.h>; os.setns and os.unshare exist from Python 3.12 only
_libc = ctypes.CDLL(None, use_errno=True)


class ServerError(Exception):
    """A server for tests could not be started or used; the message says which part and why."""


def wait_for(condition: Callable[[], T], what: str, timeout: float = 60.0) -> T:
    """Return the first true value of ``condition()``; raise ServerError, naming ``what``, if none
    came within ``timeout`` seconds.  The only place in this package where time passes on purpose.
    """
    deadline = time.monotonic() + timeout
    delay = 0.005
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise ServerError(f"waited {timeout:g} s in vain: {what}")
        time.sleep(delay)
        delay = min(2 * delay, 0.2)
    return value


def absent(programs: Sequence[str], packages: Sequence[str], devices: Sequence[str] = ()) -> str | None:
    """Return why a server that needs these cannot run on this machine, or None if it can."""
    if sys.platform != "linux":
        return "needs Linux"
    if os.geteuid() != 0:
        return "needs root"
    for program in ("ip", "nsenter", "unshare", "setpriv", *programs):
        if shutil.which(program, path=PATH) is None:
            return f"{program} is not installed (Debian packages: {' '.join(packages)})"
    for device in devices:
        try:
            os.close(os.open(device, os.O_RDWR))
        except OSError as error:
            return f"{device}: {error.strerror}"
    probe = ["unshare", "--uts", "--net", "--pid", "--mount", "--fork", "--mount-proc", "true"]
    result = subprocess.run(probe, check=False, capture_output=True, text=True, env={"PATH": PATH})
    return f"no namespaces: {result.stderr.strip()}" if result.returncode else None


def mounted(path: Path) -> bool:
    """Return whether something is mounted at ``path``; never touches it, as a dead mount can hang."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return any(line.split(" ")[1] == str(path) for line in lines)


def unmount(path: Path) -> None:
    """Take away the mount at ``path``, if there is one, even if it is busy or its server is dead."""
    if mounted(path):
        subprocess.run(["umount", "--lazy", str(path)], check=True, env={"PATH": PATH})


@contextlib.contextmanager
def _children_in_pid_namespace(of: int | None) -> Iterator[None]:
    """Let processes that this thread starts belong to the PID namespace of process ``of``; with
    None, to a new one, whose first process is the first one started.  (The parent stays outside, so
    that ``Popen`` sees the real pid of the child and can signal it; nsenter(1) would stand between.)
    """
    home = os.open("/proc/thread-self/ns/pid", os.O_RDONLY)
    target = None if of is None else os.open(f"/proc/{of}/ns/pid", os.O_RDONLY)
    try:
        failed = _libc.unshare(_CLONE_NEWPID) if target is None else _libc.setns(target, _CLONE_NEWPID)
        if failed:
            error = ctypes.get_errno()
            raise OSError(error, f"PID namespace: {os.strerror(error)}")
        try:
            yield
        finally:
            _libc.setns(home, _CLONE_NEWPID)
    finally:
        os.close(home)
        if target is not None:
            os.close(target)


class Node:
    """A machine as far as processes can tell: host name, pids, /proc, /dev/shm, and a network.

    ``network``: "own" (loopback only, until :meth:`plug_into`), "machine" (that of the real one), or
    another node to share with.  ``hosts``: a file that the node sees as /etc/hosts.
    """

    def __init__(
        self,
        name: str,
        network: Node | Literal["own", "machine"] = "own",
        hosts: Path | None = None,
    ) -> None:
        self.name = name
        self._hosts = hosts
        self._started: list[subprocess.Popen[Any]] = []
        self._shm = Path(tempfile.mkdtemp(prefix=f"node-{name}-", dir="/dev/shm"))
        self._shm.chmod(0o1777)
        command = ["unshare", "--uts"]
        if isinstance(network, Node):
            command = ["nsenter", f"--net=/proc/{network.pid}/ns/net", *command]
        elif network == "own":
            command.append("--net")
        # The first process reads a pipe that we hold: it ends when we do, however that happens.
        # It ignores SIGCHLD so that orphans of the node are reaped.
        script = 'hostname "$0" && ip link set lo up && echo up && exec env --ignore-signal=CHLD cat'
        with _children_in_pid_namespace(of=None):
            self._first = subprocess.Popen(
                [*command, "sh", "-c", script, name],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"PATH": PATH},
            )  # fmt: skip
        self.pid = self._first.pid
        assert self._first.stdout is not None
        if self._first.stdout.readline() != b"up\n":
            self.kill()
            raise ServerError(f"node {name}: its namespaces could not be set up")

    def popen(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        machine_mounts: bool = False,
        kind: type[subprocess.Popen[Any]] = subprocess.Popen,
        **options: Any,
    ) -> subprocess.Popen[Any]:
        """Start ``argv`` on this node; the pid of the result is that of the command itself.

        ``env`` adds to the environment.  ``machine_mounts``: see and change the mounts of the
        machine, for a process that mounts something; then /proc and /dev/shm are the machine's too.
        ``options`` go to ``kind``, a Popen.
        """
        command: list[str | Path] = ["nsenter", f"--target={self.pid}", "--uts", "--net"]
        if not machine_mounts:
            binds = f'mount -t proc proc /proc && mount --bind "{self._shm}" /dev/shm'
            if self._hosts is not None:
                binds += f' && mount --bind "{self._hosts}" /etc/hosts'
            # one mount namespace per command: each sees what is mounted on the machine by then
            command += ["unshare", "--mount", "sh", "-c", binds + ' && exec "$@"', self.name]
        environment = {**os.environ, "PATH": PATH, **(env or {})}
        with _children_in_pid_namespace(of=self.pid):
            process = kind([*command, *as_user(user), *argv], env=environment, **options)
        self._started = [p for p in self._started if p.returncode is None] + [process]
        return process

    def ip(self, *arguments: str) -> None:
        """Run ip(8) on the network of this node."""
        command = ["nsenter", f"--net=/proc/{self.pid}/ns/net", "ip", *arguments]
        result = subprocess.run(command, check=False, capture_output=True, text=True, env={"PATH": PATH})
        if result.returncode:
            raise ServerError(f"node {self.name}: ip {' '.join(arguments)}: {result.stderr.strip()}")

    def listens(self, port: int) -> bool:
        """Return whether a process on this node's network accepts connections at a TCP port."""
        rows = Path(f"/proc/{self.pid}/net/tcp").read_text().splitlines()[1:]
        fields = (row.split() for row in rows)  # number, local address, remote address, state, ...
        return any(f[1].endswith(f":{port:04X}") and f[3] == "0A" for f in fields)

    def make_switch(self, address: str) -> None:
        """Make a network switch on this node, with an address (a.b.c.d/n) of the node itself."""
        self.ip("link", "add", "name", "lan", "type", "bridge")
        self.ip("address", "add", address, "dev", "lan")
        self.ip("link", "set", "dev", "lan", "up")

    def plug_into(self, switch: Node, address: str) -> None:
        """Connect this node to the switch on another by a cable whose far end is ``to-NAME``."""
        port = f"to-{self.name}"
        switch.ip(
            "link",
            "add",
            "name",
            port,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            str(self.pid),
        )
        switch.ip("link", "set", "dev", port, "master", "lan", "up")
        self.ip("address", "add", address, "dev", "eth0")
        self.ip("link", "set", "dev", "eth0", "up")

    def kill(self) -> None:
        """End the node and every process in it, as when its power fails.  May be called twice."""
        self._first.kill()
        # the node is gone only when those of its processes that are our children have been reaped
        for process in (*self._started, self._first):
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired as error:
                raise ServerError(f"node {self.name}: pid {process.pid} does not end") from error
        for pipe in (self._first.stdin, self._first.stdout):
            assert pipe is not None
            pipe.close()
        shutil.rmtree(self._shm, ignore_errors=True)


def as_user(user: str | None) -> list[str]:
    """Return the start of a command that goes on as ``user`` (None: as root, nothing to do)."""
    if user is None:
        return []
    entry = pwd.getpwnam(user)
    home = ["env", f"HOME={entry.pw_dir}", f"USER={user}", f"LOGNAME={user}"]
    return [
        *home,
        "setpriv",
        f"--reuid={entry.pw_uid}",
        f"--regid={entry.pw_gid}",
        "--init-groups",
        "--",
    ]


class Server(ABC):
    """A server that runs below ``directory`` while its ``with`` block lasts; logs stay there."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory).resolve()

    @abstractmethod
    def start(self) -> None:
        """Start everything and wait until it can be used."""

    @abstractmethod
    def stop(self) -> None:
        """Stop everything, including what is half started; leave neither processes nor mounts."""

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        if any(self.directory.iterdir()):
            raise ServerError(f"{self.directory} is not empty; a server wants a directory to itself")
        (self.directory / "log").mkdir()
        self.directory.chmod(0o755)  # other users, who the servers may run as, must get in
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def log(self, name: str) -> IO[bytes]:
        """Open the log of the part ``name``, to append to it."""
        return (self.directory / "log" / f"{name}.log").open("ab", buffering=0)

    def wait_up(self, name: str, up: Callable[[], object], *processes: subprocess.Popen[Any]) -> None:
        """Wait until ``up()``; raise ServerError with the end of the log of ``name`` if that takes
        too long or one of ``processes`` has ended.
        """

        def up_or_dead() -> bool:
            if dead := [p.returncode for p in processes if p.poll() is not None]:
                raise ServerError(f"ended with status {dead[0]}")
            return bool(up())

        try:
            wait_for(up_or_dead, f"{name} is up")
        except ServerError as error:
            end = (self.directory / "log" / f"{name}.log").read_text(errors="replace")[-1500:]
            raise ServerError(f"{type(self).__name__}: {name}: {error}; its log ends:\n{end}") from error


class FileServer(Server):
    """A filesystem shared by several clients, each on a node of its own."""

    def __init__(self, directory: str | Path, clients: Sequence[str] = ("A", "B")) -> None:
        super().__init__(directory)
        for name in clients:
            if not name.isalnum() or len(name) > 8 or name == "S":
                raise ValueError(f"client {name!r}: want up to 8 letters or digits, and not S")
        self.clients = tuple(clients)
        self.nodes: dict[str, Node] = {}

    @abstractmethod
    def path(self, client: str) -> Path:
        """Return the path of the shared directory as ``client`` sees it."""

    @abstractmethod
    def boot(self, client: str) -> None:
        """Make the node of ``client`` and mount the filesystem for it."""

    def popen(
        self,
        client: str,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        **options: Any,
    ) -> subprocess.Popen[Any]:
        """Start a command as ``client``; ``env`` adds to the environment, other ``options`` are those
        of Popen.  The result may be signalled as if it were local.
        """
        return self.nodes[client].popen(argv, env=env, user=user, **options)

    def run(
        self,
        client: str,
        argv: Sequence[str | Path],
        *,
        timeout: float = 60,
        check: bool = True,
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as ``client`` and return what it wrote, as text.

        Raises ServerError if it does not end within ``timeout`` seconds (it is killed then), or,
        unless ``check`` is false, if its status is not 0.
        """
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with self.popen(client, argv, **{**pipes, "text": True, **options}) as process:
            try:
                output, errors = process.communicate(timeout=timeout)
            except BaseException as error:
                process.kill()
                if isinstance(error, subprocess.TimeoutExpired):
                    raise ServerError(f"{client}: {argv}: no end within {timeout:g} s") from error
                raise
        if check and process.returncode:
            raise ServerError(f"{client}: {argv}: status {process.returncode}: {errors}{output}")
        return subprocess.CompletedProcess(argv, process.returncode, output, errors)

    def kill(self, client: str) -> None:
        """Let ``client`` die without notice, with all its processes and its mount."""
        self.nodes[client].kill()

    def restart(self, client: str) -> None:
        """Let ``client``, dead or not, come back as after a boot."""
        self.kill(client)
        self.boot(client)

    def stop(self) -> None:
        with contextlib.ExitStack() as stack:  # all of them, the last one first, whatever fails
            for name in self.nodes:
                stack.callback(self.kill, name)


class MountedFileServer(FileServer):
    """A filesystem that the machine itself mounts once per client, at DIRECTORY/CLIENT: there it can
    also be used without :meth:`run`, as the same client but from outside of its node.
    """

    def path(self, client: str) -> Path:
        return self.directory / client

    def kill(self, client: str) -> None:
        super().kill(client)
        unmount(self.path(client))

"""Common parts of all servers: simulated machines ("nodes"), waiting, and reasons not to run.

A :class:`Node` is a set of Linux namespaces around one first process.  The kernel ends every process of a node
together with that first process, so nothing here ever searches for a process by its name, and no process outlives the
tests, not even when they are killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from typing_extensions import Self

from spoolpool.system.backoff import Backoff

T = TypeVar("T")
ServerT = TypeVar("ServerT", bound="Server")
Argv: TypeAlias = Sequence[str | Path]
Process: TypeAlias = subprocess.Popen[Any]

PATH = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/local/sbin:/usr/sbin:/sbin"
_CLONE_NEWPID = 0x20000000  # <linux/sched.h>; os.setns and os.unshare exist from Python 3.12 only
_libc = ctypes.CDLL(None, use_errno=True)


class ServerError(Exception):
    """A server for tests could not be started or used; the message says which part and why."""


def wait_for(condition: Callable[[], T], what: str, timeout: float = 120) -> T:
    """Return the first true value of ``condition()``; if none comes in ``timeout`` seconds, raise ServerError.

    This is the only intentional delay in this package.
    """
    deadline = time.monotonic() + timeout
    backoff = Backoff(0.005, 0.2, 2.0)
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise ServerError(f"waited {timeout:g} s in vain: {what}")
        backoff.sleep()
    return value


def command(argv: Argv, *, timeout: float = 60, env: Mapping[str, str] | None = None, **options: Any) -> str:
    """Run a command of the machine itself; return its output, or raise ServerError with its error output."""
    settings: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, **options}
    try:
        result = subprocess.run(argv, check=False, timeout=timeout, env={**(env or {}), "PATH": PATH}, **settings)
    except subprocess.TimeoutExpired as error:
        raise ServerError(str(error)) from error
    if result.returncode:
        raise ServerError(f"{argv}: status {result.returncode}: {result.stderr}{result.stdout}")
    return str(result.stdout)


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
    try:
        command(["unshare", "--uts", "--ipc", "--net", "--pid", "--mount", "--fork", "--mount-proc", "true"])
    except ServerError as error:
        return f"no namespaces: {error}"
    return None


def mounted(path: Path) -> bool:
    """Return whether something is mounted at ``path``, without access to the path, which could hang."""
    fields = (line.split(" ")[1] for line in Path("/proc/self/mounts").read_text().splitlines())
    # spaces and the like are octal numbers there, see fstab(5)
    return str(path) in (re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), field) for field in fields)


def as_user(user: str | None) -> list[str]:
    """Return the start of a command line that runs the rest as ``user`` (None: an empty start)."""
    if user is None:
        return []
    entry = pwd.getpwnam(user)
    names = ["env", f"HOME={entry.pw_dir}", f"USER={user}", f"LOGNAME={user}"]
    return [*names, "setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--init-groups", "--"]


@contextlib.contextmanager
def _children_in_pid_namespace(of: int | None) -> Iterator[None]:
    """Start the next processes of this thread in the PID namespace of process ``of`` (None: in a new one).

    The parent stays outside, so that ``Popen`` knows the real pid of the child and can signal it; nsenter(1) would
    be a process between the two.  In a new namespace, the first process is the one whose death ends the others.
    """
    with contextlib.ExitStack() as stack:
        home = os.open("/proc/thread-self/ns/pid", os.O_RDONLY)
        stack.callback(os.close, home)
        if of is None:
            failed = _libc.unshare(_CLONE_NEWPID)
        else:
            target = os.open(f"/proc/{of}/ns/pid", os.O_RDONLY)
            stack.callback(os.close, target)
            failed = _libc.setns(target, _CLONE_NEWPID)
        if failed:
            raise OSError(ctypes.get_errno(), f"PID namespace: {os.strerror(ctypes.get_errno())}")
        stack.callback(_libc.setns, home, _CLONE_NEWPID)
        yield


class Node:
    """Simulated machine with its own host name, pids, /proc, shared memory, and a network.

    ``network``: "own" (loopback only, until :meth:`plug_into`), "machine" (that of the real one), or another node to
    share with.  ``hosts``: a file that the node sees as /etc/hosts.
    """

    def __init__(self, name: str, network: Node | Literal["own", "machine"] = "own", hosts: Path | None = None) -> None:
        self.name = name
        self._started: list[Process] = []
        self._shm = Path(tempfile.mkdtemp(prefix=f"node-{os.getpid()}-{name}-", dir="/dev/shm"))
        self._shm.chmod(0o1777)
        self._mounts = f'mount -t proc proc /proc && mount --bind "{self._shm}" /dev/shm'
        if hosts is not None:
            self._mounts += f' && mount --bind "{hosts}" /etc/hosts'
        start = ["unshare", "--uts", "--ipc", *(["--net"] if network == "own" else [])]
        if isinstance(network, Node):
            start = ["nsenter", f"--net=/proc/{network.pid}/ns/net", *start]
        # The first process reads a pipe that this process holds: it ends with this process, whatever ends that.
        # It ignores SIGCHLD so that orphans of the node are reaped.
        script = 'hostname "$0" && ip link set lo up && echo up && exec env --ignore-signal=CHLD cat'
        start += ["sh", "-c", script, name]
        pipe = subprocess.PIPE
        with _children_in_pid_namespace(of=None):
            self._first: Process = subprocess.Popen(start, stdin=pipe, stdout=pipe, env={"PATH": PATH})
        self.pid: int = self._first.pid
        assert self._first.stdout is not None
        if self._first.stdout.readline() != b"up\n":
            self.kill()
            raise ServerError(f"node {name}: its namespaces could not be set up")

    def popen(
        self,
        argv: Argv,
        *,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        machine_mounts: bool = False,
        kind: type[Process] = subprocess.Popen,
        **options: Any,
    ) -> Process:
        """Start ``argv`` on this node; the pid of the result is that of the command itself.

        ``env`` adds to the environment.  ``machine_mounts``: see and change the mounts of the machine, for a process
        that mounts something; then /proc and /dev/shm are the machine's, too.  ``options`` go to ``kind``, a Popen.
        """
        if self._first.poll() is not None:
            raise ServerError(f"{self.name}: {argv}: the node is dead")
        start: list[str | Path] = ["nsenter", f"--target={self.pid}", "--uts", "--ipc", "--net"]
        if not machine_mounts:
            # one mount namespace per command: each sees the mounts of the machine at its start
            start += ["unshare", "--mount", "sh", "-c", self._mounts + ' && exec "$@"', self.name]
        environment = {**os.environ, "PATH": PATH, **(env or {})}
        with _children_in_pid_namespace(of=self.pid):
            process = kind([*start, *as_user(user), *argv], env=environment, **options)
        self._started.append(process)
        return process

    def is_alive(self) -> bool:
        """Return whether its first process runs: without it, no other process of the node can run."""
        return self._first.poll() is None

    def ip(self, arguments: str) -> None:
        """Run ip(8) on the network of this node."""
        command(["nsenter", f"--net=/proc/{self.pid}/ns/net", "ip", *arguments.split()])

    def make_switch(self, address: str) -> None:
        """Create a network switch on this node, with an address (a.b.c.d/n) of the node itself."""
        self.ip("link add name lan type bridge")
        self.ip(f"address add {address} dev lan")
        self.ip("link set dev lan up")

    def plug_into(self, switch: Node, address: str) -> None:
        """Connect this node to the switch on another by a cable, with ``lan-NAME`` as its far end."""
        # the kernel removes the network of a node some time after its end
        with contextlib.suppress(ServerError):
            switch.ip(f"link delete lan-{self.name}")
        switch.ip(f"link add name lan-{self.name} type veth peer name eth0 netns {self.pid}")
        switch.ip(f"link set dev lan-{self.name} master lan up")
        self.ip(f"address add {address} dev eth0")
        self.ip("link set dev eth0 up")

    def kill(self) -> None:
        """End the node and every process in it, as when its power fails.  May be called twice."""
        self._first.kill()
        # the kernel frees the first process only after this process has reaped its children in the namespace
        for process in (*self._started, self._first):
            process.wait(timeout=60)
        for pipe in (self._first.stdin, self._first.stdout):
            assert pipe is not None
            pipe.close()
        shutil.rmtree(self._shm, ignore_errors=True)


class Server(ABC):
    """A server that runs below ``directory``, an empty one, while its ``with`` block lasts; its logs stay there."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory).resolve()
        self.nodes: dict[str, Node] = {}

    @abstractmethod
    def start(self) -> None:
        """Start everything and wait until it can be used."""

    @abstractmethod
    def boot(self, name: str) -> None:
        """Create the node ``name`` and start its processes."""

    def kill(self, name: str) -> None:
        """Kill the node ``name`` without notice, with all its processes."""
        self.nodes[name].kill()

    def restart(self, name: str) -> None:
        """Restart the node ``name``, dead or not, as by a boot."""
        self.kill(name)
        self.boot(name)

    def stop(self) -> None:
        """Stop all parts, also half-started ones; leave neither processes nor mounts."""
        with contextlib.ExitStack() as stack:  # all nodes in reverse order, even if one fails
            for name in self.nodes:
                stack.callback(self.kill, name)

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        if any(self.directory.iterdir()):
            raise ServerError(f"{self.directory} is not empty; a server wants a directory to itself")
        self.directory.chmod(0o755)  # for other users of the shared directory
        (self.directory / "log").mkdir()
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def daemon(self, node: Node, name: str, argv: Argv, **options: Any) -> Process:
        """Start a part of the server on a node; its output goes to the log of ``name``."""
        with (self.directory / "log" / f"{name}.log").open("ab") as log:
            streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            return node.popen(argv, **{**streams, **options})

    def wait_up(self, name: str, up: Callable[[], object], *processes: Process) -> None:
        """Wait until ``up()``; if it takes too long, or a process ends, raise ServerError with the log of ``name``."""

        def up_or_dead() -> bool:
            if dead := [process.returncode for process in processes if process.poll() is not None]:
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
                raise ValueError(f"client {name!r}: want up to 8 letters or digits, and not S, the server")
        self.clients = tuple(clients)

    @abstractmethod
    def path(self, client: str) -> Path:
        """Return the path of the shared directory as ``client`` sees it."""

    def popen(
        self,
        client: str,
        argv: Argv,
        *,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        **options: Any,
    ) -> Process:
        """Start a command on ``client``, as ``user`` instead of root if one is given.

        ``env`` adds to the environment; other ``options`` are those of Popen.  The result can be signalled as if the
        command were local.
        """
        return self.nodes[client].popen(argv, env=env, user=user, **options)

    def run(
        self, client: str, argv: Argv, *, timeout: float = 60, check: bool = True, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on ``client`` and return its output as text; ``options`` as for :meth:`popen`.

        Raises ServerError if it does not end within ``timeout`` seconds (it is killed then), or, unless ``check`` is
        false, if its status is not 0.
        """
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with self.popen(client, argv, **{**pipes, **options}) as process:
            try:
                output, errors = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired as error:
                process.kill()
                raise ServerError(f"{client}: {argv}: no end within {timeout:g} s") from error
            except BaseException:
                process.kill()
                raise
        if check and process.returncode:
            raise ServerError(f"{client}: {argv}: status {process.returncode}: {errors}{output}")
        return subprocess.CompletedProcess(argv, process.returncode, output, errors)


class MountedFileServer(FileServer):
    """A filesystem that the machine itself mounts once per client, at DIRECTORY/CLIENT.

    It can also be used there without :meth:`run`: as the same client, but from outside of its node.
    """

    def __init__(self, directory: str | Path, clients: Sequence[str] = ("A", "B")) -> None:
        super().__init__(directory, clients)
        self._mounts: dict[str, Process] = {}

    def path(self, client: str) -> Path:
        return self.directory / client

    def mount(self, client: str, argv: Argv, *needed: Process, **options: Any) -> None:
        """Start the process that mounts the filesystem for a client, and wait until it has; ``needed`` must live."""
        path = self.path(client)
        self._mounts[client] = self.daemon(self.nodes[client], client, argv, machine_mounts=True, **options)
        self.wait_up(client, lambda: mounted(path), self._mounts[client], *needed)

    def kill_mount(self, client: str) -> None:
        """Kill the process that mounts the filesystem; other processes of the node live on and get ENOTCONN there."""
        self._mounts[client].kill()
        self._mounts[client].wait(timeout=60)
        self._unmount(client)

    def kill(self, name: str) -> None:
        super().kill(name)
        self._unmount(name)

    def _unmount(self, name: str) -> None:
        if mounted(self.path(name)):
            command(["umount", "--lazy", self.path(name)])

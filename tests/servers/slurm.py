"""Slurm: a controller and several virtual nodes with their own host names, pids and /dev/shm.

They share the network and the files of the machine, so that ``sbatch`` and ``srun`` work from
outside of them.  CPUs, memory and GPUs are only claimed, and no process is bound to any.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.servers.base import PATH, Node, Server, ServerError, absent, as_user

PACKAGES = ("slurm-wlm", "slurm-wlm-basic-plugins", "munge", "libpmix-dev", "iproute2")


def missing() -> str | None:
    """Return why Slurm cannot run on this machine, or None."""
    return absent(("slurmctld", "slurmd", "munged", "srun"), PACKAGES)


def _free_ports(number: int) -> list[int]:
    """Return TCP ports of the loopback network that nobody listens on, for now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Slurm(Server):
    """A Slurm of ``nodes`` nodes n1, n2, ..., each with ``cpus`` CPUs and ``gpus`` GPUs.

    ``users``: accounts that must exist; those made for the purpose go away at the end.  ``options``
    are lines of slurm.conf, which win over the ones here.  ``env`` is the environment to run
    ``sbatch``, ``srun`` and so on with.
    """

    def __init__(
        self,
        directory: str | Path,
        nodes: int = 4,
        cpus: int = 4,
        gpus: int = 2,
        memory: int = 4000,
        users: Sequence[str] = (),
        options: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(directory)
        self.names = tuple(f"n{i + 1}" for i in range(nodes))
        self._each = {
            "CPUs": cpus,
            "SocketsPerBoard": 1,
            "CoresPerSocket": cpus,
            "RealMemory": memory,
        }
        self._gpus = gpus
        self._users = tuple(users)
        self._new_users: list[str] = []
        self._options = dict(options or {})
        self._conf = self.directory / "etc/slurm.conf"
        self.nodes: dict[str, Node] = {}
        self.env = {**os.environ, "PATH": PATH, "SLURM_CONF": str(self._conf)}

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        user: str | None = None,
        timeout: float = 60,
        **options: Any,
    ) -> str:
        """Run a command with :attr:`env` and return its output; ServerError if its status is not 0."""
        result = subprocess.run(
            [*as_user(user), *argv], env=self.env, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=timeout, **options,
        )  # fmt: skip
        if result.returncode:
            raise ServerError(f"{argv}: status {result.returncode}: {result.stderr}{result.stdout}")
        return result.stdout

    def start(self) -> None:
        for name in ("etc", "gpu", "munge", "state", "spool"):
            (self.directory / name).mkdir(exist_ok=True)
        for user in self._users:
            with contextlib.suppress(KeyError):
                pwd.getpwnam(user)
                continue
            home = self.directory / "home" / user
            home.parent.mkdir(exist_ok=True)
            subprocess.run(["useradd", "-m", "-d", home, user], check=True, env={"PATH": PATH})
            self._new_users.append(user)
        self._write_configuration()
        controller = self.nodes["ctl"] = Node("ctl", network="machine", hosts=self._hosts)
        munge = self.directory / "munge"
        (munge / "key").write_bytes(os.urandom(128))
        (munge / "key").chmod(0o600)
        files = {
            "socket": "socket",
            "key-file": "key",
            "pid-file": "pid",
            "seed-file": "seed",
            "log-file": "log",
        }
        # --force: the directories above are whatever they are
        munged = [
            "munged",
            "--foreground",
            "--force",
            *(f"--{o}={munge / f}" for o, f in files.items()),
        ]
        munge_daemon = self._daemon(controller, "munged", munged)
        self.wait_up("munged", (munge / "socket").exists, munge_daemon)
        ctl_daemon = self._daemon(controller, "slurmctld", ["slurmctld", "-D", "-f", self._conf])
        for name in self.names:
            self.boot(name)
        self.wait_up("slurmctld", self._all_nodes_up, ctl_daemon)

    def boot(self, name: str) -> None:
        """Start the virtual node ``name``."""
        (self.directory / "spool" / name).mkdir(exist_ok=True)
        node = self.nodes[name] = Node(name, network="machine", hosts=self._hosts)
        self._daemon(node, name, ["slurmd", "-D", "-f", self._conf, "-N", name])

    def _daemon(self, node: Node, name: str, argv: Sequence[str | Path]) -> subprocess.Popen[Any]:
        # an environment of its own: that of slurmd would show up in the jobs
        with self.log(name) as log:
            return node.popen(
                ["env", "-i", f"PATH={PATH}", *argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _write_configuration(self) -> None:
        etc = self.directory / "etc"
        self._hosts = etc / "hosts"
        # all of 127/8 is this machine
        names = (f"127.0.1.{i + 1} {name}\n" for i, name in enumerate(self.names))
        self._hosts.write_text("127.0.0.1 localhost ctl\n" + "".join(names))
        (etc / "cgroup.conf").write_text("IgnoreSystemd=yes\n")
        gres = ""
        if self._gpus:
            # a GPU is a device file; the digits at its end are its number in CUDA_VISIBLE_DEVICES
            for i in range(self._gpus):
                (self.directory / f"gpu/gpu{i}").symlink_to("/dev/null")
            files = self.directory / f"gpu/gpu[0-{self._gpus - 1}]"
            (etc / "gres.conf").write_text(f"Name=gpu Type=fake File={files}\n")
            gres = f" Gres=gpu:fake:{self._gpus}"
        port, *ports = _free_ports(1 + len(self.names))
        settings = {
            "ClusterName": "virtual",
            "SlurmctldHost": "ctl(127.0.0.1)",
            "SlurmctldPort": port,
            "SlurmUser": "root",
            "AuthType": "auth/munge",
            # cred_expire is also how long a requeued job waits (default: two minutes)
            "AuthInfo": f"socket={self.directory / 'munge/socket'},cred_expire=5",
            "StateSaveLocation": self.directory / "state",
            "SlurmdSpoolDir": self.directory / "spool/%n",
            "SlurmctldPidFile": self.directory / "state/slurmctld.pid",
            "SlurmdPidFile": self.directory / "spool/%n/slurmd.pid",
            "AccountingStorageType": "accounting_storage/none",
            "JobAcctGatherType": "jobacct_gather/none",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core",
            "GresTypes": "gpu",
            "MpiDefault": "none",
            "MinJobAge": 86400,  # "scontrol show job" knows ended jobs, for want of an accounting
            "SchedulerParameters": "batch_sched_delay=0,sched_interval=2,bf_interval=2",
            "KillWait": 5,
            "ReturnToService": 2,
            "SlurmdParameters": "config_overrides",  # believe the CPUs given, not the real ones
            "PartitionName": "main Nodes=ALL Default=YES MaxTime=INFINITE State=UP",
            **self._options,
        }
        each = " ".join(f"{key}={value}" for key, value in self._each.items())
        lines = [f"{key}={value}" for key, value in settings.items()]
        lines[-1:-1] = [
            f"NodeName={name} NodeAddr=127.0.0.1 Port={port} {each}{gres} State=UNKNOWN"
            for name, port in zip(self.names, ports, strict=True)
        ]
        self._conf.write_text("\n".join(lines) + "\n")

    def _all_nodes_up(self) -> bool:
        try:
            states = self.run(["sinfo", "--noheader", "--Node", "--format=%T"], timeout=5).split()
        except (ServerError, subprocess.TimeoutExpired):
            return False
        return len(states) == len(self.names) and set(states) <= {
            "idle",
            "mixed",
            "allocated",
            "completing",
        }

    def kill(self, name: str) -> None:
        """Let the node ``name`` die without notice, with all that runs there."""
        self.nodes[name].kill()

    def restart(self, name: str) -> None:
        """Let the node ``name``, dead or not, come back as after a boot."""
        self.kill(name)
        self.boot(name)
        self.wait_up("slurmctld", self._all_nodes_up)

    def stop(self) -> None:
        with contextlib.ExitStack() as stack:
            for user in self._new_users:
                stack.callback(subprocess.run, ["userdel", "-f", user], check=True, env={"PATH": PATH})
            for name in self.nodes:
                stack.callback(self.kill, name)

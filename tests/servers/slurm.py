"""Slurm: a controller and several virtual nodes with their own host names, pids and /dev/shm.

They share the network and the files of the machine, so that ``sbatch`` and ``srun`` work from outside of them.
CPUs, memory and GPUs are only claimed, and no process is bound to any.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.servers.base import PATH, Argv, Node, Process, Server, ServerError, absent, as_user, command

PACKAGES = ("slurm-wlm", "slurm-wlm-basic-plugins", "munge", "libpmix-dev", "iproute2")


def missing() -> str | None:
    """Return why Slurm cannot run on this machine, or None."""
    return absent(("slurmctld", "slurmd", "munged", "srun"), PACKAGES)


def _free_ports(number: int) -> list[int]:
    """Return TCP ports without a listener on any address, and that the kernel gives to no connection by itself."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found: list[int] = []
    for port in random.sample(range(10_000, max(first, 20_000)), k=2000):
        with socket.socket() as each, contextlib.suppress(OSError):
            each.bind(("", port))
            found.append(port)
        if len(found) == number:
            return found
    raise ServerError(f"fewer than {number} TCP ports are free between 10000 and {first}")


class Slurm(Server):
    """A Slurm of ``nodes`` nodes n1, n2, ..., each with ``cpus`` CPUs, ``gpus`` GPUs and ``memory`` megabytes.

    ``threads``: CPUs of one core, which are hardware threads.
    ``users``: accounts to make, by the starts of their names.  ``accounts`` has their full names, which no account of
    the machine has; they are removed at the end.  ``options``: lines of slurm.conf that win over the ones here.
    ``env`` is the environment to run ``sbatch``, ``srun`` and so on with.
    """

    def __init__(
        self,
        directory: str | Path,
        nodes: int = 4,
        cpus: int = 4,
        gpus: int = 2,
        memory: int = 4000,
        threads: int = 1,
        users: Sequence[str] = (),
        options: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(directory)
        self.names = tuple(f"n{i + 1}" for i in range(nodes))
        self._claim = f"CPUs={cpus} CoresPerSocket={cpus // threads} ThreadsPerCore={threads} RealMemory={memory}"
        self._gpus = gpus
        self.accounts = {user: f"{user}{secrets.token_hex(4)}" for user in users}
        self._made: list[str] = []
        self._options = dict(options or {})
        self._etc = self.directory / "etc"
        self.env = {**os.environ, "PATH": PATH, "SLURM_CONF": str(self._etc / "slurm.conf")}

    def run(self, argv: Argv, *, user: str | None = None, timeout: float = 60, **options: Any) -> str:
        """Run a command with :attr:`env`; return its output, or raise ServerError if it fails."""
        return command([*as_user(user), *argv], timeout=timeout, env=self.env, **options)

    def home(self, account: str) -> Path:
        """Return the home directory of an account that was made for it."""
        return self.directory / "home" / account

    def start(self) -> None:
        for name in ("etc", "gpu", "home", "munge", "state", "spool"):
            (self.directory / name).mkdir()
        for name in self.accounts.values():
            command(["useradd", "--create-home", "--home-dir", self.home(name), name])
            self._made.append(name)
        self._write_configuration()
        controller = self.nodes["ctl"] = Node("ctl", network="machine", hosts=self._etc / "hosts")
        munge = self.directory / "munge"
        (munge / "key").write_bytes(os.urandom(128))
        (munge / "key").chmod(0o600)
        files = [f"--{name}-file={munge / name}" for name in ("key", "pid", "seed", "log")]
        # --force: with any owner of the parent directories
        munged = ["munged", "--foreground", "--force", f"--socket={munge}/socket", *files]
        munge_daemon = self._daemon(controller, "munged", munged)
        self.wait_up("munged", (munge / "socket").exists, munge_daemon)
        slurmctld = ["slurmctld", "-D", "-f", f"{self._etc}/slurm.conf"]
        slurm_daemon = self._daemon(controller, "slurmctld", slurmctld)
        for name in self.names:
            self.boot(name)
        self.wait_up("slurmctld", self._all_nodes_up, slurm_daemon)

    def boot(self, name: str) -> None:
        pid_file = self.directory / "spool" / name / "slurmd.pid"
        pid_file.parent.mkdir(exist_ok=True)
        pid_file.unlink(missing_ok=True)
        node = self.nodes[name] = Node(name, network="machine", hosts=self._etc / "hosts")
        slurmd = self._daemon(node, name, ["slurmd", "-D", "-f", f"{self._etc}/slurm.conf", "-N", name])
        self.wait_up(name, pid_file.exists, slurmd)  # it listens before it writes this file

    def _daemon(self, node: Node, name: str, argv: Argv) -> Process:
        # an environment of its own: that of slurmd would show up in the jobs
        return self.daemon(node, name, ["env", "-i", f"PATH={PATH}", *argv])

    def _write_configuration(self) -> None:
        # all of 127/8 is this machine
        names = [f"127.0.1.{i + 1} {name}\n" for i, name in enumerate(self.names)]
        (self._etc / "hosts").write_text("127.0.0.1 localhost ctl\n" + "".join(names))
        (self._etc / "cgroup.conf").write_text("IgnoreSystemd=yes\n")
        gres = ""
        if self._gpus:
            # a GPU is a device file; the digits at its end are its number in CUDA_VISIBLE_DEVICES
            for i in range(self._gpus):
                (self.directory / f"gpu/gpu{i}").symlink_to("/dev/null")
            files = f"{self.directory}/gpu/gpu[0-{self._gpus - 1}]"
            (self._etc / "gres.conf").write_text(f"Name=gpu Type=fake File={files}\n")
            gres = f" Gres=gpu:fake:{self._gpus}"
        port, *ports = _free_ports(1 + len(self.names))
        settings = {
            "ClusterName": "virtual",
            "SlurmctldHost": "ctl(127.0.0.1)",
            "SlurmctldPort": port,
            "SlurmUser": "root",
            "AuthType": "auth/munge",
            # cred_expire is also how long a requeued job waits (default: two minutes)
            "AuthInfo": f"socket={self.directory}/munge/socket,cred_expire=5",
            # slurmd and srun listen at any address: other nodes sometimes take 127.0.0.1 for theirs
            "CommunicationParameters": "NoCtldInAddrAny",
            "StateSaveLocation": f"{self.directory}/state",
            "SlurmdSpoolDir": f"{self.directory}/spool/%n",
            "SlurmctldPidFile": f"{self.directory}/state/slurmctld.pid",
            "SlurmdPidFile": f"{self.directory}/spool/%n/slurmd.pid",
            "AccountingStorageType": "accounting_storage/none",
            "JobAcctGatherType": "jobacct_gather/none",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core",
            "GresTypes": "gpu",
            "MpiDefault": "none",
            "MinJobAge": 86400,  # without accounting, only "scontrol show job" knows ended jobs
            "SchedulerParameters": "batch_sched_delay=0,sched_interval=2,bf_interval=2",
            "KillWait": 5,
            "ReturnToService": 2,
            "SlurmdParameters": "config_overrides",  # use the CPUs configured below, not the real ones
            **self._options,
        }
        lines = [f"{key}={value}" for key, value in settings.items()]
        for name, port in zip(self.names, ports, strict=True):
            lines.append(f"NodeName={name} NodeAddr=127.0.0.1 Port={port} {self._claim}{gres} State=UNKNOWN")
        lines.append("PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP")
        (self._etc / "slurm.conf").write_text("\n".join(lines) + "\n")

    def _all_nodes_up(self) -> bool:
        try:
            states = self.run(["sinfo", "--noheader", "--Node", "--format=%T"], timeout=5).split()
        except ServerError:
            return False
        return len(states) == len(self.names) and set(states) <= {"idle", "mixed", "allocated", "completing"}

    def stop(self) -> None:
        super().stop()
        while self._made:
            command(["userdel", "--force", self._made.pop()])

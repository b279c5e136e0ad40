"""Real NFS: the server and the clients of Linux, each in a User-Mode-Linux kernel.

A User-Mode-Linux is an ordinary process that is a Linux kernel, with caches, locks, pids and a clock of its own.
The guests boot from the machine's own files, so that every program and every path of the machine is there, too; the
shared directory is DIRECTORY/mnt in each.  A system call takes some 30 µs in a guest: this shows
the behaviour of NFS, not its speed.

Guest S serves a small ext4.  Two cables lead to each guest: ``lan`` is a switch with S and the clients, ``con`` is
for ssh, so that a client without network still takes commands.
"""

from __future__ import annotations

import itertools
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.servers.base import PATH, Argv, FileServer, Node, Process, absent, as_user, command, wait_for

PACKAGES = (
    "user-mode-linux", "nfs-kernel-server", "nfs-common", "rpcbind", "kmod", "e2fsprogs", "iproute2",
    "openssh-server", "openssh-client",
)  # fmt: skip

_PROGRAMS = ("linux.uml", "exportfs", "nfsdcld", "rpcbind", "modprobe", "sshd", "ssh", "mkfs.ext4")
_LAN = "10.96.0"
_CON = "10.97"
_MEGABYTE = 2**20

_SSHD = """\
HostKey {key}
AuthorizedKeysFile {key}.pub
StrictModes no
UsePAM no
PermitRootLogin yes
MaxSessions 1000
"""

_SSH = """\
User root
IdentityFile {key}
IdentitiesOnly yes
StrictHostKeyChecking no
UserKnownHostsFile /dev/null
LogLevel ERROR
BatchMode yes
ControlPath {directory}/guest/%n/ssh
"""

# The first process of each guest.  What a guest writes outside of these mounts, it writes to the machine.
_INIT = """\
#!/bin/sh
exec </dev/null >/dev/console 2>&1
set -e  # the end of this is the end of the kernel
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mkdir -p /dev/pts /dev/shm /lib/modules
mount -t devpts -o ptmxmode=666 devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/sshd /run/rpcbind /run/rpc_pipefs /run/commands
mkdir -m 1777 /run/tmp
[ -e /dev/fd ] || ln -s /proc/self/fd /dev/fd
[ -e /dev/ptmx ] || ln -s pts/ptmx /dev/ptmx
mount --bind /usr/lib/uml/modules /lib/modules
mount --bind {directory}/etc/hosts /etc/hosts
mount --bind {home}/nfs /var/lib/nfs
# ssh lets bash read this, and what is merely slow on the machine takes ages here
[ ! -e /root/.bashrc ] || mount --bind /dev/null /root/.bashrc
hostname {name}
date --set '{clock} seconds'
ip link set lo up
# the address of the network card outlives a boot, as the other guests remember it
ip link set vec0 address 02:00:00:00:00:{card:02x}
ip address add {lan}/24 dev vec0 && ip link set vec0 up
ip address add {con}/30 dev vec1 && ip link set vec1 up
/usr/sbin/sshd -f {directory}/etc/sshd_config -E /dev/console
# for the locks of NFS 3
rpcbind -w
rpc.statd -n {name}
{role}
echo up >{home}/up
while :; do sleep 1000; done
"""

_SERVE = """\
mount /dev/ubda {directory}/srv
chmod 1777 {directory}/srv
# a new disk has no clients whose locks must be waited for: make that short
if [ -d {directory}/srv/.nfsdcld ]; then grace={lease}; else grace=1; fi
modprobe lockd nlm_grace_period=$grace nlm_timeout=3
modprobe nfsd
mount -t nfsd nfsd /proc/fs/nfsd
mount -t rpc_pipefs rpc_pipefs /run/rpc_pipefs
# who may reclaim locks is remembered on the disk
mkdir -p {directory}/srv/.nfsdcld /var/lib/nfs/nfsdcld
mount --bind {directory}/srv/.nfsdcld /var/lib/nfs/nfsdcld
nfsdcld
mount --bind {directory}/etc/exports /etc/exports
echo {lease} >/proc/fs/nfsd/nfsv4leasetime
echo {lease} >/proc/fs/nfsd/nfsv4gracetime
exportfs -ra
rpc.mountd
rpc.nfsd 8
"""

_MOUNT = """\
modprobe nfs
modprobe nfsv{major}
until mount -t nfs -o {options},retry=0 {server}:{export} {directory}/mnt; do sleep 0.2; done
"""


def missing() -> str | None:
    """Return why NFS in User-Mode-Linux cannot run on this machine, or None."""
    if reason := absent(_PROGRAMS, PACKAGES, ("/dev/net/tun",)):
        return reason
    free = shutil.disk_usage("/dev/shm").free // _MEGABYTE
    return f"only {free} MB left in /dev/shm, the memory of the guests" if free < 1000 else None


class GuestProcess(subprocess.Popen[Any]):
    """Command in a guest, run by an ssh on this side. Signals go to the command; its end by a signal has status 255."""

    fs: NFS
    client: str
    number: int

    def send_signal(self, sig: int) -> None:
        """Send ``sig`` to the command in the guest, as soon as it has started there."""
        name = signal.Signals(sig).name.removeprefix("SIG")
        script = f"kill -s {name} $(cat /run/commands/{self.number})"

        def ended_or_delivered() -> bool:
            return self.poll() is not None or not self.fs.ssh(self.client, script)

        wait_for(ended_or_delivered, f"{self.client} takes SIG{name}")


class NFS(FileServer):
    """NFS server S and its clients, each with its own kernel.

    ``version``: "4.2" or "3".  ``options``: more mount options, for example "actimeo=0".  ``squash``: treat root of a
    client as an account without rights, as servers do by default.  ``lease``: seconds until the
    NFS 4 locks of a silent client expire, and that a restarted server waits for its clients.  ``clocks``: how many
    seconds the clock of a client is fast, from its next boot on.  ``memory``: megabytes per guest.
    """

    def __init__(
        self,
        directory: str | Path,
        clients: Sequence[str] = ("A", "B"),
        version: str = "4.2",
        options: str = "",
        squash: bool = False,
        lease: int = 90,
        clocks: Mapping[str, int] | None = None,
        memory: int = 256,
    ) -> None:
        super().__init__(directory, clients)
        if len(str(self.directory)) > 64:
            raise ValueError(f"{self.directory}: too long for the name of a socket below it")
        self.version, self.squash, self.lease, self.memory = version, squash, lease, memory
        self.options = ",".join(filter(None, [f"vers={version}", "hard", options]))
        self.clocks = dict(clocks or {})
        self._guests = ("S", *self.clients)
        self._kernel: dict[str, Process] = {}
        self._ssh = ("ssh", "-F", self.directory / "etc/ssh_config")
        self._numbers = itertools.count()

    def path(self, client: str) -> Path:
        return self.directory / "mnt"

    def _home(self, guest: str) -> Path:
        return self.directory / "guest" / guest

    def start(self) -> None:
        etc = self.directory / "etc"
        disk, key = self.directory / "disk", etc / "key"
        for path in (etc, self.directory / "mnt", self.directory / "srv"):
            path.mkdir()
        with disk.open("wb") as file:
            file.truncate(1024 * _MEGABYTE)  # sparse
        command(["mkfs.ext4", "-q", "-F", disk])
        command(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key])
        squash = "root_squash" if self.squash else "no_root_squash"
        rights = f"rw,sync,{squash},no_subtree_check,fsid=0,insecure"
        (etc / "exports").write_text(f"{self.directory}/srv *({rights})\n")
        (etc / "sshd_config").write_text(_SSHD.format(key=key))
        hosts, places = ["127.0.0.1 localhost\n"], [_SSH.format(directory=self.directory, key=key)]
        lan = self.nodes["lan"] = Node("lan")
        lan.make_switch(f"{_LAN}.254/24")
        for i, guest in enumerate(self._guests):
            hosts.append(f"{_LAN}.{i + 1} {guest}\n")
            places.append(f"Host {guest}\nHostName {_CON}.{i}.2\n")
            # rpc.statd keeps here, across reboots of the guest, the hosts to notify so that NFS 3 locks are reclaimed
            (self._home(guest) / "nfs/sm").mkdir(parents=True)
            (self._home(guest) / "nfs/sm.bak").mkdir()
            for cable in (f"lan-{guest}", f"con-{guest}"):
                lan.ip(f"tuntap add dev {cable} mode tap")
                lan.ip(f"link set dev {cable} up")
            lan.ip(f"address add {_CON}.{i}.1/30 dev con-{guest}")
            self.mend(guest)
        (etc / "hosts").write_text("".join(hosts))
        (etc / "ssh_config").write_text("".join(places))
        self._boot_together(*self._guests)

    def boot(self, name: str) -> None:
        self._boot_together(name)

    def _boot_together(self, *guests: str) -> None:
        for guest in guests:
            self._power_on(guest)
        lines = {}
        for guest in guests:
            self.wait_up(guest, (self._home(guest) / "up").exists, self._kernel[guest])
            # all commands share this one connection
            lines[guest] = self.daemon(self.nodes[guest], guest, [*self._ssh, "-M", "-N", guest])
        for guest, line in lines.items():
            self.wait_up(guest, (self._home(guest) / "ssh").exists, line)

    def _power_on(self, guest: str) -> None:
        home, number = self._home(guest), self._guests.index(guest)
        words = {
            "directory": self.directory,
            "home": home,
            "name": guest,
            "lan": f"{_LAN}.{number + 1}",
            "con": f"{_CON}.{number}.2",
            "card": number,
            "clock": self.clocks.get(guest, 0),
            "lease": self.lease,
            "options": self.options,
            "major": self.version[0],
            "server": f"{_LAN}.1",
            "export": "/" if self.version.startswith("4") else self.directory / "srv",
        }
        role = (_SERVE if guest == "S" else _MOUNT).format(**words)
        (home / "init").write_text(_INIT.format(role=role, **words))
        (home / "init").chmod(0o755)
        for trace in ("up", "ssh"):  # of the previous boot of the guest
            (home / trace).unlink(missing_ok=True)
        node = self.nodes[guest] = Node(guest, network=self.nodes["lan"])
        argv = ["linux.uml", f"mem={self.memory}M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "rw"]
        argv += ["quiet", "con=null", "con0=null,fd:1", f"init={home}/init"]
        for i, cable in enumerate(("lan", "con")):
            argv.append(f"vec{i}:transport=tap,ifname={cable}-{guest},depth=128,gro=1")
        if guest == "S":
            argv.append(f"ubda={self.directory}/disk")
        # User-Mode-Linux has its control socket in HOME, and the guest's memory is a file in TMPDIR
        self._kernel[guest] = self.daemon(node, guest, argv, env={"HOME": str(home), "TMPDIR": "/dev/shm"})

    def popen(
        self,
        client: str,
        argv: Argv,
        *,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        **options: Any,
    ) -> GuestProcess:
        number = next(self._numbers)
        cwd = shlex.quote(str(options.pop("cwd", None) or Path.cwd()))
        variables = {**os.environ, "PATH": PATH, "TMPDIR": "/run/tmp", **(env or {})}
        assignments = (f"{key}={value}" for key, value in variables.items())
        words = shlex.join(["env", *assignments, *as_user(user), *map(str, argv)])
        script = f"echo $$ >/run/commands/{number}; cd {cwd} && exec {words}"
        process = self.nodes[client].popen([*self._ssh, client, script], kind=GuestProcess, **options)
        assert isinstance(process, GuestProcess)
        process.fs, process.client, process.number = self, client, number
        return process

    def ssh(self, guest: str, script: str) -> int:
        """Run a shell script in a guest and return its status."""
        return self.daemon(self.nodes[guest], guest, [*self._ssh, guest, script]).wait(timeout=60)

    def pause(self, guest: str) -> None:
        """Stop the kernel of a guest, with all its programs; of the server: ``S``."""
        os.kill(self._kernel[guest].pid, signal.SIGSTOP)

    def resume(self, guest: str) -> None:
        """Undo :meth:`pause`."""
        os.kill(self._kernel[guest].pid, signal.SIGCONT)

    def restart_server(self) -> None:
        """Cut the power of the server and boot it again.

        Clients wait for it meanwhile. New locks wait for ``lease`` seconds more, in which clients reclaim their locks.
        """
        self.restart("S")

    def cut(self, client: str) -> None:
        """Disconnect the network cable of ``client``; commands still reach it."""
        self.nodes["lan"].ip(f"link set dev lan-{client} nomaster")

    def mend(self, client: str) -> None:
        """Undo :meth:`cut`."""
        self.nodes["lan"].ip(f"link set dev lan-{client} master lan")

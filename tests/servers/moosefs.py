"""MooseFS: one master, one chunkserver, and a FUSE mount for each client.

Coherent by default; with ``caches`` each client trusts its cache for so many seconds, as NFS clients do.
The locks of a dead or disconnected client stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.servers.base import MountedFileServer, Node, Process, absent

PACKAGES = ("moosefs-master", "moosefs-chunkserver", "moosefs-client", "iproute2")

_NET = "10.94.0"
_MASTER = f"{_NET}.1"
_COMMON = {"WORKING_USER": "root", "WORKING_GROUP": "root", "NICE_LEVEL": 0, "DISABLE_OOM_KILLER": 0}
_CACHES = ("mfsattrcacheto", "mfsentrycacheto", "mfsdirentrycacheto", "mfsnegentrycacheto")


def missing() -> str | None:
    """Return why MooseFS cannot run on this machine, or None."""
    return absent(("mfsmaster", "mfschunkserver", "mfsmount"), PACKAGES, ("/dev/fuse",))


def _accepts_clients(server: Node) -> bool:
    """Return whether the master on ``server`` listens for clients, at port 9421 (hexadecimal 24CD)."""
    rows = (row.split() for row in Path(f"/proc/{server.pid}/net/tcp").read_text().splitlines())
    return any(row[1].endswith(":24CD") and row[3] == "0A" for row in rows)  # 0A: TCP_LISTEN


class MooseFS(MountedFileServer):
    """MooseFS server and its clients; ``caches``: seconds after which a client sees the changes of another."""

    def __init__(self, directory: str | Path, clients: Sequence[str] = ("A", "B"), caches: float = 0.0) -> None:
        super().__init__(directory, clients)
        self.caches = caches
        self._daemons: list[Process] = []

    def start(self) -> None:
        etc = self.directory / "etc"
        for name in ("etc", "master", "chunkserver", "chunks"):
            (self.directory / name).mkdir()
        (etc / "exports").write_text(f"{_NET}.0/24 / rw,alldirs,maproot=0:0\n")
        (etc / "topology").touch()
        (etc / "disks").write_text(f"~{self.directory / 'chunks'}\n")  # ~: the disk also has other files
        master = {
            "DATA_PATH": self.directory / "master",
            "EXPORTS_FILENAME": etc / "exports",
            "TOPOLOGY_FILENAME": etc / "topology",
            **{f"{listener}_LISTEN_HOST": _MASTER for listener in ("MATOML", "MATOCS", "MATOCL")},
        }
        chunkserver = {
            "DATA_PATH": self.directory / "chunkserver",
            "HDD_CONF_FILENAME": etc / "disks",
            "HDD_LEAVE_SPACE_DEFAULT": "16MiB",
            "MASTER_HOST": _MASTER,
            "MASTER_RECONNECTION_DELAY": 1,
            "CSSERV_LISTEN_HOST": _MASTER,
        }
        for name, settings in (("mfsmaster", master), ("mfschunkserver", chunkserver)):
            lines = [f"{key} = {value}\n" for key, value in (*_COMMON.items(), *settings.items())]
            (etc / f"{name}.cfg").write_text("".join(lines))
        # these eight bytes make the master create a new filesystem
        (self.directory / "master/metadata.mfs").write_text("MFSM NEW")

        server = self.nodes["S"] = Node("S")
        server.make_switch(f"{_MASTER}/24")
        self._start_daemons()
        self.wait_up("mfsmaster", lambda: _accepts_clients(server), *self._daemons)
        for client in self.clients:
            self.boot(client)
        self.path(self.clients[0]).chmod(
            0o1777
        )  # as /tmp: all users may write there, and none may replace files of another

    def _start_daemons(self) -> None:
        for name in ("mfsmaster", "mfschunkserver"):
            argv = [name, "-f", "-c", f"{self.directory}/etc/{name}.cfg", "start"]
            self._daemons.append(self.daemon(self.nodes["S"], name, argv))

    def boot(self, name: str) -> None:
        path = self.path(name)
        path.mkdir(exist_ok=True)
        node = self.nodes[name] = Node(name)
        node.plug_into(self.nodes["S"], f"{_NET}.{11 + self.clients.index(name)}/24")
        options = [f"fsname=moosefs-{name}", "mfsnice=0", "mfsallowoomkiller"]
        options += [f"{cache}={self.caches}" for cache in _CACHES] if self.caches else []
        argv = ["mfsmount", str(path), "-f", "-H", _MASTER, "-o", ",".join(options)]
        self.mount(name, argv, *self._daemons)
        # until the chunkserver has reported to the master, files can be made but hold no data
        write = ["sh", "-c", 'echo >"$0"; status=$?; rm -f "$0"; exit $status', f"{path}/.up-{name}"]
        self.wait_up(name, lambda: self.run(name, write, check=False).returncode == 0, *self._daemons)

    def restart_server(self) -> None:
        """Stop the server in good order and start it again; clients wait for it meanwhile."""
        while self._daemons:
            self._daemons[-1].terminate()
            self._daemons.pop().wait(timeout=60)
        self._start_daemons()

    def cut(self, client: str) -> None:
        """Drop all packets from and to ``client``."""
        self.nodes["S"].ip(f"link set dev lan-{client} nomaster")

    def mend(self, client: str) -> None:
        """Undo :meth:`cut`."""
        self.nodes["S"].ip(f"link set dev lan-{client} master lan")

"""MooseFS: one master, one chunkserver, and a FUSE mount for each client.

Coherent by default; ``coherent=False`` lets each client believe its caches for three seconds, as NFS
clients do.  The locks of a dead client stay for a day.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.servers.base import MountedFileServer, Node, absent, mounted

PACKAGES = ("moosefs-master", "moosefs-chunkserver", "moosefs-client", "iproute2")

_NET = "10.94.0"
_PORT = 9421  # where the master expects clients
_CACHES = ("mfsattrcacheto", "mfsentrycacheto", "mfsdirentrycacheto", "mfsnegentrycacheto")
_COMMON = {
    "WORKING_USER": "root",
    "WORKING_GROUP": "root",
    "NICE_LEVEL": 0,
    "DISABLE_OOM_KILLER": 0,
}


def missing() -> str | None:
    """Return why MooseFS cannot run on this machine, or None."""
    return absent(("mfsmaster", "mfschunkserver", "mfsmount"), PACKAGES, ("/dev/fuse",))


class MooseFS(MountedFileServer):
    """A MooseFS and its clients.

    ``coherent``: whether a client sees at once what another one did.  ``cut`` and ``mend`` unplug a
    client's network cable.
    """

    def __init__(self, directory: str | Path, clients: Sequence[str] = ("A", "B"), coherent: bool = True) -> None:
        super().__init__(directory, clients)
        self.coherent = coherent
        self._daemons: dict[str, subprocess.Popen[Any]] = {}

    def start(self) -> None:
        for name in ("etc", "master", "chunkserver", "chunks"):
            (self.directory / name).mkdir(exist_ok=True)
        etc = self.directory / "etc"
        (etc / "exports").write_text(f"{_NET}.0/24 / rw,alldirs,maproot=0:0\n")
        (etc / "topology").write_text("")
        (etc / "disks").write_text(f"~{self.directory / 'chunks'}\n")  # ~: may fill up the disk
        master_settings: dict[str, object] = {
            "DATA_PATH": self.directory / "master",
            "EXPORTS_FILENAME": etc / "exports",
            "TOPOLOGY_FILENAME": etc / "topology",
            **{f"{port}_LISTEN_HOST": f"{_NET}.1" for port in ("MATOML", "MATOCS", "MATOCL")},
        }
        chunk_settings: dict[str, object] = {
            "DATA_PATH": self.directory / "chunkserver",
            "HDD_CONF_FILENAME": etc / "disks",
            "HDD_LEAVE_SPACE_DEFAULT": "16MiB",
            "MASTER_HOST": f"{_NET}.1",
            "MASTER_RECONNECTION_DELAY": 1,
            "CSSERV_LISTEN_HOST": f"{_NET}.1",
        }
        for name, settings in (("mfsmaster", master_settings), ("mfschunkserver", chunk_settings)):
            lines = (f"{key} = {value}\n" for key, value in {**_COMMON, **settings}.items())
            (etc / f"{name}.cfg").write_text("".join(lines))
        # these eight bytes tell the master to begin a new filesystem
        (self.directory / "master/metadata.mfs").write_text("MFSM NEW")

        self.nodes["S"] = Node("S")
        self.nodes["S"].make_switch(f"{_NET}.1/24")
        self._start_daemons()
        master = self._daemons["mfsmaster"]
        self.wait_up("mfsmaster", lambda: self.nodes["S"].listens(_PORT), master)
        for client in self.clients:
            self.boot(client)

    def _start_daemons(self) -> None:
        for name in ("mfsmaster", "mfschunkserver"):
            config = self.directory / "etc" / f"{name}.cfg"
            with self.log(name) as log:
                self._daemons[name] = self.nodes["S"].popen(
                    [name, "-f", "-c", config, "start"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )

    def boot(self, client: str) -> None:
        path = self.path(client)
        path.mkdir(exist_ok=True)
        node = self.nodes[client] = Node(client)
        node.plug_into(self.nodes["S"], f"{_NET}.{11 + self.clients.index(client)}/24")
        options = [f"fsname=moosefs-{client}", "mfsnice=0", "mfsallowoomkiller"]
        options += [] if self.coherent else [f"{cache}=3" for cache in _CACHES]
        with self.log(client) as log:
            mount = node.popen(
                ["mfsmount", path, "-f", "-H", f"{_NET}.1", "-o", ",".join(options)],
                machine_mounts=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self.wait_up(client, lambda: mounted(path), mount, *self._daemons.values())
        probe = path / f".up-{client}"
        # until the chunkserver has reported to the master, files can be made but hold no data
        write = ["sh", "-c", 'echo up >"$0" 2>/dev/null; s=$?; rm -f "$0"; exit $s', probe]
        self.wait_up(client, lambda: self.run(client, write, check=False).returncode == 0, mount)

    def restart_server(self) -> None:
        """Stop the server in good order and start it again; clients wait for it meanwhile."""
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
            daemon.wait(timeout=60)
        self._start_daemons()

    def cut(self, client: str) -> None:
        """Let all packets from and to ``client`` vanish."""
        self.nodes["S"].ip("link", "set", "dev", f"to-{client}", "nomaster")

    def mend(self, client: str) -> None:
        """Undo :meth:`cut`."""
        self.nodes["S"].ip("link", "set", "dev", f"to-{client}", "master", "lan")

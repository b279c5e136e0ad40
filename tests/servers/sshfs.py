"""sshfs: each client mounts one directory through a file transfer server of its own.

Listings and attributes are up to ``caches`` seconds old, and locks hold within one client only: like a Lustre with
``localflock`` or an NFS with ``nolock``.  No network is involved: sshfs and sftp-server talk through two pipes.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.servers.base import MountedFileServer, Node, absent

PACKAGES = ("sshfs", "openssh-sftp-server", "iproute2")

_SFTP_SERVER = "/usr/lib/openssh/sftp-server"


def missing() -> str | None:
    """Return why sshfs cannot run on this machine, or None."""
    return absent(("sshfs", _SFTP_SERVER), PACKAGES, ("/dev/fuse",))


class SSHFS(MountedFileServer):
    """Clients that share DIRECTORY/export by sshfs; their files belong to root.

    ``caches``: seconds for which a client trusts a listing.
    """

    def __init__(self, directory: str | Path, clients: Sequence[str] = ("A", "B"), caches: int = 20) -> None:
        super().__init__(directory, clients)
        self.caches = caches

    def start(self) -> None:
        (self.directory / "export").mkdir()
        (self.directory / "export").chmod(0o1777)
        self.nodes["S"] = Node("S")
        for client in self.clients:
            self.boot(client)

    def boot(self, name: str) -> None:
        path = self.path(name)
        path.mkdir(exist_ok=True)
        self.nodes[name] = Node(name)
        # -u 0: which bits a new file gets is up to the client
        serve, pipe = [_SFTP_SERVER, "-e", "-u", "0"], subprocess.PIPE
        server = self.daemon(self.nodes["S"], name, serve, stdin=pipe, stdout=pipe)
        options = f"passive,allow_other,default_permissions,fsname=sshfs-{name},dcache_timeout={self.caches}"
        argv = ["sshfs", "-f", f"S:{self.directory}/export", str(path), "-o", options]
        try:
            self.mount(name, argv, server, stdin=server.stdout, stdout=server.stdin)
        finally:
            for end in (server.stdin, server.stdout):
                assert end is not None
                end.close()  # the copy of this process; once it is closed, the death of either process ends the other

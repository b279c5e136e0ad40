"""sshfs: each client mounts one directory through a file transfer server of its own.

Listings and attributes are up to 20 seconds old, and locks hold within one client only: like a
Lustre with ``localflock`` or an NFS with ``nolock``.  No network is involved: sshfs and its
sftp-server talk through a pair of pipes.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.servers.base import MountedFileServer, Node, absent, mounted

PACKAGES = ("sshfs", "openssh-sftp-server", "iproute2")

_SFTP_SERVER = "/usr/lib/openssh/sftp-server"


def missing() -> str | None:
    """Return why sshfs cannot run on this machine, or None."""
    return absent(("sshfs", _SFTP_SERVER), PACKAGES, ("/dev/fuse",))


class SSHFS(MountedFileServer):
    """Clients that share the directory DIRECTORY/export by sshfs with its default caches."""

    @property
    def export(self) -> Path:
        """The shared directory as the server has it."""
        return self.directory / "export"

    def start(self) -> None:
        self.export.mkdir(exist_ok=True)
        self.export.chmod(0o1777)
        self.nodes["S"] = Node("S")
        for client in self.clients:
            self.boot(client)

    def boot(self, client: str) -> None:
        path = self.path(client)
        path.mkdir(exist_ok=True)
        node = self.nodes[client] = Node(client)
        pipe = subprocess.PIPE
        with self.log(client) as log:
            # -u 0: which bits a new file gets is up to the client
            server = self.nodes["S"].popen([_SFTP_SERVER, "-e", "-u", "0"], stdin=pipe, stdout=pipe, stderr=log)
            assert server.stdin is not None and server.stdout is not None
            options = f"passive,allow_other,default_permissions,fsname=sshfs-{client}"
            mount = node.popen(
                ["sshfs", "-f", f"S:{self.export}", path, "-o", options],
                machine_mounts=True, stdin=server.stdout, stdout=server.stdin, stderr=log,
            )  # fmt: skip
        server.stdin.close()  # so that the death of either end is the end of the other
        server.stdout.close()
        self.wait_up(client, lambda: mounted(path), mount, server)

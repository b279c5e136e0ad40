"""Real servers for tests, each started below a directory of its own on one machine.

``with MooseFS(directory) as fs: fs.run("A", ["ls", fs.path("A")])``; each module has PACKAGES (Debian
packages to install) and ``missing()`` (the reason why its server cannot run here, or None).
"""

from __future__ import annotations

from types import ModuleType

from tests.servers import gridengine, moosefs, nfs, slurm, sshfs
from tests.servers.base import FileServer, Node, Server, ServerError, wait_for
from tests.servers.gridengine import GridEngine
from tests.servers.moosefs import MooseFS
from tests.servers.nfs import NFS
from tests.servers.slurm import Slurm
from tests.servers.sshfs import SSHFS

MODULES: dict[str, ModuleType] = {
    "nfs": nfs,
    "moosefs": moosefs,
    "sshfs": sshfs,
    "slurm": slurm,
    "gridengine": gridengine,
}

__all__ = [
    "MODULES", "NFS", "SSHFS", "FileServer", "GridEngine", "MooseFS", "Node", "Server", "ServerError", "Slurm",
    "wait_for",
]  # fmt: skip

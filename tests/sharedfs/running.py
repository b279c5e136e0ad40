"""Servers that tests start, and what is left of them."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests.servers import MODULES, Server

ServerT = TypeVar("ServerT", bound=Server)


def traces(server: Server) -> list[str]:
    """Return what is left on the machine of a server that has been stopped."""
    found = [f"node {node.name}" for node in server.nodes.values() if Path(f"/proc/{node.pid}").exists()]
    found += [str(node._shm) for node in server.nodes.values() if node._shm.exists()]
    found += [line for line in Path("/proc/mounts").read_text().splitlines() if str(server.directory) in line]
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            words = file.read_text(errors="replace").replace("\0", " ")
            found += [words] if str(server.directory) in words else []
    return found


@contextlib.contextmanager
def running(kind: str, make: Callable[[str], ServerT]) -> Iterator[ServerT]:
    """Start a server in a directory that is short and open to other users; at the end, nothing of it is left."""
    if reason := MODULES[kind.split("-", maxsplit=1)[0]].missing():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="spool-", dir="/tmp") as directory:
        server = make(directory)
        with server:
            yield server
        assert traces(server) == []

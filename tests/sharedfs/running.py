"""Servers that tests start, and the search for traces of them afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests.servers import MODULES, Server
from tests.support.accounts import public_directory

ServerT = TypeVar("ServerT", bound=Server)


def traces(server: Server) -> list[str]:
    """Return the processes, mounts and directories of a stopped server that are still there."""
    # not by its pid, which may belong to another process by now
    found = [f"node {node.name}" for node in server.nodes.values() if node.is_alive()]
    found += [str(node._shm) for node in server.nodes.values() if node._shm.exists()]
    found += [line for line in Path("/proc/mounts").read_text().splitlines() if str(server.directory) in line]
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended between the two reads
            words = file.read_text(errors="replace").replace("\0", " ")
            found += [words] if str(server.directory) in words else []
    return found


@contextlib.contextmanager
def running(kind: str, make: Callable[[str], ServerT]) -> Iterator[ServerT]:
    """Start a server in a directory with a short path that all users can enter; at the end, nothing of it is left."""
    if reason := MODULES[kind.split("-", maxsplit=1)[0]].missing():
        pytest.skip(reason)
    with public_directory() as directory:
        server = make(str(directory / "s"))
        with server:
            yield server
        assert traces(server) == []

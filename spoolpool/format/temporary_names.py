"""Names of directories that belong to one process and are removed with it: its temporary spool, and what goes with it.

The name contains the identity of that process from the moment when the directory is made. So a listing alone tells of
each of them whether its process has died, and a directory that is just being made has a process that is alive.
"""

from __future__ import annotations

import functools
import os
import re
from typing import Literal, NamedTuple

import msgspec
import xxhash

from spoolpool.system.patterns import lazy_pattern
from spoolpool.system.processes import ProcessId

Kind = Literal["spool", "values", "ranks"]
"""``spool``: a temporary spool, ``values``: the directory for its large values, ``ranks``: the FIFOs of MPI ranks."""

_KINDS: dict[str | None, Kind] = {None: "spool", "values": "values", "ranks": "ranks"}

PREFIX = "spoolpool-"
"""Beginning of all these names."""

_PATTERN = lazy_pattern(
    rf"{PREFIX}(?:(values|ranks)-)?(?:([1-9]\d{{0,9}})\.(\d{{1,20}})\.([0-9a-f]{{12}})-)?([A-Za-z0-9_-]{{1,64}})",
    re.ASCII,
)


class TemporaryName(NamedTuple):
    """Name of a directory, as it was read."""

    kind: Kind
    id: str
    """Id of the spool, or a random text."""
    pid: int = 0
    """Process that made the directory; 0 if the name does not say."""
    start: str = ""
    """Its start time (:class:`ProcessId`)."""
    place: str = ""
    """Digest of boot and pid namespace."""

    def is_abandoned(self) -> bool:
        """Return True only where it is certain that the process that made the directory has died.

        That is never certain for a process of another host, of an earlier boot, or of another container.
        """
        here = _here(os.getpid())
        if not (self.pid and self.place and self.place == _place(here)):
            return False
        return msgspec.structs.replace(here, pid=self.pid, start=self.start).is_provably_dead()


@functools.lru_cache(maxsize=1)
def _here(pid: int) -> ProcessId:
    return ProcessId.of(pid)


def _place(process: ProcessId) -> str:
    known = process.boot and process.namespace and process.start
    return xxhash.xxh3_64_hexdigest(f"{process.boot} {process.namespace}".encode())[:12] if known else ""


def new_temporary_name(kind: Kind, ident: str, *, owned: bool = True) -> str:
    """Return a name with the identity of this process; without it if others may use the directory after its death."""
    process = _here(os.getpid())
    place = _place(process) if owned else ""
    owner = f"{process.pid}.{process.start}.{place}-" if place else ""
    return f"{PREFIX}{'' if kind == 'spool' else f'{kind}-'}{owner}{ident}"


def parse_temporary_name(name: str) -> TemporaryName | None:
    """Return the parts of a name; None for a name that :func:`new_temporary_name` does not make."""
    match = _PATTERN.fullmatch(name)
    if match is None:
        return None
    kind, pid, start, place, ident = match.groups()
    return TemporaryName(_KINDS[kind], ident, int(pid or 0), start or "", place or "")

"""Memory of this process, and the memory that its host or its control group lets it use."""

from __future__ import annotations

import os
import resource
from typing import NamedTuple

from spoolpool.system.processes import read_proc

_PAGE = os.sysconf("SC_PAGE_SIZE")
_CGROUPS = "/sys/fs/cgroup"
_NO_LIMIT = 1 << 60  # control groups of version 1 have such a limit if they have none


class Memory(NamedTuple):
    """Memory in bytes."""

    total: int
    available: int


def private() -> int:
    """Return the bytes of this process in memory that are no pages of files; 0 if unknown.

    Mapped files do not count: other processes share them, and the kernel can drop them.
    """
    fields = read_proc("/proc/self/statm").split()
    return (int(fields[1]) - int(fields[2])) * _PAGE if len(fields) > 2 else 0


def usable() -> Memory | None:
    """Return the least of the memories of the host, of the control groups of this process, and of its own limit."""
    host = _host()
    found = ([] if host is None else [host]) + _control_groups()
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        fields = read_proc("/proc/self/statm").split()
        found.append(Memory(limit, limit - int(fields[0]) * _PAGE if fields else limit))
    if not found:
        return None
    return Memory(min(each.total for each in found), min(each.available for each in found))


def _host() -> Memory | None:
    lines = dict(line.partition(":")[::2] for line in read_proc("/proc/meminfo").splitlines())
    try:
        total, available = (int(lines[name].split()[0]) << 10 for name in ("MemTotal", "MemAvailable"))
    except (KeyError, ValueError, IndexError):
        return None
    return Memory(total, available)


def _control_groups() -> list[Memory]:
    """Return the memories of the control groups around this process that have a limit."""
    found = []
    for line in read_proc("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = f"{_CGROUPS}/memory" if controllers else _CGROUPS
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        while True:
            limit, usage = (read_proc(f"{root}{path}/{name}").strip() for name in names)
            if limit.isdigit() and usage.isdigit() and int(limit) < _NO_LIMIT:
                # the usage contains pages of files on disk, which the kernel drops if it needs the memory
                found.append(Memory(int(limit), int(limit) - int(usage) + _cached(f"{root}{path}/memory.stat")))
            if path in ("/", ""):
                break
            path = os.path.dirname(path)
    return found


def _cached(path: str) -> int:
    """Return the bytes of pages of files in a control group, without those of a tmpfs: the kernel cannot drop these."""
    lines = dict(line.split(" ", 1) for line in read_proc(path).splitlines() if " " in line)
    for name, kept in (("file", "shmem"), ("total_cache", "total_shmem")):
        if lines.get(name, "").strip().isdigit():
            shared = lines.get(kept, "").strip()
            return max(0, int(lines[name]) - (int(shared) if shared.isdigit() else 0))
    return 0

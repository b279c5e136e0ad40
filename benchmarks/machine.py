"""Machine of the measurement."""

from __future__ import annotations

import datetime as dt
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

UNJOURNALED = " without journal"
"""Such an ext4 skips the inodes that were freed in the last minutes, one by one, at each creation of a file: after some
thousand removals that costs many times the creation itself."""


def describe(directory: str) -> dict[str, Any]:
    """Return processor, memory, kernel, Python, the filesystem of a directory, and the present load."""
    usable = len(os.sched_getaffinity(0))
    return {
        "date": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "processor": _value("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": usable,
        "memory": _gib(_value("/proc/meminfo", "MemTotal")),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "filesystem": filesystem(directory),
        "commit": _commit(),
        "load": round(os.getloadavg()[0], 2),
    }


def busy(machine: dict[str, Any]) -> bool:
    """Return whether other work loads the machine, which makes the figures unreliable."""
    return bool(machine["load"] > 0.25 * machine["cores"])


def filesystem(directory: str) -> str:
    """Return the type of the filesystem of a directory; of an ext4 also whether it has no journal."""
    where = os.path.realpath(directory)
    best, kind, source = "", "unknown", ""
    with open("/proc/self/mounts", encoding="utf-8", errors="replace") as file:
        for line in file:
            device, point, found = line.split()[:3]
            inside = where == point or where.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best):
                best, kind, source = point, found, device
    return kind + UNJOURNALED if kind == "ext4" and not _has_journal(source) else kind


def _has_journal(device: str) -> bool:
    try:
        journals = os.listdir("/proc/fs/jbd2")
    except OSError:
        return False
    return any(name.startswith(f"{os.path.basename(os.path.realpath(device))}-") for name in journals)


def _value(path: str, name: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() == name:
                    return value.strip()
    except OSError:
        pass
    return ""


def _gib(kib: str) -> str:
    number = kib.removesuffix(" kB")
    return f"{int(number) / 2**20:.0f} GiB" if number.isdigit() else kib


def _commit() -> str:
    """Return the measured commit, if it is known; with a plus if files differ from it."""
    git = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""

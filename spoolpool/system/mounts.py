"""Properties of the filesystem that contains a path."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable

from spoolpool.system.command_output import output_of

LOCAL = frozenset(("btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "xfs", "zfs"))
"""Types of filesystems that only one host mounts."""


def is_local(path: str) -> bool:
    """Return whether only this host uses the filesystem of ``path``, so that all processes see a write at once."""
    return mount_of(path)[1] in LOCAL


def free_space(path: str) -> int:
    """Return the bytes that this account can still write to the filesystem of a path. ``OSError`` as statvfs(3)."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def mount_of(path: str) -> tuple[str, str, str]:
    """Return mount point, type and options of the filesystem of ``path`` (``/proc/self/mountinfo``, proc(5))."""
    with (
        contextlib.suppress(OSError),
        open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file,
    ):
        return find_mount(file, os.path.realpath(path))
    return "/", "unknown", ""


def find_mount(lines: Iterable[str], path: str) -> tuple[str, str, str]:
    """Find the mount of ``path`` in the lines of a ``mountinfo``; of several mounts on one point the last counts."""
    best = ("/", "unknown", "")
    for line in lines:
        left, right = (part.split() for part in line.partition(" - ")[::2])
        if len(left) < 6 or len(right) < 3:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), left[4])
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best[0]):
            best = (point, right[0], f"{left[5]},{right[2]}")
    return best


def quota(point: str) -> str:
    """Run quota and return its line about a mount and this account; empty without a quota, or after a timeout."""
    import shutil  # late: a worker need not import it

    command = shutil.which("quota")
    if command is None:
        return ""
    said = output_of([command, "-w"], seconds=10.0)  # it asks servers, which may be unreachable
    return next((" ".join(line.split()) for line in said.splitlines() if point in line.split()), "")

"""What the system says about the filesystem that holds a path."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterable

LOCAL = frozenset(("btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "xfs", "zfs"))
"""Kinds of filesystems that one host alone mounts."""


def local(path: str) -> bool:
    """Whether only this host uses the filesystem that holds ``path``, so that everybody sees a write at once."""
    return mount_of(path)[1] in LOCAL


def mount_of(path: str) -> tuple[str, str, str]:
    """Mount point, kind, and options of the filesystem that holds ``path`` (``/proc/self/mountinfo``, proc(5))."""
    with (
        contextlib.suppress(OSError),
        open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file,
    ):
        return find_mount(file, os.path.realpath(path))
    return "/", "unknown", ""


def find_mount(lines: Iterable[str], path: str) -> tuple[str, str, str]:
    """The same, from the lines of a ``mountinfo``; of several mounts on one point the last counts."""
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
    """What quota says about this account on a mount, in one line; empty where there is none, or none soon."""
    command = shutil.which("quota")
    if command is None:
        return ""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):  # it asks servers, which may be away
        said = subprocess.run(
            [command, "-w"], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=10, check=False
        )
        return next((" ".join(line.split()) for line in said.stdout.splitlines() if point in line.split()), "")
    return ""

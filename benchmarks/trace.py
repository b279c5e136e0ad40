"""Operations on the filesystem, counted in what strace wrote down."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

CALLS = (
    "open,openat,openat2,creat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,mkdir,mkdirat,"
    "rmdir,stat,lstat,newfstatat,statx,access,faccessat,faccessat2,readlink,readlinkat,utimensat,utime,utimes,chmod,"
    "fchmodat,chown,truncate,statfs,fstat,fsync,fdatasync,flock,fcntl,ftruncate,fchmod"
)
"""What is traced."""

KINDS = ("create", "open", "rename", "link", "unlink", "directory", "stat", "list", "set")
"""Operations that a metadata server sees; what is done by a descriptor is counted apart, as ``descriptor``."""

_LINE = re.compile(r"(?P<time>\d+\.\d+) (?P<call>\w+)\((?P<arguments>.*)\)\s+= (?P<value>-?\d+|\?)")
_PATH = re.compile(r'(?:(?:AT_FDCWD|\d+)<(?P<at>[^>]*)>, )?"(?P<path>(?:[^"\\]|\\.)*)"')
_DESCRIPTOR = re.compile(r"\d+<(?P<path>[^>]*)>")
_BY_NAME = {
    "open": "open",
    "openat": "open",
    "openat2": "open",
    "creat": "create",
    "rename": "rename",
    "renameat": "rename",
    "renameat2": "rename",
    "link": "link",
    "linkat": "link",
    "symlink": "link",
    "symlinkat": "link",
    "unlink": "unlink",
    "unlinkat": "unlink",
    "mkdir": "directory",
    "mkdirat": "directory",
    "rmdir": "directory",
    "stat": "stat",
    "lstat": "stat",
    "newfstatat": "stat",
    "statx": "stat",
    "access": "stat",
    "faccessat": "stat",
    "faccessat2": "stat",
    "readlink": "stat",
    "readlinkat": "stat",
    "statfs": "stat",
    "utimensat": "set",
    "utime": "set",
    "utimes": "set",
    "chmod": "set",
    "fchmodat": "set",
    "chown": "set",
    "truncate": "set",
    "fstat": "descriptor",
    "fsync": "descriptor",
    "fdatasync": "descriptor",
    "flock": "descriptor",
    "fcntl": "descriptor",
    "ftruncate": "descriptor",
    "fchmod": "descriptor",
}


class Operation(NamedTuple):
    """One system call."""

    time: float
    kind: str
    path: str


def strace(output: str) -> list[str]:
    """The command in front of the one that is traced; one file of output per thread, named after its id."""
    options = ["-f", "-ff", "-q", "--seccomp-bpf", "-ttt", "-y", "-s", "4096", "-e", f"trace={CALLS}"]
    return ["strace", *options, "-e", "signal=none", "-o", output]


def parse(line: str) -> Operation | None:
    """A line of strace's; None where it is no operation on a file."""
    found = _LINE.match(line)
    if found is None or found["call"] not in _BY_NAME:
        return None
    kind, arguments = _BY_NAME[found["call"]], found["arguments"]
    if found["call"] == "fcntl" and "_SETLK" not in arguments:  # no lock: no server hears of it
        return None
    path = _PATH.search(arguments)
    if kind == "descriptor" or path is None or not path["path"]:
        descriptor = _DESCRIPTOR.search(arguments)
        return Operation(float(found["time"]), "descriptor", descriptor["path"] if descriptor else "")
    if kind == "open":
        if "O_CREAT" in arguments:
            kind = "create"
        elif "O_DIRECTORY" in arguments:
            kind = "list"
    if kind == "unlink" and "AT_REMOVEDIR" in arguments:
        kind = "directory"
    return Operation(float(found["time"]), kind, os.path.join(path["at"] or "", path["path"]))


def operations(folder: str, below: str) -> Iterator[Operation]:
    """All operations on what is below a directory, in no order; relative paths are taken to be there."""
    for path in Path(folder).iterdir():
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                operation = parse(line)
                if operation is not None and (operation.path.startswith(below) or not os.path.isabs(operation.path)):
                    yield operation


def between_marks(folder: str, directory: str) -> dict[str, Counter[str]]:
    """Operations by kind between each pair of marks that :func:`benchmarks.measures.mark` left."""
    begin: dict[str, float] = {}
    end: dict[str, float] = {}
    others: list[Operation] = []
    sign = f"{directory}/mark."
    for operation in operations(folder, directory):
        if operation.path.startswith(sign):
            name, _, side = operation.path.removeprefix(sign).rpartition(".")
            (begin if side == "begin" else end)[name] = operation.time
        else:
            others.append(operation)
    found: dict[str, Counter[str]] = {name: Counter() for name in begin if name in end}
    for operation in others:
        for name, counts in found.items():
            if begin[name] <= operation.time < end[name]:
                counts[operation.kind] += 1
    return found


def per_call(found: Mapping[str, Counter[str]], work: str, calls: int) -> dict[str, float]:
    """Operations of one call, from a work of ``calls`` and one of three times as many."""
    once, thrice = found[f"{work}.1"], found[f"{work}.3"]
    return {kind: (thrice[kind] - once[kind]) / (2 * calls) for kind in (*KINDS, "descriptor")}

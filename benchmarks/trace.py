"""Filesystem operations, counted in the output of strace."""

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
"""Traced system calls."""

KINDS = ("create", "open", "rename", "link", "unlink", "directory", "stat", "list", "set")
"""Operations on a metadata server; operations on a descriptor are counted separately, as ``descriptor``."""

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
    """System call."""

    time: float
    kind: str
    path: str


def strace(output: str) -> list[str]:
    """Return the start of a traced command line; strace writes one file per thread, named after its id."""
    options = ["-f", "-ff", "-q", "--seccomp-bpf", "-ttt", "-y", "-s", "4096", "-e", f"trace={CALLS}"]
    return ["strace", *options, "-e", "signal=none", "-o", output]


def parse(line: str) -> Operation | None:
    """Parse a line of strace; return None if it is no operation on a file."""
    found = _LINE.match(line)
    if found is None or found["call"] not in _BY_NAME:
        return None
    kind, arguments = _BY_NAME[found["call"]], found["arguments"]
    if found["call"] == "fcntl" and "_SETLK" not in arguments:  # no lock: it does not reach a server
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
    """Return all operations below a directory, in any order; relative paths are taken as below it."""
    for path in Path(folder).iterdir():
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                operation = parse(line)
                if operation is not None and (operation.path.startswith(below) or not os.path.isabs(operation.path)):
                    yield operation


def between_marks(folder: str, directory: str) -> dict[str, Counter[str]]:
    """Return the operations by kind between each pair of marks of :func:`benchmarks.measures.mark`."""
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
    """Return the operations of one call, from a work of ``calls`` and one of three times as many."""
    once, thrice = found[f"{work}.1"], found[f"{work}.3"]
    return {kind: (thrice[kind] - once[kind]) / (2 * calls) for kind in (*KINDS, "descriptor")}

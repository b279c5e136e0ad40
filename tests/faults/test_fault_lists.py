"""The lists of operations and errors with which the faults are made are complete for the package as it is."""

from __future__ import annotations

import ast
import builtins
import errno
import inspect
from collections.abc import Iterator
from pathlib import Path

import spoolpool
from tests.faults.disk import OPERATIONS, PATCHED
from tests.faults.test_failing_disk import FAILURES

ROOMS = ("calls", "client", "format", "protocol", "security", "system", "worker")
"""Parts of the package that the scenarios pass through."""

WITHOUT_FAULTS = {
    "a directory was replaced by a file or a link: tests/multiuser/test_attacks.py": {errno.ENOTDIR},
    "a read-only mount fails from the beginning, and not once": {errno.EROFS},
    "foreign files in a bucket: tests/end_to_end/test_shared_spool.py": {errno.ELOOP, errno.ENXIO, errno.EISDIR},
    "answers of rmdir(2) for a directory in use, which real directories give": {errno.ENOTEMPTY, errno.EBUSY},
    "answers of flock(2), which is no operation of Disk: tests/unit/system/test_locks.py": {
        errno.ENOLCK,
        errno.ENOSYS,
        errno.EOPNOTSUPP,
        errno.EINVAL,
        errno.EBADF,
    },
    "the answer of kill(2) for a process that ended": {errno.ESRCH},
    "the answer of waitpid(2) where another thread has waited": {errno.ECHILD},
}
"""Errors that the package treats in a way of their own, and why they are not among the faults."""


def test_every_class_of_errors_that_the_package_distinguishes_is_among_the_faults() -> None:
    distinctions = set(_distinctions())
    assert {errno.ENOSPC, errno.EDQUOT} in distinctions and {errno.ENOENT} in distinctions, "the search finds them"

    def class_of(number: int) -> list[bool]:
        return [number in each for each in sorted(distinctions, key=sorted)]

    covered = [class_of(fault.error) for fault, _ in FAILURES]
    apart = {number for number in errno.errorcode if class_of(number) not in covered}
    explained = set().union(*WITHOUT_FAULTS.values())
    assert apart == explained, sorted(map(errno.errorcode.__getitem__, apart ^ explained))


def _distinctions() -> Iterator[frozenset[int]]:
    """Yield the sets of errors that some code treats differently from all others."""
    for room in ROOMS:
        for path in Path(*spoolpool.__path__, room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                numbers: set[int] = set()
                if isinstance(node, ast.Set):  # errno.A, errno.B
                    numbers = set().union(*map(_numbers, node.elts))
                elif isinstance(node, ast.Compare):  # error.errno == errno.A
                    numbers = set().union(*map(_numbers, node.comparators))
                elif isinstance(node, ast.ExceptHandler) and node.type is not None:
                    yield from _of_exceptions(node.type)
                elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
                    for argument in node.args:
                        yield from _of_exceptions(argument)
                if numbers:
                    yield frozenset(numbers)


def _numbers(node: ast.expr) -> set[int]:
    text = ast.unparse(node)
    return {getattr(errno, text.removeprefix("errno."))} if text.startswith("errno.") else set()


def _of_exceptions(node: ast.expr) -> Iterator[frozenset[int]]:
    for name in node.elts if isinstance(node, ast.Tuple) else [node]:
        kind = getattr(builtins, ast.unparse(name), None)
        if isinstance(kind, type) and issubclass(kind, OSError) and kind is not OSError:
            yield frozenset(number for number in errno.errorcode if isinstance(OSError(number, ""), kind))


def test_every_operation_on_files_of_the_package_is_counted() -> None:
    called = set()
    for module in PATCHED:
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("os."):
                called.add(ast.unparse(node.func).removeprefix("os."))
    asks_about_this_process = {"dup2", "fsdecode", "geteuid", "getpid", "readlink", "strerror"}
    assert {name for name in called if not name.startswith("path.")} - OPERATIONS == asks_about_this_process

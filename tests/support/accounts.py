"""Accounts of tests: as owners of processes and files. No account of the machine is assumed to exist."""

from __future__ import annotations

import contextlib
import functools
import grp
import os
import pwd
import random
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.processes import in_fork


def unused_id() -> int:
    """Return a number that no user and no group of this machine has, and that a process may take on."""
    numbers = list(_mapped("uid").intersection(_mapped("gid")))
    random.shuffle(numbers)
    return next(number for number in numbers if not _is_known(number))


def _mapped(kind: str, first: int = 2000, end: int = 60_000) -> set[int]:
    """Return the numbers, within limits, that this user namespace knows; see user_namespaces(7)."""
    lines = Path(f"/proc/self/{kind}_map").read_text(encoding="ascii").splitlines()
    ranges = [(int(start), int(count)) for start, _, count in map(str.split, lines)]
    return {number for start, count in ranges for number in range(max(start, first), min(start + count, end))}


def _is_known(number: int) -> bool:
    for find in (pwd.getpwuid, grp.getgrgid):
        with contextlib.suppress(KeyError):
            find(number)
            return True
    return False


def unused_name(start: str) -> str:
    """Return a name with this start that no user and no group of this machine has."""
    while True:
        name = f"{start}{secrets.token_hex(3)}"
        try:
            pwd.getpwnam(name)
        except KeyError:
            try:
                grp.getgrnam(name)
            except KeyError:
                return name


def known_account() -> pwd.struct_passwd:
    """Return an account of this machine that is neither root nor the one of this process."""
    numbers = _mapped("uid", 1)
    return next(
        entry
        for entry in pwd.getpwall()
        if entry.pw_uid in numbers - {os.geteuid()} and entry.pw_gid in _mapped("gid", 1) and _is_known(entry.pw_gid)
    )


def become(number: int) -> None:
    """Turn this process into one of an account and a group with this number, and of no other; for good."""
    os.setgroups([])
    os.setresgid(number, number, number)
    os.setresuid(number, number, number)


def as_another(function: Callable[[], object]) -> object:
    """Return the value or the exception of a function that an account without any rights calls."""
    number = unused_id()

    def act() -> object:
        become(number)
        return function()

    return in_fork(act)


@functools.cache
def why_not_as_another() -> str:
    """Return why this process cannot act as other accounts, or nothing."""
    if os.geteuid() != 0:
        return "only root can act as other accounts"

    def act() -> None:
        with tempfile.NamedTemporaryFile() as file:
            os.chown(file.name, number, number)
        become(number)

    try:
        number = unused_id()
        error = in_fork(act)
    except (OSError, StopIteration) as failed:  # a user namespace with a single account
        error = failed
    return "" if error is None else f"this root cannot act as other accounts: {error!r}"


as_root = pytest.mark.skipif(bool(why_not_as_another()), reason=why_not_as_another() or "it can")
"""Skip the test if this process cannot act as other accounts or give files to them."""


@contextlib.contextmanager
def public_directory() -> Iterator[Path]:
    """Make a directory that every account can enter, with a short path, since sockets may lie in it."""
    path = Path(tempfile.mkdtemp(prefix="spoolpool-public-", dir=_place()))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def _place() -> Path:
    """Return a directory for temporary files to which every account has a way."""
    places = [Path("/tmp"), Path(tempfile.gettempdir()), Path("/var/tmp"), Path("/dev/shm")]
    for place in places:
        if place.is_dir() and all(each.stat().st_mode & 0o001 for each in (place.resolve(), *place.resolve().parents)):
            return place
    raise FileNotFoundError(f"None of {', '.join(map(str, places))} can be entered by every account.")

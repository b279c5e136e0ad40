"""Whose files may be read: a pickle is a program, so its owner decides.

The owner is that of the *opened* descriptor (``fstat``), never of a path, which could be swapped
between two looks. Design rule: not trusted means not read, not unpickled, not removed, but reported.
"""

from __future__ import annotations

import functools
import os
import stat
import time
from collections.abc import Iterable

from spoolpool.errors import BadRequest, BadTaskFile, NotTrusted

_FRESH = 60  # seconds for which an answer of the group database is used


@functools.lru_cache
def account(uid: int) -> str:
    """An account's name, or its number where it has none."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def group_name(gid: int) -> str:
    """A group's name, or its number where it has none."""
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return f"gid {gid}"


def is_private_group(gid: int, uid: int) -> bool:
    """Whether a group is an account's own: called like it, and without other members."""
    import grp

    try:
        return grp.getgrgid(gid).gr_name == account(uid) and not has_other_members(gid, uid)
    except KeyError:
        return False


def has_other_members(gid: int, uid: int) -> bool:
    """Whether accounts besides this one are listed in a group (those whose primary group it is are not)."""
    import grp

    return bool(set(grp.getgrgid(gid).gr_mem) - {account(uid)})


def group_id(group: str) -> int:
    """The number of a group, by its name or number; raises :class:`BadRequest` where there is none."""
    import grp

    try:
        return int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise BadRequest(f"There is no group {group!r} on this host: name an existing group.") from None


def _uid(user: str | int) -> int:
    import pwd

    if isinstance(user, int):
        return user
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise BadRequest(
            f"There is no account {user!r} on this host: name an existing account, or its number."
        ) from None


@functools.lru_cache(maxsize=1024)
def _groups_of(uid: int, _since: int) -> frozenset[int]:
    import pwd

    try:
        entry = pwd.getpwuid(uid)
        return frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid))
    except (KeyError, OSError):
        return frozenset()


@functools.lru_cache(maxsize=64)
def _gid(group: str, _since: int) -> int | None:
    try:
        return group_id(group)
    except BadRequest:  # removed since, or known on other hosts only
        return None


def in_group(uid: int, groups: Iterable[str]) -> bool:
    """Whether an account is in one of these groups, its primary or a supplementary one.

    The group database of this host is asked; its answer is used for up to a minute.
    """
    since = int(time.monotonic() // _FRESH)
    return any(_gid(group, since) in _groups_of(uid, since) for group in groups)


class Trust:
    """The accounts whose files may be unpickled: one's own, and those that were named.

    ``groups`` names groups whose members are trusted, as the group database has them when a file is looked at;
    ``everybody`` is for a service that runs what anybody drops.
    """

    def __init__(self, users: Iterable[str | int] = (), groups: Iterable[str] = (), *, everybody: bool = False) -> None:
        self.uids = frozenset({os.geteuid(), *(_uid(user) for user in users)})
        self.groups = tuple(groups)
        self.everybody = everybody
        for group in self.groups:
            group_id(group)

    def covers(self, uid: int) -> bool:
        """Whether files of this account may be unpickled."""
        return self.everybody or uid in self.uids or in_group(uid, self.groups)

    def check(self, fd: int, path: str) -> os.stat_result:
        """Return the status of an opened file that may be read.

        Raises :class:`NotTrusted` for another account's, and :class:`BadTaskFile` for what is no
        regular file or has a second name (a hard link lets somebody lend another's file a new name).
        """
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise BadTaskFile(f"{path} is not a regular file. It was left alone.")
        if not self.covers(status.st_uid):
            raise NotTrusted(
                f"{path} belongs to {account(status.st_uid)}, who is not trusted here. It was not "
                "read; if that account may run code as you, name it (trust=, --trust-user, --trust-group)."
            )
        if status.st_nlink > 1:
            raise BadTaskFile(f"{path} has {status.st_nlink} names (hard links). It was left alone.")
        return status

"""Accounts and groups of this host."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterable

from spoolpool.errors import BadRequest

_FRESH = 60  # seconds for which an answer of the group database is cached


def system_accounts() -> set[int]:
    """Return the owners of system directories: root, and the overflow user where a user namespace does not map root."""
    try:
        with (
            open("/proc/self/uid_map", encoding="ascii") as map_,
            open("/proc/sys/kernel/overflowuid", encoding="ascii") as nobody,
        ):
            whole = sum(int(line.split()[2]) for line in map_) >= 2**32 - 1
            return {0} if whole else {0, int(nobody.read())}
    except (OSError, ValueError, IndexError):  # not Linux
        return {0}


@functools.lru_cache
def account_name(uid: int) -> str:
    """Return the name of an account, or its number where it has no name."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def group_name(gid: int) -> str:
    """Return the name of a group, or its number where it has no name."""
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return f"gid {gid}"


def is_private_group(gid: int, uid: int) -> bool:
    """Return whether a group is the private group of an account: it has the same name and no other members."""
    import grp

    try:
        return grp.getgrgid(gid).gr_name == account_name(uid) and not has_other_members(gid, uid)
    except KeyError:
        return False


def has_other_members(gid: int, uid: int) -> bool:
    """Return whether a group lists accounts besides this one. Accounts are not listed in their primary group."""
    import grp

    return bool(set(grp.getgrgid(gid).gr_mem) - {account_name(uid)})


def group_id(group: str) -> int:
    """Return the number of a group, given its name or number; raise :class:`BadRequest` for an unknown name."""
    import grp

    try:
        return int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise BadRequest(f"There is no group {group!r} on this host: name an existing group.") from None


def user_id(user: str | int) -> int:
    """Return the number of an account, given its name or number; raise :class:`BadRequest` for an unknown name."""
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
    except BadRequest:  # the group was removed, or exists on other hosts only
        return None


def in_group(uid: int, groups: Iterable[str]) -> bool:
    """Return whether one of these groups is the primary group or a supplementary group of an account.

    The answer of this host's group database is cached for up to a minute.
    """
    since = int(time.monotonic() // _FRESH)
    return any(_gid(group, since) in _groups_of(uid, since) for group in groups)

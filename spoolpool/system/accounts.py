"""Look up accounts and groups of this host."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterable

from spoolpool.errors import BadRequest

_FRESH = 60  # seconds for which an answer of the group database is used


@functools.lru_cache
def account_name(uid: int) -> str:
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
        return grp.getgrgid(gid).gr_name == account_name(uid) and not has_other_members(gid, uid)
    except KeyError:
        return False


def has_other_members(gid: int, uid: int) -> bool:
    """Whether accounts besides this one are listed in a group (those whose primary group it is are not)."""
    import grp

    return bool(set(grp.getgrgid(gid).gr_mem) - {account_name(uid)})


def group_id(group: str) -> int:
    """The number of a group, by its name or number; raises :class:`BadRequest` where there is none."""
    import grp

    try:
        return int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise BadRequest(f"There is no group {group!r} on this host: name an existing group.") from None


def user_id(user: str | int) -> int:
    """Return the number of an account, by its name or number; raises :class:`BadRequest` for an unknown name."""
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

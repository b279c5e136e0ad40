"""Permissions of a spool by its mode, and the checks before a spool is used.

A ``private`` spool is for its owner alone. In ``group`` the members of one group submit, run and collect. Into a
``dropbox`` all accounts may drop tasks, which its owner runs. An account that may rename a directory can replace it, so
the directories above a spool are examined too.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Literal, NamedTuple

from spoolpool.errors import BadRequest, NotTrusted
from spoolpool.system import defaults
from spoolpool.system.accounts import (
    account_name,
    group_id,
    group_name,
    has_other_members,
    is_private_group,
    system_accounts,
)
from spoolpool.system.open_directory import Place
from spoolpool.system.quantities import read_count

Mode = Literal["private", "group", "dropbox"]
"""Accounts that may use a spool."""


class Rights(NamedTuple):
    """Permission bits of the directories and files in a spool. They are exact, regardless of the umask."""

    root: int
    """The directory of the spool: only the owner makes names in it, so that none of them can be swapped."""
    own: int
    """Directories in which only the owner, or the members of the group, make names."""
    drop: int
    """Directories in which all users of the spool make names."""
    made: int
    """Directories that submitters make: a lane, a bucket, the directories of a session."""
    entry: int
    """The directory of a worker's entry, and ``workers/``."""
    file: int
    """Tasks, objects, sessions. Others may never write them: the content of a file is attributed to its owner."""
    outcome: int
    """Outcomes. In a dropbox the directory, which belongs to the submitter, keeps other accounts out."""
    shown: int
    """``spool.json`` and the files of a worker's entry."""

    def of(self, directory: str) -> int:
        """Return the bits of one of the spool's own directories."""
        if directory == "workers":
            return self.entry
        return self.drop if directory in _DROPPED else self.own


_DROPPED = frozenset(
    {"tmp", "ready", "waiting", "needs", "outgoing", "results", "failed", "cancel", "objects", "sessions", "cache"}
)

_CHECKED: dict[Mode, int] = {"private": 0o077, "group": 0o7777, "dropbox": 0o7777}
"""Permission bits that are compared."""

RIGHTS: dict[Mode, Rights] = {
    "private": Rights(0o700, 0o700, 0o700, 0o700, 0o700, 0o600, 0o600, 0o600),
    "group": Rights(0o2750, 0o2770, 0o2770, 0o2770, 0o2770, 0o640, 0o640, 0o640),
    "dropbox": Rights(0o2711, 0o2700, 0o3733, 0o770, 0o2755, 0o640, 0o644, 0o644),
}


def check_tree(place: Place, path: str, mode: Mode, config: os.stat_result, directories: tuple[str, ...]) -> None:
    """Raise :class:`NotTrusted` unless the directories of a spool have its owner and the permissions of its mode.

    ``place`` is the spool's directory, and ``path`` its path in messages. ``config`` is the status of the opened
    ``spool.json``; the owner of that file is the owner of the spool. Missing directories are left to 'spool check'. In
    a private spool only the first directory is checked: no other account gets past it.
    """
    rights = RIGHTS[mode]
    # the path of an open directory is a link; without an open directory, a link in place of the spool is refused
    top = place if isinstance(place, str) else f"{place}/."
    wanted = {path: (str(top), rights.root)}
    if mode != "private":
        wanted.update({f"{path}/{name}": (f"{place}/{name}", rights.of(name)) for name in directories})
    if stat.S_IMODE(config.st_mode) & 0o022:
        wanted_text = f"be writable by {account_name(config.st_uid)} alone"
        raise NotTrusted(_mismatch(f"{path}/spool.json", mode, config, wanted_text))
    for shown, (at, bits) in wanted.items():
        try:
            found = os.lstat(at)
        except FileNotFoundError:
            continue
        owner, group = account_name(config.st_uid), group_name(config.st_gid)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != config.st_uid:
            raise NotTrusted(_mismatch(shown, mode, found, f"be a directory of {owner}, the owner of spool.json"))
        if mode != "private" and found.st_gid != config.st_gid:
            raise NotTrusted(_mismatch(shown, mode, found, f"have group {group}, as spool.json has"))
        if stat.S_IMODE(found.st_mode) & _CHECKED[mode] != bits & _CHECKED[mode]:
            raise NotTrusted(_mismatch(shown, mode, found, f"have mode {bits:04o}"))


def _mismatch(path: str, mode: Mode, found: os.stat_result, wanted: str) -> str:
    what = "link" if stat.S_ISLNK(found.st_mode) else "directory" if stat.S_ISDIR(found.st_mode) else "file"
    listed = " and an access control list (getfacl)" if _has_acl(path) else ""
    return (
        f"The permissions of the spool do not match its mode ({mode}): {path} is a {what} of "
        f"{account_name(found.st_uid)}, group {group_name(found.st_gid)}, mode {stat.S_IMODE(found.st_mode):04o}"
        f"{listed}, and should {wanted}. Another account may have changed it; nothing was read. Find out the cause "
        "before you correct it."
    )


def _has_acl(path: str) -> bool:
    try:
        return "system.posix_acl_access" in os.listxattr(path, follow_symlinks=False)
    except (AttributeError, OSError):  # this system or that filesystem has no access control lists
        return False


def why_replaceable(root: str, owner: int) -> str:
    """Return a sentence on the accounts that can replace ``root`` or a directory above it; empty if there are none.

    It can below a directory that it may write to, unless the sticky bit restricts it to its own entries; and below a
    directory that belongs neither to root, nor to this account, nor to the owner of the spool. Directories that
    the default ``parents`` names count as protected. A directory that does not exist yet is no danger.
    """
    good = {*system_accounts(), os.geteuid(), owner}
    for directory, name in _parents(root):
        try:
            above = os.lstat(directory)
            below = os.lstat(os.path.join(directory, name))
        except FileNotFoundError:
            if not os.path.lexists(directory):
                return ""
            below = None
        others = _accounts_that_can_swap(above, below, good)
        if others and directory not in map(os.path.realpath, defaults.find_leniently("parents").value):
            return (
                f"{others} can replace {os.path.join(directory, name)}, since {directory} belongs to "
                f"{account_name(above.st_uid)}, group {group_name(above.st_gid)}, and has mode "
                f"{stat.S_IMODE(above.st_mode):04o}."
            )
    return ""


def _accounts_that_can_swap(above: os.stat_result, below: os.stat_result | None, good: set[int]) -> str:
    """Return a text that names the other accounts that can rename an entry of a directory; empty if there are none."""
    if above.st_uid not in good:
        return account_name(above.st_uid)
    if above.st_mode & stat.S_ISVTX:
        return account_name(below.st_uid) if below is not None and below.st_uid not in good else ""
    if above.st_mode & stat.S_IWOTH:
        return "All accounts"
    if above.st_mode & stat.S_IWGRP and not is_private_group(above.st_gid, above.st_uid):
        return f"Group {group_name(above.st_gid)}"
    return ""


def _parents(path: str) -> Iterator[tuple[str, str]]:
    """Yield each directory that the look-up of a path visits, links included, with the name looked up in it."""
    at, names, links = "/", path.split("/"), 0
    while names:
        name = names.pop(0)
        if name == "..":
            at = os.path.dirname(at)
        elif name not in ("", "."):
            yield at, name
            whole = os.path.join(at, name)
            if os.path.islink(whole):
                links += 1
                if links > 40:
                    raise BadRequest(f"{path} leads through more than 40 symbolic links.")
                target = os.readlink(whole)
                at = "/" if target.startswith("/") else at
                names[:0] = target.split("/")
            else:
                at = whole


def group_for(mode: Mode, group: str | None) -> int | None:
    """Return the group id of a new spool, None if it is private; raise :class:`BadRequest` for an unsuitable group."""
    if mode == "private":
        if group is not None:
            raise BadRequest("A private spool has no group: choose --mode group or dropbox.")
        return None
    if group is None:
        raise BadRequest(f"A spool of mode {mode} needs a group: --group NAME.")
    gid = group_id(group)
    if mode == "dropbox":
        if os.geteuid() == 0:
            raise BadRequest("Root cannot own a dropbox: every account that drops a task runs code as its owner.")
        if has_other_members(gid, os.geteuid()):
            raise BadRequest(
                f"Group {group} has other members than {account_name(os.geteuid())}: they could do in the dropbox "
                "whatever its owner can. Name a private group of the service account."
            )
    return gid


def read_waiting_limit(mode: Mode, limit: int | None) -> int | None:
    """Return the limit of the waiting tasks of a user in a new spool; raise :class:`BadRequest` for a dropbox.

    Submitters count their own waiting tasks, and in a dropbox they cannot list them.
    """
    if limit is not None and mode == "dropbox":
        raise BadRequest("A dropbox cannot limit the waiting tasks of a user: leave out --max-waiting.")
    return None if limit is None else read_count("max_waiting", limit, 1)


def describe_access(root: str) -> str:
    """Return a text on owner, group and mode of a spool that cannot be opened, and on this process's account."""
    try:
        found = os.lstat(root)
    except OSError:
        return "This account cannot enter a directory above it; ask the owner of the spool."
    mine = sorted({group_name(gid) for gid in (os.getegid(), *os.getgroups())})
    text = (
        f"It belongs to {account_name(found.st_uid)}, group {group_name(found.st_gid)}, with mode "
        f"{stat.S_IMODE(found.st_mode):04o}; this process is {account_name(os.geteuid())}, in the group(s) "
        f"{', '.join(mine)} on {os.uname().nodename}; ask its owner."
    )
    if found.st_mode & stat.S_IXGRP and found.st_gid not in (os.getegid(), *os.getgroups()):
        text += " If it is in that group on other hosts, this node does not know it, or the launcher dropped it."
    return text

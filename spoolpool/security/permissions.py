"""Who may do what in a spool: the rights that its mode gives, and the look at them before a spool is believed.

``private`` is for its owner alone; in ``group`` the members of one group submit, run and collect; into a ``dropbox``
everybody may drop tasks, which its owner runs. Whoever may rename a directory can put another one in its place, so
also what lies above a spool must be out of others' reach.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Literal, NamedTuple

from spoolpool import settings
from spoolpool.errors import BadRequest, NotTrusted
from spoolpool.system.accounts import account_name, group_id, group_name, has_other_members, is_private_group

Mode = Literal["private", "group", "dropbox"]
"""Who may use a spool."""


class Rights(NamedTuple):
    """Permission bits of what is in a spool; they are exact, whatever the umask says."""

    root: int
    """The spool's directory: nobody but the owner makes names in it, so what it holds cannot be swapped."""
    own: int
    """Directories in which only the owner, or the members of the group, make names."""
    drop: int
    """Directories into which everybody who uses the spool puts names of his own."""
    made: int
    """What submitters make: a lane, a bucket, the directories of a session."""
    entry: int
    """The directory of a worker's entry, and the one that holds them."""
    file: int
    """Tasks, objects, sessions: never for writing by others, since its owner is trusted for what a file says."""
    outcome: int
    """Outcomes: in a dropbox the directory, which is the submitter's, keeps others out."""
    shown: int
    """``spool.json`` and the files of a worker's entry."""

    def of(self, directory: str) -> int:
        """The bits of one of the spool's own directories."""
        if directory == "workers":
            return self.entry
        return self.drop if directory in _DROPPED else self.own


_DROPPED = frozenset(
    {"tmp", "ready", "waiting", "needs", "outgoing", "results", "failed", "cancel", "objects", "sessions", "cache"}
)

_CHECKED: dict[Mode, int] = {"private": 0o077, "group": 0o7777, "dropbox": 0o7777}
"""Bits that must be as they should."""

RIGHTS: dict[Mode, Rights] = {
    "private": Rights(0o700, 0o700, 0o700, 0o700, 0o700, 0o600, 0o600, 0o600),
    "group": Rights(0o2750, 0o2770, 0o2770, 0o2770, 0o2770, 0o640, 0o640, 0o640),
    "dropbox": Rights(0o2711, 0o2700, 0o3733, 0o770, 0o2755, 0o640, 0o644, 0o644),
}


def check_tree(root: str, mode: Mode, config: os.stat_result, directories: tuple[str, ...]) -> None:
    """Raise :class:`NotTrusted` unless a spool's directories are its owner's, with the rights that its mode gives.

    ``config`` is of the opened ``spool.json``, whose owner is the spool's. What is missing is left to 'spool check'.
    In a private spool nobody else gets past the first directory, so that it decides alone.
    """
    rights = RIGHTS[mode]
    wanted = {root: rights.root}
    if mode != "private":
        wanted.update({f"{root}/{name}": rights.of(name) for name in directories})
    if stat.S_IMODE(config.st_mode) & 0o022:
        raise NotTrusted(
            _unlike(f"{root}/spool.json", mode, config, f"{account_name(config.st_uid)} alone to write it")
        )
    for path, bits in wanted.items():
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            continue
        owner, group = account_name(config.st_uid), group_name(config.st_gid)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != config.st_uid:
            raise NotTrusted(_unlike(path, mode, found, f"a directory of {owner}'s, as spool.json is"))
        if mode != "private" and found.st_gid != config.st_gid:
            raise NotTrusted(_unlike(path, mode, found, f"group {group}, as spool.json has"))
        if stat.S_IMODE(found.st_mode) & _CHECKED[mode] != bits & _CHECKED[mode]:
            raise NotTrusted(_unlike(path, mode, found, f"mode {bits:04o}"))


def _unlike(path: str, mode: Mode, found: os.stat_result, wanted: str) -> str:
    what = "link" if stat.S_ISLNK(found.st_mode) else "directory" if stat.S_ISDIR(found.st_mode) else "file"
    listed = " and an access control list (getfacl)" if _has_acl(path) else ""
    return (
        f"The spool is not as its mode ({mode}) says: {path} is a {what} of {account_name(found.st_uid)}'s, group "
        f"{group_name(found.st_gid)}, mode {stat.S_IMODE(found.st_mode):04o}{listed}, and should have {wanted}. Others "
        "may have changed it: nothing was read. Find out who did before you set it right."
    )


def _has_acl(path: str) -> bool:
    try:
        return "system.posix_acl_access" in os.listxattr(path, follow_symlinks=False)
    except (AttributeError, OSError):  # neither this system nor that filesystem has any
        return False


def check_parents(root: str, owner: int) -> None:
    """Raise :class:`NotTrusted` where others could put something else in the place of ``root``, or on the way to it.

    That is so below a directory to which others can write, unless its sticky bit lets them move only what is theirs;
    and below one whose owner is neither root, nor this account, nor the spool's. Directories that are named in
    ``SPOOLPOOL_PARENTS`` are taken as they are. What does not exist yet is no danger.
    """
    good = {*_roots(), os.geteuid(), owner}
    accepted = {os.path.realpath(path) for path in os.environ.get(settings.ENV_PARENTS, "").split(":") if path}
    for directory, name in _parents(root):
        try:
            above = os.lstat(directory)
            below = os.lstat(os.path.join(directory, name))
        except FileNotFoundError:
            if not os.path.lexists(directory):
                return
            below = None
        if directory in accepted:
            continue
        others = _who_can_swap(above, below, good)
        if others:
            raise NotTrusted(
                f"{others} can put something else in the place of {os.path.join(directory, name)}, on the way to the "
                f"spool {root}: {directory} belongs to {account_name(above.st_uid)}, group "
                f"{group_name(above.st_gid)}, and "
                f"has mode {stat.S_IMODE(above.st_mode):04o}. So they could have you run what is in a spool of theirs. "
                "Use another place, or take that right away (chmod g-w,o-w, or +t). If all who have it may run code as "
                f"you, set {settings.ENV_PARENTS}={directory}."
            )


def _who_can_swap(above: os.stat_result, below: os.stat_result | None, good: set[int]) -> str:
    """Who else can rename an entry of a directory, in words; empty if nobody."""
    if above.st_uid not in good:
        return account_name(above.st_uid)
    if above.st_mode & stat.S_ISVTX:
        return account_name(below.st_uid) if below is not None and below.st_uid not in good else ""
    if above.st_mode & stat.S_IWOTH:
        return "Everybody"
    if above.st_mode & stat.S_IWGRP and not is_private_group(above.st_gid, above.st_uid):
        return f"Group {group_name(above.st_gid)}"
    return ""


def _parents(path: str) -> Iterator[tuple[str, str]]:
    """Each directory on the way to a path with the name that is looked up in it, where links lead elsewhere too."""
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
                    raise BadRequest(f"{path} leads through too many symbolic links.")
                target = os.readlink(whole)
                at = "/" if target.startswith("/") else at
                names[:0] = target.split("/")
            else:
                at = whole


def _roots() -> set[int]:
    """Owners of the system's own directories: root, and nobody where a user namespace (a container) does not map it."""
    try:
        with (
            open("/proc/self/uid_map", encoding="ascii") as map_,
            open("/proc/sys/kernel/overflowuid", encoding="ascii") as nobody,
        ):
            whole = sum(int(line.split()[2]) for line in map_) >= 2**32 - 1
            return {0} if whole else {0, int(nobody.read())}
    except (OSError, ValueError, IndexError):  # no Linux
        return {0}


def group_for(mode: Mode, group: str | None) -> int | None:
    """The group of a new spool, None for a private one; :class:`BadRequest` for one that does not fit its mode."""
    if mode == "private":
        if group is not None:
            raise BadRequest("A private spool has no group: choose --mode group or dropbox.")
        return None
    if group is None:
        raise BadRequest(f"A spool of mode {mode} needs a group: --group NAME.")
    gid = group_id(group)
    if mode == "dropbox":
        if os.geteuid() == 0:
            raise BadRequest("Not as root: whoever drops a task runs code as the owner of the dropbox.")
        if has_other_members(gid, os.geteuid()):
            raise BadRequest(
                f"Group {group} has other members than {account_name(os.geteuid())}: they could do in the "
                f"dropbox whatever "
                "its owner can. Name a group of the service account's own."
            )
    return gid


def whose(root: str) -> str:
    """For whom a spool is that cannot be opened, and who asks."""
    try:
        found = os.lstat(root)
    except OSError:
        return "A directory above it is closed to this account; ask the owner of the spool."
    mine = sorted({group_name(gid) for gid in (os.getegid(), *os.getgroups())})
    text = (
        f"It belongs to {account_name(found.st_uid)}, group {group_name(found.st_gid)}, with mode "
        f"{stat.S_IMODE(found.st_mode):04o}; this process is {account_name(os.geteuid())}, in the group(s) "
        f"{', '.join(mine)} on {os.uname().nodename}; ask its owner."
    )
    if found.st_mode & stat.S_IXGRP and found.st_gid not in (os.getegid(), *os.getgroups()):
        text += " If it is in that group elsewhere, this node does not know it, or it was lost on the way here."
    return text

"""Files and directories by their paths: create, move, remove, list, inspect, open.

The rooms above name the steps of the protocol (publish, claim, commit) and call this module for the system calls. No
function here repairs an error by guessing. On a network filesystem an operation can succeed and yet return an error,
because its request was repeated; so the caller checks for the intended result.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

from spoolpool.errors import SpoolDenied, SpoolFull, SpoolpoolError
from spoolpool.system import file_content, open_directory

Durability = Literal["none", "data", "full"]
"""``none`` survives the crash of any process, ``data`` the crash of the node (a file is synced before it gets its
name), ``full`` the loss of power on a local disk (directories are synced too)."""

GONE = frozenset({errno.ENOENT, errno.ESTALE, errno.ENOTDIR})
"""The listed name no longer exists: another process moved or removed it. NFS returns ESTALE where a local filesystem
returns ENOENT."""

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""No space, no inodes, or no quota."""

DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
"""The account lacks the permission."""


class translate_errors:  # noqa: N801  named like contextlib's; a generator would take three times as long, for each task
    """Context that turns an ``OSError`` into :class:`SpoolFull`, :class:`SpoolDenied` or :class:`SpoolpoolError`.

    ``action`` completes "Cannot ...", as in "submit a task to /spool". The message adds the path and the remedy.
    """

    def __init__(self, action: str) -> None:
        self._action = action

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if not isinstance(error, OSError):
            return
        path = f" ({open_directory.display_path(os.fsdecode(error.filename))})" if error.filename else ""
        text = f"Cannot {self._action}: {error.strerror}{path}."
        if error.errno in FULL:
            raise SpoolFull(f"{text} Free space, inodes or quota there; nothing was left in the spool.") from error
        if error.errno in DENIED:
            raise SpoolDenied(
                f"{text} Ask the owner of the spool for write permission, or use another spool."
            ) from error
        raise SpoolpoolError(text) from error


def _set_exactly(fd: int, mode: int) -> None:
    """Undo the effects of the umask and of a default access control list."""
    if stat.S_IMODE(os.fstat(fd).st_mode) != mode:
        os.fchmod(fd, mode)


def create(
    path: str,
    parts: Sequence[bytes | memoryview],
    *,
    mode: int = 0o600,
    exact: bool = False,
    durability: Durability = "none",
) -> None:
    """Create the file ``path`` with these bytes, complete; raise ``OSError`` otherwise.

    An existing name raises ``FileExistsError`` and stays unchanged. A partly written file is removed as far as
    possible. ``exact`` sets the mode regardless of the umask.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        try:
            if exact:
                _set_exactly(fd, mode)
            file_content.write_all(fd, parts)
            if durability != "none":
                os.fsync(fd)
        finally:
            os.close(fd)
        if durability == "full":
            sync_directory(os.path.dirname(path))
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise


def move(source: str, target: str, *, durability: Durability = "none") -> None:
    """Rename ``source`` to ``target``, a name that no other process ever makes.

    Raises the ``OSError`` of rename(2). On a network filesystem the rename may have happened all the same: check for
    the target.
    """
    os.rename(source, target)
    if durability == "full":
        sync_directory(os.path.dirname(target))
        sync_directory(os.path.dirname(source))


def remove(path: str) -> bool:
    """Unlink ``path``; return False if it did not exist."""
    try:
        os.unlink(path)
    except OSError as error:
        if error.errno in GONE:  # another collector, or a repeated request
            return False
        raise
    return True


def list_names(directory: str, *, certain: bool = False) -> list[str]:
    """Return the names in a directory without inspecting the entries; an empty list where it does not exist.

    ``certain`` raises ESTALE as well, which does not prove that the directory does not exist: for a caller that removes
    what no name here stands for.
    """
    try:
        return os.listdir(directory)
    except OSError as error:
        # removed between two listings, or not made yet
        if error.errno in GONE and not (certain and error.errno == errno.ESTALE):
            return []
        raise


def exists(path: str) -> bool:
    """Return whether ``path`` exists, by look-up and by listing, since either may be answered from a stale cache.

    NFS answers a look-up from its cache for up to 60 s but lists afresh; sshfs lists from its cache for 20 s but looks
    up afresh. A name that is found in either way exists. Raises ``OSError`` where the answer is unknown: an unreachable
    server or a stale handle proves nothing about the name.
    """
    unknown: OSError | None = None
    try:
        os.lstat(path)  # first: its cost does not depend on the number of names
        return True
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        unknown = error
    directory, name = os.path.split(path)
    with contextlib.suppress(PermissionError):  # a directory that is writable and searchable, but not readable
        if name in list_names(directory):
            return True
    if unknown is not None:
        raise unknown
    return False


def is_missing(path: str) -> bool:
    """Return whether ``path`` certainly does not exist; False also where the answer is unknown."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def owner(path: str) -> int | None:
    """Return the account that owns ``path`` itself, not the target of a link; None where it does not exist."""
    try:
        return os.lstat(path).st_uid
    except OSError as error:
        if error.errno in GONE:
            return None
        raise


def is_directory(path: str) -> bool:
    """Return whether ``path`` itself is a directory, not a link to one; False where it does not exist."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError as error:
        if error.errno in GONE:
            return False
        raise


def make_directory(path: str, mode: int = 0o700) -> bool:
    """Create the directory ``path`` with exactly this mode, regardless of the umask; return False if it exists."""
    try:
        os.mkdir(path, mode)
    except FileExistsError:  # another submitter or worker was first
        return False
    try:
        if stat.S_IMODE(os.lstat(path).st_mode) != mode:
            set_mode(path, mode)
    except OSError as error:
        if error.errno not in GONE:  # else a worker found it empty and removed it
            with contextlib.suppress(OSError):  # where root is squashed, it belongs to another account
                os.rmdir(path)
            raise
    return True


def make_parents(path: str) -> list[str]:
    """Create the missing directories above ``path``, writable by this account alone, regardless of the umask.

    Return the created ones, the deepest first.
    """
    parent = os.path.dirname(path)
    if os.path.isdir(parent):
        return []
    made = make_parents(parent)
    try:
        os.mkdir(parent, 0o755)
    except FileExistsError:  # another process was first
        return made
    except OSError:
        for each in [parent, *made]:  # also if the error hides a success, which a network filesystem can do
            with contextlib.suppress(OSError):
                os.rmdir(each)
        raise
    return [parent, *made]


def set_mode(path: str, mode: int, group: int = -1) -> None:
    """Change the permissions, and the group if one is given, of a file of this account; a link is not followed.

    Raises ``PermissionError`` for a file of another account, even where this account could change it.
    """
    fd = open_file(path)
    try:
        if os.fstat(fd).st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "It belongs to another account", path)
        if group >= 0:
            os.fchown(fd, -1, group)
        _set_exactly(fd, mode)
    finally:
        os.close(fd)


def remove_directory(path: str) -> bool:
    """Remove an empty directory; False where it is gone or not empty."""
    try:
        os.rmdir(path)
    except OSError as error:
        # ENOTEMPTY (EEXIST on some systems): another process has made a name in it since, so it stays
        if error.errno in GONE or error.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY}:
            return False
        raise
    return True


def open_file(path: str, *, write: bool = False) -> int:
    """Open an existing file without following a link and without waiting for the other end of a FIFO.

    ``write`` opens it for reading and writing, which a lock needs on NFS. The caller checks the opened file with
    ``fstat`` (see :mod:`spoolpool.security.trust`).
    """
    access = os.O_RDWR if write else os.O_RDONLY
    return os.open(path, access | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)


def close(fd: int) -> None:
    """Close a descriptor that was only read, ignoring errors: they have no consequence."""
    try:  # noqa: SIM105  twice per task, and three times as fast as a context
        os.close(fd)
    except OSError:
        pass


def touch(path: str) -> None:
    """Set the modification time of ``path`` to the clock of the filesystem's server."""
    os.utime(path)


def refresh(directory: str) -> None:
    """Make clients list ``directory`` afresh, if this account may write there.

    An NFS 3 client decides by the directory's modification time whether its cached listing is valid. A name that is
    made within the same tick of the server's clock (up to 10 ms) as that listing and an earlier change stays hidden
    until the directory changes once more.
    """
    with contextlib.suppress(OSError):
        os.utime(directory)


def mtime_ns(path: str) -> int | None:
    """Return the current modification time in ns (opening makes NFS ask the server); None where it does not exist."""
    try:
        fd = open_file(path)
    except OSError as error:
        if error.errno in GONE:
            return None
        raise
    try:
        return os.fstat(fd).st_mtime_ns
    finally:
        os.close(fd)


def regular_status(fd: int, path: str) -> os.stat_result:
    """Return the status of an opened file; ``ValueError`` if it is not a regular file."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is not a regular file")
    return status


@contextlib.contextmanager
def reading(
    path: str, check: Callable[[int, str], os.stat_result] | None = regular_status, shown: str = ""
) -> Iterator[tuple[int, os.stat_result]]:
    """Open a file, return its descriptor and its status, and close it at the end. ``OSError`` as open(2).

    ``check`` returns the status or raises; ``shown`` is the path in its messages, if it differs from ``path``.
    """
    fd = open_file(path)
    try:
        yield fd, check(fd, shown or path) if check else os.fstat(fd)
    finally:
        close(fd)


def open_append(path: str, mode: int = 0o600, *, exact: bool = False) -> int:
    """Open or create a file of this account for appending; ``exact`` as for :func:`create`."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(path, flags, mode)
    if exact:
        _set_exactly(fd, mode)
    return fd


def open_log(path: str, mode: int = 0o600, *, exact: bool = False) -> int:
    """Open or create a file of this account for appending, and for reading what it has; ``exact`` as for create.

    A file of another account, or one that is no regular file or has a second name, is removed first.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    for left in (1, 0):
        try:
            fd = os.open(path, flags | (0 if left else os.O_EXCL), mode)
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and status.st_nlink == 1:
                if exact:
                    _set_exactly(fd, mode)
                return fd
            os.close(fd)
        except OSError as error:
            if not left or error.errno not in {*DENIED, errno.ELOOP, errno.ENXIO, errno.EISDIR}:
                raise
        os.unlink(path)
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)


def open_edit(path: str, mode: int = 0o600) -> int:
    """Open or create a file of this account for overwriting. The mode is exact, as for directories."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    _set_exactly(fd, mode)
    return fd


def sync_directory(path: str) -> None:
    """Make the names in a directory durable against the loss of power."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_tree(path: str, keep: Iterable[str] = ()) -> None:
    """Remove a directory of this account with its content, except the names in ``keep``; missing files are no error."""
    import shutil

    kept = set(keep)
    for name in list_names(path):
        if name not in kept:
            child = os.path.join(path, name)
            if os.path.isdir(child) and not os.path.islink(child):
                shutil.rmtree(child, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    os.unlink(child)
    if not kept:
        remove_directory(path)

"""The one module that touches the disk: create, move, remove, list, look.

Everything above says what it means (publish, claim, commit) and gets here for the system call. No
function in here repairs an error by guessing: on a network filesystem an operation can happen and
yet answer with an error (a request that was repeated), so the caller looks for what it wanted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, TypeAlias

from spoolpool.errors import SpoolDenied, SpoolFull, SpoolpoolError

Durability = Literal["none", "data", "full"]
"""``none`` survives the crash of any process, ``data`` the crash of the node (the file is synced
before it gets its name), ``full`` the loss of power on a local disk (directories are synced too)."""

GONE = frozenset({errno.ENOENT, errno.ESTALE, errno.ENOTDIR})
"""The name was there when it was listed and is no longer: another process moved or removed it. NFS
says ESTALE where a local filesystem says ENOENT."""

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""No space, no inodes, or no quota."""

DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
"""The account may not."""

_HELD = "/proc/self/fd/"

_PARTS = 512  # fewer than IOV_MAX (1024) on every system


def write_all(fd: int, parts: Sequence[bytes | memoryview]) -> None:
    """Write every byte of ``parts`` in order, gathering them, whatever the kernel takes at a time."""
    size = sum(map(len, parts))
    done = os.writev(fd, parts) if size and len(parts) <= _PARTS else 0
    if done == size:  # as nearly always
        return
    views = [memoryview(part) for part in parts if len(part)]
    while True:
        while done:
            if done < len(views[0]):
                views[0] = views[0][done:]
                break
            done -= len(views.pop(0))
        if not views:
            return
        done = os.writev(fd, views[:_PARTS])


class Directory:
    """A directory that is held open: as text it is a path that leads to it, whatever has been put in its place since.

    That path is good in this process alone, as long as this object lives, and costs no more than another.
    """

    def __init__(self, path: str) -> None:
        """Open it, without following a link in the last part of ``path``; ``OSError`` as open(2).

        ``ENOTDIR`` is for a link as well as for what is no directory.
        """
        self._fd = -1
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self.owner = os.fstat(self._fd).st_uid

    def __str__(self) -> str:
        return f"{_HELD}{self._fd}"

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def removed(self) -> bool:
        """Whether it was removed since it was opened."""
        return os.fstat(self._fd).st_nlink == 0


Place: TypeAlias = "str | Directory"
"""A directory by its path, or held open; in a text, either leads there."""


def display_path(path: str) -> str:
    """A path as people know it, where it leads through a :class:`Directory`."""
    if path.startswith(_HELD):
        number, _, rest = path.removeprefix(_HELD).partition("/")
        with contextlib.suppress(OSError):
            return f"{os.readlink(_HELD + number)}/{rest}"
    return path


class translate_errors:  # noqa: N801  like contextlib's; a generator would cost three times as much at each task
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
        path = f" ({display_path(os.fsdecode(error.filename))})" if error.filename else ""
        text = f"Cannot {self._action}: {error.strerror}{path}."
        if error.errno in FULL:
            raise SpoolFull(f"{text} Free space, inodes or quota there; nothing was left in the spool.") from error
        if error.errno in DENIED:
            raise SpoolDenied(
                f"{text} Ask the owner of the spool for write permission, or use another spool."
            ) from error
        raise SpoolpoolError(text) from error


def _set_exactly(fd: int, mode: int) -> None:
    """Undo what the umask took, or a default access control list gave."""
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
    """Make the new file ``path`` with these bytes; it is complete or an ``OSError`` tells.

    A name that exists raises ``FileExistsError`` and is left as it is. What a failure left half
    written is removed, as far as that is possible. ``exact``: the mode is, whatever the umask says.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        try:
            if exact:
                _set_exactly(fd, mode)
            write_all(fd, parts)
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
    """Rename ``source`` to ``target``, a name that nobody else ever makes.

    Raises the ``OSError`` of rename(2), which on a network filesystem does not mean that it did not
    happen: look for the target.
    """
    os.rename(source, target)
    if durability == "full":
        sync_directory(os.path.dirname(target))
        sync_directory(os.path.dirname(source))


def remove(path: str) -> bool:
    """Unlink ``path``; False where it was gone already."""
    try:
        os.unlink(path)
    except OSError as error:
        if error.errno in GONE:  # another collector, or a repeated request
            return False
        raise
    return True


def list_names(directory: str) -> list[str]:
    """List a directory without a look at its entries; empty where it does not exist (yet or any more)."""
    try:
        return os.listdir(directory)
    except OSError as error:
        if error.errno in GONE:  # removed between two looks, or not made yet
            return []
        raise


def exists(path: str) -> bool:
    """Whether ``path`` exists, asked in both ways that a stale cache can spoil.

    NFS answers a look-up from its cache for up to 60 s but lists afresh; sshfs lists from its cache
    for 20 s but looks up afresh. Seen in either is there. Raises ``OSError`` where it cannot be told: a
    server that is away, or a stale handle, says nothing about the name.
    """
    directory, name = os.path.split(path)
    with contextlib.suppress(PermissionError):  # a directory in which one may make names, and not list them
        if name in list_names(directory):
            return True
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def is_missing(path: str) -> bool:
    """Whether it is certain that nothing is at ``path``; False also where it cannot be told."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def owner(path: str) -> int | None:
    """Account to which a name belongs, not what a link leads to; None where it is gone."""
    try:
        return os.lstat(path).st_uid
    except OSError as error:
        if error.errno in GONE:
            return None
        raise


def is_directory(path: str) -> bool:
    """Whether ``path`` is a directory itself, and not a link to one; False where it is gone."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError as error:
        if error.errno in GONE:
            return False
        raise


def make_directory(path: str, mode: int = 0o700) -> bool:
    """Make ``path``; False where it exists. The mode is exact, whatever the umask says."""
    try:
        os.mkdir(path, mode)
    except FileExistsError:  # another submitter or worker was first
        return False
    try:
        if stat.S_IMODE(os.lstat(path).st_mode) != mode:
            set_mode(path, mode)
    except OSError as error:
        if error.errno not in GONE:  # a worker found it empty and removed it
            raise
    return True


def make_parents(path: str) -> None:
    """Make the directories above ``path`` that are missing, which nobody else may write to, whatever the umask says."""
    parent = os.path.dirname(path)
    if not os.path.isdir(parent):
        make_parents(parent)
        with contextlib.suppress(FileExistsError):  # another process was first
            os.mkdir(parent, 0o755)


def set_mode(path: str, mode: int, group: int = -1) -> None:
    """Change the permissions, and the group if one is given, of what is one's own, not of what a link leads to.

    Raises ``PermissionError`` for what belongs to somebody else, also where this account might change it.
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
        # ENOTEMPTY (EEXIST on some systems): somebody put a name into it meanwhile. It lives on.
        if error.errno in GONE or error.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY}:
            return False
        raise
    return True


def open_file(path: str, *, write: bool = False) -> int:
    """Open an existing file without following a link and without waiting for the far end of a FIFO.

    ``write`` asks for read and write, which a lock needs on NFS. The caller checks with ``fstat``
    what it got (see :mod:`spoolpool.security.trust`).
    """
    access = os.O_RDWR if write else os.O_RDONLY
    return os.open(path, access | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)


def close(fd: int) -> None:
    """Close; an error of a descriptor that was only read has no consequence."""
    try:  # noqa: SIM105  twice per task, and three times as quick as a context
        os.close(fd)
    except OSError:
        pass


def touch(path: str) -> None:
    """Set the modification time of ``path`` to the clock of the filesystem's server."""
    os.utime(path)


def refresh(directory: str) -> None:
    """Let no client go on believing what it last listed in ``directory``, if this account may write there.

    A client of NFS 3 tells by the directory's time whether its listing still holds. A name that comes within the
    tick of the server's clock (up to 10 ms) in which that listing and an earlier change fell is hidden until the
    directory changes once more.
    """
    with contextlib.suppress(OSError):
        os.utime(directory)


def mtime_ns(path: str) -> int | None:
    """Modification time in ns as the server has it now (opening asks it anew on NFS), None if gone."""
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
    """Open a file, return its descriptor and its status, close it at the end. ``OSError`` as open(2).

    ``check`` returns the status, or refuses the file; it is given ``shown`` where that is the path that people know.
    """
    fd = open_file(path)
    try:
        yield fd, check(fd, shown or path) if check else os.fstat(fd)
    finally:
        close(fd)


def read_small(path: str, limit: int = 1 << 20) -> bytes:
    """The bytes of a small regular file; ``OSError`` as open(2), ``ValueError`` if it is none."""
    with reading(path) as (fd, status):
        if status.st_size > limit:
            raise ValueError(f"{path} has more than {limit} bytes")
        return os.read(fd, limit)


def append(fd: int, data: bytes) -> None:
    """Add to a file to which processes of this host alone append; the kernel keeps their pieces apart."""
    write_all(fd, [data])


def open_append(path: str, mode: int = 0o600, *, exact: bool = False) -> int:
    """Open, or make, a file of one's own to append to; ``exact`` as for :func:`create`."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(path, flags, mode)
    if exact:
        _set_exactly(fd, mode)
    return fd


def open_edit(path: str, mode: int = 0o600) -> int:
    """Open, or make, a file of one's own to write over what stands in it. The mode is exact, as for directories."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    _set_exactly(fd, mode)
    return fd


def write_at(fd: int, data: bytes, offset: int) -> None:
    """Write over what stands at ``offset``, in a file of one's own."""
    while data:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done


def read_at(fd: int, length: int, offset: int) -> bytes:
    """Return the bytes at ``offset``, in whatever pieces the filesystem gives them; fewer where the file ends."""
    data = os.pread(fd, max(length, 0), offset)  # also for no bytes: ESPIPE tells a FIFO from an empty file
    while len(data) < length and (more := os.pread(fd, length - len(data), offset + len(data))):
        data += more
    return data


def end_of(fd: int) -> int:
    """Where an opened file ends, asked in the cheapest way; moves the descriptor's own position."""
    return os.lseek(fd, 0, os.SEEK_END)


def truncate(fd: int, size: int) -> None:
    """Let a file of one's own end there."""
    os.ftruncate(fd, size)


def sync(fd: int) -> None:
    """Have the content of a file seen by other clients, and survive the crash of this node."""
    os.fdatasync(fd)


def sync_directory(path: str) -> None:
    """Make the names in a directory survive the loss of power."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_tree(path: str, keep: Iterable[str] = ()) -> None:
    """Remove a directory of one's own with all that is in it; what is gone already is no error."""
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


def size(fd: int) -> int:
    """Bytes in an opened file."""
    return os.fstat(fd).st_size

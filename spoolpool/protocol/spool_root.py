"""Root of a spool: its directory, which is kept open where other accounts could put another one in its place."""

from __future__ import annotations

import os

from spoolpool.errors import NotTrusted
from spoolpool.format.config import Config, read_config
from spoolpool.format.layout import Layout
from spoolpool.security import permissions
from spoolpool.system import open_directory


def open_layout(path: str) -> tuple[Layout, Config, os.stat_result]:
    """Return the layout and the config of a spool, and the status of ``spool.json``.

    Where other accounts can replace the spool's directory it is opened once, and all paths lead through it.
    """
    layout = Layout(path)
    config, status = read_config(layout, path)
    if permissions.why_replaceable(path, status.st_uid):
        layout = Layout(open_root(path))
        config, status = read_config(layout, path)
    return layout, config, status


_roots: dict[tuple[int, int], open_directory.Directory] = {}
"""Opened directories of spools. Each stays open, since paths through it may be kept longer than the spool's object."""


def open_root(path: str) -> open_directory.Directory:
    """Open the directory of a spool, which its users may be allowed to enter only."""
    try:
        found = open_directory.Directory(path, readable=False)
        status = os.stat(f"{found}/.")
    except OSError as error:
        what = "is a symbolic link" if os.path.islink(path) else f"cannot be opened ({error.strerror})"
        raise NotTrusted(
            f"Other accounts can replace the spool {path}, which {what}: name a directory that is no link, on a host "
            f"with /proc, or protect the directories above it. {permissions.why_replaceable(path, os.geteuid())}"
        ) from error
    return _roots.setdefault((status.st_dev, status.st_ino), found)


def forget_root(root: open_directory.Place) -> None:
    """Forget the opened directory of a spool that was removed."""
    for key in [key for key, each in _roots.items() if each is root]:
        del _roots[key]

"""Directory tree of a new spool."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable

import msgspec

from spoolpool.errors import BadRequest, NotTrusted
from spoolpool.format.config import Config
from spoolpool.format.layout import Layout
from spoolpool.protocol.spool_root import open_root
from spoolpool.security import permissions
from spoolpool.system import files
from spoolpool.system.accounts import account_name


def _require_empty(root: str, found: list[str]) -> None:
    if found:
        what = "is a spool already" if "spool.json" in found else f"is not empty (it has {found[0]!r})"
        raise BadRequest(f"Cannot make the spool {root}: it {what}. Name another directory.")


class Undo(contextlib.ExitStack):
    """Steps that undo others, in reverse order; a step that fails does not keep the others from being done."""

    def add(self, act: Callable[..., object], *arguments: object) -> None:
        """Add a step."""

        def step() -> None:
            with contextlib.suppress(OSError):
                act(*arguments)

        self.callback(step)


def make_tree(root: str, config: Config, gid: int | None, undo: Undo) -> None:
    """Make the directories and ``spool.json`` of a new spool; ``undo`` gets the steps that remove them again.

    A step is undone even if it reported an error: on a network filesystem it may have happened all the same.
    """
    rights = permissions.RIGHTS[config.mode]
    for each in reversed(files.make_parents(root)):
        undo.add(files.remove_directory, each)
    if files.is_missing(root):
        undo.add(files.remove_directory, root)
    files.make_directory(root)
    # other accounts may replace it from now on, if they can write to the directory above
    place = open_root(root) if permissions.why_replaceable(root, os.geteuid()) else root
    top = f"{place}/."
    undo.callback(lambda: place)  # keeps it open for the steps
    before = os.stat(top)
    if before.st_uid != os.geteuid():
        raise NotTrusted(
            f"Cannot make the spool {root}: the directory belongs to {account_name(before.st_uid)}, and this process "
            f"runs as {account_name(os.geteuid())}. Name a directory of your own; if it is yours, the "
            "filesystem maps accounts (root squash, a mapped mount), and the owner of a file cannot be told "
            "there: use another filesystem."
        )
    _require_empty(root, files.list_names(top))
    with Undo() as first:
        first.add(files.set_mode, top, stat.S_IMODE(before.st_mode), before.st_gid)
        first.add(files.remove_directory, f"{place}/tmp")
        # no other account has access before all of it is made
        files.set_mode(top, 0o700 if gid is None else 0o2700, -1 if gid is None else gid)
        made = files.make_directory(f"{place}/tmp", rights.of("tmp"))
        undone = first.pop_all()
    if not made:  # by another process, which makes the same spool
        _require_empty(root, ["tmp"])
    undo.callback(undone.close)
    _require_empty(root, [name for name in files.list_names(top) if name != "tmp"])
    # other accounts use these directories later, and cannot make them
    for name in (*Layout.DIRECTORIES, *(() if gid is None else Layout.ON_DEMAND)):
        if name != "tmp":
            undo.add(files.remove_directory, f"{place}/{name}")
            files.make_directory(f"{place}/{name}", rights.of(name))
    # last, by rename: without this file the directory is no spool
    source, target = f"{place}/tmp/spool.json", f"{place}/spool.json"
    undo.add(files.remove, source)
    undo.add(files.remove, target)
    data = msgspec.json.encode(config)
    files.create(source, [data], mode=rights.shown, exact=True, durability=config.durability)
    files.move(source, target, durability=config.durability)
    files.set_mode(top, rights.root)

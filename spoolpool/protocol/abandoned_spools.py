"""Temporary spools whose process was killed together with all its groups: found by their names, and removed.

An executor removes its temporary spool, and if it is killed, the last of its groups does. If all of them are killed at
once, the next executor of the same account does. It removes nothing without a proof of death: of the process that made
the directory, whose identity is in the name, and of all groups of the spool. No link is followed. Two processes may
remove the same directory: no name is made twice. A removal that is interrupted is continued by the next process.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from spoolpool.errors import SpoolpoolError
from spoolpool.format.config import read_config
from spoolpool.format.layout import Layout
from spoolpool.format.names import is_object_id, is_worker_id
from spoolpool.format.temporary_names import PREFIX, TemporaryName, parse_temporary_name
from spoolpool.system import files, open_directory, records
from spoolpool.system.processes import ProcessId
from spoolpool.system.records import BadRecord

log = logging.getLogger(__name__)

_MOST = 100  # directories of one place that a search returns
_ORDER = ("spool", "ranks", "values")
_TOP = {"spool.json", *Layout.DIRECTORIES, *Layout.ON_DEMAND}


class _Entry(msgspec.Struct):
    """Part of a worker's entry."""

    process: ProcessId


_decoder = msgspec.json.Decoder(_Entry)


class Abandoned(NamedTuple):
    """Directory whose process has died."""

    path: str
    name: TemporaryName


def find_abandoned(places: Iterable[str]) -> list[Abandoned]:
    """Return directories of this account in ``places`` whose processes are provably dead, spools first.

    Each place is listed once. At most 100 of each are returned, those of spools whose groups are alive included; of
    more than these, another search returns other ones.
    """
    found: list[Abandoned] = []
    for place in dict.fromkeys(map(os.path.realpath, places)):
        try:
            names = [each for each in files.list_names(place) if each.startswith(PREFIX)]
        except OSError:  # not readable
            continue
        # not always the same ones, which may have to stay; without a change of the program's random numbers
        first = int.from_bytes(os.urandom(4), "little") % max(1, len(names))
        most = len(found) + _MOST
        for each in (*names[first:], *names[:first]):
            name = parse_temporary_name(each)
            if name is not None and name.is_abandoned() and _is_own(f"{place}/{each}"):
                found.append(Abandoned(f"{place}/{each}", name))
                if len(found) == most:
                    break
    return sorted(found, key=lambda each: _ORDER.index(each.name.kind))


def _is_own(path: str) -> bool:
    try:
        return files.owner(path) == os.geteuid()
    except OSError:
        return False


def removable(found: Iterable[Abandoned]) -> list[Abandoned]:
    """Return those of the directories, as :func:`find_abandoned` returned them, that :func:`remove` would remove."""
    kept: set[str] = set()
    good = []
    for each in found:
        if each.name.id in kept or not _open(each):
            kept.add(each.name.id)  # the groups of the spool are alive: they use its large values, too
        else:
            good.append(each)
    return good


def remove(found: Iterable[Abandoned]) -> list[str]:
    """Remove directories; return the paths of those that are gone. The others stay as they are."""
    gone = []
    for each in removable(found):
        directory = _open(each)
        if directory is None:
            continue
        try:
            # first: without this file nothing but the identity in the name has to be judged, should this process die
            files.remove(f"{directory}/spool.json")
            files.remove_tree(str(directory))
            files.remove_directory(each.path)
        except OSError as error:
            log.info("%s stays: %s", each.path, error)
        if files.is_missing(each.path):
            log.info("Removed %s, whose process was killed", each.path)
            gone.append(each.path)
    return gone


def _open(each: Abandoned) -> open_directory.Directory | None:
    """Return an open directory if it may be removed: it is what its name says, and no process uses it."""
    path, name = each
    try:
        directory = open_directory.Directory(path)
        if directory.owner != os.geteuid() or not name.is_abandoned():
            return None
        names = set(files.list_names(str(directory)))
        if name.kind == "values":
            return directory if all(map(is_object_id, names)) else None
        if name.kind == "ranks":
            return directory if all(map(str.isdecimal, names)) else None
        known = names <= _TOP and ("spool.json" not in names or _is_temporary(directory, path))
        return directory if known and _are_groups_dead(directory) else None
    except (OSError, SpoolpoolError, BadRecord) as error:  # a link, or a record that cannot be read
        log.info("%s stays: %s", path, error)
        return None


def _is_temporary(directory: open_directory.Directory, path: str) -> bool:
    return read_config(Layout(directory), path)[0].temporary


def _are_groups_dead(directory: open_directory.Directory) -> bool:
    """Return whether all groups that have announced themselves are dead. A later one does not find its spool."""
    for worker in filter(is_worker_id, files.list_names(f"{directory}/workers")):
        try:
            entry = records.load(f"{directory}/workers/{worker}/info.json", _decoder)
        except OSError as error:
            if error.errno in files.GONE:  # it is just made, or was removed
                continue
            raise
        if not entry.process.is_provably_dead():
            return False
    return True

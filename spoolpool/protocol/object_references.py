"""References of tasks to objects, from the headers of all tasks."""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from spoolpool.errors import BadTaskFile, NoKey, SpoolpoolError
from spoolpool.format.headers import TaskHeader
from spoolpool.format.names import (
    TaskFile,
    is_task_id,
    parse_lane,
    parse_task_file,
)
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.tasks import read_task, task_directories
from spoolpool.system import files


def objects_of(spool: Spool, header: TaskHeader) -> set[str]:
    """Return the names of the files of the objects that a task needs."""
    found = set(header.objects)
    if header.init:
        lane = parse_lane(header.lane)
        found.add(os.path.basename(spool.layout.object(header.init, lane.user if lane else None)))
    return found


class References(NamedTuple):
    """Objects that tasks need, as their headers say."""

    objects: set[str]
    """Names of the objects' files."""
    unreadable: dict[str, str]
    """Task files and directories that cannot be read, with the reasons. They may need any object."""


def read_references(spool: Spool) -> References:
    """Read the headers of all tasks, also of those whose submitter is about to move them out of ``tmp/``.

    A task may move to a directory that was listed before. So a caller looks more than once. Raises :class:`NoKey`.
    """
    found = References(set(), {})
    try:
        for directory in (spool.layout.tmp, *task_directories(spool)):
            for name in files.list_names(directory, certain=True):
                task_file = TaskFile(name, 1, 1) if is_task_id(name) else parse_task_file(name)
                if task_file is not None:
                    _add_references(spool, f"{directory}/{name}", task_file, found)
    except OSError as error:
        found.unreadable[str(error.filename)] = error.strerror or str(error)
    return found


def _add_references(spool: Spool, path: str, task_file: TaskFile, found: References) -> None:
    try:
        header = read_task(spool, path, task_file)
    except NoKey:
        raise
    except OSError as error:
        # it moved, and is found in its new place; but ESTALE alone does not say that
        if error.errno not in files.GONE or (error.errno == errno.ESTALE and not _is_gone(path)):
            found.unreadable[path] = error.strerror or str(error)
    except BadTaskFile as error:
        # a file in tmp/ that is not complete has a live writer with a lease, or none
        if os.path.dirname(path) != spool.layout.tmp:
            found.unreadable[path] = str(error)
    except SpoolpoolError as error:  # of a newer version, or not signed
        found.unreadable[path] = str(error)
    else:
        found.objects.update(objects_of(spool, header))


def _is_gone(path: str) -> bool:
    directory, name = os.path.split(path)
    return name not in files.list_names(directory, certain=True)

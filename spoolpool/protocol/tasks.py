"""Task files: read their headers, move them to their buckets."""

from __future__ import annotations

import os
from collections.abc import Iterator

from spoolpool.errors import BadTaskFile
from spoolpool.format.headers import TaskHeader, decode_task
from spoolpool.format.names import TaskFile, parse_lane
from spoolpool.protocol.record_files import read_first
from spoolpool.protocol.spool import Spool
from spoolpool.security.signing import task_label
from spoolpool.system import files
from spoolpool.system.accounts import account_name

_BUCKETS = 5  # times that a bucket is made anew: a claimer that finds it empty may remove it before the task arrives


def read_task(spool: Spool, path: str, task_file: TaskFile) -> TaskHeader:
    """Return the header of the task file at a path; raises as :func:`read_owned_task`."""
    return read_owned_task(spool, path, task_file)[0]


def read_owned_task(spool: Spool, path: str, task_file: TaskFile) -> tuple[TaskHeader, int]:
    """Return the header of the task file at a path, and the account that owns it.

    Raises ``OSError`` as open(2), and :class:`SpoolpoolError` for a file that is no task.
    """
    with files.reading(path, None) as (fd, _):
        return read_opened_task(spool, fd, path, task_file)


def read_opened_task(spool: Spool, fd: int, path: str, task_file: TaskFile) -> tuple[TaskHeader, int]:
    """As :func:`read_owned_task`, for an open file."""
    status = os.fstat(fd)
    header = decode_task(read_header_data(spool, fd, status.st_size, path, task_file), path)
    lane = parse_lane(header.lane)
    if spool.shared and (lane is None or lane.user != status.st_uid):
        raise BadTaskFile(
            f"{path} belongs to {account_name(status.st_uid)}, and says that it is of lane {header.lane}."
        )
    return header, status.st_uid


def read_header_data(spool: Spool, fd: int, size: int, path: str, task_file: TaskFile) -> bytes:
    """Return the bytes of the header of an opened task file; of a pack that is the first record."""
    label = task_label(task_file.task)
    if task_file.calls:
        return read_first(spool, fd, path, label).header
    return spool.read_header(fd, size, path, label)


def task_directories(spool: Spool) -> Iterator[str]:
    """Yield the directories of all tasks in the order in which a task moves, without ``tmp/``.

    Raises ``OSError`` where one cannot be listed: that does not mean that it is empty.
    """
    where = spool.layout
    yield where.waiting
    for lane in filter(parse_lane, files.list_names(where.ready, certain=True)):
        yield from (where.bucket(lane, bucket) for bucket in files.list_names(where.lane(lane), certain=True))
    yield where.claimed
    yield from (f"{where.results}/{session}" for session in files.list_names(where.results, certain=True))
    yield where.failed


def move_to_bucket(spool: Spool, source: str, header: TaskHeader, task_file: TaskFile) -> bool:
    """Rename a task file to its bucket, and to the name ``task_file``; return whether this call did it.

    If not, another process moved it, which is just as good. ``OSError`` as rename(2), also if the bucket is removed as
    often as it is made; then the task file is where it was.
    """
    for attempt in range(_BUCKETS + 1):
        try:
            bucket = spool.bucket(header.lane, header.bucket)
            files.move(source, f"{bucket}/{task_file.name}")
            return True
        except OSError as error:
            if error.errno not in files.GONE:
                raise
            # the bucket was removed as empty, or the task file was moved: then a new bucket would be left over
            if files.is_missing(source):
                break
            if attempt == _BUCKETS:
                raise
            spool.make_directories(spool.layout.bucket(header.lane, header.bucket))
    return False

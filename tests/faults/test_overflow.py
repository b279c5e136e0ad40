"""A large file of a spool in memory is two files: a process may die or fail at any moment while it writes them.

The large one is complete before the short one exists. So a short file always leads to its content; a large one may be
left alone by a death, and goes with its spool.
"""

from __future__ import annotations

import errno
import itertools
from pathlib import Path

import pytest

from spoolpool.errors import BadTaskFile
from spoolpool.format import envelope
from spoolpool.protocol import overflow
from spoolpool.protocol.object_removal import remove_object
from spoolpool.protocol.objects import put_object, read_object
from spoolpool.protocol.spool import Spool
from spoolpool.security.trust import Trust
from spoolpool.system import files
from tests.faults.disk import CHANGES, CRASHED, OPERATIONS, RAISED, Disk, Fault, at, in_child

LABEL = "outcome/session/name"
CONTENT = b"l" * (overflow.LARGE + 1)

DEATHS = [Fault("before"), Fault("after")]
ERRORS = [Fault("before", errno.ENOSPC), Fault("after", errno.EIO), Fault("before", errno.EACCES)]


def new_spool(directory: Path, number: int) -> Spool:
    """Create a spool with a second directory, as an executor does."""
    disk, memory = directory / f"disk{number}", directory / f"memory{number}"
    disk.mkdir()
    return Spool.create(memory, durability="none", temporary=True, overflow_in=str(disk))


def second(spool: Spool) -> Path:
    assert spool.overflow is not None
    return Path(spool.overflow.path)


def write(spool: Spool) -> None:
    spool.write(f"{spool.layout.tmp}/file", LABEL, envelope.pack(b"{}", b"", [CONTENT]))


def read(spool: Spool) -> bytes | None:
    """Return the content of the file, as another process reads it; None if there is none."""
    path = f"{spool.layout.tmp}/file"
    try:
        with files.reading(path, Trust().check) as (fd, status):
            return bytes(Spool(spool.path).read(fd, status.st_size, path, LABEL).buffers[0])
    except FileNotFoundError:
        return None
    except BadTaskFile:  # a short file that is itself torn, as any file in tmp/ may be
        return None


@pytest.mark.parametrize("fault", DEATHS, ids=lambda each: each.when)
def test_a_short_file_leads_to_its_content_wherever_its_writer_died(tmp_path: Path, fault: Fault) -> None:
    alone = 0
    for number in itertools.count(1):
        spool = new_spool(tmp_path, number)
        status = in_child(Disk(at(number, fault), only=CHANGES), lambda spool=spool: write(spool))  # type: ignore[misc]
        assert status in (0, CRASHED)
        content = read(spool)
        assert content in (None, CONTENT)
        left = list(second(spool).iterdir())
        assert len(left) <= 1
        alone += content is None and len(left) == 1
        spool.remove()
        assert not list(tmp_path.glob("disk*/*")), "a large file goes with its spool"
        if status == 0:
            break
    assert number > 3 and alone, "deaths between the two writes were among them"


@pytest.mark.parametrize("fault", ERRORS, ids=lambda each: f"{each.when} {errno.errorcode[each.error]}")
def test_a_write_that_fails_leaves_no_large_file(tmp_path: Path, fault: Fault) -> None:
    for number in itertools.count(1):
        spool = new_spool(tmp_path, number)
        disk = Disk(at(number, fault), only=CHANGES - {"unlink"})
        status = in_child(disk, lambda spool=spool: write(spool))  # type: ignore[misc]
        assert status in (0, RAISED)
        if status == RAISED:
            assert read(spool) is None and not list(second(spool).iterdir())
        else:
            assert read(spool) == CONTENT
            break
    assert number > 3


@pytest.mark.parametrize("fault", DEATHS, ids=lambda each: each.when)
def test_an_object_that_was_removed_to_any_part_can_be_put_again(tmp_path: Path, fault: Fault) -> None:
    for number in itertools.count(1):
        spool = new_spool(tmp_path, number)
        name = put_object(spool, b"", [CONTENT], "writer")
        status = in_child(Disk(at(number, fault), only=OPERATIONS), lambda: remove_object(spool, name))  # noqa: B023
        assert status in (0, CRASHED)
        assert put_object(Spool(spool.path), b"", [CONTENT], "other") == name
        assert bytes(read_object(Spool(spool.path), name, Trust()).buffers[0]) == CONTENT
        if status == 0:
            assert len(list(second(spool).iterdir())) == 1
            break
        spool.remove()
        assert not list(tmp_path.glob("disk*/*"))
    assert number > 3

"""Large files of a temporary spool in memory, which lie in a second directory."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from spoolpool.errors import BadTaskFile, NotTrusted, SpoolpoolError
from spoolpool.format import envelope
from spoolpool.format.envelope import Envelope
from spoolpool.protocol import object_cache, object_removal, objects, overflow
from spoolpool.protocol.spool import Spool
from spoolpool.security.trust import Trust
from spoolpool.system import files, memory, mounts

SMALL = b"s" * 100
LARGE = b"l" * (overflow.LARGE + 1)


@pytest.fixture
def two(tmp_path: Path) -> Spool:
    """A spool with a second directory."""
    (tmp_path / "disk").mkdir()
    return Spool.create(tmp_path / "memory", durability="none", temporary=True, overflow_in=str(tmp_path / "disk"))


def second(spool: Spool) -> Path:
    assert spool.overflow is not None
    return Path(spool.overflow.path)


def write(spool: Spool, content: bytes, label: str = "outcome/session/name", name: str = "file") -> str:
    path = f"{spool.path}/tmp/{name}"
    spool.write(path, label, envelope.pack(b'{"the": "header"}', content[:10], [content[10:]]))
    return path


def read(spool: Spool, path: str, label: str = "outcome/session/name") -> Envelope:
    with files.reading(path, Trust().check) as (fd, status):
        assert spool.read_header(fd, status.st_size, path, label) == b'{"the": "header"}'
        return spool.read(fd, status.st_size, path, label)


@pytest.mark.parametrize("content", [SMALL, LARGE])
def test_large_files_alone_lie_in_the_second_directory(two: Spool, content: bytes) -> None:
    path = write(two, content)
    found = read(Spool(two.path), path)
    assert bytes(found.payload) + bytes(found.buffers[0]) == content
    assert len(list(second(two).iterdir())) == (content is LARGE)
    assert os.path.getsize(path) < 2 * overflow._MEDIUM
    two.remove()
    assert not os.path.exists(two.path) and not second(two).exists()


def test_a_file_without_room_in_memory_goes_into_the_second_directory(
    two: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"m" * (overflow._MEDIUM // 2)
    create = files.create

    def full(path: str, parts: Any, **options: Any) -> None:
        if path.startswith(two.path) and sum(map(len, parts)) > envelope.PAGE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        create(path, parts, **options)

    monkeypatch.setattr(files, "create", full)
    path = write(two, content)
    assert len(list(second(two).iterdir())) == 1
    found = read(two, path)
    assert bytes(found.payload) + bytes(found.buffers[0]) == content


def test_files_of_some_size_leave_room_in_memory_for_smaller_ones(two: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "free_space", lambda _: overflow._RESERVE)
    write(two, b"m" * overflow._MEDIUM, name="medium")
    write(two, SMALL, name="small")
    assert len(list(second(two).iterdir())) == 1


def test_files_of_some_size_leave_memory_to_the_control_group(two: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    available = overflow._MEMORY
    monkeypatch.setattr(memory, "usable", lambda: memory.Memory(1 << 40, available))
    write(two, b"m" * overflow._MEDIUM, name="first")
    assert list(second(two).iterdir()) == []
    available -= 1
    for number in range(overflow._LOOK // overflow._MEDIUM):
        write(two, b"m" * overflow._MEDIUM, name=f"next {number}")
        if list(second(two).iterdir()):
            break
    assert len(list(second(two).iterdir())) == 1
    write(two, SMALL, name="small")
    assert len(list(second(two).iterdir())) == 1


def test_a_file_for_which_there_is_no_room_anywhere_leaves_nothing(two: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: str, *_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    create = files.create

    def full_in_memory(path: str, *given: Any, **more: Any) -> None:
        (full if path.startswith(two.path) else create)(path, *given, **more)

    monkeypatch.setattr(files, "create", full)
    with pytest.raises(OSError, match="No space"):
        write(two, LARGE)
    monkeypatch.setattr(files, "create", full_in_memory)  # the large file fits, and the short one does not
    with pytest.raises(OSError, match="No space"):
        write(two, LARGE)
    assert list(second(two).iterdir()) == [] and os.listdir(f"{two.path}/tmp") == []


def test_files_are_removed_that_this_process_has_used(two: Spool) -> None:
    path = write(two, LARGE)
    other = Spool(two.path)
    assert other.overflow is not None
    other.overflow.remove("outcome/session/name")
    assert len(list(second(two).iterdir())) == 1
    read(other, path)
    other.overflow.remove("outcome/session/name", "task/other")
    assert list(second(two).iterdir()) == []
    with pytest.raises(BadTaskFile, match="is missing: something has removed it"):
        read(two, path)


def test_large_objects_are_stored_once(two: Spool) -> None:
    name = objects.put_object(two, b"payload", [LARGE], "writer")
    stamp = os.stat(two.layout.object(name, None)).st_ino
    assert objects.put_object(two, b"payload", [LARGE], "writer") == name
    assert os.stat(two.layout.object(name, None)).st_ino == stamp
    assert bytes(objects.read_object(two, name, Trust()).buffers[0]) == LARGE
    assert len(list(second(two).iterdir())) == 1
    assert object_removal.remove_object(two, name)
    assert list(second(two).iterdir()) == []


def test_buffers_of_large_objects_are_read_for_several_calls(two: Spool) -> None:
    name = objects.put_object(two, b"", [LARGE], "writer")
    cache = object_cache.ObjectCache(two, Trust())
    for _ in range(3):
        (buffer,) = cache.fill({name: [0]}, [])
        assert bytes(buffer) == LARGE
    assert bytes(cache.content(name).buffers[0]) == LARGE


@pytest.mark.parametrize("change", ["shorter", "other content", "link", "hard link"])
def test_a_changed_file_is_not_read(two: Spool, tmp_path: Path, change: str) -> None:
    path = write(two, LARGE)
    (target,) = second(two).iterdir()
    content = target.read_bytes()
    if change == "shorter":
        target.write_bytes(content[:-1])
    elif change == "other content":
        write(two, LARGE.replace(b"l", b"x"), name="other")
        (other,) = (each for each in second(two).iterdir() if each != target)
        other.replace(target)
    elif change == "link":
        target.rename(tmp_path / "elsewhere")
        target.symlink_to(tmp_path / "elsewhere")
    else:
        os.link(target, tmp_path / "elsewhere")
    with pytest.raises((SpoolpoolError, OSError)):
        read(two, path)


@pytest.mark.parametrize("change", ["another directory", "a link", "open to others", "no directory"])
def test_a_second_directory_that_others_could_have_made_is_refused(two: Spool, tmp_path: Path, change: str) -> None:
    place = second(two)
    if change == "another directory":
        config = json.loads(Path(two.path, "spool.json").read_text())
        (tmp_path / "home").mkdir(0o700)
        Path(two.path, "spool.json").write_text(json.dumps({**config, "overflow": str(tmp_path / "home")}))
    elif change == "open to others":
        place.chmod(0o750)
    else:
        place.rename(tmp_path / "elsewhere")
        place.symlink_to(tmp_path / "elsewhere") if change == "a link" else place.touch()
    with pytest.raises(NotTrusted, match="large values"):
        Spool(two.path)


def test_a_spool_whose_large_values_are_gone_can_be_opened_and_removed(two: Spool) -> None:
    second(two).rmdir()
    Spool(two.path).remove()
    assert not os.path.exists(two.path)


def test_the_content_of_a_task_cannot_lead_out_of_an_ordinary_spool(spool: Spool, two: Spool) -> None:
    path = write(two, LARGE)
    os.rename(path, f"{spool.path}/tmp/file")
    assert len(read(spool, f"{spool.path}/tmp/file").payload) == overflow._CONTENT.size

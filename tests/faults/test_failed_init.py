"""A spool that cannot be made leaves nothing behind, whichever step fails."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

import pytest

from spoolpool.errors import BadRequest, NotTrusted, SpoolpoolError
from spoolpool.protocol.spool import Spool
from spoolpool.system import files
from tests.faults.disk import CHANGES, NAME_CHANGES, OPERATIONS, Disk, Fault, at
from tests.support.accounts import as_root, unused_id

FAULTS = [
    (Fault("before", errno.EACCES), OPERATIONS),
    (Fault("before", errno.ENOSPC), CHANGES),
    (Fault("after", errno.EIO), NAME_CHANGES - {"unlink", "rmdir"}),
]


def tree(path: Path) -> dict[str, int]:
    return {str(each): stat.S_IMODE(each.lstat().st_mode) for each in sorted([path, *path.rglob("*")])}


@pytest.mark.parametrize("existing", [False, True], ids=["new", "existing"])
@pytest.mark.parametrize("mode", [0o755, 0o777], ids=["protected", "replaceable"])
def test_spool_that_cannot_be_made_leaves_nothing_behind(tmp_path: Path, mode: int, existing: bool) -> None:
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(mode)
    target = place / "one" / "two" / "spool"
    if existing:
        target.mkdir(parents=True)
    before = tree(place)

    def clear() -> None:
        shutil.rmtree(place / "one")
        if existing:
            target.mkdir(parents=True)

    complete = Disk()
    with complete.installed():
        Spool.create(target, durability="none")
    clear()
    failed = 0
    for fault, kinds in FAULTS:
        for number in range(1, complete.count + 1):
            disk = Disk(at(number, fault), only=kinds)
            try:
                with disk.installed():
                    Spool.create(target, durability="none")
            except SpoolpoolError:
                failed += 1
            else:
                clear()
            assert tree(place) == before, disk.struck
            if not disk.struck:
                break
    assert failed > 40


@as_root
def test_directory_whose_owner_is_mapped_is_removed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = unused_id()
    make = files.make_directory

    def squashed(path: str, mode: int = 0o700) -> bool:
        made = make(path, mode)
        os.chown(path, other, other)  # as NFS does for root
        return made

    monkeypatch.setattr(files, "make_directory", squashed)
    with pytest.raises(NotTrusted, match="root squash"):
        Spool.create(tmp_path / "new" / "spool")
    assert os.listdir(tmp_path) == []


def test_interrupted_init_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **_more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "move", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Spool.create(tmp_path / "spool")
    assert os.listdir(tmp_path) == []


def test_refused_init_changes_nothing_in_the_directory(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir(mode=0o755)
    (tmp_path / "spool" / "thesis.tex").touch()
    before = tree(tmp_path)
    with pytest.raises(BadRequest, match="is not empty"):
        Spool.create(tmp_path / "spool")
    assert tree(tmp_path) == before

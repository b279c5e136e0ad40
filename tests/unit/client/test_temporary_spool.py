"""Location of the spool of an embedded executor."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from spoolpool import Executor, Mpiexec, settings
from spoolpool.client import temporary_spool
from spoolpool.errors import BadRequest
from spoolpool.protocol.spool import Spool
from spoolpool.security import known_spools
from spoolpool.system import files, memory, mounts
from tests.support import tasks
from tests.support.waiting import wait_until


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Current directory that counts as shared by all nodes."""
    monkeypatch.delenv(settings.ENV_SPOOL, raising=False)
    monkeypatch.setattr(temporary_spool, "_NODE_LOCAL", ("/dev/shm",))
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(other))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parent_of(spool: Spool) -> str:
    assert spool.config.temporary
    return os.path.dirname(spool.path)


def test_a_spool_for_one_host_is_below_the_temporary_directory(shared: Path) -> None:
    assert parent_of(temporary_spool.create_temporary_spool(one_host=True, output=0)) == str(shared / "other")


def test_a_spool_for_several_hosts_is_below_the_current_directory_or_the_configured_one(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert parent_of(temporary_spool.create_temporary_spool(one_host=False, output=0)) == str(shared)
    named = shared / "named"
    named.mkdir()
    monkeypatch.setenv(settings.ENV_SPOOL, "named")
    assert parent_of(temporary_spool.create_temporary_spool(one_host=False, output=0)) == str(named)


def test_a_spool_is_created_beside_a_configured_spool(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = Spool.create(shared / "spool", durability="none")
    monkeypatch.setenv(settings.ENV_SPOOL, named.path)
    assert parent_of(temporary_spool.create_temporary_spool(one_host=False, output=0)) == str(shared)


def test_a_node_local_directory_is_rejected(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shared / "link").symlink_to(shared / "other")
    monkeypatch.chdir("link")
    with pytest.raises(BadRequest, match=r"each node has its own.*SPOOLPOOL_DIR"):
        temporary_spool.create_temporary_spool(one_host=False, output=0)
    assert os.listdir(shared / "other") == []


def test_a_temporary_spool_is_not_recorded_and_its_config_makes_no_spool_temporary(shared: Path) -> None:
    made = temporary_spool.create_temporary_spool(one_host=True, output=0)
    assert made.temporary and Spool(made.path).temporary
    assert not os.path.exists(known_spools.record_path(made.path))
    known_spools.forget(made.path)
    assert Spool(made.path).config.temporary and not Spool(made.path).temporary
    made.remove()
    assert not os.path.exists(made.path)


# -- in memory


@pytest.fixture
def memory_place(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Directory that counts as one in memory."""
    place = shared / "memory"
    place.mkdir()
    monkeypatch.setenv(settings.ENV_SHM, str(place))
    mount_of = mounts.mount_of
    monkeypatch.setattr(mounts, "mount_of", lambda path: (path, "tmpfs", "") if path == str(place) else mount_of(path))
    return place


def test_a_spool_for_one_host_lies_in_memory_with_its_large_values_on_disk(memory_place: Path) -> None:
    made = temporary_spool.create_temporary_spool(one_host=True, output=0)
    assert parent_of(made) == str(memory_place)
    assert made.overflow is not None and os.path.dirname(made.overflow.path) == tempfile.gettempdir()
    made.remove()
    assert os.listdir(memory_place) == os.listdir(tempfile.gettempdir()) == []


def test_dev_shm_and_the_runtime_directory_are_looked_at_in_this_order(
    memory_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(settings.ENV_SHM)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(memory_place))
    monkeypatch.setattr(mounts, "mount_of", lambda path: (path, "tmpfs", ""))
    found = list(temporary_spool.memory_directories())
    assert found[-1] == str(memory_place) and set(found) <= {"/dev/shm", str(memory_place)}


def _room(**changes: int) -> Any:
    found = os.statvfs("/")
    return SimpleNamespace(**{name: getattr(found, name) for name in dir(found) if name.startswith("f_")} | changes)


@pytest.mark.parametrize(
    "obstacle",
    ["switched off", "missing", "on disk", "full", "no files left", "not writable", "small control group", "shared"],
)
def test_a_place_in_memory_that_cannot_be_used_changes_only_the_place(
    memory_place: Path, monkeypatch: pytest.MonkeyPatch, obstacle: str
) -> None:
    statvfs, access = os.statvfs, os.access
    if obstacle == "switched off":
        monkeypatch.setenv(settings.ENV_SHM, "")
    elif obstacle == "missing":
        monkeypatch.setenv(settings.ENV_SHM, str(memory_place / "missing"))
    elif obstacle == "on disk":
        monkeypatch.setattr(mounts, "mount_of", lambda path: (path, "ext4", ""))
    elif obstacle in ("full", "no files left"):
        changes = {"f_bavail": 1} if obstacle == "full" else {"f_favail": 1}
        monkeypatch.setattr(
            os, "statvfs", lambda path: _room(**changes) if path == str(memory_place) else statvfs(path)
        )
    elif obstacle == "not writable":
        monkeypatch.setattr(os, "access", lambda path, mode: path != str(memory_place) and access(path, mode))
    elif obstacle == "small control group":
        monkeypatch.setattr(memory, "usable", lambda: memory.Memory(1 << 30, 1 << 20))
    else:
        monkeypatch.setattr(mounts, "is_local", lambda _: False)
    made = temporary_spool.create_temporary_spool(one_host=True, output=0)
    assert parent_of(made) == tempfile.gettempdir() and made.overflow is None
    assert os.listdir(memory_place) == []


def test_a_failure_in_memory_leaves_nothing_and_changes_only_the_place(
    memory_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = files.create

    def full(path: str, *given: Any, **more: Any) -> None:
        if path.startswith(str(memory_place)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        create(path, *given, **more)

    monkeypatch.setattr(files, "create", full)
    made = temporary_spool.create_temporary_spool(one_host=True, output=0)
    assert parent_of(made) == tempfile.gettempdir()
    assert os.listdir(memory_place) == [] and os.listdir(tempfile.gettempdir()) == [os.path.basename(made.path)]


@pytest.mark.parametrize("what", ["several hosts", "kept output"])
def test_a_spool_for_several_hosts_or_with_output_is_not_in_memory(memory_place: Path, what: str) -> None:
    output = 4096 if what == "kept output" else 0
    made = temporary_spool.create_temporary_spool(one_host=what != "several hosts", output=output)
    assert os.listdir(memory_place) == [] and made.overflow is None


def test_large_values_of_an_executor_are_on_disk_and_its_places_are_shown(memory_place: Path) -> None:
    disk = Path(tempfile.gettempdir())
    with Executor(max_workers=1, backend="local") as executor:
        shown = repr(executor)
        assert f"of {memory_place}/spoolpool-" in shown and f"(large values: {disk}/spoolpool-values-" in shown
        value = executor.submit(bytes, 1 << 20)
        doubled = executor.submit(tasks.keywords, x=value, y=bytes(1 << 20))
        assert doubled.result() == {"x": bytes(1 << 20), "y": bytes(1 << 20)}
        sizes = [os.path.getsize(each) for each in memory_place.glob("*/**/*")]
        assert max(sizes) < 1 << 18
        wait_until(lambda: not list(disk.glob("*/*")), "the files of delivered values are removed")
    assert os.listdir(memory_place) == os.listdir(disk) == []


def test_calls_share_a_large_value_of_a_spool_in_memory(memory_place: Path) -> None:
    value = bytearray(32 << 20)
    with Executor(max_workers=1, backend="local") as executor:
        assert [executor.submit(len, value).result() for _ in range(3)] == [len(value)] * 3


def test_options_that_may_lead_mpiexec_to_other_hosts_keep_the_spool_out_of_memory(memory_place: Path) -> None:
    with Executor(max_workers=1, backend=Mpiexec(extra=["--host", "localhost"])) as executor:
        assert os.path.dirname(executor.info["spool"]) == tempfile.gettempdir()


def test_large_results_are_cached(memory_place: Path, tmp_path: Path) -> None:
    with Executor(max_workers=1, backend="local", cache=tmp_path / "cache") as executor:
        assert executor.submit(bytes, 1 << 20).result() == bytes(1 << 20)
    with Executor(max_workers=1, backend="local", cache=tmp_path / "cache") as executor:
        assert executor.submit(bytes, 1 << 20).done()

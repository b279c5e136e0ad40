"""Location of the spool of an embedded executor."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from spoolpool import settings
from spoolpool.client import temporary_spool
from spoolpool.errors import BadRequest
from spoolpool.protocol.spool import Spool
from spoolpool.security import known_spools


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

"""Records of known spools: files in the configuration directory, written by concurrent processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from spoolpool.protocol.spool import Spool
from spoolpool.security import known_spools
from spoolpool.security.known_spools import SpoolIdentity
from spoolpool.system import files
from spoolpool.system.environment import config_directory


@pytest.fixture(autouse=True)
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the records, which does not exist yet."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(known_spools, "_seen", {})
    return tmp_path / "config" / "spoolpool" / "known_spools"


def identity(path: str = "/shared/spool", **changes: object) -> SpoolIdentity:
    fields = {"path": path, "id": "0123", "owner": os.geteuid(), "mode": "private"}
    return SpoolIdentity(**{**fields, **changes})  # type: ignore[arg-type]


def in_new_process(path: str = "/shared/spool") -> SpoolIdentity | None:
    known_spools._seen.clear()
    return known_spools.recall(path)


def test_identity_is_remembered_by_the_process_and_by_its_successors(records: Path) -> None:
    assert known_spools.recall("/shared/spool") is None
    known_spools.remember(identity())
    assert known_spools.recall("/shared/spool") == in_new_process() == identity()
    assert in_new_process("/shared/other") is None


def test_first_of_two_processes_writes_the_record(records: Path) -> None:
    known_spools.remember(identity(id="a"))
    known_spools._seen.clear()
    known_spools.remember(identity(id="b"))  # it has looked for the record before the first one wrote it
    found = in_new_process()
    assert found is not None and found.id == "a"
    known_spools.remember(identity(id="b"), replace=True)
    found = in_new_process()
    assert found is not None and found.id == "b"
    assert len(os.listdir(records)) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b'{"path": 1}', b"\xff"])
def test_unreadable_record_counts_as_none_and_is_replaced(records: Path, content: bytes) -> None:
    known_spools.remember(identity())
    (record,) = records.iterdir()
    record.write_bytes(content)
    assert in_new_process() is None
    known_spools.remember(identity())
    assert in_new_process() == identity()


def test_record_of_another_path_does_not_count(records: Path) -> None:
    known_spools.remember(identity())
    (record,) = records.iterdir()
    record.rename(known_spools.record_path("/shared/other"))
    assert in_new_process("/shared/other") is None


def test_number_of_records_is_bounded_and_those_of_signed_and_foreign_spools_stay(
    records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_spools, "_MOST", 10)
    known_spools.remember(identity("/signed", signed=True))
    known_spools.remember(identity("/foreign", owner=os.geteuid() + 1))
    for number in range(30):
        known_spools.remember(identity(f"/own/{number}"))
    assert len(os.listdir(records)) <= 10
    assert in_new_process("/signed") and in_new_process("/foreign") and in_new_process("/own/29")


def test_opening_a_known_spool_changes_no_record(
    tmp_path: Path, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Spool.create(tmp_path / "spool").path
    known_spools._seen.clear()
    monkeypatch.setattr(files, "create", lambda *_, **__: pytest.fail("a file was written"))
    monkeypatch.setattr(files, "move", lambda *_, **__: pytest.fail("a file was moved"))
    Spool(path)
    known_spools._seen.clear()
    Spool(path)


def test_new_spool_at_a_known_path_replaces_the_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = Spool.create(tmp_path / "spool")
    first.remove()
    second = Spool.create(tmp_path / "spool")
    assert not caplog.text
    found = in_new_process(second.path)
    assert found is not None and found.id == second.config.id != first.config.id


@pytest.mark.parametrize("home", ["~", "missing"])  # "~": an account that the database does not know
def test_no_home_is_made_for_records(home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.chdir(tmp_path)
    path = home if home == "~" else str(tmp_path / home)
    monkeypatch.setattr(os.path, "expanduser", lambda _: path)
    assert os.path.isabs(config_directory())
    known_spools.remember(identity())
    assert os.listdir(tmp_path) == [] and not os.path.exists(config_directory())
    assert known_spools.recall("/shared/spool") == identity()

"""Removal of files in memory at a logout, by files like those of systemd."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from spoolpool.system import logind

REGULAR = 1234


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Root directory of a host with systemd."""
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    return tmp_path


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(f"[Login]\n{text}\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("main", "further", "expected"),
    [
        (None, None, True),
        ("#RemoveIPC=yes", None, True),
        ("#RemoveIPC=no", None, False),
        ("RemoveIPC=no", None, False),
        ("#RemoveIPC=no\nRemoveIPC=yes", None, True),
        ("RemoveIPC = off", None, False),
        ("#RemoveIPC=no", "RemoveIPC=yes", True),
        ("RemoveIPC=yes", "RemoveIPC=no", False),
        ("#KillUserProcesses=no", None, True),
    ],
)
def test_configuration_decides(root: Path, main: str | None, further: str | None, expected: bool) -> None:
    if main is not None:
        write(root, "etc/systemd/logind.conf", main)
    if further is not None:
        write(root, "etc/systemd/logind.conf.d/site.conf", further)
    assert logind.removes_files(REGULAR, str(root)) is expected


def test_files_of_accounts_that_linger_and_of_system_accounts_stay(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logind, "account_name", lambda uid: "ada")
    assert logind.removes_files(REGULAR, str(root))
    assert not logind.removes_files(0, str(root))
    (root / "var/lib/systemd/linger").mkdir(parents=True)
    (root / "var/lib/systemd/linger/ada").touch()
    assert not logind.removes_files(REGULAR, str(root))


def test_hosts_without_systemd_remove_nothing(tmp_path: Path) -> None:
    assert not logind.removes_files(REGULAR, str(tmp_path))
    assert logind.removes_files(os.geteuid()) in (True, False)  # of this host: no error

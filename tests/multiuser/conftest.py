"""Accounts for all tests of this directory, and scenes with them."""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import spoolpool
from spoolpool.calls import pickling
from tests.multiuser.accounts import People, Scene, fail_at_first
from tests.support.accounts import public_directory, why_not_as_another
from tests.support.fake_worker import Clock

LATE = ("encodings.ascii", "filelock", "grp", "pwd", "watchdog.observers.inotify_c")
"""Modules that the package imports late."""


@pytest.fixture(scope="session")
def people() -> Iterator[People]:
    """Accounts for the whole session: the package caches account names, so that no id may change its name."""
    if reason := why_not_as_another():
        pytest.skip(reason)
    for name in (*LATE, *(each.name for each in pkgutil.walk_packages(spoolpool.__path__, "spoolpool."))):
        with contextlib.suppress(ImportError):  # a dependency is not installed
            importlib.import_module(name)  # now: the accounts may lack access to the directory of the interpreter
    pickling.dumps((fail_at_first, (), {}))
    assert shutil.which("useradd"), "useradd is not installed (Debian package: passwd)"
    everybody = People()
    try:
        yield everybody
    finally:
        everybody.remove()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Clock that the tests advance."""
    return Clock.installed(monkeypatch)


@pytest.fixture
def public() -> Iterator[Path]:
    """Directory that all accounts can enter, for their spools."""
    with public_directory() as path:
        yield path


@pytest.fixture(params=[False, True], ids=["protected", "replaceable"])
def open_parent(request: pytest.FixtureRequest) -> bool:
    """Whether all accounts can write to the directory above the spool of a scene."""
    return bool(request.param)


@pytest.fixture
def group(people: People, public: Path, clock: Clock, open_parent: bool) -> Scene:
    """Scene on a spool of mode group: alice, bob and mallory are members of its project."""
    return Scene(people, public, "group", clock, open_parent=open_parent)


@pytest.fixture
def dropbox(people: People, public: Path, clock: Clock, open_parent: bool) -> Scene:
    """Scene on a dropbox: a spool of a service to which every account may submit tasks."""
    return Scene(people, public, "dropbox", clock, open_parent=open_parent)


@pytest.fixture(params=["group", "dropbox"])
def scene(request: pytest.FixtureRequest, people: People, public: Path, clock: Clock, open_parent: bool) -> Scene:
    """Scene on a spool of mode group, then on a dropbox."""
    return Scene(people, public, request.param, clock, open_parent=open_parent)

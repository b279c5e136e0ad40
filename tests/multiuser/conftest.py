"""Accounts that exist for all tests of this folder, and scenes for them."""

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
"""What the package imports late."""


@pytest.fixture(scope="session")
def people() -> Iterator[People]:
    """The accounts. The package remembers the name of an account, so that no number may get another name."""
    if reason := why_not_as_another():
        pytest.skip(reason)
    for name in (*LATE, *(each.name for each in pkgutil.walk_packages(spoolpool.__path__, "spoolpool."))):
        with contextlib.suppress(ImportError):  # it needs what is not installed
            importlib.import_module(name)  # now: the accounts may not be allowed to read where the interpreter lies
    pickling.dumps((fail_at_first, (), {}))
    assert shutil.which("useradd"), "useradd is not installed (Debian package: passwd)"
    everybody = People()
    try:
        yield everybody
    finally:
        everybody.remove()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that the tests move."""
    return Clock.installed(monkeypatch)


@pytest.fixture
def public() -> Iterator[Path]:
    """Where spools lie that several accounts use."""
    with public_directory() as path:
        yield path


@pytest.fixture
def group(people: People, public: Path, clock: Clock) -> Scene:
    """A spool of a project, of which alice, bob and mallory are members."""
    return Scene(people, public, "group", clock)


@pytest.fixture
def dropbox(people: People, public: Path, clock: Clock) -> Scene:
    """A spool of a service, into which everybody may drop tasks."""
    return Scene(people, public, "dropbox", clock)


@pytest.fixture(params=["group", "dropbox"])
def scene(request: pytest.FixtureRequest, people: People, public: Path, clock: Clock) -> Scene:
    """Either."""
    return Scene(people, public, request.param, clock)

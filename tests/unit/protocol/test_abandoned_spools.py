"""Temporary spools whose processes were killed together with their groups, and everything that only looks like one."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoolpool.format.temporary_names import (
    Kind,
    TemporaryName,
    new_temporary_name,
    parse_temporary_name,
)
from spoolpool.protocol import abandoned_spools
from spoolpool.protocol.abandoned_spools import find_abandoned, removable, remove
from spoolpool.protocol.spool import Spool
from spoolpool.security import known_spools
from spoolpool.system import files
from spoolpool.system.processes import ProcessId
from tests.support.accounts import as_another, unused_id, why_not_as_another
from tests.support.waiting import wait_until

ID = "0123456789abcdef"


@pytest.fixture(scope="module")
def dead() -> TemporaryName:
    """Name that a process of this host made which has ended."""
    program = f"from spoolpool.format.temporary_names import *\nprint(new_temporary_name('spool', '{ID}'))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    name = parse_temporary_name(ended.stdout.strip())
    assert name is not None and name.id == ID
    return name


def text_of(name: TemporaryName) -> str:
    kind = "" if name.kind == "spool" else f"{name.kind}-"
    return f"spoolpool-{kind}{name.pid}.{name.start}.{name.place}-{name.id}"


def make_spool(place: Path, name: TemporaryName, *, temporary: bool = True, values: bool = False) -> Path:
    path = place / text_of(name)
    spool = Spool.create(path, durability="none", temporary=temporary, ident=name.id)
    known_spools.forget(spool.path)
    if values:
        second = place / text_of(name._replace(kind="values"))
        second.mkdir(mode=0o700)
        (second / ("f" * 32)).write_bytes(b"large")
    return path


def add_worker(path: Path, process: ProcessId) -> None:
    entry = path / "workers" / ("a" * 16)
    entry.mkdir()
    (entry / "info.json").write_bytes(msgspec.json.encode({"worker": "a" * 16, "process": process, "user": "me"}))


def sweep(place: Path) -> list[str]:
    return sorted(os.path.basename(each) for each in remove(find_abandoned([str(place)])))


@given(st.sampled_from(["spool", "values", "ranks"]), st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True))
def test_a_name_is_parsed_back_and_names_this_process(kind: Kind, ident: str) -> None:
    name = parse_temporary_name(new_temporary_name(kind, ident))
    assert name is not None and (name.kind, name.id, name.pid) == (kind, ident, os.getpid())
    assert not name.is_abandoned()


@pytest.mark.parametrize("ident", ["0123456789abcdef", "a-b", "1"])
def test_a_name_without_an_owner_is_never_abandoned(ident: str) -> None:
    name = parse_temporary_name(new_temporary_name("spool", ident, owned=False))
    assert name == TemporaryName("spool", ident) and not name.is_abandoned()


def test_spool_values_and_fifos_of_a_dead_process_are_removed(tmp_path: Path, dead: TemporaryName) -> None:
    spool = make_spool(tmp_path, dead, values=True)
    (spool / "objects" / "x").write_bytes(b"content")
    ranks = tmp_path / text_of(dead._replace(kind="ranks"))
    ranks.mkdir()
    os.mkfifo(ranks / "0")
    assert len(sweep(tmp_path)) == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("made", ["nothing", "the first directory", "all but its config"])
def test_what_a_process_was_making_when_it_died_is_removed(tmp_path: Path, dead: TemporaryName, made: str) -> None:
    if made == "all but its config":
        (make_spool(tmp_path, dead) / "spool.json").unlink()
    else:
        (tmp_path / text_of(dead) / ("tmp" if made == "the first directory" else "")).mkdir(parents=True)
    assert sweep(tmp_path) == [text_of(dead)]


@pytest.mark.parametrize("made", ["directory", "spool", "values"])
def test_directories_of_a_live_process_stay_from_the_beginning(tmp_path: Path, made: str) -> None:
    path = tmp_path / new_temporary_name("values" if made == "values" else "spool", ID)
    if made == "spool":
        Spool.create(path, durability="none", temporary=True)
    else:
        path.mkdir()
    assert sweep(tmp_path) == [] and path.exists()


@pytest.mark.parametrize(
    "other",
    [{"place": "0" * 12}, {"place": ""}, {"pid": 0}, {"pid": 9_999_999_999}, {"start": ""}],
    ids=["another host, boot or container", "unknown place", "no pid", "no such pid", "no start"],
)
def test_directories_of_other_hosts_and_containers_and_forged_names_stay(
    tmp_path: Path, dead: TemporaryName, other: dict[str, object]
) -> None:
    name = TemporaryName(**{**dead._asdict(), **other})  # type: ignore[arg-type]
    assert not name.is_abandoned()
    (tmp_path / text_of(name)).mkdir()
    (tmp_path / text_of(name._replace(kind="values"))).mkdir()
    assert sweep(tmp_path) == [] and len(list(tmp_path.iterdir())) == 2


def test_a_pid_that_was_reused_belongs_to_another_process(tmp_path: Path) -> None:
    here = ProcessId.of(os.getpid())
    name = parse_temporary_name(new_temporary_name("spool", ID))
    assert name is not None
    earlier = name._replace(start=str(int(here.start) - 1))
    (tmp_path / text_of(earlier)).mkdir()
    assert sweep(tmp_path) == [text_of(earlier)]


@pytest.mark.parametrize("process", ["alive", "on another host", "unreadable"])
def test_a_spool_with_a_group_that_may_be_alive_stays_with_its_values(
    tmp_path: Path, dead: TemporaryName, process: str
) -> None:
    path = make_spool(tmp_path, dead, values=True)
    here = ProcessId.of(os.getpid())
    add_worker(path, msgspec.structs.replace(here, boot="other") if process == "on another host" else here)
    if process == "unreadable":
        (path / "workers" / ("a" * 16) / "info.json").write_text("{")
    found = find_abandoned([str(tmp_path)])
    assert len(found) == 2 and removable(found) == [] and remove(found) == []
    assert Spool(path).config.temporary and len(list(tmp_path.iterdir())) == 2


def test_a_spool_whose_groups_have_died_is_removed(tmp_path: Path, dead: TemporaryName) -> None:
    path = make_spool(tmp_path, dead)
    add_worker(path, msgspec.structs.replace(ProcessId.of(os.getpid()), pid=dead.pid, start=dead.start))
    (path / "workers" / ("b" * 16)).mkdir()  # it was about to announce itself
    assert sweep(tmp_path) == [text_of(dead)]


@pytest.mark.parametrize("what", ["foreign file", "spool that is not temporary", "config that is none", "values"])
def test_a_directory_with_other_content_than_its_name_says_stays(
    tmp_path: Path, dead: TemporaryName, what: str
) -> None:
    if what == "values":
        path = tmp_path / text_of(dead._replace(kind="values"))
        path.mkdir()
        (path / "thesis.tex").touch()
    else:
        path = make_spool(tmp_path, dead, temporary=what != "spool that is not temporary")
        if what == "foreign file":
            (path / "thesis.tex").touch()
        elif what == "config that is none":
            (path / "spool.json").write_text("{")
    before = sorted(path.rglob("*"))
    assert sweep(tmp_path) == [] and sorted(path.rglob("*")) == before


@pytest.mark.parametrize("kind", ["spool", "values", "ranks"])
def test_links_are_not_followed(tmp_path: Path, dead: TemporaryName, kind: Kind) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "tmp").mkdir()
    (precious / "tmp" / "file").touch()
    places = tmp_path / "place"
    places.mkdir()
    (places / text_of(dead._replace(kind=kind))).symlink_to(precious)
    assert sweep(places) == []
    # links within a directory go, and their targets stay
    inside = make_spool(places, dead._replace(id="other"))
    (inside / "objects").rmdir()
    (inside / "objects").symlink_to(precious)
    (inside / "tmp" / "link").symlink_to(precious)
    assert sweep(places) == [inside.name]
    assert (precious / "tmp" / "file").exists()


def test_a_name_that_is_replaced_by_a_link_before_the_removal_is_not_followed(
    tmp_path: Path, dead: TemporaryName
) -> None:
    path = make_spool(tmp_path, dead)
    found = find_abandoned([str(tmp_path)])
    precious = path.rename(tmp_path / "precious")
    path.symlink_to(precious)
    assert remove(found) == [] and (precious / "spool.json").exists()


@pytest.mark.skipif(bool(why_not_as_another()), reason=why_not_as_another())
def test_directories_of_other_accounts_stay(tmp_path: Path, dead: TemporaryName) -> None:
    path = tmp_path / text_of(dead)
    path.mkdir()
    os.chown(path, unused_id(), -1)
    assert find_abandoned([str(tmp_path)]) == [] and path.exists()
    os.chown(path, os.geteuid(), -1)
    path.chmod(0o755)
    tmp_path.chmod(0o755)
    for each in tmp_path.parents:
        if not each.stat().st_mode & 0o001:
            return  # the other account cannot get here
    assert as_another(lambda: find_abandoned([str(tmp_path)])) == []


def test_a_place_that_cannot_be_listed_is_passed_over(tmp_path: Path, dead: TemporaryName) -> None:
    (tmp_path / "file").touch()
    (tmp_path / text_of(dead)).mkdir()
    places = [tmp_path / "missing", tmp_path / "file", tmp_path, tmp_path]
    assert len(find_abandoned(map(str, places))) == 1


def test_two_processes_remove_the_same_spools(tmp_path: Path, dead: TemporaryName) -> None:
    for number in range(20):
        path = make_spool(tmp_path, dead._replace(id=f"{number}"), values=True)
        for each in range(10):
            (path / "objects" / f"{each}").touch()
    found = find_abandoned([str(tmp_path)])
    barrier = threading.Barrier(2)
    failures: list[BaseException] = []

    def act() -> None:
        try:
            barrier.wait()
            remove(found)
        except BaseException as error:  # noqa: BLE001  the test fails with it
            failures.append(error)

    threads = [threading.Thread(target=act) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert failures == []
    remove(find_abandoned([str(tmp_path)]))
    assert list(tmp_path.iterdir()) == []


class Death(BaseException):
    """Stands for the death of the process that removes."""


def test_a_removal_that_died_is_continued(tmp_path: Path, dead: TemporaryName, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_spool(tmp_path, dead, values=True)

    def die(*_: object) -> None:
        raise Death

    with monkeypatch.context() as patch:
        patch.setattr(files, "remove_tree", die)
        with pytest.raises(Death):
            sweep(tmp_path)
    assert not (path / "spool.json").exists() and (path / "tmp").exists()
    assert len(sweep(tmp_path)) == 2


def test_directories_that_stay_do_not_hide_the_others(tmp_path: Path, dead: TemporaryName) -> None:
    for number in range(abandoned_spools._MOST):
        (tmp_path / text_of(dead._replace(id=f"stays{number}")) / "foreign").mkdir(parents=True)
    (tmp_path / text_of(dead)).mkdir()
    wait_until(lambda: sweep(tmp_path) == [text_of(dead)], "one of the searches returned it")


def test_a_search_returns_a_bounded_number(tmp_path: Path, dead: TemporaryName) -> None:
    for number in range(abandoned_spools._MOST + 5):
        (tmp_path / text_of(dead._replace(id=f"{number}"))).mkdir()
    assert len(sweep(tmp_path)) == abandoned_spools._MOST
    assert len(sweep(tmp_path)) == 5


def test_a_search_returns_a_bounded_number_of_each_place(tmp_path: Path, dead: TemporaryName) -> None:
    places = [str(tmp_path / each) for each in "abc"]
    for place in places:
        for number in range(abandoned_spools._MOST + 5):
            Path(place, text_of(dead._replace(id=f"{number}"))).mkdir(parents=True)
    found = [Path(each.path).parent for each in find_abandoned(places)]
    assert [found.count(Path(place)) for place in places] == [abandoned_spools._MOST] * 3

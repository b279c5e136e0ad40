"""Spools in directories that other accounts can write to, such as a project directory without the sticky bit.

The attacker ``mallory`` can rename the spool there and put anything in its place.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from spoolpool import Executor
from spoolpool.cli.spool import main
from spoolpool.errors import BadRequest, BrokenSpool, NotASpool, NotTrusted
from spoolpool.maintenance import check, garbage, repair
from spoolpool.protocol.heartbeat import Heartbeat
from spoolpool.protocol.spool import Spool
from spoolpool.security import known_spools
from spoolpool.security.permissions import Mode
from spoolpool.security.trust import Trust
from spoolpool.system import files, open_directory
from tests.multiuser.accounts import People, Person, Scene, in_account
from tests.support.fake_worker import Clock, Inbox
from tests.support.waiting import LIMIT, wait_until

pytestmark = pytest.mark.multiuser


class Project:
    """Project directory, root:project 2770, and the homes of the accounts."""

    def __init__(self, people: People, public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.people = people
        self.path = public / "project"
        self.path.mkdir()
        os.chown(self.path, 0, people.alice.groups[0])
        self.path.chmod(0o2770)
        self._homes = public / "homes"
        self._homes.mkdir()
        self._homes.chmod(0o711)
        self._patch = monkeypatch

    def home(self, person: Person) -> Path:
        """Set the home of the process to that of an account, which has forgotten all spools."""
        home = self._homes / person.name
        if not home.exists():
            home.mkdir(mode=0o700)
            os.chown(home, person.uid, person.gid)
        self._patch.setenv("HOME", str(home))
        self.forget()
        return home

    @staticmethod
    def forget() -> None:
        """Let the process forget what it has seen, like a new one."""
        known_spools._seen.clear()

    def make(self, by: Person, name: str = "spool", mode: Mode = "group", **options: object) -> Spool:
        """Create a spool in the directory."""
        self.home(by)
        group = {"private": None, "group": self.people.project, "dropbox": by.name}[mode]
        with by.acting():
            return Spool.create(self.path / name, mode=mode, group=group, durability="none", lease=0.3, **options)  # type: ignore[arg-type]

    def replace(self, mode: Mode = "group", by: Person | None = None) -> None:
        """Let mallory put a spool of her own in the place of the present one."""
        mallory = by or self.people.mallory
        with mallory.acting():
            (self.path / "spool").rename(self.path / "moved")
        self.make(mallory, mode=mode)


@pytest.fixture
def project(people: People, public: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    return Project(people, public, monkeypatch)


def content(directory: Path) -> dict[str, float]:
    """Return all names below a directory, with the times of their last changes."""
    return {str(path): path.lstat().st_ctime for path in (directory, *directory.rglob("*"))}


# ------------------------------------------------------------------------------------ usual use


@pytest.mark.parametrize("mode", [0o2770, 0o777, 0o775, 0o1777])
def test_spool_is_made_and_used_in_a_directory_writable_by_others(
    project: Project, people: People, mode: int, clock: Clock
) -> None:
    project.path.chmod(mode)
    if mode == 0o775:
        os.chown(project.path, people.alice.uid, -1)
    spool = project.make(people.alice, mode="private")
    assert spool.replaceable == (mode != 0o1777)
    assert spool.layout.root.startswith("/proc/self/fd/") == spool.replaceable
    with people.alice.acting():
        inbox = Inbox(Spool(spool.path), clock)
        future = inbox.put(pow, 2, 5)
        waiting = Spool(spool.path)
        assert len(list(Path(waiting.path).glob("ready/*/*/*"))) == 1
        future.cancel()
        inbox.look()
        assert check.check(waiting) == []


def test_members_work_together_in_a_project_directory_and_name_whom_they_trust(
    project: Project, people: People, clock: Clock
) -> None:
    path = project.make(people.alice).path
    project.home(people.bob)
    with people.bob.acting():
        Spool(path, read_only=True)
        with pytest.raises(NotTrusted, match=rf"not yet known.*Group {people.project}.*spool accept"):
            Spool(path)
        Spool(path, trust=Trust([people.alice.uid]))
    project.forget()
    with people.bob.acting():  # known by now
        assert Spool(path).owner == people.alice.uid


def test_accounts_that_can_write_are_not_named_if_the_directory_counts_as_protected(
    project: Project, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = project.make(people.alice).path
    project.home(people.bob)
    monkeypatch.setenv("SPOOLPOOL_PARENTS", f"/elsewhere:{project.path}")
    with people.bob.acting():
        assert not Spool(path).replaceable


def test_directory_writable_by_a_user_private_group_is_protected(people: People, public: Path) -> None:
    (public / "home").mkdir(mode=0o755)
    (public / "home").chmod(0o775)
    os.chown(public / "home", people.alice.uid, people.alice.gid)
    with people.alice.acting():
        assert not Spool.create(public / "home" / "spool").replaceable


def test_heartbeat_processes_reach_the_file_in_an_opened_spool(project: Project, people: People) -> None:
    spool = project.make(people.alice)
    path = f"{spool.layout.workers}/beat"
    Path(path).touch()
    os.utime(path, (0, 0))
    heartbeat = Heartbeat(path, 0.01)
    try:
        wait_until(lambda: os.stat(path).st_mtime > 0, "the file was touched")
    finally:
        heartbeat.close()


# ------------------------------------------------------------------------------------ first use


@pytest.mark.parametrize("mode", ["group", "dropbox"])
def test_spool_put_there_by_another_account_before_the_first_use_is_not_written_to(
    project: Project, people: People, mode: Mode
) -> None:
    made = project.make(people.mallory, mode=mode)
    project.path.chmod(0o2777)
    before = content(project.path)
    home = project.home(people.alice)
    with people.alice.acting():
        for trust in (None, Trust(), Trust([people.bob.uid])):
            with pytest.raises(NotTrusted, match=f"belongs to {people.mallory.name} .*{made.config.id}"):
                Spool(made.path, trust=trust)
        read = Spool(made.path, read_only=True)
        assert read.server_time() > 0
    assert content(project.path) == before
    with people.alice.acting():
        assert not (home / ".config").exists(), "a refused spool does not become known"
        Spool(made.path, accept=True)
        project.forget()
        assert Spool(made.path).owner == people.mallory.uid


# ------------------------------------------------------------------------- replaced after a use


def swapped_for_a_spool(project: Project) -> None:
    project.replace("group")


def swapped_for_a_dropbox(project: Project) -> None:
    project.replace("dropbox")


def swapped_for_a_link(project: Project) -> None:
    project.make(project.people.mallory, "other")
    with project.people.mallory.acting():
        (project.path / "spool").rename(project.path / "moved")
        (project.path / "spool").symlink_to("other")


@pytest.mark.parametrize("swap", [swapped_for_a_spool, swapped_for_a_dropbox, swapped_for_a_link])
def test_spool_replaced_by_another_account_is_refused_and_both_are_named(
    project: Project, people: People, swap: Callable[[Project], None]
) -> None:
    made = project.make(people.alice)
    project.path.chmod(0o2777)
    swap(project)
    before = content(project.path)
    for person in (people.alice, people.bob):
        project.home(person)
        with person.acting(), pytest.raises(NotTrusted) as refused:
            Spool(made.path, trust=Trust([people.alice.uid]))
        if swap is not swapped_for_a_link and person is people.alice:
            assert f"belonged to {people.alice.name} (mode group, id {made.config.id})" in str(refused.value)
            assert f"now belongs to {people.mallory.name}" in str(refused.value)
            assert "spool accept" in str(refused.value)
    assert content(project.path) == before


def test_replaced_spool_is_refused_even_if_its_new_owner_is_trusted_until_it_is_accepted(
    project: Project, people: People
) -> None:
    path = project.make(people.alice).path
    project.replace(by=people.bob)
    project.home(people.alice)
    trust = Trust([people.bob.uid])
    with people.alice.acting():
        with pytest.raises(NotTrusted, match="spool accept"):
            Spool(path, trust=trust)
        accepted = CliRunner().invoke(main, ["accept", path])
        assert accepted.exit_code == 0 and people.bob.name in accepted.output
        project.forget()
        Spool(path, trust=trust)


def test_spool_made_anew_by_its_owner_is_accepted_with_a_note(
    project: Project, people: People, caplog: pytest.LogCaptureFixture
) -> None:
    first = project.make(people.alice)
    project.home(people.bob)
    with people.bob.acting():
        Spool(first.path, trust=Trust([people.alice.uid]))
    with people.alice.acting():
        first.remove()
    second = project.make(people.alice)
    caplog.clear()
    project.home(people.bob)
    with people.bob.acting():
        Spool(first.path)
        assert (
            f"made anew by {people.alice.name}: its id was {first.config.id} and is {second.config.id}" in caplog.text
        )
        caplog.clear()
        project.forget()
        Spool(first.path)
        assert not caplog.text


def test_spool_whose_owner_turned_it_into_a_dropbox_is_refused(project: Project, people: People) -> None:
    first = project.make(people.alice)
    project.home(people.bob)
    with people.bob.acting():
        Spool(first.path, trust=Trust([people.alice.uid]))
    with people.alice.acting():
        first.remove()
    project.make(people.alice, mode="dropbox")
    project.path.chmod(0o2777)
    project.home(people.bob)
    with people.bob.acting(), pytest.raises(NotTrusted, match=r"mode group.*mode dropbox"):
        Spool(first.path)


def test_change_of_the_owner_is_refused_also_in_a_protected_directory(
    people: People, public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(people, public, monkeypatch)
    project.path.chmod(0o1777)
    path = project.make(people.alice).path
    os.rename(path, f"{path}-away")
    project.make(people.mallory)
    project.home(people.alice)
    with people.alice.acting(), pytest.raises(NotTrusted, match=people.mallory.name):
        Spool(path)


# ------------------------------------------------------------------------ replaced while in use


@pytest.mark.parametrize("open_parent", [True], indirect=True)
def test_processes_change_nothing_but_the_spool_that_they_opened(scene: Scene, open_parent: bool) -> None:
    with scene.owner.acting():
        spool = Spool(scene.path)
    future = scene.submit()
    waiting = scene.file_of(future).relative_to(scene.path)
    victim = scene.public / "victim"
    victim.mkdir()
    victim.chmod(0o777)
    for name in ("tmp", "ready", "results", "claimed", "outgoing", "sessions", "cancel", "journal"):
        (victim / name).mkdir()
        (victim / name).chmod(0o777)
        old = victim / name / "000-00000000000000-0000000000.000001.01"
        old.touch()
        os.utime(old, (0, 0))
    before = content(victim)
    with scene.mallory.acting():
        scene.path.rename(scene.path.with_name("moved"))
        scene.path.symlink_to(victim)
    assert (scene.path.with_name("moved") / waiting).exists()
    with contextlib.suppress(NotASpool, BrokenSpool):
        scene.submit()
    with scene.alice.acting():
        assert future.cancel()
    assert not (scene.path.with_name("moved") / waiting).exists()
    with scene.owner.acting():
        with contextlib.suppress(NotASpool, BrokenSpool):
            garbage.remove(spool, garbage.find_garbage(spool))
        with contextlib.suppress(NotASpool, BrokenSpool):
            repair.repair(spool, check.check(spool), seconds=0.0)
        spool.remove()
    assert content(victim) == before
    with scene.alice.acting(), pytest.raises(NotASpool):
        Spool(scene.path)


def test_spool_replaced_while_it_is_made_is_refused(
    project: Project, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = project.path.parent / "victim"
    victim.mkdir()
    victim.chmod(0o777)
    move = files.move

    def swap(source: str, target: str, **options: object) -> None:
        with people.mallory.acting():
            (project.path / "spool").rename(project.path / "moved")
            (project.path / "spool").symlink_to(victim)
        move(source, target, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(files, "move", swap)
    with pytest.raises((NotTrusted, NotASpool)):
        project.make(people.alice)
    assert os.listdir(victim) == []
    assert os.listdir(project.path / "moved") == []


def test_group_does_not_serve_another_spool_than_its_supervisor(project: Project, people: People) -> None:
    made = project.make(people.alice)
    project.make(people.alice, "other")
    with people.mallory.acting():
        (project.path / "spool").rename(project.path / "moved")
        (project.path / "other").rename(project.path / "spool")
    project.home(people.alice)
    known_spools.inherit(known_spools.encode(made.identity))
    try:
        with people.alice.acting(), pytest.raises(NotTrusted, match="replaced while it was in use"):
            Spool(made.path)
    finally:
        known_spools.forget(made.path)


# ------------------------------------------------------------------------------------- records


def test_record_that_others_can_write_to_does_not_count(
    project: Project, people: People, caplog: pytest.LogCaptureFixture
) -> None:
    path = project.make(people.alice).path
    record = Path(known_spools.record_path(path))
    record.chmod(0o666)
    record.write_text(json.dumps({**json.loads(record.read_text()), "owner": people.mallory.uid}))
    project.forget()
    with people.alice.acting():
        Spool(path)
    assert "other accounts can write to it" in caplog.text
    record.chmod(0o600)
    os.chown(record, people.mallory.uid, -1)
    project.forget()
    with people.alice.acting():
        Spool(path)


def test_account_without_a_writable_home_uses_spools_without_records(
    project: Project, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, home in enumerate(("/nonexistent", "/proc", "")):
        made = project.make(people.alice, f"spool-{number}")
        other = project.make(people.mallory, "other")
        monkeypatch.setenv("HOME", home)
        project.forget()
        with people.alice.acting():
            assert Spool(made.path).identity.id == made.config.id
        with people.mallory.acting():
            os.rename(made.path, f"{made.path}-away")
            os.rename(other.path, made.path)
        with people.alice.acting(), pytest.raises(NotTrusted, match=people.mallory.name):
            Spool(made.path)  # the process remembers it


def test_start_of_many_processes_writes_one_record_and_a_known_spool_none(project: Project, people: People) -> None:
    path = project.make(people.alice).path
    record = Path(known_spools.record_path(path))
    before = record.stat()
    for _ in range(3):
        project.forget()
        with people.alice.acting():
            Spool(path)
    after = record.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert os.listdir(record.parent) == [record.name]
    assert stat.S_IMODE(after.st_mode) == 0o600


def test_spool_is_not_made_twice_at_once(project: Project, people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    second: list[BaseException] = []
    move = files.move

    def race(source: str, target: str, **options: object) -> None:
        monkeypatch.setattr(files, "move", move)
        with pytest.raises(BadRequest, match="is not empty"):
            Spool.create(project.path / "spool", mode="group", group=people.project)
        second.append(BadRequest())
        move(source, target, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(files, "move", race)
    made = project.make(people.alice)
    assert second and check.check(made, deep=False) == []


def test_commands_work_in_a_project_directory_without_any_setting(project: Project, people: People) -> None:
    path = str(project.path / "cli")

    def spool(*arguments: str) -> Callable[[], object]:
        def call() -> object:
            result = CliRunner().invoke(main, list(arguments))
            return result.exit_code, result.output

        return call

    project.home(people.alice)
    code, output = in_account(people.alice, spool("init", path, "--mode", "group", "--group", people.project))  # type: ignore[misc]
    assert code == 0, output
    for arguments in (("status", path), ("check", path), ("gc", path), ("ls", path)):
        code, output = in_account(people.alice, spool(*arguments))  # type: ignore[misc]
        assert code == 0, output
    project.home(people.bob)
    for arguments in (("status", path), ("ls", path), ("workers", "ls", path), ("check", path, "--quick")):
        code, output = in_account(people.bob, spool(*arguments))  # type: ignore[misc]
        assert code == 0, output
    code, output = in_account(people.bob, spool("gc", path))  # type: ignore[misc]
    assert code == NotTrusted.exit_code and f"spool accept {path}" in output
    for arguments in (("accept", path), ("gc", path)):
        code, output = in_account(people.bob, spool(*arguments))  # type: ignore[misc]
        assert code == 0, output


@pytest.mark.parametrize("open_parent", [True], indirect=True)
def test_no_message_and_no_journal_names_a_descriptor(
    scene: Scene, open_parent: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    future = scene.submit()
    torn = scene.submit()
    scene.file_of(torn).write_bytes(b"torn")
    scene.work()
    scene.collect()
    assert future.result(timeout=0) == "alice's own"
    journals = "".join(path.read_text() for path in (scene.path / "journal").iterdir())
    assert "worker started" in journals
    assert "/proc/" not in caplog.text + journals
    assert f"It is kept as {scene.path}/failed/" in caplog.text


def close_all_descriptors() -> str:
    """Task that closes all descriptors, as programs do that become daemons."""
    os.closerange(3, 1024)
    return "closed"


@pytest.mark.parametrize("mode", [0o755, 0o777])
def test_task_that_closes_all_descriptors_does_not_disturb_the_next_one(tmp_path: Path, mode: int) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project").chmod(mode)
    spool = Spool.create(tmp_path / "project" / "spool", durability="none")
    assert spool.replaceable == (mode == 0o777)
    with Executor(spool=spool.path, max_workers=1) as executor:
        assert executor.submit(close_all_descriptors).result(LIMIT) == "closed"
        assert executor.submit(pow, 2, 5).result(LIMIT) == 32


def test_closed_directory_is_not_restored_from_another_one_at_its_path(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    directory = open_directory.Directory(str(tmp_path / "one"), readable=False)
    number = int(str(directory).rpartition("/")[2])
    assert not directory.restore(str(tmp_path / "one"))
    os.close(number)
    (tmp_path / "one").rename(tmp_path / "two")
    (tmp_path / "one").mkdir()
    with pytest.raises(FileNotFoundError):
        directory.restore(str(tmp_path / "one"))
    assert directory.restore(str(tmp_path / "two"))
    assert os.path.samefile(str(directory), tmp_path / "two")

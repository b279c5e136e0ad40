"""Examination of filesystems, with simulated faults, and the command ``spool doctor``."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click.testing
import msgspec
import pytest

from spoolpool import settings
from spoolpool.cli.spool import main
from spoolpool.errors import NotTrusted, SpoolpoolError, TaskTimeout
from spoolpool.format.names import is_rendezvous, rendezvous_name
from spoolpool.maintenance import doctor, doctor_peer
from spoolpool.maintenance.check import check
from spoolpool.maintenance.doctor import Answer, Doctor, describe, examine, recommend, verdict
from spoolpool.maintenance.doctor_peer import Peer, Rendezvous, find_peer
from spoolpool.protocol.spool import Spool
from spoolpool.system import files, locks, mounts
from spoolpool.system.mounts import find_mount
from spoolpool.system.processes import ProcessId
from spoolpool.system.watch import DirectoryWatcher
from tests.support.accounts import as_root, unused_id
from tests.support.fake_worker import dead_process
from tests.support.waiting import LIMIT, wait_until

RACE_FILES = 50
"""Smaller number of files, for faults of each file."""

ON_ONE_HOST = [
    "filesystem",
    "space",
    "permissions",
    "clock",
    "rename",
    "create",
    "locks",
    "lock release",
    "listed",
    "looked up",
    "removed",
    "heartbeat",
    "inotify",
]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Empty directory."""
    path = tmp_path / "place"
    path.mkdir()
    return path


class Sides:
    """Doctor with a peer in a thread, so that patched functions affect both."""

    def __init__(self, directory: Path, timeout: float) -> None:
        self.rendezvous = Rendezvous.create(str(directory), timeout=LIMIT)
        self.doctor = Doctor(self.rendezvous, timeout=timeout)
        self._thread = threading.Thread(target=Peer(self.rendezvous).serve)
        self._thread.start()

    def end(self) -> None:
        self.rendezvous.remove()
        self._thread.join(LIMIT)
        assert not self._thread.is_alive()


@pytest.fixture
def sides(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Sides]]:
    for module in (doctor, doctor_peer):
        monkeypatch.setattr(module, "RACE_FILES", RACE_FILES)
    created: list[Sides] = []

    def create(timeout: float = LIMIT) -> Sides:
        created.append(Sides(directory, timeout))
        return created[-1]

    yield create
    for each in created:
        each.end()


def run(*arguments: object) -> click.testing.Result:
    return click.testing.CliRunner().invoke(main, [str(each) for each in arguments], prog_name="spool")


def start_peer(directory: Path | str) -> subprocess.Popen[str]:
    """Start 'spool doctor --peer', as on another host."""
    command = [sys.executable, "-m", "spoolpool.cli.spool", "doctor", str(directory), "--peer"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("Waiting for 'spool doctor'")
    return process


# ----------------------------------------------------------------------------- no faults


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """JSON output of the command for an unused directory."""
    directory = tmp_path_factory.mktemp("told")
    result = run("doctor", directory, "--json")
    assert result.exit_code == 0
    assert list(directory.iterdir()) == [], "nothing is left behind"
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_all_questions_are_answered_between_two_processes(document: dict[str, Any]) -> None:
    assert [each["question"] for each in document["answers"] if each["question"] != "quota"] == ON_ONE_HOST
    assert {each["grade"] for each in document["answers"]} <= {"good", "note"}
    assert all(each["text"] and "\n" not in each["text"] for each in document["answers"])


def test_json_output_has_stable_keys(document: dict[str, Any], tmp_path: Path) -> None:
    assert document.keys() == {"across_hosts", "verdict", "answers", "settings"}
    assert document["across_hosts"] is False
    assert {frozenset(each) for each in document["answers"]} == {frozenset({"question", "grade", "text", "value"})}
    values = {each["question"]: each["value"] for each in document["answers"]}
    assert values["filesystem"].keys() == {"kind", "mount", "options", "local"}
    assert values["rename"] == values["create"] == 0
    assert values["locks"] == "yes"
    best = document["settings"]
    assert best.keys() == {"lease", "caches"}
    assert run("init", tmp_path / "spool", "--lease", best["lease"], "--caches", best["caches"]).exit_code == 0


def test_command_prints_a_verdict_and_recommended_settings(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Answer(question="removed", grade="note", text="a removed name is no longer found after 75.000 s", value=75.0)
    monkeypatch.setattr(Doctor, "examine", lambda _: iter([slow]))
    monkeypatch.setattr(doctor, "describe", lambda _: [])
    result = run("doctor", directory)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[:3] == [
        "note  removed           a removed name is no longer found after 75.000 s.",
        "Verdict: suitable for a spool; see the notes on removed.",
        "Settings: spool init --lease 60 --caches 225",
    ]
    assert "--peer" in result.stdout.splitlines()[-1]


def test_peer_is_found_in_the_spool(directory: Path) -> None:
    spool = Spool.create(directory / "spool")
    before = sorted(directory.rglob("*"))
    peer = start_peer(spool.path)
    assert check(spool) == [], "its files do not disturb a spool in use"
    result = run("doctor", spool.path, "--json")
    _, output = peer.communicate(timeout=LIMIT)
    assert (result.exit_code, peer.returncode) == (0, 0)
    assert json.loads(result.stdout)["across_hosts"] is True
    assert output.startswith("Answered ")
    assert sorted(directory.rglob("*")) == before


@pytest.mark.sharedfs
def test_two_doctors_do_not_use_the_same_peer(directory: Path) -> None:
    rendezvous = Rendezvous.create(str(directory))
    rendezvous.invite()
    first = find_peer(str(directory))
    assert first is not None and first.path == rendezvous.path
    assert find_peer(str(directory)) is None


def test_private_peer_of_another_doctor_is_not_used(directory: Path, sides: Callable[..., Sides]) -> None:
    both = sides()
    assert both.doctor._clock().question == "clock"
    assert find_peer(str(directory)) is None


# -------------------------------------------------------------------------------- faults


def in_race(path: str) -> bool:
    return "/race-" in path


def test_renames_with_two_winners_are_detected(sides: Callable[..., Sides], monkeypatch: pytest.MonkeyPatch) -> None:
    real = files.move

    def both_win(source: str, target: str, **options: object) -> None:
        try:
            real(source, target)
        except FileNotFoundError:
            if not in_race(source):
                raise

    monkeypatch.setattr(files, "move", both_win)
    found = sides().doctor._renames()
    assert (found.grade, found.value) == ("bad", RACE_FILES)
    assert "Do not use this filesystem" in found.text


def test_renames_without_a_winner_are_detected(sides: Callable[..., Sides], monkeypatch: pytest.MonkeyPatch) -> None:
    real = files.move

    def lost(source: str, target: str, **options: object) -> None:
        if in_race(source) and target.endswith(("0.doctor", "0.peer")):
            os.unlink(source)
            raise FileNotFoundError(2, "No such file or directory", source)
        real(source, target)

    monkeypatch.setattr(files, "move", lost)
    found = sides().doctor._renames()
    assert (found.grade, found.value) == ("bad", -RACE_FILES // 10)


def test_successful_renames_that_return_an_error_count_as_won(
    sides: Callable[..., Sides], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = files.move

    def repeated(source: str, target: str, **options: object) -> None:
        real(source, target)
        if in_race(source):
            raise FileNotFoundError(2, "No such file or directory", source)

    monkeypatch.setattr(files, "move", repeated)
    assert sides().doctor._renames().value == 0


def test_permission_error_in_a_create_race_counts_as_lost(
    sides: Callable[..., Sides], monkeypatch: pytest.MonkeyPatch
) -> None:
    """sshfs returns EPERM instead of EEXIST."""
    real = files.create

    def refused(path: str, *rest: object, **options: object) -> None:
        try:
            real(path, *rest, **options)  # type: ignore[arg-type]
        except FileExistsError:
            raise PermissionError(1, "Operation not permitted", path) from None

    monkeypatch.setattr(files, "create", refused)
    assert sides().doctor._creates().value == 0


@pytest.mark.parametrize(
    ("races", "grade"), [([(50, 0), (0, 50), (30, 20)], "good"), ([(50, 0), (50, 0), (50, 0), (30, 20)], "note")]
)
def test_race_without_collisions_is_repeated_and_then_noted(
    sides: Callable[..., Sides], monkeypatch: pytest.MonkeyPatch, races: list[tuple[int, int]], grade: str
) -> None:
    left = iter(races)
    monkeypatch.setattr(Doctor, "_race_once", lambda *_: next(left))
    found = sides().doctor._renames()
    assert (found.grade, found.value) == (grade, 0)
    assert ("never collided" in found.text) == (grade == "note")


def test_exclusive_creates_with_two_winners_are_detected(
    sides: Callable[..., Sides], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = files.create

    def both_win(path: str, *rest: object, **options: object) -> None:
        try:
            real(path, *rest, **options)  # type: ignore[arg-type]
        except FileExistsError:
            if not in_race(path):
                raise

    monkeypatch.setattr(files, "create", both_win)
    found = sides().doctor._creates()
    assert (found.grade, found.value) == ("bad", RACE_FILES)


@pytest.mark.parametrize(
    ("lock", "value", "text"),
    [(locks.Lock.NONE, "none", "no locks"), (locks.Lock.TAKEN, "per host", "of its own host")],
)
def test_locks_that_do_not_exclude_are_detected(
    sides: Callable[..., Sides], monkeypatch: pytest.MonkeyPatch, lock: locks.Lock, value: str, text: str
) -> None:
    monkeypatch.setattr(doctor, "try_lock", lambda _: lock)
    (found,) = sides().doctor._locks()
    assert (found.question, found.grade, found.value) == ("locks", "note", value)
    assert text in found.text


def test_lock_that_outlives_its_holder_is_detected(
    sides: Callable[..., Sides], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "try_lock", lambda _: locks.Lock.BUSY)
    monkeypatch.setattr(doctor, "_LOCK_TIMEOUT", 0.1)
    held, dead = sides().doctor._locks()
    assert (held.grade, held.value) == ("good", "yes")
    assert (dead.question, dead.grade, dead.value) == ("lock release", "note", None)
    assert "10 leases" in dead.text


def test_stale_listing_is_detected(sides: Callable[..., Sides], monkeypatch: pytest.MonkeyPatch) -> None:
    real = files.list_names
    monkeypatch.setattr(files, "list_names", lambda directory: [] if "/listed-" in directory else real(directory))
    found = sides(timeout=0.3).doctor._visibility()
    grades = {answer.question: answer.grade for answer in found}
    assert grades == {"listed": "bad", "looked up": "good", "removed": "good"}


@pytest.mark.parametrize(("which", "says", "question"), [("name", False, "looked up"), ("removed", True, "removed")])
def test_stale_look_up_is_detected(
    sides: Callable[..., Sides], monkeypatch: pytest.MonkeyPatch, which: str, says: bool, question: str
) -> None:
    real = os.path.lexists
    monkeypatch.setattr(os.path, "lexists", lambda path: says if f"/{which}-" in str(path) else real(path))
    found = {answer.question: answer for answer in sides(timeout=0.3).doctor._visibility()}
    assert found.pop(question).grade == "bad"
    assert {answer.grade for answer in found.values()} == {"good"}


def test_delay_above_its_limit_is_noted(sides: Callable[..., Sides], monkeypatch: pytest.MonkeyPatch) -> None:
    found = sides().doctor._delay("listed", lambda: True, "a name is listed", limit=-1.0)
    assert (found.grade, found.value) == ("note", 0.0)


def test_invisible_heartbeat_is_detected(sides: Callable[..., Sides], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "mtime_ns", lambda _: 7)
    found = sides(timeout=0.3).doctor._heartbeat()
    assert (found.question, found.grade, found.value) == ("heartbeat", "bad", None)


def test_heartbeats_in_whole_seconds_are_visible(sides: Callable[..., Sides], monkeypatch: pytest.MonkeyPatch) -> None:
    """MooseFS stores no fractions of seconds, so that each heartbeat needs a new second."""
    real = files.mtime_ns
    monkeypatch.setattr(files, "mtime_ns", lambda path: (real(path) or 0) // 10**9)
    assert sides(timeout=0.3).doctor._heartbeat().grade == "good"


def test_missing_inotify_is_a_note(sides: Callable[..., Sides], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DirectoryWatcher, "wait", lambda *_: False)
    found = sides().doctor._inotify()
    assert (found.grade, found.value) == ("note", False)


def test_bad_answer_determines_verdict_and_exit_code(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = Answer(question="rename", grade="bad", text="two winners", value=3)
    monkeypatch.setattr(Doctor, "examine", lambda _: iter([bad]))
    result = run("doctor", directory)
    assert result.exit_code == 1
    assert "bad   rename" in result.stdout
    assert "Verdict: do not create a spool here before this is solved: rename." in result.stdout


# ------------------------------------------------------------------------------ failing peers


def test_peer_without_replies_causes_an_error_and_is_cleaned_up(directory: Path) -> None:
    rendezvous = Rendezvous.create(str(directory))
    rendezvous.invite()
    with pytest.raises(TaskTimeout, match=r"did not send its reply to 'clock' in 0.1 s.*start both again"):
        examine(str(directory), timeout=0.1)
    assert list(directory.iterdir()) == [], "the next doctor must not find the same peer"


def test_peer_that_cannot_start_causes_an_error_at_once(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "start_peer", lambda _: subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]))
    with pytest.raises(TaskTimeout, match="has ended"):
        examine(str(directory), timeout=1e9)
    assert list(directory.iterdir()) == []


def test_killed_peer_causes_an_error_at_once(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start, creates = doctor.start_peer, Doctor._creates

    def remember(at: Rendezvous) -> subprocess.Popen[bytes]:
        started.append(start(at))
        return started[0]

    def kill_before(self: Doctor) -> Answer:
        started[0].kill()
        started[0].wait()
        return creates(self)

    monkeypatch.setattr(doctor, "start_peer", remember)
    monkeypatch.setattr(Doctor, "_creates", kill_before)
    with pytest.raises(TaskTimeout, match="has ended"):
        examine(str(directory), timeout=1e9)
    assert list(directory.iterdir()) == []


def test_last_message_of_an_ended_peer_is_received(directory: Path) -> None:
    rendezvous = Rendezvous.create(str(directory))
    words: list[str] = []

    def leaves() -> bool:
        if not words:
            words.append("last")
            rendezvous.send("reply-0000", {"word": "last"})
        return False

    rendezvous.is_alive = leaves
    assert rendezvous.receive("reply-0000", "a word") == {"word": "last"}


def test_command_prints_an_error_without_a_traceback(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Rendezvous.create(str(directory)).invite()
    monkeypatch.setattr(doctor.examine, "__kwdefaults__", {"timeout": 0.1})
    result = run("doctor", directory)
    assert result.exit_code == TaskTimeout.exit_code
    assert result.stderr.startswith("spool doctor: The other side did not send")
    assert "Traceback" not in result.stderr


def test_rendezvous_of_a_dead_process_of_this_host_is_removed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = Rendezvous.create(str(directory))
    left.invite()
    os.unlink(f"{left.path}/creator")
    left.send("creator", msgspec.to_builtins(dead_process()))
    alive = Rendezvous.create(str(directory))
    alive.invite()
    found = find_peer(str(directory))
    assert found is not None and found.path == alive.path
    assert os.listdir(directory) == [os.path.basename(alive.path)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_or_killed_peer_is_not_found(directory: Path, number: signal.Signals) -> None:
    peer = start_peer(directory)
    peer.send_signal(number)
    peer.communicate(timeout=LIMIT)
    assert find_peer(str(directory)) is None
    assert list(directory.iterdir()) == []


def test_peer_without_a_doctor_times_out_and_is_cleaned_up(directory: Path) -> None:
    assert Peer(Rendezvous.create(str(directory)), timeout=0.1).serve() == 0
    assert list(directory.iterdir()) == []


def test_peer_ends_after_its_doctor(directory: Path) -> None:
    rendezvous = Rendezvous.create(str(directory))
    os.unlink(f"{rendezvous.path}/creator")
    rendezvous.send("creator", msgspec.to_builtins(dead_process()))
    assert Peer(rendezvous, timeout=1e9).serve() == 0
    assert list(directory.iterdir()) == []


def test_peer_ends_after_the_removal_of_its_rendezvous(directory: Path) -> None:
    rendezvous = Rendezvous.create(str(directory))
    rendezvous.remove()
    assert Peer(rendezvous, timeout=1e9).serve() == 0


# ------------------------------------------------------------------------- untrusted orders


@pytest.mark.parametrize(
    "order",
    [
        {"do": "make", "name": "../outside"},
        {"do": "remove", "name": "../precious"},
        {"do": "remove", "name": "/etc/passwd"},
        {"do": "remove", "name": "peer"},
        {"do": "touch", "name": "name-1/../../precious"},
        {"do": "lock", "name": "name-1/in/new/../../../../precious"},
        {"do": "lock", "name": ["name-1"]},
        {"do": "end_lock_holder", "name": ""},
        {"do": "__class__", "name": ""},
        {"do": ["end"], "name": ""},
        {"do": None},
        {},
    ],
)
def test_peer_refuses_unknown_orders_and_paths_outside_the_rendezvous(directory: Path, order: object) -> None:
    precious = directory / "precious"
    precious.write_text("precious")
    before = precious.stat().st_mtime_ns
    peer = Peer(Rendezvous.create(str(directory)))
    answer = peer._execute(order)  # type: ignore[arg-type]
    assert answer.keys() == {"error"}
    assert [path.name for path in directory.iterdir() if not is_rendezvous(path.name)] == ["precious"]
    assert (precious.read_text(), precious.stat().st_mtime_ns) == ("precious", before)


def test_error_of_the_other_side_is_reported(sides: Callable[..., Sides]) -> None:
    with pytest.raises(SpoolpoolError, match=r"could not execute the order \'touch\': No such file"):
        sides().doctor._order("touch", "name-1")
    with pytest.raises(SpoolpoolError, match="another version"):
        sides().doctor._order("sing")


def test_rendezvous_with_write_permission_for_others_is_refused(directory: Path) -> None:
    path = Rendezvous.create(str(directory)).path
    os.chmod(path, 0o777)
    with pytest.raises(NotTrusted, match="others"):
        Rendezvous(path)
    Path(path, "peer").touch()
    assert find_peer(str(directory)) is None


def test_symbolic_link_to_a_rendezvous_is_refused(directory: Path, tmp_path: Path) -> None:
    rendezvous = Rendezvous.create(str(tmp_path))
    rendezvous.invite()
    link = directory / rendezvous_name()
    link.symlink_to(rendezvous.path)
    with pytest.raises(NotTrusted):
        Rendezvous(str(link))
    assert find_peer(str(directory)) is None


@as_root
@pytest.mark.multiuser
def test_rendezvous_of_another_account_is_refused_and_not_changed(directory: Path) -> None:
    rendezvous = Rendezvous.create(str(directory))
    rendezvous.invite()
    stranger = unused_id()
    os.chown(rendezvous.path, stranger, -1)
    with pytest.raises(NotTrusted, match=f"belongs to uid {stranger}"):
        Rendezvous(rendezvous.path)
    assert find_peer(str(directory)) is None
    assert os.path.exists(f"{rendezvous.path}/peer")


# ------------------------------------------------------------- answers without a peer

SAMPLES = [
    "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro",
    "30 22 0:25 / /home rw,relatime shared:2 - nfs4 server:/home rw,vers=4.2,acdirmax=60,hard,local_lock=none",
    "31 22 0:26 / /old rw,relatime shared:3 - nfs server:/old rw,vers=3,nolock,local_lock=all,addr=10.0.0.1",
    "32 22 0:27 / /lustre rw - lustre 10.0.0.2@o2ib:/scratch rw,localflock,lazystatfs",
    "33 22 0:28 / /with\\040a\\011few\\134odd\\012signs rw,noatime - xfs /dev/sdb1 rw",
    "34 30 0:29 / /home/inner ro master:5 propagate_from:2 - btrfs /dev/sdc1 rw,space_cache",
    "35 22 0:30 / /twice rw - ext4 /dev/sdd1 rw",
    "36 22 0:31 / /twice rw - tmpfs tmpfs rw,size=1m",
    "nonsense",
    "",
    "37 22 0:32 / /short rw - ext4",
]


@pytest.mark.parametrize(
    ("path", "point", "kind"),
    [
        ("/", "/", "ext4"),
        ("/somewhere/else", "/", "ext4"),
        ("/home", "/home", "nfs4"),
        ("/home/me/spool", "/home", "nfs4"),
        ("/homes/me", "/", "ext4"),
        ("/home/inner/x", "/home/inner", "btrfs"),
        ("/old/x", "/old", "nfs"),
        ("/lustre", "/lustre", "lustre"),
        ("/with a\tfew\\odd\nsigns/x", "/with a\tfew\\odd\nsigns", "xfs"),
        ("/twice", "/twice", "tmpfs"),
        ("/short", "/", "ext4"),
    ],
)
def test_mount_of_a_path_is_found(path: str, point: str, kind: str) -> None:
    assert find_mount(SAMPLES, path)[:2] == (point, kind)


@pytest.mark.parametrize(
    ("path", "grade", "options"),
    [
        ("/home", "good", ["vers=4.2", "acdirmax=60", "local_lock=none"]),
        ("/old", "note", ["vers=3", "nolock", "local_lock=all"]),
        ("/lustre", "note", ["localflock"]),
        ("/home/inner", "note", ["ro"]),
        ("/", "good", []),
    ],
)
def test_relevant_mount_options_are_reported(
    directory: Path, monkeypatch: pytest.MonkeyPatch, path: str, grade: str, options: list[str]
) -> None:
    monkeypatch.setattr(doctor, "mount_of", lambda _: find_mount(SAMPLES, path))
    found = describe(str(directory))[0]
    assert (found.question, found.grade, found.value["options"]) == ("filesystem", grade, options)
    assert all(option in found.text for option in options)


def test_mount_is_found_on_this_machine(directory: Path) -> None:
    point, kind, options = mounts.mount_of(str(directory))
    assert os.path.ismount(point)
    assert kind != "unknown"
    assert options.startswith(("rw", "ro"))


def test_unreadable_mount_table_gives_an_unknown_mount(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.open", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError(2, "no")))
    assert mounts.mount_of(str(directory)) == ("/", "unknown", "")


def test_quota_of_the_mount_is_reported(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = tmp_path / "bin" / "quota"
    command.parent.mkdir()
    command.write_text("#!/bin/sh\necho 'Filesystem blocks quota'\necho '/other  1 2'\necho '/home   10   20   30'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:/usr/bin:/bin")
    monkeypatch.setattr(doctor, "mount_of", lambda _: find_mount(SAMPLES, "/home"))
    (found,) = [answer for answer in describe(str(directory)) if answer.question == "quota"]
    assert found.value == "/home 10 20 30"


def test_quota_command_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs(*_: object, timeout: float, **__: object) -> None:
        raise subprocess.TimeoutExpired("quota", timeout)

    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/quota")
    monkeypatch.setattr(subprocess, "run", hangs)
    assert mounts.quota("/home") == ""


def test_other_directories_do_not_affect_the_permissions_of_a_future_spool(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (directory / "lost+found").mkdir()
    monkeypatch.setattr(doctor.os, "access", lambda path, _: not str(path).endswith("lost+found"))
    (found,) = [answer for answer in describe(str(directory)) if answer.question == "permissions"]
    assert found.grade == "good"


def test_write_protected_directory_of_a_spool_is_bad(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool.create(directory / "spool")
    monkeypatch.setattr(doctor.os, "access", lambda path, _: not str(path).endswith("results"))
    (found,) = [answer for answer in describe(spool.path) if answer.question == "permissions"]
    assert (found.grade, found.value) == ("bad", ["results"])


# ---------------------------------------------------------- read-only, nearly full, missing


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Filesystem of one MiB and 100 files."""
    path = tmp_path / "small"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=100", "tmpfs", path], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small filesystem: {mounted.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def test_nearly_full_filesystem_is_reported_and_cleaned_up(small: Path) -> None:
    result = run("doctor", small)
    assert result.exit_code == 1
    lines = {line.split(maxsplit=2)[1]: line for line in result.stdout.splitlines()}
    assert lines["space"].startswith("note")
    assert lines["files"].startswith("bad") and "No space left" in lines["files"]
    assert lines["clock"].startswith("good"), "earlier answers are kept"
    assert list(small.iterdir()) == []


def test_read_only_filesystem_is_reported_without_hanging(small: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    result = run("doctor", small, "--json")
    assert result.exit_code == 1
    grades = {answer["question"]: answer["grade"] for answer in json.loads(result.stdout)["answers"]}
    assert (grades["filesystem"], grades["permissions"], grades["files"]) == ("note", "bad", "bad")
    peer = run("doctor", small, "--peer")
    assert peer.exit_code == 1
    assert "Read-only file system" in peer.stderr


def test_directory_without_permissions_is_reported(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: str, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(files, "make_directory", refused)
    across, answers = examine(str(directory))
    assert not across
    assert [answer.grade for answer in answers if answer.question == "files"] == ["bad"]


@pytest.mark.parametrize("options", [[], ["--peer"]])
def test_missing_directory_is_a_usage_error(tmp_path: Path, options: list[str]) -> None:
    result = run("doctor", tmp_path / "nowhere", *options)
    assert result.exit_code == 2
    assert "does not exist" in result.stderr


# ------------------------------------------------------------------------ settings and verdict


def answers(kind: str = "nfs4", *, local: bool = False, **values: float | None) -> list[Answer]:
    found = [Answer(question="filesystem", grade="good", text="", value={"kind": kind, "local": local})]
    return found + [
        Answer(question=question.replace("_", " "), grade="good" if value is not None else "bad", text="", value=value)
        for question, value in values.items()
    ]


QUICK = {"listed": 0.001, "looked_up": 0.001, "removed": 0.001, "heartbeat": 0.001}


@pytest.mark.parametrize(
    ("found", "lease", "caches"),
    [
        (answers("ext4", local=True, **QUICK), 10, 1),
        (answers("ext4", local=True), 10, 1),
        (answers(**QUICK), settings.LEASE, settings.CACHE_SECONDS),
        (answers(), settings.LEASE, settings.CACHE_SECONDS),
        (answers(**{**QUICK, "looked_up": 30.0}), settings.LEASE, settings.CACHE_SECONDS),
        (answers(**{**QUICK, "removed": 75.0}), settings.LEASE, 225),
        (answers(**{**QUICK, "listed": 60.1}), settings.LEASE, 181),
        (answers(**{**QUICK, "removed": None}), settings.LEASE, 3 * doctor_peer.TIMEOUT),
        (answers(**{**QUICK, "heartbeat": 20.0}), 120, settings.CACHE_SECONDS),
        (answers(**{**QUICK, "heartbeat": None}), 6 * doctor_peer.TIMEOUT, settings.CACHE_SECONDS),
        (answers("ext4", local=True, **{**QUICK, "removed": 2.0, "heartbeat": 3.0}), 18, 6),
        ([], settings.LEASE, settings.CACHE_SECONDS),
    ],
)
def test_settings_are_a_multiple_of_the_longest_delay(found: list[Answer], lease: float, caches: float) -> None:
    best = recommend(found)
    assert (best.lease, best.caches) == (lease, caches)


def test_verdict_names_the_decisive_questions() -> None:
    good = Answer(question="clock", grade="good", text="")
    note = Answer(question="locks", grade="note", text="")
    bad = Answer(question="rename", grade="bad", text="")
    assert verdict([good]) == "suitable for a spool"
    assert "locks" in verdict([good, note]) and "clock" not in verdict([good, note])
    assert "rename" in verdict([good, note, bad]) and "do not" in verdict([good, note, bad])


def test_rendezvous_records_its_creator(directory: Path) -> None:
    rendezvous = Rendezvous.create(str(directory))
    assert rendezvous.creator() == ProcessId.of(os.getpid())
    wait_until(lambda: os.stat(rendezvous.path).st_mode & 0o777 == 0o700, "only its account may use it")

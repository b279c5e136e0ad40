"""Trust: a file that is not trusted is not read, not unpickled and not removed, but reported."""

from __future__ import annotations

import grp
import os
import pwd
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from spoolpool import settings
from spoolpool.calls import pickling
from spoolpool.errors import BadRequest, BadTaskFile, NotTrusted
from spoolpool.format import envelope, headers
from spoolpool.format.headers import TaskHeader
from spoolpool.format.names import (
    Lane,
    TaskFile,
    bucket_name,
    new_submitter_id,
    new_task_id,
    new_worker_id,
    parse_task_file,
)
from spoolpool.protocol import workers
from spoolpool.protocol.claimer import Claimer
from spoolpool.protocol.recovery import Recovery
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.submit import Submitter
from spoolpool.security.trust import Trust
from spoolpool.system import accounts, file_content, files
from spoolpool.system.accounts import account_name
from tests.support.accounts import as_root, known_account, unused_id
from tests.support.fake_worker import LANE, Clock, Inbox, Stage, announce, dead_process, info_of

STRANGER = unused_id()


class Trap:
    """Object with a pickle that makes a directory when it is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.mkdir, (self.trace,)  # type: ignore[return-value]


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    return Trap(tmp_path / "sprung")


@pytest.fixture
def claimer(spool: Spool) -> Claimer:
    return Claimer(spool, new_worker_id(), lambda _: True, Trust())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock.installed(monkeypatch)


def put(spool: Spool, trap: Trap) -> Path:
    """Submit a task and return its file."""
    name = new_task_id()
    header = TaskHeader(task=name, session="inbox", lane=LANE, bucket=bucket_name(name, new_submitter_id()))
    payload, buffers = pickling.dumps(trap)
    task_file = Submitter(spool).submit(header, envelope.pack(headers.encode(header), payload, buffers))
    return Path(spool.layout.bucket(header.lane, header.bucket), task_file.name)


def refuses(claimer: Claimer, path: Path, *words: str) -> None:
    """Check that the claimer reports a file with these words and claims nothing."""
    assert claimer.next() is None
    assert all(word in claimer.refused[str(path)] for word in words), claimer.refused
    assert claimer.next() is None


def check(path: Path, trust: Trust) -> int:
    fd = files.open_file(str(path))
    try:
        return trust.check(fd, str(path)).st_size
    finally:
        files.close(fd)


def test_a_file_of_this_account_is_trusted(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert check(tmp_path / "file", Trust()) == 5


@as_root
def test_a_file_of_another_account_is_trusted_only_if_that_account_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    os.chown(path, STRANGER, STRANGER)
    with pytest.raises(NotTrusted, match=f"{path} belongs to {account_name(STRANGER)}"):
        check(path, Trust())
    assert check(path, Trust([STRANGER])) == 0
    known = known_account()
    os.chown(path, known.pw_uid, known.pw_gid)
    assert check(path, Trust([known.pw_name])) == 0


@as_root
def test_a_file_of_a_group_member_is_trusted_if_the_group_is_named_primary_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.touch()
    member = known_account()
    os.chown(path, member.pw_uid, member.pw_gid)
    assert check(path, Trust(groups=[grp.getgrgid(member.pw_gid).gr_name])) == 0
    groups = os.getgrouplist
    daemon = grp.getgrnam("daemon").gr_gid
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: [*groups(name, gid), daemon])
    accounts._groups_of.cache_clear()  # as happens after a minute
    assert check(path, Trust(groups=["daemon"])) == 0


def test_an_unknown_group_cannot_be_trusted() -> None:
    with pytest.raises(BadRequest, match="no group 'nobodies-group'"):
        Trust(groups=["nobodies-group"])


def test_the_reason_why_a_lane_is_unserved_names_the_untrusted_account() -> None:
    lane = Lane("default", 1, 1, 0, settings.PYTHON, user=0)
    groups = [info_of(dead_process()), info_of(dead_process(), trust_users=(1, STRANGER))]
    assert workers.why_unserved(lane.name, groups) == f"no group trusts {account_name(0)} (--trust-user, --trust-group)"
    for more in (
        {"trust_users": (0,)},
        {"trust_groups": (grp.getgrgid(pwd.getpwuid(0).pw_gid).gr_name,)},
        {"trust_all": True},
    ):
        assert workers.why_unserved(lane.name, [*groups, info_of(dead_process(), **more)]) is None


def test_an_unknown_account_cannot_be_trusted() -> None:
    with pytest.raises(BadRequest, match="no account 'nobody-of-that-name'"):
        Trust(["nobody-of-that-name"])


def test_an_account_without_a_name_is_displayed_by_its_number() -> None:
    assert account_name(4_000_000_000) == "uid 4000000000"


@as_root
def test_a_task_of_an_untrusted_account_stays_and_the_next_task_is_claimed(
    spool: Spool, claimer: Claimer, trap: Trap
) -> None:
    path = put(spool, trap)
    os.chown(path, STRANGER, STRANGER)
    refuses(claimer, path, "not trusted")
    assert path.exists()
    mine = put(spool, trap)
    claim = claimer.next()
    assert claim is not None and claim.task_file.task == mine.name[: len(claim.task_file.task)]
    claim.close()
    assert not os.path.exists(trap.trace)


@as_root
def test_a_task_of_a_named_account_is_claimed(spool: Spool, trap: Trap) -> None:
    os.chown(put(spool, trap), STRANGER, STRANGER)
    claim = Claimer(spool, new_worker_id(), lambda _: True, Trust([STRANGER])).next()
    assert claim is not None
    claim.close()


def test_a_symbolic_link_is_not_followed(spool: Spool, claimer: Claimer, trap: Trap, tmp_path: Path) -> None:
    path = put(spool, trap)
    os.rename(path, tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    refuses(claimer, path, "symbolic links")
    assert path.is_symlink()


def test_a_fifo_does_not_block_a_claimer(spool: Spool, claimer: Claimer, trap: Trap) -> None:
    path = put(spool, trap)
    path.unlink()
    os.mkfifo(path)
    refuses(claimer, path, "not a regular file")
    assert path.is_fifo()


def test_a_socket_is_refused(spool: Spool, claimer: Claimer, trap: Trap, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(spool, trap)
    path.unlink()
    monkeypatch.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(path.name)
        refuses(claimer, path, "cannot be opened")
    assert path.is_socket()


@as_root
def test_a_device_is_refused(spool: Spool, claimer: Claimer, trap: Trap) -> None:
    path = put(spool, trap)
    path.unlink()
    try:
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero
    except PermissionError as error:
        pytest.skip(f"no device can be made here: {error}")
    refuses(claimer, path)


def test_a_directory_with_the_name_of_a_task_is_refused(spool: Spool, claimer: Claimer, trap: Trap) -> None:
    path = put(spool, trap)
    path.unlink()
    path.mkdir()
    refuses(claimer, path, "cannot be opened")
    assert path.is_dir()


def test_a_file_with_a_second_hard_link_is_refused(spool: Spool, claimer: Claimer, trap: Trap, tmp_path: Path) -> None:
    path = put(spool, trap)
    os.link(path, tmp_path / "second")
    refuses(claimer, path, "2 hard links")
    assert path.exists()


def test_a_file_that_cannot_be_opened_is_refused(
    spool: Spool, claimer: Claimer, trap: Trap, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(spool, trap)

    def refuse(path: str, *, write: bool = False) -> int:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(files, "open_file", refuse)
    refuses(claimer, path, "Permission denied")


def test_a_torn_task_is_set_aside_and_the_next_task_is_claimed(spool: Spool, claimer: Claimer, trap: Trap) -> None:
    torn, whole = put(spool, trap), put(spool, trap)
    torn.write_bytes(torn.read_bytes()[:-1])
    claim = claimer.next()
    assert claim is not None and claim.task_file.task == parse_task_file(whole.name).task  # type: ignore[union-attr]
    claim.close()
    [kept] = os.listdir(spool.layout.failed)
    assert kept.startswith(torn.name)
    assert not os.listdir(spool.layout.ready + f"/{LANE}/{torn.parent.name}")


@pytest.mark.parametrize(
    "field", [{"session": "../../etc"}, {"lane": "../x"}, {"bucket": "../../../x"}, {"init": "/etc/passwd"}], ids=str
)
def test_a_task_with_a_hostile_name_in_its_header_is_set_aside(
    field: dict[str, str], spool: Spool, claimer: Claimer, trap: Trap
) -> None:
    path = put(spool, trap)
    fd = files.open_file(str(path))
    content = envelope.read(fd, file_content.size(fd), str(path))
    files.close(fd)
    import msgspec

    header = msgspec.json.decode(content.header, type=TaskHeader)
    hostile = msgspec.structs.replace(header, **field)
    path.write_bytes(b"".join(bytes(part) for part in envelope.pack(headers.encode(hostile), content.payload)))
    assert claimer.next() is None
    [kept] = os.listdir(spool.layout.failed)
    assert kept.startswith(path.name)


def test_a_task_under_the_name_of_another_is_set_aside(spool: Spool, claimer: Claimer, trap: Trap) -> None:
    path = put(spool, trap)
    path.rename(path.with_name(TaskFile(new_task_id(), 1, 1).name))
    assert claimer.next() is None
    assert len(os.listdir(spool.layout.failed)) == 1


def test_foreign_names_in_a_spool_stay_and_do_not_stop_claims(
    spool: Spool, claimer: Claimer, trap: Trap, tmp_path: Path
) -> None:
    path = put(spool, trap)
    foreign = [
        Path(spool.layout.ready, "README"),
        Path(spool.layout.ready, "other lane"),
        Path(spool.layout.ready, LANE, "notes"),
        path.parent / "core.1234",
        path.parent / ".nfs0000000000000001",
        Path(spool.layout.claimed, "junk"),
        Path(spool.layout.workers, "junk"),
    ]
    for each in foreign:
        each.touch()
    Recovery(spool).round()
    claim = claimer.next()
    assert claim is not None
    claim.close()
    assert all(each.exists() for each in foreign)


@pytest.mark.parametrize("kind", ["lane", "bucket"])
def test_a_directory_that_cannot_be_listed_does_not_hide_the_tasks_in_others(
    kind: str, spool: Spool, claimer: Claimer, trap: Trap, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(spool, trap)
    if kind == "lane":
        closed = Path(spool.layout.ready, "aaa.r1t1g0.py3.11")
    else:
        closed = path.parent.with_name("000-00000000000000-00000000")
    closed.mkdir()
    names = files.list_names

    def refuse(directory: str) -> list[str]:
        if directory == str(closed):
            raise PermissionError(13, "Permission denied", directory)
        return names(directory)

    monkeypatch.setattr(files, "list_names", refuse)
    claim = claimer.next()
    assert claim is not None
    claim.close()
    with pytest.raises(PermissionError, match=str(closed)):  # reported once no other task is ready
        claimer.next()


@as_root
@pytest.mark.parametrize("forge", ["owner", "fifo", "link"])
def test_a_forged_outcome_of_another_account_is_not_unpickled_and_fails_the_future(
    forge: str, tmp_path: Path, clock: Clock, trap: Trap
) -> None:
    stage = Stage(tmp_path / "stage", clock)
    inbox = Inbox(stage.spool, clock)
    future = inbox.put(str, 1)
    stage.work()
    [name] = os.listdir(f"{stage.spool.layout.outgoing}/inbox")
    path = Path(stage.spool.layout.outgoing, "inbox", name)
    if forge == "owner":
        os.chown(path, STRANGER, STRANGER)
    else:
        path.rename(tmp_path / "moved")
        os.mkfifo(path) if forge == "fifo" else path.symlink_to(tmp_path / "moved")
    inbox.look(rounds=60)
    assert isinstance(future.exception(timeout=0), NotTrusted if forge == "owner" else BadTaskFile)
    assert os.path.lexists(path)


@as_root
def test_a_claim_forged_by_another_account_is_not_resumed_by_the_worker(
    spool: Spool, trap: Trap, tmp_path: Path
) -> None:
    worker = new_worker_id()
    claimer = Claimer(spool, worker, lambda _: True, Trust())
    path = put(spool, trap)
    task_file = parse_task_file(path.name)
    assert task_file is not None
    forged = Path(spool.layout.claimed_task(task_file.claimed_by(worker)))
    path.rename(forged)
    os.chown(forged, STRANGER, STRANGER)
    assert claimer.forgotten() is None
    assert "not trusted" in claimer.refused[str(forged)]
    assert forged.exists()


def test_recovery_reads_headers_and_unpickles_nothing(tmp_path: Path, clock: Clock, trap: Trap) -> None:
    stage = Stage(tmp_path / "stage", clock)
    path = put(stage.spool, trap)
    task_file = parse_task_file(path.name)
    assert task_file is not None
    path.rename(stage.spool.layout.claimed_task(task_file.claimed_by(announce(stage.spool, dead_process()))))
    assert stage.recover()
    assert not os.path.exists(trap.trace)

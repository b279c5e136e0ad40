"""Open packs: calls are appended to a file of the spool, until one rename seals it."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import msgspec
import pytest

from spoolpool.errors import NotTrusted, TaskVanished
from spoolpool.format.names import TaskFile, open_pack_file, parse_task_file
from spoolpool.maintenance.check import check
from spoolpool.monitor.inventory import count_session_tasks
from spoolpool.monitor.scan import SpoolScanner
from spoolpool.monitor.status import StatusCollector
from spoolpool.protocol import cancel, open_packs
from spoolpool.protocol.delayed_tasks import DelayedTasks
from spoolpool.protocol.open_packs import OpenPack, OpenPackSealer
from spoolpool.protocol.packs import PackedCall, read_calls
from spoolpool.protocol.recovery import Recovery
from spoolpool.protocol.sessions import SessionInfo
from spoolpool.protocol.spool import Spool
from spoolpool.security.signing import make_key
from spoolpool.system import file_content, files
from tests.support.fake_worker import Clock, Stage, dead_process


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock.installed(monkeypatch)


@pytest.fixture
def stage(tmp_path: Path, clock: Clock) -> Stage:
    return Stage(tmp_path / "stage", clock)


def append(pack: OpenPack, text: bytes = b"a call") -> int:
    return pack.append(PackedCall(text, []))


def path_of(stage: Stage, pack: OpenPack) -> Path:
    return Path(stage.spool.layout.waiting, open_pack_file(pack.header.task).name)


def waiting_packs(stage: Stage) -> list[tuple[str, TaskFile]]:
    return [(path.split("/")[0], each) for path, each in stage.seen().ready.items()]


def payloads(stage: Stage) -> list[bytes]:
    [(path, task_file)] = stage.seen().ready.items()
    with files.reading(f"{stage.spool.path}/{path}") as (fd, _):
        return [bytes(each.payload) for each in read_calls(stage.spool, fd, path, task_file)[1]]


def silence(stage: Stage, sealer: OpenPackSealer) -> list[str]:
    """Observe the open packs until they have been silent for more than a lease."""
    done = []
    for _ in range(8):
        done += sealer.round()
        stage.clock.sleep(stage.spool.config.lease)
    return done


def test_open_pack_is_in_the_spool_and_its_seal_names_the_number_of_calls(stage: Stage) -> None:
    pack = stage.open_pack()
    assert all(pack.commit(append(pack, text)) for text in (b"one", b"two"))
    [(place, task_file)] = waiting_packs(stage)
    assert place == "waiting"
    assert task_file.is_open
    pack.seal()
    pack.seal()
    [(place, task_file)] = waiting_packs(stage)
    assert (place, task_file) == ("ready", pack.sealed)
    assert task_file == TaskFile(pack.header.task, 1, 1, calls=2)
    assert payloads(stage) == [b"one", b"two"]


def test_open_pack_without_calls_leaves_nothing(stage: Stage) -> None:
    stage.open_pack().seal()
    assert not stage.seen().ready


def test_open_pack_is_no_delayed_task_that_becomes_ready(stage: Stage) -> None:
    pack = stage.open_pack()
    pack.commit(append(pack))
    assert DelayedTasks(stage.spool).round() == 0
    assert path_of(stage, pack).exists()


def test_open_pack_is_not_cancelled_under_the_hands_of_its_submitter(stage: Stage) -> None:
    pack = stage.open_pack()
    pack.commit(append(pack))
    assert not cancel.cancel_task(stage.spool, pack.header, open_pack_file(pack.header.task), delayed=True)
    assert pack.commit(append(pack))


def test_check_finds_nothing_wrong_with_an_open_pack(stage: Stage) -> None:
    pack = stage.open_pack()
    assert not check(stage.spool)
    pack.commit(append(pack))
    assert not check(stage.spool)


def test_pack_of_a_submitter_that_appends_is_left_to_it(stage: Stage) -> None:
    sealer, pack = OpenPackSealer(stage.spool), stage.open_pack()
    for _ in range(8):
        assert pack.may_append
        assert pack.commit(append(pack))
        assert sealer.round() == []
        stage.clock.sleep(stage.spool.config.lease / 3)
    assert path_of(stage, pack).exists()


def test_pack_of_a_silent_submitter_is_sealed_with_its_complete_records(stage: Stage) -> None:
    pack = stage.open_pack()
    assert pack.commit(append(pack))
    with path_of(stage, pack).open("ab") as file:
        file.write(b"\x93SPOOL\r\n\x01torn")
    [text] = silence(stage, OpenPackSealer(stage.spool))
    assert "torn" in text
    assert [(place, each.calls) for place, each in waiting_packs(stage)] == [("ready", 1)]
    assert payloads(stage) == [b"a call"]


def test_pack_of_a_dead_submitter_is_sealed_by_the_next_round_of_recovery(stage: Stage) -> None:
    pack = stage.open_pack()
    assert pack.commit(append(pack))
    entry = Path(stage.spool.layout.session(pack.header.entry))
    entry.write_bytes(msgspec.json.encode(SessionInfo(process=dead_process(), user="tester")))
    recovery = Recovery(stage.spool)
    assert any(pack.header.task in text for text in recovery.round())
    assert [(place, each.calls) for place, each in waiting_packs(stage)] == [("ready", 1)]


@pytest.mark.parametrize("part", [0, 0.3, 0.6, 0.9])
def test_pack_that_is_torn_before_its_first_call_is_put_aside_as_an_unfinished_write(stage: Stage, part: float) -> None:
    pack = stage.open_pack()
    append(pack)
    pack.after_fork()
    path = path_of(stage, pack)
    with path.open("r+b") as file:
        file.truncate(int(path.stat().st_size * part))
    assert len(silence(stage, OpenPackSealer(stage.spool))) == 1
    assert not stage.seen().ready
    assert os.listdir(stage.spool.layout.tmp) == [pack.header.task]


def test_submitter_leaves_its_pack_after_half_a_lease(stage: Stage) -> None:
    pack = stage.open_pack()
    assert pack.commit(append(pack))
    stage.clock.sleep(stage.spool.config.lease / 2 + 0.01)
    assert not pack.may_append
    pack.seal()
    assert [(place, each.calls) for place, each in waiting_packs(stage)] == [("ready", 1)]


def test_call_is_in_the_pack_that_its_submitter_seals_after_a_silence_during_the_write(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = stage.open_pack()
    assert pack.commit(append(pack, b"one"))
    number = append(pack, b"two")
    stage.clock.sleep(stage.spool.config.lease)
    assert pack.commit(number)
    assert not pack.may_append
    assert payloads(stage) == [b"one", b"two"]


def test_call_that_was_appended_after_the_count_of_another_process_is_not_in_the_pack(stage: Stage) -> None:
    pack = stage.open_pack()
    assert pack.commit(append(pack, b"one"))
    assert silence(stage, OpenPackSealer(stage.spool))
    number = append(pack, b"two")  # paused before the write, it has not looked at the clock since
    assert not pack.commit(number)
    assert pack.sealed is not None
    assert pack.sealed.calls == 1
    assert payloads(stage) == [b"one"]


def test_call_that_another_process_has_counted_is_in_the_pack(stage: Stage) -> None:
    pack = stage.open_pack()
    number = append(pack, b"one")
    assert silence(stage, OpenPackSealer(stage.spool))
    assert pack.commit(number)
    assert payloads(stage) == [b"one"]


def test_call_without_a_pack_after_a_silence_is_reported(stage: Stage) -> None:
    pack = stage.open_pack()
    number = append(pack)
    path_of(stage, pack).unlink()
    stage.clock.sleep(stage.spool.config.lease)
    with pytest.raises(TaskVanished, match="Cannot tell whether a call"):
        pack.commit(number)


def test_first_call_after_a_long_pause_is_not_in_a_pack_that_was_put_aside(stage: Stage) -> None:
    pack = stage.open_pack()
    assert silence(stage, OpenPackSealer(stage.spool))
    assert not pack.commit(append(pack))


def test_two_processes_that_seal_agree(stage: Stage) -> None:
    pack = stage.open_pack()
    assert pack.commit(append(pack))
    sealers = [OpenPackSealer(stage.spool) for _ in range(2)]
    done = [text for _ in range(8) for text in (*sealers[0].round(), *silence_once(stage, sealers[1]))]
    assert len(done) == 1
    assert len(waiting_packs(stage)) == 1


def silence_once(stage: Stage, sealer: OpenPackSealer) -> list[str]:
    stage.clock.sleep(stage.spool.config.lease)
    return sealer.round()


def test_call_that_finds_no_space_is_not_in_the_pack_and_those_before_are(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = stage.open_pack()
    assert pack.commit(append(pack, b"one"))

    def full(fd: int, parts: object) -> None:
        os.write(fd, b"half of a record")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(file_content, "write_all", full)
        with pytest.raises(OSError, match="No space"):
            append(pack, b"two")
    assert not pack.may_append
    pack.seal()
    assert payloads(stage) == [b"one"]


def test_calls_that_cannot_be_synced_are_not_in_the_pack(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.durability("data")
    pack = stage.open_pack()
    assert pack.commit(append(pack, b"one"))
    numbers = [append(pack, b"two"), append(pack, b"three")]

    def broken(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(file_content, "sync", broken)
        for number in numbers:
            with pytest.raises(OSError, match="error"):
                pack.commit(number)
    assert payloads(stage) == [b"one"]


def test_call_of_a_pack_that_can_neither_be_synced_nor_sealed_is_unknown(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.durability("data")
    pack = stage.open_pack()
    assert pack.commit(append(pack, b"one"))
    number = append(pack, b"two")

    def broken(*_: object) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch:
        patch.setattr(file_content, "sync", broken)
        patch.setattr(open_packs, "move_to_bucket", broken)
        with pytest.raises(TaskVanished, match="durable"):
            pack.commit(number)
        assert pack.commit(0)
    silence(stage, OpenPackSealer(stage.spool))
    assert payloads(stage) == [b"one", b"two"]


def test_pack_gets_no_call_after_an_append_that_was_interrupted_before_it_was_counted(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = stage.open_pack()
    assert pack.commit(append(pack, b"one"))

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(open_packs, "_Appended", interrupted)
        with pytest.raises(KeyboardInterrupt):
            append(pack, b"two")
    assert not pack.may_append
    pack.seal()
    assert payloads(stage) == [b"one"]


def test_one_sync_serves_the_calls_of_all_threads_that_wait(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.durability("data")
    pack = stage.open_pack()
    assert pack.commit(append(pack))
    syncs: list[int] = []
    in_sync, may_end = threading.Event(), threading.Event()

    def slow(fd: int) -> None:
        syncs.append(fd)
        in_sync.set()
        may_end.wait()

    monkeypatch.setattr(file_content, "sync", slow)
    done: list[bool] = []

    def commit(number: int) -> None:
        done.append(pack.commit(number))

    threads = [threading.Thread(target=commit, args=(append(pack),))]
    threads[0].start()
    in_sync.wait()
    threads += [threading.Thread(target=commit, args=(append(pack),)) for _ in range(5)]
    for thread in threads[1:]:
        thread.start()
    may_end.set()
    for thread in threads:
        thread.join()
    assert done == [True] * 6
    assert len(syncs) == 2


def test_seal_that_fails_leaves_the_pack_to_others(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = stage.open_pack()
    assert pack.commit(append(pack))
    with monkeypatch.context() as patch:
        patch.setattr(open_packs, "move_to_bucket", lambda *_: (_ for _ in ()).throw(OSError(errno.EACCES, "denied")))
        pack.seal()
    assert pack.sealed is None
    assert not pack.may_append
    assert silence(stage, OpenPackSealer(stage.spool))
    assert [(place, each.calls) for place, each in waiting_packs(stage)] == [("ready", 1)]


def test_rename_that_was_done_but_raised_enoent_is_a_seal(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = stage.open_pack()
    assert pack.commit(append(pack))
    really = files.move

    def move(source: str, target: str, **options: str) -> None:
        really(source, target)
        raise FileNotFoundError(errno.ENOENT, "repeated", source)

    monkeypatch.setattr(files, "move", move)
    pack.seal()
    assert pack.sealed == TaskFile(pack.header.task, 1, 1, calls=1)
    assert [each for _, each in waiting_packs(stage)] == [pack.sealed]


def test_header_that_names_another_task_is_reported_and_left(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    one, two = stage.open_pack(), stage.open_pack()
    for pack in (one, two):
        pack.commit(append(pack))
    os.replace(path_of(stage, one), path_of(stage, two))
    assert silence(stage, OpenPackSealer(stage.spool)) == []
    assert "Cannot seal the open pack" in caplog.text
    assert path_of(stage, two).exists()


class TestSigned:
    """Open packs of a signed spool."""

    @pytest.fixture
    def stage(self, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Stage:
        monkeypatch.setenv("SPOOLPOOL_KEY", str(tmp_path / "key"))
        make_key(str(tmp_path / "key"))
        stage = Stage(tmp_path / "stage", clock)
        stage.spool = Spool.create(tmp_path / "signed", durability="none", lease=0.3, caches=0.5, signed=True)
        return stage

    def test_pack_is_sealed_for_a_silent_submitter(self, stage: Stage) -> None:
        pack = stage.open_pack()
        assert pack.commit(append(pack))
        assert silence(stage, OpenPackSealer(stage.spool))
        assert payloads(stage) == [b"a call"]

    @pytest.mark.parametrize("where", ["header", "signature"])
    def test_altered_record_is_refused(self, stage: Stage, where: str, caplog: pytest.LogCaptureFixture) -> None:
        pack = stage.open_pack()
        assert pack.commit(append(pack))
        path = path_of(stage, pack)
        data = bytearray(path.read_bytes())
        data[data.index(b"tested") if where == "header" else -3] ^= 1
        path.write_bytes(data)
        assert silence(stage, OpenPackSealer(stage.spool)) == []
        assert path.exists()
        assert "Cannot seal" in caplog.text

    def test_record_of_another_pack_is_refused(self, stage: Stage) -> None:
        packs = [stage.open_pack() for _ in range(2)]
        for pack in packs:
            assert pack.commit(append(pack))
        one, two = (path_of(stage, pack) for pack in packs)
        header = len(one.read_bytes()) // 2
        with one.open("ab") as file:
            file.write(two.read_bytes()[-header // 2 :])
        with files.reading(str(one)) as (fd, _):
            count, torn = open_packs.count_calls(stage.spool, fd, str(one), packs[0].header.task)
        assert (count, torn) == (1, True)
        data = two.read_bytes()
        task = packs[0].header.task
        whole = one.with_name(open_pack_file(task).name)
        whole.write_bytes(data)  # the whole pack of another task
        with files.reading(str(whole)) as (fd, _), pytest.raises(NotTrusted):
            open_packs.count_calls(stage.spool, fd, str(whole), task)


def test_name_of_an_open_pack_is_that_of_no_claim() -> None:
    name = open_pack_file("500-00000000000001-0123456789")
    assert parse_task_file(name.name) == name
    assert name.is_open
    assert not name._replace(claim=1).is_open
    assert not name._replace(calls=0).is_open


def test_status_and_sessions_count_the_calls_of_an_open_pack_as_waiting(stage: Stage) -> None:
    pack = stage.open_pack()
    collector = StatusCollector(stage.spool)
    for count in (1, 2, 3):
        assert pack.commit(append(pack))
        [row] = collector.collect().counts
        assert row.states["waiting"] == count
        assert row.lane == pack.header.lane
        counts = count_session_tasks(stage.spool, SpoolScanner(stage.spool.layout.root))[stage.session]
        assert counts.states["waiting"] == count

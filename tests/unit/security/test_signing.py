"""Signed spools: a file without a valid signature is not unpickled, not used and not removed."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from spoolpool import Executor
from spoolpool.calls import pickling
from spoolpool.calls.run import RankResult
from spoolpool.cli.spool import main
from spoolpool.client.result_cache import open_cache
from spoolpool.errors import BadRequest, BadTaskFile, NoKey, NotASpool, NotTrusted
from spoolpool.format import envelope, headers
from spoolpool.format.headers import TaskHeader
from spoolpool.format.names import TaskFile, bucket_name, new_submitter_id, new_task_id, new_worker_id, parse_task_file
from spoolpool.protocol.claimer import Claimer
from spoolpool.protocol.objects import put_object, read_object
from spoolpool.protocol.recovery import Recovery
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.submit import Submitter
from spoolpool.security import known_spools, signing
from spoolpool.security.trust import Trust
from spoolpool.system import file_content, files
from spoolpool.worker.publish import outcome_parts
from tests.conftest import Workers
from tests.support import tasks
from tests.support.accounts import as_root, become, public_directory, unused_id
from tests.support.fake_worker import LANE, Clock, Inbox, Stage, announce, dead_process, outcome_of
from tests.support.processes import in_fork
from tests.support.waiting import LIMIT, wait_until

BIN = Path(sys.executable).parent


class Trap:
    """Object with a pickle that makes a directory when it is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.trace,)


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Trap]:
    trap = Trap(tmp_path / "sprung")
    yield trap
    assert not os.path.exists(trap.trace)


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The key file of all processes of the test."""
    path = tmp_path / "key"
    monkeypatch.setenv("SPOOLPOOL_KEY", str(path))
    signing.make_key(str(path))
    return path


@pytest.fixture
def spool(tmp_path: Path, key: Path) -> Spool:
    return Spool.create(tmp_path / "spool", durability="none", signed=True)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock.installed(monkeypatch)
    monkeypatch.setattr(signing, "time", clock)
    return clock


@pytest.fixture
def stage(tmp_path: Path, clock: Clock, key: Path) -> Stage:
    """A stage with a signed spool."""
    stage = Stage(tmp_path / "stage", clock)
    config = msgspec.structs.replace(stage.spool.config, signed=True)
    Path(stage.spool.layout.config).write_bytes(msgspec.json.encode(config))
    stage.spool = Spool(stage.spool.path)
    return stage


def claimer(spool: Spool) -> Claimer:
    return Claimer(Spool(spool.path), new_worker_id(), lambda _: True, Trust())


def put(spool: Spool, value: object) -> Path:
    """Submit a task and return its file."""
    name = new_task_id()
    header = TaskHeader(task=name, session="inbox", lane=LANE, bucket=bucket_name(name, new_submitter_id()))
    task_file = Submitter(spool).submit(header, envelope.pack(headers.encode(header), *pickling.dumps(value)))
    return Path(spool.layout.bucket(header.lane, header.bucket), task_file.name)


def without_signature(path: Path) -> bytes:
    return path.read_bytes()[: -signing.SIZE]


def keep_old_signature(path: Path, trap: Trap, spool: Spool) -> None:
    """Put a trap into a task file, with a valid checksum and the old signature."""
    data = path.read_bytes()
    header_length = int.from_bytes(data[12:16], "little")
    payload, _ = pickling.dumps(trap)
    forged = b"".join(map(bytes, envelope.pack(data[32 : 32 + header_length], payload)))
    path.write_bytes(forged + data[-signing.SIZE :])


# -- tasks


def unsign(path: Path, trap: Trap, spool: Spool) -> None:
    path.write_bytes(without_signature(path))


def rename(path: Path, trap: Trap, spool: Spool) -> None:
    path.rename(path.with_name(TaskFile(new_task_id(), 1, 1).name))


def take_from_another_spool(path: Path, trap: Trap, spool: Spool) -> None:
    other = Spool.create(f"{spool.path}-2", durability="none", signed=True)
    alien = put(other, trap)
    path.unlink()
    alien.rename(path.with_name(alien.name))


def sign_as_outcome(path: Path, trap: Trap, spool: Spool) -> None:
    assert spool.signature is not None
    data, task_file = without_signature(path), parse_task_file(path.name)
    assert task_file is not None
    path.write_bytes(data + spool.signature.sign(signing.outcome_label("inbox", task_file.name), [data]))


def sign_with_another_key(path: Path, trap: Trap, spool: Spool) -> None:
    data, task_file = without_signature(path), parse_task_file(path.name)
    assert task_file is not None
    other = signing.Signature(spool.config.id, os.urandom(32))
    other.load()
    path.write_bytes(data + other.sign(signing.task_label(task_file.task), [data]))


@pytest.mark.parametrize(
    ("forge", "word"),
    [
        (keep_old_signature, "signature"),
        (unsign, "not signed"),
        (rename, "another name"),
        (take_from_another_spool, "another spool"),
        (sign_as_outcome, "signature"),
        (sign_with_another_key, "is signed with the key"),
    ],
)
def test_a_forged_task_stays_and_the_next_task_is_claimed(
    forge: Callable[[Path, Trap, Spool], None], word: str, spool: Spool, trap: Trap
) -> None:
    path = put(spool, "sent by its owner")
    forge(path, trap, spool)
    [left] = path.parent.iterdir()
    worker = claimer(spool)
    assert worker.next() is None
    assert word in worker.refused[str(left)]
    assert left.exists() and os.listdir(spool.layout.claimed) == os.listdir(spool.layout.failed) == []
    good = put(spool, 1)
    claim = worker.next()
    assert claim is not None and good.name.startswith(claim.task_file.task)
    claim.close()


def test_a_torn_task_is_set_aside_in_a_signed_spool_too(spool: Spool, trap: Trap) -> None:
    path = put(spool, "sent by its owner")
    path.write_bytes(path.read_bytes()[:-60] + bytes(60))
    assert claimer(spool).next() is None
    assert os.listdir(spool.layout.failed)


def test_a_header_is_not_returned_without_a_valid_signature(spool: Spool, trap: Trap) -> None:
    path = put(spool, "sent by its owner")
    task_file = parse_task_file(path.name)
    assert task_file is not None
    keep_old_signature(path, trap, spool)
    fd = files.open_file(str(path))
    try:
        with pytest.raises(NotTrusted):
            spool.read_header(fd, file_content.size(fd), str(path), signing.task_label(task_file.task))
    finally:
        files.close(fd)


def test_files_of_an_unsigned_spool_have_no_signature(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path / "spool", durability="none")
    data = put(spool, 1).read_bytes()
    assert int.from_bytes(data[24:32], "little") == len(data)
    assert spool.signature is None


# -- outcomes, recovery, objects


def test_tasks_are_run_and_their_outcomes_delivered(stage: Stage) -> None:
    inbox = stage.inbox()
    headers = [stage.submit(inbox) for _ in range(3)]
    stage.work()
    stage.collect(inbox, headers)
    assert len(stage.notes("delivered")) == len(stage.runs()) == 3
    assert "surprise" not in stage.diary.read_text()


def test_commands_read_signed_files_only(stage: Stage, trap: Trap) -> None:
    task_id = stage.inbox().put(str, 1).task
    assert json.loads(CliRunner().invoke(main, ["ls", "--json", stage.spool.path]).output)["name"] == "tested"
    stage.work()
    assert CliRunner().invoke(main, ["result", stage.spool.path, task_id]).output == "1\n"
    [path] = Path(stage.spool.layout.outgoing, "inbox").iterdir()
    keep_old_signature(path, trap, stage.spool)
    refused = CliRunner().invoke(main, ["result", stage.spool.path, task_id])
    assert refused.exit_code == NotTrusted.exit_code, refused.output


def test_an_outcome_with_a_wrong_signature_is_not_unpickled_and_fails_the_future(stage: Stage, trap: Trap) -> None:
    inbox = stage.inbox()
    future = inbox.put(str, 1)
    stage.work()
    [path] = Path(stage.spool.layout.outgoing, "inbox").iterdir()
    keep_old_signature(path, trap, stage.spool)
    inbox.look()
    assert isinstance(future.exception(timeout=0), NotTrusted)
    assert path.exists()


def test_the_outcome_of_another_task_is_refused(stage: Stage) -> None:
    inbox = stage.inbox()
    first, second = inbox.put(str, 1), inbox.put(str, 2)
    stage.work()
    one, two = sorted(Path(stage.spool.layout.outgoing, "inbox").iterdir())
    one.write_bytes(two.read_bytes())
    inbox.look()
    assert isinstance(first.exception(timeout=0), NotTrusted)
    assert second.result(timeout=0) == "2"


@pytest.mark.parametrize("forge", [keep_old_signature, unsign])
def test_a_recoverer_commits_no_outcome_without_a_good_signature_and_the_task_runs(
    forge: Callable[[Path, Trap, Spool], None], stage: Stage, trap: Trap
) -> None:
    inbox = stage.inbox()
    header = stage.submit(inbox)
    claim = Claimer(stage.spool, announce(stage.spool, dead_process()), lambda _: True, Trust()).next()
    assert claim is not None
    claim.write_outcome(outcome_of(header, claim.task_file))
    claim.close()
    forge(Path(stage.spool.layout.outcome(header.session, claim.task_file)), trap, stage.spool)
    stage.recover(rounds=1)
    assert os.listdir(f"{stage.spool.layout.results}/inbox") == []
    stage.work()
    stage.collect(inbox, [header])
    assert stage.notes("delivered")[header.task] == 1 and stage.runs()[header.task] == 1


def test_a_recoverer_without_the_key_changes_nothing(stage: Stage, key: Path) -> None:
    header = stage.submit()
    claim = Claimer(stage.spool, announce(stage.spool, dead_process()), lambda _: True, Trust()).next()
    assert claim is not None
    claim.write_outcome(outcome_of(header, claim.task_file))
    claim.close()
    key.rename(key.with_name("away"))
    before = stage.seen()
    assert Recovery(Spool(stage.spool.path)).round() == []
    assert stage.seen() == before
    key.with_name("away").rename(key)
    assert len(Recovery(Spool(stage.spool.path)).round()) == 1
    assert len(stage.seen().results) == 1


def test_an_object_under_another_name_is_not_unpickled(spool: Spool) -> None:
    name = put_object(spool, b"pickle", [], "inbox")
    assert bytes(read_object(spool, name, Trust()).payload) == b"pickle"
    path = Path(spool.layout.objects, name)
    forged = path.with_name("0" * 32)
    forged.write_bytes(path.read_bytes())
    with pytest.raises(NotTrusted):
        read_object(spool, forged.name, Trust())


# -- large files


@pytest.fixture
def large(spool: Spool) -> Path:
    """A task file with a buffer that begins at a page."""
    name = new_task_id()
    header = TaskHeader(task=name, session="inbox", lane=LANE, bucket=bucket_name(name, "0" * 8))
    task_file = Submitter(spool).submit(header, envelope.pack(headers.encode(header), b"pickle", [bytes(3 << 20)]))
    return Path(spool.layout.bucket(header.lane, header.bucket), task_file.name)


def test_the_buffers_of_a_large_file_are_aligned_and_can_be_written_to(spool: Spool, large: Path) -> None:
    claim = claimer(spool).next()
    assert claim is not None
    [buffer] = claim.content.buffers
    assert isinstance(buffer, memoryview) and not buffer.readonly
    assert ctypes.addressof(ctypes.c_char.from_buffer(buffer)) % 16 == 0, "as memory of malloc"
    claim.close()


def test_content_cannot_be_changed_after_its_signature_was_checked(spool: Spool, large: Path) -> None:
    claim = claimer(spool).next()
    assert claim is not None
    with open(spool.layout.claimed_task(claim.task_file), "r+b") as file:
        file.seek(2 << 20)
        file.write(b"changed")
    assert not any(claim.content.buffers[0])
    claim.close()


def test_signing_copies_no_buffer(spool: Spool) -> None:
    parts = envelope.pack(b"{}", b"", [memoryview(bytearray(1 << 20))])
    written: list[list[envelope.Buffer]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "create", lambda path, parts, **_: written.append(parts))
        spool.write("path", "label", parts)
    assert all(mine is theirs for mine, theirs in zip(parts, written[0], strict=False))
    assert len(written[0]) == len(parts) + 1


def test_a_file_larger_than_the_memory_is_a_bad_task_file(spool: Spool, large: Path) -> None:
    size = 1 << 43  # sparse: it takes no space on the disk
    with large.open("r+b") as file:
        data = file.read(32)
        file.seek(0)
        file.write(data[:24] + (size - signing.SIZE).to_bytes(8, "little"))
        try:
            file.truncate(size)
        except OSError as error:
            pytest.skip(f"no file of 8 TiB here: {error}")
    fd = files.open_file(str(large))
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mmap, "mmap", _no_memory)
            with pytest.raises(BadTaskFile, match="no memory"):
                spool.read(fd, size, str(large), "label")
    finally:
        files.close(fd)


def _no_memory(*_: object) -> None:
    raise OSError(12, "Cannot allocate memory")


# -- keys


def test_a_missing_key_is_reported_at_once(spool: Spool, key: Path) -> None:
    key.unlink()
    for use in (lambda: Inbox(Spool(spool.path), Clock()), lambda: claimer(spool)):
        with pytest.raises(NoKey, match=f"{key}.*spool key new"):
            use()


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o604, 0o700, 0o602])
def test_a_key_that_others_may_read_or_write_is_refused(mode: int, spool: Spool, key: Path) -> None:
    key.chmod(mode)
    with pytest.raises(NoKey, match=f"mode {mode:04o}"):
        claimer(spool)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o400])
def test_a_key_may_be_shared_with_a_group(mode: int, spool: Spool, key: Path) -> None:
    key.chmod(mode)
    claimer(spool)


def test_a_key_file_that_is_a_link_or_is_damaged_is_refused(spool: Spool, key: Path, tmp_path: Path) -> None:
    text = key.read_text()
    for damaged in (text[:-3], "", text.replace(text[-10], "z" if text[-10] != "z" else "y"), text + "more\n"):
        key.write_text(damaged)
        with pytest.raises(NoKey, match="damaged"):
            claimer(spool)
    key.rename(tmp_path / "real")
    key.symlink_to(tmp_path / "real")
    with pytest.raises(NoKey, match="symbolic links"):
        claimer(spool)


@as_root
@pytest.mark.multiuser
def test_a_key_of_another_account_is_refused_except_roots() -> None:
    reader, other = unused_id(), unused_id()

    def read() -> object:
        become(reader)
        return len(signing.read_keys(str(key)))

    with public_directory() as place:
        key = place / "key"
        signing.make_key(str(key))
        key.chmod(0o640)
        os.chown(key, 0, reader)
        assert in_fork(read) == 1
        os.chown(key, other, reader)
        error = in_fork(read)
    assert isinstance(error, NoKey) and f"belongs to uid {other}" in str(error)


def test_without_the_variable_the_key_is_in_the_configuration_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SPOOLPOOL_KEY", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    spool = Spool.create(tmp_path / "spool", signed=True)
    assert spool.signature is not None
    assert spool.signature.path == f"{tmp_path}/config/spoolpool/keys/{spool.config.id}"
    signing.make_key(spool.signature.path)
    assert os.stat(spool.signature.path).st_mode & 0o777 == 0o600
    put(spool, 1)


# -- a spool.json that says otherwise


def forge_config(spool: Spool, **changes: object) -> None:
    """Change settings in ``spool.json`` as an account that can write there does."""
    content = {**json.loads(Path(spool.layout.config).read_bytes()), **changes}
    Path(spool.layout.config).write_text(json.dumps(content))


@pytest.fixture(params=["named by SPOOLPOOL_KEY", "of the account", "of the account, elsewhere"])
def unsigned(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spool:
    """A signed spool whose ``spool.json`` says that it is not, and a new process of an account with its key."""
    if request.param == "named by SPOOLPOOL_KEY":
        monkeypatch.setenv("SPOOLPOOL_KEY", str(tmp_path / "key"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    spool = Spool.create(tmp_path / "spool", durability="none", signed=True)
    path = signing.key_path(spool.config.id)
    signing.make_key(path)
    if request.param == "of the account, elsewhere":  # it has never used the spool
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "other"))
        copy = Path(signing.key_path(spool.config.id))
        copy.parent.mkdir(parents=True)
        copy.write_bytes(Path(path).read_bytes())
        copy.chmod(0o600)
    forge_config(spool, signed=False)
    known_spools._seen.clear()
    return spool


def test_worker_with_a_key_runs_no_unsigned_task_whatever_the_spool_says(unsigned: Spool, trap: Trap) -> None:
    path = put(unsigned, trap)
    path.write_bytes(without_signature(path))
    worker = claimer(Spool(unsigned.path))
    assert worker.next() is None and "is not signed" in worker.refused[str(path)]
    assert path.exists()


def test_submitter_with_a_key_reads_no_unsigned_outcome_whatever_the_spool_says(
    unsigned: Spool, trap: Trap, clock: Clock
) -> None:
    inbox = Inbox(Spool(unsigned.path), clock)
    future = inbox.put(os.mkdir, trap.trace)
    claim = claimer(unsigned).next()
    assert claim is not None
    payload, buffers = pickling.dumps(trap)
    result = RankResult(payload, buffers, None)
    claim.write_outcome(outcome_parts(claim.header, claim.task_file, result, 1, 0.0))
    claim.commit()
    outcome = next(Path(unsigned.path, "outgoing", "inbox").iterdir())
    outcome.write_bytes(without_signature(outcome))
    inbox.look()
    assert isinstance(future.exception(timeout=0), NotTrusted)


def test_commands_with_a_key_read_no_unsigned_file_whatever_the_spool_says(unsigned: Spool, trap: Trap) -> None:
    path = put(unsigned, trap)
    path.write_bytes(without_signature(path))
    shown = command("spool", "check", unsigned.path)
    assert shown.returncode == 1 and "is not signed" in shown.stdout
    assert command("spool", "key", "show", unsigned.path).returncode == 0
    ended = command("spool-worker", unsigned.path, "--idle-timeout", "0.2")
    assert ended.returncode == 0 and "signatures are required" in ended.stderr
    assert path.exists()


@pytest.mark.parametrize("more", [{}, {"signed": False}])
def test_known_signed_spool_with_another_id_is_refused(spool: Spool, key: Path, more: dict[str, object]) -> None:
    Spool(spool.path)
    forge_config(spool, id="0123456789abcdef", **more)
    for _ in range(2):
        with pytest.raises(NotTrusted, match=rf"id {spool.config.id}.*id 0123456789abcdef.*spool accept"):
            Spool(spool.path)
        known_spools._seen.clear()  # as in a new process
    key.unlink()
    with pytest.raises(NotTrusted, match="spool accept"):
        Spool(spool.path)


def test_known_signed_spool_needs_its_key_whatever_the_spool_says(spool: Spool, key: Path, trap: Trap) -> None:
    Spool(spool.path)
    path = put(spool, trap)
    forge_config(spool, signed=False)
    path.write_bytes(without_signature(path))
    key.unlink()
    known_spools._seen.clear()
    with pytest.raises(NoKey):
        Spool(spool.path).need_key()
    with pytest.raises(NoKey):
        Executor(spool=spool.path)


def test_running_process_keeps_requiring_signatures(spool: Spool, trap: Trap) -> None:
    worker = claimer(spool)
    path = put(spool, trap)
    forge_config(spool, signed=False)
    path.write_bytes(without_signature(path))
    assert worker.next() is None and "is not signed" in worker.refused[str(path)]


def test_cache_of_a_known_spool_without_its_config_is_not_read(spool: Spool) -> None:
    Spool(spool.path)
    Path(spool.layout.config).unlink()
    with pytest.raises(NotASpool):
        open_cache(spool.path, Trust())


@pytest.mark.parametrize("forged", ["../../key", "", "0" * 65, "a/b"])
def test_id_that_is_no_name_is_refused_before_it_becomes_a_path(spool: Spool, forged: str) -> None:
    forge_config(spool, id=forged)
    with pytest.raises(NotASpool, match="was not written by"):
        Spool(spool.path)


def test_embedded_executor_needs_no_signatures_where_a_key_is_named(key: Path) -> None:
    with Executor(max_workers=1) as executor:
        assert executor.submit(pow, 2, 5).result(LIMIT) == 32


# -- rotation


def test_two_keys_are_valid_during_a_rotation(spool: Spool, key: Path) -> None:
    worker = claimer(spool)
    put(spool, 1)
    signing.rotate_key(str(key))
    put(Spool(spool.path), 2)
    for _ in range(2):  # an unknown key makes it read the key file again
        claim = worker.next()
        assert claim is not None
        claim.close()
    old = put(spool, 3)
    signing.rotate_key(str(key), finish=True)
    late = claimer(spool)
    assert late.next() is None and "is signed with the key" in late.refused[str(old)]
    assert old.exists()


def test_a_running_process_signs_with_the_new_key_within_a_minute(spool: Spool, key: Path, clock: Clock) -> None:
    put(spool, 1)
    new, old = signing.rotate_key(str(key))
    assert put(spool, 2).read_bytes()[-signing.SIZE :][:8].hex() == old.id
    clock.sleep(60.0)
    assert put(spool, 3).read_bytes()[-signing.SIZE :][:8].hex() == new.id
    key.unlink()  # unreachable for a moment
    clock.sleep(60.0)
    assert put(spool, 4).read_bytes()[-signing.SIZE :][:8].hex() == new.id


def test_a_task_is_claimed_once_its_key_has_arrived(spool: Spool, key: Path, clock: Clock) -> None:
    before = key.read_bytes()
    worker = claimer(spool)
    signing.rotate_key(str(key))
    path = put(Spool(spool.path), 1)
    after = key.read_bytes()
    key.write_bytes(before)
    assert worker.next() is None and path.exists()
    key.write_bytes(after)
    clock.sleep(61.0)
    claim = worker.next()
    assert claim is not None
    claim.close()


def test_a_result_is_delivered_once_its_key_has_arrived(stage: Stage, key: Path) -> None:
    inbox = stage.inbox()
    future = inbox.put(str, 1)
    before = key.read_bytes()
    signing.rotate_key(str(key))
    submitter, stage.spool = stage.spool, Spool(stage.spool.path)
    assert submitter.signature is not None
    stage.work()
    after = key.read_bytes()
    key.write_bytes(before)
    inbox.look(rounds=1)
    assert not future.done()
    key.write_bytes(after)
    inbox.look(rounds=1)
    assert future.result(timeout=0) == "1"


def test_a_rotated_key_file_keeps_its_mode_and_a_concurrent_rotation_is_refused(key: Path) -> None:
    key.chmod(0o640)
    signing.rotate_key(str(key))
    assert key.stat().st_mode & 0o777 == 0o640
    Path(f"{key}.new").touch()
    with pytest.raises(BadRequest, match=r"key\.new exists"):
        signing.rotate_key(str(key))
    with pytest.raises(BadRequest, match="rotate"):
        signing.make_key(str(key))


# -- with real processes


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    name, *rest = map(str, arguments)
    return subprocess.run([BIN / name, *rest], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=LIMIT)


def test_commands_and_executors_use_a_signed_spool(
    tmp_path: Path, worker: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "spool"
    monkeypatch.setenv("SPOOLPOOL_KEY", str(tmp_path / "key"))
    assert command("spool", "init", path, "--signed", "--durability", "none").returncode == 0
    refused = command("spool-worker", path)
    assert refused.returncode == NoKey.exit_code == 18 and "spool key new" in refused.stderr
    with pytest.raises(NoKey):
        Executor(spool=path)
    made = command("spool", "key", "new", path)
    (line,) = (tmp_path / "key").read_text().splitlines()[1:]
    identity, secret = line.split()
    assert made.stdout.split(maxsplit=2) == [identity, "signs", f"{tmp_path / 'key'}\n"]
    serving = worker(path)
    with Executor(spool=path, init_function=tasks.make_presets) as executor:
        assert executor.submit(pow, 2, 5).result(LIMIT) == 32
        rotated = command("spool", "key", "rotate", path)
        assert rotated.stdout.split()[1::3] == ["signs", "valid"] and rotated.stdout.split()[3] == identity
        assert executor.submit(tasks.take_preset, 1).result(LIMIT)[0] == 1
    with Executor(spool=path) as executor:
        assert executor.submit(len, bytes(3 << 20)).result(LIMIT) == 3 << 20  # with the new key
    assert command("spool", "key", "rotate", path, "--finish").stdout.count("\n") == 1
    shown = command("spool", "key", "show", path)
    assert identity not in shown.stdout and secret not in shown.stdout + rotated.stdout + made.stdout
    assert command("spool", "check", path).returncode == 0
    assert serving.poll() is None
    assert command("spool", "key", "new", Spool.create(tmp_path / "plain").path).returncode == BadRequest.exit_code


@pytest.mark.mpi
def test_a_rank_without_a_key_file_signs_with_the_key_from_rank_0(spool: Spool, key: Path, tmp_path: Path) -> None:
    from spoolpool.launch.mpiexec import find_mpiexec
    from spoolpool.protocol import workers
    from tests.support import mpi_tasks

    mpiexec = find_mpiexec()
    if mpiexec is None:
        pytest.skip("no mpiexec")
    run = [sys.executable, "-m", "spoolpool.cli.worker", spool.path, "--grace", "0.2"]
    lonely = ["env", "-u", "SPOOLPOOL_KEY", f"XDG_CONFIG_HOME={tmp_path}"]
    ranks = subprocess.Popen(
        [mpiexec, "-n", "1", *run, ":", "-n", "1", *lonely, *run], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        wait_until(lambda: workers.read_workers(spool), "the group announced itself")
        with Executor(spool=spool.path, cores_per_worker=2) as executor:
            error = executor.submit(mpi_tasks.raises_while_others_wait, 1, tmp_path / "trace").exception(LIMIT)
        assert isinstance(error, tasks.OwnError)
    finally:
        ranks.terminate()
        ranks.communicate(timeout=LIMIT)

"""Help, output, one-line errors and exit codes of the commands."""

from __future__ import annotations

import errno
import itertools
import json
import logging
import os
import re
import shlex
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click.testing
import msgspec
import pytest

from spoolpool import Executor, __version__, settings
from spoolpool.cli import worker
from spoolpool.cli.spool import COMMANDS, main
from spoolpool.errors import BadRequest, NotASpool, SpoolDenied, SpoolFull, SpoolpoolError, SpoolVersion
from spoolpool.format import envelope
from spoolpool.format import headers as records
from spoolpool.format.headers import TaskHeader
from spoolpool.format.layout import Layout
from spoolpool.format.names import FORMAT, TaskFile, bucket_name, new_submitter_id, new_task_id, new_worker_id
from spoolpool.monitor.status import StatusCollector
from spoolpool.protocol import workers
from spoolpool.protocol.journal import Journal
from spoolpool.protocol.spool import Spool
from spoolpool.system import files
from spoolpool.system.accounts import account_name
from tests.conftest import Workers
from tests.end_to_end.test_docs import codes, section, table
from tests.support import tasks
from tests.support.accounts import as_another, as_root, public_directory
from tests.support.fake_worker import LANE, announce, dead_process, unknown_process
from tests.support.waiting import LIMIT, wait_until

BIN = Path(sys.executable).parent


def run(*arguments: object, **variables: str | None) -> click.testing.Result:
    words = [str(each) for each in arguments]
    variables = {settings.ENV_SPOOL: None, **variables}
    return click.testing.CliRunner().invoke(main, words, prog_name="spool", env=variables)


def command(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own."""
    words = [str(BIN / "spool"), *(str(each) for each in arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=LIMIT, stdin=subprocess.DEVNULL, **options)


def put(spool: Spool, place: str, *, lane: str = LANE, worker_id: str = "") -> TaskFile:
    """Create a task file in one place of a spool; return its name."""
    task = new_task_id()
    header = TaskHeader(task=task, session="inbox", lane=lane, bucket=bucket_name(task, new_submitter_id()))
    task_file = TaskFile(task, 1, 1, worker_id)
    directory = spool.layout.bucket(lane, header.bucket) if place == "ready" else f"{spool.path}/{place}"
    spool.make_directories(directory)
    files.create(f"{directory}/{task_file.name}", envelope.pack(records.encode(header), b"x"))
    return task_file


# --------------------------------------------------------------------------------------------- help


def test_help_lists_all_commands_and_imports_none() -> None:
    program = (
        "import sys\n"
        "from spoolpool.cli.spool import main\n"
        "main(['--help'], prog_name='spool', standalone_mode=False)\n"
        "print(sorted(name for name in sys.modules if name.startswith('spoolpool')))\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0
    assert all(f"  {name}" in result.stdout for name in COMMANDS)
    imported = result.stdout.splitlines()[-1]
    assert not any(f"spoolpool.cli.{name}'" in imported for name in COMMANDS)
    assert "spoolpool.protocol.spool'" not in imported


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_of_a_command_describes_its_options(name: str, option: str) -> None:
    result = run(name, option)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: spool {name} [OPTIONS]")
    found = main.get_command(click.Context(main), name)
    assert found is not None and found.help
    for parameter in found.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help and parameter.opts[-1] in result.stdout


def test_help_of_the_worker_describes_its_options() -> None:
    result = click.testing.CliRunner().invoke(worker.main, ["--help"], prog_name="spool-worker")
    assert result.exit_code == 0
    for parameter in worker.main.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help and parameter.opts[0] in result.stdout


def test_both_programs_are_installed_and_print_their_version() -> None:
    assert __version__ in command("--version").stdout
    assert subprocess.run([BIN / "spool-worker", "--help"], capture_output=True).returncode == 0


def test_help_has_one_line_per_command() -> None:
    for name, text in COMMANDS.items():
        found = main.get_command(click.Context(main), name)
        assert found is not None and found.name == name
        assert text in run("--help").stdout


@pytest.mark.parametrize("words", [["nonsense"], ["--nonsense"], ["status", "--nonsense"], ["status", "a", "b"]])
def test_usage_error_prints_the_usage(words: list[str]) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert result.stderr.startswith("Usage: spool")


# --------------------------------------------------------------------------------------------- init


def test_init_creates_a_spool_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "parent" / "spool"
    old = os.umask(0)
    try:
        result = run("init", path, "--durability", "full", "--lease", 7.5, "--max-attempts", 5, "--caches", 0)
    finally:
        os.umask(old)
    assert result.exit_code == 0
    config = Spool(path).config
    assert (config.durability, config.lease, config.max_attempts, config.caches) == ("full", 7.5, 5, 0.0)
    assert result.stdout == f"Created the spool {path} (id {config.id}).\n"
    assert {stat.S_IMODE(each.stat().st_mode) for each in path.rglob("*") if each.is_dir()} == {0o700}
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE((path / "spool.json").stat().st_mode) == 0o600


def test_init_restricts_an_empty_directory_to_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    path.mkdir(mode=0o777)
    path.chmod(0o777)
    assert run("init", path).exit_code == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_init_refuses_a_directory_that_is_not_empty(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    path.mkdir(mode=0o755)
    (path / "thesis.tex").write_text("precious")
    result = run("init", path)
    assert result.exit_code == BadRequest.exit_code
    assert "it is not empty (it has 'thesis.tex')" in result.stderr
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert os.listdir(path) == ["thesis.tex"]


def test_init_refuses_an_existing_spool(spool: Spool) -> None:
    result = run("init", spool.path)
    assert result.exit_code == BadRequest.exit_code
    assert "is a spool already" in result.stderr
    assert Spool(spool.path).config == spool.config


def test_init_refuses_the_path_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert run("init", tmp_path / "file").exit_code == 2
    result = run("init", tmp_path / "file" / "spool")
    assert result.exit_code == SpoolpoolError.exit_code
    assert str(tmp_path / "file") in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--lease", 0),
        ("--lease", -1),
        ("--lease", "nan"),
        ("--lease", "inf"),
        ("--caches", -1),
        ("--caches", "nan"),
        ("--caches", "inf"),
    ],
)
def test_init_refuses_invalid_settings_and_creates_nothing(tmp_path: Path, option: str, value: object) -> None:
    result = run("init", tmp_path / "spool", f"{option}={value}")
    assert result.exit_code == BadRequest.exit_code
    assert option[2:] in result.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "words", [["--max-attempts", "0"], ["--max-attempts", "100"], ["--lease", "soon"], ["--durability", "some"]]
)
def test_init_refuses_values_of_the_wrong_type_or_range(tmp_path: Path, words: list[str]) -> None:
    assert run("init", tmp_path / "spool", *words).exit_code == 2
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("exists", [False, True])
def test_init_on_a_full_disk_fails_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    path = tmp_path / "spool"
    if exists:
        path.mkdir()

    def full(path: str, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "create", full)
        result = run("init", path)
    assert result.exit_code == SpoolFull.exit_code
    assert "No space left" in result.stderr and str(path) in result.stderr
    assert list(tmp_path.rglob("*")) == ([path] if exists else [])
    assert run("init", path).exit_code == 0


@as_root
@pytest.mark.multiuser
def test_init_without_write_permission_is_an_error() -> None:
    with public_directory() as place:

        def init() -> object:
            result = run("init", place / "spool")
            return result.exit_code, result.stderr

        code, text = as_another(init)  # type: ignore[misc]
    assert code == SpoolDenied.exit_code
    assert "Permission denied" in text and "Traceback" not in text


# ------------------------------------------------------------------------------------------- status


def read_status(spool: Spool) -> dict[str, Any]:
    """Return the output of 'spool status --json'."""
    result = run("status", "--json", spool.path)
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_status_of_an_empty_spool(spool: Spool) -> None:
    assert run("status", spool.path).stdout == (
        f"Spool    {spool.path}\n"
        "Tasks    0 held, 0 waiting, 0 running, 0 done, 0 raised, 0 lost, 0 cancelled, 0 failed\n"
        "Groups   none alive\n"
    )


def test_status_of_a_busy_spool(spool: Spool, worker: Workers, tmp_path: Path) -> None:
    worker(spool)
    put(spool, "failed", worker_id=new_worker_id())
    with Executor(spool=spool.path) as executor:
        held = executor.submit(tasks.fail, tasks.OwnError("no"), resource_dict={"retries": 1, "retry_delay": 200.0})
        wait_until(lambda: files.list_names(spool.layout.waiting), "one task is held")
        running = executor.submit(tasks.mark_and_wait, tmp_path / "started", tmp_path / "go")
        wait_until((tmp_path / "started").exists, "one task runs")
        others = [executor.submit(pow, number, 2) for number in range(3)]
        result, found = run("status", spool.path), read_status(spool)
        (info,) = workers.read_workers(spool)
        (tmp_path / "go").touch()
        running.result()
        values = [future.result() for future in others]
        (name,) = files.list_names(spool.layout.waiting)
        files.move(f"{spool.layout.waiting}/{name}", f"{spool.layout.failed}/{name}")
        executor._runtime.session.fail(RuntimeError("not awaited"))  # type: ignore[union-attr]
    assert values == [0, 1, 4] and held.done()
    assert {state: count for state, count in found["tasks"].items() if count} == {
        "held": 1,
        "waiting": 3,
        "running": 1,
        "failed": 1,
    }
    assert found["counts"] == [{"lane": LANE, "user": account_name(os.geteuid()), **found["tasks"]}]
    assert found["blocked"] == [] and "BLOCKED" not in result.stdout
    (group,) = found["groups"]
    assert (group["worker"], group["name"]) == (info.worker, "tests.support.tasks.mark_and_wait")
    assert group["task"] == running.task  # type: ignore[attr-defined]
    assert 0 <= group["seconds"] < 600
    assert "Groups   1 alive on 1 host: 1 busy, 0 idle" in result.stdout
    assert f"{info.worker[:8]} " in result.stdout and "tests.support.tasks.ma" in result.stdout
    # a path is never cut
    lines = (line.replace(spool.path, "") for line in result.stdout.splitlines() if not line.startswith("Tasks "))
    assert max(map(len, lines)) <= 80


def test_status_begins_with_blocked_tasks_and_the_reasons(spool: Spool, worker: Workers) -> None:
    put(spool, "ready")
    result = run("status", spool.path)
    assert result.stdout.startswith(f"BLOCKED  1 task of {LANE}: no worker group is alive")
    worker(spool, "--queue", "other")
    put(spool, "ready", lane=LANE.replace(".r1", ".r4"))
    blocked = read_status(spool)["blocked"]
    assert len(blocked) == 2
    assert all("queue 'default' wanted, groups serve 'other'" in each["why"] for each in blocked)
    assert run("status", spool.path).stdout.startswith("BLOCKED  1 task of ")


def test_lane_with_too_many_ranks_is_blocked_with_the_largest_group_as_reason(spool: Spool) -> None:
    put(spool, "ready", lane=LANE.replace(".r1", ".r8"))
    put(spool, "ready", lane=LANE.replace(".r1", ".r3"))
    for ranks in (1, 2, 4):
        announce(spool, unknown_process(), ranks=ranks)
    why = {each["what"]: each["why"] for each in read_status(spool)["blocked"]}
    assert why[LANE.replace(".r1", ".r8")].endswith("8 ranks wanted, the largest group has 4")
    assert why[LANE.replace(".r1", ".r3")].endswith("3 ranks wanted, groups have 1, 2, 4")


def test_status_has_the_time_since_the_last_heartbeat(spool: Spool) -> None:
    put(spool, "ready")
    silent = announce(spool, unknown_process())
    ago = spool.server_time() - 7200
    os.utime(f"{spool.layout.worker(silent)}/beat", (ago, ago))
    text = "no sign of life for 2 h of the 1 group(s) that could run them (none has been seen for 2 h)."
    assert text in run("status", spool.path).stdout


def test_status_without_live_groups_lists_held_and_claimed_tasks_as_blocked(spool: Spool) -> None:
    put(spool, "waiting")
    put(spool, "claimed", worker_id=announce(spool, dead_process()))
    blocked = read_status(spool)["blocked"]
    assert [each["what"] for each in blocked] == ["held back", "claimed by dead groups"]
    assert all("start one with 'spool-worker', which releases them" in each["why"] for each in blocked)
    assert "Groups   none alive" in run("status", spool.path).stdout


def test_silent_group_is_not_counted_as_alive(spool: Spool) -> None:
    """A host that lost power is not provably dead, and no waiting process recovers its claims here."""
    heard, silent = announce(spool, unknown_process(), started=1.0), announce(spool, unknown_process(), started=2.0)
    dead = announce(spool, dead_process())
    # for less than a lease: it is not declared dead yet
    ago = spool.server_time() - 50
    os.utime(f"{spool.layout.worker(silent)}/beat", (ago, ago))
    found = {each["worker"]: each for each in read_status(spool)["groups"]}
    assert {worker: each["state"] for worker, each in found.items()} == {heard: "alive", silent: "silent"}
    assert found[silent]["silence"] >= 50 > found[heard]["silence"]
    text = run("status", spool.path).stdout
    assert "1 alive on 1 host: 0 busy, 1 idle; 1 silent: no sign of life for " in text
    assert re.search(rf"^{silent[:8]} .*\n +no sign of life for \d+ s$", text, re.MULTILINE)
    listed = run("workers", "ls", spool.path).stdout.splitlines()
    assert listed[0].startswith(f"{dead}  dead  ")
    assert listed[1].startswith(f"{heard}  alive  ")
    assert listed[2].startswith(f"{silent}  no sign of life for ")
    rows = map(json.loads, run("workers", "ls", "--json", spool.path).stdout.splitlines())
    assert [(row["worker"], row["state"]) for row in rows] == [(dead, "dead"), (heard, "alive"), (silent, "silent")]


def test_repeated_status_touches_the_spool_once_a_minute(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    touched = []
    monkeypatch.setattr(files, "touch", touched.append)
    collector = StatusCollector(Spool(spool.path))
    assert [collector.collect().time > 0 for _ in range(5)] == [True] * 5
    assert len(touched) == 1


def test_status_of_a_read_only_spool(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    announce(spool, unknown_process())

    def refused(path: str) -> None:
        raise OSError(errno.EROFS, "Read-only file system", path)

    monkeypatch.setattr(files, "touch", refused)
    assert len(read_status(spool)["groups"]) == 1


def test_rate_and_expected_end_come_from_the_journals_of_the_groups(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of the writer is an hour ahead."""
    me = announce(spool, unknown_process())
    written = Journal(spool, me)
    ahead = time.time() + 3600
    for number in range(61):
        monkeypatch.setattr("spoolpool.protocol.journal.time.time", lambda number=number: ahead + number)
        written.write("task", lane=LANE, kind="result")
    written.close()
    monkeypatch.undo()
    for _ in range(120):
        put(spool, "ready")
    found = read_status(spool)
    # falls with each second since the last task
    assert 0.1 < found["rate"] <= 1.1
    assert found["seconds_left"] == pytest.approx(120 / found["rate"])
    assert re.search(r"Rate +\d+ tasks/min; done in about \d+ min\n", run("status", spool.path).stdout)


def test_status_opens_no_waiting_task_and_a_limited_number_of_others(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(5):
        put(spool, "ready")
        put(spool, "failed", worker_id=new_worker_id())
    opened: list[str] = []
    real = files.open_file

    def counted(path: str, **options: Any) -> int:
        opened.append(path)
        return real(path, **options)

    monkeypatch.setattr("spoolpool.monitor.task_reader._HEADERS", 2)
    monkeypatch.setattr("spoolpool.monitor.task_reader._SECONDS", -1.0)
    collector = StatusCollector(Spool(spool.path))
    monkeypatch.setattr(files, "open_file", counted)
    first, second = collector.collect(), collector.collect()
    assert first.totals()["failed"] == second.totals()["failed"] == 5
    assert {row.lane: row.states["failed"] for row in first.counts} == {LANE: 2, "": 3}
    assert {row.lane: row.states["failed"] for row in second.counts} == {LANE: 4, "": 1}
    assert len([path for path in opened if "/failed/" in path]) == 4, "headers are read once"
    assert not [path for path in opened if "/ready/" in path]


def test_json_keys_of_the_status_match_the_page(spool: Spool) -> None:
    put(spool, "ready", lane=LANE.replace("default", "other"))
    announce(spool, unknown_process())
    found = read_status(spool)
    page = section("cli.md", "## spool status")
    promised = {row[0].strip("`"): row[1] for row in table(page) if row[0].startswith("`") and "-" not in row[0]}
    assert list(promised) == list(found)
    for key in ("blocked", "counts", "groups"):
        assert codes(promised[key]) == list(found[key][0])
    assert codes(promised["tasks"]) == list(found["tasks"])


def test_hostile_text_of_a_group_is_escaped(spool: Spool) -> None:
    announce(spool, unknown_process(), job="7\x1b[2J\nSpool    elsewhere")
    result = run("status", spool.path)
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    assert len([line for line in result.stdout.splitlines() if line.startswith("Spool ")]) == 1


def test_missing_directories_do_not_fail_the_commands(spool: Spool) -> None:
    for name in Layout.DIRECTORIES:
        if name != "tmp":
            os.rmdir(f"{spool.path}/{name}")
    assert read_status(spool)["tasks"]["waiting"] == 0
    assert run("check", spool.path).exit_code == 1
    assert run("gc", spool.path).exit_code == 0
    os.rmdir(spool.layout.tmp)
    assert read_status(spool)["tasks"]["waiting"] == 0
    gc = run("gc", spool.path)
    assert (gc.exit_code, "Traceback" in gc.stderr) == (SpoolpoolError.exit_code, False)


# ---------------------------------------------------------------------------- paths without a spool

READERS = ("status", "ls", "check", "gc", "retry")


@pytest.fixture(params=["nothing", "file", "empty", "torn", "directory", "FIFO", "link", "list", "large"])
def no_spool(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a path without a spool."""
    path, config = tmp_path / "spool", tmp_path / "spool" / "spool.json"
    if request.param == "file":
        path.touch()
    elif request.param != "nothing":
        path.mkdir()
    if request.param == "torn":
        config.write_bytes(b'{"format": 1, "id": "x')
    elif request.param == "directory":
        config.mkdir()
    elif request.param == "FIFO":
        os.mkfifo(config)
    elif request.param == "link":
        Spool.create(tmp_path / "real")
        config.symlink_to(tmp_path / "real" / "spool.json")
    elif request.param == "list":
        config.write_text("[1, 2, 3]")
    elif request.param == "large":
        config.write_bytes(b" " * (2 << 20))
    return path


@pytest.mark.parametrize("name", READERS)
def test_path_without_a_spool_is_a_one_line_error_with_its_exit_code(no_spool: Path, name: str) -> None:
    result = run(name, no_spool)
    assert result.exit_code == NotASpool.exit_code
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith(f"spool {name}: {no_spool} is not a spool")


@pytest.mark.parametrize("name", READERS)
def test_spool_of_a_newer_version_is_an_error(spool: Spool, name: str) -> None:
    Path(spool.layout.config).write_bytes(msgspec.json.encode({"format": FORMAT + 1, "news": True}))
    result = run(name, spool.path)
    assert result.exit_code == SpoolVersion.exit_code
    assert "newer spoolpool" in result.stderr


@pytest.mark.parametrize("name", READERS)
def test_unreadable_spool_of_another_account_is_an_error(
    spool: Spool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: str, **_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(files, "open_file", refused)
    result = run(name, spool.path)
    assert result.exit_code == SpoolDenied.exit_code
    assert "ask its owner" in result.stderr


@pytest.mark.parametrize("words", [["ls"], ["status"], ["retry", "--all"]])
def test_unlisted_directory_is_reported_and_the_rest_is_shown(
    spool: Spool, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = files.list_names

    def refused(directory: str, **options: bool) -> list[str]:
        if directory in (spool.layout.failed, spool.layout.results):
            raise PermissionError(errno.EACCES, "Permission denied", directory)
        return real(directory, **options)

    put(spool, "ready")
    monkeypatch.setattr(files, "list_names", refused)
    result = run(*words, spool.path)
    assert result.exit_code == (0 if words == ["status"] else SpoolpoolError.exit_code)
    assert "failed" in result.output and "Permission denied" in result.output
    assert "Traceback" not in result.stderr
    assert ("waiting" in result.stdout) == (words[0] in ("ls", "status"))


@pytest.mark.parametrize("name", ["gc"])
def test_unlisted_directory_is_a_one_line_error_of_gc(spool: Spool, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = files.list_names

    def refused(directory: str, **options: bool) -> list[str]:
        if directory in (spool.layout.failed, spool.layout.results):
            raise PermissionError(errno.EACCES, "Permission denied", directory)
        return real(directory, **options)

    monkeypatch.setattr(files, "list_names", refused)
    result = run(name, spool.path)
    assert result.exit_code == SpoolpoolError.exit_code
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith(f"spool {name}: Permission denied: {spool.path}/")


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    plain = command("status", tmp_path)
    assert plain.returncode == NotASpool.exit_code
    assert "Traceback" not in plain.stderr
    debug = command("--debug", "status", tmp_path)
    assert debug.returncode != 0
    assert "Traceback" in debug.stderr and "NotASpool" in debug.stderr


def test_debug_shows_the_traceback_of_an_os_error(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(directory: str) -> list[str]:
        raise OSError(errno.ESTALE, "Stale file handle", directory)

    monkeypatch.setattr(files, "list_names", away)
    assert isinstance(run("--debug", "gc", spool.path).exception, OSError)
    assert isinstance(run("gc", spool.path).exception, SystemExit)


def test_verbose_sets_the_log_level_of_the_package_alone(spool: Spool) -> None:
    root = logging.getLogger().level
    for options, level in (
        (["status"], logging.WARNING),
        (["-v", "status"], logging.INFO),
        (["-vv", "status"], logging.DEBUG),
        (["--verbose", "status"], logging.INFO),
        (["status", "-v"], logging.INFO),
        (["-v", "status", "-v"], logging.DEBUG),
        (["status", "--log-json"], logging.WARNING),
    ):
        run(*options, spool.path)
        assert (logging.getLogger("spoolpool").level, logging.getLogger().level) == (level, root), options


def test_log_can_be_json_lines(spool: Spool) -> None:
    """The groups of a supervisor get its log options."""
    words = [BIN / "spool-worker", spool.path, "--log-json", "-vv", "--groups", "1", "--launcher", "local"]
    put(spool, "ready")
    result = subprocess.run([*words, "--max-tasks", "1"], capture_output=True, text=True, timeout=LIMIT)
    lines = [json.loads(line) for line in result.stderr.splitlines() if line.startswith("{")]
    assert lines, result.stderr
    assert all(list(line)[:4] == ["time", "level", "logger", "message"] for line in lines)


def test_closed_pipe_prints_no_traceback(spool: Spool) -> None:
    for number in range(2000):
        Path(spool.path, f"junk-{number}-{'x' * 100}").touch()
    process = subprocess.Popen(
        [BIN / "spool", "check", spool.path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(LIMIT) == 1
    process.stderr.close()


# -------------------------------------------------------------------------------------- environment


def test_environment_variable_names_the_spool(tmp_path: Path) -> None:
    variables = {settings.ENV_SPOOL: str(tmp_path / "spool")}
    assert run("init", **variables).exit_code == 0
    for words in (["status"], ["check"], ["gc"], ["retry", "--all"]):
        result = run(*words, **variables)
        assert result.exit_code == 0, result.stderr
    assert run("status", **variables).stdout.startswith(f"Spool    {tmp_path / 'spool'}\n")


def test_worker_options_are_not_taken_for_the_spool(spool: Spool) -> None:
    words = ("workers", "start", "--dry-run", "--", "--ranks", "2")
    result = run(*words, SPOOLPOOL_DIR=spool.path)
    assert f"{shlex.quote(spool.path)} --ranks 2" in result.stdout
    missing = run(*words)
    assert missing.exit_code == 2
    assert "Missing SPOOL" in missing.stderr


def test_command_line_overrides_the_environment(spool: Spool, tmp_path: Path) -> None:
    result = run("check", "--json", spool.path, SPOOLPOOL_DIR=str(tmp_path / "elsewhere"))
    assert json.loads(result.stdout)["spool"] == spool.path


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"config"}))
def test_missing_spool_prints_the_usage(name: str) -> None:
    result = run(name)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Usage: spool {name}")


def test_spool_can_be_a_relative_path(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(spool.path)
    assert run("status", ".").stdout.startswith(f"Spool    {spool.path}\n")
    assert run("retry", ".", "--all").exit_code == 0


# ----------------------------------------------------------------------------------------- escaping


def test_group_is_not_ended_by_the_number_of_an_ended_job_that_begins_its_id(spool: Spool) -> None:
    group = announce(spool, unknown_process())
    for command in ("drain", "stop"):
        assert run("workers", command, spool.path, group[:4]).exit_code != 0
    assert not any(name.startswith("stop") for name in files.list_names(spool.layout.worker(group)))
    assert run("workers", "drain", spool.path, group[:8]).exit_code == 0
    assert any(name.startswith("stop") for name in files.list_names(spool.layout.worker(group)))


@pytest.mark.parametrize(
    ("words", "similar"), [(["statsu"], "status"), (["wokers"], "workers"), (["workers", "dran"], "drain")]
)
def test_unknown_command_is_compared_with_the_known_ones(words: list[str], similar: str) -> None:
    found = run(*words)
    assert found.exit_code == 2
    assert f"Did you mean '{similar}'?" in found.stderr
    assert "Did you mean" not in run("xyz").stderr


def _commands(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        assert found is not None
        if isinstance(found, click.Group):
            yield from _commands(found, (*words, name))
        else:
            yield (*words, name), found


@pytest.mark.parametrize(("words", "command"), [pytest.param(*each, id=" ".join(each[0])) for each in _commands(main)])
def test_help_of_each_command_has_examples_that_parse(
    words: tuple[str, ...], command: click.Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.txt").touch()
    begin = " ".join(("spool", *words))
    lines = [line.strip() for line in (command.help or "").splitlines()]
    examples = [re.split(r" {2,}", line)[0] for line in lines if re.match(rf"{begin}( |$)", line)]
    assert examples
    for example in examples:
        parts = shlex.shlex(example, posix=True, punctuation_chars=True)
        parts.whitespace_split = True
        given = list(itertools.takewhile(lambda word: word[0] not in "|>&", parts))
        command.make_context(begin, given[1 + len(words) :])

"""The commands say what a person needs, in one sentence where it went wrong, and with the exit code of the error."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click.testing
import msgspec
import pytest

from spoolpool import Executor, __version__, settings
from spoolpool.cli import output, worker
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
    """The same as a process of its own."""
    words = [str(BIN / "spool"), *(str(each) for each in arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=LIMIT, stdin=subprocess.DEVNULL, **options)


def put(spool: Spool, place: str, *, lane: str = LANE, worker_id: str = "") -> TaskFile:
    """A task in one of the places in which it waits, runs or is kept."""
    task = new_task_id()
    header = TaskHeader(task=task, session="inbox", lane=lane, bucket=bucket_name(task, new_submitter_id()))
    task_file = TaskFile(task, 1, 1, worker_id)
    directory = spool.layout.bucket(lane, header.bucket) if place == "ready" else f"{spool.path}/{place}"
    spool.make_directories(directory)
    files.create(f"{directory}/{task_file.name}", envelope.pack(records.encode(header), b"x"))
    return task_file


# ------------------------------------------------------------------------------------------- help


def test_the_help_names_every_command_and_imports_none() -> None:
    program = (
        "import sys\n"
        "from spoolpool.cli.spool import main\n"
        "main(['--help'], prog_name='spool', standalone_mode=False)\n"
        "print(sorted(name for name in sys.modules if name.startswith('spoolpool')))\n"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert shown.returncode == 0
    assert all(f"  {name}" in shown.stdout for name in COMMANDS)
    imported = shown.stdout.splitlines()[-1]
    assert not any(f"spoolpool.cli.{name}'" in imported for name in COMMANDS)
    assert "spoolpool.protocol.spool'" not in imported


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_every_command_has_a_help_that_explains_its_options(name: str, option: str) -> None:
    shown = run(name, option)
    assert shown.exit_code == 0
    assert shown.stdout.startswith(f"Usage: spool {name} [OPTIONS] ")
    found = main.get_command(click.Context(main), name)
    assert found is not None and found.help
    for parameter in found.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help and parameter.opts[-1] in shown.stdout


def test_the_worker_has_a_help_that_explains_its_options() -> None:
    shown = click.testing.CliRunner().invoke(worker.main, ["--help"], prog_name="spool-worker")
    assert shown.exit_code == 0
    for parameter in worker.main.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help and parameter.opts[0] in shown.stdout


def test_both_programs_are_installed_and_know_their_version() -> None:
    assert __version__ in command("--version").stdout
    assert subprocess.run([BIN / "spool-worker", "--help"], capture_output=True).returncode == 0


def test_every_command_says_in_the_help_what_it_is_for() -> None:
    for name, text in COMMANDS.items():
        found = main.get_command(click.Context(main), name)
        assert found is not None and found.name == name
        assert text in run("--help").stdout


@pytest.mark.parametrize("words", [["nonsense"], ["--nonsense"], ["status", "--nonsense"], ["status", "a", "b"]])
def test_wrong_use_is_told_with_the_usage(words: list[str]) -> None:
    shown = run(*words)
    assert shown.exit_code == 2
    assert shown.stderr.startswith("Usage: spool")


# ------------------------------------------------------------------------------------------- init


def test_init_makes_a_spool_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "parent" / "spool"
    old = os.umask(0)
    try:
        shown = run("init", path, "--durability", "full", "--lease", 7.5, "--max-attempts", 5, "--caches", 0)
    finally:
        os.umask(old)
    assert shown.exit_code == 0
    config = Spool(path).config
    assert (config.durability, config.lease, config.max_attempts, config.caches) == ("full", 7.5, 5, 0.0)
    assert shown.stdout == f"Made the spool {path} (id {config.id}).\n"
    assert {stat.S_IMODE(each.stat().st_mode) for each in path.rglob("*") if each.is_dir()} == {0o700}
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE((path / "spool.json").stat().st_mode) == 0o600


def test_init_makes_an_empty_directory_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    path.mkdir(mode=0o777)
    path.chmod(0o777)
    assert run("init", path).exit_code == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_init_does_not_touch_what_is_in_use(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    path.mkdir(mode=0o755)
    (path / "thesis.tex").write_text("precious")
    shown = run("init", path)
    assert shown.exit_code == BadRequest.exit_code
    assert "it is not empty (it has 'thesis.tex')" in shown.stderr
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert os.listdir(path) == ["thesis.tex"]


def test_init_does_not_make_a_spool_twice(spool: Spool) -> None:
    shown = run("init", spool.path)
    assert shown.exit_code == BadRequest.exit_code
    assert "is a spool already" in shown.stderr
    assert Spool(spool.path).config == spool.config


def test_init_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert run("init", tmp_path / "file").exit_code == 2
    shown = run("init", tmp_path / "file" / "spool")
    assert shown.exit_code == SpoolpoolError.exit_code
    assert str(tmp_path / "file") in shown.stderr and "Traceback" not in shown.stderr


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
def test_init_refuses_senseless_settings_and_makes_nothing(tmp_path: Path, option: str, value: object) -> None:
    shown = run("init", tmp_path / "spool", f"{option}={value}")
    assert shown.exit_code == BadRequest.exit_code
    assert option[2:] in shown.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "words", [["--max-attempts", "0"], ["--max-attempts", "100"], ["--lease", "soon"], ["--durability", "some"]]
)
def test_init_refuses_what_no_setting_can_be(tmp_path: Path, words: list[str]) -> None:
    assert run("init", tmp_path / "spool", *words).exit_code == 2
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("exists", [False, True])
def test_init_on_a_full_disk_says_so_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    path = tmp_path / "spool"
    if exists:
        path.mkdir()

    def full(path: str, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "create", full)
        shown = run("init", path)
    assert shown.exit_code == SpoolFull.exit_code
    assert "No space left" in shown.stderr and str(path) in shown.stderr
    assert list(tmp_path.rglob("*")) == ([path] if exists else [])
    assert run("init", path).exit_code == 0


@as_root
@pytest.mark.multiuser
def test_init_where_one_may_not_write_is_told() -> None:
    with public_directory() as place:

        def init() -> object:
            shown = run("init", place / "spool")
            return shown.exit_code, shown.stderr

        code, text = as_another(init)  # type: ignore[misc]
    assert code == SpoolDenied.exit_code
    assert "Permission denied" in text and "Traceback" not in text


# ----------------------------------------------------------------------------------------- status


def looked_at(spool: Spool) -> dict[str, Any]:
    """What 'spool status --json' says."""
    shown = run("status", "--json", spool.path)
    assert shown.exit_code == 0, shown.stderr
    found: dict[str, Any] = json.loads(shown.stdout)
    return found


def test_the_status_of_an_empty_spool(spool: Spool) -> None:
    assert run("status", spool.path).stdout == (
        f"Spool    {spool.path}\nTasks    0 held, 0 waiting, 0 running, 0 done, 0 failed\nGroups   none alive\n"
    )


def test_the_status_of_a_busy_spool(spool: Spool, worker: Workers, tmp_path: Path) -> None:
    worker(spool)
    put(spool, "failed", worker_id=new_worker_id())
    with Executor(spool=spool.path) as executor:
        held = executor.submit(tasks.fail, tasks.OwnError("no"), resource_dict={"retries": 1, "retry_delay": 200.0})
        wait_until(lambda: files.list_names(spool.layout.waiting), "one is held back")
        running = executor.submit(tasks.mark_and_wait, tmp_path / "started", tmp_path / "go")
        wait_until((tmp_path / "started").exists, "one runs")
        others = [executor.submit(pow, number, 2) for number in range(3)]
        shown, found = run("status", spool.path), looked_at(spool)
        (info,) = workers.read_workers(spool)
        (tmp_path / "go").touch()
        running.result()
        values = [future.result() for future in others]
        (name,) = files.list_names(spool.layout.waiting)
        files.move(f"{spool.layout.waiting}/{name}", f"{spool.layout.failed}/{name}")
        executor._runtime.session.fail(RuntimeError("not awaited"))  # type: ignore[union-attr]
    assert values == [0, 1, 4] and held.done()
    assert found["tasks"] == {"held": 1, "waiting": 3, "running": 1, "done": 0, "failed": 1}
    assert found["counts"] == [{"lane": LANE, "user": account_name(os.geteuid()), **found["tasks"]}]
    assert found["blocked"] == [] and "BLOCKED" not in shown.stdout
    (group,) = found["groups"]
    assert (group["worker"], group["name"]) == (info.worker, "tests.support.tasks.mark_and_wait")
    assert group["task"] == running.task  # type: ignore[attr-defined]
    assert 0 <= group["seconds"] < 600
    assert "Groups   1 alive on 1 host: 1 busy, 0 idle" in shown.stdout
    assert f"{info.worker[:8]} " in shown.stdout and "tests.support.tasks.ma" in shown.stdout
    # a path is shown whole, however long it is
    assert max(len(line.replace(spool.path, "")) for line in shown.stdout.splitlines()) <= 80


def test_the_status_says_first_what_blocks_and_why(spool: Spool, worker: Workers) -> None:
    put(spool, "ready")
    shown = run("status", spool.path)
    assert shown.stdout.startswith(f"BLOCKED  1 task of {LANE}: no worker group is alive")
    worker(spool, "--queue", "other")
    put(spool, "ready", lane=LANE.replace(".r1", ".r4"))
    blocked = looked_at(spool)["blocked"]
    assert len(blocked) == 2
    assert all("queue 'default' wanted, groups serve 'other'" in each["why"] for each in blocked)
    assert run("status", spool.path).stdout.startswith("BLOCKED  1 task of ")


def test_a_lane_that_needs_more_ranks_than_any_group_has_is_told_the_largest(spool: Spool) -> None:
    put(spool, "ready", lane=LANE.replace(".r1", ".r8"))
    put(spool, "ready", lane=LANE.replace(".r1", ".r3"))
    for ranks in (1, 2, 4):
        announce(spool, unknown_process(), ranks=ranks)
    why = {each["what"]: each["why"] for each in looked_at(spool)["blocked"]}
    assert why[LANE.replace(".r1", ".r8")].endswith("8 ranks wanted, the largest group has 4")
    assert why[LANE.replace(".r1", ".r3")].endswith("3 ranks wanted, groups have 1, 2, 4")


def test_the_status_says_for_how_long_no_worker_has_been_seen(spool: Spool) -> None:
    put(spool, "ready")
    silent = announce(spool, unknown_process())
    ago = spool.server_time() - 7200
    os.utime(f"{spool.layout.worker(silent)}/beat", (ago, ago))
    text = "no worker group is alive: start one with 'spool-worker' (none has been seen for 2 h)."
    assert text in run("status", spool.path).stdout


def test_the_status_says_what_blocks_where_all_groups_have_died(spool: Spool) -> None:
    put(spool, "waiting")
    put(spool, "claimed", worker_id=announce(spool, dead_process()))
    assert [each["what"] for each in looked_at(spool)["blocked"]] == ["held back", "claimed by dead groups"]
    assert "Groups   none alive" in run("status", spool.path).stdout


def test_the_status_counts_no_group_that_was_silent_for_a_lease(spool: Spool) -> None:
    """A host that lost power proves nothing; whoever waits recovers, and here nobody waits."""
    heard, silent = announce(spool, unknown_process()), announce(spool, unknown_process())
    os.utime(f"{spool.layout.worker(silent)}/beat", (1e9, 1e9))
    assert [each["worker"] for each in looked_at(spool)["groups"]] == [heard]


def test_the_status_of_a_spool_that_one_may_only_read(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    announce(spool, unknown_process())

    def refused(path: str) -> None:
        raise OSError(errno.EROFS, "Read-only file system", path)

    monkeypatch.setattr(files, "touch", refused)
    assert len(looked_at(spool)["groups"]) == 1


def test_the_rate_and_the_end_are_told_by_what_the_groups_wrote(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each writer's clock is its own: this one's is an hour ahead."""
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
    found = looked_at(spool)
    # it falls with every second that passes since the last task
    assert 0.1 < found["rate"] <= 1.1
    assert found["seconds_left"] == pytest.approx(120 / found["rate"])
    assert re.search(r"Rate +\d+ tasks/min; done in about \d+ min\n", run("status", spool.path).stdout)


def test_a_status_opens_no_task_that_waits_and_no_more_than_some_of_the_others(
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

    monkeypatch.setattr("spoolpool.monitor.status._HEADERS", 2)
    observer = StatusCollector(Spool(spool.path))
    monkeypatch.setattr(files, "open_file", counted)
    first, second = observer.collect(), observer.collect()
    assert first.total("failed") == second.total("failed") == 5
    assert {row.lane: row.failed for row in first.counts} == {LANE: 2, "": 3}
    assert {row.lane: row.failed for row in second.counts} == {LANE: 4, "": 1}
    assert len([path for path in opened if "/failed/" in path]) == 4, "what was read is remembered"
    assert not [path for path in opened if "/ready/" in path]


def test_the_keys_of_the_status_as_json_are_those_that_the_page_promises(spool: Spool) -> None:
    put(spool, "ready", lane=LANE.replace("default", "other"))
    announce(spool, unknown_process())
    found = looked_at(spool)
    page = section("cli.md", "## spool status")
    promised = {row[0].strip("`"): row[1] for row in table(page) if row[0].startswith("`") and "-" not in row[0]}
    assert list(promised) == list(found)
    for key in ("blocked", "counts", "groups"):
        assert codes(promised[key]) == list(found[key][0])
    assert codes(promised["tasks"]) == list(found["tasks"])


def test_hostile_words_of_a_group_are_shown_harmlessly(spool: Spool) -> None:
    announce(spool, unknown_process(), job="7\x1b[2J\nSpool    elsewhere")
    shown = run("status", spool.path)
    assert shown.exit_code == 0
    assert "\x1b" not in shown.stdout
    assert len([line for line in shown.stdout.splitlines() if line.startswith("Spool ")]) == 1


def test_missing_directories_are_no_reason_to_fail(spool: Spool) -> None:
    for name in Layout.DIRECTORIES:
        if name != "tmp":
            os.rmdir(f"{spool.path}/{name}")
    assert looked_at(spool)["tasks"]["waiting"] == 0
    assert run("check", spool.path).exit_code == 1
    assert run("gc", spool.path).exit_code == 0
    os.rmdir(spool.layout.tmp)
    assert looked_at(spool)["tasks"]["waiting"] == 0
    gc = run("gc", spool.path)
    assert (gc.exit_code, "Traceback" in gc.stderr) == (SpoolpoolError.exit_code, False)


# ---------------------------------------------------------------------- what is no spool, or not ours

READERS = ("status", "ls", "check", "gc", "retry")


@pytest.fixture(params=["nothing", "file", "empty", "torn", "directory", "FIFO", "link", "list", "large"])
def no_spool(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A path at which there is no spool."""
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
def test_what_is_no_spool_is_told_in_one_line_with_its_exit_code(no_spool: Path, name: str) -> None:
    shown = run(name, no_spool)
    assert shown.exit_code == NotASpool.exit_code
    assert len(shown.stderr.splitlines()) == 1
    assert shown.stderr.startswith(f"spool {name}: {no_spool} is not a spool")


@pytest.mark.parametrize("name", READERS)
def test_a_spool_of_a_newer_version_is_told(spool: Spool, name: str) -> None:
    Path(spool.layout.config).write_bytes(msgspec.json.encode({"format": FORMAT + 1, "news": True}))
    shown = run(name, spool.path)
    assert shown.exit_code == SpoolVersion.exit_code
    assert "newer spoolpool" in shown.stderr


@pytest.mark.parametrize("name", READERS)
def test_a_spool_of_somebody_else_is_told(spool: Spool, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: str, **_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(files, "open_file", refused)
    shown = run(name, spool.path)
    assert shown.exit_code == SpoolDenied.exit_code
    assert "ask its owner" in shown.stderr


@pytest.mark.parametrize("words", [["ls"], ["status"], ["retry", "--all"]])
def test_what_cannot_be_listed_is_told_and_the_rest_is_shown(
    spool: Spool, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = files.list_names

    def refused(directory: str) -> list[str]:
        if directory in (spool.layout.failed, spool.layout.results):
            raise PermissionError(errno.EACCES, "Permission denied", directory)
        return real(directory)

    put(spool, "ready")
    monkeypatch.setattr(files, "list_names", refused)
    shown = run(*words, spool.path)
    assert shown.exit_code == (0 if words == ["status"] else SpoolpoolError.exit_code)
    assert "failed" in shown.output and "Permission denied" in shown.output
    assert "Traceback" not in shown.stderr
    assert ("waiting" in shown.stdout) == (words[0] in ("ls", "status"))


@pytest.mark.parametrize("name", ["gc"])
def test_a_directory_that_cannot_be_listed_is_told_without_a_traceback(
    spool: Spool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = files.list_names

    def refused(directory: str) -> list[str]:
        if directory in (spool.layout.failed, spool.layout.results):
            raise PermissionError(errno.EACCES, "Permission denied", directory)
        return real(directory)

    monkeypatch.setattr(files, "list_names", refused)
    shown = run(name, spool.path)
    assert shown.exit_code == SpoolpoolError.exit_code
    assert len(shown.stderr.splitlines()) == 1
    assert shown.stderr.startswith(f"spool {name}: Permission denied: {spool.path}/")


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    plain = command("status", tmp_path)
    assert plain.returncode == NotASpool.exit_code
    assert "Traceback" not in plain.stderr
    debug = command("--debug", "status", tmp_path)
    assert debug.returncode != 0
    assert "Traceback" in debug.stderr and "NotASpool" in debug.stderr


def test_debug_shows_the_traceback_of_an_error_of_the_system_too(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(directory: str) -> list[str]:
        raise OSError(errno.ESTALE, "Stale file handle", directory)

    monkeypatch.setattr(files, "list_names", away)
    assert isinstance(run("--debug", "gc", spool.path).exception, OSError)
    assert isinstance(run("gc", spool.path).exception, SystemExit)


def test_verbose_lets_the_log_speak(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    levels: list[int] = []
    monkeypatch.setattr(logging, "basicConfig", lambda *, level, **_: levels.append(level))
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
        assert levels[-1] == level, options


def test_the_log_can_be_json_lines(spool: Spool) -> None:
    """A worker and its groups, which are started with the same options."""
    words = [BIN / "spool-worker", spool.path, "--log-json", "-vv", "--groups", "1", "--launcher", "local"]
    put(spool, "ready")
    shown = subprocess.run([*words, "--max-tasks", "1"], capture_output=True, text=True, timeout=LIMIT)
    lines = [json.loads(line) for line in shown.stderr.splitlines() if line.startswith("{")]
    assert lines, shown.stderr
    assert all(list(line)[:4] == ["time", "level", "logger", "message"] for line in lines)


def test_a_reader_that_goes_away_gives_no_traceback(spool: Spool) -> None:
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


# --------------------------------------------------------------------------------- the environment


def test_the_environment_names_the_spool_of_every_command(tmp_path: Path) -> None:
    variables = {settings.ENV_SPOOL: str(tmp_path / "spool")}
    assert run("init", **variables).exit_code == 0
    for words in (["status"], ["check"], ["gc"], ["retry", "--all"]):
        shown = run(*words, **variables)
        assert shown.exit_code == 0, shown.stderr
    assert run("status", **variables).stdout.startswith(f"Spool    {tmp_path / 'spool'}\n")


def test_options_of_the_worker_are_no_spool(spool: Spool) -> None:
    words = ("workers", "start", "--dry-run", "--", "--ranks", "2")
    shown = run(*words, SPOOLPOOL_DIR=spool.path)
    assert f"{spool.path} --ranks 2" in shown.stdout
    missing = run(*words)
    assert missing.exit_code == 2
    assert "Missing argument 'SPOOL', and SPOOLPOOL_DIR is not set." in missing.stderr


def test_the_command_line_goes_before_the_environment(spool: Spool, tmp_path: Path) -> None:
    shown = run("check", "--json", spool.path, SPOOLPOOL_DIR=str(tmp_path / "elsewhere"))
    assert json.loads(shown.stdout)["spool"] == spool.path


@pytest.mark.parametrize("name", COMMANDS)
def test_without_a_spool_the_usage_is_shown(name: str) -> None:
    shown = run(name)
    assert shown.exit_code == 2
    assert shown.stderr.startswith(f"Usage: spool {name}")


def test_a_spool_may_be_named_as_one_stands_to_it(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(spool.path)
    assert run("status", ".").stdout.startswith(f"Spool    {spool.path}\n")
    assert run("retry", ".", "--all").exit_code == 0


# -------------------------------------------------------------------------------------- what is shown


def test_what_a_terminal_would_act_upon_is_escaped() -> None:
    odd = os.fsdecode(b"a b\x1b[31m\n\xff\xe2\x80\xae\xc3\xa9")
    assert output.escape_for_terminal(odd) == "a b\\x1b[31m\\n\\udcff\\u202eé"
    assert output.escape_for_terminal("plain: 'text' (ü)") == "plain: 'text' (ü)"

"""The commands say what a person needs, in one sentence where it went wrong, and with the exit code of the error."""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import click.testing
import msgspec
import pytest

from spoolpool import Executor, __version__, envelope, fsio, layout, registry, settings
from spoolpool import task as records
from spoolpool.cli import output, worker
from spoolpool.cli.spool import COMMANDS, main
from spoolpool.errors import BadRequest, NotASpool, SpoolDenied, SpoolFull, SpoolpoolError, SpoolVersion
from spoolpool.layout import Token, bucket_name, new_submitter_id, new_task_id, new_worker_id
from spoolpool.spool import Spool
from spoolpool.task import TaskHeader
from tests import tasks
from tests.conftest import Workers
from tests.processes import in_fork
from tests.stage import LANE, announce, dead_process, unknown_process
from tests.waiting import LIMIT, wait_until

BIN = Path(sys.executable).parent


def run(*arguments: object, **variables: str | None) -> click.testing.Result:
    words = [str(each) for each in arguments]
    variables = {settings.ENV_SPOOL: None, **variables}
    return click.testing.CliRunner().invoke(main, words, prog_name="spool", env=variables)


def command(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """The same as a process of its own."""
    words = [str(BIN / "spool"), *(str(each) for each in arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=LIMIT, stdin=subprocess.DEVNULL, **options)


def put(spool: Spool, place: str, *, lane: str = LANE, worker_id: str = "") -> Token:
    """A task in one of the places in which it waits, runs or is kept."""
    task = new_task_id()
    header = TaskHeader(task=task, session="inbox", lane=lane, bucket=bucket_name(task, new_submitter_id()))
    token = Token(task, 1, 1, worker_id)
    directory = spool.layout.bucket(lane, header.bucket) if place == "ready" else f"{spool.path}/{place}"
    spool.make_directories(directory)
    fsio.create(f"{directory}/{token.name}", envelope.pack(records.encode(header), b"x"))
    return token


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
    assert "spoolpool.spool'" not in imported


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_every_command_has_a_help_that_explains_its_options(name: str, option: str) -> None:
    shown = run(name, option)
    assert shown.exit_code == 0
    assert shown.stdout.startswith(f"Usage: spool {name} [OPTIONS] ")
    found = main.get_command(click.Context(main), name)
    assert found is not None and found.help
    for parameter in found.params:
        if isinstance(parameter, click.Option):
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
        patch.setattr(fsio, "create", full)
        shown = run("init", path)
    assert shown.exit_code == SpoolFull.exit_code
    assert "No space left" in shown.stderr and str(path) in shown.stderr
    assert list(tmp_path.rglob("*")) == ([path] if exists else [])
    assert run("init", path).exit_code == 0


@pytest.mark.multiuser
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_init_where_one_may_not_write_is_told(tmp_path: Path) -> None:
    for each in (tmp_path, *tmp_path.parents):
        if each.stat().st_uid == os.geteuid() and each.is_relative_to("/tmp") and each != Path("/tmp"):
            each.chmod(0o755)

    def as_nobody() -> object:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        shown = run("init", tmp_path / "spool")
        return shown.exit_code, shown.stderr

    code, text = in_fork(as_nobody)  # type: ignore[misc]
    assert code == SpoolDenied.exit_code
    assert "Permission denied" in text and "Traceback" not in text


# ----------------------------------------------------------------------------------------- status


def lines(spool: Spool) -> dict[str, str]:
    """The lines of 'spool status' by their first words."""
    shown = run("status", spool.path)
    assert shown.exit_code == 0
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in shown.stdout.splitlines() if line[0] != " "}


def test_the_status_of_an_empty_spool(spool: Spool) -> None:
    assert lines(spool) == {
        "Spool": spool.path,
        "Waiting": "0",
        "Running": "0",
        "Done": "0 to be collected",
        "Failed": "0",
        "Groups": "0",
    }


def test_the_status_of_a_busy_spool(spool: Spool, worker: Workers, tmp_path: Path) -> None:
    worker(spool)
    put(spool, "failed", worker_id=new_worker_id())
    with Executor(spool=spool.path) as executor:
        held = executor.submit(tasks.fail, tasks.OwnError("no"), resource_dict={"retries": 1, "retry_delay": 200.0})
        wait_until(lambda: fsio.names(spool.layout.waiting), "one is held back")
        running = executor.submit(tasks.mark_and_wait, tmp_path / "started", tmp_path / "go")
        wait_until((tmp_path / "started").exists, "one runs")
        others = [executor.submit(pow, number, 2) for number in range(3)]
        shown = run("status", spool.path)
        found = lines(spool)
        assert (found["Waiting"], found["Running"], found["Failed"], found["Groups"]) == ("3", "1", "1", "1")
        assert found["Held"] == "1 to be tried again"
        assert "BLOCKED" not in found
        assert f"3  {LANE}" in shown.stdout
        (info,) = registry.workers(spool)
        assert f"{info.worker}  {info.process.host}  1 rank(s) x 1 thread(s), 0 GPU(s)" in shown.stdout
        (tmp_path / "go").touch()
        running.result()
        assert [future.result() for future in others] == [0, 1, 4]
        (name,) = fsio.names(spool.layout.waiting)
        fsio.move(f"{spool.layout.waiting}/{name}", f"{spool.layout.failed}/{name}")
        executor._core.session.fail(RuntimeError("not awaited"))  # type: ignore[union-attr]
        assert held.done()


def test_the_status_says_first_what_blocks_and_why(spool: Spool, worker: Workers) -> None:
    put(spool, "ready")
    shown = run("status", spool.path)
    assert shown.stdout.startswith(f"BLOCKED  1 task(s) of {LANE}: no worker group is alive")
    worker(spool, "--queue", "other")
    put(spool, "ready", lane=LANE.replace(".r1", ".r4"))
    blocked = [line for line in run("status", spool.path).stdout.splitlines() if line.startswith("BLOCKED")]
    assert len(blocked) == 2
    assert all("queue 'default' wanted, groups serve 'other'" in line for line in blocked)


def test_the_status_says_what_blocks_where_all_groups_have_died(spool: Spool) -> None:
    put(spool, "waiting")
    put(spool, "claimed", worker_id=announce(spool, dead_process()))
    shown = run("status", spool.path)
    assert [line.split()[:2] for line in shown.stdout.splitlines()[:2]] == [["BLOCKED", "1"], ["BLOCKED", "1"]]
    assert "Groups   0" in shown.stdout


def test_the_status_counts_no_group_that_was_silent_for_a_lease(spool: Spool) -> None:
    """A host that lost power proves nothing; whoever waits recovers, and here nobody waits."""
    heard, silent = announce(spool, unknown_process()), announce(spool, unknown_process())
    os.utime(f"{spool.layout.worker(silent)}/beat", (1e9, 1e9))
    shown = run("status", spool.path)
    assert heard in shown.stdout
    assert silent not in shown.stdout


def test_the_status_of_a_spool_that_one_may_only_read(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    announce(spool, unknown_process())

    def refused(path: str) -> None:
        raise OSError(errno.EROFS, "Read-only file system", path)

    monkeypatch.setattr(fsio, "touch", refused)
    assert lines(spool)["Groups"] == "1"


def test_hostile_words_of_a_group_are_shown_harmlessly(spool: Spool) -> None:
    announce(spool, unknown_process(), job="7\x1b[2J\nSpool    elsewhere")
    shown = run("status", spool.path)
    assert shown.exit_code == 0
    assert "\x1b" not in shown.stdout
    assert len([line for line in shown.stdout.splitlines() if line.startswith("Spool ")]) == 1


def test_missing_directories_are_no_reason_to_fail(spool: Spool) -> None:
    for name in layout.Layout.DIRECTORIES:
        if name != "tmp":
            os.rmdir(f"{spool.path}/{name}")
    assert lines(spool)["Waiting"] == "0"
    assert run("check", spool.path).exit_code == 1
    assert run("gc", spool.path).exit_code == 0
    os.rmdir(spool.layout.tmp)
    assert lines(spool)["Waiting"] == "0"
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
    Path(spool.layout.config).write_bytes(msgspec.json.encode({"format": layout.FORMAT + 1, "news": True}))
    shown = run(name, spool.path)
    assert shown.exit_code == SpoolVersion.exit_code
    assert "newer spoolpool" in shown.stderr


@pytest.mark.parametrize("name", READERS)
def test_a_spool_of_somebody_else_is_told(spool: Spool, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: str, **_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(fsio, "open_file", refused)
    shown = run(name, spool.path)
    assert shown.exit_code == SpoolDenied.exit_code
    assert "ask its owner" in shown.stderr


@pytest.mark.parametrize("words", [["ls"], ["retry", "--all"]])
def test_what_cannot_be_listed_is_told_and_the_rest_is_shown(
    spool: Spool, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fsio.names

    def refused(directory: str) -> list[str]:
        if directory in (spool.layout.failed, spool.layout.results):
            raise PermissionError(errno.EACCES, "Permission denied", directory)
        return real(directory)

    put(spool, "ready")
    monkeypatch.setattr(fsio, "names", refused)
    shown = run(*words, spool.path)
    assert shown.exit_code == SpoolpoolError.exit_code
    assert f"Not seen: {spool.layout.failed} (Permission denied)" in shown.stderr
    assert "Traceback" not in shown.stderr
    assert ("waiting" in shown.stdout) == (words == ["ls"])


@pytest.mark.parametrize("name", ["status", "gc"])
def test_a_directory_that_cannot_be_listed_is_told_without_a_traceback(
    spool: Spool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fsio.names

    def refused(directory: str) -> list[str]:
        if directory in (spool.layout.failed, spool.layout.results):
            raise PermissionError(errno.EACCES, "Permission denied", directory)
        return real(directory)

    monkeypatch.setattr(fsio, "names", refused)
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

    monkeypatch.setattr(fsio, "names", away)
    assert isinstance(run("--debug", "status", spool.path).exception, OSError)
    assert isinstance(run("status", spool.path).exception, SystemExit)


def test_verbose_lets_the_log_speak(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    levels: list[int] = []
    monkeypatch.setattr(logging, "basicConfig", lambda *, level, **_: levels.append(level))
    for options in ([], ["-v"], ["-vv"], ["--verbose"]):
        run(*options, "status", spool.path)
    assert levels == [logging.WARNING, logging.INFO, logging.DEBUG, logging.INFO]


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
    assert output.shown(odd) == "a b\\x1b[31m\\n\\udcff\\u202eé"
    assert output.shown("plain: 'text' (ü)") == "plain: 'text' (ü)"

"""Working directories: calls run where they were submitted, unless ``cwd`` names another directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from spoolpool import Executor, Submission
from spoolpool.calls import run
from spoolpool.errors import BadRequest, SpoolpoolError
from spoolpool.format.headers import TaskHeader
from spoolpool.protocol.spool import Spool
from tests.conftest import Workers
from tests.support import tasks
from tests.support.waiting import LIMIT


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Three directories; the test is in the first."""
    found = [tmp_path / name for name in "abc"]
    for place in found:
        place.mkdir()
    monkeypatch.chdir(found[0])
    return found


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.mpi)])
def test_calls_run_in_the_directory_of_their_submission(
    spool: Spool, worker: Workers, places: list[Path], monkeypatch: pytest.MonkeyPatch, ranks: int
) -> None:
    worker(spool, mpi_ranks=ranks)
    with Executor(spool=spool.path, resource_dict={"cores": ranks}) as executor:
        for place in places[1:]:
            monkeypatch.chdir(place)
            found = executor.submit(tasks.get_cwd).result(LIMIT)
            assert found == (str(place) if ranks == 1 else [str(place)] * 2)


def test_packed_calls_run_in_their_own_directories(
    spool: Spool, worker: Workers, places: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker(spool)
    expected, futures = [], []
    with Executor(spool=spool.path, submission=Submission(pack=True)) as executor:
        executor.submit(tasks.get_cwd).result(LIMIT)
        for number in range(300):
            place = places[number // 20 % 3]
            monkeypatch.chdir(place)
            expected.append(str(place))
            futures.append(executor.submit(tasks.get_cwd))
        assert [future.result(LIMIT) for future in futures] == expected


def test_directory_that_does_not_exist_is_an_error_of_the_call(
    spool: Spool, worker: Workers, places: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = places[1]
    with Executor(spool=spool.path) as executor:
        monkeypatch.chdir(gone)
        future = executor.submit(tasks.get_cwd)
        monkeypatch.chdir(places[2])
        gone.rmdir()
        worker(spool)
        error = future.exception(LIMIT)
        assert isinstance(error, SpoolpoolError)
        assert str(gone) in str(error)
        assert "cwd" in str(error)
        assert executor.submit(tasks.get_cwd).result(LIMIT) == str(places[2])
    assert not gone.exists()


def test_submitter_whose_directory_was_removed_leaves_it_to_the_worker(
    spool: Spool, worker: Workers, places: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker(spool)
    with Executor(spool=spool.path) as executor:
        monkeypatch.chdir(places[1])
        places[1].rmdir()
        assert executor.submit(tasks.get_cwd).result(LIMIT) == str(places[0])
        monkeypatch.chdir(places[0])


def test_cwd_starts_at_the_directory_of_the_submitter_and_is_created(
    spool: Spool, worker: Workers, places: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker(spool)
    monkeypatch.chdir(places[2])
    with Executor(spool=spool.path) as executor:
        future = executor.submit(tasks.get_cwd, resource_dict={"cwd": "new/below"})
        assert future.result(LIMIT) == str(places[2] / "new" / "below")
    with Executor(spool=spool.path, cwd="other") as executor:
        assert executor.submit(tasks.get_cwd).result(LIMIT) == str(places[2] / "other")


def test_directory_that_is_closed_to_the_account_of_the_worker_is_not_used(
    places: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def chdir(path: str) -> None:
        raise PermissionError(13, os.strerror(13), path)

    monkeypatch.setattr(os, "chdir", chdir)
    header = TaskHeader(task="t", session="s", lane="l", bucket="b", directory=str(places[1]))
    with run._directory(header):
        assert Path.cwd() == places[0]
    explicit = TaskHeader(task="t", session="s", lane="l", bucket="b", cwd=str(places[1]))
    with pytest.raises(BadRequest, match="Permission denied"):
        run._directory(explicit)


def test_commands_run_in_the_directory_of_their_submission(
    spool: Spool, worker: Workers, places: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker(spool)
    monkeypatch.chdir(places[1])
    program = Path(sys.executable).parent / "spool"
    for options, place in [((), places[1]), (("--cwd", "deep/er"), places[1] / "deep" / "er")]:
        command = [program, "run", "--spool", spool.path, "--wait", *options, "--", "pwd"]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"{place}\n"


def test_call_that_waits_for_another_executor_keeps_its_directory(
    spool: Spool, worker: Workers, places: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    worker(spool)
    with Executor(max_workers=1) as other, Executor(spool=spool.path) as executor:
        monkeypatch.chdir(places[1])
        first = other.submit(tasks.wait_for, tmp_path / "gate", 1)
        second = executor.submit(tasks.get_cwd_and, first)
        monkeypatch.chdir(places[2])
        (tmp_path / "gate").touch()
        assert second.result(LIMIT) == (str(places[1]), 1)

"""What launchers build, without starting any of it; real ranks are in ``test_group_mpi``."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from spoolpool import settings
from spoolpool.errors import BadRequest, LauncherError
from spoolpool.launch import choice, flux
from spoolpool.launch.choice import Options, choose, environment, python_worker
from spoolpool.launch.local import LocalLauncher
from spoolpool.launch.mpiexec import MpiexecLauncher, find_mpiexec, flavour
from spoolpool.resources import Shape
from tests.support.waiting import wait_until

WORKER = python_worker(["spool", "--group-of", "2"])
TWO = Shape(ranks=2)

OPEN_MPI_4 = "mpiexec (OpenRTE) 4.1.4\n\nReport bugs to http://www.open-mpi.org/community/help/"
OPEN_MPI_5 = "mpiexec (Open MPI) 5.0.11\n\nReport bugs to https://www.open-mpi.org/community/help/"
PRRTE = "prterun (PRRTE) 3.0.6"
MPICH = "HYDRA build details:\n    Version:                                 5.0.2"
INTEL = "Intel(R) MPI Library for Linux* OS, Version 2021.9 Build 20230307\nCopyright 2003-2023, Intel Corporation."

Fake = Callable[[str], str]


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    """Makes an mpiexec that knows nothing but its version."""

    def make(says: str, code: int = 0, directory: str = "bin") -> str:
        path = tmp_path / directory / "mpiexec"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\ncat <<'END'\n{says}\nEND\nexit {code}\n", encoding="utf-8")
        path.chmod(0o755)
        return str(path)

    return make


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests stand in no allocation and in no rank."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "FLUX_", "PMI", "OMPI_")) or name == settings.ENV_MPIEXEC:
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("says", "kind"),
    [
        (OPEN_MPI_4, "openmpi"),
        (OPEN_MPI_5, "openmpi"),
        (PRRTE, "openmpi"),
        (MPICH, "mpich"),
        (INTEL, "mpich"),
        ("something else 1.0", "unknown"),
    ],
)
def test_the_flavour_of_an_mpiexec_is_what_it_says_of_itself(says, kind, fake):
    assert flavour(fake(says)) == kind


def test_an_mpiexec_that_cannot_be_run_has_no_known_flavour(tmp_path):
    assert flavour(str(tmp_path / "missing")) == "unknown"
    (tmp_path / "no-program").write_text("")
    assert flavour(str(tmp_path / "no-program")) == "unknown"


@pytest.mark.parametrize("says", [MPICH, INTEL, "something else 1.0"])
def test_mpich_and_unknown_ones_get_no_option_that_they_take_for_an_error(says, fake):
    path = fake(says)
    command = MpiexecLauncher(path).command(TWO, ["spool", "--group-of", "2"], Options(oversubscribe=True))
    assert command == [path, "-n", "2", *WORKER]


@pytest.mark.parametrize("says", [OPEN_MPI_4, OPEN_MPI_5])
@pytest.mark.parametrize(("user", "root"), [(1000, []), (0, ["--allow-run-as-root"])])
def test_open_mpi_is_not_bound_and_oversubscribes_only_where_asked_to(says, user, root, fake, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: user)
    path = fake(says)
    launcher = MpiexecLauncher(path)
    arguments = ["spool", "--group-of", "2"]
    # groups that are bound would all be bound to the same first cores
    assert launcher.command(TWO, arguments, Options()) == [path, "-n", "2", "--bind-to", "none", *root, *WORKER]
    asked = launcher.command(TWO, arguments, Options(oversubscribe=True))
    assert asked == [path, "-n", "2", "--oversubscribe", "--bind-to", "none", *root, *WORKER]


def test_further_arguments_of_a_user_come_last_before_the_worker(fake):
    path = fake(MPICH)
    command = MpiexecLauncher(path).command(TWO, [], Options(extra=("-hosts", "a,b")))
    assert command == [path, "-n", "2", "-hosts", "a,b", *python_worker([])]


def test_one_rank_is_started_without_mpiexec(fake):
    assert MpiexecLauncher(fake(MPICH)).command(Shape(), ["spool"], Options()) == python_worker(["spool"])
    assert LocalLauncher().command(Shape(threads=4), ["spool"], Options()) == python_worker(["spool"])


def test_the_worker_is_run_by_this_interpreter_and_named_by_its_module():
    assert python_worker(["a"]) == [sys.executable, "-m", "spoolpool.cli.worker", "a"]


def test_plain_processes_cannot_be_groups_of_several_ranks():
    with pytest.raises(LauncherError, match=r"group of 2 ranks needs an MPI launcher.*mpiexec"):
        LocalLauncher().command(TWO, [], Options())


def test_the_mpiexec_that_was_named_goes_before_that_of_the_environment_and_that_before_the_path(fake, monkeypatch):
    named, beside, on_path = fake(MPICH, directory="named"), fake(MPICH), fake(MPICH, directory="path")
    monkeypatch.setenv("PATH", f"{os.path.dirname(on_path)}:/usr/bin:/bin")
    monkeypatch.setattr(sys, "prefix", os.path.dirname(os.path.dirname(beside)))
    monkeypatch.setenv(settings.ENV_MPIEXEC, named)
    assert find_mpiexec() == named
    monkeypatch.delenv(settings.ENV_MPIEXEC)
    assert find_mpiexec() == beside
    os.unlink(beside)
    assert find_mpiexec() == on_path


def test_without_an_mpiexec_plain_processes_are_chosen_and_mpiexec_is_refused_with_advice(tmp_path, monkeypatch):
    monkeypatch.setenv(settings.ENV_MPIEXEC, str(tmp_path / "missing"))
    assert find_mpiexec() is None
    assert choose("auto").name == "local"
    with pytest.raises(LauncherError, match=rf"There is no mpiexec.*spoolpool\[mpi\].*{settings.ENV_MPIEXEC}"):
        choose("mpiexec")


def test_with_an_mpiexec_it_is_chosen(fake, monkeypatch):
    monkeypatch.setenv(settings.ENV_MPIEXEC, fake(MPICH))
    assert choose("auto").name == "mpiexec"
    assert choose("local").name == "local"


def test_an_unknown_launcher_is_an_error_that_lists_the_known_ones():
    with pytest.raises(BadRequest, match=r"no launcher 'tea'.*auto.*local.*mpiexec"):
        choose("tea")
    assert set(choice.NAMES) >= {"auto", "local", "mpiexec"}


def test_ranks_do_not_inherit_what_a_surrounding_mpi_left_for_its_own(monkeypatch):
    left = ("PMI_RANK", "PMI_FD", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE", "MPI_LOCALRANKID", "HYDI_CONTROL_FD", "PALS_X")
    for name in left:
        monkeypatch.setenv(name, "1")
    found = environment(Shape(), Options())
    assert not found.keys() & set(left)


def test_ranks_inherit_what_a_user_set_for_mpi_and_for_all_else(monkeypatch):
    kept = {"OMPI_MCA_btl": "self,sm", "OMPI_ALLOW_RUN_AS_ROOT": "1", "UCX_TLS": "sm", "MY_DATA": "here"}
    for name, value in kept.items():
        monkeypatch.setenv(name, value)
    assert kept.items() <= environment(Shape(), Options()).items()


def test_libraries_start_as_many_threads_as_the_group_has_and_a_user_has_the_last_word(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    found = environment(Shape(ranks=2, threads=3), Options(environment={"MKL_NUM_THREADS": "1", "NEW": "yes"}))
    assert {name: found[name] for name in settings.NUMBER_OF_THREADS} == dict.fromkeys(
        settings.NUMBER_OF_THREADS, "3"
    ) | {"MKL_NUM_THREADS": "1"}
    assert found["NEW"] == "yes"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("error", [OSError("the broker is gone"), RuntimeError("not known to these bindings")])
def test_a_flux_job_whose_events_cannot_be_followed_counts_as_ended(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def watch(handle: object, job: int) -> None:
        raise error

    job = types.SimpleNamespace(
        submit=lambda *_, **__: 17, event_watch_async=watch, output_event_watch_async=lambda *_: None
    )
    monkeypatch.setattr(flux, "_connect", object)
    monkeypatch.setitem(sys.modules, "flux", types.SimpleNamespace(job=job))
    monkeypatch.setitem(sys.modules, "flux.job", job)
    group = flux.FluxGroup(None, 16, (1, 2))
    assert wait_until(group.poll, "the supervisor hears of its end") == 1

"""Commands and environments of launchers, without starting ranks; ``test_mpi_group`` starts real ones."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from spoolpool import settings
from spoolpool.errors import BadRequest, LauncherError
from spoolpool.launch import flux, selection
from spoolpool.launch.launcher import CommandProcess, LaunchOptions, python_worker, rank_environment
from spoolpool.launch.local import LocalLauncher
from spoolpool.launch.mpi_implementation import mpi_of_command
from spoolpool.launch.mpiexec import MpiexecLauncher, find_mpiexec
from spoolpool.launch.selection import select_launcher
from spoolpool.resources import Shape
from tests.support.waiting import LIMIT, wait_until

WORKER = python_worker(["spool", "--group-of", "2"])
TWO = Shape(ranks=2)

OPEN_MPI_4 = "mpiexec (OpenRTE) 4.1.4\n\nReport bugs to http://www.open-mpi.org/community/help/"
OPEN_MPI_5 = "mpiexec (Open MPI) 5.0.11\n\nReport bugs to https://www.open-mpi.org/community/help/"
PRRTE = "prterun (PRRTE) 3.0.6"
MPICH = "HYDRA build details:\n    Version:                                 5.0.2"
INTEL = "Intel(R) MPI Library for Linux* OS, Version 2021.9 Build 20230307\nCopyright 2003-2023, Intel Corporation."

ALLOCATIONS = "slurm,tm,lsf,gridengine,alps,pals,flux,pbs,simulator,testrm"

Fake = Callable[[str], str]


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    """Function that makes an mpiexec which prints its version only."""

    def make(version: str, code: int = 0, directory: str = "bin") -> str:
        path = tmp_path / directory / "mpiexec"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\ncat <<'END'\n{version}\nEND\nexit {code}\n", encoding="utf-8")
        path.chmod(0o755)
        return str(path)

    return make


@pytest.mark.parametrize(
    ("version", "implementation"),
    [
        (OPEN_MPI_4, "openmpi"),
        (OPEN_MPI_5, "openmpi"),
        (PRRTE, "openmpi"),
        (MPICH, "mpich"),
        (INTEL, "mpich"),
        ("something else 1.0", "unknown"),
    ],
)
def test_mpi_implementation_is_recognized_by_its_version(version, implementation, fake):
    assert mpi_of_command(fake(version)) == implementation


def test_mpi_implementation_of_an_mpiexec_that_cannot_be_run_is_unknown(tmp_path):
    assert mpi_of_command(str(tmp_path / "missing")) == "unknown"
    (tmp_path / "no-program").write_text("")
    assert mpi_of_command(str(tmp_path / "no-program")) == "unknown"


@pytest.mark.parametrize("version", [MPICH, INTEL, "something else 1.0"])
def test_mpich_and_unknown_implementations_get_no_option_of_open_mpi(version, fake):
    path = fake(version)
    command = MpiexecLauncher(path).command(TWO, ["spool", "--group-of", "2"], LaunchOptions(oversubscribe=True))
    assert command == [path, "-n", "2", *WORKER]


@pytest.mark.parametrize("version", [OPEN_MPI_4, OPEN_MPI_5])
@pytest.mark.parametrize(("user", "root"), [(1000, []), (0, ["--allow-run-as-root"])])
def test_open_mpi_is_not_bound_and_oversubscribes_only_on_request(version, user, root, fake, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: user)
    path = fake(version)
    launcher = MpiexecLauncher(path)
    arguments = ["spool", "--group-of", "2"]
    # with binding, all groups would be bound to the same first cores
    here = ["--bind-to", "none", "--mca", "ras", f"^{ALLOCATIONS}"]
    assert launcher.command(TWO, arguments, LaunchOptions()) == [path, "-n", "2", *here, *root, *WORKER]
    oversubscribed = launcher.command(TWO, arguments, LaunchOptions(oversubscribe=True))
    assert oversubscribed == [path, "-n", "2", "--oversubscribe", *here, *root, *WORKER]


@pytest.mark.parametrize("option", ["--host", "--hostfile", "-H", "--mca"])
def test_open_mpi_sees_the_allocation_only_if_the_user_places_its_ranks(option, fake):
    extra = (option, "other") if option != "--mca" else (option, "ras", "slurm")
    command = MpiexecLauncher(fake(OPEN_MPI_4)).command(TWO, [], LaunchOptions(extra=extra))
    assert f"^{ALLOCATIONS}" not in command and command[-len(python_worker([])) - len(extra) :][: len(extra)] == [
        *extra
    ]


def test_extra_arguments_precede_the_command_of_the_worker(fake):
    path = fake(MPICH)
    command = MpiexecLauncher(path).command(TWO, [], LaunchOptions(extra=("-hosts", "a,b")))
    assert command == [path, "-n", "2", "-hosts", "a,b", *python_worker([])]


def test_single_rank_is_started_without_mpiexec(fake):
    assert MpiexecLauncher(fake(MPICH)).command(Shape(), ["spool"], LaunchOptions()) == python_worker(["spool"])
    assert LocalLauncher().command(Shape(threads=4), ["spool"], LaunchOptions()) == python_worker(["spool"])


def test_worker_is_run_as_a_module_by_this_interpreter():
    command = python_worker(["--help"])
    assert command[0] == sys.executable
    assert (
        "Run tasks from SPOOL"
        in subprocess.run(command, capture_output=True, text=True, check=True, timeout=LIMIT).stdout
    )


def test_local_launcher_rejects_groups_of_several_ranks():
    with pytest.raises(LauncherError, match=r"group of 2 ranks needs an MPI launcher.*mpiexec"):
        LocalLauncher().command(TWO, [], LaunchOptions())


def test_mpiexec_is_searched_in_the_setting_then_beside_python_then_on_path(fake, monkeypatch):
    named, beside, on_path = fake(MPICH, directory="named"), fake(MPICH), fake(MPICH, directory="path")
    monkeypatch.setenv("PATH", f"{os.path.dirname(on_path)}:/usr/bin:/bin")
    monkeypatch.setattr(sys, "prefix", os.path.dirname(os.path.dirname(beside)))
    monkeypatch.setenv(settings.ENV_MPIEXEC, named)
    assert find_mpiexec() == named
    monkeypatch.delenv(settings.ENV_MPIEXEC)
    assert find_mpiexec() == beside
    os.unlink(beside)
    assert find_mpiexec() == on_path


def test_auto_selects_local_without_an_mpiexec_and_mpiexec_is_an_error_with_advice(tmp_path, monkeypatch):
    monkeypatch.setenv(settings.ENV_MPIEXEC, str(tmp_path / "missing"))
    assert find_mpiexec() is None
    assert select_launcher("auto").name == "local"
    with pytest.raises(LauncherError, match=rf"{settings.ENV_MPIEXEC} names {tmp_path}/missing, which does not exist"):
        select_launcher("mpiexec")
    (tmp_path / "missing").touch()
    with pytest.raises(LauncherError, match=r"missing, which is not executable\. Correct the variable"):
        select_launcher("mpiexec")
    monkeypatch.setenv(settings.ENV_MPIEXEC, "mpiexec.tea")
    with pytest.raises(LauncherError, match=r"names mpiexec\.tea on PATH, which does not exist"):
        select_launcher("mpiexec")
    monkeypatch.delenv(settings.ENV_MPIEXEC)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    with pytest.raises(LauncherError, match=rf"There is no mpiexec.*spoolpool\[mpi\].*{settings.ENV_MPIEXEC}"):
        select_launcher("mpiexec")


def test_auto_selects_an_existing_mpiexec(fake, monkeypatch):
    monkeypatch.setenv(settings.ENV_MPIEXEC, fake(MPICH))
    assert select_launcher("auto").name == "mpiexec"
    assert select_launcher("local").name == "local"


def test_unknown_launcher_is_an_error_that_lists_the_names():
    with pytest.raises(BadRequest, match=r"no launcher 'tea'.*auto.*local.*mpiexec"):
        select_launcher("tea")
    assert set(selection.NAMES) >= {"auto", "local", "mpiexec"}


def test_ranks_do_not_inherit_variables_of_a_surrounding_mpi(monkeypatch):
    inherited = (
        "PMI_RANK",
        "PMI_FD",
        "PMIX_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "MPI_LOCALRANKID",
        "HYDI_CONTROL_FD",
        "PALS_X",
    )
    for name in inherited:
        monkeypatch.setenv(name, "1")
    found = rank_environment(Shape())
    assert not found.keys() & set(inherited)


def test_ranks_inherit_settings_of_the_user_for_mpi_and_other_programs(monkeypatch):
    kept = {"OMPI_MCA_btl": "self,sm", "OMPI_ALLOW_RUN_AS_ROOT": "1", "UCX_TLS": "sm", "MY_DATA": "here"}
    for name, value in kept.items():
        monkeypatch.setenv(name, value)
    assert kept.items() <= rank_environment(Shape()).items()


def test_libraries_start_as_many_threads_as_the_shape_has(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    found = rank_environment(Shape(ranks=2, threads=3))
    assert {name: found[name] for name in settings.NUMBER_OF_THREADS} == dict.fromkeys(settings.NUMBER_OF_THREADS, "3")


def test_descriptors_of_a_command_are_closed_when_it_has_ended_or_cannot_be_started():
    pipes = [descriptor for _ in range(2) for descriptor in os.pipe()]
    group = CommandProcess(["sh", "-c", "exec sleep 600"], {"PATH": os.environ["PATH"]}, None, pipes)
    assert [is_open(each) for each in pipes] == [False, False, True, True]
    assert group.poll() is None
    group.end()
    assert wait_until(lambda: group.poll() is not None, "it has ended")
    assert not any(map(is_open, pipes))
    pipes = [descriptor for _ in range(2) for descriptor in os.pipe()]
    with pytest.raises(OSError, match="no-program"):
        CommandProcess(["/no-program"], {}, None, pipes)
    assert not any(map(is_open, pipes))


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def make_flux(directory: Path, text: str) -> None:
    (directory / "flux").mkdir(parents=True)
    (directory / "flux" / "__init__.py").write_text(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "raise ImportError('libflux-core.so.2: cannot open shared object file: No such file or directory')",
            r"installed, but .*libflux-core\.so\.2: cannot open.*Add {prefix}/lib64 to LD_LIBRARY_PATH",
        ),
        ("raise ImportError('/x/_core.so: undefined symbol: flux_x')", r"undefined symbol.*the same version"),
        ("raise ModuleNotFoundError(\"No module named '_cffi_backend'\")", r"pip install 'spoolpool\[flux\]'"),
        ("import tea_and_cake", r"cannot be imported \(No module named 'tea_and_cake'\)"),
        ("", r"module flux of .*flux/__init__\.py is not that of Flux"),
    ],
)
def test_flux_that_cannot_be_loaded_is_told_with_the_remedy(
    text: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_flux(tmp_path / "site", text)
    (tmp_path / "site/flux/job.py").touch()
    (tmp_path / "lib64").mkdir()
    (tmp_path / "lib64/libflux-core.so.2").touch()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/flux").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    for name in [name for name in sys.modules if name == "flux" or name.startswith("flux.")]:
        monkeypatch.delitem(sys.modules, name)
    try:
        with pytest.raises(LauncherError, match=reason.replace("{prefix}", str(tmp_path))):
            flux._connect()
    finally:
        for name in ("flux", "flux.job"):
            sys.modules.pop(name, None)


@pytest.mark.parametrize("error", [OSError("the broker is gone"), RuntimeError("not known to these bindings")])
def test_flux_job_whose_events_cannot_be_read_counts_as_ended(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def watch(handle: object, job: int) -> None:
        raise error

    job = types.SimpleNamespace(
        submit=lambda *_, **__: 17, event_watch_async=watch, output_event_watch_async=lambda *_: None
    )
    monkeypatch.setattr(flux, "_connect", object)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setitem(sys.modules, "flux", types.SimpleNamespace(job=job))
    monkeypatch.setitem(sys.modules, "flux.job", job)
    orphans = types.SimpleNamespace(add_job=lambda _: None, remove_job=lambda _: None)
    group = flux.FluxGroup(None, 16, (1, 2), orphans)  # type: ignore[arg-type]
    assert wait_until(group.poll, "the group counts as ended") == 1
    for thread in threading.enumerate():  # it raises after that, and only this test ignores it
        if thread.name == "flux-17":
            thread.join(LIMIT)

"""Isolation of the tests from the user's settings, from the machine's, and from a batch job or MPI rank around them."""

from __future__ import annotations

import atexit
import importlib.metadata
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path

from spoolpool import settings
from spoolpool.system.environment import without_mpi

ROOT = Path(__file__).parents[2]
"""Directory of the working tree."""

_FOREIGN = ("SPOOLPOOL_", "SLURM", "SBATCH_", "SALLOC_", "SRUN_", "SQUEUE_", "FLUX_", "XDG_", "LC_", "LANG", "DASK_")
"""Starts of the names of variables that the package, its launchers, or programs that tests start would obey."""
_NAMES = (
    *settings.NUMBER_OF_THREADS,
    "CUDA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "COLUMNS",
    "LINES",
    "NO_COLOR",
    "FORCE_COLOR",
    "CLICOLOR",
    "CLICOLOR_FORCE",
    "PAGER",
    "IPYTHONDIR",
    "MPLBACKEND",
    "MATPLOTLIBRC",
)
_KEPT = ("PYTHONPATH", "PYTHONHOME", "PYTHONNOUSERSITE", "PYTHONPYCACHEPREFIX")
"""Variables without which Python may not find its modules; all others that begin with PYTHON change its behaviour."""


def isolate() -> None:
    """Isolate this process and all that it starts. To be called before the first test module is imported."""
    _set_variables()
    _set_signals()
    os.umask(0o022)
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))  # tests let processes crash


def _set_variables() -> None:
    caches = ROOT / ".pytest_cache"
    kept = {
        name: value
        for name, value in without_mpi(os.environ).items()
        if not name.startswith(_FOREIGN) and name not in _NAMES and (name in _KEPT or not name.startswith("PYTHON"))
    }
    if sys.dont_write_bytecode:  # else each of the thousands of processes compiles the package anew
        sys.dont_write_bytecode, sys.pycache_prefix = False, str(caches / "bytecode")
        kept["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
    home = tempfile.mkdtemp(prefix="spoolpool-home-")
    atexit.register(_remove, home, os.getpid())
    kept["HOME"] = home  # keys, caches and settings of the user, of spoolpool and of other programs
    kept["MPLCONFIGDIR"] = str(caches / "matplotlib")  # the list of fonts takes seconds to make
    kept["LC_ALL"] = "C.UTF-8"
    kept[settings.ENV_SHM] = ""  # so that the files of an executor are below the TMPDIR of its test
    if path := _module_path(kept.pop("PYTHONPATH", "")):
        kept["PYTHONPATH"] = path
    os.environ.clear()
    os.environ.update(kept)


def _module_path(path: str) -> str:
    """Return PYTHONPATH without the working tree: the functions of these tests would count as modules of a user."""
    try:
        importlib.metadata.distribution("spoolpool")
    except importlib.metadata.PackageNotFoundError:  # not installed: it is found there alone
        return path
    return os.pathsep.join(each for each in path.split(os.pathsep) if each and Path(each).resolve() != ROOT)


def _remove(home: str, pid: int) -> None:
    if os.getpid() == pid:  # not in a forked child
        shutil.rmtree(home, ignore_errors=True)


def _set_signals() -> None:
    """Let the processes that tests start have the default actions, also after nohup or in the background of a script.

    A signal that is ignored stays so over an exec; one with a handler gets its default action. The handler does
    nothing, so that this process goes on to ignore it.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)

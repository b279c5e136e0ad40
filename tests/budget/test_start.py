"""Budget of imports: modules that a program or a worker group does not load before its first call needs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from spoolpool.protocol.spool import Spool

LIMIT = 60

_MODULES = "sorted(__import__('sys').modules)"

_OF_THE_IMPORT = (
    "spoolpool.batch_backends",
    "spoolpool.cli",
    "spoolpool.joblib",
    "spoolpool.launch",
    "spoolpool.maintenance",
    "spoolpool.monitor",
    "spoolpool.pool",
    "spoolpool.programs",
    "spoolpool.protocol",
    "spoolpool.wire",
    "spoolpool.worker",
    "asyncio",
    "click",
    "cloudpickle",
    "filelock",
    "hashlib",
    "html",
    "importlib.abc",
    "json",
    "mpi4py",
    "msgspec",
    "multiprocessing",
    "numpy",
    "platform",
    "shutil",
    "socket",
    "subprocess",
    "sysconfig",
    "tempfile",
    "tqdm",
    "typing_extensions",
    "uuid",
    "watchdog",
    "xml",
)
"""Packages and modules that ``from spoolpool import Executor`` does not load."""

_OF_A_LOCAL_EXECUTOR = (
    "spoolpool.batch_backends",
    "spoolpool.cli",
    "spoolpool.client.memoize",
    "spoolpool.client.resume",
    "spoolpool.launch.flux",
    "spoolpool.launch.gridengine",
    "spoolpool.launch.jsrun",
    "spoolpool.launch.lsf",
    "spoolpool.launch.mpiexec",
    "spoolpool.launch.pbs",
    "spoolpool.launch.srun",
    "spoolpool.maintenance",
    "spoolpool.monitor.inventory",
    "spoolpool.monitor.query",
    "spoolpool.pool.autoscaler",
    "spoolpool.pool.batch_pool",
    "spoolpool.pool.systems",
    "spoolpool.worker",
    "asyncio",
    "click",
    "hashlib",
    "json",
    "multiprocessing",
    "socket",
    "sysconfig",
    "xml",
)
"""Modules that an executor with one group of one rank does not load until the result of its first call."""

_BEFORE_THE_GROUP = (
    "spoolpool.client.collector",
    "spoolpool.client.demand",
    "spoolpool.client.durations",
    "spoolpool.client.function_stats",
    "spoolpool.client.map",
    "spoolpool.client.packing",
    "spoolpool.client.packs",
    "spoolpool.client.session",
    "spoolpool.launch.last_lines",
    "spoolpool.protocol.claim",
    "spoolpool.protocol.heartbeat",
    "spoolpool.protocol.journal",
    "spoolpool.protocol.lost_attempts",
    "spoolpool.protocol.recovery",
    "spoolpool.protocol.worker_registration",
    "spoolpool.protocol.workers",
    "spoolpool.system.children",
    "spoolpool.system.watch",
    "ctypes",
)
"""Modules that an executor loads while its groups start."""

_OF_A_WORKER = (
    "spoolpool.backends",
    "spoolpool.client.collector",
    "spoolpool.executor",
    "spoolpool.launch.output_relay",
    "spoolpool.maintenance",
    "spoolpool.monitor",
    "spoolpool.options",
    "spoolpool.pool",
    "spoolpool.wire",
    "spoolpool.worker.mpi_group",
    "asyncio",
    "cloudpickle",
    "importlib.metadata",
    "mpi4py",
    "multiprocessing",
    "numpy",
    "socket",
    "sysconfig",
    "xml",
)
"""Modules that a group of one rank does not load until it begins its first call."""


def loaded(unwanted: tuple[str, ...], modules: list[str]) -> list[str]:
    return [name for name in modules if any(name == each or name.startswith(f"{each}.") for each in unwanted)]


def modules_after(program: str, directory: Path) -> list[str]:
    """Run a program that prints the names of modules in a new interpreter."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("COV")}  # it imports a lot
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=directory,
        env=variables,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert not done.returncode, done.stderr
    return done.stdout.split()


def test_import_of_the_executor_loads_no_other_room_and_no_backend(tmp_path: Path) -> None:
    modules = modules_after(f"from spoolpool import Executor\nprint(*{_MODULES})", tmp_path)
    assert "spoolpool.executor" in modules
    assert loaded(_OF_THE_IMPORT, modules) == []


def test_first_call_of_a_local_executor_loads_no_batch_system(tmp_path: Path) -> None:
    program = (
        "from spoolpool import Executor\n"
        "with Executor(max_workers=1, backend='local') as exe:\n"
        "    assert exe.submit(pow, 2, 3).result() == 8\n"
        f"    print(*{_MODULES})\n"
    )
    modules = modules_after(program, tmp_path)
    assert "spoolpool.pool.group_pool" in modules
    assert loaded(_OF_A_LOCAL_EXECUTOR, modules) == []


def test_a_local_executor_starts_its_group_before_it_loads_its_session(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys\n"
        "from spoolpool import Executor\n"
        "class Popen(subprocess.Popen):\n"
        "    def __init__(self, command, *args, **kwargs):\n"
        "        if 'spoolpool.cli.worker' in command:\n"
        f"            print(*{_MODULES})\n"
        "        super().__init__(command, *args, **kwargs)\n"
        "subprocess.Popen = Popen\n"
        "Executor(max_workers=1, backend='local').shutdown()\n"
    )
    modules = modules_after(program, tmp_path)
    assert "spoolpool.pool.group_pool" in modules
    assert loaded(_BEFORE_THE_GROUP, modules) == []


def test_worker_loads_no_submitter_and_no_supervisor_before_its_first_call(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path / "spool")
    program = (
        "from spoolpool import Executor\n"
        f"with Executor(spool={spool.path!r}, max_workers=1, backend='local') as exe:\n"
        f"    print(*exe.submit(eval, {_MODULES!r}).result())\n"
    )
    modules = modules_after(program, tmp_path)
    assert "spoolpool.worker.loop" in modules
    assert loaded(_OF_A_WORKER, modules) == []


def test_collections_in_a_worker_leave_out_what_it_has_imported(tmp_path: Path) -> None:
    state = "(lambda gc: [gc.isenabled(), gc.get_freeze_count() > 10_000])(__import__('gc'))"
    program = (
        "from spoolpool import Executor\n"
        "with Executor(max_workers=1, backend='local') as exe:\n"
        f"    print(*exe.submit(eval, {state!r}).result())\n"
    )
    assert modules_after(program, tmp_path) == ["True", "True"]


@pytest.mark.parametrize("name", ["Executor", "Sbatch", "Submission", "wait"])
def test_a_public_name_can_be_the_first_import(name: str, tmp_path: Path) -> None:
    assert modules_after(f"from spoolpool import {name}\nprint({name}.__name__)", tmp_path) == [name]

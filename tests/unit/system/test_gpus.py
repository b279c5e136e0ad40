"""GPUs without a batch system: their detection and their assignment to groups and ranks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from spoolpool import Executor
from spoolpool.errors import LauncherError
from spoolpool.protocol.spool import Spool
from spoolpool.system.gpus import Devices, find_gpus, take_share
from tests.conftest import Workers
from tests.support import tasks
from tests.support.waiting import LIMIT, wait_until


@pytest.fixture
def host(tmp_path: Path) -> Callable[..., str]:
    """Return a function that makes a root directory with the kernel files of a host."""

    def make(**files: str) -> str:
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return str(tmp_path)

    return make


def test_nvidia_gpus_are_counted_by_their_device_files(host: Callable[..., str]) -> None:
    root = host(dev__nvidia0="", dev__nvidia1="", dev__nvidiactl="", dev__nvidia_uvm="")
    assert find_gpus({}, root) == Devices("CUDA_VISIBLE_DEVICES", ("0", "1"))


def test_amd_gpus_are_counted_by_their_kernel_topology(host: Callable[..., str]) -> None:
    nodes = "sys__class__kfd__kfd__topology__nodes__"
    root = host(**{f"{nodes}{number}__gpu_id": text for number, text in enumerate(("0\n", "51030\n", "2311\n"))})
    assert find_gpus({}, root) == Devices("ROCR_VISIBLE_DEVICES", ("0", "1"))


def test_a_host_without_gpus_has_none(host: Callable[..., str]) -> None:
    assert find_gpus({}, host()).ids == ()


@pytest.mark.parametrize(
    ("variable", "value", "ids"),
    [
        ("CUDA_VISIBLE_DEVICES", "2, 3", ("2", "3")),
        ("CUDA_VISIBLE_DEVICES", "GPU-8a1f,MIG-77", ("GPU-8a1f", "MIG-77")),
        ("CUDA_VISIBLE_DEVICES", "", ()),
        ("CUDA_VISIBLE_DEVICES", "-1", ()),
        ("ROCR_VISIBLE_DEVICES", "1", ("1",)),
    ],
)
def test_gpus_named_by_a_variable_take_precedence(
    variable: str, value: str, ids: tuple[str, ...], host: Callable[..., str]
) -> None:
    assert find_gpus({variable: value}, host(dev__nvidia0="", dev__nvidia1="")) == Devices(variable, ids)


@pytest.mark.parametrize("rank", ["MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "PMI_RANK"])
def test_each_rank_takes_its_own_share(rank: str) -> None:
    shares = []
    for number in range(3):
        environment = {"X": "a,b,c,d,e,f", rank: str(number)}
        take_share("X", 2, environment)
        shares.append(environment["X"])
    assert shares == ["a,b", "c,d", "e,f"]


def visible() -> tuple[int, str]:
    return os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"]


def seen_by(spool: Spool, count: int, **resources: int) -> dict[int, str]:
    """Return the GPUs that each rank of ``count`` groups sees, by the pid of the rank."""
    seen: dict[int, str] = {}
    with Executor(spool=spool.path, resource_dict=resources) as executor:

        def all_seen() -> bool:
            for future in [executor.submit(visible) for _ in range(4 * count)]:
                value = future.result(LIMIT)
                seen.update(value if isinstance(value, list) else [value])
            return len(seen) == count * resources.get("cores", 1)

        wait_until(all_seen, "every group ran a task")
    return seen


def test_groups_on_a_workstation_get_separate_gpus(spool: Spool, worker: Workers) -> None:
    count = min(2, len(os.sched_getaffinity(0)))  # as many groups as there are cores and GPUs for
    worker(spool, "--launcher", "local", "--shape", "1+2gpu", await_groups=count, CUDA_VISIBLE_DEVICES="4,5,6,7")
    assert sorted(seen_by(spool, count, gpus_per_core=2).values()) == ["4,5", "6,7"][:count]


@pytest.mark.mpi
def test_ranks_of_a_group_on_a_workstation_get_separate_gpus(spool: Spool, worker: Workers) -> None:
    worker(
        spool,
        *("--launcher", "mpiexec", "--ranks", 2, "--gpus", 1, "--groups", 2),
        await_groups=2,
        CUDA_VISIBLE_DEVICES="0,1,2,3",
    )
    assert sorted(seen_by(spool, 2, cores=2, gpus_per_core=1).values()) == ["0", "1", "2", "3"]


def test_a_replacement_group_gets_the_gpus_of_its_predecessor(spool: Spool, worker: Workers, tmp_path: Path) -> None:
    worker(spool, "--launcher", "local", "--gpus", 1, CUDA_VISIBLE_DEVICES="3")
    with Executor(spool=spool.path, resource_dict={"gpus_per_core": 1, "max_attempts": 1}) as executor:
        first = executor.submit(visible).result(LIMIT)
        assert executor.submit(tasks.die, "SIGKILL", tmp_path / "trace").exception(LIMIT) is not None
        second = executor.submit(visible).result(LIMIT)
    assert first[1] == second[1] == "3" and first[0] != second[0]


def test_the_error_for_too_few_gpus_names_the_variable_that_lists_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(LauncherError, match=r"0 of the 1 GPU\(s\).*are free.*CUDA_VISIBLE_DEVICES"):
        Executor(max_workers=2, gpus_per_worker=1, backend="local")

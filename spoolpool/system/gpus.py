"""GPUs of a host without a batch system that assigns them: detection, and the share of each rank."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from typing import NamedTuple

from spoolpool.system.patterns import lazy_pattern
from spoolpool.system.processes import read_proc

_LOCAL_RANK = (
    "MPI_LOCALRANKID",  # MPICH and Intel
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "PALS_LOCAL_RANKID",
    "JSM_NAMESPACE_LOCAL_RANK",
    "PMI_RANK",  # other derivatives of MPICH; on one host it equals the local rank
)
_NVIDIA = lazy_pattern(r"nvidia\d+")


class Devices(NamedTuple):
    """GPUs, and the variable that assigns GPUs to a process."""

    variable: str
    """``CUDA_VISIBLE_DEVICES`` for NVIDIA, ``ROCR_VISIBLE_DEVICES`` for AMD."""
    ids: tuple[str, ...]
    """Numbers or UUIDs."""


def find_gpus(environment: Mapping[str, str] = os.environ, root: str = "") -> Devices:
    """Return the GPUs that this process may use: named by a variable, else shown by the kernel.

    No vendor tool is run. A GPU that is present need not work.
    """
    for variable in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        if variable in environment:
            named = (name.strip() for name in environment[variable].split(","))
            return Devices(variable, tuple(name for name in named if name and name != "-1"))
    if nvidia := [name for name in _names(f"{root}/dev") if _NVIDIA.fullmatch(name)]:
        return Devices("CUDA_VISIBLE_DEVICES", tuple(map(str, range(len(nvidia)))))
    nodes = f"{root}/sys/class/kfd/kfd/topology/nodes"
    amd = [node for node in _names(nodes) if read_proc(f"{nodes}/{node}/gpu_id") not in ("", "0")]  # 0 is a CPU
    return Devices("ROCR_VISIBLE_DEVICES" if amd else "CUDA_VISIBLE_DEVICES", tuple(map(str, range(len(amd)))))


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:  # no such hardware
        return []


def local_rank(environment: Mapping[str, str] = os.environ) -> int:
    """Return the rank of this process among the processes that one mpiexec started on this host."""
    return next((int(environment[name]) for name in _LOCAL_RANK if environment.get(name, "").isdecimal()), 0)


def take_share(variable: str, count: int, environment: MutableMapping[str, str] = os.environ) -> None:
    """Reduce ``variable``, which lists the GPUs of the whole group, to the ``count`` GPUs of this rank."""
    rank = local_rank(environment)
    ids = environment[variable].split(",")
    environment[variable] = ",".join(ids[rank * count : (rank + 1) * count])

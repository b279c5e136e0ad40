"""Cores, GPUs and time that a batch system has given to the job of this process, and placement of groups in them."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from spoolpool.errors import LauncherError
from spoolpool.launch.job_nodes import JobNodes
from spoolpool.resources import Shape
from spoolpool.system.batch_job import BatchJob, find_batch_job
from spoolpool.system.command_output import output_of
from spoolpool.system.gpus import find_gpus
from spoolpool.system.patterns import lazy_pattern
from spoolpool.system.processes import hostname
from spoolpool.system.walltime import parse_clock

_COUNTS = lazy_pattern(r"(\d+)(?:\(x(\d+)\))?")
_HOSTS = lazy_pattern(r"(?:[^,\[\]]|\[[^\]]*\])+")
_BRACKETS = lazy_pattern(r"(\[[^\]]*\])")
_RANK_OF_MPIEXEC = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "PALS_RANKID", "JSM_NAMESPACE_RANK")
_FLUX_WITHOUT_END = 2.0**32 - 1  # what ``flux job timeleft`` prints for an instance without an end


@dataclass(frozen=True, kw_only=True)
class MemoryRequest:
    """Bytes of memory that the batch system takes for a group. Nothing is counted without a request."""

    per_rank: int = 0
    """Bytes of each rank, in whole megabytes for each of its threads."""
    per_thread: int = 0
    """Bytes of each thread, in addition."""
    per_node: int = 0
    """Bytes on each node of the group, in addition."""

    def of(self, shape: Shape, ranks: int) -> int:
        """Return the bytes that this number of ranks of a group takes on one node."""
        rounded = -(-self.per_rank // (shape.threads << 20)) << 20
        return self.per_node + ranks * shape.threads * (self.per_thread + rounded)

    def fitting_ranks(self, shape: Shape, memory: float) -> float:
        """Return the number of ranks that fit into this many bytes; infinite without a request."""
        each = self.of(shape, 1) - self.per_node
        if memory < self.per_node:
            return 0
        return (memory - self.per_node) // each if each and memory < math.inf else math.inf


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """Resources of the job around this process; without a job (``none``), those of this host."""

    system: Literal["slurm", "flux", "pbs", "lsf", "sge", "none"]
    """Batch system."""
    job: str = ""
    """Id of the job."""
    nodes: tuple[str, ...]
    """Names of the nodes."""
    cores: tuple[int, ...]
    """Cores of each node."""
    gpus: tuple[int, ...]
    """GPUs of each node."""
    threads_per_core: tuple[int, ...] = ()
    """Hardware threads of a core on each node, if groups get whole cores and run a rank or thread on each of these;
    empty if each rank or thread has a core."""
    memory: tuple[int, ...] = ()
    """Bytes of memory of each node that are shared out to groups; empty if memory is not counted."""
    request: MemoryRequest = MemoryRequest()
    """Memory of each group."""

    @property
    def description(self) -> str:
        """Phrase for messages: kind and size."""
        kind = "host" if self.system == "none" else "job"
        nodes = f" on {len(self.nodes)} node(s)" if self.system != "none" else ""
        each = {count for count in self.threads_per_core if count > 1}
        threads = f" of {' or '.join(map(str, sorted(each)))} hardware threads" if each else ""
        memory = f", {sum(self.memory) >> 20} MiB of memory" if self.memory else ""
        return f"this {kind}, which has {sum(self.cores)} core(s){threads}{memory} and {sum(self.gpus)} GPU(s){nodes}"

    def capacity(self, cores: int = 0) -> Capacity:
        """Return the capacity of all nodes; multiply their cores until there are at least ``cores``."""
        factor = max(1, -(-cores // max(1, sum(self.cores))))
        return Capacity(replace(self, cores=tuple(factor * count for count in self.cores)))

    def check(self, shape: Shape) -> None:
        """Raise :class:`LauncherError` unless one group of a shape fits."""
        if self.capacity().reserve(shape) is None:
            raise LauncherError(
                f"A group of {shape} does not fit into {self.description}. Ask for a larger job, or smaller groups."
            )


def plan(
    allocation: Allocation, requests: Sequence[tuple[Shape, int | None]], *, oversubscribe: bool = False
) -> tuple[list[tuple[Shape, int]], Capacity]:
    """Return the number of simultaneous groups of each shape, in placement order, and the capacity for them.

    A shape without a number gets the rest, in the order of the requests. On a host without a batch system, and with
    ``oversubscribe``, there are as many cores as the numbers request, and the memory is shared. Raises
    :class:`LauncherError` if a shape gets no group, or fewer than its number.
    """
    if oversubscribe:
        allocation = replace(allocation, memory=())
    requested = sum(shape.cores * count for shape, count in requests if count is not None)
    cores = requested if oversubscribe or allocation.system == "none" else 0
    # the hardest to place come first; the sort keeps the order of shapes without a number
    order = sorted(requests, key=lambda each: (each[1] is None, *([0, 0] if each[1] is None else each[0].burden())))
    capacity = allocation.capacity(cores)
    planned: list[tuple[Shape, int]] = []
    for shape, count in order:
        placed = 0
        while placed != count and capacity.reserve(shape) is not None:
            placed += 1
        if placed < (count or 1):
            beside = "".join(f", beside {number} of {other}" for other, number in planned)
            raise LauncherError(
                f"{count or 1} group(s) of {shape} cannot be placed in {allocation.description}{beside}: there is room "
                f"for {placed}. Ask for a larger job, or for smaller or fewer groups."
            )
        planned.append((shape, placed))
    return planned, allocation.capacity(cores)


class _Room(NamedTuple):
    """Free resources of one node."""

    cores: int
    gpus: int
    memory: float


class Capacity:
    """Free cores, GPUs and memory of nodes, reserved and released by groups."""

    def __init__(self, allocation: Allocation) -> None:
        nodes = allocation.nodes
        memory = allocation.memory or (math.inf,) * len(nodes)
        rooms = map(_Room, allocation.cores, allocation.gpus, memory)
        self._total = dict(zip(nodes, rooms, strict=True))
        self._free = dict(self._total)
        self._threads = dict(zip(nodes, allocation.threads_per_core or (1,) * len(nodes), strict=True))
        self._request = allocation.request
        # a group on several nodes reserves all of each under Flux, since its ranks may run anywhere on them
        self._whole_nodes = allocation.system == "flux"

    def reserve(self, shape: Shape) -> tuple[str, ...] | None:
        """Reserve room for a group; return the node of each rank, in rank order, or None if there is no room.

        A group stays within one node if an empty node could hold it: the node with the fewest free GPUs, then cores,
        that does hold it. A larger group gets the nodes with the most room.
        """
        if any(self._fitting_ranks(shape, *each) >= shape.ranks for each in self._total.items()):
            fitting = [
                node for node, room in self._free.items() if self._fitting_ranks(shape, node, room) >= shape.ranks
            ]
            if not fitting:
                return None
            # keeps GPUs for groups that need them
            best = min(fitting, key=lambda node: (self._free[node].gpus, self._free[node].cores))
            return self._add((best,) * shape.ranks, shape, -1)
        free = {
            node: self._fitting_ranks(shape, node, room)
            for node, room in self._free.items()
            if not self._whole_nodes or room == self._total[node]
        }
        by_room = sorted(free, key=lambda node: -free[node])
        nodes = tuple(node for node in by_room for _ in range(free[node]))[: shape.ranks]
        return self._add(nodes, shape, -1) if len(nodes) == shape.ranks else None

    def release(self, nodes: tuple[str, ...], shape: Shape) -> None:
        """Release what :meth:`reserve` returned for a group of this shape."""
        self._add(nodes, shape, 1)

    def occupy(self, nodes: tuple[str, ...], shape: Shape) -> None:
        """Reserve room for a group that is on these nodes, whether it is free or not."""
        self._add(nodes, shape, -1)

    def exclude(self, node: str) -> None:
        """Reserve nothing on a node from now on."""
        self._total.pop(node, None)
        self._free.pop(node, None)

    def _add(self, nodes: tuple[str, ...], shape: Shape, sign: int) -> tuple[str, ...]:
        ranks_of = Counter(nodes)
        for node, ranks in ranks_of.items():
            if node in self._total:
                cores = occupied_cores(ranks, shape.threads, self._threads[node])
                used = _Room(cores, ranks * shape.gpus, self._request.of(shape, ranks))
                if len(ranks_of) > 1 and self._whole_nodes:
                    used = self._total[node]
                pairs = zip(self._free[node], used, strict=True)
                self._free[node] = _Room(*(free + sign * each for free, each in pairs))  # type: ignore[arg-type]
        return nodes

    def _fitting_ranks(self, shape: Shape, node: str, room: _Room) -> int:
        """Return how many ranks of a shape fit into this room of a node."""
        per_core = self._threads[node]
        ranks = room.cores * per_core // shape.threads
        if shape.threads > per_core:
            ranks = room.cores // occupied_cores(1, shape.threads, per_core)
        if shape.gpus:
            ranks = min(ranks, room.gpus // shape.gpus)
        return int(min(ranks, self._request.fitting_ranks(shape, room.memory)))


def occupied_cores(ranks: int, threads: int, threads_per_core: int) -> int:
    """Return the number of whole cores that ranks get on one node.

    Ranks that need less than a core share cores; others get whole cores (measured with srun of Slurm 22.05, for two and
    four hardware threads per core).
    """
    if threads <= threads_per_core:
        return -(-ranks * threads // threads_per_core)
    return ranks * -(-threads // threads_per_core)


def find_allocation(environment: Mapping[str, str] = os.environ) -> Allocation:
    """Return the innermost allocation around this process: a Flux instance, else a batch job, else this host.

    The resources of a Flux instance are left out: its launcher reads them through Flux's bindings.
    """
    if environment.get("FLUX_URI"):
        return Allocation(system="flux", job=environment.get("FLUX_JOB_ID", ""), nodes=(), cores=(), gpus=())
    if job := environment.get("SLURM_JOB_ID"):
        cores = expand_counts(environment.get("SLURM_JOB_CPUS_PER_NODE", "1"))
        nodes = expand_hosts(environment.get("SLURM_JOB_NODELIST", hostname()))
        gpus = int(environment.get("SLURM_GPUS_ON_NODE") or 0)
        if len(nodes) != len(cores):
            raise LauncherError(
                f"Slurm's variables do not agree: SLURM_JOB_NODELIST names {len(nodes)} node(s), and "
                f"SLURM_JOB_CPUS_PER_NODE {len(cores)}."
            )
        return Allocation(system="slurm", job=job, nodes=nodes, cores=cores, gpus=(gpus,) * len(cores))
    if (found := find_batch_job(environment)) and found.system != "slurm":
        names, counts, devices = _job_nodes(found, environment)
        return Allocation(system=found.system, job=found.id, nodes=names, cores=counts, gpus=devices)
    return host_allocation(environment)


def _job_nodes(job: BatchJob, environment: Mapping[str, str]) -> JobNodes:
    # imported here: a process is in a job of one system, and most are in none
    if job.system == "pbs":
        from spoolpool.launch import pbs

        return pbs.find_nodes(job.id, environment)
    if job.system == "lsf":
        from spoolpool.launch import lsf

        return lsf.find_nodes(environment)
    from spoolpool.launch import gridengine

    return gridengine.find_nodes(environment)


def host_share(allocation: Allocation) -> Allocation:
    """Return the part of an allocation on this host: all that this process may use, if its system binds processes.

    PBS, LSF and Grid Engine count cores, and need not bind processes to them. The script runs on the first node.
    """
    if allocation.system in ("slurm", "flux", "none"):
        return host_allocation()
    short = hostname().partition(".")[0]
    names = [name.partition(".")[0] for name in allocation.nodes]
    here = names.index(short) if short in names else 0
    cores = min(allocation.cores[here], usable_cores())
    return replace(allocation, nodes=(hostname(),), cores=(cores,), gpus=(allocation.gpus[here],))


def host_allocation(environment: Mapping[str, str] = os.environ) -> Allocation:
    """Return the cores and GPUs of this host that this process may use."""
    gpus = len(find_gpus(environment).ids)
    return Allocation(system="none", nodes=(hostname(),), cores=(usable_cores(),), gpus=(gpus,))


def usable_cores() -> int:
    """Return the number of cores of this host that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_step(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether this process is a rank of a Slurm step, a Flux job or an mpiexec; a batch script is none.

    ``FLUX_TASK_RANK`` of a batch script is its number in the parent instance, whose ``FLUX_URI`` is another; Flux
    removes the variable from the script's environment. An instance that is itself a step of a Slurm job passes the
    step's id on to its scripts, which may start jobs of the instance nevertheless.
    """
    if environment.get("FLUX_URI"):
        return bool(environment.get("FLUX_TASK_RANK"))
    if environment.get("SLURM_JOB_ID"):
        return bool(environment.get("SLURM_STEP_ID"))
    task = environment.get("PBS_TASKNUM", "1")  # pbsdsh counts its tasks from 2
    return task != "1" or any(environment.get(name) for name in _RANK_OF_MPIEXEC)


def expand_counts(counts: str) -> tuple[int, ...]:
    """Expand Slurm's short form of numbers per node: ``"4(x2),2"`` is 4, 4, 2."""
    return tuple(int(count) for count, times in _COUNTS.findall(counts) for _ in range(int(times or 1)))


def expand_hosts(names: str) -> tuple[str, ...]:
    """Expand Slurm's short form of host names: ``"n[1-2,07],m"`` is n1, n2, n07, m."""
    hosts = []
    for pattern in _HOSTS.findall(names):
        heads = [""]
        for part in filter(None, _BRACKETS.split(pattern)):
            choices = [part]
            if part.startswith("["):
                choices = [number for numbers in part[1:-1].split(",") for number in _expand_range(numbers)]
            heads = [head + choice for head in heads for choice in choices]
        hosts += heads
    return tuple(hosts)


def _expand_range(text: str) -> list[str]:
    """Expand a range: ``"08-10"`` is 08, 09, 10."""
    first, _, last = text.partition("-")
    return [f"{number:0{len(first)}d}" for number in range(int(first), int(last or first) + 1)]


def seconds_left(environment: Mapping[str, str] = os.environ) -> float | None:
    """Return the seconds until the first walltime ends of all jobs around this process, which may be nested.

    None if they have none, or none can be determined. Call this once per job, not per group.
    """
    found = [each(environment) for each in (_slurm_seconds_left, _flux_seconds_left, _other_seconds_left)]
    return min((seconds for seconds in found if seconds is not None), default=None)


def _slurm_seconds_left(environment: Mapping[str, str]) -> float | None:
    """Ask Slurm's controller, unless a variable tells the end: Slurm before 23.02 sets none."""
    job = environment.get("SLURM_JOB_ID")
    if not job:
        return None
    if end := environment.get("SLURM_JOB_END_TIME"):
        return max(0.0, float(end) - time.time())
    return parse_clock(output_of(["squeue", "-h", "-j", job, "-o", "%L"]))


def _flux_seconds_left(environment: Mapping[str, str]) -> float | None:
    """Ask the instance, whose own job may have an end."""
    if not environment.get("FLUX_URI"):
        return None
    try:
        left = float(output_of(["flux", "job", "timeleft"]))
    except ValueError:
        return None
    return left if left < _FLUX_WITHOUT_END else None


def _other_seconds_left(environment: Mapping[str, str]) -> float | None:
    """Return the seconds left to a job of PBS, LSF or Grid Engine."""
    job = find_batch_job(environment)
    if job is None or job.system == "slurm":
        return None
    if job.system == "sge":
        from spoolpool.launch import gridengine

        return gridengine.seconds_left(job.id, environment)
    if job.system == "pbs":
        from spoolpool.launch import pbs

        return pbs.seconds_left(job.id)
    from spoolpool.launch import lsf

    return lsf.seconds_left(job.id)

"""What a batch system has given to the job that this process runs in: cores, GPUs, and the time that is left."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from spoolpool.errors import LauncherError
from spoolpool.resources import Shape
from spoolpool.system.gpus import find_gpus
from spoolpool.system.processes import hostname

Kind = Literal["slurm", "flux", "none"]

_COUNTS = re.compile(r"(\d+)(?:\(x(\d+)\))?")
_HOSTS = re.compile(r"(?:[^,\[\]]|\[[^\]]*\])+")
_BRACKETS = re.compile(r"(\[[^\]]*\])")
_LEFT = re.compile(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)")


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """The job around this process, or ``none``: then the whole host is ours."""

    kind: Kind
    """Batch system."""
    job: str = ""
    """Its id of the job."""
    nodes: tuple[str, ...]
    """Names of the nodes."""
    cores: tuple[int, ...]
    """Cores of each node."""
    gpus: tuple[int, ...]
    """GPUs of each node."""

    @property
    def words(self) -> str:
        """It in words, for messages."""
        where = "host" if self.kind == "none" else "job"
        nodes = f" on {len(self.nodes)} node(s)" if self.kind != "none" else ""
        return f"this {where}, which has {sum(self.cores)} core(s) and {sum(self.gpus)} GPU(s){nodes}"

    def room(self, cores: int = 0) -> Room:
        """All of it, to be dealt out; with so many times its cores as it takes for a number of them."""
        times = max(1, -(-cores // max(1, sum(self.cores))))
        whole = self.kind == "flux"
        return Room(self.nodes, [times * each for each in self.cores], self.gpus, whole_nodes=whole)

    def check(self, shape: Shape) -> None:
        """Raises :class:`LauncherError` where not even one group of a shape fits."""
        if self.room().take(shape) is None:
            raise LauncherError(
                f"A group of {shape} does not fit into {self.words}. Ask for a larger job, or smaller groups."
            )


def plan(
    allocation: Allocation, wishes: Sequence[tuple[Shape, int | None]], *, oversubscribe: bool = False
) -> tuple[list[tuple[Shape, int]], Room]:
    """How many groups of each shape run side by side, in the order in which they are to be placed, and the room for it.

    A shape without a number gets what is left, in the order of the wishes. On a host that no batch system looks after,
    and with ``oversubscribe``, there are as many cores as the numbers ask for. Raises :class:`LauncherError` where a
    shape gets no place, or fewer than its number.
    """
    asked = sum(shape.cores * count for shape, count in wishes if count is not None)
    cores = asked if oversubscribe or allocation.kind == "none" else 0
    # what is hard to place comes first; the sort keeps the order of those without a number
    order = sorted(wishes, key=lambda wish: (wish[1] is None, *([0, 0] if wish[1] is None else wish[0].burden())))
    room = allocation.room(cores)
    planned: list[tuple[Shape, int]] = []
    for shape, count in order:
        found = 0
        while found != count and room.take(shape) is not None:
            found += 1
        if found < (count or 1):
            beside = "".join(f", beside {number} of {other}" for other, number in planned)
            raise LauncherError(
                f"{count or 1} group(s) of {shape} cannot be placed in {allocation.words}{beside}: there is room for "
                f"{found}. Ask for a larger job, or for smaller or fewer groups."
            )
        planned.append((shape, found))
    return planned, allocation.room(cores)


class Room:
    """What is free on some nodes while groups are placed there."""

    def __init__(
        self, nodes: Sequence[str], cores: Sequence[int], gpus: Sequence[int], *, whole_nodes: bool = False
    ) -> None:
        """``whole_nodes``: a group that spans several has them to itself, since its ranks may go anywhere on them."""
        self._all = {node: (count, devices) for node, count, devices in zip(nodes, cores, gpus, strict=True)}
        self._free = dict(self._all)
        self._whole_nodes = whole_nodes

    def take(self, shape: Shape) -> tuple[str, ...] | None:
        """Take the place for a group: the node of each rank, in rank order; None if there is none.

        A group stays within a node where an empty one could hold it: in the one that it leaves least free. A larger
        one goes to the emptiest nodes.
        """
        if any(_ranks(shape, *size) >= shape.ranks for size in self._all.values()):
            fitting = [node for node, free in self._free.items() if _ranks(shape, *free) >= shape.ranks]
            if not fitting:
                return None
            best = min(fitting, key=lambda node: self._free[node][::-1])  # GPUs are for those who ask for them
            return self._count((best,) * shape.ranks, shape, -1)
        free = {
            node: _ranks(shape, *free)
            for node, free in self._free.items()
            if not self._whole_nodes or free == self._all[node]
        }
        by_room = sorted(free, key=lambda node: -free[node])
        place = tuple(node for node in by_room for _ in range(free[node]))[: shape.ranks]
        return self._count(place, shape, -1) if len(place) == shape.ranks else None

    def give(self, place: tuple[str, ...], shape: Shape) -> None:
        """Give back the place of a group."""
        self._count(place, shape, 1)

    def close(self, node: str) -> None:
        """Nothing is placed on a node any more."""
        self._all.pop(node, None)
        self._free.pop(node, None)

    def _count(self, place: tuple[str, ...], shape: Shape, sign: int) -> tuple[str, ...]:
        nodes = Counter(place)
        for node, ranks in nodes.items():
            if node in self._all:
                taken = ranks * shape.threads, ranks * shape.gpus
                if len(nodes) > 1 and self._whole_nodes:
                    taken = self._all[node]
                cores, gpus = self._free[node]
                self._free[node] = cores + sign * taken[0], gpus + sign * taken[1]
        return place


def _ranks(shape: Shape, cores: int, gpus: int) -> int:
    """How many ranks of a shape so many cores and GPUs hold."""
    ranks = cores // shape.threads
    return min(ranks, gpus // shape.gpus) if shape.gpus else ranks


def find(environment: Mapping[str, str] = os.environ) -> Allocation:
    """The innermost allocation that this process runs in: a Flux instance, else a Slurm job, else this host.

    Of a Flux instance its launcher knows more, through Flux's bindings.
    """
    if environment.get("FLUX_URI"):
        return Allocation(kind="flux", job=environment.get("FLUX_JOB_ID", ""), nodes=(), cores=(), gpus=())
    if job := environment.get("SLURM_JOB_ID"):
        cores = expand(environment.get("SLURM_JOB_CPUS_PER_NODE", "1"))
        nodes = hosts(environment.get("SLURM_JOB_NODELIST", hostname()))
        gpus = int(environment.get("SLURM_GPUS_ON_NODE") or 0)
        if len(nodes) != len(cores):
            raise LauncherError(
                f"Slurm's variables do not agree: SLURM_JOB_NODELIST names {len(nodes)} node(s), and "
                f"SLURM_JOB_CPUS_PER_NODE {len(cores)}."
            )
        return Allocation(kind="slurm", job=job, nodes=nodes, cores=cores, gpus=(gpus,) * len(cores))
    return this_host(environment)


def this_host(environment: Mapping[str, str] = os.environ) -> Allocation:
    """What this process may use of its host."""
    gpus = len(find_gpus(environment).ids)
    return Allocation(kind="none", nodes=(hostname(),), cores=(usable_cores(),), gpus=(gpus,))


def usable_cores() -> int:
    """Return the number of cores of this host that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_step(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is a rank of a Slurm step or a Flux job; a batch script is none, and has no such id.

    In a batch script of Flux, the rank's number is that of the script in the instance above it, whose ``FLUX_URI``
    is another one: Flux takes it out of the environment there. An instance that is itself a step of a Slurm job leaves
    the step's id to its scripts, who may start jobs of the instance all the same.
    """
    return bool(environment.get("FLUX_TASK_RANK" if environment.get("FLUX_URI") else "SLURM_STEP_ID"))


def expand(counts: str) -> tuple[int, ...]:
    """Slurm's short form of numbers per node: ``"4(x2),2"`` is 4, 4, 2."""
    return tuple(int(count) for count, times in _COUNTS.findall(counts) for _ in range(int(times or 1)))


def hosts(names: str) -> tuple[str, ...]:
    """Slurm's short form of names: ``"n[1-2,07],m"`` is n1, n2, n07, m."""
    found = []
    for part in _HOSTS.findall(names):
        ends = [""]
        for word in filter(None, _BRACKETS.split(part)):
            middle = [word]
            if word.startswith("["):
                middle = [each for numbers in word[1:-1].split(",") for each in _numbers(numbers)]
            ends = [end + each for end in ends for each in middle]
        found += ends
    return tuple(found)


def _numbers(text: str) -> list[str]:
    """``"08-10"`` is 08, 09, 10."""
    first, _, last = text.partition("-")
    return [f"{number:0{len(first)}d}" for number in range(int(first), int(last or first) + 1)]


def seconds_left(allocation: Allocation, environment: Mapping[str, str] = os.environ) -> float | None:
    """Seconds until the job's walltime ends; None if it has none, or nobody knows.

    Slurm before 23.02 sets no ``SLURM_JOB_END_TIME``; its queue is asked then. Call it once per job, not per group.
    """
    if allocation.kind != "slurm":
        return None
    if end := environment.get("SLURM_JOB_END_TIME"):
        return max(0.0, float(end) - time.time())
    try:
        said = subprocess.run(
            ["squeue", "-h", "-j", allocation.job, "-o", "%L"],
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):  # no such command on this node, or the controller is away
        return None
    return duration(said.stdout)


def duration(text: str) -> float | None:
    """Slurm's form of a time, ``D-HH:MM:SS`` with the front left out where it is nothing, in seconds."""
    match = _LEFT.fullmatch(text.strip())
    if match is None:  # UNLIMITED, INVALID, NOT_SET
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60.0 + seconds

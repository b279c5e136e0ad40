"""Nodes and GPUs that the groups of a launcher hold in a job whose batch system assigns neither."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from spoolpool.errors import LauncherError
from spoolpool.launch.allocation import Allocation
from spoolpool.launch.launcher import GroupProcess
from spoolpool.resources import Shape
from spoolpool.system.gpus import Devices, find_gpus


class Placement(NamedTuple):
    """Nodes of the ranks of a group, in rank order, and its units on each node: GPUs, or cores."""

    nodes: tuple[str, ...]
    gpus: dict[str, tuple[str, ...]]
    cores: dict[str, tuple[int, ...]]


class JobGroups:
    """Groups in the nodes of a job; for one thread at a time."""

    def __init__(self, allocation: Allocation) -> None:
        self._allocation = allocation
        self.devices = _devices_of(allocation)
        """Variable of the GPUs, and their ids on every node."""
        self._groups: list[tuple[GroupProcess, Shape, Placement]] = []

    def place(self, shape: Shape, nodes: Sequence[str] = (), *, oversubscribe: bool = False) -> Placement:
        """Return a placement of a group on the given nodes, or on free ones; raise :class:`LauncherError` without room.

        With ``oversubscribe`` cores may be shared.
        """
        self._groups = [group for group in self._groups if group[0].poll() is None]
        placed = tuple(nodes) or self._free_nodes(shape, oversubscribe=oversubscribe)
        gpus: dict[str, tuple[str, ...]] = {}
        cores: dict[str, tuple[int, ...]] = {}
        sizes = dict(zip(self._allocation.nodes, self._allocation.cores, strict=True))
        for node, ranks in Counter(placed).items():
            taken_gpus = {each for _, _, other in self._groups for each in other.gpus.get(node, ())}
            taken_cores = {each for _, _, other in self._groups for each in other.cores.get(node, ())}
            number = ranks * shape.threads
            free = [core for core in range(sizes.get(node, number)) if core not in taken_cores]
            cores[node] = tuple((free if len(free) >= number else list(range(number)))[:number])
            if shape.gpus:
                ids = tuple(each for each in self.devices.ids if each not in taken_gpus)
                gpus[node] = ids[: ranks * shape.gpus]
                if len(gpus[node]) < ranks * shape.gpus:
                    raise LauncherError(
                        f"A group of {shape} cannot be started: {len(ids)} of the {len(self.devices.ids)} GPU(s) of "
                        f"{node} are free. If there are others, list them in {self.devices.variable}."
                    )
        return Placement(placed, gpus, cores)

    def _free_nodes(self, shape: Shape, *, oversubscribe: bool) -> tuple[str, ...]:
        cores = shape.cores + sum(other.cores for _, other, _ in self._groups) if oversubscribe else 0
        capacity = self._allocation.capacity(cores)
        for _, other, placement in self._groups:
            capacity.occupy(placement.nodes, other)
        nodes = capacity.reserve(shape)
        if nodes is None:
            self._allocation.check(shape)
            raise LauncherError(f"There is no room for another group of {shape} in {self._allocation.description}.")
        return nodes

    def add(self, process: GroupProcess, shape: Shape, placement: Placement) -> None:
        """Count a group until it has ended."""
        self._groups.append((process, shape, placement))


def _devices_of(allocation: Allocation) -> Devices:
    """Return the GPUs of this node if it has as many as each node of the job, else as many numbers."""
    found = find_gpus()
    most = max(allocation.gpus, default=0)
    return found if len(found.ids) >= most else Devices(found.variable, tuple(map(str, range(most))))

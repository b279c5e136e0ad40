"""Record of the nodes of a batch job."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class JobNodes(NamedTuple):
    """Nodes of a job, with their numbers of cores and GPUs."""

    names: tuple[str, ...]
    cores: tuple[int, ...]
    gpus: tuple[int, ...]


def sum_up(slots: Iterable[tuple[str, int]], gpus: int) -> JobNodes:
    """Return the nodes of pairs of a node and a number of its cores, each node once; ``gpus`` on each of them."""
    cores: dict[str, int] = {}
    for name, number in slots:
        cores[name] = cores.get(name, 0) + number
    return JobNodes(tuple(cores), tuple(cores.values()), (gpus,) * len(cores))


def read_lines(path: str) -> list[str]:
    """Return the lines of a file of the batch system; none if it cannot be read."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().splitlines()
    except OSError:
        return []

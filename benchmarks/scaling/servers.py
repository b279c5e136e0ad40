"""Metadata servers, as published measurements have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.costs import Costs


@dataclass(frozen=True, kw_only=True)
class Server:
    """One metadata server: operations per second at its best, of many clients together."""

    name: str
    source: str
    """Where the figures were published."""
    create: float
    """mdtest, file creation."""
    stat: float
    """mdtest, file stat."""
    remove: float
    """mdtest, file removal."""

    def seconds(self, *steps: Costs) -> float:
        """Return the seconds for which these steps occupy the server.

        mdtest tells of three kinds. A rename, which changes two directories, and a change of a time are counted as a
        creation, the dearest of them; opening and listing as a stat. Long listings cost more than that: see
        :func:`benchmarks.scaling.model.listed`.
        """
        each: Mapping[str, float] = {
            "create": 1 / self.create,
            "rename": 1 / self.create,
            "directory": 1 / self.create,
            "link": 1 / self.create,
            "set": 1 / self.create,
            "unlink": 1 / self.remove,
            "open": 1 / self.stat,
            "stat": 1 / self.stat,
            "list": 1 / self.stat,
        }
        return sum(count * each[kind] for step in steps for kind, count in step.items())


SERVERS = {
    server.name: server
    for server in (
        Server(
            name="lustre-2.5",
            source="Dell white paper 'Dell Storage for HPC with Intel Enterprise Edition for Lustre', figure 12: "
            "disks of 15 000 rpm, 240 threads",
            create=15_000,
            stat=400_000,
            remove=100_000,
        ),
        Server(
            name="lustre-2.7",
            source="Dell white paper 'Dell HPC Lustre Storage solution with Mellanox Infiniband EDR', figure 12: "
            "disks of 15 000 rpm, 240 threads",
            create=29_000,
            stat=544_000,
            remove=160_000,
        ),
    )
}
"""Of both, Lustre with one metadata server, and objects of one stripe or all of them."""

"""Cores, memory and GPUs that srun shares out to concurrent steps of a Slurm job, as its controller counts them.

The variables of a job count CPUs, which are hardware threads on most sites, while ``srun --exact`` gives each step
whole cores. They name the GPUs of the first node only. A step beyond these resources waits for another one's end.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from spoolpool.launch.allocation import Allocation, MemoryRequest, expand_hosts
from spoolpool.system.command_output import output_of

log = logging.getLogger(__name__)

_SHARE = re.compile(r"^\s*Nodes=(\S+) CPU_IDs=(\S*) Mem=(\d+) GRES=(\S*)", re.MULTILINE)
_GPUS = re.compile(r"(?<![\w:])gpu(?::[^:,()\s]+)?:(\d+)(?![^,(])")
_NODE = re.compile(r"NodeName=(\S+)")
_FIELD = re.compile(r"\b(Sockets|CoresPerSocket|CPUTot|ThreadsPerCore)=(\d+)")
_SIZE = re.compile(r"(\d+)([KMGT]?)B?", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """Options of srun that change the resources of a step, given by the user or inherited from the job."""

    threads_per_core: int | None = None
    """Limit of the hardware threads that a step uses of each core; None for all."""
    memory_per_cpu: int | None = None
    """Bytes; None if memory is not requested in this way."""
    memory: int | None = None
    """Bytes on each node, 0 to share that of the job; None if memory is not requested in this way."""

    @classmethod
    def read(cls, extra: Sequence[str], environment: Mapping[str, str] = os.environ) -> StepOptions:
        """Return the options among ``extra`` arguments of srun, else among its variables in the job."""
        given = dict(_options(extra))
        threads: int | None = None
        for hint, count in (
            (environment.get("SLURM_HINT"), environment.get("SLURM_THREADS_PER_CORE")),
            (given.get("--hint"), given.get("--threads-per-core")),
        ):
            if hint is not None or count is not None:
                threads = 1 if "nomultithread" in (hint or "").split(",") else _count(count)
        return cls(
            threads_per_core=threads,
            memory_per_cpu=_bytes(given.get("--mem-per-cpu")),
            memory=_bytes(given.get("--mem")),
        )

    def request(self, memory: int) -> MemoryRequest:
        """Return the memory of a step whose ranks are to have ``memory`` bytes each."""
        if self.memory is not None:
            return MemoryRequest(per_node=self.memory)
        if self.memory_per_cpu is not None:
            return MemoryRequest(per_thread=self.memory_per_cpu)
        return MemoryRequest(per_rank=memory)


def _options(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Return the long options of a command line with their values, ``--name=value`` or ``--name value``."""
    found = []
    for argument, following in zip(arguments, (*arguments[1:], ""), strict=False):
        name, given, value = argument.partition("=")
        if name.startswith("--"):
            found.append((name, value if given or following.startswith("-") else following))
    return found


def _count(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() and int(text) > 0 else None


def _bytes(text: str | None) -> int | None:
    """Return the bytes of a size of Slurm, which is in megabytes without a unit; 0 if it has another form."""
    if text is None:
        return None
    match = _SIZE.fullmatch(text)
    return int(match[1]) << 10 * " KMGT".index(match[2].upper() or "M") if match else 0


@dataclass(frozen=True, kw_only=True)
class NodeShare:
    """Part of a node that belongs to the job."""

    cores: int
    threads_per_core: int
    """CPUs of a core."""
    memory: int
    """Bytes; 0 if memory is not shared out."""
    gpus: int


def ask_controller(allocation: Allocation) -> dict[str, NodeShare]:
    """Return the shares of a job in its nodes; empty, with a warning, if the controller does not tell them."""
    shares = parse_shares(
        _ask("-d", "show", "job", allocation.job), _ask("-o", "show", "node", ",".join(allocation.nodes))
    )
    if all(node in shares for node in allocation.nodes):
        return shares
    log.warning(
        "scontrol does not tell the cores and the memory of job %s. The variables of the job are used; if its nodes "
        "have several hardware threads per core, fewer groups begin than are planned.",
        allocation.job,
    )
    return {}


def step_resources(
    allocation: Allocation, shares: Mapping[str, NodeShare], options: StepOptions, memory: int
) -> Allocation:
    """Return an allocation with the resources that steps with these options take, and the shares of its nodes.

    ``memory`` are the bytes of each rank. Without shares the variables of the job are all that is known.
    """
    if not shares:
        return allocation
    own = [shares[node] for node in allocation.nodes]
    most = options.threads_per_core
    return replace(
        allocation,
        cores=tuple(each.cores for each in own),
        gpus=tuple(each.gpus for each in own),
        threads_per_core=tuple(min(each.threads_per_core, most or each.threads_per_core) for each in own),
        memory=tuple(each.memory for each in own) if all(each.memory for each in own) else (),
        request=options.request(memory),
    )


def _ask(*arguments: str) -> str:
    """Return the output of scontrol; empty if it fails."""
    return output_of(["scontrol", *arguments])


def parse_shares(job: str, nodes: str) -> dict[str, NodeShare]:
    """Return the shares of a job by node from ``scontrol -d show job`` and ``scontrol -o show node``."""
    threads = parse_threads_per_core(nodes)
    found = {}
    for names, ids, memory, gres in _SHARE.findall(job):
        for node in expand_hosts(names):
            if node in threads:
                found[node] = NodeShare(
                    cores=-(-_count_ids(ids) // threads[node]),
                    threads_per_core=threads[node],
                    memory=int(memory) << 20,
                    gpus=sum(map(int, _GPUS.findall(gres))),
                )
    return found


def _count_ids(ids: str) -> int:
    """Return the number of ids in a list such as ``0-3,8``."""
    count = 0
    for part in filter(None, ids.split(",")):
        first, _, last = part.partition("-")
        count += int(last or first) - int(first) + 1
    return count


def parse_threads_per_core(text: str) -> dict[str, int]:
    """Return the CPUs of a core of each node from the output of ``scontrol -o show node``.

    A site may have one CPU per core although the core has several hardware threads.
    """
    found = {}
    for line in text.splitlines():
        name, fields = _NODE.match(line), {key: int(value) for key, value in _FIELD.findall(line)}
        if name and len(fields) == 4:
            cores = fields["Sockets"] * fields["CoresPerSocket"]
            found[name[1]] = max(1, min(fields["ThreadsPerCore"], fields["CPUTot"] // max(1, cores)))
    return found

"""Command lines by which each mpiexec starts ranks on given nodes."""

from __future__ import annotations

import functools
import itertools
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from spoolpool import settings
from spoolpool.launch.last_lines import SSH_SETTING
from spoolpool.launch.mpi_implementation import mpi_of_command, version_of_command
from spoolpool.system.command_output import output_of

Dialect = Literal["openmpi", "hydra", "intel", "pals"]
"""Kind of an mpiexec by its options: Open MPI, MPICH and those derived from it, Intel MPI, Cray PALS."""
_PBS_AGENT = os.path.join(os.path.dirname(__file__), "pbs_rsh.sh")


class Block(NamedTuple):
    """Consecutive ranks on one node."""

    node: str
    ranks: int


@functools.cache
def dialect_of(mpiexec: str) -> Dialect:
    """Return the kind of an mpiexec. One that cannot be run counts as MPICH's."""
    version = version_of_command(mpiexec).lower()
    if "/pals/" in os.path.realpath(mpiexec) or re.match(r"mpiexec version \d", version):
        return "pals"
    if mpi_of_command(mpiexec) == "openmpi":
        return "openmpi"
    return "intel" if "intel" in version else "hydra"


def blocks_of(nodes: Sequence[str]) -> list[Block]:
    """Return the blocks of ranks whose nodes these are."""
    return [Block(node, len(list(ranks))) for node, ranks in itertools.groupby(nodes)]


def placed_command(
    mpiexec: str,
    dialect: Dialect,
    blocks: Sequence[Block],
    workers: Sequence[Sequence[str]],
    *,
    options: Sequence[str] = (),
    variables: Iterable[str] = (),
    oversubscribe: bool = False,
) -> list[str]:
    """Return the command that starts the worker of each block on its node; ``options`` come before the placement.

    ``variables`` are the names of those that the ranks get in addition to the environment of this process. No rank is
    bound to cores: several of these commands share a node, and each would bind to the same first cores.
    """
    command = [mpiexec]
    if dialect == "openmpi":
        command += ["--oversubscribe"] if oversubscribe else []
        command += ["--bind-to", "none", *(["--allow-run-as-root"] if os.geteuid() == 0 else [])]
        command += itertools.chain.from_iterable(("-x", name) for name in _exported(variables))
        return [*command, *options, *_contexts(blocks, workers, lambda each: ["--host", f"{each.node}:{each.ranks}"])]
    if dialect == "intel":
        return [*command, *options, *_contexts(blocks, workers, lambda each: ["-host", each.node])]
    if dialect == "hydra":  # the list of hosts is one for all contexts, which take its slots in order
        hosts = ",".join(f"{each.node}:{each.ranks}" for each in blocks)
        return [*command, "-hosts", hosts, *options, *_contexts(blocks, workers, lambda _: [])]
    command += ["--cpu-bind", "none", *options]
    if _fills_in_order(blocks) and all(list(each) == list(workers[0]) for each in workers):
        hosts = ",".join(each.node for each in blocks)
        total, most = sum(each.ranks for each in blocks), blocks[0].ranks
        return [*command, "-n", str(total), "--ppn", str(most), "--hosts", hosts, *workers[0]]
    return [*command, *_contexts(blocks, workers, lambda each: ["--ppn", str(each.ranks), "--hosts", each.node])]


def _contexts(
    blocks: Sequence[Block], workers: Sequence[Sequence[str]], place: Callable[[Block], list[str]]
) -> list[str]:
    """Return the ranks of each block as a context of its own, separated by colons."""
    words: list[str] = []
    for block, worker in zip(blocks, workers, strict=True):
        words += [*([":"] if words else []), "-n", str(block.ranks), *place(block), *worker]
    return words


def _fills_in_order(blocks: Sequence[Block]) -> bool:
    """Return whether all blocks but the last have the same size, and the last is no larger: so PALS fills nodes."""
    return all(each.ranks == blocks[0].ranks for each in blocks[:-1]) and blocks[-1].ranks <= blocks[0].ranks


def _exported(variables: Iterable[str]) -> list[str]:
    """Return the variables that Open MPI does not pass on to other nodes by itself: those of a group, and others."""
    paths = [name for name in ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "HOME") if name in os.environ]
    jobs = ("PBS_JOBID", "LSB_JOBID", "LSB_JOBINDEX", "JOB_ID", "SGE_TASK_ID")
    inherited = [name for name in os.environ if name.startswith("SPOOLPOOL_") or name in jobs]
    return list(dict.fromkeys((*variables, *settings.NUMBER_OF_THREADS, *paths, *inherited)))


def remote_start(system: str, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return variables by which mpiexec starts processes on other nodes through the batch system instead of ssh.

    Variables that are set already win. An mpiexec that was built with the system's library needs none of them, and the
    ones of MPICH and Open MPI find those of LSF and Grid Engine by themselves, if the latter was built with them.
    """
    found = {"I_MPI_PIN": "off"}  # each mpiexec of Intel MPI would bind its ranks to the same first cores
    agent = _PBS_AGENT if system == "pbs" and shutil.which("pbs_tmrsh", path=environment.get("PATH")) else None
    if system == "lsf":
        agent = shutil.which("blaunch", path=environment.get("PATH"))
    if agent is not None and os.access(agent, os.X_OK):
        found |= {"OMPI_MCA_plm_rsh_agent": agent, "PRTE_MCA_plm_ssh_agent": agent}
        if system == "pbs":
            found |= {"HYDRA_LAUNCHER": "ssh", "HYDRA_LAUNCHER_EXEC": agent}
            found |= {"I_MPI_HYDRA_BOOTSTRAP": "ssh", "I_MPI_HYDRA_BOOTSTRAP_EXEC": agent}
    names = {*found, "HYDRA_LAUNCHER", "HYDRA_LAUNCHER_EXEC"}
    given = {name: environment[name] for name in sorted(names) if name in environment}
    if any(name.startswith("HYDRA_") for name in given):
        found = {name: value for name, value in found.items() if not name.startswith("HYDRA_")}
    return found | given


def warning_of_ssh(mpiexec: str, system: str, variables: Mapping[str, str]) -> str:
    """Return a warning if Open MPI reaches the other nodes of a job by ssh; empty if it has another way.

    ``variables`` are those of :func:`remote_start`.
    """
    agents = ("OMPI_MCA_plm_rsh_agent", "PRTE_MCA_plm_ssh_agent")
    component = _OPEN_MPI_COMPONENTS.get(system)
    if component is None or any(name in variables or name in os.environ for name in agents):
        return ""
    if component in _components_of(mpiexec):
        return ""
    return (
        f"{mpiexec} (Open MPI) does not have the component {component} for the jobs of this system: it starts daemons "
        f"on the other nodes by ssh, which many sites forbid. If it fails, {SSH_SETTING}."
    )


_OPEN_MPI_COMPONENTS = {"pbs": "mca:plm:tm", "lsf": "mca:plm:lsf", "sge": "mca:ras:gridengine"}


def _components_of(mpiexec: str) -> str:
    """Return the list of components of Open MPI 4 (ompi_info) and 5 (prte_info); empty if it cannot be had."""
    found = ""
    directory = os.path.dirname(os.path.realpath(mpiexec))
    for name in ("ompi_info", "prte_info"):
        path = shutil.which(name, path=f"{os.path.dirname(mpiexec)}:{directory}:{os.environ.get('PATH', '')}")
        if path is not None:
            found += output_of([path, "--parsable"])
    return found

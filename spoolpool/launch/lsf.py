"""Nodes and walltime of a job of LSF."""

from __future__ import annotations

import re
from collections.abc import Mapping

from spoolpool.launch.job_nodes import JobNodes, read_lines, sum_up
from spoolpool.system.command_output import output_of
from spoolpool.system.gpus import find_gpus
from spoolpool.system.processes import hostname

_LEFT = re.compile(r"(?:(\d+):)?(\d+):(\d+) ?L")


def find_nodes(environment: Mapping[str, str]) -> JobNodes:
    """Return the nodes of ``LSB_MCPU_HOSTS`` (``n1 4 n2 4``), else those of the host file, with a line for each slot.

    With the Cluster System Manager, the first one is the node of the script, on which no rank can run.
    """
    words = environment.get("LSB_MCPU_HOSTS", "").split()
    slots = [(name, int(number)) for name, number in zip(words[::2], words[1::2], strict=False) if number.isdigit()]
    if not slots:
        names = read_lines(environment.get("LSB_DJOB_HOSTFILE", "")) or environment.get("LSB_HOSTS", "").split()
        slots = [(name.strip(), 1) for name in names if name.strip()]
    nodes = sum_up(slots or [(hostname(), 1)], len(find_gpus(environment).ids))
    if environment.get("CSM_ALLOCATION_ID") and len(nodes.names) > 1:
        return JobNodes(nodes.names[1:], nodes.cores[1:], nodes.gpus[1:])
    return nodes


def seconds_left(job: str) -> float | None:
    """Return the seconds until the run limit of a job; None if it has none, or LSF does not answer."""
    return parse_seconds_left(output_of(["bjobs", "-noheader", "-o", "time_left", job]))


def parse_seconds_left(text: str) -> float | None:
    """Return the seconds of ``0:59 L``, in hours and minutes; None for ``-``, and for an estimate (``E``)."""
    match = _LEFT.fullmatch(text.strip())
    if match is None:
        return None
    days, hours, minutes = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60.0

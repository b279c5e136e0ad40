"""Nodes and walltime of a job of Grid Engine."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping

from spoolpool.launch.job_nodes import JobNodes, read_lines, sum_up
from spoolpool.system.command_output import output_of
from spoolpool.system.gpus import find_gpus
from spoolpool.system.processes import hostname
from spoolpool.system.walltime import parse_clock

_REQUESTED = re.compile(r"^hard resource_list:(.*)$", re.MULTILINE)
_REQUEST = re.compile(r"\b([hs]_rt)=([\d:]+)")
_QUEUE_LIMIT = re.compile(r"^([hs]_rt)\s+([\d:]+)$", re.MULTILINE)


def find_nodes(environment: Mapping[str, str]) -> JobNodes:
    """Return the nodes of the host file of a parallel environment, else this host with one slot.

    Each line names a node, its number of slots and its queue; a node may have several queues.
    """
    rows = [line.split() for line in read_lines(environment.get("PE_HOSTFILE", ""))]
    slots = [(row[0], int(row[1])) for row in rows if len(row) >= 2 and row[1].isdigit()]
    if not slots:
        number = environment.get("NSLOTS", "")
        slots = [(hostname(), int(number) if number.isdigit() else 1)]
    return sum_up(slots, len(find_gpus(environment).ids))


def seconds_left(job: str, environment: Mapping[str, str]) -> float | None:
    """Return the seconds until the soft or hard limit of a job's running time; None if it has none, or is not told.

    The limit is the least of those that were requested and those of the queue.
    """
    requested = output_of(["qstat", "-j", job.partition(".")[0]])
    queue = environment.get("QUEUE", "")
    limits = parse_limits(requested, output_of(["qconf", "-sq", queue]) if queue else "")
    if not limits:
        return None
    return max(0.0, min(limits) - (time.time() - _start(environment)))


def _start(environment: Mapping[str, str]) -> float:
    """Return the time at which the job began: its directory on this node was made then."""
    try:
        return os.stat(f"{environment.get('SGE_JOB_SPOOL_DIR', '')}/config").st_mtime
    except OSError:
        return time.time()


def parse_limits(requested: str, queue: str) -> list[float]:
    """Return the limits in seconds in the output of ``qstat -j`` and ``qconf -sq``."""
    found = [pair for line in _REQUESTED.findall(requested) for pair in _REQUEST.findall(line)]
    found += _QUEUE_LIMIT.findall(queue)
    return [seconds for _, text in found if (seconds := parse_clock(text)) is not None]

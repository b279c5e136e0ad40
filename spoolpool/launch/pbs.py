"""Nodes and walltime of a job of PBS Professional or OpenPBS."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Mapping, Sequence

from spoolpool.launch.job_nodes import JobNodes, read_lines, sum_up
from spoolpool.system.command_output import output_of
from spoolpool.system.gpus import find_gpus
from spoolpool.system.processes import hostname
from spoolpool.system.walltime import parse_clock

_JOB = re.compile(r"Job Id: (\S+)")
_ATTRIBUTE = re.compile(r"\s+([A-Za-z_][\w.]*) = (.*)")
_HOST = re.compile(r"([^/+]+)/[^*+]+(?:\*(\d+))?")
_CHUNK = re.compile(r"\(([^)]*)\)")
_GPUS = re.compile(r":ngpus=(\d+)")


def parse_records(text: str, start: re.Pattern[str] = _JOB) -> dict[str, dict[str, str]]:
    """Return the attributes of each record of ``qstat -f`` or ``pbsnodes``, by its name: the first group of ``start``.

    A long value goes on in the next line after a tab. The first attribute of a name counts: the variables of a job,
    which may contain anything, come after its state.
    """
    records: dict[str, dict[str, str]] = {}
    for line in text.replace("\n\t", "").splitlines():
        if match := start.match(line):
            current = records.setdefault(match[1], {})
        elif records and (match := _ATTRIBUTE.match(line)):
            current.setdefault(match[1], match[2])
    return records


@functools.cache
def _attributes(job: str) -> dict[str, str]:
    """Return the attributes of a job; empty if the server does not answer."""
    return next(iter(parse_records(output_of(["qstat", "-f", job])).values()), {})


def find_nodes(job: str, environment: Mapping[str, str]) -> JobNodes:
    """Return the nodes of a job as its server knows them, else those of its node file.

    The node file has a line for each MPI process that was requested, so it says less about cores.
    """
    lines = read_lines(environment.get("PBS_NODEFILE", ""))
    attributes = _attributes(job)
    if nodes := parse_nodes(attributes.get("exec_host", ""), attributes.get("exec_vnode", ""), lines):
        return nodes
    names = set(lines)
    threads = int(environment.get("NCPUS") or 1) if len(lines) == len(names) else 1
    return sum_up([(name, threads) for name in lines] or [(hostname(), threads)], len(find_gpus(environment).ids))


def parse_nodes(exec_host: str, exec_vnode: str, lines: Sequence[str] = ()) -> JobNodes | None:
    """Return the nodes of ``n1/0*4+n2/0*4`` and ``(n1:ncpus=4:ngpus=1)+(n2:ncpus=4)``, in their order.

    ``lines`` of the node file give the full names of the same nodes. Returns None without nodes.
    """
    hosts = _HOST.findall(exec_host)
    chunks = _CHUNK.findall(exec_vnode)
    cores: dict[str, int] = {}
    gpus: dict[str, int] = {}
    for number, (host, count) in enumerate(hosts):
        chunk = chunks[number] if len(chunks) == len(hosts) else ""
        cores[host] = cores.get(host, 0) + int(count or 1)
        gpus[host] = gpus.get(host, 0) + sum(map(int, _GPUS.findall(chunk)))
    if not cores:
        return None
    full = {name.partition(".")[0]: name for name in lines}
    names = tuple(full.get(host.partition(".")[0], host) for host in cores)
    return JobNodes(names, tuple(cores.values()), tuple(gpus.values()))


def seconds_left(job: str) -> float | None:
    """Return the seconds until the walltime of a job ends; None if it has none, or the server does not answer."""
    return parse_seconds_left(_attributes(job), time.time())


def parse_seconds_left(attributes: Mapping[str, str], now: float) -> float | None:
    """Return the rest of the walltime at the time ``now``.

    The used time is some minutes old, and the start is the time of the server in its zone: the lesser rest counts.
    """
    limit = parse_clock(attributes.get("Resource_List.walltime", ""))
    if limit is None:
        return None
    left = limit - (parse_clock(attributes.get("resources_used.walltime", "")) or 0.0)
    try:
        started = time.mktime(time.strptime(attributes["stime"], "%a %b %d %H:%M:%S %Y"))
    except (KeyError, ValueError):  # not started yet, or another locale
        return left
    return max(0.0, min(left, limit - max(0.0, now - started)))

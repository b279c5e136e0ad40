"""Nodes and walltime of jobs of PBS, LSF and Grid Engine, from their variables, files and answers.

The answers of PBS and Grid Engine are those of OpenPBS 23.06 and Son of Grid Engine 8.1.9, recorded and shortened.
Those of LSF follow the format in the command reference of IBM Spectrum LSF 10.1.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

import pytest

from spoolpool.launch import gridengine, lsf, pbs
from spoolpool.launch.allocation import Allocation, find_allocation, host_share, in_step, plan, seconds_left
from spoolpool.resources import Shape
from spoolpool.system.batch_job import find_batch_job
from spoolpool.system.processes import hostname

QSTAT = """\
Job Id: 0.ctl
    Job_Name = spool-worker-0123456789abcdef
    Job_Owner = root@ctl
    resources_used.ncpus = 8
    resources_used.walltime = 00:00:04
    job_state = R
    exec_host = n2/0*4+n1/0*4
    exec_vnode = (n2:ncpus=4:ngpus=2)+(n1:ncpus=4:ngpus=2)
    Resource_List.place = scatter:excl
    Resource_List.select = 2:ncpus=4:mpiprocs=4
    Resource_List.walltime = 00:05:00
    stime = Sat Nov 28 10:18:26 2026
    Variable_List = PBS_O_HOME=/root,
	PBS_O_PATH=/opt/pbs/bin:/usr/local/bin:/usr/bin:/bin,X=a
    exec_host = nowhere/0,
	PBS_O_WORKDIR=/tmp
    comment = Job run at Sat Nov 28 at 10:18 on (n2:ncpus=4)+(n1:ncpus=4) and f
	inished
"""
QSTAT_J = """\
job_number:                 1
hard resource_list:         h_rt=300,s_rt=240
job_name:                   spool-worker
env_list:                   h_rt=1
"""
QUEUE = """\
qname                 all.q
s_rt                  INFINITY
h_rt                  00:02:00
"""


def command(directory: Path, name: str, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program on PATH that prints an answer."""
    (directory / f"{name}.txt").write_text(answer)
    program = directory / name
    program.write_text(f"#!/bin/sh\nexec cat {directory}/{name}.txt\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")


@pytest.fixture(autouse=True)
def _no_answer_is_cached() -> None:
    pbs._attributes.cache_clear()


def test_nodes_of_a_pbs_job_are_those_of_its_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    command(tmp_path, "qstat", QSTAT, monkeypatch)
    (tmp_path / "nodes").write_text("n2.site.org\nn1.site.org\n")
    found = find_allocation({"PBS_JOBID": "0.ctl", "PBS_NODEFILE": str(tmp_path / "nodes")})
    assert found == Allocation(
        system="pbs", job="0.ctl", nodes=("n2.site.org", "n1.site.org"), cores=(4, 4), gpus=(2, 2)
    )


@pytest.mark.parametrize(
    ("host", "vnode", "nodes"),
    [
        ("n1/0", "(n1:ncpus=1)", {"n1": (1, 0)}),
        ("n1/0*2+n1/1*3", "(n1:ncpus=2:ngpus=1)+(n1:ncpus=3)", {"n1": (5, 1)}),
        ("n1/0*4+n2/0*2", "(n1[0]:ncpus=2:ngpus=1+n1[1]:ncpus=2:ngpus=1)+(n2:ncpus=2)", {"n1": (4, 2), "n2": (2, 0)}),
        ("a/12*64+b/0*64", "", {"a": (64, 0), "b": (64, 0)}),
    ],
)
def test_chunks_of_a_pbs_job_are_summed_up(host: str, vnode: str, nodes: dict[str, tuple[int, int]]):
    found = pbs.parse_nodes(host, vnode)
    assert found is not None
    assert dict(zip(found.names, zip(found.cores, found.gpus, strict=True), strict=True)) == nodes


@pytest.mark.parametrize(
    ("lines", "ncpus", "cores"),
    [("n1 n1 n2 n2", "2", (2, 2)), ("n1 n2", "8", (8, 8)), ("n1 n2", "", (1, 1)), ("n1 n1 n1 n2", "4", (3, 1))],
)
def test_node_file_counts_where_the_server_of_pbs_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str, ncpus: str, cores: tuple[int, ...]
):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "nodes").write_text(lines.replace(" ", "\n") + "\n")
    found = find_allocation({"PBS_JOBID": "1.s", "PBS_NODEFILE": str(tmp_path / "nodes"), "NCPUS": ncpus})
    assert (found.nodes, found.cores) == (("n1", "n2"), cores)
    assert seconds_left({"PBS_JOBID": "1.s"}) is None


@pytest.mark.parametrize(
    ("attributes", "left"),
    [
        ({}, None),
        ({"Resource_List.walltime": "01:00:00"}, 3600),
        ({"Resource_List.walltime": "01:00:00", "resources_used.walltime": "00:10:00"}, 3000),
        ({"Resource_List.walltime": "100:00:00", "stime": "START"}, 359_900),
        ({"Resource_List.walltime": "00:01:00", "resources_used.walltime": "00:00:05", "stime": "START"}, 0),
        ({"Resource_List.walltime": "00:05:00", "resources_used.walltime": "00:04:50", "stime": "START"}, 10),
        ({"Resource_List.walltime": "90"}, 90),
    ],
)
def test_rest_of_a_pbs_walltime_is_the_least_that_is_known(attributes: dict[str, str], left: float | None):
    now = 1_800_000_000.0
    start = time.strftime("%a %b %d %H:%M:%S %Y", time.localtime(now - 100))
    given = {key: value.replace("START", start) for key, value in attributes.items()}
    assert pbs.parse_seconds_left(given, now) == left


@pytest.mark.parametrize(
    ("environment", "nodes", "cores"),
    [
        ({"LSB_MCPU_HOSTS": "n1 4 n2 2"}, ("n1", "n2"), (4, 2)),
        ({"LSB_MCPU_HOSTS": "n1 4 n1 2"}, ("n1",), (6,)),
        ({"LSB_HOSTS": "n1 n1 n2"}, ("n1", "n2"), (2, 1)),
        ({"LSB_MCPU_HOSTS": "batch5 1 h1 42 h2 42", "CSM_ALLOCATION_ID": "7"}, ("h1", "h2"), (42, 42)),
    ],
)
def test_nodes_of_an_lsf_job(environment: dict[str, str], nodes: tuple[str, ...], cores: tuple[int, ...]):
    found = find_allocation({"LSB_JOBID": "12", **environment})
    assert (found.system, found.job, found.nodes, found.cores) == ("lsf", "12", nodes, cores)


def test_host_file_of_lsf_counts_without_its_variables(tmp_path: Path):
    (tmp_path / "hosts").write_text("n1\nn1\nn2\n")
    found = find_allocation({"LSB_JOBID": "12", "LSB_DJOB_HOSTFILE": str(tmp_path / "hosts")})
    assert (found.nodes, found.cores) == (("n1", "n2"), (2, 1))


@pytest.mark.parametrize(
    ("text", "left"),
    [("0:59 L", 3540), ("12:00 L", 43_200), ("1:01:30 L", 91_800), ("0:10 E", None), ("-", None), ("", None)],
)
def test_rest_of_the_run_limit_of_lsf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, left: float | None):
    command(tmp_path, "bjobs", text + "\n", monkeypatch)
    environment = {"LSB_JOBID": "12", "LSB_MCPU_HOSTS": "n1 1"}
    assert seconds_left(environment) == left
    assert lsf.parse_seconds_left(text) == left


def test_nodes_of_a_grid_engine_job_are_those_of_its_host_file(tmp_path: Path):
    (tmp_path / "hosts").write_text("n1 4 all.q@n1 UNDEFINED\nn2 2 all.q@n2 UNDEFINED\nn2 1 long.q@n2 0,0:0,1\n")
    found = find_allocation({"JOB_ID": "1", "SGE_TASK_ID": "undefined", "PE_HOSTFILE": str(tmp_path / "hosts")})
    assert found == Allocation(system="sge", job="1", nodes=("n1", "n2"), cores=(4, 3), gpus=found.gpus)


def test_grid_engine_job_without_a_parallel_environment_has_its_slots_of_this_host():
    found = find_allocation({"JOB_ID": "1", "SGE_TASK_ID": "3", "NSLOTS": "1"})
    assert (found.job, found.nodes, found.cores) == ("1.3", (hostname(),), (1,))
    assert find_allocation({"JOB_ID": "a variable of anything"}).system == "none"


def test_least_limit_of_a_grid_engine_job_counts_from_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    command(tmp_path, "qstat", QSTAT_J, monkeypatch)
    command(tmp_path, "qconf", QUEUE, monkeypatch)
    (tmp_path / "config").touch()
    start = time.time() - 100
    os.utime(tmp_path / "config", (start, start))
    environment = {"JOB_ID": "1", "SGE_TASK_ID": "undefined", "SGE_JOB_SPOOL_DIR": str(tmp_path)}
    assert seconds_left(environment) == pytest.approx(140, abs=60)
    assert seconds_left({**environment, "QUEUE": "all.q"}) == pytest.approx(20, abs=19)
    assert sorted(gridengine.parse_limits(QSTAT_J, QUEUE)) == [120, 240, 300]
    assert gridengine.parse_limits("", "h_rt   INFINITY\n") == []


@pytest.mark.parametrize(
    ("environment", "system", "job"),
    [
        ({"SLURM_JOB_ID": "5", "PBS_JOBID": "1.s"}, "slurm", "5"),
        ({"PBS_JOBID": "7[2].server"}, "pbs", "7[2].server"),
        ({"LSB_JOBID": "7", "LSB_JOBINDEX": "2"}, "lsf", "7[2]"),
        ({"LSB_JOBID": "7", "LSB_JOBINDEX": "0"}, "lsf", "7"),
        ({"JOB_ID": "7", "SGE_TASK_ID": "2"}, "sge", "7.2"),
    ],
)
def test_id_of_a_job_or_element_of_an_array_is_the_one_that_its_system_takes(
    environment: dict[str, str], system: str, job: str
):
    assert find_batch_job(environment) == (system, job)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, False),
        ({"PBS_TASKNUM": "1"}, False),
        ({"PBS_TASKNUM": "3"}, True),
        ({"PMI_RANK": "0"}, True),
        ({"PALS_RANKID": "1"}, True),
        ({"JSM_NAMESPACE_RANK": "0"}, True),
    ],
)
def test_rank_of_an_mpiexec_in_a_job_is_no_batch_script(variables: dict[str, str], expected: bool):
    assert in_step({"PBS_JOBID": "1.s", **variables}) is expected


def test_groups_fill_the_nodes_of_a_job_and_no_more():
    allocation = Allocation(system="sge", job="1", nodes=("n1", "n2"), cores=(4, 3), gpus=(0, 0))
    planned, capacity = plan(allocation, [(Shape(ranks=5), 1), (Shape(ranks=1), None)])
    assert [count for _, count in planned] == [1, 2]
    nodes = capacity.reserve(Shape(ranks=5))
    assert nodes is not None
    assert Counter(nodes) == {"n1": 4, "n2": 1}


def test_share_of_this_host_is_what_the_job_was_granted():
    allocation = Allocation(system="pbs", job="1", nodes=(f"{hostname()}.site.org", "n2"), cores=(1, 4), gpus=(1, 0))
    assert (host_share(allocation).nodes, host_share(allocation).cores) == ((hostname(),), (1,))
    assert host_share(allocation).gpus == (1,)

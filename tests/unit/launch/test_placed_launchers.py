"""Command lines of groups on the nodes of a job: mpiexec of each implementation, PALS and jsrun.

Options and versions of Intel MPI, PALS and jsrun follow their manuals; only those of MPICH and Open MPI were tried.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from spoolpool import settings
from spoolpool.errors import LauncherError
from spoolpool.launch import mpiexec_placement
from spoolpool.launch.allocation import Allocation
from spoolpool.launch.job_groups import JobGroups
from spoolpool.launch.jsrun import JsrunLauncher, resource_file
from spoolpool.launch.launcher import LaunchOptions, python_worker
from spoolpool.launch.mpiexec_job import JobMpiexecLauncher
from spoolpool.launch.mpiexec_placement import dialect_of, remote_start
from spoolpool.launch.selection import select_launcher
from spoolpool.resources import Shape
from tests.support.waiting import wait_until

VERSIONS = {
    "hydra": "HYDRA build details:\n    Version:                                 4.2.0\n    mpich\n",
    "intel": "Intel(R) MPI Library for Linux* OS, Version 2021.11 Build 20231005\n",
    "openmpi": "mpiexec (OpenRTE) 4.1.4\n\nReport bugs to http://www.open-mpi.org/community/help/\nOpen MPI\n",
    "pals": "mpiexec version 1.8.0 revision 1234abc\n",
}
WORKER = python_worker(["SPOOL"])
JOB = Allocation(system="pbs", job="1.s", nodes=("n1", "n2"), cores=(4, 4), gpus=(2, 2))


class Running:
    """Group that ends when the test says so."""

    end_seconds = 0.0
    code: int | None = None

    def poll(self) -> int | None:
        return self.code

    def end(self, *, kill: bool = False) -> None:
        self.code = -9 if kill else -15


def mpiexec(directory: Path, dialect: str) -> str:
    (directory / "version").write_text(VERSIONS[dialect])
    path = directory / "mpiexec"
    path.write_text(f"#!/bin/sh\nexec cat {directory}/version\n")
    path.chmod(0o755)
    return str(path)


def placed(directory: Path, dialect: str, nodes: tuple[str, ...], **options: object) -> list[str]:
    """Return the command of a group on these nodes after the name of the program."""
    launcher = JobMpiexecLauncher(mpiexec(directory, dialect), JOB)
    given = LaunchOptions(nodes=nodes, **options)  # type: ignore[arg-type]
    return launcher.command(Shape(ranks=len(nodes)), ["SPOOL"], given)[1:]


@pytest.mark.parametrize("dialect", VERSIONS)
def test_mpiexec_is_known_by_its_version(tmp_path: Path, dialect: str):
    assert dialect_of(mpiexec(tmp_path, dialect)) == dialect


def test_pals_is_known_by_its_directory(tmp_path: Path):
    directory = tmp_path / "pals" / "bin"
    directory.mkdir(parents=True)
    (directory / "mpiexec").touch()
    assert dialect_of(str(directory / "mpiexec")) == "pals"


def test_hydra_gets_one_list_of_hosts_with_their_ranks(tmp_path: Path):
    assert placed(tmp_path, "hydra", ("n1", "n1", "n2"), extra=("-v",)) == [
        "-hosts", "n1:2,n2:1", "-v", "-n", "2", *WORKER, ":", "-n", "1", *WORKER,
    ]  # fmt: skip


def test_intel_gets_a_host_for_each_context(tmp_path: Path):
    assert placed(tmp_path, "intel", ("n1", "n1", "n2")) == [
        "-n", "2", "-host", "n1", *WORKER, ":", "-n", "1", "-host", "n2", *WORKER,
    ]  # fmt: skip


def test_open_mpi_gets_slots_for_each_context_and_the_variables_of_the_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("SPOOLPOOL_PARENTS", "/shared")
    launcher = JobMpiexecLauncher(mpiexec(tmp_path, "openmpi"), JOB)
    (tmp_path / "mpiexec").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/seen\n')
    variables = {settings.ENV_WORKER: "w", settings.ENV_RENEWALS: "1", "ANY_OTHER": "x"}
    process = launcher.start(Shape(ranks=3), ["SPOOL"], LaunchOptions(nodes=("n1", "n2", "n2")), variables)
    assert wait_until(lambda: process.poll() is not None, "mpiexec has ended") is True
    words = (tmp_path / "seen").read_text().splitlines()
    assert words[:2] == ["--bind-to", "none"]
    exported = {words[i + 1] for i, word in enumerate(words) if word == "-x"}
    assert {*variables, "OMP_NUM_THREADS", "PATH", "SPOOLPOOL_PARENTS"} <= exported
    first = words.index("-n")
    assert words[first:] == [
        "-n", "1", "--host", "n1:1", *WORKER, ":", "-n", "2", "--host", "n2:2", *WORKER,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("system", "components", "tool", "agent", "warns"),
    [
        ("pbs", "mca:plm:rsh:version\nmca:ras:tm:version", "ompi_info", "", True),
        ("pbs", "mca:plm:tm:version", "ompi_info", "", False),
        ("pbs", "mca:plm:tm:version", "prte_info", "", False),
        ("pbs", "mca:plm:ssh:version", "prte_info", "OMPI_MCA_plm_rsh_agent", False),
        ("lsf", "mca:plm:slurm:version", "ompi_info", "", True),
        ("lsf", "mca:plm:slurm:version", "ompi_info", "PRTE_MCA_plm_ssh_agent", False),
        ("sge", "mca:ras:gridengine:version", "ompi_info", "", False),
        ("sge", "", "other", "", True),
    ],
)
def test_open_mpi_that_reaches_other_nodes_by_ssh_alone_is_told_beforehand(
    system: Literal["pbs", "lsf", "sge"],
    components: str,
    tool: str,
    agent: str,
    warns: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    (tmp_path / tool).write_text(f"#!/bin/sh\necho '{components}'\n")
    (tmp_path / tool).chmod(0o755)
    if agent:
        monkeypatch.setenv(agent, "/site/agent")
    JobMpiexecLauncher(mpiexec(tmp_path, "openmpi"), replace(JOB, system=system))
    assert ("on the other nodes by ssh" in caplog.text) is warns
    assert ("set OMPI_MCA_plm_rsh_agent" in caplog.text) is warns
    (tmp_path / "intel").mkdir()
    JobMpiexecLauncher(mpiexec(tmp_path / "intel", "intel"), replace(JOB, system=system))
    assert caplog.text.count("ssh, which") == warns


@pytest.mark.parametrize("nodes", [("n1", "n1", "n2", "n2"), ("n1", "n1", "n2")])
def test_pals_gets_hosts_and_ranks_per_node_if_it_fills_them_in_order(tmp_path: Path, nodes: tuple[str, ...]):
    expected = ["--cpu-bind", "none", "-n", str(len(nodes)), "--ppn", "2", "--hosts", "n1,n2", *WORKER]
    assert placed(tmp_path, "pals", nodes) == expected


def test_pals_gets_a_context_for_each_node_otherwise(tmp_path: Path):
    assert placed(tmp_path, "pals", ("n1", "n2", "n2")) == [
        "--cpu-bind", "none",
        "-n", "1", "--ppn", "1", "--hosts", "n1", *WORKER, ":", "-n", "2", "--ppn", "2", "--hosts", "n2", *WORKER,
    ]  # fmt: skip


def test_each_node_gets_the_gpus_that_no_other_group_has_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    groups = JobGroups(JOB)
    shape = Shape(ranks=2, gpus=1)
    first, running = groups.place(Shape(ranks=1, gpus=1), ("n1",)), Running()
    groups.add(running, Shape(ranks=1, gpus=1), first)
    second = groups.place(shape, ("n1", "n2"))
    assert second.gpus == {"n1": ("1",), "n2": ("0",)}
    groups.add(Running(), shape, second)
    with pytest.raises(LauncherError, match=r"0 of the 2 GPU\(s\) of n1 are free"):
        groups.place(Shape(ranks=1, gpus=1), ("n1",))
    running.end()
    assert groups.place(Shape(ranks=1, gpus=1), ("n1",)).gpus == {"n1": ("0",)}


def test_gpus_of_a_node_are_in_the_command_of_its_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    launcher = JobMpiexecLauncher(mpiexec(tmp_path, "hydra"), JOB)
    words = launcher.command(Shape(ranks=3, gpus=1), ["SPOOL"], LaunchOptions(nodes=("n1", "n1", "n2")))
    assigned = [word for word in words if word.startswith("CUDA_VISIBLE_DEVICES=")]
    assert assigned == ["CUDA_VISIBLE_DEVICES=4,7", "CUDA_VISIBLE_DEVICES=4"]
    assert words.count(f"{settings.ENV_DEVICES}=CUDA_VISIBLE_DEVICES") == 2


def test_groups_without_planned_nodes_go_to_free_ones(tmp_path: Path):
    groups = JobGroups(JOB)
    shape = Shape(ranks=3)
    for node in ("n1", "n2"):
        placement = groups.place(shape)
        assert placement.nodes == (node,) * 3
        groups.add(Running(), shape, placement)
    with pytest.raises(LauncherError, match="no room for another group"):
        groups.place(shape)
    assert len(groups.place(shape, oversubscribe=True).nodes) == 3
    with pytest.raises(LauncherError, match="does not fit into this job"):
        groups.place(Shape(ranks=9))


def test_other_nodes_of_pbs_are_reached_by_its_own_agent(tmp_path: Path):
    (tmp_path / "pbs_tmrsh").touch()
    (tmp_path / "pbs_tmrsh").chmod(0o755)
    found = remote_start("pbs", {"PATH": str(tmp_path)})
    agent = found["HYDRA_LAUNCHER_EXEC"]
    assert Path(agent).name == "pbs_rsh.sh"
    assert found["OMPI_MCA_plm_rsh_agent"] == found["PRTE_MCA_plm_ssh_agent"] == agent
    given = {"PATH": str(tmp_path), "HYDRA_LAUNCHER": "pbs", "OMPI_MCA_plm_rsh_agent": "ssh"}
    kept = remote_start("pbs", given)
    assert (kept["HYDRA_LAUNCHER"], kept["OMPI_MCA_plm_rsh_agent"]) == ("pbs", "ssh")
    assert "HYDRA_LAUNCHER_EXEC" not in kept
    assert "HYDRA_LAUNCHER" not in remote_start("pbs", {"PATH": "/nowhere"})
    assert "HYDRA_LAUNCHER" not in remote_start("sge", {"PATH": str(tmp_path)})


def test_other_nodes_of_lsf_are_reached_by_blaunch(tmp_path: Path):
    (tmp_path / "blaunch").touch()
    (tmp_path / "blaunch").chmod(0o755)
    assert remote_start("lsf", {"PATH": str(tmp_path)})["OMPI_MCA_plm_rsh_agent"] == str(tmp_path / "blaunch")


def test_agent_of_pbs_runs_a_shell_and_drops_the_options_of_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake = tmp_path / "pbs_tmrsh"
    fake.write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    fake.chmod(0o755)
    words = [mpiexec_placement._PBS_AGENT, "-x", "n2", '"/opt/proxy"', "--port", "1"]
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == 'n2|/bin/sh|-c|"/opt/proxy" --port 1|'


def test_resource_file_of_jsrun_names_host_cpus_and_gpus_of_each_rank(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(settings.ENV_JSRUN_SMT, "4")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    groups = JobGroups(Allocation(system="lsf", job="1", nodes=("h1", "h2"), cores=(4, 4), gpus=(2, 2)))
    groups.add(Running(), Shape(ranks=1), groups.place(Shape(ranks=1), ("h1",)))
    shape = Shape(ranks=2, threads=2, gpus=1)
    assert resource_file(shape, groups.place(shape, ("h1", "h2"))) == (
        "cpu_index_using: logical\n"
        "rank: 0: { hostname: h1; cpu: {4-7,8-11}; gpu: {0} }\n"
        "rank: 1: { hostname: h2; cpu: {0-3,4-7}; gpu: {0} }\n"
    )
    assert resource_file(Shape(), groups.place(Shape(), ("h2",)), shared=True).startswith("overlapping_rs: allow\n")


def test_jsrun_reads_the_resource_file_until_the_group_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    program = tmp_path / "jsrun"
    program.write_text(f'#!/bin/sh\ncat "${{1#--erf_input=}}" > {tmp_path}/seen\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    allocation = Allocation(system="lsf", job="1", nodes=("h1", "h2"), cores=(2, 2), gpus=(0, 0))
    launcher = JsrunLauncher(allocation)
    process = launcher.start(Shape(ranks=2), [], LaunchOptions(), {settings.ENV_WORKER: "w"})
    assert wait_until(lambda: process.poll() is not None, "jsrun has ended") is True
    assert "rank: 1: { hostname: h1;" in (tmp_path / "seen").read_text()


def test_jsrun_is_the_launcher_of_an_lsf_job_that_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("SLURM_JOB_ID", "FLUX_URI", "PBS_JOBID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LSB_JOBID", "1")
    monkeypatch.setenv("LSB_MCPU_HOSTS", "h1 2 h2 2")
    monkeypatch.setenv(settings.ENV_MPIEXEC, mpiexec(tmp_path, "hydra"))
    assert type(select_launcher("auto")) is JobMpiexecLauncher
    (tmp_path / "jsrun").touch()
    (tmp_path / "jsrun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert select_launcher("auto").name == "jsrun"
    monkeypatch.setenv("LSB_MCPU_HOSTS", "h1 2")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert select_launcher("auto").allocation(LaunchOptions()).cores == (min(2, len(os.sched_getaffinity(0))),)
    monkeypatch.delenv("LSB_JOBID")
    with pytest.raises(LauncherError, match="within a job of LSF"):
        select_launcher("jsrun")

"""Resources of a Slurm job from recorded answers of its controller (Slurm 22.05)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from spoolpool.launch import slurm_resources
from spoolpool.launch.allocation import Allocation, MemoryRequest
from spoolpool.launch.slurm_resources import StepOptions, ask_controller, parse_shares, step_resources

JOB = """\
JobId=4 JobName=job.sh
   UserId=root(0) GroupId=root(0) MCS_label=N/A
   TRES=cpu=12,mem=3000M,node=3,billing=12
   JOB_GRES=gpu:a100:5
     Nodes=n[1-2] CPU_IDs=0-3,8-11 Mem=1000 GRES=gpu:a100:2(IDX:0,3)
     Nodes=n4 CPU_IDs=6-7 Mem=500 GRES=craynetwork:1,gpu:1080:1(IDX:2),gpu:tesla:2(IDX:0-1),shard:gpu:8(IDX:1)
   Command=/home/alice/Nodes=n9
"""

NODE = """\
NodeName={name} Arch=x86_64 CoresPerSocket={cores}  CPUAlloc=8 CPUEfctv=8 CPUTot={cpus} CPULoad=2.28 \
Gres=gpu:fake:2 NodeAddr=127.0.0.1 RealMemory=4000 Sockets=2 Boards=1 State=ALLOCATED ThreadsPerCore={threads} TmpDisk=0
"""

NODES = (
    NODE.format(name="n1", cores=8, cpus=32, threads=2)
    + NODE.format(name="n2", cores=4, cpus=32, threads=4)
    + NODE.format(name="n4", cores=8, cpus=16, threads=2)  # the site counts cores as CPUs
)

VARIABLES = Allocation(system="slurm", job="4", nodes=("n1", "n2", "n4"), cores=(8, 8, 2), gpus=(2, 2, 2))


def counted(*extra: str, **variables: str) -> Allocation:
    options = StepOptions.read(extra, variables)
    return step_resources(VARIABLES, parse_shares(JOB, NODES), options, 100 << 20)


def test_cores_memory_and_gpus_of_each_node_are_those_of_the_controller() -> None:
    found = counted()
    assert found.cores == (4, 2, 2)
    assert found.threads_per_core == (2, 4, 1)
    assert found.gpus == (2, 2, 3)
    assert found.memory == (1000 << 20, 1000 << 20, 500 << 20)
    assert found.request == MemoryRequest(per_rank=100 << 20)


@pytest.mark.parametrize(
    ("extra", "variables", "threads"),
    [
        ((), {"SLURM_HINT": "nomultithread"}, (1, 1, 1)),
        ((), {"SLURM_THREADS_PER_CORE": "2"}, (2, 2, 1)),
        (("--hint=nomultithread",), {}, (1, 1, 1)),
        (("--hint", "compute_bound,nomultithread"), {}, (1, 1, 1)),
        (("--hint=multithread",), {"SLURM_HINT": "nomultithread"}, (2, 4, 1)),
        (("--threads-per-core", "2"), {"SLURM_THREADS_PER_CORE": "1"}, (2, 2, 1)),
        (("--threads-per-core=2", "--verbose"), {}, (2, 2, 1)),
        (("--threads-per-core=many",), {}, (2, 4, 1)),
    ],
)
def test_hardware_threads_of_a_step_follow_the_options_of_srun_and_of_the_job(
    extra: tuple[str, ...], variables: dict[str, str], threads: tuple[int, ...]
) -> None:
    assert counted(*extra, **variables).threads_per_core == threads


@pytest.mark.parametrize(
    ("extra", "wanted"),
    [
        (("--mem=0",), MemoryRequest()),
        (("--mem=2G",), MemoryRequest(per_node=2 << 30)),
        (("--mem", "500"), MemoryRequest(per_node=500 << 20)),
        (("--mem-per-cpu=300M",), MemoryRequest(per_thread=300 << 20)),
        (("--mem-per-cpu=300MB",), MemoryRequest(per_thread=300 << 20)),
        (("--verbose",), MemoryRequest(per_rank=100 << 20)),
    ],
)
def test_memory_of_a_step_follows_the_options_of_srun(extra: tuple[str, ...], wanted: MemoryRequest) -> None:
    assert counted(*extra).request == wanted


def test_memory_is_not_counted_where_slurm_does_not_share_it_out() -> None:
    shares = parse_shares(JOB.replace("Mem=1000", "Mem=0").replace("Mem=500", "Mem=0"), NODES)
    assert step_resources(VARIABLES, shares, StepOptions(), 1 << 30).memory == ()


def test_variables_of_the_job_are_used_if_the_controller_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for answer in ("", JOB, "slurm_load_jobs error: Unable to contact slurm controller"):
        monkeypatch.setattr(slurm_resources, "_ask", lambda *arguments, answer=answer: answer)
        assert ask_controller(VARIABLES) == {}
        assert "scontrol does not tell" in caplog.text
    assert step_resources(VARIABLES, {}, StepOptions(threads_per_core=1), 0) == VARIABLES
    monkeypatch.setattr(slurm_resources, "_ask", lambda *arguments: JOB if "job" in arguments else NODES)
    assert set(ask_controller(VARIABLES)) == {"n1", "n2", "n4"}
    assert ask_controller(replace(VARIABLES, nodes=("n1", "n7"))) == {}


def test_controller_is_not_asked_where_scontrol_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert ask_controller(VARIABLES) == {}

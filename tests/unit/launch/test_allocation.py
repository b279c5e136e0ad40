"""Placement of groups in an allocation, and Slurm's notations, without a batch system."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoolpool.errors import BadRequest, LauncherError
from spoolpool.launch.allocation import (
    Allocation,
    MemoryRequest,
    expand_hosts,
    find_allocation,
    plan,
    seconds_left,
)
from spoolpool.resources import Shape, read_shape


def job(*nodes: tuple[int, int], system: Literal["slurm", "flux", "none"] = "slurm") -> Allocation:
    """Return an allocation of nodes with these numbers of cores and GPUs."""
    names = tuple(f"n{number}" for number in range(1, len(nodes) + 1))
    return Allocation(system=system, nodes=names, cores=tuple(c for c, _ in nodes), gpus=tuple(g for _, g in nodes))


def planned(allocation: Allocation, *shapes: str, oversubscribe: bool = False) -> dict[str, int]:
    found, _ = plan(allocation, [read_shape(text) for text in shapes], oversubscribe=oversubscribe)
    numbers = dict(found)
    return {text: numbers[read_shape(text)[0]] for text in shapes}


@pytest.mark.parametrize(
    ("text", "shape", "count"),
    [
        ("8", Shape(ranks=8), None),
        ("1=16", Shape(), 16),
        ("8x2", Shape(ranks=8, threads=2), None),
        ("8x2+1gpu=4", Shape(ranks=8, threads=2, gpus=1), 4),
        ("2+1gpu", Shape(ranks=2, gpus=1), None),
    ],
)
def test_notation_of_a_shape_is_parsed(text: str, shape: Shape, count: int | None) -> None:
    assert read_shape(text) == (shape, count)


@pytest.mark.parametrize(
    "text", ["", "0", "x2", "2x0", "2x", "2=0", "2+gpu", "2+1", "2+1gpus", "-1", "1.5", "2 x 2", "\u0663"]
)
def test_invalid_shape_is_rejected_with_the_notation(text: str) -> None:
    with pytest.raises(BadRequest, match=r"RANKS\[xTHREADS\]"):
        read_shape(text)


def test_shapes_without_a_number_get_the_rest() -> None:
    assert planned(job((8, 2), (8, 2)), "1", "2x2+1gpu=2") == {"1": 8, "2x2+1gpu=2": 2}
    assert planned(job((4, 0), (4, 0)), "1", "4=1") == {"1": 4, "4=1": 1}
    assert planned(job((4, 0), (4, 0)), "3", "1") == {"3": 2, "1": 2}


def test_groups_without_gpus_prefer_nodes_without_gpus() -> None:
    assert planned(job((4, 4), (4, 0)), "4=1", "1+1gpu=4") == {"4=1": 1, "1+1gpu=4": 4}


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        (["9"], r"1 group\(s\) of 9 rank.*cannot be placed in this job, which has 8 core.*room for 0"),
        (["2=5"], "5 group.*room for 4"),
        (["4=2", "1"], r"1 group\(s\) of 1 rank.*beside 2 of 4 rank.*room for 0"),
        (["1x4=1", "3=2"], "2 group.*beside 1 of 1 rank.*room for 1"),
        (["1+2gpu=2"], "1 rank.* and 2 GPU.*has 8 core.* and 2 GPU.*room for 0"),
    ],
)
def test_error_of_shapes_that_do_not_fit_together_names_the_resources(shapes: list[str], reason: str) -> None:
    with pytest.raises(LauncherError, match=reason):
        planned(job((4, 1), (4, 1)), *shapes) if "gpu" in shapes[0] else planned(job((4, 0), (4, 0)), *shapes)


def test_cores_are_as_many_as_requested_without_a_batch_system() -> None:
    host = job((2, 2), system="none")
    assert planned(host, "2=3", "4=1") == {"2=3": 3, "4=1": 1}
    assert planned(job((4, 0)), "4=3", oversubscribe=True) == {"4=3": 3}
    with pytest.raises(LauncherError, match=r"in this host, which has 2 core.* and 2 GPU"):
        planned(host, "1+1gpu=3")


def test_group_stays_within_a_node_if_an_empty_node_could_hold_it() -> None:
    capacity = job((4, 0), (4, 0)).capacity()
    assert [capacity.reserve(Shape(ranks=3)) for _ in range(3)] == [("n1",) * 3, ("n2",) * 3, None]
    assert [capacity.reserve(Shape()) for _ in range(3)] == [("n1",), ("n2",), None]


def test_larger_group_spans_nodes_and_leaves_their_rest_to_others() -> None:
    capacity = job((4, 0), (4, 0)).capacity()
    assert capacity.reserve(Shape(ranks=6)) == ("n1", "n1", "n1", "n1", "n2", "n2")
    assert capacity.reserve(Shape(ranks=2)) == ("n2", "n2")
    assert capacity.reserve(Shape()) is None


def test_group_on_several_nodes_reserves_all_of_them_under_flux() -> None:
    capacity = job((4, 0), (4, 0), (4, 0), system="flux").capacity()
    nodes = capacity.reserve(Shape(ranks=6))
    assert nodes == ("n1", "n1", "n1", "n1", "n2", "n2")
    assert capacity.reserve(Shape(ranks=2)) == ("n3", "n3")
    assert capacity.reserve(Shape(ranks=3)) is None
    capacity.release(nodes, Shape(ranks=6))
    assert capacity.reserve(Shape(ranks=4)) == ("n1",) * 4


@pytest.mark.parametrize(
    ("shape", "threads", "groups"),
    [
        # as many steps began side by side on 4 cores of a Slurm node
        ("1", 2, 4),
        ("1x2", 2, 4),
        ("2", 2, 4),
        ("3", 2, 2),
        ("1x3", 2, 2),
        ("2x3", 2, 1),
        ("4x3", 2, 0),
        ("2x2", 2, 2),
        ("1x3", 4, 4),
        ("4x3", 4, 1),
        ("2", 4, 4),
        ("5", 4, 2),
        ("1x5", 4, 2),
        ("1", 1, 4),
        ("3", 1, 1),
    ],
)
def test_groups_get_whole_cores_of_several_hardware_threads(shape: str, threads: int, groups: int) -> None:
    capacity = replace(job((4, 0)), threads_per_core=(threads,)).capacity()
    placed = 0
    while capacity.reserve(read_shape(shape)[0]) is not None:
        placed += 1
    assert placed == groups


def test_group_that_spans_nodes_gets_whole_cores_on_each_of_them() -> None:
    capacity = replace(job((4, 0), (4, 0)), threads_per_core=(2, 2)).capacity()
    assert capacity.reserve(Shape(ranks=11)) == ("n1",) * 8 + ("n2",) * 3
    assert [capacity.reserve(Shape(ranks=2)) for _ in range(3)] == [("n2",) * 2, ("n2",) * 2, None]


def test_memory_of_groups_is_counted_and_shared_by_groups_without_a_request() -> None:
    nodes = replace(job((8, 0), (8, 0)), memory=(1000 << 20, 1000 << 20))

    def room(shape: Shape, request: MemoryRequest) -> int:
        return plan(replace(nodes, request=request), [(shape, None)])[0][0][1]

    assert room(Shape(threads=2), MemoryRequest()) == 8
    assert room(Shape(threads=2), MemoryRequest(per_thread=300 << 20)) == 2
    assert room(Shape(ranks=2), MemoryRequest(per_rank=200 << 20)) == 4
    assert room(Shape(ranks=2), MemoryRequest(per_node=400 << 20)) == 4
    assert room(Shape(threads=3), MemoryRequest(per_rank=500 << 20)) == 2  # 167M for each thread
    with pytest.raises(LauncherError, match=r"cannot be placed in this job, which has 16 core.*2000 MiB of memory"):
        room(Shape(), MemoryRequest(per_rank=1001 << 20))
    shapes: list[tuple[Shape, int | None]] = [(Shape(), 3)]
    assert plan(replace(nodes, request=MemoryRequest(per_rank=900 << 20)), shapes, oversubscribe=True)[0] == shapes


def test_released_capacity_is_reserved_again_except_on_an_excluded_node() -> None:
    capacity = job((2, 1), (2, 1)).capacity()
    shape = Shape(ranks=2, gpus=0)
    first, second = capacity.reserve(shape), capacity.reserve(shape)
    assert (first, second, capacity.reserve(shape)) == (("n1", "n1"), ("n2", "n2"), None)
    assert first is not None and second is not None
    capacity.exclude("n1")
    capacity.release(first, shape)
    assert capacity.reserve(shape) is None
    capacity.release(second, shape)
    assert capacity.reserve(shape) == ("n2", "n2")


SIZES = st.lists(st.tuples(st.integers(1, 8), st.integers(0, 3)), min_size=1, max_size=4)
SHAPES = st.builds(Shape, ranks=st.integers(1, 10), threads=st.integers(1, 3), gpus=st.integers(0, 2))


@given(SIZES, st.lists(SHAPES, max_size=8))
def test_no_node_is_overcommitted(nodes: list[tuple[int, int]], wanted: list[Shape]) -> None:
    allocation = job(*nodes)
    capacity = allocation.capacity()
    used = dict.fromkeys(allocation.nodes, (0, 0))
    for shape in wanted:
        reserved = capacity.reserve(shape)
        if reserved is None:
            continue
        assert len(reserved) == shape.ranks
        for node in reserved:
            cores, gpus = used[node]
            used[node] = cores + shape.threads, gpus + shape.gpus
    for node, most in zip(allocation.nodes, nodes, strict=True):
        assert used[node][0] <= most[0] and used[node][1] <= most[1]


@pytest.mark.parametrize(
    ("short", "names"),
    [
        ("n1", ["n1"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("n[08-10,12],login", ["n08", "n09", "n10", "n12", "login"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
        ("a-b1,c[5]-ib", ["a-b1", "c5-ib"]),
    ],
)
def test_short_form_of_host_names_is_expanded(short: str, names: list[str]) -> None:
    assert list(expand_hosts(short)) == names


def test_slurm_job_is_read_from_its_variables() -> None:
    variables = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_JOB_CPUS_PER_NODE": "4(x2)",
        "SLURM_GPUS_ON_NODE": "2",
    }
    found = find_allocation(variables)
    assert (found.nodes, found.cores, found.gpus, found.job) == (("n1", "n2"), (4, 4), (2, 2), "7")
    with pytest.raises(LauncherError, match="do not agree"):
        find_allocation({**variables, "SLURM_JOB_CPUS_PER_NODE": "4(x3)"})


def test_allocation_without_a_batch_system_is_this_host() -> None:
    found = find_allocation({"CUDA_VISIBLE_DEVICES": "0,3"})
    assert (found.system, found.nodes, found.gpus) == ("none", (os.uname().nodename,), (2,))


@pytest.mark.parametrize(
    ("slurm", "flux", "expected"),
    [("10:00", "90", 90.0), ("1:00", "90", 60.0), ("UNLIMITED", "90", 90.0), ("10:00", "4294967295", 600.0)],
)
def test_time_left_of_nested_jobs_is_the_least(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm: str, flux: str, expected: float
) -> None:
    for name, answer in {"squeue": slurm, "flux": flux}.items():
        command = tmp_path / name
        command.write_text(f"#!/bin/sh\necho {answer}\n")
        command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert seconds_left({"SLURM_JOB_ID": "1", "FLUX_URI": "local:///x"}) == expected

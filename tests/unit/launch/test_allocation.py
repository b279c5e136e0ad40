"""What fits into an allocation, and where: the arithmetic, without a batch system."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoolpool.errors import BadRequest, LauncherError
from spoolpool.launch.allocation import Allocation, Kind, Room, find, hosts, plan
from spoolpool.resources import Shape, read_shape


def job(*nodes: tuple[int, int], kind: Kind = "slurm") -> Allocation:
    """An allocation of nodes with so many cores and GPUs."""
    names = tuple(f"n{number}" for number in range(1, len(nodes) + 1))
    return Allocation(kind=kind, nodes=names, cores=tuple(c for c, _ in nodes), gpus=tuple(g for _, g in nodes))


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
def test_a_shape_is_read_as_it_is_written(text: str, shape: Shape, count: int | None) -> None:
    assert read_shape(text) == (shape, count)


@pytest.mark.parametrize(
    "text", ["", "0", "x2", "2x0", "2x", "2=0", "2+gpu", "2+1", "2+1gpus", "-1", "1.5", "2 x 2", "\u0663"]
)
def test_what_is_no_shape_is_refused_with_the_form_of_one(text: str) -> None:
    with pytest.raises(BadRequest, match=r"RANKS\[xTHREADS\]"):
        read_shape(text)


def test_shapes_without_a_number_get_what_those_with_one_leave() -> None:
    assert planned(job((8, 2), (8, 2)), "1", "2x2+1gpu=2") == {"1": 8, "2x2+1gpu=2": 2}
    assert planned(job((4, 0), (4, 0)), "1", "4=1") == {"1": 4, "4=1": 1}
    assert planned(job((4, 0), (4, 0)), "3", "1") == {"3": 2, "1": 2}


def test_groups_without_gpus_leave_the_nodes_that_have_some_to_those_that_need_them() -> None:
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
def test_what_does_not_fit_together_is_told_with_what_there_is(shapes: list[str], reason: str) -> None:
    with pytest.raises(LauncherError, match=reason):
        planned(job((4, 1), (4, 1)), *shapes) if "gpu" in shapes[0] else planned(job((4, 0), (4, 0)), *shapes)


def test_cores_are_as_many_as_are_asked_for_where_nobody_counts_them() -> None:
    host = job((2, 2), kind="none")
    assert planned(host, "2=3", "4=1") == {"2=3": 3, "4=1": 1}
    assert planned(job((4, 0)), "4=3", oversubscribe=True) == {"4=3": 3}
    with pytest.raises(LauncherError, match=r"in this host, which has 2 core.* and 2 GPU"):
        planned(host, "1+1gpu=3")


def test_a_group_stays_within_a_node_where_one_could_hold_it() -> None:
    room = job((4, 0), (4, 0)).room()
    assert [room.take(Shape(ranks=3)) for _ in range(3)] == [("n1",) * 3, ("n2",) * 3, None]
    assert [room.take(Shape()) for _ in range(3)] == [("n1",), ("n2",), None]


def test_a_larger_group_spans_nodes_and_leaves_their_rest_to_others() -> None:
    room = job((4, 0), (4, 0)).room()
    assert room.take(Shape(ranks=6)) == ("n1", "n1", "n1", "n1", "n2", "n2")
    assert room.take(Shape(ranks=2)) == ("n2", "n2")
    assert room.take(Shape()) is None


def test_a_group_that_spans_nodes_has_them_to_itself_under_flux() -> None:
    room = job((4, 0), (4, 0), (4, 0), kind="flux").room()
    place = room.take(Shape(ranks=6))
    assert place == ("n1", "n1", "n1", "n1", "n2", "n2")
    assert room.take(Shape(ranks=2)) == ("n3", "n3")
    assert room.take(Shape(ranks=3)) is None
    room.give(place, Shape(ranks=6))
    assert room.take(Shape(ranks=4)) == ("n1",) * 4


def test_a_place_that_is_given_back_can_be_taken_again_but_not_on_a_closed_node() -> None:
    room = job((2, 1), (2, 1)).room()
    shape = Shape(ranks=2, gpus=0)
    first, second = room.take(shape), room.take(shape)
    assert (first, second, room.take(shape)) == (("n1", "n1"), ("n2", "n2"), None)
    assert first is not None and second is not None
    room.close("n1")
    room.give(first, shape)
    assert room.take(shape) is None
    room.give(second, shape)
    assert room.take(shape) == ("n2", "n2")


sizes = st.lists(st.tuples(st.integers(1, 8), st.integers(0, 3)), min_size=1, max_size=4)
shapes = st.builds(Shape, ranks=st.integers(1, 10), threads=st.integers(1, 3), gpus=st.integers(0, 2))


@given(sizes, st.lists(shapes, max_size=8))
def test_no_node_is_ever_given_more_than_it_has(nodes: list[tuple[int, int]], wanted: list[Shape]) -> None:
    allocation = job(*nodes)
    room: Room = allocation.room()
    used = dict.fromkeys(allocation.nodes, (0, 0))
    for shape in wanted:
        place = room.take(shape)
        if place is None:
            continue
        assert len(place) == shape.ranks
        for node in place:
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
def test_the_short_form_of_names_is_read_as_slurm_writes_it(short: str, names: list[str]) -> None:
    assert list(hosts(short)) == names


def test_a_job_is_what_its_variables_say() -> None:
    variables = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_JOB_CPUS_PER_NODE": "4(x2)",
        "SLURM_GPUS_ON_NODE": "2",
    }
    found = find(variables)
    assert (found.nodes, found.cores, found.gpus, found.job) == (("n1", "n2"), (4, 4), (2, 2), "7")
    with pytest.raises(LauncherError, match="do not agree"):
        find({**variables, "SLURM_JOB_CPUS_PER_NODE": "4(x3)"})


def test_without_a_batch_system_it_is_this_host() -> None:
    found = find({"CUDA_VISIBLE_DEVICES": "0,3"})
    assert (found.kind, found.nodes, found.gpus) == ("none", (os.uname().nodename,), (2,))

"""Names: a formatted name is parsed back, and no other text parses."""

from __future__ import annotations

import os
import string
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spoolpool.errors import BadRequest
from spoolpool.format.cancel_requests import is_request, request_name, task_of
from spoolpool.format.layout import Layout
from spoolpool.format.names import (
    Lane,
    TaskFile,
    bucket_name,
    check_lane,
    check_queue,
    check_session,
    check_tags,
    is_bucket,
    is_object_id,
    is_rendezvous,
    is_session,
    is_task_id,
    is_unfinished,
    is_worker_id,
    new_submitter_id,
    new_task_id,
    new_worker_id,
    parse_lane,
    parse_task_file,
    rendezvous_name,
)

hexadecimal = st.text("0123456789abcdef", min_size=16, max_size=16)
tasks = st.builds(
    lambda priority, micros, tail: f"{499 - priority:03d}-{micros:014x}-{tail[:10]}",
    st.integers(-499, 499),
    st.integers(0, 16**14 - 1),
    hexadecimal,
)
task_files = st.builds(
    TaskFile,
    tasks,
    st.integers(0, 999_999),
    st.integers(0, 99),
    st.one_of(st.just(""), st.just("cancelled"), hexadecimal),
    st.integers(0, 999_999_999),
    st.integers(0, 99),
    st.just(0),
    st.just(0),
)
packs = st.integers(1, 99_999).flatmap(
    lambda calls: st.builds(TaskFile._replace, task_files, calls=st.just(calls), first=st.integers(0, calls))
)
lanes = st.builds(
    Lane,
    st.builds(
        str.__add__,
        st.sampled_from(string.ascii_letters + string.digits),
        st.text(string.ascii_letters + string.digits + "_-", max_size=31),
    ),
    st.integers(1, 9_999_999),
    st.integers(1, 9999),
    st.integers(0, 999),
    st.sampled_from(["3.10", "3.9", "3.14", "4.0"]),
    st.lists(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.=-]{0,20}", fullmatch=True), max_size=4).map(check_tags),
    user=st.none() | st.integers(0, 2**32 - 1),
)
READERS = [
    parse_task_file,
    is_task_id,
    is_worker_id,
    is_bucket,
    parse_lane,
    is_session,
    is_object_id,
]
GOOD = [
    "499-0660e6e464b511-22dc7470e2",
    "499-0660e6e464b511-22dc7470e2.000001.01",
    "499-0660e6e464b511-22dc7470e2.000001.01.0123456789abcdef",
    "0123456789abcdef",
    "499-0660e6e464b511-22dc7470",
    "default.r2t1g0.py3.11",
    "default.r2t1g0.py3.11@1000",
    "default.r1t1g0.py3.11+a100+numpy==2.1@1000",
    "my-session_1",
    "0123456789abcdef" * 2,
]
HOSTILE = [
    "",
    ".",
    "..",
    "../x",
    "/etc/passwd",
    "a/b",
    "x/../../y",
    "..\\x",
    "a\0b",
    "a\n",
    " a",
    ".hidden",
    "-rf",
    "~root",
    "$(id)",
    "é",
    "٣",
    "a" * 65 + "/",
]


@given(task_files)
def test_the_name_of_a_task_file_is_parsed_back(task_file: TaskFile) -> None:
    assert parse_task_file(task_file.name) == task_file


@given(lanes)
def test_the_name_of_a_lane_is_parsed_back(lane: Lane) -> None:
    assert parse_lane(lane.name) == lane


@given(st.text(max_size=80))
@example("499-0660e6e464b511-22dc7470e2.000001.\u0660\u0661")
@example("default.r1t1g00.py3.11")
@example("default.r1t1g0.py3.11@01")
@example("default.r1t1g0.py3.11+b+a")
@example("default.r1t1g0.py3.11+a+a@0")
def test_a_parsed_name_is_formatted_the_same_way(text: str) -> None:
    task_file, lane = parse_task_file(text), parse_lane(text)
    assert task_file is None or task_file.name == text
    assert lane is None or lane.name == text


@given(
    st.one_of(st.sampled_from(GOOD), task_files.map(lambda task_file: task_file.name)), st.text(min_size=1, max_size=5)
)
@example("my-session_1", "\n")
def test_a_name_with_a_prefix_or_suffix_never_becomes_a_path(good: str, more: str) -> None:
    for text in (good + more, more + good):
        for read in READERS:
            if read(text):
                assert os.sep not in text and "\0" not in text and not text.startswith(".")
                assert os.path.normpath(f"/spool/{text}") == f"/spool/{text}"


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_do_not_parse(name: str) -> None:
    for read in READERS:
        assert not read(name)
    with pytest.raises(BadRequest):
        check_session(name)
    with pytest.raises(BadRequest):
        check_queue(name)
    with pytest.raises(BadRequest):
        check_tags([name])


def test_a_lane_name_too_long_for_a_directory_is_refused_with_its_length() -> None:
    lane = Lane("q" * 32, 9_999_999, 9999, 999, "3.11", tuple(f"{number}{'t' * 60}" for number in range(3)))
    assert parse_lane(check_lane(lane).name) == lane
    longer = lane._replace(tags=(*lane.tags, "x" * 12))
    with pytest.raises(BadRequest, match=rf"make a directory name of {len(longer.name)} bytes.*fewer tags"):
        check_lane(longer)
    assert parse_lane(longer.name) is None


def test_new_names_parse() -> None:
    task = new_task_id()
    assert is_task_id(task)
    assert is_worker_id(new_worker_id())
    assert is_bucket(bucket_name(task, new_submitter_id()))
    assert is_rendezvous(rendezvous_name())
    assert is_unfinished(task)


def test_new_names_are_unique() -> None:
    assert len({new_task_id() for _ in range(1000)}) == 1000
    assert len({new_worker_id() for _ in range(1000)}) == 1000


@given(st.integers(-499, 499), st.integers(-499, 499))
def test_a_greater_priority_sorts_first_whenever_it_was_submitted(one: int, other: int) -> None:
    first, second = new_task_id(one), new_task_id(other)
    if one != other:
        assert (first < second) == (one > other)


@pytest.mark.parametrize("priority", [-500, 500, 10**6])
def test_a_priority_out_of_range_is_refused(priority: int) -> None:
    with pytest.raises(BadRequest, match="priority"):
        new_task_id(priority)


def test_tasks_of_one_priority_sort_by_submission_time(monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    for now in (1, 10**15, 10**18, 1_800_000_000 * 10**9, 2**62):
        monkeypatch.setattr(time, "time_ns", lambda now=now: now)
        names.append(new_task_id())
    assert names == sorted(names)


@given(task_files)
def test_every_step_of_a_task_has_a_new_name(task_file: TaskFile) -> None:
    if task_file.claim > 999_990:
        return
    worker = "fedcba9876543210"
    steps = [task_file, task_file.released(), task_file.requeued(), task_file.reassigned_to(worker)]
    assert all(step.claim == task_file.claim + 1 for step in steps[1:])
    assert task_file.released().attempt == task_file.attempt
    assert task_file.requeued().attempt == min(99, task_file.attempt + 1)
    assert task_file.claimed_by(worker).claim == task_file.claim
    assert all(parse_task_file(step.name) == step for step in steps)


@given(packs, st.integers(0, 99_999))
def test_the_call_of_a_pack_that_is_reached_begins_its_first_attempt(pack: TaskFile, first: int) -> None:
    assert parse_task_file(pack.name) == pack
    advanced = pack.advanced(first)
    assert parse_task_file(advanced.name) == advanced
    fresh = pack._replace(first=min(first, pack.calls), attempt=1, seconds=0, releases=0)
    assert advanced == (pack if first <= pack.first else fresh)


@pytest.mark.parametrize("calls", ["x00000-00000", "x00002-00003", "x2-0", "x00002"])
def test_numbers_of_calls_that_are_no_pack_are_no_name(calls: str) -> None:
    assert parse_task_file(f"499-0660e6e464b511-22dc7470e2.000001.01{calls}") is None


def test_buckets_sort_like_their_first_tasks() -> None:
    first, second, urgent = new_task_id(), new_task_id(), new_task_id(1)
    names = [bucket_name(task, new_submitter_id()) for task in (urgent, first, second)]
    assert [name[:18] for name in sorted(names)] == [urgent[:18], first[:18], second[:18]]


def test_every_path_is_in_a_directory_of_the_spool() -> None:
    where = Layout("/spool")
    task_file = TaskFile("499-0660e6e464b511-22dc7470e2", 1, 1, "0123456789abcdef")
    paths = [
        where.bucket("default.r1t1g0.py3.11", "499-0660e6e464b511-22dc7470"),
        where.claimed_task(task_file),
        where.outcome("session", task_file),
        where.result("session", task_file),
        where.worker("0123456789abcdef"),
        where.tmp,
        where.cancel,
        where.objects,
    ]
    for path in paths:
        assert path.startswith("/spool/")
        assert path.split("/")[2] in Layout.DIRECTORIES


def test_cancel_request_names_a_task_or_one_call_of_a_pack() -> None:
    task = new_task_id()
    assert [request_name(task), request_name(task, 7)] == [task, f"{task}+00007"]
    for name in (request_name(task), request_name(task, 0), request_name(task, 99_999)):
        assert is_request(name) and task_of(name) == task
    for name in ("", "+00001", f"{task}+", f"{task}+1", f"{task}+000001", f"{task}+0000a", f"{task}.00001", f"x{task}"):
        assert not is_request(name)

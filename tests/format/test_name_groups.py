"""Groups of the names of task files: the same names are valid, with the same parts, as one by one."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoolpool.format.name_groups import group_names
from spoolpool.format.names import CANCELLED, TaskFile, new_task_id, new_worker_id, parse_task_file

TASK, WORKER = new_task_id(), new_worker_id()
NAMES = [
    TaskFile(TASK, 1, 1).name,
    TaskFile(TASK, 999_999, 99).name,
    TaskFile(TASK, 1, 1, WORKER).name,
    TaskFile(TASK, 1, 1, CANCELLED).name,
    TaskFile(TASK, 1, 1, "", 60, 2).name,
    TaskFile(TASK, 1, 1, calls=10, first=3).name,
    TaskFile(TASK, 2, 1, calls=10, first=3).name,
    TaskFile(TASK, 1, 1, WORKER, 60, 0, 10, 10).name,
]
WRONG = [
    "",
    "note.txt",
    TASK,
    f"{TASK}.000001.1",
    f"{TASK}.000001.01\n",
    f"{TASK}.000001.0\u0661",
    f"{TASK}.000001.01.{WORKER[:-1]}",
    f"{TASK}.000001.01x00002-00003",
    f"{TASK}.000001.01-000000000-00",
    f"{TASK.upper()}.000001.01" if TASK.upper() != TASK else "x",
    "a\n" * 20,
    TaskFile(TASK, 1, 1).name + "\n" + TaskFile(TASK, 1, 1).name,
]


def shape(task_file: TaskFile) -> TaskFile:
    return task_file._replace(task="", claim=0, attempt=0)


@given(st.lists(st.sampled_from(NAMES + WRONG), max_size=40))
def test_names_are_grouped_as_they_are_parsed(names: list[str]) -> None:
    groups = group_names(names)
    parsed = [task_file for task_file in map(parse_task_file, names) if task_file is not None]
    found: Counter[TaskFile] = Counter()
    for task_file, number in groups.counts.items():
        found[shape(task_file)] += number
    assert found == Counter(map(shape, parsed))
    assert sorted(groups.others) == sorted(name for name in names if parse_task_file(name) is None)


@pytest.mark.parametrize("number", [999, 1000, 1001, 3456])
def test_any_number_of_names_is_counted(number: int) -> None:
    names = [TaskFile(TASK, 1 + each, 1).name for each in range(number)]
    groups = group_names([*names, "note.txt"])
    assert sum(groups.counts.values()) == number
    assert groups.others == ["note.txt"]

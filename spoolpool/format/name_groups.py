"""Names of many task files at once, in groups of equal names but for the task and its numbers. No I/O."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from spoolpool.format.names import TaskFile, parse_task_file
from spoolpool.system.patterns import lazy_pattern

ID_LENGTH = 29
"""Characters of a task id, with which the name of each task file begins."""

_HEAD = ID_LENGTH + len(".000001.01")  # characters of a name up to the claim number and the attempt
_HEADS = lazy_pattern(r"(?:\d{3}-[0-9a-f]{14}-[0-9a-f]{10}\.\d{6}\.\d{2}\n)+", re.ASCII)
_AT_ONCE = 1000  # names in one text: bounds the memory of the match


class NameGroups(NamedTuple):
    """Names of a directory, as numbers of equal ones."""

    counts: Counter[TaskFile]
    """Number of names by all parts but task, claim number and attempt, which are those of any of them."""
    others: list[str]
    """Names of no task files."""


def group_names(names: Sequence[str]) -> NameGroups:
    """Count the names of task files; a third of the time of parsing each one."""
    found = NameGroups(Counter(), [])
    for start in range(0, len(names), _AT_ONCE):
        _add(names[start : start + _AT_ONCE], found)
    return found


def _add(names: Sequence[str], found: NameGroups) -> None:
    heads = [name[:_HEAD] for name in names]
    heads.append("")
    if _HEADS.fullmatch("\n".join(heads)) is None:
        valid = [name for name in names if parse_task_file(name) is not None]
        found.others.extend(name for name in names if parse_task_file(name) is None)
        if valid:
            _add(valid, found)
        return
    tails = Counter([name[_HEAD:] for name in names])
    for tail, count in tails.items():
        task_file = parse_task_file(heads[0] + tail)
        if task_file is None:
            found.others.extend(name for name in names if name[_HEAD:] == tail)
        else:
            found.counts[task_file] += count

"""Search for tasks whose names disagree, in a spool of any size: about 20 bytes of memory per task.

A consistent spool has none. Of others, :mod:`spoolpool.maintenance.check` lists the names again, and makes findings.
"""

from __future__ import annotations

import contextlib
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

from spoolpool.errors import SpoolpoolError
from spoolpool.format.cancel_requests import is_request, task_of
from spoolpool.format.name_groups import ID_LENGTH
from spoolpool.format.names import CANCELLED, is_session, parse_task_file
from spoolpool.monitor.scan import (
    SpoolScanner,
    TaskDirectory,
    has_all_directories,
    list_links,
    list_others,
    may_be_in_tmp,
)
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.tasks import read_task

_PARTS = 256  # that are compared one after another: as sets of integers they take ten times as much memory


class _Tasks:
    """Multiset of tasks, as hashes of their ids. Ids with one hash cause another look, and no finding."""

    def __init__(self) -> None:
        self.parts = [array("q") for _ in range(_PARTS)]

    def add(self, tasks: Iterable[str]) -> None:
        """Add tasks."""
        parts = self.parts
        for value in map(hash, tasks):
            parts[value % _PARTS].append(value)

    def repeated(self, *others: _Tasks) -> Iterator[int]:
        """Yield the tasks that were added several times to this one and the others."""
        for number, part in enumerate(self.parts):
            found = [*part, *(value for each in others for value in each.parts[number])]
            if len(set(found)) < len(found):
                yield from (value for value, count in Counter(found).items() if count > 1)

    def without(self, *others: _Tasks) -> Iterator[int]:
        """Yield the tasks that none of the others has."""
        for number, part in enumerate(self.parts):
            if part:
                yield from set(part).difference(*(each.parts[number] for each in others))

    def __len__(self) -> int:
        return sum(map(len, self.parts))


class _Pairs(_Tasks):
    """Tasks, each with another text: the name of its file, or the id of a dependent task."""

    def __init__(self) -> None:
        super().__init__()
        self.texts = [array("q") for _ in range(_PARTS)]

    def add_pairs(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Add tasks with their texts."""
        for task, text in pairs:
            value = hash(task)
            self.parts[value % _PARTS].append(value)
            self.texts[value % _PARTS].append(hash(text))

    def tasks_of_other_texts(self, *others: _Pairs) -> Iterator[int]:
        """Yield the tasks with a text that none of the others has."""
        for number, (tasks, texts) in enumerate(zip(self.parts, self.texts, strict=True)):
            absent = set(texts).difference(*(each.texts[number] for each in others)) if texts else ()
            if absent:
                yield from (task for task, text in zip(tasks, texts, strict=True) if text in absent)

    def texts_of(self, tasks: Collection[int]) -> Iterator[int]:
        """Yield the texts of some tasks."""
        for value in tasks:
            part = value % _PARTS
            yield from (text for task, text in zip(self.parts[part], self.texts[part], strict=True) if task == value)


@dataclass(frozen=True, kw_only=True)
class Suspects:
    """Tasks whose names may disagree, as hashes of their ids."""

    hashes: set[int]
    others: bool
    """Whether something else may be wrong: an unknown name, or a directory that is missing or cannot be listed."""
    files: int
    """Number of the files of tasks and outcomes."""

    def __bool__(self) -> bool:
        return self.others or bool(self.hashes)

    def __contains__(self, task: str) -> bool:
        return hash(task) in self.hashes

    def select(self, names: Collection[str]) -> list[str]:
        """Return those of some names that begin with the id of a suspect."""
        hashes = self.hashes
        return [name for name in names if hash(name[:ID_LENGTH]) in hashes] if hashes else []


def find_suspects(spool: Spool, is_suspicious: Callable[[str], bool]) -> Suspects:
    """List the whole tree once, in the order of :func:`spoolpool.monitor.scan.scan`.

    ``is_suspicious`` says of a worker whether its claims are suspects.
    """
    scanner = SpoolScanner(spool.layout.root)
    is_whole = has_all_directories(scanner)
    links = _Pairs()
    dependents = _Tasks()
    for _, link in list_links(scanner):
        links.add_pairs([(link.task, link.needed_by)])
        dependents.add([link.needed_by])
    unfinished, requests = _Tasks(), _Tasks()
    unfinished.add(path.partition("/")[2] for path in scanner.valid_paths("tmp", may_be_in_tmp))
    requests.add(task_of(path.partition("/")[2]) for path in scanner.valid_paths("cancel", is_request))
    outcomes, results, claimed = _Pairs(), _Pairs(), _Pairs()
    for path in scanner.valid_paths("outgoing", is_session):
        outcomes.add_pairs(_with_ids(_valid_names(scanner, TaskDirectory("done", path, True))))
    hashes: set[int] = set()
    ready, delayed, cancelled, failed = _Tasks(), _Tasks(), _Tasks(), _Tasks()
    for each in scanner.directories():
        names = _valid_names(scanner, each)
        if each.place == "running":
            claimed.add_pairs(_with_ids(names))
            hashes.update(hash(name[:ID_LENGTH]) for name in names if is_suspicious(name.rpartition(".")[2]))
        elif each.place == "done":
            results.add_pairs(_with_ids(name for name in names if not name.endswith(CANCELLED)))
            cancelled.add(name[:ID_LENGTH] for name in names if name.endswith(CANCELLED))
        else:
            (failed if each.place == "failed" else ready).add(name[:ID_LENGTH] for name in names)
            if each.place == "held":
                delayed.add(name[:ID_LENGTH] for name in names if _is_first_attempt(name))
    list_others(scanner)
    hashes.update(ready.repeated(claimed, results, cancelled, failed))
    hashes.update(outcomes.tasks_of_other_texts(claimed, results))
    hashes.update(results.tasks_of_other_texts(outcomes))
    hashes.update(requests.without(ready, claimed))
    hashes.update(dependents.without(ready, claimed, results, cancelled, failed, unfinished))
    links.add_pairs(_unlinked(spool, scanner, set(delayed.without(dependents))))
    missing = set(links.without(ready, claimed, results, cancelled))
    return Suspects(
        hashes=hashes | missing | set(links.texts_of(missing)),
        others=bool(scanner.unknown or scanner.unlisted) or not is_whole,
        files=sum(map(len, (ready, claimed, results, cancelled, failed, results))),
    )


def _with_ids(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    return ((name[:ID_LENGTH], name) for name in names)


def _valid_names(scanner: SpoolScanner, directory: TaskDirectory) -> list[str]:
    """Return the names of the task files in a directory; record the others as unknown."""
    names, before = scanner.names(directory.path), len(scanner.unknown)
    scanner.group(directory, names)
    unknown = set(scanner.unknown[before:])
    return [name for name in names if f"{directory.path}/{name}" not in unknown] if unknown else names


def _is_first_attempt(name: str) -> bool:
    task_file = parse_task_file(name)
    return task_file is not None and task_file.attempt <= 1


def _unlinked(spool: Spool, scanner: SpoolScanner, tasks: set[int]) -> Iterator[tuple[str, str]]:
    """Yield the dependencies of delayed tasks without links, by their headers: a purge may have removed the links."""
    for name in scanner.names("waiting") if tasks else ():
        task_file = parse_task_file(name)
        if task_file is not None and hash(task_file.task) in tasks:
            with contextlib.suppress(OSError, SpoolpoolError):  # gone, or reported as unreadable
                header = read_task(spool, f"{spool.layout.root}/waiting/{name}", task_file)
                yield from ((dependency, task_file.task) for _, dependency in header.dependencies())

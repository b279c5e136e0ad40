"""Check of a spool for inconsistencies while it is in use.

Unknown things are reported and never touched, and symbolic links are not followed. Tasks move during a scan, so that
a finding counts only if several scans agree on it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from spoolpool.errors import SpoolpoolError
from spoolpool.format import headers
from spoolpool.format.cancel_requests import task_of
from spoolpool.format.journal_names import writer_of
from spoolpool.format.names import (
    CANCELLED,
    TaskFile,
    is_worker_id,
    session_of,
)
from spoolpool.maintenance import garbage
from spoolpool.maintenance.suspects import Suspects, find_suspects
from spoolpool.monitor.scan import NOTHING, Snapshot, SpoolScanner, scan
from spoolpool.protocol import journal, open_packs, workers
from spoolpool.protocol.outcomes import read_outcome
from spoolpool.protocol.packs import read_calls
from spoolpool.protocol.progress import load_progress
from spoolpool.protocol.sessions import load_session
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.tasks import read_task
from spoolpool.protocol.workers import WorkerInfo
from spoolpool.security.signing import task_label
from spoolpool.security.trust import Trust
from spoolpool.system import files, records
from spoolpool.system.backoff import Backoff
from spoolpool.system.records import BadRecord

_REPETITIONS = 3
_STEP = 1000  # files between two calls of a function that shows progress

Kind = Literal[
    "missing",
    "unknown name",
    "unreadable",
    "unfinished",
    "duplicate task",
    "dead claim",
    "orphan outcome",
    "no outcome",
    "stale request",
    "stale link",
    "no dependency",
    "dead worker",
]

_REPORTED_ONLY = frozenset[Kind](("unknown name", "unreadable", "duplicate task"))


@dataclass(frozen=True)
class Finding:
    """One inconsistency."""

    kind: Kind
    path: str
    """Relative to the spool's directory."""
    text: str
    """Description, with the action of :func:`~spoolpool.maintenance.repair.repair`."""

    @property
    def repairable(self) -> bool:
        """Whether :func:`~spoolpool.maintenance.repair.repair` does something about it."""
        return self.kind not in _REPORTED_ONLY


Progress = Callable[[int, int], object]
"""Called with the number of files that were read, and about how many there are."""


def _no_progress(_done: int, _of: int) -> None:
    pass


def check(spool: Spool, *, deep: bool = True, progress: Progress = _no_progress) -> list[Finding]:
    """Return the inconsistencies of a spool. ``deep`` also reads every file and compares its checksum.

    The memory that it takes depends on the findings, and hardly on the number of tasks.
    """
    suspects = find_suspects(spool, _Suspicion(spool))
    found = _check_names(spool, suspects)
    return [*found, *_check_contents(spool, lambda done: progress(done, suspects.files))] if deep else found


# -- names


@dataclass(frozen=True, kw_only=True)
class _Evidence:
    """Result of two successive scans."""

    spool: Spool
    both: Snapshot
    """Names that both scans found."""
    either: Snapshot
    """Names that at least one scan found."""
    workers: dict[str, WorkerInfo]
    """Entries of workers, read between the scans: a worker has its entry before its first and after its last claim."""
    now: float | None
    """Time of the file server; None where the spool cannot be written to."""


def _check_names(spool: Spool, suspects: Suspects) -> list[Finding]:
    """List the names of the suspects until no finding is left, or several pairs of scans agree on those left."""
    backoff = Backoff(0.05, 0.5, 2.0)
    first = scan(spool, suspects) if suspects else NOTHING
    found: list[Finding] = []
    for number in range(_REPETITIONS + 1):
        entries = {info.worker: info for info in workers.read_workers(spool)}
        second = scan(spool, suspects) if suspects else NOTHING
        seen = _Evidence(
            spool=spool, both=first & second, either=first | second, workers=entries, now=spool.find_server_time()
        )
        now = _findings(seen)
        again = {(each.kind, each.path) for each in now}
        found = [each for each in found if (each.kind, each.path) in again] if number else now
        if not found or number == _REPETITIONS:
            break
        backoff.sleep()  # another process may be between two steps: then the finding disappears
        first = second
    return found


def _findings(seen: _Evidence) -> list[Finding]:
    rules = [_directories, _unknown_names, _duplicate_tasks, _dead_workers, _unfinished_writes]
    if seen.either.complete:  # else a name that was not seen may be in a directory that was not listed
        rules += [_outcomes, _stale_requests, _dependencies]
    return [finding for rule in rules for finding in rule(seen)]


def _directories(seen: _Evidence) -> Iterator[Finding]:
    for path in sorted(seen.both.missing):
        yield Finding("missing", path, "every spool has this directory; repair makes it")
    for path, reason in seen.both.unlisted.items():
        yield Finding("unreadable", path, f"this directory cannot be listed ({reason})")


def _unknown_names(seen: _Evidence) -> Iterator[Finding]:
    for path in sorted(seen.both.unknown):
        yield Finding("unknown name", path, "no file of a spool has this name; it is left alone")


def _duplicate_tasks(seen: _Evidence) -> Iterator[Finding]:
    paths: dict[str, list[str]] = {}
    for path, task_file in sorted(seen.both.tasks.items()):
        paths.setdefault(task_file.task, []).append(path)
    for task, places in paths.items():
        if len(places) > 1:
            text = f"task {task} has {len(places)} files: {', '.join(places)}. Please report this"
            yield Finding("duplicate task", places[0], text)


def _dead_workers(seen: _Evidence) -> Iterator[Finding]:
    """Find dead and silent workers, and the claims of those and of unknown workers."""
    suspects = _dead_or_silent(seen.spool, seen.workers.values(), seen.now)
    for worker, state in sorted(suspects.items()):
        text = f"this worker {state}; once its death is certain, repair requeues its tasks and removes its entry"
        yield Finding("dead worker", f"workers/{worker}", text)
    for path, task_file in seen.both.claimed.items():
        state = suspects.get(task_file.worker) or ("" if task_file.worker in seen.workers else "has no entry")
        if state:
            text = f"its worker {task_file.worker} {state}; once its death is certain, repair requeues the task"
            yield Finding("dead claim", path, text)


def _dead_or_silent(spool: Spool, infos: Iterable[WorkerInfo], now: float | None) -> dict[str, str]:
    """Return the workers that are dead, or had no heartbeat for a lease, with their states in words."""
    found = {}
    for info in infos:
        silence = None if now is None else workers.seconds_since_heartbeat(spool, info.worker, now)
        if info.process.is_provably_dead():
            found[info.worker] = "is dead"
        elif silence is not None and silence > spool.config.lease and not info.process.is_alive_here():
            found[info.worker] = f"has had no heartbeat for {silence:.0f} s"
    return found


class _Suspicion:
    """Whether the claims of a worker are suspects: it has no entry, or is dead or silent. The entries are read once."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool

    @functools.cached_property
    def _alive(self) -> set[str]:
        entries = {info.worker: info for info in workers.read_workers(self._spool)}
        return entries.keys() - _dead_or_silent(self._spool, entries.values(), self._spool.find_server_time())

    def __call__(self, worker: str) -> bool:
        return worker not in self._alive


def _unfinished_writes(seen: _Evidence) -> Iterator[Finding]:
    if seen.now is not None:
        for each in garbage.unfinished_writes(seen.spool, seen.now):
            yield Finding("unfinished", each.path, f"{each.reason}; repair removes it")


def _outcomes(seen: _Evidence) -> Iterator[Finding]:
    """Find outcomes without a task, and committed tasks without an outcome."""
    needed = {task_file.name for task_file in (*seen.either.claimed.values(), *seen.either.results.values())}
    tasks = _task_ids(seen.either)
    for path, task_file in seen.both.outgoing.items():
        if task_file.calls and task_file.task in tasks:  # a worker may adopt it; the collector of the pack removes it
            continue
        if task_file.name not in needed:
            text = "no task will publish or collect this outcome; repair checks again after a delay and removes it"
            yield Finding("orphan outcome", path, text)
    outcomes = {task_file.name for task_file in seen.either.outgoing.values()}
    for path, task_file in seen.both.results.items():
        if task_file.worker != CANCELLED and task_file.name not in outcomes:
            text = (
                "this task is committed, but its outcome is missing (possibly after a loss of power); repair checks "
                "again after a delay and requeues the task, once its worker is gone"
            )
            yield Finding("no outcome", path, text)


def _stale_requests(seen: _Evidence) -> Iterator[Finding]:
    tasks = {task_file.task for task_file in (*seen.either.ready.values(), *seen.either.claimed.values())}
    for name in sorted(seen.both.cancel_requests):
        if task_of(name) in tasks:
            continue
        text = (
            "the task to be cancelled neither waits nor runs, and would not run if it is retried; repair removes this"
        )
        yield Finding("stale request", f"cancel/{name}", text)


def _dependencies(seen: _Evidence) -> Iterator[Finding]:
    """Find dependency links of missing tasks, and delayed tasks with a dependency that gets no outcome."""
    tasks = _task_ids(seen.either)
    for path, link in seen.both.links.items():
        if link.needed_by not in tasks | seen.either.unfinished:
            text = (
                f"this link keeps an outcome for task {link.needed_by}, which does not exist; repair removes the link"
            )
            yield Finding("stale link", path, text)
    passing = seen.either.ready, seen.either.claimed, seen.either.results
    with_outcome = {task_file.task for task_files in passing for task_file in task_files.values()}
    for path, needed in _needed_by_delayed_tasks(seen).items():
        for dependency in sorted(needed - with_outcome):
            state = "does not exist"
            if dependency in tasks:
                state = "was set aside in failed/ (to keep the task, retry that one first, with 'spool retry')"
            text = f"its dependency {dependency} {state}; repair makes the task ready, so that it fails"
            yield Finding("no dependency", path, text)
            break


def _needed_by_delayed_tasks(seen: _Evidence) -> dict[str, set[str]]:
    """Return the dependencies of the delayed tasks that never ran, by path.

    The links name them; where a task has none, its header is read: a purge may have removed its links.
    """
    links: dict[str, set[str]] = {}
    for link in seen.either.links.values():
        links.setdefault(link.needed_by, set()).add(link.task)
    found: dict[str, set[str]] = {}
    for path, task_file in seen.both.ready.items():
        if not path.startswith("waiting/") or task_file.attempt > 1:
            continue
        found[path] = links.get(task_file.task, set())
        if not found[path]:
            with contextlib.suppress(OSError, SpoolpoolError):  # gone, or reported as unreadable
                header = read_task(seen.spool, f"{seen.spool.layout.root}/{path}", task_file)
                found[path] = {task for _, task in header.dependencies()}
    return found


def _task_ids(seen: Snapshot) -> set[str]:
    return {task_file.task for task_file in seen.tasks.values()}


# -- contents


def _check_contents(spool: Spool, progress: Callable[[int], object]) -> Iterator[Finding]:
    """Read every file, one directory after another."""
    yield from _check_records(spool)
    spool.need_key()
    trust = Trust((spool.owner,))
    done = 0
    for location in SpoolScanner(spool.layout.root).tasks():
        session, task_file = location.session, location.task_file
        outcome = f"outgoing/{session}/{task_file.name}" if session and task_file.worker != CANCELLED else ""
        for path in filter(None, (location.path, outcome)):
            if problem := _problem(spool, path, task_file, trust, outcome=path == outcome):
                yield Finding("unreadable", path, problem)
            done += 1
            if not done % _STEP:
                progress(done)


def _check_records(spool: Spool) -> Iterator[Finding]:
    """Find invalid entries of workers and sessions, and journals with invalid lines."""
    scanner = SpoolScanner(spool.layout.root)
    readers: list[tuple[str, Callable[[Spool, str], object], str]] = []
    for path in scanner.valid_paths("workers", is_worker_id):
        worker = path.partition("/")[2]
        if "info.json" in scanner.names(path):
            readers.append((f"{path}/info.json", workers.load_worker, worker))
            readers.append((f"{path}/progress", load_progress, worker))
    sessions, journals = scanner.valid_paths("sessions", session_of), scanner.valid_paths("journal", writer_of)
    readers += [(path, load_session, path.partition("/")[2].removesuffix(".json")) for path in sessions]
    readers += [(path, journal.check, path.partition("/")[2]) for path in journals]
    for path, read, name in readers:
        try:
            read(spool, name)
        except (OSError, BadRecord) as error:
            problem = records.problem_of(error)
            if problem is not None:
                yield Finding("unreadable", path, f"{problem}; it is left alone")


def _problem(spool: Spool, path: str, task_file: TaskFile, trust: Trust, *, outcome: bool) -> str | None:
    """Describe the problem of a file; None if it has none, or is gone."""
    whole = f"{spool.layout.root}/{path}"
    try:
        if outcome:
            read_outcome(spool, path.split("/")[1], task_file, trust)
            return None
        with files.reading(whole, trust.check) as (fd, status):
            if task_file.is_open:  # what is torn is being written, or recovery seals the pack without it
                open_packs.count_calls(spool, fd, whole, task_file.task)
                return None
            if task_file.calls:
                content, _ = read_calls(spool, fd, whole, task_file)
            else:
                content = spool.read(fd, status.st_size, whole, task_label(task_file.task))
        header = headers.decode_task(content.header, whole)
    except OSError as error:
        return None if error.errno in files.GONE else f"it cannot be read ({error.strerror}); it is left alone"
    except (SpoolpoolError, ValueError) as error:
        return f"{str(error).rstrip('.')}. It is left alone"
    return None if header.task == task_file.task else f"its header names another task ({header.task}); it is left alone"

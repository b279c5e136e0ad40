"""Is this spool consistent? A look at every name, while the spool is in use; and careful repairs.

What is not understood is reported and never touched; links are not followed. A task moves while it is looked
for, so whatever seems wrong is looked at several times.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from typing import Literal

from spoolpool.errors import SpoolpoolError
from spoolpool.format import headers
from spoolpool.format.names import CANCELLED, TaskFile, parse_task_file
from spoolpool.maintenance import garbage
from spoolpool.monitor.scan import Snapshot, scan
from spoolpool.protocol import workers
from spoolpool.protocol.delay import make_ready
from spoolpool.protocol.outcomes import read_outcome
from spoolpool.protocol.recovery import Recovery
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.tasks import move_to_bucket, read_task
from spoolpool.protocol.workers import WorkerInfo
from spoolpool.security.signing import task_label
from spoolpool.security.trust import Trust
from spoolpool.system import files
from spoolpool.system.backoff import Backoff

log = logging.getLogger(__name__)

_MORE_LOOKS = 3

Kind = Literal[
    "missing",
    "unknown name",
    "unreadable",
    "unfinished",
    "two tokens",
    "dead claim",
    "orphan outcome",
    "no outcome",
    "stale mark",
    "stale edge",
    "unmet need",
    "dead worker",
]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is not as it should be."""

    kind: Kind
    """Which sort of thing."""
    path: str
    """Where, below the spool's directory."""
    text: str
    """What it is, and what is done about it."""
    mends: bool
    """Whether :func:`repair` does something about it."""


def check(spool: Spool, *, deep: bool = True) -> list[Finding]:
    """What is wrong with a spool. ``deep`` reads every file and compares its checksum."""
    found = _by_name(spool)
    backoff = Backoff(0.05, 0.5, 2.0)
    for _ in range(_MORE_LOOKS):
        if not found:  # else somebody may be in the middle of something: what passes is nothing
            break
        backoff.sleep()
        again = {(each.kind, each.path) for each in _by_name(spool)}
        found = [each for each in found if (each.kind, each.path) in again]
    return found + _by_content(spool) if deep else found


def _by_name(spool: Spool) -> list[Finding]:
    first = scan(spool)
    # in between: who claims something has its entry before, and keeps it until the claim is gone
    entries = {info.worker: info for info in workers.read_workers(spool)}
    second = scan(spool)
    now = _server_time(spool)
    found = [
        Finding(kind="missing", path=path, text="every spool has this directory; repair makes it", mends=True)
        for path in second.missing
    ]
    found += [
        Finding(kind="unreadable", path=path, text=f"this directory cannot be listed ({reason})", mends=False)
        for path, reason in second.unlisted.items()
    ]
    found += [
        Finding(kind="unknown name", path=path, text="this is not a spool's; it is left alone", mends=False)
        for path in second.unknown
        if path in first.unknown
    ]
    found += _two_tokens(first, second)
    found += _workers(spool, entries, now, first, second)
    if first.complete and second.complete:
        found += _outcomes(first, second)
        found += _marks(first, second)
        found += _needs(first, second)
    if now is not None:
        found += [
            Finding(kind="unfinished", path=each.path, text=f"{each.why}; repair removes it", mends=True)
            for each in garbage.unfinished(spool, now, spool.config.keep)
        ]
    return found


def _places(seen: Snapshot) -> dict[str, set[str]]:
    places: dict[str, set[str]] = {}
    for path, task_file in [*seen.ready.items(), *seen.claimed.items(), *seen.failed.items()]:
        places.setdefault(task_file.task, set()).add(path)
    for path, (_, task_file) in seen.results.items():
        places.setdefault(task_file.task, set()).add(path)
    return places


def _two_tokens(first: Snapshot, second: Snapshot) -> list[Finding]:
    before, now = _places(first), _places(second)
    return [
        Finding(
            kind="two tokens",
            path=min(paths),
            text=f"task {name} stands in {len(paths)} places: {', '.join(sorted(paths))}. Please report this",
            mends=False,
        )
        for name, paths in now.items()
        if len(paths) > 1 and before.get(name) == paths
    ]


def _workers(
    spool: Spool, entries: dict[str, WorkerInfo], now: float | None, first: Snapshot, second: Snapshot
) -> list[Finding]:
    """Workers that are dead or give no sign of life, and what they hold."""
    suspects = {}
    for worker, info in entries.items():
        silence = None if now is None else workers.seconds_since_heartbeat(spool, worker, now)
        if info.process.is_provably_dead():
            suspects[worker] = "is dead"
        elif silence is not None and silence > spool.config.lease:
            suspects[worker] = f"has given no sign of life for {silence:.0f} s"
    found = [
        Finding(
            kind="dead worker",
            path=f"workers/{worker}",
            text=f"this worker {what}; once it is sure, repair brings back what it held and removes its entry",
            mends=True,
        )
        for worker, what in sorted(suspects.items())
    ]
    for path, task_file in second.claimed.items():
        what = suspects.get(task_file.worker) or ("" if task_file.worker in entries else "is not known")
        if path in first.claimed and what:
            text = f"worker {task_file.worker}, who claims it, {what}; once it is sure, repair brings it back"
            found.append(Finding(kind="dead claim", path=path, text=text, mends=True))
    return found


def _outcomes(first: Snapshot, second: Snapshot) -> list[Finding]:
    found = []
    held = {task_file.name for task_file in [*first.claimed.values(), *second.claimed.values()]}
    committed = {task_file.name for _, task_file in [*first.results.values(), *second.results.values()]}
    for path, (_, task_file) in second.outgoing.items():
        if path in first.outgoing and task_file.name not in held | committed:
            text = "an outcome that nobody will publish or collect; repair removes it after a second look"
            found.append(Finding(kind="orphan outcome", path=path, text=text, mends=True))
    outcomes = {task_file.name for _, task_file in [*first.outgoing.values(), *second.outgoing.values()]}
    for path, (_, task_file) in second.results.items():
        if path in first.results and task_file.worker != CANCELLED and task_file.name not in outcomes:
            text = (
                "committed, but its outcome is not there (lost with the power?); repair lets it run again after a "
                "second look, once its worker is gone"
            )
            found.append(Finding(kind="no outcome", path=path, text=text, mends=True))
    return found


def _marks(first: Snapshot, second: Snapshot) -> list[Finding]:
    alive = _places(first).keys() | _places(second).keys()
    return [
        Finding(
            kind="stale mark",
            path=f"cancel/{name}",
            text="its task is not there any more; repair removes it",
            mends=True,
        )
        for name in second.marks
        if name in first.marks and name not in alive
    ]


def _needs(first: Snapshot, second: Snapshot) -> list[Finding]:
    """Edges of tasks that are not there any more, and tasks that wait for some that are not."""
    alive = _places(first).keys() | _places(second).keys()
    coming = first.unfinished | second.unfinished
    edges = {path: edge for path, edge in second.needs.items() if path in first.needs}
    found = [
        Finding(
            kind="stale edge",
            path=path,
            text=f"task {edge.needed_by}, for which an outcome is kept, is not there any more; repair removes this",
            mends=True,
        )
        for path, edge in edges.items()
        if edge.needed_by not in alive | coming
    ]
    held = {
        task_file.task: path
        for path, task_file in second.ready.items()
        if path in first.ready and path[:8] == "waiting/"
    }
    unmet = {edge.needed_by: edge.task for edge in edges.values() if edge.task not in alive and edge.needed_by in held}
    return found + [
        Finding(
            kind="unmet need",
            path=held[name],
            text=f"it waits for task {needed}, which is not there any more; repair lets it go, so that it fails",
            mends=True,
        )
        for name, needed in unmet.items()
    ]


def _server_time(spool: Spool) -> float | None:
    try:
        return spool.server_time()
    except OSError:  # read-only: then no age is known
        return None


def _by_content(spool: Spool) -> list[Finding]:
    spool.need_key()
    seen = scan(spool)
    tasks = {
        **seen.ready,
        **seen.claimed,
        **{path: task_file for path, (_, task_file) in seen.results.items()},
        **seen.failed,
    }
    committed = {task_file.name for _, task_file in seen.results.values()}
    outcomes = {path: task_file for path, (_, task_file) in seen.outgoing.items() if task_file.name in committed}
    trust = Trust((os.lstat(spool.path).st_uid,))
    found = []
    for path, task_file in [*tasks.items(), *outcomes.items()]:
        reason = _unreadable(spool, path, task_file, trust, outcome=path in outcomes)
        if reason:
            found.append(Finding(kind="unreadable", path=path, text=reason, mends=False))
    return found


def _unreadable(spool: Spool, path: str, task_file: TaskFile, trust: Trust, *, outcome: bool) -> str | None:
    whole = f"{spool.path}/{path}"
    try:
        if outcome:
            read_outcome(spool, path.split("/")[1], task_file, trust)
            return None
        with files.reading(whole, trust.check) as (fd, status):
            content = spool.read(fd, status.st_size, whole, task_label(task_file.task))
        header = headers.decode_task(content.header, whole)
    except OSError as error:
        return None if error.errno in files.GONE else f"it cannot be read ({error.strerror}); it is left alone"
    except (SpoolpoolError, ValueError) as error:
        return f"{str(error).rstrip('.')}. It is left alone"
    return None if header.task == task_file.task else f"it says that it is of task {header.task}; it is left alone"


def repair(spool: Spool, found: list[Finding], *, seconds: float | None = None) -> list[str]:
    """Do what can be done about the findings; returns a line for each thing that was done.

    Takes as long as the protocol asks for: a worker is watched for a lease before it counts as dead, and what
    hangs on an outcome that is not needed, or not there, is looked for twice, longer apart than caches last.
    ``seconds`` bounds that, and leaves the rest for another time. What fails is logged, and left as well.
    """
    done: list[str] = []
    for finding in found:
        try:
            done += _mend_at_once(spool, finding)
        except (OSError, SpoolpoolError) as error:
            log.warning("Cannot mend %s: %s", finding.path, error)
    patient = _Patience(spool, found, done)
    end = time.monotonic() + (patient.seconds if seconds is None else min(patient.seconds, seconds))
    backoff = Backoff(0.05, max(0.05, spool.config.lease / 4))
    while patient.left():
        try:
            patient.look()
        except (OSError, SpoolpoolError) as error:  # the server is away for a moment, or something is in the way
            log.warning("A repair was put off: %s", error)
        if time.monotonic() > end:
            break
        if patient.left():
            backoff.sleep()
    return done


def _mend_at_once(spool: Spool, finding: Finding) -> list[str]:
    path = f"{spool.path}/{finding.path}"
    if finding.kind == "missing":
        spool.make_directories(path)
        return [f"made {finding.path}"]
    if finding.kind in ("stale mark", "stale edge", "unfinished") and files.remove(path):
        return [f"removed {finding.path}"]
    if finding.kind == "unmet need":
        task_file = _token(finding.path)
        if make_ready(spool, read_task(spool, path, task_file), task_file):
            return [f"let {finding.path} go"]
    return []


class _Patience:
    """The repairs that take a second look."""

    def __init__(self, spool: Spool, found: list[Finding], done: list[str]) -> None:
        self._spool = spool
        self._done = done
        self._recovery = Recovery(spool, everybody=True)
        self._dead = {each.path for each in found if each.kind in ("dead claim", "dead worker")}
        self._orphans = {each.path: _token(each.path) for each in found if each.kind == "orphan outcome"}
        self._bare = {each.path: _token(each.path) for each in found if each.kind == "no outcome"}
        self._caches = max(spool.config.lease, spool.config.caches)
        self._begin = time.monotonic()
        self.seconds = max(
            spool.config.lease * 1.5 if self._dead else 0.0,
            self._caches * 1.1 if self._orphans or self._bare else 0.0,
        )

    def left(self) -> bool:
        """Whether something is still to be done."""
        return bool(self._dead or self._orphans or self._bare)

    def look(self) -> None:
        """Do what can be done by now."""
        root = self._spool.path
        self._done += self._recovery.round()
        self._dead = {path for path in self._dead if os.path.lexists(f"{root}/{path}")}
        for path, task_file in list(self._orphans.items()):
            self._recovery.discard(path.split("/")[1], task_file)
            if not os.path.lexists(f"{root}/{path}"):
                self._done.append(f"removed {path}")
                del self._orphans[path]
        for path, task_file in list(self._bare.items()):
            if files.exists(self._spool.layout.outcome(path.split("/")[1], task_file)):
                del self._bare[path]  # it came later
            elif time.monotonic() - self._begin >= self._caches and not files.exists(
                self._spool.layout.worker(task_file.worker)
            ):
                del self._bare[path]
                if move_to_bucket(
                    self._spool,
                    f"{root}/{path}",
                    read_task(self._spool, f"{root}/{path}", task_file),
                    task_file.released(),
                ):
                    self._done.append(f"{path} waits again")


def _token(path: str) -> TaskFile:
    task_file = parse_task_file(os.path.basename(path))
    assert task_file is not None  # the census read it
    return task_file

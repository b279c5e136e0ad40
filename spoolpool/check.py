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

from spoolpool import fsio, garbage, layout, registry, task
from spoolpool.backoff import Backoff
from spoolpool.census import Census, census
from spoolpool.claim import read_task, requeue_from
from spoolpool.errors import SpoolpoolError
from spoolpool.layout import Token
from spoolpool.recovery import Recovery
from spoolpool.registry import WorkerInfo
from spoolpool.signature import outcome_label, task_label
from spoolpool.spool import Spool
from spoolpool.trust import Trust
from spoolpool.waiting import release

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
    rhythm = Backoff(0.05, 0.5, 2.0)
    for _ in range(_MORE_LOOKS):
        if not found:  # else somebody may be in the middle of something: what passes is nothing
            break
        rhythm.sleep()
        again = {(each.kind, each.path) for each in _by_name(spool)}
        found = [each for each in found if (each.kind, each.path) in again]
    return found + _by_content(spool) if deep else found


def _by_name(spool: Spool) -> list[Finding]:
    first = census(spool)
    # in between: who claims something has its entry before, and keeps it until the claim is gone
    entries = {info.worker: info for info in registry.workers(spool)}
    second = census(spool)
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


def _places(seen: Census) -> dict[str, set[str]]:
    places: dict[str, set[str]] = {}
    for path, token in [*seen.ready.items(), *seen.claimed.items(), *seen.failed.items()]:
        places.setdefault(token.task, set()).add(path)
    for path, (_, token) in seen.results.items():
        places.setdefault(token.task, set()).add(path)
    return places


def _two_tokens(first: Census, second: Census) -> list[Finding]:
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
    spool: Spool, entries: dict[str, WorkerInfo], now: float | None, first: Census, second: Census
) -> list[Finding]:
    """Workers that are dead or give no sign of life, and what they hold."""
    suspects = {}
    for worker, info in entries.items():
        silence = None if now is None else registry.silence(spool, worker, now)
        if info.process.dead():
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
    for path, token in second.claimed.items():
        what = suspects.get(token.worker) or ("" if token.worker in entries else "is not known")
        if path in first.claimed and what:
            text = f"worker {token.worker}, who claims it, {what}; once it is sure, repair brings it back"
            found.append(Finding(kind="dead claim", path=path, text=text, mends=True))
    return found


def _outcomes(first: Census, second: Census) -> list[Finding]:
    found = []
    held = {token.name for token in [*first.claimed.values(), *second.claimed.values()]}
    committed = {token.name for _, token in [*first.results.values(), *second.results.values()]}
    for path, (_, token) in second.outgoing.items():
        if path in first.outgoing and token.name not in held | committed:
            text = "an outcome that nobody will publish or collect; repair removes it after a second look"
            found.append(Finding(kind="orphan outcome", path=path, text=text, mends=True))
    outcomes = {token.name for _, token in [*first.outgoing.values(), *second.outgoing.values()]}
    for path, (_, token) in second.results.items():
        if path in first.results and token.worker != layout.CANCELLED and token.name not in outcomes:
            text = (
                "committed, but its outcome is not there (lost with the power?); repair lets it run again after a "
                "second look, once its worker is gone"
            )
            found.append(Finding(kind="no outcome", path=path, text=text, mends=True))
    return found


def _marks(first: Census, second: Census) -> list[Finding]:
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


def _needs(first: Census, second: Census) -> list[Finding]:
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
    held = {token.task: path for path, token in second.ready.items() if path in first.ready and path[:8] == "waiting/"}
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
    seen = census(spool)
    tasks = {**seen.ready, **seen.claimed, **{path: token for path, (_, token) in seen.results.items()}, **seen.failed}
    committed = {token.name for _, token in seen.results.values()}
    outcomes = {path: token for path, (_, token) in seen.outgoing.items() if token.name in committed}
    trust = Trust((os.lstat(spool.path).st_uid,))
    found = []
    for path, token in [*tasks.items(), *outcomes.items()]:
        reason = _unreadable(spool, path, token, trust, outcome=path in outcomes)
        if reason:
            found.append(Finding(kind="unreadable", path=path, text=reason, mends=False))
    return found


def _unreadable(spool: Spool, path: str, token: Token, trust: Trust, *, outcome: bool) -> str | None:
    whole = f"{spool.path}/{path}"
    try:
        fd = fsio.open_file(whole)
    except OSError as error:
        return None if error.errno in fsio.GONE else f"it cannot be opened ({error.strerror}); it is left alone"
    try:
        label = outcome_label(path.split("/")[1], token.name) if outcome else task_label(token.task)
        content = spool.read(fd, trust.check(fd, whole).st_size, whole, label)
        header = (task.decode_outcome if outcome else task.decode_task)(content.header, whole)
        if header.task != token.task:
            return f"it says that it is of task {header.task}; it is left alone"
    except (SpoolpoolError, OSError, ValueError) as error:
        return f"{str(error).rstrip('.')}. It is left alone"
    finally:
        fsio.close(fd)
    return None


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
    rhythm = Backoff(0.05, max(0.05, spool.config.lease / 4))
    while patient.left():
        try:
            patient.look()
        except (OSError, SpoolpoolError) as error:  # the server is away for a moment, or something is in the way
            log.warning("A repair was put off: %s", error)
        if time.monotonic() > end:
            break
        if patient.left():
            rhythm.sleep()
    return done


def _mend_at_once(spool: Spool, finding: Finding) -> list[str]:
    path = f"{spool.path}/{finding.path}"
    if finding.kind == "missing":
        spool.make_directories(path)
        return [f"made {finding.path}"]
    if finding.kind in ("stale mark", "stale edge", "unfinished") and fsio.remove(path):
        return [f"removed {finding.path}"]
    if finding.kind == "unmet need":
        token = _token(finding.path)
        if release(spool, read_task(spool, path, token), token):
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
        for path, token in list(self._orphans.items()):
            self._recovery.discard(path.split("/")[1], token)
            if not os.path.lexists(f"{root}/{path}"):
                self._done.append(f"removed {path}")
                del self._orphans[path]
        for path, token in list(self._bare.items()):
            if fsio.there(self._spool.layout.outcome(path.split("/")[1], token)):
                del self._bare[path]  # it came later
            elif time.monotonic() - self._begin >= self._caches and not fsio.there(
                self._spool.layout.worker(token.worker)
            ):
                del self._bare[path]
                if requeue_from(
                    self._spool, f"{root}/{path}", read_task(self._spool, f"{root}/{path}", token), token.given_back()
                ):
                    self._done.append(f"{path} waits again")


def _token(path: str) -> Token:
    token = layout.parse_token(os.path.basename(path))
    assert token is not None  # the census read it
    return token

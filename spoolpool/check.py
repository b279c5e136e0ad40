"""Is this spool consistent? A look at every name, while the spool is in use; and careful repairs.

What is not understood is reported and never touched. A task moves while it is looked for, so whatever seems
wrong is looked at twice.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from spoolpool import envelope, fsio, layout, registry, task
from spoolpool.backoff import Backoff
from spoolpool.claim import requeue_from
from spoolpool.errors import SpoolpoolError
from spoolpool.layout import Token
from spoolpool.recovery import Recovery
from spoolpool.spool import Spool

Kind = Literal[
    "unknown name",
    "unreadable",
    "two tokens",
    "dead claim",
    "orphan outcome",
    "no outcome",
    "stale mark",
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


@dataclass(frozen=True, kw_only=True)
class Census:
    """Every token of a spool by the place in which it stands, seen in one pass."""

    ready: dict[str, Token]
    """Those in ``waiting/`` too."""
    claimed: dict[str, Token]
    results: dict[str, tuple[str, Token]]
    outgoing: dict[str, tuple[str, Token]]
    failed: dict[str, Token]
    unknown: list[str]


class _Lister:
    """Lists folders below a spool, and notes names that are not a spool's."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.unknown: list[str] = []

    def folders(self, directory: str, good: Callable[[str], object]) -> list[str]:
        """Paths of the entries whose names are good."""
        names = sorted(fsio.names(f"{self.root}/{directory}"))
        self.unknown += [f"{directory}/{name}" for name in names if not good(name)]
        return [f"{directory}/{name}" for name in names if good(name)]

    def tokens(self, directory: str, *, claimed: bool | None) -> dict[str, Token]:
        """Tokens by their paths; with or without a worker in the name (None: either)."""
        found = {}
        for name in sorted(fsio.names(f"{self.root}/{directory}")):
            token = layout.parse_token(name)
            if token is not None and claimed in (None, bool(token.worker)):
                found[f"{directory}/{name}"] = token
            else:
                self.unknown.append(f"{directory}/{name}")
        return found


def census(spool: Spool) -> Census:
    """List the whole tree once; keys are paths below the spool's directory."""
    lister = _Lister(spool.path)
    ready: dict[str, Token] = {}
    for lane in lister.folders("ready", layout.parse_lane):
        for bucket in lister.folders(lane, layout.is_bucket):
            ready.update(lister.tokens(bucket, claimed=False))
    by_session: dict[str, dict[str, tuple[str, Token]]] = {"results": {}, "outgoing": {}}
    for kind, found in by_session.items():
        for path in lister.folders(kind, layout.is_session):
            session = path.partition("/")[2]
            found.update({path: (session, token) for path, token in lister.tokens(path, claimed=True).items()})
    ready.update(lister.tokens("waiting", claimed=False))
    claimed = lister.tokens("claimed", claimed=True)
    failed = lister.tokens("failed", claimed=None)
    lister.folders("workers", layout.is_worker_id)
    lister.folders("cancel", layout.is_task_id)
    lister.folders("objects", layout.is_object_id)
    known = {*layout.Layout.DIRECTORIES, "spool.json"}
    return Census(
        ready=ready,
        claimed=claimed,
        results=by_session["results"],
        outgoing=by_session["outgoing"],
        failed=failed,
        unknown=lister.unknown + [name for name in fsio.names(spool.path) if name not in known],
    )


def check(spool: Spool, *, deep: bool = True) -> list[Finding]:
    """What is wrong with a spool. ``deep`` reads every file and compares its checksum."""
    first, second = census(spool), census(spool)
    found = [
        Finding(kind="unknown name", path=path, text="this name is not one of a spool's; it is left alone", mends=False)
        for path in second.unknown
        if path in first.unknown
    ]
    found += _two_tokens(first, second)
    found += _claims_and_outcomes(spool, first, second)
    found += _marks(spool, first, second)
    if deep:
        for path in [*second.ready, *second.claimed, *second.results, *second.failed]:
            reason = _unreadable(spool, path)
            if reason:
                found.append(Finding(kind="unreadable", path=path, text=f"{reason} It is left alone", mends=False))
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


def _claims_and_outcomes(spool: Spool, first: Census, second: Census) -> list[Finding]:
    found = []
    entries = {info.worker: info for info in registry.workers(spool)}
    dead = {worker for worker, info in entries.items() if info.process.dead()}
    for path, token in second.claimed.items():
        if path in first.claimed and (token.worker not in entries or token.worker in dead):
            text = f"worker {token.worker}, who claims it, is dead or unknown; repair brings it back"
            found.append(Finding(kind="dead claim", path=path, text=text, mends=True))
    for worker in sorted(dead):
        text = "this worker is dead; repair brings back what it held and removes its entry"
        found.append(Finding(kind="dead worker", path=f"workers/{worker}", text=text, mends=True))
    held = {token.name for token in [*first.claimed.values(), *second.claimed.values()]}
    committed = {token.name for _, token in [*first.results.values(), *second.results.values()]}
    for path, (_, token) in second.outgoing.items():
        if path in first.outgoing and token.name not in held | committed:
            text = "an outcome that nobody will publish or collect; repair removes it after a second look"
            found.append(Finding(kind="orphan outcome", path=path, text=text, mends=True))
    outcomes = {token.name for _, token in [*first.outgoing.values(), *second.outgoing.values()]}
    for path, (_, token) in second.results.items():
        if path in first.results and token.worker != layout.CANCELLED and token.name not in outcomes:
            text = "committed, but its outcome is not there (lost with the power?); repair lets it run again"
            found.append(Finding(kind="no outcome", path=path, text=text, mends=True))
    return found


def _marks(spool: Spool, first: Census, second: Census) -> list[Finding]:
    alive = _places(first).keys() | _places(second).keys()
    return [
        Finding(
            kind="stale mark",
            path=f"cancel/{name}",
            text="its task is not there any more; repair removes it",
            mends=True,
        )
        for name in sorted(filter(layout.is_task_id, fsio.names(spool.layout.cancel)))
        if name not in alive
    ]


def _unreadable(spool: Spool, path: str) -> str | None:
    whole = f"{spool.path}/{path}"
    try:
        fd = fsio.open_file(whole)
    except OSError as error:
        return None if error.errno in fsio.GONE else f"it cannot be opened ({error.strerror})."
    try:
        content = envelope.read(fd, fsio.size(fd), whole)
        task.decode_task(content.header, whole)
    except (SpoolpoolError, OSError, ValueError) as error:
        return str(error)
    finally:
        fsio.close(fd)
    return None


def repair(spool: Spool, found: list[Finding], *, seconds: float | None = None) -> list[str]:
    """Do what can be done about the findings; returns a line for each thing that was done.

    Takes as long as the protocol asks for: a worker is watched for a lease before it counts as dead, and an
    outcome without a purpose is looked for twice, longer apart than attribute caches last. ``seconds`` bounds
    that, and leaves the rest for another time.
    """
    done: list[str] = []
    kinds = {finding.kind for finding in found}
    recovery = Recovery(spool)
    for finding in found:
        path = f"{spool.path}/{finding.path}"
        if finding.kind == "stale mark" and fsio.remove(path):
            done.append(f"removed {finding.path}")
        elif finding.kind == "no outcome" and _run_again(spool, path):
            done.append(f"{finding.path} waits again")
    wait = 0.0
    if kinds & {"dead claim", "dead worker"}:
        wait = spool.config.lease * 1.5
    orphans = [finding.path for finding in found if finding.kind == "orphan outcome"]
    if orphans:
        wait = max(wait, max(spool.config.lease, spool.config.caches) * 1.1)
    end = time.monotonic() + (wait if seconds is None else min(wait, seconds))
    rhythm = Backoff(0.05, max(0.05, spool.config.lease / 4))
    while wait:
        done += recovery.round()
        for path in orphans:
            _, session, name = path.split("/")
            token = layout.parse_token(name)
            assert token is not None  # the census read it
            recovery.discard(session, token)
        left = [path for path in orphans if os.path.lexists(f"{spool.path}/{path}")]
        done += [f"removed {path}" for path in orphans if path not in left]
        orphans = left
        waiting = any(fsio.there(f"{spool.path}/{f.path}") for f in found if f.kind in ("dead claim", "dead worker"))
        if not (orphans or waiting) or time.monotonic() > end:
            break
        rhythm.sleep()
    return done


def _run_again(spool: Spool, path: str) -> bool:
    """Let a committed task whose outcome is gone wait again (only ever when told to)."""
    token = layout.parse_token(os.path.basename(path))
    try:
        fd = fsio.open_file(path)
    except OSError as error:
        if error.errno in fsio.GONE:
            return False
        raise
    try:
        header = task.decode_task(envelope.read_header(fd, fsio.size(fd), path), path)
    except SpoolpoolError:
        return False
    finally:
        fsio.close(fd)
    assert token is not None  # the census read it
    requeue_from(spool, path, header, token.given_back())
    return True

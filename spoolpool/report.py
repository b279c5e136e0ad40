"""What is in a spool, for people: how many tasks wait, run and failed, who works, and what blocks."""

from __future__ import annotations

from dataclasses import dataclass

from spoolpool import fsio, layout, registry
from spoolpool.registry import WorkerInfo
from spoolpool.spool import Spool


@dataclass(frozen=True, kw_only=True)
class Status:
    """One look at a spool; it changes while it is looked at, so that the numbers are of slightly different moments."""

    waiting: dict[str, int]
    """Tasks per lane."""
    held_back: int
    """Tasks that raised, and wait a while before they are tried again."""
    running: int
    """Tasks in the hands of workers."""
    to_collect: int
    """Outcomes that their submitters have not collected."""
    failed: int
    """Tasks that are kept in ``failed/``."""
    groups: tuple[WorkerInfo, ...]
    """Live worker groups."""
    blocked: dict[str, str]
    """Lanes that nobody serves, with the reasons."""


def waiting_tasks(spool: Spool) -> dict[str, int]:
    """How many tasks wait in each lane that has some."""
    where = spool.layout
    waiting: dict[str, int] = {}
    for lane in fsio.names(where.ready):
        if layout.parse_lane(lane) is not None:
            buckets = filter(layout.is_bucket, fsio.names(where.lane(lane)))
            count = sum(_tokens(where.bucket(lane, bucket)) for bucket in buckets)
            if count:
                waiting[lane] = count
    return waiting


def status(spool: Spool) -> Status:
    """Count everything once, without opening a task."""
    where = spool.layout
    waiting = waiting_tasks(spool)
    groups = tuple(_alive(spool))
    reasons = {lane: registry.nobody_serves(lane, list(groups)) for lane in waiting}
    return Status(
        waiting=waiting,
        held_back=_tokens(where.waiting),
        running=_tokens(where.claimed),
        to_collect=sum(_tokens(f"{where.results}/{session}") for session in fsio.names(where.results)),
        failed=_tokens(where.failed),
        groups=groups,
        blocked={lane: reason for lane, reason in reasons.items() if reason},
    )


def _alive(spool: Spool) -> list[WorkerInfo]:
    """Groups that are not provably dead, and were heard of within a lease."""
    found = [info for info in registry.workers(spool) if not info.process.dead()]
    try:
        now = spool.server_time()
    except OSError:  # one may look and not write: then no age is known
        return found
    return [info for info in found if (registry.silence(spool, info.worker, now) or 0.0) <= spool.config.lease]


def _tokens(directory: str) -> int:
    return sum(layout.parse_token(name) is not None for name in fsio.names(directory))

"""What became of a task so far: its attempts, from the journals of the workers, its outcome's header and its claim."""

from __future__ import annotations

from dataclasses import dataclass

from spoolpool.monitor.query import TaskView
from spoolpool.protocol import journal, workers
from spoolpool.protocol.journal import Event


@dataclass(frozen=True, kw_only=True)
class AttemptRecord:
    """One thing that happened to a task. What a journal says is its writer's word."""

    attempt: int
    """0 where it is not known."""
    worker: str
    host: str
    started: float
    """Seconds since the epoch, the host's clock; 0 if it is not known; so is ``ended``."""
    ended: float
    what: str
    """How it ended, in words."""


def read_attempts(sight: TaskView) -> list[AttemptRecord]:
    """All that is known, in the order in which it ended; what died with its worker's last second is missing."""
    events = journal.about(sight.spool, [sight.id])
    found = [_episode(event) for event in events]
    outcome, task_file = sight.outcome, sight.location.task_file
    if outcome is not None and not any(event.event == "task" and event.by == outcome.worker for event in events):
        found.append(
            AttemptRecord(
                attempt=outcome.attempt,
                worker=outcome.worker,
                host=outcome.host,
                started=outcome.started,
                ended=outcome.ended,
                what=_ending(outcome.kind, outcome.failure.type if outcome.failure else ""),
            )
        )
    if sight.location.place == "running":
        info = workers.read_worker(sight.spool, task_file.worker)
        host = info.process.host if info else ""
        found.append(
            AttemptRecord(
                attempt=task_file.attempt,
                worker=task_file.worker,
                host=host,
                started=sight.since,
                ended=0.0,
                what="running",
            )
        )
    return found


def _episode(event: Event) -> AttemptRecord:
    if event.event == "task":
        what = _ending(event.kind, event.type)
        if not event.published:
            what += "; not published, as it was taken for dead"
    elif event.event == "raised":
        what = f"raised {event.type}; to be tried again"
    else:
        what = event.text.partition(": ")[2] or event.event
    return AttemptRecord(
        attempt=event.attempt,
        worker=event.by,
        host=event.host,
        started=event.started,
        ended=event.ended or event.t,
        what=what,
    )


def _ending(kind: str, error: str) -> str:
    words = {"result": "returned", "error": f"raised {error or 'an exception'}", "lost": "lost with its workers"}
    return words.get(kind, kind or "ended")

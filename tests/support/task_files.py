"""Task files in any state, with their outcomes."""

from __future__ import annotations

import os
import pickle
import time
from typing import Any

from spoolpool.format import envelope
from spoolpool.format import headers as records
from spoolpool.format.headers import Failure, OutcomeHeader, TaskHeader
from spoolpool.format.names import CANCELLED, TaskFile, bucket_name, new_submitter_id, new_worker_id
from spoolpool.monitor import states
from spoolpool.protocol.spool import Spool
from spoolpool.system import files
from tests.support.fake_worker import LANE

BAD = Failure(type="ValueError", message="too \x1b[2Jbad", traceback="Traceback:\n  here\n")
"""Failure of a task, with control characters that must not reach a terminal."""


def put(
    spool: Spool,
    state: states.State,
    *,
    ago: float = 0.0,
    end: str = "",
    worker: str = "",
    lane: str = LANE,
    failure: Failure = BAD,
    **more: Any,
) -> str:
    """Create a task in a state, submitted ``ago`` seconds ago, with an id that ends with ``end``; return the id."""
    task = f"499-{time.time_ns() // 1000 - int(ago * 1e6):014x}-{end or os.urandom(5).hex()}"
    fields = {"session": "inbox", "name": "some.function", "submitted": time.time() - ago, "host": "login1", **more}
    header = TaskHeader(task=task, lane=lane, bucket=bucket_name(task, new_submitter_id()), **fields)
    task_file = TaskFile(task, 1, 1, "" if state in ("held", "waiting") else worker or new_worker_id())
    if state == "cancelled":
        task_file = task_file.claimed_by(CANCELLED)
    place = states.STATES[state][0]
    where = {
        "held": spool.layout.waiting,
        "waiting": spool.layout.bucket(lane, header.bucket),
        "running": spool.layout.claimed,
        "done": f"{spool.layout.results}/{header.session}",
        "failed": spool.layout.failed,
    }[place]
    spool.make_directories(where)
    files.create(f"{where}/{task_file.name}", envelope.pack(records.encode(header), b"no pickle"))
    if place == "done" and state != "cancelled":
        kind: Any = {"done": "result", "raised": "error", "lost": "lost"}[state]
        why = None if state == "done" else failure
        about: Any = {"worker": task_file.worker, "host": "node7", "started": time.time() - 9, "ended": time.time() - 1}
        outcome = OutcomeHeader(task=task, kind=kind, failure=why, **about)
        spool.make_directories(f"{spool.layout.outgoing}/{header.session}")
        path = spool.layout.outcome(header.session, task_file)
        files.create(path, envelope.pack(records.encode(outcome), pickle.dumps("value")))
    return task

"""Retry a task that is kept in ``failed/``, that was lost with its workers, or that raised."""

from __future__ import annotations

from spoolpool.errors import BadTaskFile, SpoolpoolError
from spoolpool.format.names import parse_task_file
from spoolpool.protocol import cancel
from spoolpool.protocol.object_references import objects_of
from spoolpool.protocol.object_removal import is_stored
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.tasks import move_to_bucket, read_owned_task
from spoolpool.system import files


def retry_task(spool: Spool, name: str, session: str = "") -> str:
    """Return a task from ``failed/`` to its bucket, with all its attempts; return its id.

    A cancel request for its earlier life is removed first. With a ``session``: retry a task that was lost with its
    workers or raised, and remove its outcome, which is still there.
    Raises :class:`BadTaskFile` if the task file is gone, cannot be read, or does not match its name, and
    :class:`SpoolpoolError` if it cannot be moved.
    """
    parent = f"{spool.layout.results}/{session}" if session else spool.layout.failed
    path = f"{parent}/{name}"
    task_file = parse_task_file(name)
    if task_file is None:
        raise BadTaskFile(f"{path} is not the name of a task. It was left alone.")
    try:
        source = f"{spool.directory(parent) if session else parent}/{name}"
        header, owner = read_owned_task(spool, source, task_file)
    except OSError as error:
        raise BadTaskFile(f"{path} cannot be read ({error.strerror}). It was left alone.") from error
    if header.task != task_file.task:
        raise BadTaskFile(f"{path} says that it is task {header.task}. It was left alone.")
    for each in sorted(objects_of(spool, header)) if header.objects or header.init else ():
        if not is_stored(spool, each):
            raise BadTaskFile(
                f"{path} needs the object {spool.layout.objects}/{each}, which was removed. Put the value again, with "
                "the same content, or submit the call again. The task was left alone."
            )
    spool.open_session(header.session, owner)
    with files.translate_errors(f"remove the cancel request for {task_file.task}, which would end its retry"):
        cancel.revoke_request(spool, task_file.task, owner)
    ready = header.first_file(task_file.claim + 1)
    bucket = spool.layout.bucket(header.lane, header.bucket)
    try:
        moved = move_to_bucket(spool, source, header, ready)
    except OSError as error:
        raise SpoolpoolError(
            f"Cannot move {path} to {bucket} ({error.strerror}). It was left alone; try again."
        ) from error
    # a repeated request may answer that the source is gone
    if not moved and not files.exists(f"{bucket}/{ready.name}"):
        raise BadTaskFile(f"{path} is gone: another process has moved it.")
    if session:  # an outcome without a task file has no known owner
        files.remove(f"{spool.outgoing(session, owner)}/{name}")
    return task_file.task

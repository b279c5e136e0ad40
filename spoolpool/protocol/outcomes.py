"""Read outcome files."""

from __future__ import annotations

import logging
import os

from spoolpool.errors import BadTaskFile, NoKey, SpoolpoolError
from spoolpool.format.envelope import Envelope
from spoolpool.format.headers import OutcomeHeader, decode_outcome
from spoolpool.format.names import TaskFile
from spoolpool.protocol import outcome_log
from spoolpool.protocol.spool import Spool
from spoolpool.security.signing import outcome_label
from spoolpool.security.trust import Trust
from spoolpool.system import files, open_directory
from spoolpool.system.limited_log import LimitedLog

_reported = LimitedLog(logging.getLogger(__name__))


def read_outcome(
    spool: Spool, session: str, task_file: TaskFile, trust: Trust, directory: open_directory.Place | None = None
) -> tuple[OutcomeHeader, Envelope]:
    """Return the header and the content of an outcome from a trusted account.

    ``directory`` is that of the session in ``outgoing/``, where it is held open. Raises ``OSError`` as open(2),
    :class:`NotTrusted`, and :class:`BadTaskFile` for a file that is torn or belongs to another task.
    """
    path = spool.layout.outcome(session, task_file)
    way = path if directory is None else f"{directory}/{task_file.name}"
    if task_file.calls:
        outcomes = _read_pack(spool, session, task_file, way, path, trust.check)
        return outcome_log.header_of_pack(task_file, outcomes), outcome_log.value_of_pack(task_file, outcomes)
    with files.reading(way, trust.check, path) as (fd, status):
        content = spool.read(fd, status.st_size, path, outcome_label(session, task_file.name))
    header = decode_outcome(content.header, path)
    if header.task != task_file.task:
        raise BadTaskFile(f"{path} says that it is the outcome of {header.task}.")
    return header, content


def read_outcome_header(
    spool: Spool, session: str, task_file: TaskFile, directory: open_directory.Place | None = None
) -> OutcomeHeader:
    """Return the header of an outcome from any account; nothing is unpickled."""
    path = spool.layout.outcome(session, task_file)
    way = path if directory is None else f"{directory}/{task_file.name}"
    if task_file.calls:
        return outcome_log.header_of_pack(task_file, _read_pack(spool, session, task_file, way, path, None))
    with files.reading(way, None, path) as (fd, status):
        return decode_outcome(spool.read_header(fd, status.st_size, path, outcome_label(session, task_file.name)), path)


def _read_pack(
    spool: Spool, session: str, task_file: TaskFile, way: str, path: str, check: outcome_log.Check | None
) -> list[outcome_log.CallOutcome]:
    with files.reading(way, check, path) as (fd, _):
        found = outcome_log.read_log(spool, fd, path, session, task_file)
    if not found.is_complete(task_file.calls):
        raise outcome_log.incomplete(path, found.outcomes, task_file.calls)
    return found.outcomes


def is_complete(
    spool: Spool, session: str, task_file: TaskFile, owner: int | None = None, writer: int | None = None
) -> bool:
    """Return whether an outcome was written to its end. ``owner`` is that of the session, in a shared spool.

    In a shared spool it must belong to ``writer``, the account of the claim's worker; another account may have put
    a file there. In a signed spool its signature must be valid; raises :class:`NoKey` if that cannot be checked.
    """
    path = spool.layout.outcome(session, task_file)
    try:
        fd = files.open_file(f"{spool.outgoing(session, owner)}/{task_file.name}")
    except OSError as error:
        if error.errno in files.GONE:
            return False
        raise
    try:
        status = os.fstat(fd)
        if spool.shared and status.st_uid != writer:
            shown = open_directory.display_path(path)
            _reported.warning(shown, f"{shown} is not of the worker {task_file.worker}: it was left alone.")
            return False
        if task_file.calls:
            return outcome_log.read_log(spool, fd, path, session, task_file).is_complete(task_file.calls)
        spool.read(fd, status.st_size, path, outcome_label(session, task_file.name))
    except NoKey:
        raise
    except SpoolpoolError:  # its worker died while writing, or it was forged
        return False
    finally:
        files.close(fd)
    return True

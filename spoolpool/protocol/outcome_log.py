"""Logs of outcomes: the worker of a claim of a pack appends the outcome of each call before it begins the next one.

::

    claimed/PACK.1.1x00004-00000.V        a worker died in its third call (number 2):
    outgoing/SESSION/PACK.1.1x….V         0 1 ~
              |
              |  <-- recover: the two outcomes count, the third call alone gets the attempt
              v
    ready/…/PACK.2.2x00004-00002
              |
              |  <-- claim: adopt the outcomes of the latest log
              v
    claimed/PACK.2.2x00004-00002.W
    outgoing/SESSION/PACK.2.2x….W         0 1 2 3

The records of a log are in the order of the calls, so that the call that runs is the first one without a record. A
worker that claims a pack again copies the records of an earlier claim into its own log. Then it appends to it. So the
log of the claim that is committed has the outcomes of all calls, and which records of a fenced worker count is decided
by the worker that adopts them. A record is only delivered while its claim stands, looked at after the record was read:
whoever claims the pack later finds this record.

A record without the number of a call is the outcome of all further calls: the pack was cancelled, or could not end.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from spoolpool.errors import BadTaskFile, SpoolpoolError
from spoolpool.format.envelope import Buffer, Envelope
from spoolpool.format.headers import Kind, OutcomeHeader, decode_outcome
from spoolpool.format.names import TaskFile, parse_task_file
from spoolpool.protocol import record_files
from spoolpool.protocol.record_files import Record
from spoolpool.protocol.spool import Spool
from spoolpool.security.signing import outcome_label
from spoolpool.system import file_content, files, open_directory

log = logging.getLogger(__name__)

Check = Callable[[int, str], os.stat_result]
"""Check of an opened file: it raises :class:`NotTrusted` for a file of an account that is not to be believed."""


class CallOutcome(NamedTuple):
    """Outcome of one call of a pack, or of all further ones."""

    header: OutcomeHeader
    content: Envelope


class LogContent(NamedTuple):
    """Complete records of a log."""

    outcomes: list[CallOutcome]
    size: int
    """Bytes of the complete records."""
    data: bytes

    @property
    def own_worker(self) -> str:
        """Worker that wrote the last record; those before it may have been adopted."""
        return self.outcomes[-1].header.worker if self.outcomes else ""

    def is_complete(self, calls: int) -> bool:
        """Return whether each of so many calls has its outcome."""
        return len(self.outcomes) == calls or (bool(self.outcomes) and self.outcomes[-1].header.call is None)

    @property
    def done(self) -> int:
        """Number of calls with an outcome of their own."""
        return len(self.outcomes) - (bool(self.outcomes) and self.outcomes[-1].header.call is None)


EMPTY = LogContent([], 0, b"")


def read_log(spool: Spool, fd: int, path: str, session: str, task_file: TaskFile) -> LogContent:
    """Return the complete records of an opened log, which are in the order of the calls."""
    data = file_content.read_at(fd, file_content.size(fd), 0)
    outcomes: list[CallOutcome] = []
    size = 0
    for record in record_files.split(spool, data, path, _label(session, task_file)):
        outcome = _outcome_of(record, path, task_file, len(outcomes))
        if outcome is None:
            break
        outcomes.append(outcome)
        size += len(record.data)
        if outcome.header.call is None:
            break
    return LogContent(outcomes, size, data[:size])


def _label(session: str, task_file: TaskFile) -> str:
    """Return the label of the records: adopted ones keep their signatures in the log of another claim."""
    return outcome_label(session, task_file.task)


def _outcome_of(record: Record, path: str, task_file: TaskFile, number: int) -> CallOutcome | None:
    """Return the outcome in a record; None if it is not that of the call with this number."""
    header = decode_outcome(record.content.header, path)
    if header.task != task_file.task or header.call not in (None, number) or number >= task_file.calls:
        return None
    return CallOutcome(header, record.content)


class LogReader:
    """Reader of a log that grows: each outcome is read once."""

    def __init__(self, spool: Spool, session: str, task_file: TaskFile) -> None:
        self._spool = spool
        self._session = session
        self._task_file = task_file
        self._end = 0
        self.done = 0
        """Number of calls whose outcomes were read."""
        self.whole: CallOutcome | None = None
        """Outcome of all further calls, if it was read."""
        self.seconds = 0.0
        """Duration of the calls whose outcomes were read."""

    def read(self, check: Check, directory: open_directory.Place | None = None) -> list[CallOutcome]:
        """Return the outcomes since the last call. Raises ``OSError`` as open(2), and the exceptions of ``check``."""
        path = self._spool.layout.outcome(self._session, self._task_file)
        way = path if directory is None else f"{directory}/{self._task_file.name}"
        with files.reading(way, check, path) as (fd, status):
            data = file_content.read_at(fd, status.st_size - self._end, self._end)
        found = []
        for record in record_files.split(
            self._spool, data, path, _label(self._session, self._task_file), number=self.done
        ):
            outcome = _outcome_of(record, path, self._task_file, self.done)
            if outcome is None:
                break
            found.append(outcome)
            self._end += len(record.data)
            if outcome.header.call is None:
                self.whole = outcome
                break
            self.done += 1
            self.seconds += max(0.0, outcome.header.ended - outcome.header.started)
        return found


def find_log(spool: Spool, session: str, task_file: TaskFile, check: Check, *, before: bool = False) -> LogContent:
    """Return the outcomes of a pack up to a claim, or ``before`` it: those of the latest log with a record of its own.

    A log without one has a part of what its worker was about to adopt. Logs that do not pass the ``check`` are left
    out: a worker that adopts a record vouches for it. They are looked for twice, since a stale cache may hide one.
    """
    last = task_file.claim - before
    if last < 1:  # the usual case
        return EMPTY
    found = _latest(spool, session, task_file.task, last, check)
    again = _latest(spool, session, task_file.task, last, check)
    return max(found, again, key=lambda each: each[0])[1]


def _latest(spool: Spool, session: str, task: str, last: int, check: Check) -> tuple[int, LogContent]:
    """Return the number of a claim and the content of its log."""
    directory = f"{spool.layout.outgoing}/{session}"
    with contextlib.suppress(OSError):
        files.refresh(directory)
    logs = [
        each
        for each in map(parse_task_file, files.list_names(directory))
        if each is not None and each.calls and each.worker and each.task == task and each.claim <= last
    ]
    for each in sorted(logs, key=lambda each: each.claim, reverse=True):
        path = spool.layout.outcome(session, each)
        try:
            with files.reading(path, check) as (fd, _):
                found = read_log(spool, fd, path, session, each)
        except (OSError, SpoolpoolError) as error:
            log.info("The outcomes in %s are not used: %s", open_directory.display_path(path), error)
            continue
        if found.own_worker == each.worker:
            return each.claim, found
    return 0, EMPTY


class OutcomeLog:
    """Log of one claim, open in its worker. Appending is repeatable after an ``OSError``: nothing is left of a record.

    As a context manager it closes the file.
    """

    def __init__(self, spool: Spool, session: str, task_file: TaskFile, owner: int | None) -> None:
        """Open or create the log; raises ``OSError``."""
        self._spool = spool
        self._session = session
        self._task_file = task_file
        self._label = _label(session, task_file)
        self._path = f"{spool.outgoing(session, owner)}/{task_file.name}"
        self._fd = files.open_log(self._path, spool.rights.outcome, exact=spool.shared)
        self._end = self.done = 0
        self.ends: Counter[Kind] = Counter()
        """Number of the calls with outcomes, by the kind of these."""
        self._torn = True
        self.is_whole = False
        """Whether the last record is the outcome of all further calls."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; harmless when repeated."""
        if self._fd >= 0:
            files.close(self._fd)
            self._fd = -1

    def resume(self) -> bool:
        """Continue after the complete records of this claim; return whether there are any."""
        found = read_log(self._spool, self._fd, self._path, self._session, self._task_file)
        if found.own_worker != self._task_file.worker:
            return False
        self._continue_after(found)
        return True

    def adopt(self, found: LogContent) -> None:
        """Replace the content by the outcomes of an earlier claim."""
        file_content.truncate(self._fd, 0)
        file_content.append(self._fd, found.data)
        self._continue_after(found)

    def _continue_after(self, found: LogContent) -> None:
        self._end, self.done = found.size, found.done
        self.ends = Counter(each.header.kind for each in found.outcomes[: found.done])
        self.is_whole = found.done < len(found.outcomes)
        self._torn = True

    def append(self, parts: list[Buffer], kind: Kind = "result", *, whole: bool = False) -> None:
        """Append the outcome of the next call, or of all further calls. ``OSError``: nothing was appended."""
        parts = record_files.pack(self._spool, self._label, self.done, parts)
        if self._torn:  # a reader stops at a torn record, so that none may follow it
            file_content.truncate(self._fd, self._end)
            self._torn = False
        self._torn = True  # until the end of the write, which a signal may interrupt
        file_content.write_all(self._fd, parts)
        self._end += sum(map(len, parts))
        self.done += not whole
        self.ends[kind] += not whole
        self.is_whole = whole
        self._torn = False

    def sync(self) -> None:
        """Make the log durable, as the spool says."""
        if self._spool.config.durability != "none":
            file_content.sync(self._fd)

    def sync_always(self) -> None:
        """Make the log survive the end of this node: after the death of a worker the next one may end its node too."""
        with contextlib.suppress(OSError):
            file_content.sync(self._fd)


def append_whole(spool: Spool, session: str, task_file: TaskFile, owner: int | None, parts: Sequence[Buffer]) -> None:
    """Append an outcome of all further calls to the log of a claim. Raises ``FileExistsError`` if it has one.

    The caller has the claim, or is another thread of its process: that one does not append meanwhile.
    """
    outcomes = OutcomeLog(spool, session, task_file, owner)
    with outcomes:
        if not outcomes.resume():
            outcomes.adopt(find_log(spool, session, task_file, own_file, before=True))
        if outcomes.is_whole or outcomes.done == task_file.calls:
            raise FileExistsError
        outcomes.append(list(parts), whole=True)
        outcomes.sync()


def append_call(
    spool: Spool, session: str, task_file: TaskFile, owner: int | None, call: int, parts: list[Buffer]
) -> bool:
    """Append the outcome of the next call to the log of a claim; return False if another call is the next one.

    The caller has the claim, or is another thread of its process: that one does not append meanwhile.
    """
    outcomes = OutcomeLog(spool, session, task_file, owner)
    with outcomes:
        if not outcomes.resume():
            outcomes.adopt(find_log(spool, session, task_file, own_file, before=True))
        if outcomes.is_whole or outcomes.done != call:
            return False
        outcomes.append(parts)
        outcomes.sync()
        return True


def size_of(spool: Spool, session: str, task_file: TaskFile) -> int:
    """Return the size of the log of a claim; 0 if it has none."""
    try:
        with files.reading(spool.layout.outcome(session, task_file)) as (_, status):
            return status.st_size
    except OSError:
        return 0


def cut(spool: Spool, session: str, task_file: TaskFile, owner: int | None, size: int) -> None:
    """Cut the log of a worker that has ended to a size, so that no further outcome of it is adopted."""
    path = f"{spool.outgoing(session, owner)}/{task_file.name}"
    if not files.is_missing(path):
        fd = files.open_log(path, spool.rights.outcome, exact=spool.shared)
        try:
            file_content.truncate(fd, min(size, file_content.size(fd)))
        finally:
            files.close(fd)


def own_file(fd: int, path: str) -> os.stat_result:
    """Check that a file belongs to this account."""
    from spoolpool.security.trust import Trust

    return Trust().check(fd, path)


def header_of_pack(task_file: TaskFile, outcomes: Sequence[CallOutcome]) -> OutcomeHeader:
    """Return the header of the outcome of a whole pack."""
    first, last = outcomes[0].header, outcomes[-1].header
    kind = last.kind if last.call is None and last.kind in ("cancelled", "lost") else "result"
    failure = last.failure if kind == "lost" else None
    return msgspec.structs.replace(
        last, kind=kind, failure=failure, call=None, started=first.started, worker=task_file.worker
    )


def value_of_pack(task_file: TaskFile, outcomes: Sequence[CallOutcome]) -> Envelope:
    """Return the content of the outcome of a whole pack: a :class:`spoolpool.wire.PackResults`."""
    from spoolpool.calls import pickling
    from spoolpool.wire import PackResults

    reports = list(_reports(task_file, outcomes))
    payload, buffers = pickling.dumps(PackResults(reports))
    return Envelope(b"", payload, buffers)


def _reports(
    task_file: TaskFile, outcomes: Sequence[CallOutcome]
) -> Iterator[tuple[bytes, list[bytes], dict[str, object] | None]]:
    for number in range(task_file.calls):
        header, content = outcomes[min(number, len(outcomes) - 1)]
        failure = None if header.failure is None else msgspec.to_builtins(header.failure)
        yield bytes(content.payload), [bytes(each) for each in content.buffers], failure


def incomplete(path: str, outcomes: Sequence[CallOutcome], calls: int) -> BadTaskFile:
    """Return the error for a committed log without an outcome of each call."""
    return BadTaskFile(f"{path} has the outcomes of {len(outcomes)} of {calls} calls: it is torn.")

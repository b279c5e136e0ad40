"""Open packs: a submitter appends calls to a file in ``waiting/``, until one rename seals it.

::

    waiting/PACK.0.1x00001-00000          the submitter appends a record for each call; the name has no number yet
              |
              |  <-- seal: rename by the submitter, or by whoever finds that it has died or is silent
              v
    ready/LANE/BUCKET/PACK.1.1x00012-00000    a pack of 12 calls; records after them do not exist

When :meth:`OpenPack.commit` returns True, the call is in the spool, and runs also if the submitter dies at once.

Each append is a sign of life. A process that has seen the file unchanged for a lease may count its records, and rename
it at any time later. So a submitter that has not appended for half a lease, by its own clock, leaves the pack: it seals
it, and the number in the name tells which calls are in it, whoever was first. ``tests/model/open_packs.py`` has these
rules, and ``tests/model/test_open_packs.py`` breaks each of them.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from spoolpool.errors import BadTaskFile, SpoolpoolError, TaskVanished
from spoolpool.format import envelope, headers
from spoolpool.format.envelope import Buffer
from spoolpool.format.headers import TaskHeader
from spoolpool.format.names import MOST_CALLS, TaskFile, open_pack_file, parse_task_file
from spoolpool.protocol import packs, record_files, sessions
from spoolpool.protocol.heartbeat import Liveness
from spoolpool.protocol.packs import PackedCall
from spoolpool.protocol.search import PASSES, search_interval
from spoolpool.protocol.spool import Spool
from spoolpool.protocol.tasks import move_to_bucket, read_opened_task
from spoolpool.security.signing import task_label
from spoolpool.system import file_content, files, mounts
from spoolpool.system.backoff import Backoff
from spoolpool.system.limited_log import LimitedLog

log = logging.getLogger(__name__)
_reported = LimitedLog(log)

MOST_BYTES = 1 << 24
"""Size from which on an open pack gets no further call."""
_TRIES = 8  # of a rename that fails for an unknown reason: about two seconds


def _now() -> float:
    """Return the seconds of a clock that also runs while this host is suspended: others observe it meanwhile."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class _Appended(NamedTuple):
    """Records that were written, and when the write of the last one began."""

    calls: int
    began: float


class OpenPack:
    """Open pack of this process. May be used from several threads.

    Whatever fails, the pack gets no further call, and calls that were committed run.
    """

    def __init__(self, spool: Spool, header: TaskHeader) -> None:
        """Create the file; raises ``OSError``. ``header`` has ``calls=1``: their number is in the name of the file."""
        self._spool = spool
        self.header = header
        self.sealed: TaskFile | None = None
        """Name after the seal, if it is known."""
        self.is_closed = False
        """Whether it gets no further call."""
        self.is_empty = False
        """Whether it was removed without a call."""
        self.has_ended: Callable[[], bool] = lambda: False
        """Whether its outcome was collected, so that there is no file any more."""
        self.size = 0
        self._label = task_label(header.task)
        self._path = f"{spool.layout.waiting}/{open_pack_file(header.task).name}"
        self._must_sync = must_sync(spool)
        self._patience = spool.config.lease / 2
        self._lock = threading.RLock()  # of appends; acquired after the other one
        self._sync_lock = threading.RLock()
        self._appended = _Appended(0, 0.0)
        self._committed = 0
        self._last_change = _now()  # at least so late was the last change that others have seen
        self._is_silent = self._is_lost = False
        self._problem: OSError | None = None
        self._fd = -1
        try:
            spool.in_directory(spool.layout.waiting, self._create)
        except OSError:
            with contextlib.suppress(OSError):  # the file may have been created all the same
                files.remove(self._path)
            raise

    def _create(self) -> None:
        self._fd = files.open_log(self._path, self._spool.rights.file, exact=self._spool.shared)

    @property
    def calls(self) -> int:
        """Number of calls that were appended."""
        return self._appended.calls

    @property
    def may_append(self) -> bool:
        """Whether the pack can get a further call; else it is to be sealed, and a new one begins."""
        return not (
            self.is_closed
            or self._is_silent
            or self.size >= MOST_BYTES
            or self.calls >= MOST_CALLS
            or _now() - self._last_change >= self._patience
        )

    def append(self, call: PackedCall) -> int:
        """Append a call, and return its number, for :meth:`commit`. Raises ``OSError``; then the pack is closed."""
        with self._lock:
            if self.is_closed:
                raise OSError(f"{self._path} was sealed")
            number, began = self._appended.calls, _now()
            parts: list[Buffer] = []
            if not number:
                header = envelope.pack(headers.encode(self.header), b"")
                parts = record_files.pack(self._spool, self._label, 0, header)
            record = envelope.pack(headers.encode(call.header(number)), call.payload, call.buffers)
            parts += record_files.pack(self._spool, self._label, number + 1, record)
            self.is_closed = True  # until the end of the write, which a signal may interrupt
            file_content.write_all(self._fd, parts)
            self.size += sum(map(len, parts))
            self._appended = _Appended(number + 1, began)
            self.is_closed = False  # last: a record that is not counted must not be followed by another one
        return number

    def commit(self, number: int) -> bool:
        """Return whether the pack has a call, which is durable then. If not, it does not run: submit it again.

        One sync serves the calls of all threads that wait for it. Raises ``OSError`` if the call cannot be made
        durable, and :class:`TaskVanished` if it is unknown whether the pack has it.
        """
        with self._sync_lock:
            if number >= self._committed and self._problem is None and self._fd >= 0:
                self._sync()
            if number < self._committed and not self._is_silent:
                return True
        self.seal()
        if self._is_lost:
            raise self._vanished()
        if self.sealed is not None and number < self.sealed.calls:
            return True
        if self._problem is not None:
            raise self._problem
        return False

    def _sync(self) -> None:
        """Make the records durable and visible, and look at the clock: others may have seen a silence up to now."""
        appended = self._appended
        if self._must_sync:
            try:
                file_content.sync(self._fd)
                if not self._committed and self._spool.config.durability == "full":
                    files.sync_directory(self._spool.layout.waiting)
            except OSError as error:
                self._problem, self.is_closed = error, True
                return
        self._is_silent |= _now() - self._last_change >= self._patience
        self._committed, self._last_change = appended.calls, appended.began

    def seal(self) -> None:
        """Seal the pack with the calls that were appended; repeatable. :attr:`sealed` is the name, if it is known.

        If the rename fails, the pack is left to others, who seal it when it has been silent for a lease.
        """
        with self._sync_lock, self._lock:
            if self._fd < 0:
                return
            self.is_closed = True
            if self._committed < self.calls and self._problem is None:
                self._sync()
            count = self.calls if self._problem is None else self._committed
            self.is_empty = not count
            try:
                if self._rename(count):
                    self.sealed = sealed_file(self.header, count) if count else None
                elif not files.exists(unfinished(self._spool, self.header.task)):
                    self.sealed = self._find()
                    self._is_lost = self.sealed is None and not self.has_ended()
            except (OSError, SpoolpoolError) as error:
                # others count all records, also those that could not be made durable
                self._is_lost = self._is_silent or self._problem is not None
                log.warning("Cannot seal %s now, which is left to other processes: %s", self._path, error)
            finally:
                fd, self._fd = self._fd, -1
                files.close(fd)

    def abandon(self) -> None:
        """Close the file without a seal, when the outcome of the pack was collected: another process has sealed it."""
        self.is_closed = True
        with self._sync_lock, self._lock:
            if self._fd >= 0:
                fd, self._fd = self._fd, -1
                files.close(fd)

    def _rename(self, count: int) -> bool:
        """Rename the file, or remove it if it has no call; return False if another process may have been first."""
        backoff = Backoff(0.005, 1.0, 2.0)
        for left in range(_TRIES - 1, -1, -1):
            try:
                if not count:
                    return files.remove(self._path) or not self._is_silent
                return move_to_bucket(self._spool, self._path, self.header, sealed_file(self.header, count)) or (
                    not self._is_silent  # the rename was done, and the error answered its repetition
                )
            except OSError as error:
                if not left or error.errno in files.DENIED:
                    raise
                backoff.sleep()
        return False

    def _find(self) -> TaskFile | None:
        """Return the name that another process gave to the pack; None if it is not found, or its outcome was collected.

        The directories are listed in the order in which a pack moves, and several times: a stale cache may hide it.
        """
        where, header = self._spool.layout, self.header
        directories = [where.bucket(header.lane, header.bucket), where.claimed, f"{where.results}/{header.session}"]
        if not self._spool.sees_all:
            directories.remove(where.claimed)
        pause = search_interval(self._spool)
        backoff = Backoff(0.01, pause / PASSES)
        end = _now() + (PASSES - 1) * pause
        while True:
            is_last = self.has_ended() or _now() >= end
            for directory in directories:
                for each in map(parse_task_file, files.list_names(directory)):
                    if each is not None and each.task == header.task and not each.is_open:
                        return each
            if is_last:
                return None
            backoff.sleep()

    def _vanished(self) -> TaskVanished:
        if self._problem is not None:
            reason = f"it could neither be made durable nor be sealed ({self._problem.strerror})"
        else:
            reason = "this process was stopped for long, another one has sealed it, and it is not found any more"
        return TaskVanished(
            f"Cannot tell whether a call is in {self._path}: {reason}. Look for the effects of the call before it is "
            "submitted again."
        )

    def after_fork(self) -> None:
        """Close the file in a forked child: the pack belongs to the parent process."""
        self._lock, self._sync_lock = threading.RLock(), threading.RLock()
        self.abandon()


def must_sync(spool: Spool) -> bool:
    """Return whether records are to be synced: for durability, or so that other hosts see them."""
    return spool.config.durability != "none" or not mounts.is_local(spool.path)


def unfinished(spool: Spool, task: str) -> str:
    """Return the path of an open pack that was abandoned without a call."""
    return f"{spool.layout.tmp}/{task}"


def sealed_file(header: TaskHeader, calls: int) -> TaskFile:
    """Return the name of a pack after its seal."""
    return header.first_file()._replace(calls=min(calls, MOST_CALLS))


def count_calls(spool: Spool, fd: int, path: str, task: str) -> tuple[int, bool]:
    """Return the number of complete records of calls of an opened pack, and whether a torn one follows them.

    Raises :class:`NotTrusted` for a record with a wrong signature, and :class:`BadTaskFile` for too large a file.
    """
    size = packs.size_of(fd, path)
    read = count = 0
    for record in record_files.split(spool, file_content.read_at(fd, size, 0), path, task_label(task)):
        read += len(record.data)
        count += 1
    return max(0, count - 1), read < size


class OpenPackSealer:
    """Observer of the open packs of all submitters, which seals those of dead and silent ones.

    Any number of processes may do so at once: the source of the rename exists once. Not for use from several threads.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._liveness = Liveness(spool)
        self._headers: dict[TaskFile, TaskHeader] = {}

    def round(self) -> list[str]:
        """List the open packs once, and seal those that may be; return a line of text for each.

        First the listing, then the silence, then the count: a pack that is younger than the silence is not listed.
        """
        names = map(parse_task_file, files.list_names(self._spool.layout.waiting))
        found = [each for each in names if each is not None and each.is_open]
        self._liveness.keep_only({each.name for each in found})
        self._headers = {each: self._headers[each] for each in found if each in self._headers}
        done = []
        for task_file in found:
            try:
                if self._is_abandoned(task_file) and (text := self._seal(task_file)):
                    done.append(text)
            except FileNotFoundError:  # sealed just now
                continue
            except (OSError, SpoolpoolError) as error:
                _reported.warning(task_file.name, f"Cannot seal the open pack {task_file.task}: {error}")
        return done

    def _path(self, task_file: TaskFile) -> str:
        return f"{self._spool.layout.waiting}/{task_file.name}"

    def _is_abandoned(self, task_file: TaskFile) -> bool:
        """Return whether the submitter is provably dead, or has not appended for a lease, as observed here."""
        path = self._path(task_file)
        if self._liveness.seconds_unchanged(task_file.name, path) >= self._spool.config.lease:
            return True
        if task_file not in self._headers:
            try:
                with files.reading(path, None) as (fd, _):
                    self._headers[task_file], _ = read_opened_task(self._spool, fd, path, task_file)
            except BadTaskFile:  # not complete yet
                return False
        entry = self._headers[task_file].entry
        return bool(entry) and sessions.is_dead(self._spool, entry)

    def _seal(self, task_file: TaskFile) -> str:
        spool, path = self._spool, self._path(task_file)
        with files.reading(path, None) as (fd, _):
            try:
                header, _ = read_opened_task(spool, fd, path, task_file)
            except BadTaskFile as error:
                if not record_files.is_torn(spool, fd):  # damaged, or of a newer version: left alone
                    raise
                return self._put_aside(task_file, str(error))
            if header.task != task_file.task:
                raise BadTaskFile(f"{path} is of task {header.task}, as its header says.")
            count, torn = count_calls(spool, fd, path, task_file.task)
            if must_sync(spool):  # after a loss of power it would have fewer calls than its name says
                file_content.sync(fd)
        rest = " The last record is torn, and counts as not written." if torn else ""
        if not count:
            return self._put_aside(task_file, f"It has no call.{rest}")
        if not move_to_bucket(spool, path, header, sealed_file(header, count)):
            return ""
        return f"{task_file.task}: the submitter died or was silent; its {count} calls wait.{rest}"

    def _put_aside(self, task_file: TaskFile, reason: str) -> str:
        """Move a pack without a call to ``tmp/``, where the garbage collection treats it as any unfinished write."""
        source, target = self._path(task_file), unfinished(self._spool, task_file.task)
        self._spool.in_directory(self._spool.layout.tmp, lambda: files.move(source, target))
        return f"{task_file.task}: the submitter died or was silent; moved to tmp/. {reason}"

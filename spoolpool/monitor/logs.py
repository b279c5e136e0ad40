"""What tasks printed: found again, and read as it comes. :mod:`spoolpool.format.output` says what stands in a log."""

from __future__ import annotations

import contextlib
import re
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from spoolpool.errors import SpoolpoolError
from spoolpool.format import output
from spoolpool.format.names import OutputFile, TaskFile, is_worker_id, parse_output_file
from spoolpool.format.output import MARK, NOTE, OutputHeader
from spoolpool.monitor.scan import SpoolScanner
from spoolpool.protocol import journal
from spoolpool.protocol.spool import Spool
from spoolpool.security.trust import Trust
from spoolpool.system import files, mounts

_PIECE = 1 << 20  # bytes that are read at a time
_REMEMBERED = 10_000  # marks of other tasks, which may yet be asked for
_LINGER = 5.0  # seconds for which another host's last words may be on their way


class Output(NamedTuple):
    """What one rank printed for one claim of a task."""

    log: OutputFile
    mark: OutputHeader


@contextlib.contextmanager
def _opened(spool: Spool, log: OutputFile, trust: Trust) -> Iterator[int]:
    path = spool.layout.log(log)
    fd = files.open_file(path)
    try:
        trust.check(fd, path)
        yield fd
    finally:
        files.close(fd)


def _mark_at(fd: int, offset: int) -> OutputHeader | None:
    return output.read_output_header(files.read_at(fd, MARK, offset), offset)


def _find(fd: int, text: bytes, begin: int, before: int = 0) -> Iterator[OutputHeader]:
    """The marks behind ``begin`` that have a text, ``before`` bytes behind their beginning."""
    rest = b""
    while piece := files.read_at(fd, _PIECE, begin + len(rest)):
        data = rest + piece
        at = data.find(text)
        while at >= 0:
            mark = _mark_at(fd, begin + at - before) if begin + at >= before else None
            if mark is not None:
                yield mark
            at = data.find(text, at + 1)
        rest = data[-len(text) + 1 :]
        begin += len(data) - len(rest)


def _end(fd: int, mark: OutputHeader, known: int = 0) -> int:
    """Where an output ends, as far as there is one; so many bytes of it were seen."""
    if mark.length is not None:
        return mark.start + mark.length
    following = next(_find(fd, output.BEGIN, mark.start + known), None)
    return following.offset if following is not None else files.end_of(fd)


# -- what was printed


def outputs(spool: Spool, task: str, trust: Trust) -> list[Output]:
    """All that is kept of what a task printed: every claim, every rank, in the order of their beginning.

    Looks into the logs of the workers that had the task, as names and journals tell; if nothing is there, into all.
    Raises :class:`NotTrusted` where nothing can be read but what belongs to somebody else.
    """
    standing = SpoolScanner(spool.path).tasks({"running", "done", "failed"})
    workers = {each.task_file.worker for each in standing if each.task_file.task == task}
    for event in journal.about(spool, [task]):
        workers.update(filter(is_worker_id, (event.by, *event.text.split())))
    logs = _logs(spool)
    found, refused = _search([log for log in logs if log.worker in workers], spool, task, trust)
    if not found:
        found, refused = _search(logs, spool, task, trust)
    if not found and refused is not None:
        raise refused
    return sorted(
        found, key=lambda output: (output.mark.task_file.claim, output.log.rank, output.log.part, output.mark.offset)
    )


def _logs(spool: Spool) -> list[OutputFile]:
    return [log for log in map(parse_output_file, files.list_names(spool.layout.logs)) if log is not None]


def tasks_like(spool: Spool, word: str, trust: Trust) -> set[str]:
    """Ids of the tasks whose output is kept and whose ids begin or end like this; reads all logs."""
    found = set()
    for log in _logs(spool):
        with contextlib.suppress(OSError, SpoolpoolError), _opened(spool, log, trust) as fd:
            tasks = {mark.task_file.task for mark in _find(fd, output.BEGIN, 0)}
            found |= {task for task in tasks if task.startswith(word) or task.endswith(word)}
    return found


def _search(
    logs: Iterable[OutputFile], spool: Spool, task: str, trust: Trust
) -> tuple[list[Output], SpoolpoolError | None]:
    found, refused = [], None
    for log in logs:
        try:
            with _opened(spool, log, trust) as fd:
                marks = _find(fd, task.encode(), 0, output.TASK)
                found += [Output(log, mark) for mark in marks if _end(fd, mark) > mark.start]
        except OSError:  # it was removed meanwhile, or cannot be read
            continue
        except SpoolpoolError as error:
            refused = error
    return found, refused


def read(spool: Spool, output: Output, trust: Trust) -> Iterator[bytes]:
    """An output, in pieces."""
    with _opened(spool, output.log, trust) as fd:
        at, end = output.mark.start, _end(fd, output.mark)
        while at < end and (piece := files.read_at(fd, min(_PIECE, end - at), at)):
            yield piece
            at += len(piece)


# -- what is being printed


class Printed(NamedTuple):
    """Something new from a rank."""

    task_file: TaskFile
    """The claim for which it was printed."""
    rank: int
    started: float
    """When the rank began it: seconds since the epoch, its clock."""
    data: bytes
    """Empty: no more will come."""


class _Rank:
    """The log of one rank, as far as it was looked at: where the tasks' marks stand."""

    def __init__(self, spool: Spool, trust: Trust) -> None:
        self._spool = spool
        self._trust = trust
        self._log: OutputFile | None = None
        self._at = 0
        self._last: tuple[OutputFile, int, tuple[str, int]] | None = None
        self._marks: OrderedDict[tuple[str, int], list[tuple[OutputFile, int]]] = OrderedDict()

    def find(self, task_file: TaskFile, parts: list[OutputFile]) -> tuple[OutputFile, int] | None:
        """Where the next mark of a claim stands, each once; ``parts`` are the files that there are, in their order.

        There are several where the task waited for others that ran in its process meanwhile.
        """
        for log in parts:
            if self._log is None or log.part >= self._log.part:
                if log != self._log:
                    self._log, self._at = log, 0
                self._look(log)
        found = self._marks.get(task_file[:2])
        return found.pop(0) if found else None

    def _look(self, log: OutputFile) -> None:
        with contextlib.suppress(OSError), _opened(self._spool, log, self._trust) as fd:
            while True:
                mark = _mark_at(fd, self._at)
                if mark is None:  # processes that a task left behind printed something
                    mark = next(_find(fd, output.BEGIN, self._at), None)
                if mark is None:
                    return
                seen = log, mark.offset, mark.task_file[:2]
                if seen != self._last:
                    self._marks.setdefault(mark.task_file[:2], []).append((log, mark.offset))
                self._last = seen
                if len(self._marks) > _REMEMBERED:
                    self._marks.popitem(last=False)
                self._at = mark.offset
                if not mark.length:  # the next one may come in its place
                    return
                self._at = mark.start + mark.length


class _Reader:
    """Reads what one rank prints for one claim."""

    def __init__(self, spool: Spool, trust: Trust, task_file: TaskFile, where: tuple[OutputFile, int]) -> None:
        self._spool = spool
        self._trust = trust
        self._token = task_file
        self._log, self._offset = where
        self._seen = 0  # bytes of what was printed, those counted that were cut out
        self.complete = False
        self.started = 0.0  # of an output of which something was read

    def read(self) -> bytes:
        """What is new; sets :attr:`complete` once everything was read."""
        try:
            with _opened(self._spool, self._log, self._trust) as fd:
                return self._read(fd)
        except OSError:  # its file was removed; or the server is away, and it is read later
            self.complete = files.is_missing(self._spool.layout.log(self._log))
            return b""

    def _read(self, fd: int) -> bytes:
        before = _mark_at(fd, self._offset)
        if before is None or before.cut is None:  # what is there may be anything while it is cut
            return b""
        at = self._position(before.cut)
        end = _end(fd, before, at)
        data = files.read_at(fd, end - before.start - at, before.start + at)
        after = _mark_at(fd, self._offset)
        if after is None or after.task_file[:2] != self._token[:2]:  # another one's, over one that printed nothing
            self.complete = True
            return b""
        if after.cut != before.cut:  # it was cut meanwhile
            return b""
        if after.length is not None:
            data = data[: after.length - at]
            self.complete = at + len(data) >= after.length
        if data:
            self.started = after.started
        self._seen = at + len(data) + (after.cut - NOTE if after.cut else 0)
        return data

    def _position(self, cut: int) -> int:
        """Where what is new begins, behind the mark: after a cut there are a first part, a note, and a last part."""
        first = output.first_part(self._spool.config.output)
        if not cut or self._seen <= first:
            return self._seen
        return first if self._seen <= first + cut else self._seen - cut + NOTE


@dataclass
class _Followed:
    """A claim that is followed."""

    ranks: dict[int, _Reader] = field(default_factory=dict)
    started: dict[int, float] = field(default_factory=dict)
    """When ranks began of which something was read."""
    over_since: float | None = None


class OutputFollower:
    """Reads what claims print, as it comes. For one thread."""

    def __init__(self, spool: Spool, trust: Trust) -> None:
        self._spool = spool
        self._trust = trust
        self._patience = 0.0 if mounts.local(spool.path) else _LINGER
        self._logs: dict[tuple[str, int], _Rank] = {}
        self._claims: dict[TaskFile, _Followed] = {}

    def add(self, task_file: TaskFile) -> None:
        """Follow a claim; harmless when repeated."""
        self._claims.setdefault(task_file, _Followed())

    def finish(self, task_file: TaskFile) -> None:
        """The claim has ended: follow it until everything of it has come."""
        followed = self._claims.get(task_file)
        if followed is not None and followed.over_since is None:
            followed.over_since = time.monotonic()

    def running(self) -> list[TaskFile]:
        """Claims that are followed and have not ended."""
        return [task_file for task_file, followed in self._claims.items() if followed.over_since is None]

    def __len__(self) -> int:
        return len(self._claims)

    def __contains__(self, task_file: TaskFile) -> bool:
        return task_file in self._claims

    def poll(self) -> Iterator[Printed]:
        """What came since the last look."""
        if not self._claims:
            return
        parts: dict[str, dict[int, list[OutputFile]]] = {}
        for log in sorted(_logs(self._spool)):
            parts.setdefault(log.worker, {}).setdefault(log.rank, []).append(log)
        for task_file, followed in list(self._claims.items()):
            ranks = parts.get(task_file.worker, {})
            for rank, logs in ranks.items():
                for data, started in self._new(task_file, followed, rank, logs):
                    yield Printed(task_file, rank, followed.started.setdefault(rank, started), data)
            if self._is_complete(followed, len(ranks)):
                del self._claims[task_file]
                for rank, started in followed.started.items():
                    yield Printed(task_file, rank, started, b"")

    def _new(
        self, task_file: TaskFile, followed: _Followed, rank: int, logs: list[OutputFile]
    ) -> Iterator[tuple[bytes, float]]:
        """What a rank has printed since, and when it began."""
        while True:
            reader = followed.ranks.get(rank)
            if reader is None or reader.complete:
                log = self._logs.setdefault((task_file.worker, rank), _Rank(self._spool, self._trust))
                where = log.find(task_file, logs)
                if where is None:
                    return
                reader = followed.ranks[rank] = _Reader(self._spool, self._trust, task_file, where)
            if data := reader.read():
                yield data, reader.started
            if not reader.complete:
                return

    def _is_complete(self, followed: _Followed, ranks: int) -> bool:
        if followed.over_since is None:
            return False
        whole = len(followed.ranks) == ranks and all(reader.complete for reader in followed.ranks.values())
        return whole or time.monotonic() - followed.over_since >= self._patience


class Lines:
    """Puts pieces together to lines."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are complete now, without their ends; for no data, what is left."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if self._rest and (not data or len(self._rest) > _PIECE):
            lines.append(self._rest)
            self._rest = b""
        return lines


_COLOUR = re.compile(r"(\x1b\[[0-9;]{0,32}m)")


def for_terminal(line: bytes) -> str:
    """A line as a terminal may see it: nothing in it does more than colour text. Of what was written over, the last."""
    text = line.decode(errors="replace").rstrip("\r").rpartition("\r")[2]
    parts = _COLOUR.split(text)
    parts[::2] = [
        "".join(each if each.isprintable() or each == "\t" else each.encode("unicode_escape").decode() for each in part)
        for part in parts[::2]
    ]
    return "".join(parts) + ("\x1b[0m" if len(parts) > 1 else "")

"""Find and read the captured output of tasks, also of running ones; see :mod:`spoolpool.format.output_log`."""

from __future__ import annotations

import contextlib
import re
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from spoolpool.errors import SpoolpoolError
from spoolpool.format.names import OutputFile, TaskFile, is_worker_id, parse_output_file
from spoolpool.format.output_log import LogFile, OutputHeader
from spoolpool.monitor.scan import SpoolScanner
from spoolpool.protocol import journal
from spoolpool.protocol.spool import Spool
from spoolpool.security.trust import Trust
from spoolpool.system import files, mounts
from spoolpool.system.text import escape_line

_LONGEST_LINE = 1 << 20
_REMEMBERED = 10_000  # headers of other tasks, which may be asked for later
_LINGER = 5.0  # seconds that the last output of another host may take to arrive


class Output(NamedTuple):
    """Output of one rank for one claim of a task."""

    log: OutputFile
    header: OutputHeader


@contextlib.contextmanager
def _opened(spool: Spool, log: OutputFile, trust: Trust) -> Iterator[LogFile]:
    with files.reading(spool.layout.log(log), trust.check) as (fd, _):
        yield LogFile(fd)


# -- finished output


def outputs(spool: Spool, task: str, trust: Trust) -> list[Output]:
    """Return the kept output of a task: of every claim and rank, in the order in which they began.

    Reads the logs of the workers that had the task, by file names and journals; if those have nothing, all logs.
    Raises :class:`NotTrusted` if there is output of this task only in files of untrusted accounts.
    """
    locations = SpoolScanner(spool.layout.root).tasks({"running", "done", "failed"})
    workers = {each.task_file.worker for each in locations if each.task_file.task == task}
    for event in journal.about(spool, [task]):
        workers.update(filter(is_worker_id, (event.by, *event.text.split())))
    logs = _logs(spool)
    found, refused = _search([log for log in logs if log.worker in workers], spool, task, trust)
    if not found:
        found, refused = _search(logs, spool, task, trust)
    if not found and refused is not None:
        raise refused
    return sorted(
        found, key=lambda each: (each.header.task_file.claim, each.log.rank, each.log.part, each.header.offset)
    )


def _logs(spool: Spool) -> list[OutputFile]:
    return [log for log in map(parse_output_file, files.list_names(spool.layout.logs)) if log is not None]


def tasks_like(spool: Spool, word: str, trust: Trust) -> set[str]:
    """Return the ids of the tasks with kept output that begin or end with a word; reads all logs."""
    found = set()
    for log in _logs(spool):
        with contextlib.suppress(OSError, SpoolpoolError), _opened(spool, log, trust) as file:
            tasks = {header.task_file.task for header in file.headers()}
            found |= {task for task in tasks if task.startswith(word) or task.endswith(word)}
    return found


def _search(
    logs: Iterable[OutputFile], spool: Spool, task: str, trust: Trust
) -> tuple[list[Output], SpoolpoolError | None]:
    """Return the output of a task in some logs, and the error of a log that may not be read."""
    found, refused = [], None
    for log in logs:
        try:
            with _opened(spool, log, trust) as file:
                headers = file.headers(task=task)
                found += [Output(log, header) for header in headers if file.output_end(header) > header.start]
        except OSError:  # removed since it was listed, or unreadable
            continue
        except SpoolpoolError as error:
            refused = error
    return found, refused


def read(spool: Spool, output: Output, trust: Trust) -> Iterator[bytes]:
    """Yield an output in pieces."""
    with _opened(spool, output.log, trust) as file:
        yield from file.read(output.header)


# -- output of running tasks


class Printed(NamedTuple):
    """New output of a rank."""

    task_file: TaskFile
    """Claim of the task that printed it."""
    rank: int
    started: float
    """Begin of the claim on this rank: seconds since the epoch, the rank's clock."""
    data: bytes
    """Empty: no more will come."""


class _HeaderIndex:
    """Headers in the logs of one rank, as far as they were read."""

    def __init__(self, spool: Spool, trust: Trust) -> None:
        self._spool = spool
        self._trust = trust
        self._log: OutputFile | None = None
        self._at = 0
        self._last: tuple[OutputFile, int, tuple[str, int]] | None = None
        self._headers: OrderedDict[tuple[str, int], list[tuple[OutputFile, int]]] = OrderedDict()

    def next_of(self, task_file: TaskFile, parts: list[OutputFile]) -> tuple[OutputFile, int] | None:
        """Return log and offset of the next header of a claim, each once; ``parts`` are the rank's files in order.

        A claim has several headers if other tasks ran in its process while it waited for them.
        """
        for log in parts:
            if self._log is None or log.part >= self._log.part:
                if log != self._log:
                    self._log, self._at = log, 0
                self._read(log)
        found = self._headers.get(task_file[:2])
        return found.pop(0) if found else None

    def _read(self, log: OutputFile) -> None:
        with contextlib.suppress(OSError), _opened(self._spool, log, self._trust) as file:
            while True:
                header = file.header_at(self._at)
                if header is None:  # processes that outlived their task printed something in between
                    header = next(file.headers(self._at), None)
                if header is None:
                    return
                seen = log, header.offset, header.task_file[:2]
                if seen != self._last:
                    self._headers.setdefault(header.task_file[:2], []).append((log, header.offset))
                self._last = seen
                if len(self._headers) > _REMEMBERED:
                    self._headers.popitem(last=False)
                self._at = header.offset
                if not header.length:  # running, or to be overwritten by the next header
                    return
                self._at = header.start + header.length


class _Reader:
    """Reader of the growing output of one rank for one claim."""

    def __init__(self, spool: Spool, trust: Trust, task_file: TaskFile, place: tuple[OutputFile, int]) -> None:
        self._spool = spool
        self._trust = trust
        self._task_file = task_file
        self._log, self._offset = place
        self._seen = 0
        self.complete = False
        self.started = 0.0
        """Begin of the claim on this rank; known once there is output."""

    def read(self) -> bytes:
        """Return the new output; set :attr:`complete` once everything was read."""
        try:
            with _opened(self._spool, self._log, self._trust) as file:
                new = file.read_new(self._offset, self._task_file, self._seen, self._spool.config.output)
        except OSError:  # the file was removed; or the server does not answer, and it is read later
            self.complete = files.is_missing(self._spool.layout.log(self._log))
            return b""
        if new is None:
            return b""
        self._seen, self.complete = new.seen, new.complete
        if new.data:
            self.started = new.started
        return new.data


@dataclass
class _Followed:
    """State of a claim that is followed."""

    readers: dict[int, _Reader] = field(default_factory=dict)
    """By rank."""
    started: dict[int, float] = field(default_factory=dict)
    """Begin of the claim, by rank; only of ranks with output."""
    finished_at: float | None = None


class OutputFollower:
    """Reads the output of claims while they run. Not thread-safe."""

    def __init__(self, spool: Spool, trust: Trust) -> None:
        self._spool = spool
        self._trust = trust
        self._linger = 0.0 if mounts.is_local(spool.path) else _LINGER
        self._indices: dict[tuple[str, int], _HeaderIndex] = {}
        self._claims: dict[TaskFile, _Followed] = {}

    def add(self, task_file: TaskFile) -> None:
        """Follow a claim; harmless when repeated."""
        self._claims.setdefault(task_file, _Followed())

    def finish(self, task_file: TaskFile) -> None:
        """Note that a claim has ended: it is followed until all of its output was read."""
        followed = self._claims.get(task_file)
        if followed is not None and followed.finished_at is None:
            followed.finished_at = time.monotonic()

    def running(self) -> list[TaskFile]:
        """Return the followed claims that have not ended."""
        return [task_file for task_file, followed in self._claims.items() if followed.finished_at is None]

    def __len__(self) -> int:
        return len(self._claims)

    def __contains__(self, task_file: TaskFile) -> bool:
        return task_file in self._claims

    def poll(self) -> Iterator[Printed]:
        """Yield the output since the last call."""
        if not self._claims:
            return
        parts: dict[str, dict[int, list[OutputFile]]] = {}
        for log in sorted(_logs(self._spool)):
            parts.setdefault(log.worker, {}).setdefault(log.rank, []).append(log)
        for task_file, followed in list(self._claims.items()):
            ranks = parts.get(task_file.worker, {})
            for rank, logs in ranks.items():
                for data, started in self._read_rank(task_file, followed, rank, logs):
                    yield Printed(task_file, rank, followed.started.setdefault(rank, started), data)
            if self._is_complete(followed, len(ranks)):
                del self._claims[task_file]
                for rank, started in followed.started.items():
                    yield Printed(task_file, rank, started, b"")

    def _read_rank(
        self, task_file: TaskFile, followed: _Followed, rank: int, logs: list[OutputFile]
    ) -> Iterator[tuple[bytes, float]]:
        """Yield the new output of a rank, with the begin of the claim there."""
        while True:
            reader = followed.readers.get(rank)
            if reader is None or reader.complete:
                index = self._indices.setdefault((task_file.worker, rank), _HeaderIndex(self._spool, self._trust))
                place = index.next_of(task_file, logs)
                if place is None:
                    return
                reader = followed.readers[rank] = _Reader(self._spool, self._trust, task_file, place)
            if data := reader.read():
                yield data, reader.started
            if not reader.complete:
                return

    def _is_complete(self, followed: _Followed, ranks: int) -> bool:
        if followed.finished_at is None:
            return False
        whole = len(followed.readers) == ranks and all(reader.complete for reader in followed.readers.values())
        return whole or time.monotonic() - followed.finished_at >= self._linger


# -- lines


class Lines:
    """Joins pieces of output to lines."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the complete lines without their newlines; for empty data, the incomplete last line."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if self._rest and (not data or len(self._rest) > _LONGEST_LINE):
            lines.append(self._rest)
            self._rest = b""
        return lines


_COLOUR = re.compile(r"(\x1b\[[0-9;]{0,32}m)")


def for_terminal(line: bytes) -> str:
    """Return a line as text in which no character does more to a terminal than change the colour.

    Only the last part is left of a line that overwrites itself with carriage returns.
    """
    text = line.decode(errors="replace").rstrip("\r").rpartition("\r")[2]
    parts = _COLOUR.split(text)
    parts[::2] = ["\t".join(map(escape_line, part.split("\t"))) for part in parts[::2]]
    return "".join(parts) + ("\x1b[0m" if len(parts) > 1 else "")

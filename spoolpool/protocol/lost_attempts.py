"""How the attempts of a task ended whose workers died: found by a recoverer, kept for the error ``WorkerLost``.

::

    workers/W/exit-RANK   status of a rank, from the process that started it (MPI, srun, Flux)
    workers/W/exit        status of the process or launcher command, from the supervisor
    workers/W/stack-RANK  stack that faulthandler wrote, where no output is captured;
    logs/W.RANK           else it is at the end of the captured output
              |
              |  <-- recoverer, before it requeues the task
              v
    logs/TASK.CLAIM.ATTEMPT.WORKER    one record per lost attempt
              |
              |  <-- recoverer of the last attempt
              v
    WorkerLost(attempts=...)

They are for people: no step of the protocol depends on them, and an error here prevents none. Only the guard of rank 0
ends a group whose ranks outlive the end that ``exit`` records. Each is read only up to a limit, and only if it belongs
to the account that may write it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Annotated

import msgspec
from msgspec import Meta

from spoolpool.errors import LostAttempt
from spoolpool.format.names import OutputFile, TaskFile, parse_output_file, parse_task_file
from spoolpool.format.output_log import LogFile
from spoolpool.protocol import workers
from spoolpool.protocol.spool import Spool
from spoolpool.system import file_content, files, records
from spoolpool.system.accounts import account_name
from spoolpool.system.bounds import Count, Seconds, Word
from spoolpool.system.crash import STACK_LIMIT, crash_stack, printable
from spoolpool.system.processes import describe_command_status, describe_status, hostname

EXIT = "exit"
"""Name of the file in a worker's entry that says how the process or launcher command of its group ended."""
_TAIL = 1 << 16  # bytes at the end of an output in which a stack is searched
_RANKS = 64  # ranks of which a stack is searched


Status = Annotated[int, Meta(ge=-64, le=2**32 - 1)]
"""Exit status, or the negative number of a signal."""


class ExitRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Content of ``exit`` and ``exit-RANK`` in a worker's entry."""

    status: Status
    host: Word = ""
    """Host of the process."""
    launcher: Word = ""
    """Launcher whose command ended so; empty if it is the rank itself."""


class AttemptRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Content of ``logs/TASK.CLAIM.ATTEMPT.WORKER``: the fields of :class:`LostAttempt` that the name does not say."""

    host: Word = ""
    pid: Count = 0
    job: Word = ""
    rank: Count | None = None
    status: Status | None = None
    launcher: Word = ""
    last_heartbeat: Seconds = 0.0
    stack: Annotated[str, Meta(max_length=STACK_LIMIT)] = ""


_exit_decoder = msgspec.json.Decoder(ExitRecord)
_attempt_decoder = msgspec.json.Decoder(AttemptRecord)


# -- the entry of a worker


def record_exit(spool: Spool, worker: str, status: int, *, rank: int | None = None, launcher: str = "") -> None:
    """Record how a rank ended; without a ``rank``, how the process or launcher command of the group ended."""
    name = EXIT if rank is None else workers.exit_file(rank)
    record = ExitRecord(status=status, host="" if launcher else hostname(), launcher=launcher)
    with contextlib.suppress(OSError):  # its entry is gone: it had no task, or others have recovered it
        spool.write_public(f"{spool.layout.worker(worker)}/{name}", [msgspec.json.encode(record)])


def has_exit(spool: Spool, worker: str) -> bool:
    """Return whether it is recorded how a worker ended, or its entry is gone."""
    directory = spool.layout.worker(worker)
    return files.exists(f"{directory}/{EXIT}") or not files.exists(directory)


def find(spool: Spool, task_file: TaskFile) -> LostAttempt:
    """Return how the attempt of a dead worker ended, from its entry and its output."""
    worker, path = task_file.worker, spool.layout.worker(task_file.worker)
    found = LostAttempt(task_file.attempt, worker)
    try:
        owner = files.owner(path)
        names = files.list_names(path)
    except OSError:
        return found
    info = workers.read_worker(spool, worker)
    if info is not None:
        found = found._replace(host=info.process.host, pid=info.process.pid, job=info.job)
    with contextlib.suppress(OSError):
        found = found._replace(last_heartbeat=max(0, files.mtime_ns(f"{path}/beat") or 0) / 1e9)
    rank, record = _first_exit(path, names, owner)
    if record is not None:
        found = found._replace(rank=rank, status=record.status, launcher=record.launcher)
        if rank is not None:
            found = found._replace(host=record.host or found.host)
    return _with_stack(spool, found, task_file, names, owner)


def _first_exit(path: str, names: list[str], owner: int | None) -> tuple[int | None, ExitRecord | None]:
    """Return the rank that ended first and its record; without one, the record of the supervisor and no rank."""
    check = _belongs_to(owner)
    ended: list[tuple[int, int, ExitRecord]] = []
    for rank in workers.ranks_of(names, workers.exit_file):
        name = f"{path}/{workers.exit_file(rank)}"
        record = records.read(name, _exit_decoder, check=check)
        with contextlib.suppress(OSError):
            if record is not None:
                ended.append((files.mtime_ns(name) or 0, rank, record))
    if ended:
        _, rank, record = min(ended, key=lambda each: each[:2])
        return rank, record
    record = records.read(f"{path}/{EXIT}", _exit_decoder, check=check)
    return (0 if record is not None and not record.launcher else None), record


def _belongs_to(*owners: int | None) -> records.Check:
    """Return the check that a file belongs to one of these accounts."""

    def check(fd: int, path: str) -> os.stat_result:
        status = files.regular_status(fd, path)
        if status.st_uid not in owners:
            raise ValueError(
                f"{path} belongs to {account_name(status.st_uid)}, which cannot know how the attempt ended"
            )
        return status

    return check


# -- stacks


def _with_stack(
    spool: Spool, found: LostAttempt, task_file: TaskFile, names: list[str], owner: int | None
) -> LostAttempt:
    """Add the stack of the rank that died first; if that is not known, of the lowest rank that left one."""
    path = spool.layout.worker(task_file.worker)
    logs: dict[int, OutputFile] = {}
    with contextlib.suppress(OSError):
        for name in files.list_names(spool.layout.logs) if spool.config.output else ():
            output = parse_output_file(name)
            if output is not None and output.worker == task_file.worker:
                logs[output.rank] = max(output, logs.get(output.rank, output))
    ranks = sorted({*workers.ranks_of(names, workers.stack_file), *logs})
    for rank in ranks[:_RANKS] if found.rank is None or found.launcher else [found.rank]:
        text = crash_stack(_tail(f"{path}/{workers.stack_file(rank)}", owner))
        if not text and rank in logs:
            text = crash_stack(_tail(spool.layout.log(logs[rank]), owner, task_file))
        if text:
            return found._replace(stack=text, rank=rank)
    return found


def _tail(path: str, owner: int | None, task_file: TaskFile | None = None) -> bytes:
    """Return the end of a file; of an output log, the end of the output of this claim, in which the worker died."""
    try:
        with files.reading(path, _belongs_to(owner)) as (fd, status):
            begin = max(0, status.st_size - _TAIL)
            last = None
            for last in LogFile(fd).headers(begin) if task_file is not None else ():  # noqa: B007  the last is wanted
                pass
            if last is not None and task_file is not None and last.task_file[:2] != task_file[:2]:
                return b""
            return file_content.read_at(fd, _TAIL, begin if last is None else last.start)
    except (OSError, ValueError):
        return b""


# -- records


def keep(spool: Spool, task_file: TaskFile, attempt: LostAttempt) -> None:
    """Keep how an attempt ended, before its task runs again; harmless when repeated."""
    fields = {name: getattr(attempt, name) for name in AttemptRecord.__struct_fields__}
    with contextlib.suppress(OSError):  # another recoverer was first; or the disk is full: only the text is lost
        spool.write_public(f"{spool.layout.logs}/{task_file.name}", [msgspec.json.encode(AttemptRecord(**fields))])


def kept(spool: Spool, task: str) -> dict[int, LostAttempt]:
    """Return the recorded attempts of a task by their numbers, since the task was submitted or retried last."""
    try:
        names = files.list_names(spool.layout.logs)
    except OSError:
        return {}
    kept_files = sorted(each for each in map(parse_task_file, names) if each and each.task == task)
    found: dict[int, LostAttempt] = {}
    for each in kept_files[-99:]:
        if found and each.attempt <= max(found):  # these were of an earlier life of the task
            found.clear()
        found[each.attempt] = _read_attempt(spool, each)
    return found


def _read_attempt(spool: Spool, task_file: TaskFile) -> LostAttempt:
    found = LostAttempt(task_file.attempt, task_file.worker)
    check = _belongs_to(os.geteuid(), spool.owner)
    record = records.read(f"{spool.layout.logs}/{task_file.name}", _attempt_decoder, check=check)
    if record is None:
        return found
    return found._replace(**{**msgspec.structs.asdict(record), "stack": printable(record.stack)})


def message(task: str, attempts: list[LostAttempt], title: str = "") -> str:
    """Return the text of the error for a task with these lost attempts; the last one is the latest."""
    named = f", {title}," if title else ""
    lines = [f"The worker of task {task}{named} died in attempt {attempts[-1].attempt}, the last one."]
    lines += [f"  attempt {each.attempt}: {', '.join(_parts(each))}" for each in attempts]
    if attempts[-1].stack:
        lines += [
            "The stack at the end of the last attempt:",
            *(f"  {line}" for line in attempts[-1].stack.split("\n")),
        ]
    lines.append("'spool retry' runs the task again.")
    return "\n".join(lines)


def reason(attempt: LostAttempt) -> str:
    """Return how the worker of an attempt ended, as text."""
    if attempt.status is None:
        return "how it ended is not known (look for memory, walltime, a crash in compiled code)"
    if attempt.launcher:
        return f"a rank died, and {attempt.launcher} ended: {describe_command_status(attempt.status)}"
    return describe_status(attempt.status)


def _parts(attempt: LostAttempt) -> Iterator[str]:
    """Yield what is known of an attempt."""
    yield reason(attempt)
    if attempt.rank is not None:
        yield f"rank {attempt.rank}"
    yield f"host {attempt.host}" if attempt.host else "on an unknown host (its entry is gone)"
    yield f"worker {attempt.worker}"
    if attempt.pid:
        yield f"pid {attempt.pid}"
    if attempt.job:
        yield f"job {attempt.job}"
    if attempt.last_heartbeat:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(attempt.last_heartbeat))
        yield f"last heartbeat {stamp}"

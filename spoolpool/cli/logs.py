"""``spool logs``."""

from __future__ import annotations

import sys
from collections.abc import Collection

import click

from spoolpool.cli.output import echo_stderr, report_errors, when
from spoolpool.cli.task_selection import complete, spool_and_tasks
from spoolpool.errors import BadRequest
from spoolpool.format.names import TaskFile, is_task_id, parse_task_file
from spoolpool.monitor.logs import Lines, OutputFollower, for_terminal, outputs, read, tasks_like
from spoolpool.monitor.query import Query, find_by_ids
from spoolpool.monitor.scan import SpoolScanner
from spoolpool.protocol import workers
from spoolpool.protocol.spool import Spool
from spoolpool.security.trust import Trust
from spoolpool.system import files
from spoolpool.system.backoff import Backoff


@click.command()
@click.argument("words", metavar="SPOOL TASK...", nargs=-1, shell_complete=complete)
@click.option("-f", "--follow", is_flag=True, help="Go on as more comes, until the task has ended.")
@click.option("--rank", type=click.IntRange(0), help="What this rank printed alone.  [default: all]")
@click.option("--trust-user", "trusted", multiple=True, help="Also read what workers of this account wrote; repeat.")
@report_errors
def logs(words: tuple[str, ...], follow: bool, rank: int | None, trusted: tuple[str, ...]) -> None:
    """Show what tasks printed: standard output and standard error, of all ranks and their child processes.

    \b
      spool logs SPOOL 1a76e7819e             by the end of its id
      spool logs SPOOL 1a76e7819e -f          as it comes
      spool logs SPOOL 1a76e7819e > output    byte by byte, as it was printed

    Of several ranks each line begins with the number of its rank. What stands above each attempt goes to standard
    error. A terminal gets text in which nothing does more than colour it.
    """
    directory, tasks = spool_and_tasks(words)
    if not tasks:
        raise BadRequest("Name a task: 'spool ls' shows which there are.")
    spool, trust = Spool(directory), Trust(trusted)
    for task in [_task(spool, trust, word) for word in tasks]:
        claims = _follow(spool, trust, task, rank) if follow else set()
        if not _show(spool, trust, task, rank, without=claims) and not claims:
            echo_stderr(f"Nothing is kept that {task} printed{'' if rank is None else f' on rank {rank}'}.")


def _task(spool: Spool, trust: Trust, word: str) -> str:
    """A task's id; also of one that was collected long ago, as long as its output is kept."""
    if is_task_id(word):
        return word
    try:
        return find_by_ids(spool, [word], Query())[0].id
    except BadRequest:
        found = tasks_like(spool, word, trust)
        if len(found) != 1:
            raise
        return found.pop()


class _Printer:
    """Writes the output of one claim: as it is to a file or pipe, safe to a terminal."""

    def __init__(self, task_file: TaskFile, worker: str, started: float, *, numbered: bool) -> None:
        self._lines: dict[int, Lines] = {}
        self._new = Lines
        self._numbered = numbered
        self._safe = sys.stdout.isatty()
        echo_stderr(f"-- {task_file.task}, attempt {task_file.attempt}, worker {worker}, {when(started)}")

    def write(self, rank: int, data: bytes) -> None:
        """Something that a rank printed; empty: no more of it comes."""
        if not self._numbered and not self._safe:
            click.echo(data, nl=False)
            return
        for line in self._lines.setdefault(rank, self._new()).feed(data):
            prefix = f"{rank}: " if self._numbered else ""
            click.echo(prefix + for_terminal(line) if self._safe else prefix.encode() + line)


def _show(spool: Spool, trust: Trust, task: str, rank: int | None, *, without: Collection[int]) -> bool:
    """Show what is kept, but for some claims; whether there is something."""
    found = [each for each in outputs(spool, task, trust) if each.header.task_file.claim not in without]
    several = {each.header.task_file.claim for each in found if each.log.rank and rank is None}
    found = [each for each in found if rank in (None, each.log.rank)]
    printer, claim = None, 0
    for each in found:
        task_file = each.header.task_file
        if printer is None or task_file.claim != claim:
            claim = task_file.claim
            printer = _Printer(task_file, each.log.worker, each.header.started, numbered=claim in several)
        for piece in read(spool, each, trust):
            printer.write(each.log.rank, piece)
        printer.write(each.log.rank, b"")
    return bool(found)


def _follow(spool: Spool, trust: Trust, task: str, rank: int | None) -> set[int]:
    """Show what comes until the task is over; returns the claims that were seen."""
    following, backoff = OutputFollower(spool, trust), Backoff(0.02, 1.0)
    printers: dict[TaskFile, _Printer] = {}
    while True:
        task_files = map(parse_task_file, files.list_names(spool.layout.claimed))
        claimed = {task_file for task_file in task_files if task_file is not None and task_file.task == task}
        waits = not claimed and any(
            each.task_file.task == task for each in SpoolScanner(spool.path).tasks({"held", "waiting"})
        )
        for task_file in claimed:
            following.add(task_file)
        for task_file in set(following.running()) - claimed:
            following.finish(task_file)
        for printed in following.poll():
            if rank not in (None, printed.rank):
                continue
            task_file = printed.task_file
            if task_file not in printers:
                info = workers.read_worker(spool, task_file.worker)
                numbered = rank is None and info is not None and info.ranks > 1
                printers[task_file] = _Printer(task_file, task_file.worker, printed.started, numbered=numbered)
            printers[task_file].write(printed.rank, printed.data)
            backoff.reset()
        if not (claimed or waits or len(following)):
            return {task_file.claim for task_file in printers}
        backoff.sleep()

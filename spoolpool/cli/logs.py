"""``spool logs``."""

from __future__ import annotations

import sys
from collections.abc import Collection

import click

from spoolpool.cli.output import echo_stderr, format_time, report_errors
from spoolpool.cli.spool_argument import SPOOL_OPTION, split_words
from spoolpool.cli.task_selection import complete
from spoolpool.errors import BadRequest
from spoolpool.format.names import TaskFile, is_task_id, parse_task_file
from spoolpool.monitor.logs import Lines, OutputFollower, for_terminal, outputs, read, tasks_like
from spoolpool.monitor.query import Query
from spoolpool.monitor.scan import SpoolScanner
from spoolpool.monitor.selection import find_by_ids
from spoolpool.protocol import workers
from spoolpool.protocol.presence import Presence
from spoolpool.protocol.spool import Spool
from spoolpool.security.trust import Trust
from spoolpool.system import files
from spoolpool.system.backoff import Backoff


@click.command()
@SPOOL_OPTION
@click.argument("words", metavar="[SPOOL] TASK...", nargs=-1, shell_complete=complete)
@click.option("-f", "--follow", is_flag=True, help="Continue with new output until the task has ended.")
@click.option("--rank", type=click.IntRange(0), help="Output of this rank only.  [default: all]")
@click.option("--trust-user", "trusted", multiple=True, help="Also read output of workers of this account.")
@report_errors
def logs(
    words: tuple[str, ...], given_spool: str | None, follow: bool, rank: int | None, trusted: tuple[str, ...]
) -> None:
    """Show the captured output of tasks: standard output and standard error of all ranks and their child processes.

    \b
      spool logs SPOOL 1a76e7819e             task with this end of its id
      spool logs SPOOL 1a76e7819e -f          follow the output
      spool logs SPOOL 1a76e7819e > output    unchanged bytes

    With several ranks, each line begins with its rank. The heading of each attempt goes to standard error. Terminal
    controls other than colours are escaped on a terminal.
    """
    directory, tasks = split_words(words, given_spool)
    if not tasks:
        raise BadRequest("Name a task. 'spool ls' lists the tasks.")
    spool, trust = Spool(directory, read_only=True), Trust(trusted)
    for task in [_task(spool, trust, word) for word in tasks]:
        claims = _follow(spool, trust, task, rank) if follow else set()
        if not _show(spool, trust, task, rank, without=claims) and not claims:
            echo_stderr(f"There is no captured output of {task}{'' if rank is None else f' on rank {rank}'}.")


def _task(spool: Spool, trust: Trust, word: str) -> str:
    """Return the id of a task, also after its outcome was collected, if its output is kept; of a call, its pack's."""
    if is_task_id(word) and outputs(spool, word, trust):
        return word
    try:
        return find_by_ids(spool, [word], Query())[0].location.task_file.task
    except BadRequest:
        if is_task_id(word):
            return word
        found = tasks_like(spool, word, trust)
        if len(found) != 1:
            raise
        return found.pop()


class _Printer:
    """Writer of the output of one claim: unchanged to a file or pipe, escaped to a terminal."""

    def __init__(self, task_file: TaskFile, worker: str, started: float, *, show_ranks: bool) -> None:
        self._lines: dict[int, Lines] = {}
        self._show_ranks = show_ranks
        self._escape = sys.stdout.isatty()
        echo_stderr(f"-- {task_file.task}, attempt {task_file.attempt}, worker {worker}, {format_time(started)}")

    def write(self, rank: int, data: bytes) -> None:
        """Write output of a rank; empty at its end."""
        if not self._show_ranks and not self._escape:
            click.echo(data, nl=False)
            return
        for line in self._lines.setdefault(rank, Lines()).feed(data):
            prefix = f"{rank}: " if self._show_ranks else ""
            click.echo(prefix + for_terminal(line) if self._escape else prefix.encode() + line)


def _show(spool: Spool, trust: Trust, task: str, rank: int | None, *, without: Collection[int]) -> bool:
    """Show the kept output, except that of some claims; return whether there is any."""
    found = [each for each in outputs(spool, task, trust) if each.header.task_file.claim not in without]
    several = {each.header.task_file.claim for each in found if each.log.rank and rank is None}
    found = [each for each in found if rank in (None, each.log.rank)]
    printer, claim = None, 0
    for each in found:
        task_file = each.header.task_file
        if printer is None or task_file.claim != claim:
            claim = task_file.claim
            printer = _Printer(task_file, each.log.worker, each.header.started, show_ranks=claim in several)
        for piece in read(spool, each, trust):
            printer.write(each.log.rank, piece)
        printer.write(each.log.rank, b"")
    return bool(found)


def _follow(spool: Spool, trust: Trust, task: str, rank: int | None) -> set[int]:
    """Show new output until the task has ended; return the claims whose output was shown."""
    follower, backoff = OutputFollower(spool, trust), Backoff(0.02, 1.0)
    printers: dict[TaskFile, _Printer] = {}
    presence = Presence(spool, restore=False)
    while True:
        if not presence.check_if_due():  # the task may be missing because its spool is
            backoff.sleep()
            continue
        task_files = map(parse_task_file, files.list_names(spool.layout.claimed))
        claimed = {task_file for task_file in task_files if task_file is not None and task_file.task == task}
        is_queued = not claimed and any(
            each.task_file.task == task for each in SpoolScanner(spool.layout.root).tasks({"held", "waiting"})
        )
        for task_file in claimed:
            follower.add(task_file)
        for task_file in set(follower.running()) - claimed:
            follower.finish(task_file)
        for printed in follower.poll():
            if rank not in (None, printed.rank):
                continue
            task_file = printed.task_file
            if task_file not in printers:
                info = workers.read_worker(spool, task_file.worker)
                show_ranks = rank is None and info is not None and info.ranks > 1
                printers[task_file] = _Printer(task_file, task_file.worker, printed.started, show_ranks=show_ranks)
            printers[task_file].write(printed.rank, printed.data)
            backoff.reset()
        if not (claimed or is_queued or len(follower)):
            return {task_file.claim for task_file in printers}
        backoff.sleep()
